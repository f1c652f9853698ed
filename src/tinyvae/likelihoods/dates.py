"""Dates and durations as integers, and back."""

import math
import re
from datetime import date, datetime, timedelta
from importlib import import_module
from typing import Any

import numpy as np

from tinyvae.likelihoods.tables import Array

# Type of Python -> dtype of NumPy that holds its values, and the range that it can hold
PYTHON_TYPES: dict[type, tuple[str, str]] = {
    date: ("date", "datetime64[D]"),
    datetime: ("datetime", "datetime64[us]"),
    timedelta: ("timedelta", "timedelta64[us]"),
}
LIMITS: dict[str, tuple[Any, Any]] = {
    "date": (date.min, date.max),
    "datetime": (datetime.min, datetime.max),
    "timedelta": (timedelta.min, timedelta.max),
}
NANOSECONDS = {"D": 86_400 * 10**9, "h": 3_600 * 10**9, "m": 60 * 10**9, "s": 10**9}
NANOSECONDS |= {"ms": 10**6, "us": 10**3, "ns": 1}
WORDS = {"D": "days", "h": "hours", "m": "minutes", "s": "seconds", "Y": "years", "M": "months"}
WORDS |= {"W": "weeks", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


def is_date_dtype(dtype: str) -> bool:
    """Return True if the ``dtype`` of a column is one of dates or durations."""
    return dtype in LIMITS or dtype.removeprefix("pandas.").startswith(("datetime64", "timedelta"))


def as_dates(name: str, values: Array) -> tuple[Array, str]:
    """Return observed dates or durations as an array of NumPy, and the ``dtype`` of the column.

    Args:
        name: Name of the column.
        values: Array of NumPy's dates, or objects of Python's date, datetime or timedelta.

    Raises:
        ValueError: If they have several types, or time zones.
    """
    if values.dtype.kind in "mM":
        return values, str(values.dtype)
    types = {type(value) for value in values.tolist()}
    kind = next(iter(types))
    has_zone = any(getattr(value, "tzinfo", None) is not None for value in values.tolist())
    if len(types) > 1 or kind not in PYTHON_TYPES or has_zone:
        shown = sorted(t.__name__ for t in types)
        raise ValueError(
            f"column {name!r} expects dates or durations of one type without time zones, got "
            f"{', '.join(shown)}: convert them with pandas.to_datetime or to_timedelta, or to "
            "numbers"
        )
    dtype, stored = PYTHON_TYPES[kind]
    return values.astype(stored), dtype


def ticks(values: Array) -> Array:
    """Return dates or durations as integers, the number of units of their dtype since 1970."""
    integers: Array = values.astype(np.int64)
    return integers


def natural_step(name: str, integers: Array, dtype: str) -> tuple[int, int]:
    """Return the first of some dates and the longest unit whose multiples all others are away.

    It is a day, hour, minute, second or a part of it, in units of the dtype.
    """
    first, last = int(integers.min()), int(integers.max())
    if last - first >= 2**62:
        raise ValueError(
            f"column {name!r} expects dates less than 2**62 units apart, got {last - first}: use "
            "a coarser unit, astype('datetime64[s]')"
        )
    divisor = math.gcd(*np.unique(integers - first).tolist())
    unit, multiple = _unit(dtype)
    length = NANOSECONDS.get(unit, 0) * multiple
    sizes = [size // length for size in NANOSECONDS.values() if length and size % length == 0]
    return first, next((size for size in sizes if divisor % size == 0), 1)


def to_steps(name: str, integers: Array, origin: int, step: int) -> Array:
    """Return the distance of dates from an origin in steps, as float64."""
    offsets = [value - origin for value in integers.tolist()]  # may exceed int64
    steps = np.array([offset / step for offset in offsets], dtype=np.float64)
    for value, offset in zip(steps.tolist(), offsets, strict=True):
        if round(value * step) != offset:
            raise ValueError(
                f"column {name!r} expects dates that float64 can hold, 2**53 units from the first "
                "at most: round them, .dt.round('us'), or use a coarser unit"
            )
    return steps


def from_steps(steps: Array, origin: int, step: int, dtype: str) -> Array:
    """Return dates or durations of ``dtype``, in the range that it can hold. NaN becomes zero."""
    low, high = -(2**63) + 1, 2**63 - 1
    if dtype in LIMITS:
        limits = np.array(LIMITS[dtype], dtype=_numpy_name(dtype)).astype(np.int64).tolist()
        low, high = limits
    whole = np.clip(np.round(np.nan_to_num(steps)), -(2.0**62) / step, 2.0**62 / step)
    integers = [min(max(origin + int(value) * step, low), high) for value in whole.tolist()]
    dates: Array = np.array(integers, dtype=np.int64).astype(_numpy_name(dtype))
    return dates


def as_column(dates: Array, missing: Array, dtype: str) -> Any:
    """Return dates in the type of the table, with missing ones."""
    if dtype in LIMITS:
        objects: Array = dates.astype(object)
        objects[missing] = None
        return objects
    dates = dates.copy()
    dates[missing] = np.array("NaT", dtype=dates.dtype)
    if not dtype.startswith("pandas."):
        return dates
    series = import_module("pandas").Series(dates).dt.tz_localize("UTC")
    return series.astype(dtype.removeprefix("pandas.")).array


def describe_date(value: int, dtype: str) -> str:
    """Return a date or duration, given as a number of units of its dtype, as text."""
    text = str(from_steps(np.array([0.0]), value, 1, dtype)[0])
    return text.partition(".")[0]


def describe_step(step: int, dtype: str) -> str:
    """Return the name of a step, such as ``"days"``."""
    unit, multiple = _unit(dtype)
    length = NANOSECONDS.get(unit, 0) * multiple * step
    names = [name for name, size in NANOSECONDS.items() if size == length]
    return WORDS[names[0] if names else unit]


def _numpy_name(dtype: str) -> str:
    """Return the dtype of NumPy that holds the values of a column's ``dtype``."""
    for name, stored in PYTHON_TYPES.values():
        if name == dtype:
            return stored
    return re.sub(r",.*\]", "]", dtype.removeprefix("pandas."))


def _unit(dtype: str) -> tuple[str, int]:
    unit, multiple = np.datetime_data(np.dtype(_numpy_name(dtype)))
    return unit, multiple
