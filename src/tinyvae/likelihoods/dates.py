"""Dates and durations as integers, and back."""

import math
import re
from datetime import date, datetime, timedelta
from importlib import import_module
from typing import Any

import numpy as np

from tinyvae.likelihoods.tables import Array

# Type of Python -> ``dtype`` of a column, and dtype of NumPy that holds its values
PYTHON_TYPES: dict[type, tuple[str, str]] = {
    date: ("date", "datetime64[D]"),
    datetime: ("datetime", "datetime64[us]"),
    timedelta: ("timedelta", "timedelta64[us]"),
}
PYTHON_NAMES = dict(PYTHON_TYPES.values())
LIMITS: dict[str, tuple[Any, Any]] = {  # of the values that a type can hold
    "date": (date.min, date.max),
    "datetime": (datetime.min, datetime.max),
}
NANOSECONDS = {"D": 86_400 * 10**9, "h": 3_600 * 10**9, "m": 60 * 10**9, "s": 10**9}
NANOSECONDS |= {"ms": 10**6, "us": 10**3, "ns": 1}
WORDS = {"D": "days", "h": "hours", "m": "minutes", "s": "seconds", "Y": "years", "M": "months"}
WORDS |= {"W": "weeks", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


def is_date_dtype(dtype: str) -> bool:
    """Return True if the ``dtype`` of a column is one of dates or durations."""
    return dtype in PYTHON_NAMES or dtype.removeprefix("pandas.").startswith(
        ("datetime64", "timedelta")
    )


def as_dates(name: str, values: Array) -> tuple[Array, str]:
    """Return observed dates or durations as an array of NumPy, and the ``dtype`` of the column.

    Args:
        name: Name of the column.
        values: Array of NumPy's dates, or objects of Python's date, datetime or timedelta.

    Raises:
        ValueError: If they have several types, or time zones.
    """
    if values.dtype == object and all(isinstance(v, np.generic) for v in values):
        values = np.array(values.tolist())
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
    offsets = integers.astype(object) - origin if len(integers) else integers
    if not _overflows(integers, origin):
        offsets = integers - origin
    steps = (offsets / step).astype(np.float64)
    if (np.abs(offsets) >= 2**62).any() or (
        np.round(steps * step).astype(np.int64) != offsets
    ).any():
        raise ValueError(
            f"column {name!r} expects dates that float64 can hold, 2**53 units from the first at "
            "most: round them, .dt.round('us'), or use a coarser unit"
        )
    return steps


def from_steps(steps: Array, origin: int, step: int, dtype: str) -> Array:
    """Return dates or durations of ``dtype``, in the range that it can hold. NaN becomes zero."""
    low, high = -(2**63) + 1, 2**63 - 1  # the number below is NaT
    if dtype in LIMITS:
        low, high = np.array(LIMITS[dtype], dtype=_numpy_name(dtype)).astype(np.int64).tolist()
    whole = np.clip(np.round(np.nan_to_num(steps)), -(2.0**61) / step, 2.0**61 / step)
    offsets = whole.astype(np.int64) * step
    integers = offsets.astype(object) + origin if _overflows(offsets, origin) else offsets + origin
    dates: Array = np.clip(integers, low, high).astype(np.int64).astype(_numpy_name(dtype))
    return dates


def _overflows(integers: Array, origin: int) -> bool:
    """Return True if a sum or difference of int64 numbers and ``origin`` may exceed int64."""
    largest = np.abs(integers.astype(np.float64)).max(initial=abs(float(origin)))
    return bool(largest >= 2.0**62)


def as_column(dates: Array, missing: Array, dtype: str) -> Any:
    """Return dates in the type of the table, with missing ones."""
    if dtype in PYTHON_NAMES:
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
    return PYTHON_NAMES.get(dtype) or re.sub(r",.*\]", "]", dtype.removeprefix("pandas."))


def _unit(dtype: str) -> tuple[str, int]:
    unit, multiple = np.datetime_data(np.dtype(_numpy_name(dtype)))
    return unit, multiple
