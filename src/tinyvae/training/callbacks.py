"""Callbacks: user code that runs between steps and epochs."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any

from torch import Tensor

from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.module_state import set_training_mode
from tinyvae.core.objective import Direction, ObjectiveOutput
from tinyvae.core.random import Stream, derive_seed
from tinyvae.errors import NonFiniteError
from tinyvae.training.data.workers import data_worker_error
from tinyvae.training.exchange import stops
from tinyvae.training.history import Row, require_direction, require_validation, watched
from tinyvae.training.signals import defer_sigchld
from tinyvae.training.state import TrainState

# A signal to a group of processes may reach those that read data before it reaches the run.
SIGNAL_SECONDS = 0.2


class Callback:
    """Code that a :class:`~tinyvae.Trainer` calls at fixed points. By default it does nothing.

    Random numbers that it draws from torch's default generators do not change the run. After a step
    they are a function of the run's seed and the step.

    Every method gets the run's :class:`~tinyvae.training.TrainState`: ``model``, ``objective``,
    ``optimizers``, ``schedulers``, ``history``, ``epoch``, ``step``, ``plan`` (length of the run),
    and ``stop(reason)``, which ends the run after the current step.

    A callback with its own state returns it from :meth:`state_dict`, so that a resumed run
    continues with it.

    Attributes:
        first_process_only: True if only the first of several processes calls it, because it writes
            files or reports. Otherwise all of them do, with the same ``row``.

    Example:
        >>> class StopAtLoss(Callback):
        ...     def on_epoch_end(self, state, row):
        ...         if row["train/loss"] < 2.0:
        ...             state.stop("the loss is below 2 nats")
        >>> trainer = Trainer(vae, ELBO(), callbacks=[StopAtLoss()], progress=False)
    """

    first_process_only: bool = False

    def on_fit_start(self, state: TrainState) -> None:
        """Run before the first step of a call of ``fit``."""

    def on_step_end(self, state: TrainState, output: ObjectiveOutput) -> None:
        """Run after every update, with its losses and metrics.

        Gradients are already cleared. To read them, register a hook in :meth:`on_fit_start`:
        ``state.optimizers[group].register_step_pre_hook(...)``. It runs before each update and sees
        clipped gradients. A fused Adam on a CPU is slower with a hook, because it is then called
        through torch. Remove the hook in :meth:`on_fit_end`.
        """

    def on_validation_start(self, state: TrainState) -> None:
        """Run before every validation, for example to swap in averaged weights."""

    def on_validation_end(self, state: TrainState) -> None:
        """Run after every validation, also after an error in it."""

    def on_epoch_end(self, state: TrainState, row: Row) -> None:
        """Run after every epoch. Columns that are added to ``row`` become part of the history.

        A checkpoint may have been written after the epoch's last step, before this call. A run that
        is resumed from it calls this method again.
        """

    def on_safe_point(self, state: TrainState, *, last: bool) -> None:
        """Run when the state is consistent and may be saved: after each step and each epoch.

        Args:
            state: State of the run.
            last: True at the last safe point of this call of ``fit``.
        """

    def on_fit_end(self, state: TrainState) -> None:
        """Run at the end of ``fit``, also after an error."""

    def state_dict(self) -> dict[str, Any]:
        """Return the callback's state: tensors, numbers, strings, lists, dictionaries."""
        return {}

    def check_state(self, state: TrainState, saved: dict[str, Any]) -> None:
        """Raise if ``saved`` is not a valid :meth:`state_dict`. Runs before anything changes.

        Any exception becomes a :class:`~tinyvae.errors.CheckpointError`.
        """

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore a :meth:`state_dict`. Runs after ``on_fit_start`` of a resumed run."""


@contextmanager
def running(
    callbacks: Sequence[Callback], state: TrainState, saved: Mapping[str, Any] | None
) -> Iterator[None]:
    """Call ``on_fit_start`` of all, restore their states, and at the end call ``on_fit_end``."""
    with ExitStack() as stack:
        for callback in callbacks:
            callback.on_fit_start(state)
            stack.callback(callback.on_fit_end, state)
        if saved is not None:
            state.load_late_state(saved)
        yield


@contextmanager
def validating(callbacks: Sequence[Callback], state: TrainState) -> Iterator[None]:
    """Call ``on_validation_start`` of all, and at the end ``on_validation_end``."""
    with ExitStack() as stack:
        for callback in callbacks:
            callback.on_validation_start(state)
            stack.callback(callback.on_validation_end, state)
        yield


def notify_safe_point(callbacks: Sequence[Callback], state: TrainState, *, last: bool) -> None:
    """Mark the state as consistent, and call ``on_safe_point`` of all callbacks."""
    state.is_consistent = True
    for callback in callbacks:
        callback.on_safe_point(state, last=last)


@contextmanager
def saving_after_error(callbacks: Sequence[Callback], state: TrainState) -> Iterator[None]:
    """Save a last checkpoint if an error left the state consistent, e.g. an error in the data.

    The error becomes the reason of the end.
    """
    try:
        yield
    except BaseException as error:
        worker_error = data_worker_error(error)
        if worker_error is not None:
            with suppress(RuntimeError), defer_sigchld():  # torch may report the death once more
                time.sleep(SIGNAL_SECONDS)
        was_interrupted = state.is_interrupted
        if state.is_consistent and not isinstance(error, NonFiniteError):
            state.stop(f"{type(error).__name__}: {error}", resumable=True)
            with suppress(Exception), defer_sigchld():  # the first error matters
                notify_safe_point(callbacks, state, last=True)
        state.stop(f"{type(error).__name__}: {error}")
        if worker_error is None or (worker_error is error and not was_interrupted):
            raise
        if not was_interrupted:
            raise worker_error from error
        # The signal that stopped the run has also ended the processes that read data: no error.


class StepHooks:
    """Hooks that run after every step. The run's random numbers do not depend on theirs."""

    def __init__(self, callbacks: Sequence[Callback], state: TrainState, seed: int) -> None:
        self.callbacks, self.state = callbacks, state
        self.first_seed = derive_seed(seed, Stream.CALLBACKS)
        # The library's own hooks neither draw nor stop a run, so most runs need no other seed.
        foreign = [
            callback
            for callback in callbacks
            for hook in (callback.on_step_end, callback.on_safe_point)
            if not hook.__module__.startswith("tinyvae.")
        ]
        self.may_draw = bool(foreign)
        self.may_stop = any(not callback.first_process_only for callback in foreign)

    def __call__(self, output: ObjectiveOutput) -> bool:
        """Call the hooks after an update. Return True if the run stops."""
        state, model = self.state, self.state.model
        was_training, seed = model.training, (self.first_seed + state.step) % 2**64
        with state.other_rng(seed) if self.may_draw else nullcontext():
            for callback in self.callbacks:
                callback.on_step_end(state, output)
            is_last = stops(state, exchange=self.may_stop)  # a signal may come at any time
            if not is_last or state.is_interrupted:
                notify_safe_point(self.callbacks, state, last=is_last)
        if was_training and not model.training:  # a hook looked at it in evaluation mode
            set_training_mode(model, state.objective)
        return is_last


class Monitor:
    """Best value so far, ``best``, of a column. See :class:`EarlyStopping` for the arguments."""

    def __init__(self, column: str, mode: Direction | None, min_delta: float = 0.0) -> None:
        if not isinstance(column, str):
            raise TypeError(
                f"expected the name of a column, such as 'validation/elbo_nats', got {column!r}: "
                "pass other settings by their names"
            )
        if mode not in ("max", "min", None):
            raise ValueError(f"a monitor expects mode 'max' or 'min', got {mode!r}: name one")
        if not min_delta >= 0:
            raise ValueError(
                f"EarlyStopping expects min_delta >= 0, got {min_delta}: give the size of the "
                "smallest improvement, whatever its direction"
            )
        self.column, self.mode, self.min_delta = column, mode, min_delta
        self.direction = mode
        self.reset()

    def prepare(self, who: str, state: TrainState) -> None:
        """Set the direction. Raise ValueError if it is not known or validation data are missing."""
        require_validation(who, self.column, state.plan.has_validation, "train/elbo_nats")
        self.direction = require_direction(who, self.column, self.mode, state.objective)

    def reset(self) -> None:
        """Start again without a best value."""
        self.best = math.nan

    def improves(self, value: float) -> bool:
        """Return True and keep the value if it is finite and better than the best one so far."""
        gain = value - self.best if self.direction == "max" else self.best - value
        if math.isfinite(value) and not gain <= self.min_delta:  # the first gain is NaN
            self.best = value
            return True
        return False


def require_keys(saved: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise unless a saved state has the expected keys."""
    if saved.keys() != expected.keys():
        raise KeyError(f"expected {sorted(expected)}, got {sorted(saved)}")


@suggest_keywords
class EarlyStopping(Callback):
    """Stop when a column of the history no longer improves, and restore the best weights.

    Bounds such as ``"validation/elbo_nats"`` are always those with beta = 1. A loss contains the
    objective's weights: if one of them is scheduled, as in a warm-up, losses of different epochs
    are not comparable, and a warning says so. In that case also choose a patience that is longer
    than the schedule. Values that are not finite never improve.

    Args:
        monitor: Column of the history.
        patience: Epochs without improvement before the run ends.
        mode: ``"max"`` if larger is better, ``"min"`` if smaller is. None for bounds, which are to
            rise, and for the model's loss, which is to fall.
        min_delta: Smallest change that counts as an improvement.
        restore_best: True to give the model its best weights at the end.

    Attributes:
        best_epoch: Epoch of the best value, from 1; None before the first.

    Raises:
        ValueError: If an argument is out of range. In ``fit``, if the column needs validation data
            that are not given, if ``mode`` is missing for a column of unknown direction, or if it
            contradicts the known direction.

    Example:
        >>> trainer = Trainer(vae, ELBO(), callbacks=[EarlyStopping(patience=5)], progress=False)
        >>> len(trainer.fit(x, x, epochs=3))
        3
    """

    def __init__(
        self,
        monitor: str = "validation/elbo_nats",
        *,
        patience: int = 10,
        mode: Direction | None = None,
        min_delta: float = 0.0,
        restore_best: bool = True,
    ) -> None:
        if patience < 1:
            raise ValueError(f"EarlyStopping expects patience >= 1, got {patience}")
        self.monitor = Monitor(monitor, mode, min_delta)
        self.patience, self.mode, self.min_delta = patience, mode, min_delta
        self.restore_best = restore_best
        self._reset()

    def _reset(self) -> None:
        self.monitor.reset()
        self.best_epoch: int | None = None
        self._best_weights: dict[str, Tensor] = {}

    @property
    def best(self) -> float:
        """Best value so far, NaN before the first."""
        return self.monitor.best

    def on_fit_start(self, state: TrainState) -> None:
        """Reset the callback. Raise if the column cannot be watched."""
        self.monitor.prepare("EarlyStopping", state)
        self._reset()

    def on_epoch_end(self, state: TrainState, row: Row) -> None:
        """Keep the best weights. Stop when the patience is used up."""
        if self.monitor.column not in row and state.stop_request is not None:
            return  # an epoch that was cut short has no validation
        value, epoch = watched("EarlyStopping", self.monitor.column, row), int(row["epoch"])
        if self.monitor.improves(value):
            self.best_epoch = epoch
            if self.restore_best:
                weights = state.model.state_dict()
                self._best_weights = {name: t.detach().clone() for name, t in weights.items()}
        elif epoch - (self.best_epoch or state.plan.start_epoch) >= self.patience:
            reason = f"{self.monitor.column} has not improved for {self.patience} epochs"
            if self.best_epoch is not None:
                restored = ", whose weights are restored" if self.restore_best else ""
                reason += f" since {self.best:.6g} at epoch {self.best_epoch}{restored}"
            else:
                reason += ": none of its values was finite"
            state.stop(reason)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, its epoch and its weights, and the column."""
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_weights": self._best_weights,
            "monitored": [self.monitor.column, self.monitor.direction],
        }

    def check_state(self, state: TrainState, saved: dict[str, Any]) -> None:
        """Raise if ``saved`` is not a :meth:`state_dict`, or has weights of another model."""
        require_keys(saved, self.state_dict())
        weights, epoch = saved["best_weights"], saved["best_epoch"]
        kinds = {name: (t.shape, t.dtype) for name, t in weights.items()}
        expected = {name: (t.shape, t.dtype) for name, t in state.model.state_dict().items()}
        if weights and kinds != expected:
            raise ValueError("the best weights belong to another model")
        if not isinstance(saved["best"], (int, float)) or not isinstance(epoch, int | None):
            raise TypeError(f"expected numbers, got {saved['best']!r:.80} at epoch {epoch!r:.80}")

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the best value, its epoch and its weights, if the column is the same."""
        if saved["monitored"] != [self.monitor.column, self.monitor.direction]:
            return
        self.monitor.best, self.best_epoch = saved["best"], saved["best_epoch"]
        self._best_weights = saved["best_weights"]

    def on_fit_end(self, state: TrainState) -> None:
        """Give the model its best weights."""
        if self._best_weights:
            state.model.load_state_dict(self._best_weights)
            self._best_weights = {}
