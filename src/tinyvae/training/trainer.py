"""The Trainer: batches in, updates out. It knows objectives and no particular model."""

import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from tinyvae._version import __version__
from tinyvae.objective import Batch, Objective, ObjectiveOutput
from tinyvae.scopes import evaluating, forked_rng, restored_modes, seed_rng
from tinyvae.training.callbacks import Callback
from tinyvae.training.checking import CheckedFeed
from tinyvae.training.feed import PickBatch, Preparation, Transform, make_feed
from tinyvae.training.finite import FiniteLosses, require_finite_weights
from tinyvae.training.gradients import Gradients
from tinyvae.training.history import History, Row, RunningMean
from tinyvae.training.interrupt import stop_on_interrupt
from tinyvae.training.lean import step_of
from tinyvae.training.optimization import Optimization, clip
from tinyvae.training.progress import Progress
from tinyvae.training.seeds import Stream, derive_seed
from tinyvae.training.speed import (
    Differentiate,
    Route,
    Speed,
    choose_route,
    fast_path,
    matmul_route,
)

__all__ = ["Plan", "Trainer"]


@dataclass(frozen=True)
class Plan:
    """The length of one call of ``fit``.

    Attributes:
        first_epoch: Epochs done before it.
        epochs: Epochs to do.
        run_steps: Updates to do, None where the data do not tell.
        total_steps: Updates done before it, and those to do.
        schedule_steps: Updates of the first call, of which schedules are fractions.
        has_validation: Whether there are validation data.
        headline: What runs, in a line.
    """

    first_epoch: int
    epochs: int
    run_steps: int | None
    total_steps: int | None
    schedule_steps: int | None
    has_validation: bool
    headline: str


class Trainer:
    """Minimises an objective.

    Randomness is a function of the seed: from the same weights, the same seed gives bitwise the
    same run on one machine (device, torch, number of threads, fast paths; on a GPU as far as its
    kernels are deterministic). Global random state is left as it was found.

    Args:
        model: Module that the objective understands; moved to the device.
        objective: What is minimised.
        optimization: Optimiser, learning rates, scheduler, clipping.
        callbacks: Called in this order, at the end of ``fit`` in reverse.
        speed: Fast paths beyond the default one: compilation, matrix products, mixed precision.
        seed: Seed of order, noise and transforms.
        device: ``"auto"`` takes cuda, else mps, else the CPU.
        record_every: Record every so many updates in ``history.updates``; None records none.
        progress: Whether to report on standard error.

    Attributes:
        history: Record of all calls of :meth:`fit`.
        epoch: Epochs done.
        step: Updates done.
        plan: Length of the current call of :meth:`fit`.
        optimizers: Optimisers by parameter group.
        route: What the probes of ``speed`` chose, at the first call of :meth:`fit`.

    Example:
        >>> trainer = Trainer(vae, ELBO(), Optimization(learning_rate=2e-3), progress=False)
        >>> history = trainer.fit(x, epochs=2, batch_size=4)
        >>> history["epoch"]
        [1, 2]
    """

    plan: Plan
    route: Route

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimization: Optimization | None = None,
        *,
        callbacks: Sequence[Callback] = (),
        speed: Speed | None = None,
        seed: int = 0,
        device: str | torch.device = "auto",
        record_every: int | None = None,
        progress: bool = True,
    ) -> None:
        if not isinstance(objective, Objective):
            raise TypeError(f"expected an Objective such as ELBO(), got {objective!r:.80}")
        if optimization is not None and not isinstance(optimization, Optimization):
            raise TypeError(
                "expected an Optimization(learning_rate=..., optimizer=...), "
                f"got {optimization!r:.80}"
            )
        if speed is not None and not isinstance(speed, Speed):
            raise TypeError(f"expected a Speed(compile=..., matmul=...), got {speed!r:.80}")
        if isinstance(callbacks, Callback):
            raise TypeError(f"expected a sequence of callbacks, got one: [{callbacks!r:.80}]")
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"expected an integer seed >= 0, got {seed}")
        if record_every is not None and record_every < 1:
            raise ValueError(f"expected record_every >= 1 or None, got {record_every}")
        self.model = model
        self.objective = objective
        self.optimization = Optimization() if optimization is None else optimization
        self.callbacks = [*([Progress()] if progress else []), *callbacks]
        self.speed = Speed() if speed is None else speed
        self.seed = seed
        self.device = _choose_device(device)
        self.record_every = record_every
        self.history = History()
        self.epoch = 0
        self.step = 0
        self.route = Route()
        self.groups: dict[str, list[nn.Parameter]] = {}
        self.optimizers: dict[str, Optimizer] = {}
        self._schedulers: dict[str, LRScheduler] = {}

    def fit(
        self,
        train: Any,
        validation: Any = None,
        *,
        epochs: int,
        batch_size: int = 128,
        batch: PickBatch | None = None,
        transform: Transform | None = None,
    ) -> History:
        """Train for ``epochs`` more epochs; called again, it continues.

        Weights, moments, epochs, steps and history go on, and so do scheduled weights of the
        objective, whose fractions are of the first call. Schedulers start afresh over the new
        epochs; moments do, if other parameters are trained than before.

        Args:
            train: Tensor or numpy array ``(N, *E)``, a tuple of these, a Dataset or a DataLoader.
                Floating-point data are converted to the model's dtype.
            validation: The same, evaluated after every epoch on the same noise.
            epochs: Epochs to train for.
            batch_size: Examples per update; a DataLoader has its own.
            batch: Picks x, or a :class:`~tinyvae.Batch`, out of what the data yield.
            transform: Maps (x, generator) to x, for every batch of training and validation.

        Returns:
            The history, also of earlier calls; ``history.stop_reason`` tells of an early end.

        Raises:
            TypeError, ValueError: If data, model and objective do not fit, before the first step.
            NonFiniteError: If a loss is NaN or infinite, at that step (on a GPU some steps later,
                none of which changes weights); if weights are, at the end of the epoch.
        """
        for name, count in (("epochs", epochs), ("batch_size", batch_size)):
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"expected {name} as an integer >= 1, got {count!r}")
        dtype = next((p.dtype for p in self.model.parameters()), torch.get_default_dtype())
        self.model.to(self.device)
        self.objective.to(self.device, dtype)
        preparation = Preparation(self.device, dtype, batch, transform)
        train_feed = self._feed(train, "training", preparation, batch_size, shuffle=True)
        validation_feed = (
            None
            if validation is None
            else self._feed(validation, "validation", preparation, batch_size, shuffle=False)
        )
        self.history.stop_reason = None
        with forked_rng(self.device), stop_on_interrupt(self.stop), torch.enable_grad():
            self._start(train_feed, validation_feed, epochs)
            with matmul_route(self.route.matmul):
                self._run(train_feed, validation_feed)
        return self.history

    def _feed(
        self, data: Any, role: str, preparation: Preparation, batch_size: int, *, shuffle: bool
    ) -> CheckedFeed:
        try:
            feed = make_feed(
                data, preparation, batch_size=batch_size, seed=self.seed, shuffle=shuffle
            )
        except (TypeError, ValueError) as error:
            raise type(error)(f"{role} data: {error}") from error
        check = partial(self.objective.check, self.model)
        return CheckedFeed(feed, role, check, seed=self.seed, device=self.device)

    def _start(self, train: CheckedFeed, validation: CheckedFeed | None, epochs: int) -> None:
        """Check everything, and plan the run."""
        train.begin(self.epoch)
        if validation is not None:
            validation.begin(0)
        num_batches = train.feed.num_batches
        run_steps = None if num_batches is None else num_batches * epochs
        self._make_optimizers()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()  # gradients found, or left by an error, are none of this run's
        self._schedulers = self.optimization.make_schedulers(
            self.optimizers,
            epochs=epochs,
            steps_per_epoch=num_batches,
            has_validation=validation is not None,
        )
        self._steps = {name: step_of(optimizer) for name, optimizer in self.optimizers.items()}
        self._finite = FiniteLosses(self.optimizers)
        schedule_steps = self.plan.schedule_steps if self.step else run_steps
        self.objective.refresh()
        self.objective.at(self.step, schedule_steps)
        self._choose_paths(train)
        self.plan = Plan(
            first_epoch=self.epoch,
            epochs=epochs,
            run_steps=run_steps,
            total_steps=None if run_steps is None else self.step + run_steps,
            schedule_steps=schedule_steps,
            has_validation=validation is not None,
            headline=self._headline(train, epochs),
        )
        if self.plan.total_steps is not None:
            self._warn_of_unfinished_schedules(self.plan.total_steps)

    def _make_optimizers(self) -> None:
        groups = {n: list(g) for n, g in self.objective.parameter_groups(self.model).items()}
        every = [p for group in groups.values() for p in group]
        if len(set(every)) < len(every):
            raise ValueError(
                f"expected parameter groups without a common parameter, got {list(groups)} with "
                f"{len(every) - len(set(every))} of them twice"
            )
        unchanged = groups.keys() == self.groups.keys() and all(
            [id(p) for p in groups[name]] == [id(p) for p in self.groups[name]] for name in groups
        )
        if unchanged:
            for optimizer in self.optimizers.values():
                for options in optimizer.param_groups:
                    options["lr"] = options["initial_lr"]
            return
        names = {p: name for name, p in self.model.named_parameters()}
        names |= {p: f"objective.{name}" for name, p in self.objective.named_parameters()}
        self.groups = groups
        self.optimizers = self.optimization.make_optimizers(groups, names)

    def _choose_paths(self, train: CheckedFeed) -> None:
        """Make the pass of an update, by the fast paths that were asked for."""
        gradients = Gradients(self.model, self.objective, self.groups)
        self._differentiate: Differentiate = gradients
        if self.speed == Speed():
            return
        with restored_modes(self.model, self.objective):
            self.model.train()
            self.objective.train()
            example = train.first(self.epoch)
            if not self.step:
                self.route = choose_route(gradients, example, self.speed)
            self._differentiate = fast_path(gradients, example, self.speed, self.route)

    def _headline(self, train: CheckedFeed, epochs: int) -> str:
        size = sum(p.numel() for group in self.groups.values() for p in group)
        counts = (train.feed.num_examples, train.feed.num_batches)
        examples, steps = ("?" if count is None else f"{count:,}" for count in counts)
        return (
            f"tinyvae {__version__} on {self.device}, seed {self.seed}: {size:,} parameters, "
            f"{examples} examples, {epochs} epochs of {steps} steps; {train.description}"
            + "".join(f"; {word}" for word in self._path_words())
        )

    def _path_words(self) -> list[str]:
        """What came of the fast paths that were asked for."""
        words = []
        if self.speed.compile:
            is_compiled = not isinstance(self._differentiate, Gradients)
            words.append("compiled" if is_compiled else "not compiled")
        if self.speed.matmul != "default":
            words.append(f"matrix products by {self.route.matmul_words}")
        if self.speed.precision != "float32":
            words.append(f"networks in {self.route.precision}")
        return words

    def _warn_of_unfinished_schedules(self, steps: int) -> None:
        for message in self.objective.unfinished(steps, self.plan.schedule_steps):
            # The level is that of the call of fit.
            warnings.warn(f"a schedule does not end: {message}", stacklevel=4)

    def _run(self, train: CheckedFeed, validation: CheckedFeed | None) -> None:
        elapsed = self.history.epochs[-1]["time_seconds"] if self.history.epochs else 0.0
        started = time.monotonic() - elapsed
        with ExitStack() as stack:
            stack.enter_context(restored_modes(self.model, self.objective))
            stack.callback(self._finite.release)
            for callback in self.callbacks:
                callback.on_fit_start(self)
                stack.callback(callback.on_fit_end, self)
            for _ in range(self.plan.epochs):
                try:
                    self._run_epoch(train, validation, started)
                except BaseException as error:
                    self.stop(f"{type(error).__name__}: {error}")
                    raise
                if self.history.stop_reason is not None:
                    break
            if self.history.stop_reason is not None or self.plan.total_steps is None:
                self._warn_of_unfinished_schedules(self.step)

    def stop(self, reason: str) -> None:
        """End the run after the current step; the first ``reason`` goes into the history."""
        if self.history.stop_reason is None:
            self.history.stop_reason = reason

    def _run_epoch(
        self, train: CheckedFeed, validation: CheckedFeed | None, started: float
    ) -> None:
        means = self._train_epoch(train)
        completed = self.history.stop_reason is None
        row = {"epoch": self.epoch + 1, "step": self.step, **self._learning_rates(), **means}
        if validation is not None and completed:
            row |= self._validate(validation)
        row["time_seconds"] = time.monotonic() - started
        self.epoch += 1
        self.history.epochs.append(row)
        for callback in self.callbacks:
            callback.on_epoch_end(self, row)
        if completed and self.optimization.scheduler_interval == "epoch":
            self._step_schedulers(row)

    def _train_epoch(self, train: CheckedFeed) -> Row:
        batches = train.batches(self.epoch)
        seed_rng(self.device, derive_seed(self.seed, Stream.NOISE, self.epoch))
        self.model.train()
        self.objective.train()
        mean = RunningMean()
        for batch in batches:
            output = self._update(batch)
            mean.add(output, len(batch))
            if self.record_every is not None and self.step % self.record_every == 0:
                self.history.record_update(self.step, output)
            for callback in self.callbacks:
                callback.on_step_end(self, output)
            if self.history.stop_reason is not None:
                break
        self._finite.settle()
        require_finite_weights(self.groups, f"step {self.step} (epoch {self.epoch + 1})")
        return mean.row("train")

    def _update(self, batch: Batch) -> ObjectiveOutput:
        """One update: the only place where weights change."""
        self.objective.at(self.step, self.plan.schedule_steps)
        output = self._differentiate(batch)
        self._finite.check(output, f"step {self.step + 1} (epoch {self.epoch + 1})")
        for name in self.optimizers:
            clip(self.groups[name], self.optimization.clip_norm)
            self._steps[name]()
            for parameter in self.groups[name]:
                parameter.grad = None
        if self.optimization.scheduler_interval == "step":
            self._step_schedulers({})
        self.step += 1
        return output

    def _step_schedulers(self, row: Row) -> None:
        for scheduler in self._schedulers.values():
            if isinstance(scheduler, ReduceLROnPlateau):
                monitor = self.optimization.monitor
                if monitor not in row:
                    raise ValueError(
                        f"ReduceLROnPlateau watches '{monitor}', expected one of {list(row)}"
                    )
                scheduler.step(row[monitor])
            else:
                scheduler.step()

    def _learning_rates(self) -> Row:
        rates = {name: o.param_groups[0]["lr"] for name, o in self.optimizers.items()}
        if len(rates) == 1:
            return {"learning_rate": float(*rates.values())}
        return {f"learning_rate/{name}": float(rate) for name, rate in rates.items()}

    def _validate(self, validation: CheckedFeed) -> Row:
        """Evaluate on the same noise at every call, leaving the run's noise untouched."""
        mean = RunningMean()
        with evaluating(self.model, self.objective), torch.no_grad(), forked_rng(self.device):
            batches = validation.batches(epoch=0)
            seed_rng(self.device, derive_seed(self.seed, Stream.VALIDATION))
            for batch in batches:
                mean.add(self.objective(self.model, batch), len(batch))
        return mean.row("validation")


def _choose_device(device: str | torch.device) -> torch.device:
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
