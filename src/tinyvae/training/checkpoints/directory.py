"""Folder of a run: its checkpoints, its history as lines, its final model."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
from tinyvae.training.history import Row

CHECKPOINT = re.compile(r"step-(\d{8,18})\.safetensors")


class RunDirectory:
    """Files of a run in the folder ``path``, which :meth:`lock` makes if it does not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history = path / "history.jsonl"
        self.model = path / "model.safetensors"
        self._num_lines = 0

    def lock(self) -> FolderLock:
        """Lock the folder against other runs, and remove temporary files of dead runs."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(self.path)
        for file in self.path.glob(".*.safetensors.*.tmp"):
            file.unlink(missing_ok=True)
        return lock

    def checkpoint(self, step: int) -> Path:
        """Return the path of the checkpoint of a step."""
        return self.path / f"step-{step:08d}.safetensors"

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints, the newest first."""
        if not self.path.is_dir():
            return []
        matches = (CHECKPOINT.fullmatch(file.name) for file in self.path.iterdir())
        return sorted((int(match[1]) for match in matches if match), reverse=True)

    def latest(self) -> dict[str, Any] | None:
        """Return the state of the newest valid checkpoint, None if there is no checkpoint.

        Damaged checkpoints are skipped with a warning.

        Raises:
            CheckpointError: If all are damaged. The message names each.
        """
        errors = []
        for step in self.steps():
            file = self.checkpoint(step)
            try:
                state = load_checkpoint(file)
            except CheckpointError as error:
                errors.append(str(error))
                continue
            for reason in errors:
                warn(f"{reason}. Continuing from {file.name} instead")
            return state
        if errors:
            raise CheckpointError("no checkpoint can be read, and no run was started:", *errors)
        return None

    def archive_after(self, step: int, *, with_model: bool) -> None:
        """Rename checkpoints later than ``step``, and the final model: they are stale."""
        files = [self.checkpoint(later) for later in self.steps() if later > step]
        for file in [*files, self.model] if with_model else files:
            if file.exists():
                file.replace(file.with_suffix(".replaced"))

    def write(self, step: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
        """Write a checkpoint."""
        save_tensors(self.checkpoint(step), tensors, info)

    def prune(self, keep: int, best_step: int | None) -> None:
        """Remove all checkpoints but the ``keep`` newest and that of ``best_step``."""
        for step in self.steps()[keep:]:
            if step != best_step:
                with suppress(FileNotFoundError):
                    self.checkpoint(step).unlink()

    def reset_history(self, rows: Sequence[Row]) -> None:
        """Replace the file by the lines of all epochs so far."""
        write_atomically(self.history, b"".join(map(_line, rows)))
        self._num_lines = len(rows)

    def append_history(self, rows: Sequence[Row]) -> None:
        """Append the lines of the epochs since the last call."""
        with self.history.open("ab") as file:
            file.write(b"".join(map(_line, rows[self._num_lines :])))
        self._num_lines = len(rows)


def _line(row: Row) -> bytes:
    return json.dumps(null_for_non_finite(row)).encode() + b"\n"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state of a checkpoint, or of the newest valid one in a folder.

    Raises:
        CheckpointError: If no checkpoint can be read.
        FileNotFoundError: If there is no checkpoint.
    """
    state = RunDirectory(path).latest() if path.is_dir() else load_checkpoint(path)
    if state is None:
        raise FileNotFoundError(f"{path} holds no checkpoint step-*.safetensors")
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
    """Thread that writes one file at a time. The next call raises the error of a failed write."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tinyvae-writer")
        self._pending: Future[None] | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Wait for the previous write, and start the next one."""
        self.wait()
        self._pending = self._pool.submit(job)

    def wait(self) -> None:
        """Wait for the current write, and raise its error."""
        pending, self._pending = self._pending, None  # an error is raised once
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()
