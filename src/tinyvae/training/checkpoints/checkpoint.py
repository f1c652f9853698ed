"""Checkpoint callback, with which a run that is killed at any instant can be resumed."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import ref

from torch import nn

from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.objective import Direction
from tinyvae.core.warnings import warn
from tinyvae.io import encode_state
from tinyvae.training.callbacks import Callback, require_keys
from tinyvae.training.checkpoints.directory import RunDirectory, Writer, read_checkpoint
from tinyvae.training.checkpoints.snapshot import copy_state, enough_memory
from tinyvae.training.history import watched
from tinyvae.training.monitoring import Monitor
from tinyvae.training.optimization import state_after_step
from tinyvae.training.state import TrainState


@suggest_keywords
class Checkpoint(Callback):
    """Callback that saves a run in a folder, from which ``fit(..., resume="auto")`` continues.

    The folder holds checkpoints ``step-00001200.safetensors``. Each contains the complete state of
    the run: weights, moments, schedules, random state, position in the data, states of other
    callbacks, and the newest rows of the history. Earlier rows of a long history are in
    ``history.bin``. The folder also holds ``history.jsonl``, with a line per epoch, and after a
    regular end ``model.safetensors``, which the model's class loads. No file is a pickle. Each
    checkpoint is complete or absent. A lock excludes a second run. A thread writes the files in the
    background.

    SIGTERM and SIGUSR1, which job schedulers send before they kill a job, end the run after its
    step with a checkpoint. Then the signal reaches the handler that was there before ``fit``, which
    by default ends the process.

    Args:
        folder: The folder, for this run alone. A later change of the working directory has no
            effect. If the folder or its lock are moved, removed or replaced during the run, the run
            ends with an error and writes nothing more.
        every_steps: Number of updates between checkpoints.
        every_minutes: Minutes between checkpoints; None for no limit. A checkpoint is always
            written before the first step, at the end and at a signal.
        keep: Number of newest checkpoints to keep.
        monitor: Column of the history, such as ``"validation/elbo_nats"``. The checkpoint of its
            best epoch is kept, too.
        mode: See :class:`~tinyvae.EarlyStopping`.

    Attributes:
        best_step: Step of the best epoch's checkpoint, None before the first.

    Raises:
        ValueError: If an argument is out of range, or in ``fit`` if the column cannot be watched.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer = Trainer(vae, ELBO(), callbacks=[Checkpoint(folder)], progress=False)
        ...     history = trainer.fit(x, epochs=2, resume="auto")
        ...     sorted(file.name for file in Path(folder).iterdir())
        ['history.jsonl', 'lock', 'model.safetensors', 'step-00000000.safetensors',
         'step-00000002.safetensors']
    """

    first_process_only = True
    changes_results = False

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every_steps: int | None = None,
        every_minutes: float | None = 5.0,
        keep: int = 2,
        monitor: str | None = None,
        mode: Direction | None = None,
    ) -> None:
        for name, value in (
            ("every_steps", 1 if every_steps is None else every_steps),
            ("keep", keep),
        ):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"Checkpoint expects {name} as an integer >= 1, got {value}")
        if every_minutes is not None and not every_minutes >= 0:
            raise ValueError(f"Checkpoint expects every_minutes >= 0, got {every_minutes}")
        self.folder = Path(folder).absolute()
        self.every_steps, self.every_minutes, self.keep = every_steps, every_minutes, keep
        self.monitor = Monitor(monitor or "", mode)
        self.best_step: int | None = None
        self._directory = RunDirectory(self.folder)
        self._owner: ref[TrainState] | None = None

    @property
    def best(self) -> float:
        """Best value of the column so far, NaN before the first."""
        return self.monitor.best

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock in the block, and wait for all writes at its end."""
        lock = self._directory.lock()
        self._writer = Writer()
        try:
            yield
        except BaseException:
            with suppress(Exception):  # the first error matters
                self._writer.wait()
            raise
        else:
            self._writer.wait()
        finally:
            self._writer.when_done(lock.release)
            del self._writer

    def ensure_writable(self, state: TrainState, resume: str | os.PathLike[str] | None) -> None:
        """Raise FileExistsError if the folder holds another run that ``resume`` does not name."""
        is_same_run = self._owner is not None and self._owner() is state
        continues = resume == "auto" or (
            resume is not None and Path(resume).resolve().is_relative_to(self.folder.resolve())
        )
        steps = self._directory.steps()
        if steps and not (continues or is_same_run):
            raise FileExistsError(
                f"{self.folder} holds a run that was at step {steps[0]:,}: continue it by "
                'fit(..., resume="auto"), or give another folder'
            )
        if not is_same_run:
            self.monitor.reset()
            self.best_step = None

    def on_fit_start(self, state: TrainState) -> None:
        """Raise if the column cannot be watched."""
        if self.monitor.column:
            self.monitor.prepare("Checkpoint", state)
        self._description = _description(state.model)
        self._saved: tuple[int, int] | None = None  # step, and batch in the epoch
        self._has_ended = False

    def on_safe_point(self, state: TrainState, *, last: bool) -> None:
        """Write a checkpoint if one is due."""
        self._has_ended = last and not state.is_interrupted
        if self._saved is None:
            self._begin(state, last=last)
            return
        is_best = self._ends_epoch(state) and self._improves(state)
        if last or is_best or self._is_due(state):
            self._directory.require_lock()  # raises here, not at the next checkpoint
            self._save(state)

    def _begin(self, state: TrainState, *, last: bool) -> None:
        """Prepare the folder for the run, and write to it before the first step."""
        # Raises now, not after hours, if an optimizer's state cannot be saved.
        for name, optimizer in state.optimizers.items():
            encode_state(state_after_step(optimizer), f"optimizers.{name}")
        self._owner = ref(state)  # weak: a trainer that is gone must not own the folder
        self._directory.archive_after(state.step, with_model=not last)
        self._directory.reset_history(state.history.epochs, state.epoch)
        self._num_rows = len(state.history.epochs)
        self._save(state)
        self._writer.wait()

    def _ends_epoch(self, state: TrainState) -> bool:
        """Return True if an epoch has ended since the last call, and append its row to the file."""
        rows = state.history.epochs
        if len(rows) == self._num_rows:
            return False
        self._num_rows = len(rows)
        self._directory.append_history(rows)
        return True

    def _improves(self, state: TrainState) -> bool:
        """Return True, and keep the step, if the last epoch is the best one."""
        column, row = self.monitor.column, state.history.epochs[-1]
        if not column or (state.stop_request is not None and column not in row):
            return False
        if not self.monitor.improves(watched("Checkpoint", column, row)):
            return False
        self.best_step = state.step
        return True

    def _is_due(self, state: TrainState) -> bool:
        if (state.step, state.batch) == self._saved:
            return False
        minutes = (time.monotonic() - self._saved_at) / 60
        return (self.every_steps is not None and state.step % self.every_steps == 0) or (
            self.every_minutes is not None and minutes >= self.every_minutes
        )

    def _save(self, state: TrainState) -> None:
        """Copy the state, and write it in the background."""
        self._writer.wait()  # at most one copy at a time
        # The thread gets values: the state and this callback change while it writes.
        step, keep, best_step = state.step, self.keep, self.best_step
        with enough_memory(self._directory.checkpoint(step)):
            blocks = self._directory.rows.new_blocks(state.history)
            tensors, form = copy_state(state.state_dict())
        info = {**self._description, "state": form}

        def write() -> None:
            with enough_memory(self._directory.checkpoint(step)):
                self._directory.append_rows(blocks)
                self._directory.write(step, tensors, info)
            self._directory.prune(keep, best_step)

        self._writer.submit(write)
        self._saved, self._saved_at = (step, state.batch), time.monotonic()

    def on_fit_end(self, state: TrainState) -> None:
        """Write the model's own file if the run is complete."""
        if self._has_ended and self._description:
            self._writer.wait()
            self._directory.require_lock()
            state.model.save(self._directory.model)  # type: ignore[operator]

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, its step, and the column."""
        monitored = [self.monitor.column, self.monitor.direction]
        return {"best": self.best, "best_step": self.best_step, "monitored": monitored}

    def check_state(self, state: TrainState, saved: dict[str, Any]) -> None:
        """Raise if ``saved`` is not a :meth:`state_dict`."""
        require_keys(saved, self.state_dict())
        best, step = saved["best"], saved["best_step"]
        if not isinstance(best, (int, float)) or not isinstance(step, int | None):
            raise TypeError(f"expected numbers, got {best!r:.80} at step {step!r:.80}")

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the best value and its step, if the column is the same."""
        if saved["monitored"] == [self.monitor.column, self.monitor.direction]:
            self.monitor.best, self.best_step = saved["best"], saved["best_step"]


def order_callbacks(callbacks: Sequence[Callback]) -> tuple[Checkpoint | None, list[Callback]]:
    """Return the Checkpoint, and all callbacks with it in front: it starts first and ends last."""
    ordered = sorted(callbacks, key=lambda callback: not isinstance(callback, Checkpoint))
    checkpoints = [callback for callback in ordered if isinstance(callback, Checkpoint)]
    if len(checkpoints) > 1:
        raise ValueError(f"Trainer expects at most one Checkpoint, got {len(checkpoints)}")
    return (checkpoints[0] if checkpoints else None), ordered


def load_resume_state(
    checkpoint: Checkpoint | None,
    state: TrainState,
    resume: str | os.PathLike[str] | None,
    prepare: Callable[[dict[str, Any] | None], None],
) -> dict[str, Any] | None:
    """Prepare a run with the state from which it continues, None for a new run, and return it.

    It is the newest one for which ``prepare`` does not raise a CheckpointError.
    """
    if not isinstance(resume, str | os.PathLike | None):
        raise TypeError(f'fit expects resume="auto" or a path, got {resume!r}: give resume="auto"')
    if resume not in (None, "auto") and not Path(resume).exists():
        raise FileNotFoundError(
            f'fit expects resume="auto" or the path of a checkpoint, got {str(resume)!r}, which '
            "does not exist: give an existing path"
        )
    if checkpoint is not None and state.processes.rank == 0:
        checkpoint.ensure_writable(state, resume)
    saved = None
    if resume == "auto":
        if checkpoint is None:
            raise ValueError(
                'fit expects a Checkpoint for resume="auto", got none: use Trainer(..., '
                "callbacks=[Checkpoint(folder)]), or give the path of a checkpoint as resume"
            )
        saved = RunDirectory(checkpoint.folder).latest(prepare)
    elif resume is not None:
        saved = read_checkpoint(Path(resume), prepare)
    if saved is None:
        prepare(None)
    return saved


def _description(model: nn.Module) -> dict[str, Any]:
    """Return the model's description for its file, an empty one if the model has none."""
    describe = getattr(model, "description", None)
    if describe is None:
        return {}
    try:
        described: dict[str, Any] = describe()
    except TypeError as error:
        warn(f"checkpoints will hold the weights, but no file of the model alone: {error}")
        return {}
    return described
