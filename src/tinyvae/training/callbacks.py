"""Callbacks: user code that runs between steps and epochs."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any

from tinyvae.core.module_state import set_training_mode
from tinyvae.core.objective import ObjectiveOutput
from tinyvae.core.random import Stream, derive_seed
from tinyvae.errors import NonFiniteError
from tinyvae.training.data.workers import data_worker_error
from tinyvae.training.exchange import stops
from tinyvae.training.history import Row
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
        changes_results: False if a resumed run may have other settings of it without a warning.

    Example:
        >>> class StopAtLoss(Callback):
        ...     def on_epoch_end(self, state, row):
        ...         if row["train/loss"] < 2.0:
        ...             state.stop("the loss is below 2 nats")
        >>> trainer = Trainer(vae, ELBO(), callbacks=[StopAtLoss()], progress=False)
    """

    first_process_only: bool = False
    changes_results: bool = True

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
        """Run before every validation, in which the model has its averaged weights, if any."""

    def on_validation_end(self, state: TrainState) -> None:
        """Run after every validation, also after an error in it."""

    def on_epoch_end(self, state: TrainState, row: Row) -> None:
        """Run after every epoch. Columns that are added to ``row`` become part of the history.

        A checkpoint may have been written after the epoch's last step, before this call. A run that
        is resumed from it calls this method again. In a run with an average of weights, the model
        has the average in this call, and its own weights again afterwards.
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
        stack.callback(state.average.finish)  # first, so that callbacks see the final weights
        if saved is not None:
            state.load_late_state(saved)
        yield


@contextmanager
def validating(callbacks: Sequence[Callback], state: TrainState) -> Iterator[None]:
    """Call ``on_validation_start`` of all, and at the end ``on_validation_end``."""
    with state.average.swapped(), ExitStack() as stack:
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


def require_keys(saved: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise unless a saved state has the expected keys."""
    if saved.keys() != expected.keys():
        raise KeyError(f"expected {sorted(expected)}, got {sorted(saved)}")
