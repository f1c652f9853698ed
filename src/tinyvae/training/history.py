"""History of a run: one row per epoch and, on request, one per update."""

import io
import operator
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tinyvae import io as files
from tinyvae import plotting
from tinyvae.core.html import html_table
from tinyvae.core.objective import Direction, Objective, ObjectiveOutput
from tinyvae.core.warnings import warn
from tinyvae.training.rows import (
    Block,
    Rows,
    encode_block,
    read_block,
    read_line,
    rows_of_json,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Row = dict[str, float]


class History:
    """Losses and metrics of a run.

    Columns of an epoch: ``epoch`` (from 1), ``step`` (updates so far), ``time_seconds``,
    ``learning_rate``, and every loss and metric as ``train/...`` (mean over the epoch's batches,
    each with the weights before its update) and ``validation/...`` (with the weights after the
    epoch). The mean is over the examples, by their weights, also if the last batch is smaller. A
    perplexity is that of all codes of the epoch, or of the validation data. A metric that depends
    on the batch in another way has a name that starts with "batch". It is averaged over the
    batches.
    Names of metrics contain their units. A value that an epoch lacks is None.

    Checkpoints keep a row as it was when it was recorded, so later changes of rows are not saved.

    Attributes:
        epochs: One row per epoch.
        updates: One row per recorded update: ``step`` and the batch's losses and metrics.
        stop_reason: Reason why the run ended before its last epoch, None if it did not.
    """

    def __init__(self) -> None:
        self.epochs: list[Row] = []
        self.updates: list[Row] = []
        self.stop_reason: str | None = None
        self.stored = None

    def __len__(self) -> int:
        """Return the number of epochs."""
        return len(self.epochs)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.epochs)

    def __getitem__(self, column: str) -> list[float | None]:
        """Return a column of the epochs."""
        columns = _columns(self.epochs)
        if column not in columns:
            raise KeyError(f"the history has no column '{column}': use one of {list(columns)}")
        return columns[column]

    def record_update(self, step: int, output: ObjectiveOutput) -> None:
        """Add a row with an update's losses and metrics."""
        values = {name: value.item() for name, value in named_values(output).items()}
        self.updates.append({"step": step, **values})

    @property
    def stored(self) -> Block | None:
        """Address of the newest block of rows in a file, None if rows in it were removed since."""
        block = self._stored
        if block is None or any(map(operator.is_not, self._last_rows(block), self._last_stored)):
            return None
        return block

    @stored.setter
    def stored(self, block: Block | None) -> None:
        self._stored = block
        self._last_stored = [] if block is None else self._last_rows(block)

    def _last_rows(self, block: Block) -> list[Row | None]:
        ends = ((self.epochs, block.epochs), (self.updates, block.updates))
        return [rows[end - 1] if 0 < end <= len(rows) else None for rows, end in ends]

    def unstored(self, limit: int = sys.maxsize) -> Rows:
        """Return the first rows that no file holds yet, at most ``limit``."""
        block = self.stored
        start_epochs, start_updates = (0, 0) if block is None else (block.epochs, block.updates)
        epochs = self.epochs[start_epochs : start_epochs + limit]
        return Rows(epochs, self.updates[start_updates : start_updates + limit - len(epochs)])

    def state_dict(self) -> dict[str, Any]:
        """Return the rows that no file holds as bytes, and the reason of an early end."""
        block, _ = encode_block(self.unstored(), self.stored)
        data = torch.frombuffer(bytearray(block), dtype=torch.uint8)
        return {"rows": data, "stop_reason": self.stop_reason}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the rows from :meth:`state_dict`, after the "earlier" rows of a file."""
        data = state["rows"].numpy().tobytes()
        if data.startswith(b'{"epochs": '):  # the form of checkpoints that hold all rows
            rows, previous = rows_of_json(data), None
        else:
            file = io.BytesIO(data)
            rows, previous = read_block(read_line(file)[0], file)
        earlier: Rows = state.get("earlier", Rows())
        self.epochs = earlier.epochs + rows.epochs
        self.updates = earlier.updates + rows.updates
        counts = len(earlier.epochs), len(earlier.updates)
        if previous is not None and counts == (previous.epochs, previous.updates):
            self.stored = previous
        else:  # rows are missing, so a new chain starts
            self.stored = None
        self.stop_reason = state["stop_reason"]

    def to_dict(self) -> dict[str, Any]:
        """Return the columns of epochs and updates, and the reason of an early end."""
        return {
            "epochs": _columns(self.epochs),
            "updates": _columns(self.updates),
            "stop_reason": self.stop_reason,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` as JSON, atomically."""
        files.write_json(path, self.to_dict())

    def plot(self, metric: str = "elbo_nats", *, title: str | None = None) -> "Figure":
        """Plot a metric of training and validation against the epochs."""
        series = {
            part: ([row["epoch"] for row in rows], [row[column] for row in rows])
            for part in ("train", "validation")
            if (rows := [row for row in self.epochs if (column := f"{part}/{metric}") in row])
        }
        if not series:
            columns = _columns(self.epochs)
            metrics = {name.partition("/")[2] for name in columns if "/" in name}
            raise KeyError(f"the history has no metric '{metric}': use one of {sorted(metrics)}")
        name, unit = _split_unit(metric)
        ylabel = f"{name} [{unit} per datum]" if unit == "nats" else metric
        return plotting.curves(series, xlabel="epoch", ylabel=ylabel, title=title)

    def _repr_html_(self) -> str:
        last = _columns(self.epochs[-10:])
        rows = [
            ["" if v is None else f"{v:.5g}" for v in row]
            for row in zip(*last.values(), strict=True)
        ]
        return f"<p>{len(self)} epochs</p>{html_table([list(last), *rows])}"

    def __repr__(self) -> str:
        return f"History({len(self.epochs)} epochs, columns {list(_columns(self.epochs))})"


def plain(row: Mapping[str, Any]) -> Row:
    """Return a row with Python numbers as values. Raise TypeError if a value is not a number."""
    numbers = {name: v.item() if hasattr(v, "item") else v for name, v in row.items()}
    for name, value in numbers.items():
        if not _is_number(value):
            raise TypeError(
                f"the history expects a number in column '{name}', got {value!r:.80}: "
                "convert it in on_epoch_end"
            )
    return numbers


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


@contextmanager
def adding_columns(row: Row) -> Iterator[None]:
    """Make Python numbers of the values that callbacks add to a row of the history in the block.

    After an error, values that are not numbers are removed, so that the row can be saved.
    """
    try:
        yield
        row.update(plain(row))
    except BaseException:
        for name in [name for name, value in row.items() if not _is_number(value)]:
            del row[name]
        raise


def require_validation(who: str, monitor: str, has_validation: bool, alternative: str) -> None:
    """Raise ValueError if ``who`` watches a validation column without validation data."""
    if monitor.startswith("validation/") and not has_validation:
        raise ValueError(
            f"{who} watches '{monitor}', but fit got no validation data: pass them, or watch a "
            f"column such as monitor='{alternative}'"
        )


def require_direction(
    who: str, monitor: str, mode: Direction | None, objective: Objective
) -> Direction:
    """Return the direction in which the column that ``who`` watches improves.

    Warn if schedules change what the column measures.

    Raises:
        ValueError: If ``mode`` is None and the direction is not known, or if it contradicts it.
    """
    part, _, name = monitor.partition("/")
    is_loss = name in ("loss", "loss_model")  # an adversary's loss has no direction
    known: Direction | None = None
    if part in ("train", "validation"):
        known = "min" if is_loss else objective.direction(name)
    direction = mode or known
    if direction is None:
        raise ValueError(
            f"{who} expects the direction of '{monitor}', which is not known: pass mode='max' if "
            "larger values are better, mode='min' if smaller ones are. It is known of bounds, such "
            "as 'validation/elbo_nats', and of the model's loss, such as 'validation/loss'"
        )
    if known not in (None, direction):
        better = "larger" if known == "max" else "smaller"
        raise ValueError(
            f"{who} expects mode='{known}' for '{monitor}', whose {better} values are better, got "
            f"mode='{direction}'"
        )
    changing = objective.changing_weights() if is_loss else []
    if changing:
        warn(
            f"{who} compares '{monitor}' of epochs in which {', '.join(changing)} differ, so the "
            f"first ones may seem the best: watch a bound, such as '{part}/elbo_nats', which does "
            "not depend on them"
        )
    return direction


def watched(who: str, monitor: str, row: Row) -> float:
    """Return the column that ``who`` watches. Raise ValueError if the row lacks it."""
    if monitor not in row:
        raise ValueError(f"{who} watches '{monitor}', expected one of {list(row)}")
    return row[monitor]


def _columns(rows: list[Row]) -> dict[str, list[float | None]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _split_unit(metric: str) -> tuple[str, str]:
    name, _, unit = metric.rpartition("_")
    return (name.replace("_", " "), unit) if unit == "nats" else (metric, "")


def label(metric: str) -> str:
    """Return the name of a metric for display, without its unit.

    Example:
        >>> label("log_likelihood_nats")
        'log likelihood'
    """
    return _split_unit(metric)[0]


def named_values(output: ObjectiveOutput) -> dict[str, Tensor]:
    """Return losses and metrics by their names in the history."""
    losses = output.losses
    names = ["loss"] if len(losses) == 1 else [f"loss_{group}" for group in losses]
    values = (loss.detach() for loss in losses.values())
    return dict(zip(names, values, strict=True)) | output.metrics
