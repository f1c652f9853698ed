"""The folder of a run: its checkpoints, its history as lines, its final model."""

import json
import re
from collections.abc import Mapping, Sequence
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
from tinyvae.training.checkpoints.schema import require_sound
from tinyvae.training.history import Row

CHECKPOINT = re.compile(r"step-(\d{8,18})\.safetensors")


class RunDirectory:
    """Names and files of a run.

    Args:
        path: The folder, made where there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history = path / "history.jsonl"
        self.model = path / "model.safetensors"
        self._lines = 0

    def lock(self) -> FolderLock:
        """Hold the folder, so that no other run writes there."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(self.path)
        for file in self.path.glob(".*.safetensors.*.tmp"):  # of runs that have died here
            file.unlink(missing_ok=True)
        return lock

    def checkpoint(self, step: int) -> Path:
        """File of the checkpoint of ``step``."""
        return self.path / f"step-{step:08d}.safetensors"

    def steps(self) -> list[int]:
        """Steps of the checkpoints there, the newest first."""
        if not self.path.is_dir():
            return []
        names = (CHECKPOINT.fullmatch(file.name) for file in self.path.iterdir())
        return sorted((int(name[1]) for name in names if name), reverse=True)

    def newest(self) -> dict[str, Any] | None:
        """State of the newest checkpoint that is whole, None where there is none.

        Damaged ones are passed over, with a warning.

        Raises:
            CheckpointError: If all are damaged; the message names each.
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
            raise CheckpointError(
                "no checkpoint can be read, and nothing was begun anew:\n" + "\n".join(errors)
            )
        return None

    @classmethod
    def read(cls, path: Path) -> dict[str, Any]:
        """State of a checkpoint, or of the newest whole one of a folder.

        Raises:
            CheckpointError: If none can be read.
            FileNotFoundError: If there is none.
        """
        state = cls(path).newest() if path.is_dir() else load_checkpoint(path)
        if state is None:
            raise FileNotFoundError(f"{path} holds no checkpoint step-*.safetensors")
        return state

    def archive_after(self, step: int, *, with_model: bool) -> None:
        """Rename what is of a future that will not be: checkpoints after ``step``, the model."""
        files = [self.checkpoint(later) for later in self.steps() if later > step]
        for file in [*files, self.model] if with_model else files:
            if file.exists():
                file.replace(file.with_suffix(".replaced"))

    def write(self, step: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
        """Write a checkpoint."""
        save_tensors(self.checkpoint(step), tensors, info)

    def keep(self, newest: int, best: int | None) -> None:
        """Remove all checkpoints but so many of the newest, and that of the step ``best``."""
        for step in self.steps()[newest:]:
            if step != best:
                with suppress(FileNotFoundError):
                    self.checkpoint(step).unlink()

    def reset_history(self, rows: Sequence[Row]) -> None:
        """Write the lines of the epochs so far, in the place of any that are there."""
        write_atomically(self.history, b"".join(map(_line, rows)))
        self._lines = len(rows)

    def append_history(self, rows: Sequence[Row]) -> None:
        """Add the lines of epochs that were not there at the last call."""
        with self.history.open("ab") as file:
            file.write(b"".join(map(_line, rows[self._lines :])))
        self._lines = len(rows)


def _line(row: Row) -> bytes:
    return json.dumps(null_for_non_finite(row)).encode() + b"\n"


def load_checkpoint(file: Path) -> dict[str, Any]:
    """State of a run, as its checkpoint has it.

    Raises:
        CheckpointError: If the file is damaged, or no checkpoint.
    """
    tensors, info = load_tensors(file)
    if "state" not in info:
        raise CheckpointError(
            f"{file}: expected a checkpoint of a run, got the file of a {info.get('model')!r:.80}: "
            "its load() reads it"
        )
    try:
        state: dict[str, Any] = decode_state(info["state"], tensors)
        require_sound(state)
    except (CheckpointError, RecursionError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    return state
