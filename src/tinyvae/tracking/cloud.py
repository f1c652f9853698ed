"""Writers for Weights & Biases and for trackio."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tinyvae.tracking.writer import Pixels, Setting, Writer, import_tracker


class WandbWriter(Writer):
    """Write a run of Weights & Biases, by default offline.

    ``wandb sync FOLDER/wandb/offline-run-DATE-RUN`` uploads an offline run later. A resumed offline
    run makes another folder with the same identifier, which again holds all numbers from the first
    step, so upload the newest folder. (wandb loses the last rows of a run that is killed.) Online,
    a resumed run continues after the last step that the server holds.

    Args:
        project: Name of the project.
        folder: Folder for the files of wandb.
        name: Name of the run; None for one that wandb makes.
        mode: ``"offline"``, or ``"online"`` to upload, which needs ``wandb login``.

    Raises:
        ImportError: If wandb is not installed.
    """

    def __init__(
        self,
        project: str,
        *,
        folder: str | os.PathLike[str] = ".",
        name: str | None = None,
        mode: Literal["offline", "online"] = "offline",
    ) -> None:
        if mode not in ("offline", "online"):
            raise ValueError(f"WandbWriter expects mode 'offline' or 'online', got {mode!r}")
        self.project, self.folder, self.name, self.mode = project, Path(folder), name, mode
        self._package = import_tracker("wandb", "WandbWriter")
        self._run: Any = None

    def open(
        self, run_id: str, settings: Mapping[str, Setting], step: int, *, resume: bool
    ) -> Mapping[str, int]:
        """Start the run, or continue it. See :class:`Writer`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._run = self._package.init(
            project=self.project,
            name=self.name,
            id=run_id,
            dir=str(self.folder),
            config=dict(settings),
            mode=self.mode,
            resume="allow" if resume and self.mode == "online" else None,
            reinit="create_new",
            settings=self._package.Settings(silent=True),
        )
        return {}  # the server ignores steps that it holds

    def write(self, values: Mapping[str, Any], step: int) -> None:
        """Write values of a step."""
        self._run.log(dict(values), step=step)

    def write_image(self, name: str, pixels: Pixels, step: int) -> None:
        """Write an image."""
        self.write({name: self._package.Image(pixels)}, step)

    def write_text(self, name: str, text: str) -> None:
        """Write a text to the summary of the run."""
        self._run.summary[name] = text

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class TrackioWriter(Writer):
    """Write a run of trackio, in its local database, which ``trackio show`` displays.

    The database is in ``$TRACKIO_DIR``. A resumed run keeps the values after its step and does not
    write them again.

    Args:
        project: Name of the project.

    Raises:
        ImportError: If trackio is not installed.
    """

    def __init__(self, project: str) -> None:
        self.project = project
        self._package = import_tracker("trackio", "TrackioWriter")
        self._run: Any = None

    def open(
        self, run_id: str, settings: Mapping[str, Setting], step: int, *, resume: bool
    ) -> Mapping[str, int]:
        """Start the run, or continue it. See :class:`Writer`."""
        self._run = self._package.init(
            self.project,
            name=run_id,
            config=dict(settings),
            resume="allow" if resume else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        if not resume:
            return {}
        logs = self._package.SQLiteStorage.get_logs(self.project, run_id)
        return {name: row["step"] for row in logs for name in row}

    def write(self, values: Mapping[str, Any], step: int) -> None:
        """Write values of a step."""
        self._run.log(dict(values), step=step)

    def write_image(self, name: str, pixels: Pixels, step: int) -> None:
        """Write an image."""
        self.write({name: self._package.Image(pixels)}, step)

    def write_text(self, name: str, text: str) -> None:
        """Write a text as a block of code."""
        self.write({name: self._package.Markdown(f"```\n{text}\n```")}, 0)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
