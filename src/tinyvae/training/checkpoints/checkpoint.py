"""Checkpoints: a run that may be killed at any instant, and goes on where it was."""

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

from tinyvae.core.warnings import warn
from tinyvae.io import encode_state
from tinyvae.training.callbacks import Callback, require_keys
from tinyvae.training.checkpoints.directory import RunDirectory
from tinyvae.training.checkpoints.writer import Writer
from tinyvae.training.history import require_validation, watched
from tinyvae.training.optimization import state_after_step
from tinyvae.training.state import capture

if TYPE_CHECKING:
    from tinyvae.training.trainer import Trainer


FINITE = ("model", "objective", "optimizers")


class Checkpoint(Callback):
    """Keeps a run in a folder, from which ``fit(..., resume="auto")`` goes on bitwise.

    There are checkpoints ``step-00001200.safetensors``, each of all that the run is: weights,
    moments, schedules, random state, position in the data, history, states of other callbacks.
    Besides ``history.jsonl``, a line per epoch, and at the regular end ``model.safetensors``, which
    the model's class loads. No file is a pickle, each is whole or absent, and a lock keeps a second
    run out. Files are written beside the training, which goes on meanwhile.

    With it, SIGTERM and SIGUSR1, by which schedulers announce that they will kill, end the run
    after its step with a checkpoint; ``fit`` then hands the signal on to the handler that it found,
    which by default ends the process.

    Args:
        folder: The folder, of this run alone.
        every_steps: Write after every so many updates.
        every_minutes: Write after so many minutes; None leaves it to the rest. At the first step,
            at the end and at a signal one is written anyway.
        keep: How many of the newest to keep.
        monitor: Column of the history whose best epoch is kept besides, such as
            ``"validation/elbo_nats"``.
        maximize: Whether larger is better.

    Attributes:
        best: Best value of the column so far.
        best_step: Step of its checkpoint.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer = Trainer(vae, ELBO(), callbacks=[Checkpoint(folder)], progress=False)
        ...     history = trainer.fit(x, epochs=2, resume="auto")
        ...     sorted(file.name for file in Path(folder).iterdir())
        ['history.jsonl', 'lock', 'model.safetensors', 'step-00000000.safetensors',
         'step-00000002.safetensors']
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every_steps: int | None = None,
        every_minutes: float | None = 5.0,
        keep: int = 2,
        monitor: str | None = None,
        maximize: bool = True,
    ) -> None:
        for name, value in (
            ("every_steps", 1 if every_steps is None else every_steps),
            ("keep", keep),
        ):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"Checkpoint expects {name} as an integer >= 1, got {value}")
        if every_minutes is not None and not every_minutes >= 0:
            raise ValueError(f"Checkpoint expects every_minutes >= 0, got {every_minutes}")
        self.folder = Path(folder)
        self.every_steps, self.every_minutes = every_steps, every_minutes
        self.keep, self.monitor, self.maximize = keep, monitor, maximize
        self._files = RunDirectory(self.folder)
        self._owner: ref[Trainer] | None = None
        self._forget()

    def _forget(self) -> None:
        self.best = -math.inf if self.maximize else math.inf
        self.best_step: int | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder inside; all writes have ended after."""
        lock = self._files.lock()
        self._writer = Writer()
        try:
            yield
        except BaseException:
            with suppress(Exception):  # the first error is the one to tell
                self._writer.close()
            raise
        else:
            self._writer.close()
        finally:
            del self._writer
            lock.release()

    def newest(self) -> dict[str, Any] | None:
        """State of the newest whole checkpoint of the folder, None where there is none."""
        return self._files.newest()

    def claim(self, trainer: "Trainer", resume: str | os.PathLike[str] | None) -> None:
        """Refuse to write into the folder of another run."""
        is_own = self._owner is not None and self._owner() is trainer
        goes_on = resume == "auto" or (
            resume is not None and Path(resume).resolve().is_relative_to(self.folder.resolve())
        )
        steps = self._files.steps()
        if steps and not (goes_on or is_own):
            raise FileExistsError(
                f"{self.folder} holds a run that was at step {steps[0]:,}: continue it by "
                'fit(..., resume="auto"), or give another folder'
            )
        if not is_own:
            self._forget()

    def on_fit_start(self, trainer: "Trainer") -> None:
        """Refuse to watch validation without validation data."""
        require_validation(
            "Checkpoint",
            self.monitor or "",
            has_validation=trainer.plan.has_validation,
            else_watch="train/elbo_nats",
        )
        self._description = _description(trainer)
        self._saved: tuple[int, int] | None = None  # step, and its place in the epoch
        self._ended = False

    def on_safe_point(self, trainer: "Trainer", *, ending: bool) -> None:
        """Write a checkpoint, where one is due."""
        self._ended = ending and not trainer.interrupted
        if self._saved is None:
            self._begin(trainer, ending=ending)
            return
        is_best = self._ends_epoch(trainer) and self._improves(trainer)
        if ending or is_best or self._is_due(trainer):
            self._save(trainer)

    def _begin(self, trainer: "Trainer", *, ending: bool) -> None:
        """Make the folder that of the run, and see that it can be written before the first step."""
        for name, optimizer in trainer.optimizers.items():
            encode_state(state_after_step(optimizer), f"optimizers.{name}")
        self._owner = ref(trainer)
        self._files.archive_after(trainer.step, with_model=not ending)
        self._files.reset_history(trainer.history.epochs)
        self._epochs = len(trainer.history.epochs)
        self._save(trainer)
        self._writer.wait()

    def _ends_epoch(self, trainer: "Trainer") -> bool:
        rows = trainer.history.epochs
        if len(rows) == self._epochs:
            return False
        self._epochs = len(rows)
        self._files.append_history(rows)
        return True

    def _improves(self, trainer: "Trainer") -> bool:
        row = trainer.history.epochs[-1]
        if self.monitor is None or (trainer.history.stop_reason and self.monitor not in row):
            return False
        value = watched("Checkpoint", self.monitor, row)
        if not (value > self.best if self.maximize else value < self.best):
            return False
        self.best, self.best_step = value, trainer.step
        return True

    def _is_due(self, trainer: "Trainer") -> bool:
        if (trainer.step, trainer.batch) == self._saved:
            return False
        minutes = (time.monotonic() - self._saved_at) / 60
        return (self.every_steps is not None and trainer.step % self.every_steps == 0) or (
            self.every_minutes is not None and minutes >= self.every_minutes
        )

    def _save(self, trainer: "Trainer") -> None:
        """Copy the state, and let the writer write it."""
        tensors: dict[str, Any] = {}
        form = []
        for name, part in capture(trainer).items():
            encoded, own = encode_state(part, name, finite=name in FINITE)
            form.append([name, encoded])
            tensors |= {n: t.detach().to("cpu", copy=True) for n, t in own.items()}
        info = {**self._description, "state": {"dict": form}}
        step, keep, best = trainer.step, self.keep, self.best_step

        def job() -> None:
            self._files.write(step, tensors, info)
            self._files.keep(keep, best)

        self._writer.write(job)
        self._saved, self._saved_at = (step, trainer.batch), time.monotonic()

    def on_fit_end(self, trainer: "Trainer") -> None:
        """Write the model, if the run has come to its end."""
        if self._ended and self._description:
            self._writer.wait()
            trainer.model.save(self._files.model)  # type: ignore[operator]

    def state_dict(self) -> dict[str, Any]:
        """Best value, its step, and of what."""
        watched = [self.monitor, self.maximize]
        return {"best": self.best, "best_step": self.best_step, "watched": watched}

    def check_state(self, trainer: "Trainer", state: dict[str, Any]) -> None:
        """Raise if this is no :meth:`state_dict`."""
        require_keys(state, self.state_dict())
        best, step = state["best"], state["best_step"]
        if not isinstance(best, (int, float)) or not isinstance(step, int | None):
            raise TypeError(f"expected numbers, got {best!r:.80} at step {step!r:.80}")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over :meth:`state_dict`, if it is of the same column."""
        if state["watched"] == [self.monitor, self.maximize]:
            self.best, self.best_step = state["best"], state["best_step"]


def checkpoint_first(
    callbacks: Sequence[Callback],
) -> tuple[Checkpoint | None, list[Callback]]:
    """The Checkpoint, and callbacks with it in front: it begins first, and so ends last."""
    ordered = sorted(callbacks, key=lambda callback: not isinstance(callback, Checkpoint))
    checkpoints = [callback for callback in ordered if isinstance(callback, Checkpoint)]
    if len(checkpoints) > 1:
        raise ValueError(f"expected at most one Checkpoint, got {len(checkpoints)}")
    return (checkpoints[0] if checkpoints else None), ordered


def state_to_resume(
    trainer: "Trainer", resume: str | os.PathLike[str] | None
) -> dict[str, Any] | None:
    """State that a run is to go on from, None where it is to begin."""
    if trainer.checkpoint is not None:
        trainer.checkpoint.claim(trainer, resume)
    if resume is None:
        return None
    if resume != "auto":
        return RunDirectory.read(Path(resume))
    if trainer.checkpoint is None:
        raise ValueError(
            'resume="auto" looks into the folder of a Checkpoint, got none: give it, '
            "callbacks=[Checkpoint(folder)], or the path of a checkpoint"
        )
    return trainer.checkpoint.newest()


def _description(trainer: "Trainer") -> dict[str, Any]:
    """What a file says of the model besides its weights; nothing, if it cannot be said."""
    describe = getattr(trainer.model, "description", None)
    if describe is None:
        return {}
    try:
        described: dict[str, Any] = describe()
    except TypeError as error:
        warn(f"checkpoints will hold the weights, but no file the model by itself: {error}")
        return {}
    return described
