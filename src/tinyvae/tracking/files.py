"""Writers of files: a table or JSON lines, and images and texts next to them."""

import csv
import io
import json
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyvae.io import null_for_non_finite, write_atomically, write_json
from tinyvae.tracking.writer import Pixels, Setting, Writer

Values = Mapping[str, Any]


class _FolderWriter(Writer):
    """A folder: numbers in one file, ``settings.json``, ``NAME.txt``, ``images/NAME-STEP.png``."""

    file_name = ""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.path = self.folder / self.file_name

    @abstractmethod
    def _read(self, text: str) -> Sequence[Values]:
        """Return the rows of a file, each with its step."""

    @abstractmethod
    def _write_all(self, rows: Sequence[Values]) -> None:
        """Replace the file."""

    @abstractmethod
    def _line(self, row: Values) -> str | None:
        """Return the line of a row, None if the file has to be written again to hold it."""

    def open(
        self, run_id: str, settings: Mapping[str, Setting], step: int, *, resume: bool
    ) -> Mapping[str, int]:
        """Start a file, or remove its rows after ``step``. See :class:`Writer`."""
        if self.path.exists() and not resume:
            raise FileExistsError(
                f"{type(self).__name__} expects a new folder for a new run, got {self.folder}, "
                "which holds one: give another folder, remove this one, or resume its run"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        rows: Sequence[Values] = []
        if self.path.exists():
            text = self.path.read_text(encoding="utf-8")
            complete = text[: text.rfind("\n") + 1]  # a kill may leave a part of a line
            rows = [row for row in self._read(complete) if row["step"] <= step]
        self._write_all(rows)
        write_json(self.folder / "settings.json", {"run_id": run_id, **settings})
        return {name: row["step"] for row in rows for name in row}

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Append a row."""
        row = {"step": step, **values}
        line = self._line(row)
        if line is None:
            self._write_all([*self._read(self.path.read_text(encoding="utf-8")), row])
            return
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(line)

    def write_image(self, name: str, pixels: Pixels, step: int) -> None:
        """Write ``images/NAME-STEP.png``."""
        from matplotlib.image import imsave

        path = self.folder / "images" / f"{name}-{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        imsave(path, pixels)

    def write_text(self, name: str, text: str) -> None:
        """Write ``NAME.txt``."""
        write_atomically(self.folder / f"{name}.txt", text.encode() + b"\n")

    def close(self) -> None:
        """Do nothing: every row is in the file."""


class CSVWriter(_FolderWriter):
    """Write ``metrics.csv``, a table with one row per epoch or update.

    A cell is empty if the row lacks the column. For a new column the whole file is written again. A
    resumed run removes the rows after its step.

    Args:
        folder: Folder of the run. It also gets the images and texts.

    Example:
        >>> from tinyvae.tracking import CSVWriter
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = CSVWriter(folder)
        ...     _ = writer.open("a", {}, step=0, resume=False)
        ...     writer.write({"epoch": 1, "train/loss": 2.5}, step=10)
        ...     print(writer.path.read_text(), end="")
        step,epoch,train/loss
        10,1,2.5
    """

    file_name = "metrics.csv"

    def _read(self, text: str) -> Sequence[Values]:
        rows = csv.DictReader(io.StringIO(text))
        return [
            {name: _number(cell) for name, cell in row.items() if cell not in ("", None)}
            for row in rows
        ]

    def _write_all(self, rows: Sequence[Values]) -> None:
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        header = _cells(self._columns) if rows else ""
        text = header + "".join(_cells([row.get(n, "") for n in self._columns]) for row in rows)
        write_atomically(self.path, text.encode())

    def _line(self, row: Values) -> str | None:
        if not row.keys() <= set(self._columns):
            return None
        return _cells([row.get(name, "") for name in self._columns])


class JSONLinesWriter(_FolderWriter):
    """Write ``metrics.jsonl``, one JSON object per epoch or update.

    NaN and infinity are null, since JSON has neither. A resumed run removes the lines after its
    step.

    Args:
        folder: Folder of the run. It also gets the images and texts.

    Example:
        >>> from tinyvae.tracking import JSONLinesWriter
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = JSONLinesWriter(folder)
        ...     _ = writer.open("a", {}, step=0, resume=False)
        ...     writer.write({"epoch": 1, "train/loss": 2.5}, step=10)
        ...     print(writer.path.read_text(), end="")
        {"step": 10, "epoch": 1, "train/loss": 2.5}
    """

    file_name = "metrics.jsonl"

    def _read(self, text: str) -> Sequence[Values]:
        return [json.loads(line) for line in text.splitlines()]

    def _write_all(self, rows: Sequence[Values]) -> None:
        write_atomically(self.path, "".join(map(self._line, rows)).encode())

    def _line(self, row: Values) -> str:
        return json.dumps(null_for_non_finite(row), allow_nan=False) + "\n"


def _cells(values: Sequence[Any]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow(values)
    return file.getvalue()


def _number(cell: str) -> float:
    try:
        return int(cell)
    except ValueError:
        return float(cell)
