"""File of the rows of a history, which only grows. Checkpoints refer to a block in it.

The rows of a run are a chain of blocks, from a checkpoint backwards. Nothing is ever overwritten,
so a run that goes back to an earlier checkpoint leaves the rows of the later ones in place.
"""

import io
import os
from pathlib import Path
from typing import Any

from tinyvae.core.warnings import warn
from tinyvae.training.history import History
from tinyvae.training.rows import Block, Rows, encode_block, read_block, read_line

NAME = "history.bin"
BLOCK_ROWS = 1000  # a checkpoint holds fewer rows itself


class HistoryFile:
    """File ``history.bin`` in the folder of a run."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def new_blocks(self, history: History) -> bytes:
        """Return the blocks that :meth:`append` has to write, and let the history refer to them."""
        if history.stored is not None and not self._holds(history.stored):
            history.stored = None  # the block is in another folder or lost
        offset = self.path.stat().st_size if self.path.exists() else 0
        blocks = []
        while len(rows := history.unstored(BLOCK_ROWS)) == BLOCK_ROWS:
            previous = history.stored
            data, digest = encode_block(rows, previous)
            epochs = len(rows.epochs) + (0 if previous is None else previous.epochs)
            updates = len(rows.updates) + (0 if previous is None else previous.updates)
            history.stored = Block(offset, digest, epochs, updates)
            blocks.append(data)
            offset += len(data)
        return b"".join(blocks)

    def _holds(self, block: Block) -> bool:
        try:
            with self.path.open("rb") as file:
                file.seek(block.offset)
                return read_line(file)[1] == block.digest
        except OSError:
            return False

    def append(self, blocks: bytes) -> None:
        """Write blocks at the end of the file, and sync it to the disk."""
        try:
            with self.path.open("ab") as file:
                file.write(blocks)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = f"cannot write the file: {error.strerror or error}"
            raise OSError(error.errno, reason, str(self.path)) from error

    def read(self, block: Block) -> Rows:
        """Return the rows up to a block. If some are missing, warn and return the later ones."""
        parts: list[Rows] = []
        try:
            with self.path.open("rb") as file:
                while True:
                    file.seek(block.offset)
                    line, digest = read_line(file)
                    if digest != block.digest:
                        raise ValueError("a block is missing or damaged")
                    rows, previous = read_block(line, file)
                    parts.append(rows)
                    if previous is None:
                        break
                    if previous.offset >= block.offset:  # blocks could contain each other
                        raise ValueError("a block follows the next one")
                    block = previous
        except (OSError, ValueError, TypeError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or error
            warn(
                f"the history continues without its first {block.epochs:,} epochs and "
                f"{block.updates:,} recorded updates, which cannot be read from {self.path}: "
                f"{reason}. All other state is complete. To keep these rows, put the {NAME} of the "
                "run's folder next to the checkpoint, and resume again"
            )
        every = parts[::-1]
        return Rows(
            [row for rows in every for row in rows.epochs],
            [row for rows in every for row in rows.updates],
        )


def with_earlier_rows(state: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Return the state of a checkpoint, with the rows of its history that it refers to."""
    try:
        file = io.BytesIO(state["history"]["rows"].numpy().tobytes())
        _, block = read_block(read_line(file)[0], file)
    except (ValueError, TypeError, RecursionError):  # refused later, with all other faults
        block = None
    if block is None:
        return state
    earlier = HistoryFile(checkpoint.parent).read(block)
    return {**state, "history": {**state["history"], "earlier": earlier}}
