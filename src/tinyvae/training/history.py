"""What a run was like: rows per epoch and, on request, per update."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tinyvae import io as files
from tinyvae import plotting
from tinyvae.core.objective import ObjectiveOutput

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Row = dict[str, float]


class History:
    """Record of a run.

    TabularDistribution of an epoch: ``epoch`` (from 1), ``step`` (updates so far), ``time_seconds``,
    ``learning_rate``, and every loss and metric as ``train/...`` (mean over the epoch's batches,
    at the weights of their time) and ``validation/...`` (at the weights of the epoch's end). Units
    are part of the names. A value that an epoch lacks is None.

    Attributes:
        epochs: One row per epoch.
        updates: One row per recorded update: ``step`` and the batch's losses and metrics.
        stop_reason: Why the run ended before its last epoch, None if it did not.
    """

    def __init__(self) -> None:
        self.epochs: list[Row] = []
        self.updates: list[Row] = []
        self.stop_reason: str | None = None

    def __len__(self) -> int:
        """Return the number of epochs."""
        return len(self.epochs)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.epochs)

    def __getitem__(self, column: str) -> list[float | None]:
        """Return a column of the epochs."""
        columns = _columns(self.epochs)
        if column not in columns:
            raise KeyError(f"no column '{column}' in the history, it has {list(columns)}")
        return columns[column]

    def record_update(self, step: int, output: ObjectiveOutput) -> None:
        """Add an update's losses and metrics."""
        values = {name: value.item() for name, value in named_values(output).items()}
        self.updates.append({"step": step, **values})

    def state_dict(self) -> dict[str, Any]:
        """All rows, as bytes of JSON, and the reason of an early end."""
        rows = json.dumps({"epochs": self.epochs, "updates": self.updates}).encode()
        # Of few lengths: ctypes, by which safetensors writes, keeps a type of each there ever was.
        padded = rows.ljust(1 << max(10, (len(rows) - 1).bit_length()))
        data = torch.frombuffer(bytearray(padded), dtype=torch.uint8)
        return {"rows": data, "stop_reason": self.stop_reason}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over :meth:`state_dict`."""
        rows = json.loads(state["rows"].numpy().tobytes())
        self.epochs, self.updates = rows["epochs"], rows["updates"]
        self.stop_reason = state["stop_reason"]

    def to_dict(self) -> dict[str, Any]:
        """TabularDistribution of epochs and updates, and the reason of an early end."""
        return {
            "epochs": _columns(self.epochs),
            "updates": _columns(self.updates),
            "stop_reason": self.stop_reason,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` as JSON, atomically."""
        files.write_json(path, self.to_dict())

    def plot(self, metric: str = "elbo_nats", *, title: str | None = None) -> "Figure":
        """Draw a metric against the epochs, training and validation."""
        series = {
            part: ([row["epoch"] for row in rows], [row[column] for row in rows])
            for part in ("train", "validation")
            if (rows := [row for row in self.epochs if (column := f"{part}/{metric}") in row])
        }
        if not series:
            columns = _columns(self.epochs)
            metrics = {name.partition("/")[2] for name in columns if "/" in name}
            raise KeyError(f"no metric '{metric}' in the history, it has {sorted(metrics)}")
        name, unit = _split_unit(metric)
        ylabel = f"{name} [{unit} per datum]" if unit == "nats" else metric
        return plotting.curves(series, xlabel="epoch", ylabel=ylabel, title=title)

    def __repr__(self) -> str:
        return f"History({len(self.epochs)} epochs, columns {list(_columns(self.epochs))})"


def plain(row: Mapping[str, Any]) -> Row:
    """A row as numbers of Python.

    Raises:
        TypeError: If a column is no number.
    """
    numbers = {name: v.item() if hasattr(v, "item") else v for name, v in row.items()}
    for name, value in numbers.items():
        if not isinstance(value, (int, float)):
            raise TypeError(
                f"expected a number in the history's column '{name}', got {value!r:.80}"
            )
    return numbers


def _columns(rows: list[Row]) -> dict[str, list[float | None]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _split_unit(metric: str) -> tuple[str, str]:
    name, _, unit = metric.rpartition("_")
    return (name.replace("_", " "), unit) if unit == "nats" else (metric, "")


def label(metric: str) -> str:
    """Name of a metric without its unit, to be read.

    Example:
        >>> label("log_likelihood_nats")
        'log likelihood'
    """
    return _split_unit(metric)[0]


def named_values(output: ObjectiveOutput) -> dict[str, Tensor]:
    """Losses and metrics under the names that the history gives them."""
    losses = output.losses
    names = ["loss"] if len(losses) == 1 else [f"loss_{group}" for group in losses]
    values = (loss.detach() for loss in losses.values())
    return dict(zip(names, values, strict=True)) | output.metrics


def _require_scalars(named: dict[str, Tensor]) -> None:
    for name, value in named.items():
        if not isinstance(value, Tensor) or value.dim() != 0:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise TypeError(f"losses and metrics must be 0-d tensors, got {got} for '{name}'")


def _sums_on(device: torch.device) -> dict[str, Any]:
    """Where sums are kept, and with how many digits: Apple's devices have no float64."""
    return {"device": device, "dtype": torch.float32 if device.type == "mps" else torch.float64}


class RunningMean:
    """Mean of an epoch's losses and metrics, weighted by examples, kept on the device.

    Values are put aside, and summed up many at a time: small operations cost more than big ones.
    """

    ASIDE = 64

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._aside: list[Tensor] = []
        self._weights: list[int] = []
        self._total: Tensor | None = None
        self._weight = 0

    def add(self, output: ObjectiveOutput, weight: int) -> None:
        """Add a batch of ``weight`` examples."""
        named = named_values(output)
        if not self._names:
            self._names = tuple(named)
            _require_scalars(named)
        self._aside.append(torch.stack([named[name].detach() for name in self._names]))
        self._weights.append(weight)
        if len(self._weights) == self.ASIDE:
            self._sum_up()

    def _sum_up(self) -> None:
        values = torch.stack(self._aside)  # (steps, names)
        weights = torch.tensor(self._weights, **_sums_on(values.device))
        total = weights @ values.to(weights.dtype)
        self._total = total if self._total is None else self._total + total
        self._weight += sum(self._weights)
        self._aside, self._weights = [], []

    def state_dict(self) -> dict[str, Any]:
        """Sums, and what has been put aside."""
        dtype = self._aside[0].dtype if self._aside else torch.float32
        return {
            "names": list(self._names),
            "aside": [values.tolist() for values in self._aside],
            "dtype": str(dtype).removeprefix("torch."),
            "weights": list(self._weights),
            "total": None if self._total is None else self._total.tolist(),
            "weight": self._weight,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take over :meth:`state_dict`."""
        self._names, self._weights = tuple(state["names"]), state["weights"]
        dtype, total = getattr(torch, state["dtype"]), state["total"]
        self._aside = [torch.tensor(v, dtype=dtype, device=device) for v in state["aside"]]
        self._total = None if total is None else torch.tensor(total, **_sums_on(device))
        self._weight = state["weight"]

    def row(self, part: str) -> Row:
        """Means so far, with ``part`` before the names."""
        if self._weights:
            self._sum_up()
        if self._total is None:
            return {}
        means = (self._total / self._weight).tolist()
        return {f"{part}/{name}": mean for name, mean in zip(self._names, means, strict=True)}
