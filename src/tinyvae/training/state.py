"""State of a run: everything that changes while it trains, and its form in a checkpoint."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tinyvae.core.objective import Objective, ObjectiveOutput
from tinyvae.core.random import Stream, derive_seed, rng_state, seed_rng, set_rng_state
from tinyvae.training.acceleration.loss_scale import LossScale
from tinyvae.training.averaging import AveragedWeights
from tinyvae.training.history import History, Row
from tinyvae.training.optimization import (
    Optimization,
    keep_settings,
    named_parameters,
    parameter_groups,
    same_groups,
)
from tinyvae.training.plan import RunPlan
from tinyvae.training.processes import ONE_PROCESS
from tinyvae.training.rates import restart_rates
from tinyvae.training.running_mean import RunningMean
from tinyvae.training.settings import Settings

# Version of the state in a checkpoint. To change its fields, raise the version by one and add a
# function to MIGRATIONS that turns a state of the previous version into one of the new version.
STATE_VERSION = 1
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


@runtime_checkable
class Stateful(Protocol):
    """Object whose state can be saved, such as a callback or torchdata's StatefulDataLoader."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, saved: dict[str, Any], /) -> None:
        """Restore the state."""


@dataclass(frozen=True)
class StopRequest:
    """Request to end the run after the current step.

    Attributes:
        reason: Reason, for the history.
        resumable: True if a resumed run continues, as after a signal. False if the run is over.
    """

    reason: str
    resumable: bool = False


class TrainState:
    """State of a run. Callbacks read it, and may stop the run.

    Args:
        model: The model.
        objective: The objective.
        device: Device of both.
        callbacks: The run's callbacks.

    Attributes:
        optimization: Settings of the optimization in the current call of ``fit``.
        groups: Trained parameters, by the name of their loss.
        optimizers: Optimizers by parameter group.
        schedulers: Learning rate schedulers by parameter group.
        epoch: Epochs done.
        step: Updates done.
        batch: Batches done in the current epoch.
        average: Average of the weights.
        loss_scale: Factor of the loss in float16.
        running_means: Means of losses and metrics in the current epoch.
        history: Rows of all epochs so far.
        plan: Length of the current call of ``fit``.
        stop_request: The first request to stop, None if there was none.
        is_consistent: True between two steps, when the state may be saved.
        start_time: Monotonic time of the run's start, shifted so that interruptions do not count.
        fingerprint: Values that a checkpoint must share with the run: seed, sizes of the data.
        identity: Settings of the run by name, which a resumed run should share.
        mode: Settings that change results in the last digits: device, torch, threads, fast paths.
        data_state: Function that returns the state of the data source.
        synchronize: Function that waits for the device and raises if a step was not finite.
        processes: Processes that train together, and the rank of this one among them.
        weight: Total weight of the examples of the last update, in all processes.
        is_idle: True if this process has no share of the current batch, and repeats another one.
        stop_flags: True if a process had a resumable stop request in the last step, or another one.
    """

    plan: RunPlan
    optimization: Optimization

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        device: torch.device,
        callbacks: Sequence[Stateful] = (),
    ) -> None:
        self.model, self.objective, self.device = model, objective, device
        self.callbacks = callbacks
        self.groups: dict[str, list[nn.Parameter]] = {}
        self.optimizers: dict[str, Optimizer] = {}
        self.schedulers: dict[str, LRScheduler] = {}
        self._makers: tuple[Any, ...] = ()  # settings from which the optimizers were made
        self.epoch = self.step = self.batch = 0
        self.average = AveragedWeights(model)
        self.loss_scale = LossScale()
        self.running_means = RunningMean()
        self.history = History()
        self.stop_request: StopRequest | None = None
        self.is_consistent = False
        self.start_time = 0.0
        self.fingerprint: dict[str, int | None] = {}
        self.identity: Settings = {}
        self.mode: dict[str, Any] = {}
        self.data_state: Callable[[], dict[str, Any]] = dict
        self.synchronize: Callable[[], None] = lambda: None
        self.processes = ONE_PROCESS
        self.weight: float | torch.Tensor = 0.0
        self.is_idle = False
        self.stop_flags = [False, False]
        self._rng: dict[str, torch.Tensor] = {}  # the run's random state while callbacks draw

    def make_optimizers(self, optimization: Optimization) -> None:
        """Make optimizers, or keep those of the same parameters and settings.

        Learning rates that a scheduler moved start again. Other changes of ``param_groups`` stay.
        """
        self.optimization = optimization
        for name, optimizer in self.optimizers.items():
            restart_rates(optimizer, self.schedulers.get(name))
        groups = parameter_groups(self.objective, self.model)
        makers = (optimization.optimizer, optimization.learning_rate, optimization.learning_rates)
        if not same_groups(groups, self.groups) or makers != self._makers:
            names = {p: name for name, p in named_parameters(self.objective, self.model).items()}
            optimizers = optimization.make_optimizers(groups, names)
            if makers == self._makers:
                keep_settings(self.optimizers, optimizers)
            self.groups, self.optimizers, self._makers = groups, optimizers, makers
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()  # removes gradients that the user or an error left

    def set_mode(self, speed: Any, resolved_speed: Any) -> None:
        """Set ``mode``. The arguments are the dataclasses of requested and chosen fast paths."""
        self.mode = {
            "device": self.device.type,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "speed": asdict(speed),
            "resolved_speed": asdict(resolved_speed),
            "processes": self.processes.size,
        }

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name."""
        trained = {id(p) for group in self.groups.values() for p in group}
        named = named_parameters(self.objective, self.model)
        return {name: p for name, p in named.items() if id(p) in trained}

    # Progress -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start at the first batch of an epoch. The clock continues."""
        self.batch, self.running_means, self.start_time = 0, RunningMean(), time.monotonic()
        if self.history.epochs:
            self.start_time -= self.history.epochs[-1]["time_seconds"]

    def advance(self, output: ObjectiveOutput, weight: float | Tensor) -> None:
        """Count an update, whose batch has a total weight in the means of the epoch."""
        self.running_means.add(output, weight)
        self.step += 1
        self.batch += 1

    def finish_epoch(self, row: Row) -> None:
        """Count an epoch, and add its row to the history."""
        self.epoch, self.batch = self.epoch + 1, 0
        self.history.epochs.append(row)

    def stop(self, reason: str, *, resumable: bool = False) -> None:
        """End the run after the current step. The first request counts."""
        if self.stop_request is None:
            self.stop_request = StopRequest(reason, resumable)
            self.history.stop_reason = reason

    @property
    def is_interrupted(self) -> bool:
        """True if the run stops but may be resumed."""
        return self.stop_request is not None and self.stop_request.resumable

    @contextmanager
    def other_rng(self, seed: int) -> Iterator[None]:
        """Draw from another seed inside the block. The run's random numbers do not change."""
        self._rng = rng_state(self.device)
        try:
            seed_rng(self.device, seed)
            yield
        finally:
            set_rng_state(self.device, self._rng)
            self._rng = {}

    # Checkpoints ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors, numbers, strings, lists and dictionaries, without a copy."""
        self.synchronize()
        history = self.history.state_dict()
        if self.is_interrupted:
            history["stop_reason"] = None  # a resumed run must not stop again
        callbacks = {name: callback.state_dict() for name, callback in self.named_callbacks()}
        return {
            "state_version": STATE_VERSION,
            "fingerprint": self.fingerprint,
            "identity": self.identity,
            "mode": self.mode,
            "plan": {
                "start_epoch": self.plan.start_epoch,
                "scheduled_epochs": self.plan.scheduled_epochs,
                "schedule_steps": self.plan.schedule_steps,
            },
            "position": {
                "epoch": self.epoch,
                "step": self.step,
                "batch": self.batch,
                "seconds": time.monotonic() - self.start_time,
            },
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "schedulers": {name: s.state_dict() for name, s in self.schedulers.items()},
            "average": self.average.state_dict(),
            "loss_scale": self.loss_scale.state_dict(),
            "callbacks": {name: state for name, state in callbacks.items() if state},
            "history": history,
            "running_means": self.running_means.state_dict(),
            "rng": self._rng or rng_state(self.device),
            "data": self.data_state(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore everything except callbacks and random numbers. Optimizers must exist.

        Callbacks and random numbers follow in :meth:`load_late_state`, after ``on_fit_start``.
        """
        self.model.load_state_dict(saved["model"])
        self.objective.load_state_dict(saved["objective"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][name])
            # Otherwise torch's schedulers would warn that no step of the optimizer came first.
            optimizer._opt_called = True  # type: ignore[attr-defined]
        for name, scheduler in self.schedulers.items():
            scheduler.load_state_dict(saved["schedulers"][name])
        self.average.load_state_dict(saved["average"])
        self.loss_scale.load_state_dict(saved["loss_scale"])
        self.history.load_state_dict(saved["history"])
        if self.stop_request is not None:  # a signal came since ``fit`` was called
            self.history.stop_reason = self.stop_request.reason
        elif self.history.stop_reason is not None:
            self.stop_request = StopRequest(self.history.stop_reason)
        position = saved["position"]
        self.epoch, self.step, self.batch = (position[n] for n in ("epoch", "step", "batch"))
        self.start_time = time.monotonic() - position["seconds"]
        self.running_means.load_state_dict(saved["running_means"], self.device)

    def load_late_state(self, saved: Mapping[str, Any]) -> None:
        """Restore callbacks and random numbers, which ``on_fit_start`` may have changed."""
        for name, callback in self.named_callbacks():
            if name in saved["callbacks"]:
                callback.load_state_dict(saved["callbacks"][name])
        if saved["mode"]["processes"] == self.processes.size:
            set_rng_state(self.device, saved["rng"])
        else:  # their random states differ
            seed = saved["fingerprint"]["seed"]
            seed_rng(self.device, derive_seed(seed, Stream.NOISE, self.epoch))

    def named_callbacks(self) -> list[tuple[str, Stateful]]:
        """Return the callbacks with the names of their classes, numbered if a class repeats."""
        count: Counter[str] = Counter()
        named = []
        for callback in self.callbacks:
            name = type(callback).__name__
            count[name] += 1
            named.append((name if count[name] == 1 else f"{name} {count[name]}", callback))
        return named
