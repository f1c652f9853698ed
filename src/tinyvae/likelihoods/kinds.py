"""Kinds of the columns of a table, chosen by the data."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args
from uuid import UUID

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tinyvae.core.data import spread_rows
from tinyvae.core.warnings import warn
from tinyvae.likelihoods.marginals import (
    concentration,
    find_modes,
    is_count,
    log_normal_fit,
    logit_normal_fit,
    mixture_fit,
    normal_fit,
    student_fit,
)
from tinyvae.likelihoods.tables import Array

Kind: TypeAlias = Literal[
    "number",
    "heavy",
    "modes",
    "positive",
    "amount",
    "bounded",
    "count",
    "ordinal",
    "binary",
    "category",
    "date",
    "constant",
    "identifier",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
NOT_MODELED = ("constant", "identifier")
WITH_LEVELS = ("binary", "category", "ordinal")

FEW_LEVELS, ROWS_PER_LEVEL = 10, 10  # numbers with so few values can be codes of classes
MANY_LEVELS = 20  # of an ordinal column at most; of text at least, to be free text
MIN_PEAK_LEVELS, MIN_ORDINAL_LEVELS = 5, 8  # of ordinal columns, with and without one peak
MIN_ROWS = 20  # from which whole numbers of a floating-point type count as integers
MAX_ROWS, MANY_ROWS = 2_000, 100_000  # from which densities are fitted, and values are counted
MIN_GAIN, MIN_EVIDENCE = 0.05, 10.0  # nats per value and in all, of a density over the normal one
MIN_SHARE, MIN_REPEATS, MIN_EXCESS = 0.2, 10, 3  # of a value that is a point; excess: times
NEIGHBORS, MAX_POINTS = 5, 5
LARGEST_INTEGER = 2**53  # up to it, float64 holds every integer
# Bounds that are plain, and the part of the interval in which values must lie on both sides.
BOUNDS = ((0.0, 1.0, 0.35, 0.65), (0.0, 100.0, 50.0, 95.0), (-1.0, 1.0, -0.5, 0.5))
IS_DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}")
# One number with a currency or a unit: "39,194.69", "12 EUR", "34%", "$5".
IS_QUANTITY = re.compile(r"[$£€]?\s*[-+]?\d[\d.,' ]*\s*([%$£€]|[A-Za-z]{1,3})?")
IS_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@dataclass(frozen=True)
class Guess:
    """Kind of a column and the reason for it.

    Attributes:
        kind: The kind.
        reason: What the values show, in a few words.
    """

    kind: Kind
    reason: str


def guess_text(name: str, num_rows: int, levels: Sequence[Any]) -> Guess:
    """Return the kind of a column of text or other objects.

    Args:
        name: Name of the column.
        num_rows: Number of observed values.
        levels: Its distinct values, more than two.

    Raises:
        ValueError: If it holds numbers as text that differs in most rows.
    """
    is_unique = len(levels) == num_rows
    if is_unique and all(_is_uuid(level) for level in levels):
        return Guess("identifier", "UUIDs")
    text = [level for level in levels if not _is_number(level)]
    is_numeric = len(text) < len(levels) / 2
    remedy = "convert it with astype(float)"
    if text:
        remedy += f" after marking {text[0]!r} as missing"
    differs = len(levels) > MANY_LEVELS and len(levels) > num_rows / 2
    differs = differs or (is_unique and len(levels) > FEW_LEVELS)
    if differs and is_numeric:
        raise ValueError(
            f"column {name!r} expects numbers or repeated categories, got {len(levels)} different "
            f"values in {num_rows} rows, such as {levels[0]!r:.80}: {remedy}, or leave it out, "
            f"kinds={{{name!r}: 'identifier'}}"
        )
    if differs and (reason := _conversion_hint(text)):
        warn(f"column {name!r} is left out, as an identifier: its values are {reason}")
        return Guess("identifier", reason)
    if differs:
        every = "every row has" if is_unique else f"{num_rows} rows have {len(levels)}"
        return Guess("identifier", f"{every} different texts")
    if is_numeric and len(levels) > FEW_LEVELS:
        warn(f"column {name!r} holds numbers as text, so it is modeled as a category: {remedy}")
    return Guess("category", "text" if isinstance(levels[0], str) else "objects")


def guess_number(values: Array, distinct: Array, is_integer: bool) -> Guess:
    """Return the kind of a column of finite numbers.

    Args:
        values: Observed values, float64.
        distinct: Distinct ones, sorted, more than two, in their own dtype.
        is_integer: True if their dtype is one of integers.
    """
    num_rows, num_levels = len(values), len(distinct)
    is_whole = bool((distinct == np.round(distinct)).all())
    if not is_integer and num_rows < MIN_ROWS:
        is_whole = False
    is_repeated = num_rows >= ROWS_PER_LEVEL * num_levels and _is_dense(values)
    is_few = num_levels <= FEW_LEVELS and is_repeated
    if is_whole:
        if reason := _numbering(num_rows, distinct):
            return Guess("identifier", reason)
        if is_count(values, is_few):
            return Guess("count", "a negative binomial fits")
    if is_few:
        return _guess_few(values)
    if num_levels <= MANY_LEVELS and is_repeated and _steps(distinct) is not None:
        return Guess("ordinal", f"{num_levels} evenly spaced values")
    return guess_density(values)


def guess_density(values: Array, *, allow_points: bool = True) -> Guess:
    """Return the kind of a column of numbers whose values seldom repeat, up to a few points.

    Without ``allow_points`` it is that of the other values: number, heavy or positive.
    """
    is_positive, bounds = values.min() > 0, plain_bounds(values)
    values = spread_rows(values, MANY_ROWS)
    if values.std() == 0 or len(np.unique(values)) < 3:
        return Guess("number", "few values")
    if allow_points:
        points = find_points(values)
        shares = ", ".join(f"{100 * (values == p).mean():.2g} % at {p:g}" for p in points)
        others = values[~np.isin(values, points)]
        if points and not (set(points) <= set(bounds) and _is_logit_normal(others, bounds)):
            return Guess("amount", shares)
        if points:
            return Guess("bounded", shares)
    rows = spread_rows(values, MAX_ROWS)
    inside = rows[(rows > bounds[0]) & (rows < bounds[1])] if bounds else rows
    if inside.std() == 0:
        return Guess("number", "few values")
    fits: dict[Kind, float] = {}
    if not has_majority(inside):  # at which the density of a Student t would be unbounded
        fits["heavy"] = student_fit(inside)[0]
    if allow_points and bounds:
        fits["bounded"] = logit_normal_fit(inside, *bounds)
    if is_positive and len(inside) == len(rows):
        fits["positive"] = log_normal_fit(rows)
    if allow_points and len(modes := find_modes(inside)) > 1:
        fits["modes"] = mixture_fit(inside, modes)[0]
    if not fits:
        return Guess("number", "")
    normal = normal_fit(inside)
    kind: Kind = max(fits, key=fits.__getitem__)
    gain = fits[kind] - normal
    # Repeated values are no further evidence.
    if gain < MIN_GAIN or gain * len(np.unique(inside)) < MIN_EVIDENCE:
        return Guess("number", "")
    names = {"heavy": "Student t", "positive": "log-normal", "bounded": "logit-normal"}
    reason = f"{names.get(kind, f'{len(modes)} modes' if kind == 'modes' else '')} fits better"
    return Guess(kind, f"{reason}, {gain:.2f} nats")


def find_points(values: Array) -> tuple[float, ...]:
    """Return values that repeat so often that a density cannot hold them, the most frequent first.

    A point has at least 20 % of the values, and three times the rows of each of the five distinct
    values on both sides that has less than 20 %. After the first pass, the other values are
    searched again, so that a point may also hold 20 % of what is not at another point.
    """
    points: list[float] = []
    for _ in range(2):
        distinct, counts = np.unique(values, return_counts=True)
        least = max(MIN_SHARE * len(values), MIN_REPEATS)
        rare = np.pad(np.where(counts < least, counts, 0), NEIGHBORS)
        near = sliding_window_view(rare, 2 * NEIGHBORS + 1).max(1)
        found = np.flatnonzero((counts >= least) & (counts >= MIN_EXCESS * near)).tolist()
        found = sorted(found, key=lambda index: (-counts[index], distinct[index]))
        found = found[: MAX_POINTS - len(points)]
        if not found or len(distinct) - len(found) < 3:
            break
        points += [float(distinct[index]) for index in found]
        values = values[~np.isin(values, distinct[found])]
    return tuple(points)


def has_majority(values: Array) -> bool:
    """Return True if more than half of the values are equal."""
    return bool(np.unique(values, return_counts=True)[1].max() > len(values) / 2)


def plain_bounds(values: Array) -> tuple[float, ...]:
    """Return (0, 1), (0, 100) or (-1, 1) if the values fill much of the interval, else nothing."""
    least, most = values.min(), values.max()
    for low, high, left, right in BOUNDS:
        if low <= least <= left and right <= most <= high:
            return (low, high)
    return ()


def _is_logit_normal(values: Array, bounds: tuple[float, ...]) -> bool:
    """Return True if a logit-normal density fits better than normal and log-normal ones."""
    inside = values[(values > bounds[0]) & (values < bounds[1])]
    if len(np.unique(inside)) < 3:
        return False
    others = [normal_fit(inside)] + ([log_normal_fit(inside)] if inside.min() > 0 else [])
    return logit_normal_fit(inside, *bounds) > max(others)


def initial_value(kind: str, values: Array) -> float:
    """Return the value from which training of a column's learned parameter starts.

    Training starts from the spread of the column, as for a standardized number: the concentration
    of a count, the standard deviation of the logarithm of a positive number.
    """
    if kind == "positive":
        return float(np.clip(np.log(values).std(), 0.01, 10))
    return concentration(values) if kind == "count" else 1.0


def _numbering(num_rows: int, distinct: Array) -> str:
    """Return why integers are identifiers, or an empty string."""
    if len(distinct) < num_rows or num_rows <= FEW_LEVELS:
        return ""
    least, most = int(distinct[0]), int(distinct[-1])
    if most - least == num_rows - 1 and (least in (0, 1) or num_rows >= 100):
        return f"numbers the rows, {least} to {most}"
    return ""


def _is_dense(values: Array) -> bool:
    """Return True if integers are near each other, or if most of the distinct ones repeat."""
    distinct, counts = np.unique(values, return_counts=True)
    width = (distinct[-1] - distinct[0]) / np.diff(distinct).min() + 1
    return bool(width <= 2 * len(distinct) or np.median(counts) >= ROWS_PER_LEVEL / 2)


def _guess_few(values: Array) -> Guess:
    """Return ordinal for adjacent steps if there are eight, or their frequencies have a peak."""
    distinct, counts = np.unique(values, return_counts=True)
    signs = np.sign(np.diff(counts))
    signs = signs[signs != 0]
    has_one_peak = len(distinct) >= MIN_PEAK_LEVELS and not (np.diff(signs) > 0).any()
    steps = _steps(distinct)
    is_adjacent = steps is not None and steps[-1] <= len(distinct)  # one may be absent
    if is_adjacent and (has_one_peak or len(distinct) >= MIN_ORDINAL_LEVELS):
        peak = ", frequencies with one peak" if has_one_peak else ""
        return Guess("ordinal", f"evenly spaced values{peak}")
    return Guess("category", "few values, in ten or more rows each")


def _steps(distinct: Array) -> "Array | None":
    """Return how many steps each value is above the first. None if no step fits all of them.

    The step of integers is one, and that of standardized integers their smallest difference.
    """
    is_whole = bool((distinct == np.round(distinct)).all())
    step = 1.0 if is_whole else np.diff(distinct).min()
    steps: Array = (distinct - distinct[0]) / step
    return np.round(steps) if np.allclose(steps, np.round(steps), atol=1e-3) else None


def _conversion_hint(text: Sequence[Any]) -> str:
    """Return how to convert text that looks like dates or numbers, or an empty string."""
    some = [level.strip() for level in text[:100] if isinstance(level, str)]
    if some and all(IS_DATE.match(level) for level in some):
        return "text that looks like dates: convert it with pandas.to_datetime"
    if some and all(IS_QUANTITY.fullmatch(level) for level in some):
        return "text that looks like numbers: take signs and units away, and use astype(float)"
    return ""


def _is_uuid(value: Any) -> bool:
    return isinstance(value, UUID) or (isinstance(value, str) and bool(IS_UUID.fullmatch(value)))


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
