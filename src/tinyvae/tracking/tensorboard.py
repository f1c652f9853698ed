"""Writer for TensorBoard."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyvae.tracking.writer import Pixels, Setting, Writer, import_tracker


class TensorBoardWriter(Writer):
    """Write event files, which ``tensorboard --logdir runs`` shows.

    The settings are in the tab "HParams" and, as a table, in "Text". A resumed run purges the
    steps after its own, so TensorBoard no longer shows them.

    Args:
        folder: Folder of the run, such as ``"runs/a"``.

    Raises:
        ImportError: If tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._package = import_tracker("torch.utils.tensorboard", "TensorBoardWriter")
        self._writer: Any = None

    def open(
        self, run_id: str, settings: Mapping[str, Setting], step: int, *, resume: bool
    ) -> Mapping[str, int]:
        """Start an event file, or purge later steps. See :class:`Writer`."""
        has_events = any(self.folder.glob("events.out.tfevents*"))
        if has_events and not resume:
            raise FileExistsError(
                f"TensorBoardWriter expects a new folder for a new run, got {self.folder}, which "
                "holds one: give another folder, remove this one, or resume its run"
            )
        last = self._last_steps(step) if has_events else {}
        purge_step = step + 1 if has_events else None
        self._writer = self._package.SummaryWriter(self.folder, purge_step=purge_step)
        if not resume:
            table = ["| setting | value |", "|-|-|", f"| run_id | {run_id} |"]
            table += [f"| {name} | {value} |" for name, value in settings.items()]
            self._writer.add_text("settings", "\n".join(table))
            for summary in self._package.summary.hparams(dict(settings), {}):
                self._writer.file_writer.add_summary(summary)
        return last

    def _last_steps(self, step: int) -> dict[str, int]:
        """Return the last step of each name up to ``step``."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(self.folder), size_guidance={"scalars": 0, "images": 0})
        events.Reload()
        tags = events.Tags()
        named = {name: events.Scalars(name) for name in tags["scalars"]}
        named |= {name: events.Images(name) for name in tags["images"]}
        steps = {name: [e.step for e in found if e.step <= step] for name, found in named.items()}
        return {name: max(found) for name, found in steps.items() if found}

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a kill loses no row

    def write_image(self, name: str, pixels: Pixels, step: int) -> None:
        """Write an image."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def write_text(self, name: str, text: str) -> None:
        """Write a text as a block of code."""
        self._writer.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()))

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
