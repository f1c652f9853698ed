r"""Scores with standard errors, and the data that metrics accept.

The grouped jackknife leaves out one of :math:`G` random groups of rows at a time. With the value
:math:`\theta` of all rows, the values :math:`\theta_g` without group g and their mean
:math:`\bar\theta`,

.. math:: \mathrm{se}^2 = \frac{G - 1}{G} \sum_g (\theta_g - \bar\theta)^2, \qquad
    \mathrm{bias} = (G - 1)(\bar\theta - \theta).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.intp]
Array: TypeAlias = Tensor | npt.NDArray[Any]
Labels: TypeAlias = Array | Sequence[Any]

GROUPS = 20


@dataclass(frozen=True)
class Score:
    """Value of a metric.

    Attributes:
        value: Value.
        standard_error: Standard error over the rows; NaN if none is known.
        bias: Estimated bias, which shrinks with the number of rows; NaN if none is known. If it is
            not small next to what you compare, you need more rows.
    """

    value: float
    standard_error: float = math.nan
    bias: float = math.nan

    @classmethod
    def of(cls, values: Floats) -> "Score":
        """Return the mean of ``values`` ``(N,)`` and its standard error."""
        return cls(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))))

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        known = not math.isnan(self.standard_error)
        return f"{self.value:.4g} +- {self.standard_error:.2g}" if known else f"{self.value:.4g}"


def jackknife(statistic: Callable[..., float], *samples: int, seed: int = 0) -> Score:
    """Return a statistic with its standard error and bias by the grouped jackknife.

    Args:
        statistic: Function of one array of row numbers per sample.
        *samples: Number of rows of each independent sample.
        seed: Seed of the groups.
    """
    rng = np.random.default_rng(seed)
    count = min(GROUPS, *samples)
    group = [rng.permutation(size) % count for size in samples]
    value = statistic(*(np.arange(size) for size in samples))
    left = np.array([statistic(*(np.flatnonzero(g != i) for g in group)) for i in range(count)])
    error = math.sqrt((count - 1) * left.var())
    return Score(value, error, float((count - 1) * (left.mean() - value)))


def as_rows(who: str, name: str, values: Array) -> Floats:
    """Return values ``(N, ...)`` as a float64 array ``(N, D)``; a vector is one column."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim == 0 or len(rows) < 2 or rows.size == 0:
        raise ValueError(f"{who} expects {name} (N, D) with N >= 2, got {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(f"{who} expects finite {name}, got nan or inf: leave such rows out")
    return rows.reshape(len(rows), -1)


def as_labels(who: str, labels: Labels, size: int) -> Indices | Floats:
    """Return labels ``(N,)``: class numbers ``0..C-1`` as integers, other numbers as floats.

    Labels that are all whole numbers, or no numbers, are classes.
    """
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.shape != (size,):
        raise ValueError(f"{who} expects labels of shape ({size},), got {array.shape}")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ValueError(f"{who} expects finite labels, got nan or inf: leave such rows out")
        if not np.array_equal(array, np.round(array)):
            return array.astype(np.float64)
    classes, index = np.unique(array, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"{who} expects labels that vary, got only {classes[0]!r}: leave it out")
    return index


def as_factors(who: str, factors: Array, size: int) -> list[Indices | Floats]:
    """Return the columns of factors ``(N, K)``, each as labels."""
    array = factors.detach().cpu().numpy() if isinstance(factors, Tensor) else np.asarray(factors)
    if array.ndim not in (1, 2) or len(array) != size:
        raise ValueError(f"{who} expects factors ({size}, K), got {array.shape}")
    return [as_labels(who, column, size) for column in array.reshape(size, -1).T]


def as_pair(who: str, real: Array, generated: Array) -> tuple[Tensor, Tensor]:
    """Return features ``(N, D)`` and ``(M, D)`` as float64 tensors on their device."""
    rows = []
    for name, values in (("real", real), ("generated", generated)):
        tensor = torch.as_tensor(values).detach()
        device = tensor.device if tensor.device.type != "mps" else "cpu"  # which has no float64
        tensor = tensor.to(device).double()
        if tensor.dim() == 0 or len(tensor) < 2 or tensor.numel() == 0:
            raise ValueError(
                f"{who} expects {name} features (N, D) with N >= 2, got {tuple(tensor.shape)}"
            )
        if not tensor.isfinite().all():
            raise ValueError(
                f"{who} expects finite {name} features, got nan or inf: leave such rows out"
            )
        rows.append(tensor.flatten(1) if tensor.dim() > 1 else tensor.unsqueeze(1))
    if rows[0].shape[1] != rows[1].shape[1]:
        raise ValueError(
            f"{who} expects the same number of features, got {rows[0].shape[1]} real and "
            f"{rows[1].shape[1]} generated: compute both by one function"
        )
    return rows[0], rows[1]


def missing_sklearn(who: str) -> ImportError:
    """Return the error for a missing scikit-learn."""
    return ImportError(f"{who} needs scikit-learn: pip install 'tinyvae[sklearn]'")
