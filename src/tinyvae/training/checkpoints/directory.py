"""Folder of a run: its checkpoints, its history as lines, its final model."""

import itertools
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from tinyvae.core.warnings import warn
from tinyvae.errors import CheckpointError
from tinyvae.io import (
    FolderLock,
    decode_state,
    load_tensors,
    null_for_non_finite,
    save_tensors,
    write_atomically,
)
from tinyvae.training.checkpoints.compatibility import upgrade
from tinyvae.training.checkpoints.history_file import HistoryFile, with_earlier_rows
from tinyvae.training.history import Row

Accept = Callable[[dict[str, Any]], None]

CHECKPOINT = re.compile(r"step-([0-9]+)\.safetensors")


class RunDirectory:
    """Files of a run in the folder ``path``, which :meth:`lock` makes if it does not exist.

    All methods that write raise OSError if the folder is no longer the one that was locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.history = self.path / "history.jsonl"
        self.rows = HistoryFile(self.path)
        self.model = self.path / "model.safetensors"
        self._lock: FolderLock | None = None
        self._num_lines = 0
        self._steps: set[int] = set()  # of the run's own checkpoints

    def lock(self) -> FolderLock:
        """Lock the folder against other runs, and remove temporary files of dead runs."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self.path)
        for file in self.path.glob(".*.safetensors.*.tmp"):
            with suppress(OSError):
                file.unlink()
        return self._lock

    def require_lock(self) -> None:
        """Raise OSError if the run has lost its folder."""
        if self._lock is not None:
            self._lock.require()

    def checkpoint(self, step: int) -> Path:
        """Return the path of the checkpoint of a step."""
        return self.path / f"step-{step:08d}.safetensors"

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints, the newest first. Some may not be readable."""
        steps = (step for step, file in self._similar_names() if file == self.checkpoint(step))
        return sorted(steps, reverse=True)

    def _similar_names(self) -> Iterator[tuple[int, Path]]:
        """Yield step and path of everything that has a name like a checkpoint's."""
        for file in self.path.iterdir() if self.path.is_dir() else ():
            if match := CHECKPOINT.fullmatch(file.name):
                yield int(match[1]), file

    def latest(self, accept: Accept = lambda _: None) -> dict[str, Any] | None:
        """Return the newest state that ``accept`` takes, None if there is no checkpoint.

        Damaged checkpoints, and those for which ``accept`` raises a CheckpointError, are skipped
        with a warning. So are names with another number of digits.

        Raises:
            CheckpointError: If none can be used: the error of ``accept`` for the newest one, or
                the names of all if all are damaged.
        """
        for step, file in self._similar_names():
            if file != self.checkpoint(step):
                warn(f"{file} is ignored: expected the name {self.checkpoint(step).name}")
        problems: list[str] = []
        refused: list[CheckpointError] = []
        for step in self.steps():
            file = self.checkpoint(step)
            try:
                state = with_earlier_rows(load_checkpoint(file), file)
            except (CheckpointError, FileNotFoundError) as error:
                problems.append(str(error))
                continue
            try:
                accept(state)
            except CheckpointError as error:
                refused.append(error)
                problems.append(f"{file}: {error}")
                continue
            for reason in problems:
                warn(f"{reason}. Continuing from {file.name} instead")
            return state
        if refused:
            raise refused[0]
        if problems:
            raise CheckpointError("no checkpoint can be read, and no run was started:", *problems)
        return None

    def archive_after(self, step: int, *, with_model: bool) -> None:
        """Rename what is stale: checkpoints later than ``step``, and the final model.

        Anything but a file that has the name of the checkpoint of ``step`` is renamed, too.
        """
        steps = self.steps()
        self._steps = {s for s in steps if s <= step and self.checkpoint(s).is_file()}
        files = [self.checkpoint(s) for s in steps if s >= step and s not in self._steps]
        for file in [*files, self.model] if with_model else files:
            if os.path.lexists(file):
                self.require_lock()
                _archive(file)

    def append_rows(self, blocks: bytes) -> None:
        """Append blocks of the history, to which the next checkpoint refers."""
        if blocks:
            self.require_lock()
            self.rows.append(blocks)

    def write(self, step: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
        """Write a checkpoint."""
        save_tensors(self.checkpoint(step), tensors, info, check=self.require_lock)
        self._steps.add(step)

    def prune(self, keep: int, best_step: int | None) -> None:
        """Remove all of the run's checkpoints but the ``keep`` newest and that of ``best_step``."""
        self.require_lock()
        for step in sorted(self._steps, reverse=True)[keep:]:
            if step != best_step:
                with suppress(OSError):  # a failed cleanup must not end the run
                    self.checkpoint(step).unlink(missing_ok=True)
                    self._steps.discard(step)

    def reset_history(self, rows: Sequence[Row], num_epochs: int) -> None:
        """Replace the file by the lines of all epochs so far. Archive it if it knows more."""
        self.require_lock()
        if len(rows) < num_epochs and self.history.exists():
            _archive(self.history)
        write_atomically(self.history, b"".join(map(_line, rows)), check=self.require_lock)
        self._num_lines = len(rows)

    def append_history(self, rows: Sequence[Row]) -> None:
        """Append the lines of the epochs since the last call."""
        self.require_lock()
        with self.history.open("ab") as file:
            file.write(b"".join(map(_line, rows[self._num_lines :])))
        self._num_lines = len(rows)


def _archive(file: Path) -> None:
    """Rename a file. It replaces an older archive, unless one of them is a folder."""
    target = file.with_suffix(".replaced")
    for number in itertools.count(2):
        if not os.path.lexists(target) or not (target.is_dir() or file.is_dir()):
            break
        target = file.with_suffix(f".{number}.replaced")
    file.replace(target)


def _line(row: Row) -> bytes:
    return json.dumps(null_for_non_finite(row)).encode() + b"\n"


def read_checkpoint(path: Path, accept: Accept) -> dict[str, Any]:
    """Return the state of a checkpoint, or the newest one in a folder that ``accept`` takes.

    Raises:
        CheckpointError: If no checkpoint can be read.
        FileNotFoundError: If there is no checkpoint.
    """
    if path.is_dir():
        state = RunDirectory(path).latest(accept)
        if state is None:
            raise FileNotFoundError(f"{path} holds no checkpoint step-*.safetensors")
        return state
    state = with_earlier_rows(load_checkpoint(path), path)
    accept(state)
    return state


def load_checkpoint(file: Path) -> dict[str, Any]:
    """Return the state in a file, in the current version. Raise CheckpointError if damaged."""
    tensors, info = load_tensors(file)
    if "state" not in info:
        raise CheckpointError(
            f"{file}: expected a checkpoint of a run, got the file of a {info.get('model')!r:.80}: "
            "load it by its class"
        )
    try:
        return upgrade(decode_state(info["state"], tensors))
    except (CheckpointError, RecursionError) as error:
        raise CheckpointError(f"{file}: {error}") from error


class Writer:
    """Thread that writes one file at a time. The next call raises the error of a failed write.

    It is a plain thread: at its exit the interpreter waits for it, also while ``fit`` still runs in
    another thread. A forked child, which does not have the thread, does not wait.
    """

    def __init__(self) -> None:
        self._thread = threading.Thread()
        self._is_done = threading.Event()  # Python 3.11 forgets a thread if its join is interrupted
        self._error: BaseException | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Wait for the previous write, and start the next one."""
        self.wait()
        self._is_done.clear()

        def run() -> None:
            try:
                job()
            except BaseException as error:
                self._error = error
            finally:
                self._is_done.set()

        self._thread = threading.Thread(target=run, name="tinyvae-writer", daemon=False)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the current write, and raise its error."""
        if self._thread.is_alive():
            self._is_done.wait()
            self._thread.join()
        error, self._error = self._error, None  # an error is raised once
        if error is not None:
            raise error

    def when_done(self, action: Callable[[], None]) -> None:
        """Call ``action`` after the current write, also if an interrupt ended the wait for it."""
        if self._is_done.is_set() or not self._thread.is_alive():
            action()
            return

        def wait_and_act() -> None:
            self._is_done.wait()
            action()

        threading.Thread(target=wait_and_act, name="tinyvae-writer-end", daemon=False).start()
