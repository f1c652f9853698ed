"""Kinds of the columns of a table, chosen by the data."""

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from tinyvae.core.warnings import warn

Array: TypeAlias = "np.ndarray[Any, Any]"
Kind: TypeAlias = Literal["number", "positive", "count", "binary", "category"]
KINDS: tuple[Kind, ...] = ("number", "positive", "count", "binary", "category")

FEW_LEVELS, ROWS_PER_LEVEL = 10, 10  # integers with so few values can be codes of classes
MAX_DIVERGENCE = 0.1  # nats, of few values from the negative binomial of a count
MAX_EXCESS_OF_ZEROS = 0.15  # share
MAX_SHARE_BEYOND, MAX_ROWS_BEYOND = 0.02, 10  # that a count would have above the largest value
SMALL_MEAN = 10.0  # up to it, integers are near zero
LARGE_MEAN = 100.0  # above it, they are amounts


def guess_kind(name: str, observed: Array, levels: Sequence[Any]) -> Kind:
    """Return the kind of a column with these observed values and distinct ``levels``.

    Raises:
        ValueError: If it is text that differs in most rows, or a number is not finite.
    """
    if len(levels) == 2:
        return "binary"
    if observed.dtype.kind not in "fiu":
        _check_text(name, len(observed), levels)
        return "category"
    values = observed.astype(np.float64)
    check_finite(name, values)
    if observed.dtype.kind in "iu":
        if len(levels) == len(values) > FEW_LEVELS and np.ptp(values) == len(values) - 1:
            warn(f"column {name!r} numbers the rows: leave it out if it is an identifier")
            return "number"
        is_few = len(levels) <= FEW_LEVELS and len(values) >= ROWS_PER_LEVEL * len(levels)
        if _is_count(values, is_few):
            return "count"
        if is_few:
            return "category"
    return "positive" if _is_log_normal(values) else "number"


def initial_value(kind: Kind, values: Array) -> float:
    """Return the value from which training of a column's learned parameter starts.

    Training starts from the spread of the column, as for a standardized number: the concentration
    of a count, the standard deviation of the logarithm of a positive number.
    """
    if kind == "positive":
        return float(np.clip(np.log(values).std(), 0.01, 10))
    if kind == "count":
        excess = values.var() - values.mean()
        return float(np.clip(values.mean() ** 2 / max(excess, 1e-12), 0.01, 100))
    return 1.0


def check_finite(name: str, values: Array) -> None:
    """Raise if a number of a column is infinite."""
    if not np.isfinite(values).all():
        raise ValueError(
            f"column {name!r} expects finite numbers, got infinity: mark it as missing, or drop "
            "the rows"
        )


def _is_count(values: Array, is_few: bool) -> bool:
    """Return True if integers are near zero and a negative binomial of equal moments fits them.

    Its variance is at least its mean.
    """
    mean, variance = values.mean(), values.var()
    if values.min() < 0 or mean > LARGE_MEAN:
        return False
    is_near_zero = mean <= SMALL_MEAN or variance >= mean**2 / 4
    error = 1 / math.sqrt(len(values))
    # Two standard errors of the ratio of variance and mean, and below of the share of zeros.
    if not is_near_zero or variance < (1 - max(0.2, 2.8 * error)) * mean:
        return False
    distinct, frequencies = np.unique(values, return_counts=True)
    shares, k = torch.from_numpy(frequencies / len(values)), torch.from_numpy(distinct)
    r = initial_value("count", values)
    log_zero = r * math.log(r / (r + mean))
    if abs((values == 0).mean() - math.exp(log_zero)) > max(MAX_EXCESS_OF_ZEROS, error):
        return False

    def log_mass(k: torch.Tensor) -> torch.Tensor:
        log_ways = torch.lgamma(k + r) - math.lgamma(r) - torch.lgamma(k + 1)
        return log_ways + log_zero + k * math.log(mean / (r + mean))

    # A count would also have values above the largest hour or month.
    beyond = 1 - log_mass(torch.arange(values.max() + 1, dtype=torch.float64)).exp().sum()
    if beyond > MAX_SHARE_BEYOND and len(values) * beyond > MAX_ROWS_BEYOND:
        return False
    divergence = (shares * (shares.log() - log_mass(k))).sum()  # KL, nats
    return not is_few or bool(divergence < MAX_DIVERGENCE)


def _is_log_normal(values: Array) -> bool:
    """Return True if a log-normal density fits clearly better than a normal one.

    It must also have about the standard deviation of the values.
    """
    if values.min() <= 0 or values.std() == 0:
        return False
    logs = np.log(values)
    shift, scale = logs.mean(), max(logs.std(), 1e-12)
    gain = math.log(values.std()) - math.log(scale) - shift  # nats per value
    implied = math.exp(shift + scale**2 / 2) * math.sqrt(math.expm1(min(scale**2, 100.0)))
    agrees = 0.75 < implied / values.std() < 4 / 3
    evidence = gain * len(np.unique(values))  # nats; repeated values are no further evidence
    return bool(agrees and gain > 0.05 and evidence > 10)


def _check_text(name: str, num_rows: int, levels: Sequence[Any]) -> None:
    """Raise if text differs in most rows, and warn if it seems to be numbers."""
    text = [level for level in levels if not _is_number(level)]
    is_numeric = len(text) < len(levels) / 2
    remedy = f"leave it out, group its values, or declare it, kinds={{{name!r}: 'category'}}"
    if is_numeric:
        remedy = "convert it with astype(float)"
        if text:
            remedy += f" after marking {text[0]!r} as missing"
    if len(levels) > 2 * FEW_LEVELS and len(levels) > num_rows / 2:
        raise ValueError(
            f"column {name!r} expects numbers or repeated categories, got {len(levels)} different "
            f"values in {num_rows} rows, such as {levels[0]!r:.80}: {remedy}"
        )
    if is_numeric and len(levels) > FEW_LEVELS:
        warn(f"column {name!r} holds numbers as text, so it is modeled as a category: {remedy}")


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
