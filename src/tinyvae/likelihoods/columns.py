"""Columns of a table, and conversions between tables and tensors.

The tensor ``(N, D)`` of a table holds numbers unchanged, categories as the index of their level,
and missing values as NaN.
"""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyvae.likelihoods.kinds import KINDS, Array, Kind, check_finite, guess_kind, initial_value
from tinyvae.likelihoods.tables import (
    as_numbers,
    is_present,
    named_columns,
    pandas_dtype,
    raw_columns,
)

PANDAS = "pandas."  # begins the names of pandas' own dtypes
ORDERED = "pandas.category[ordered]"


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: Name of the column.
        kind: ``"number"``, a real number; ``"positive"``, a positive number, such as an amount;
            ``"count"``; ``"binary"``, one of two levels; ``"category"``, one of several levels.
        levels: Values of a binary or categorical column, in the order of their indices.
        shift: Number to subtract from a number to standardize it.
        scale: Divisor of a number (after the shift) or positive number, or baseline of a count.
        dtype: Type of the values in the table: ``"int64"`` or another name of NumPy, ``"object"``,
            or ``"pandas.Int64"``, ``"pandas.category[ordered]"`` and the like. ``""`` is the type
            of the levels, int64 for counts, float64 for other numbers. Numbers of an integer type
            are rounded on the way back to a table.
        initial: Initial value of the learned parameter: concentration of a count, standard
            deviation of a standardized number or of the logarithm of a positive number.
    """

    name: str
    kind: Kind
    levels: tuple[Any, ...] = ()
    shift: float = 0.0
    scale: float = 1.0
    dtype: str = ""
    initial: float = 1.0

    def __post_init__(self) -> None:
        _check_kind(self.name, self.kind)
        storable = isinstance(self.levels, (tuple, list)) and all(map(_is_storable, self.levels))
        if not storable or len(set(self.levels)) < len(self.levels):
            raise ValueError(
                f"column {self.name!r} expects a tuple of different levels, strings or finite "
                f"numbers, got {self.levels!r}: convert other types with str(level)"
            )
        fewest = {"binary": 2, "category": 2}.get(self.kind, 0)
        if len(self.levels) < fewest or (self.kind != "category" and len(self.levels) != fewest):
            raise ValueError(
                f"column {self.name!r} of kind {self.kind} expects "
                f"{'two or more' if self.kind == 'category' else fewest or 'no'} levels, "
                f"got {len(self.levels)}"
            )
        if not (np.isfinite(self.shift) and np.isfinite(self.scale) and self.scale > 0):
            raise ValueError(
                f"column {self.name!r} expects a finite shift and a finite scale > 0, got "
                f"{self.shift} and {self.scale}"
            )
        if self.dtype not in ("", "object") and not (
            self.dtype.startswith(PANDAS) or self.numeric_dtype
        ):
            raise ValueError(
                f"column {self.name!r} expects the name of a dtype, such as 'int64' or "
                f"'pandas.Int64', got {self.dtype!r}"
            )

    @property
    def numeric_dtype(self) -> "np.dtype[Any] | None":
        """Dtype of NumPy for the values, or None if ``dtype`` is not one of numbers."""
        name = self.dtype or ("int64" if self.kind == "count" else "float64")
        try:  # pandas' Int64 and int64[pyarrow] are int64
            dtype = np.dtype(name.removeprefix(PANDAS).lower().partition("[")[0])
        except TypeError:
            return None
        return dtype if dtype.kind in "iuf" else None

    def describe(self) -> str:
        """Return how the column is modeled, one line without its name.

        Example:
            >>> Column("height", "number", shift=170.0, scale=9.0, dtype="int64").describe()
            'number, mean 170, std 9, rounded'
        """
        details = {
            "number": f"mean {self.shift:.4g}, std {self.scale:.4g}",
            "positive": f"geometric mean {self.scale:.4g}",
            "count": f"mean {self.scale:.4g}",
        }
        if self.levels:
            return f"{self.kind}, {len(self.levels)} levels {reprlib.repr(list(self.levels))}"
        is_integer = self.numeric_dtype is not None and self.numeric_dtype.kind in "iu"
        rounded = ", rounded" if is_integer and self.kind != "count" else ""
        return f"{self.kind}, {details[self.kind]}{rounded}"


def _is_storable(level: Any) -> bool:
    """Return True if a file can hold a level."""
    is_finite = isinstance(level, float) and bool(np.isfinite(level))
    return is_finite or isinstance(level, (int, str))


def infer_columns(table: Any, kinds: Mapping[str, Kind] | None = None) -> list[Column]:
    """Return descriptions of the columns of a table, see ``MixedLikelihood.from_table``."""
    columns, raw = named_columns(table), raw_columns(table)
    kinds = {str(name): kind for name, kind in (kinds or {}).items()}
    if unknown := kinds.keys() - columns.keys():
        raise ValueError(f"kinds expects columns in {list(columns)}, got {sorted(unknown)}")
    for name, kind in kinds.items():
        _check_kind(name, kind)
    return [_infer(name, values, kinds.get(name), raw[name]) for name, values in columns.items()]


def _check_kind(name: str, kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"column {name!r} expects a kind in {KINDS}, got {kind!r}")


def _infer(name: str, values: Array, kind: Kind | None, raw: Any) -> Column:
    foreign = pandas_dtype(raw)
    declared = getattr(foreign, "categories", None)  # also those that no row has
    if kind in (None, "category", "binary") and declared is not None:
        dtype = ORDERED if foreign.ordered else "pandas.category"
        return Column(name, kind or "category", levels=tuple(declared.tolist()), dtype=dtype)
    observed = [v.item() if isinstance(v, np.generic) else v for v in values[is_present(values)]]
    distinct = set(observed)
    if any(isinstance(value, (date, time, timedelta)) for value in distinct) or (
        values.dtype.kind in "mM"
    ):
        raise ValueError(
            f"column {name!r} expects numbers or categories, got dates or durations: convert them, "
            "for example to days since a date, or to the month as a category"
        )
    try:
        levels = sorted(distinct)
    except TypeError:  # values of several types
        levels = sorted(distinct, key=str)
    if len(levels) < 2:
        raise ValueError(
            f"column {name!r} expects at least two different values, got {len(levels)}: leave it "
            "out, there is nothing to model"
        )
    plain = np.array(observed)
    kind = guess_kind(name, plain, levels) if kind is None else kind
    dtype = _dtype_name(values, plain, raw)
    if kind in ("binary", "category"):
        return Column(name, kind, levels=tuple(levels), dtype=dtype)
    numbers = as_numbers(name, np.array(observed, dtype=object))
    check_finite(name, numbers)
    dtype = dtype if plain.dtype.kind in "iuf" else ""
    if kind == "number":
        shift, scale = float(numbers.mean()), float(numbers.std())
        return Column(name, kind, shift=shift, scale=scale, dtype=dtype)
    if kind == "positive" and numbers.min() <= 0:
        raise ValueError(f"column {name!r} expects positive numbers, got {numbers.min():g}")
    if kind == "count" and (numbers.min() < 0 or (numbers != np.round(numbers)).any()):
        raise ValueError(
            f"column {name!r} expects counts, integers >= 0, got "
            f"{numbers.min():g}..{numbers.max():g}: declare it a number"
        )
    scale = float(np.exp(np.log(numbers).mean()) if kind == "positive" else numbers.mean())
    return Column(name, kind, scale=scale, dtype=dtype, initial=initial_value(kind, numbers))


def _dtype_name(values: Array, plain: Array, raw: Any) -> str:
    """Return the ``dtype`` of a column; ``plain`` are the observed values in a type of NumPy."""
    foreign = pandas_dtype(raw)
    if foreign is not None and str(foreign) not in ("category", "str"):
        return f"{PANDAS}{foreign}"  # pandas itself reads text as str
    dtype = plain.dtype if values.dtype == object else values.dtype
    if dtype.kind in "iuf":
        return str(dtype.name)
    return "object" if getattr(raw, "dtype", None) == np.dtype(object) else ""


def to_tensor(table: Any, columns: Sequence[Column]) -> Tensor:
    """Return a table as a tensor ``(N, D)``, with NaN for missing values.

    Its dtype is torch's default one, or float64 if that one rounds a value.
    """
    arrays = named_columns(table)
    if isinstance(table, (np.ndarray, Tensor)) and len(arrays) == len(columns):
        arrays = dict(zip((column.name for column in columns), arrays.values(), strict=True))
    missing = [column.name for column in columns if column.name not in arrays]
    if missing:
        raise ValueError(f"the table expects columns {missing}, got only {list(arrays)}")
    encoded = [_encode(column, arrays[column.name]) for column in columns]
    exact = torch.from_numpy(np.stack(encoded, 1))
    x = exact.to(torch.get_default_dtype())
    errors = (x - exact).abs().nan_to_num().numpy().max(0, initial=0).tolist()
    for column, error in zip(columns, errors, strict=True):
        if error > (0 if column.levels else 1e-3 * column.scale):
            raise ValueError(
                f"column {column.name!r} expects values that {x.dtype} can hold, got a rounding "
                f"error of up to {error:g}: subtract an origin, or use float64 as default dtype"
            )
    return exact if any(errors) else x


def _encode(column: Column, values: Array) -> Array:
    present = is_present(values)
    result = np.full(len(values), np.nan)
    if not column.levels:
        result[present] = as_numbers(column.name, values[present])
        return result
    index = {level: i for i, level in enumerate(column.levels)}
    observed = values[present].tolist()
    if unknown := {value for value in observed if value not in index}:
        raise ValueError(
            f"column {column.name!r} expects levels in {list(column.levels)}, got "
            f"{sorted(map(str, unknown))}: mark them as missing, or add them to the column's levels"
        )
    result[present] = [index[value] for value in observed]
    return result


def to_arrays(x: Tensor, columns: Sequence[Column]) -> dict[str, Any]:
    """Return the columns of a tensor ``(N, D)`` by name, with levels instead of their indices."""
    if x.dim() != 2 or x.shape[1] != len(columns):
        raise ValueError(f"to_arrays expects a tensor (N, {len(columns)}), got {tuple(x.shape)}")
    matrix = x.detach().cpu().double().numpy()
    return {column.name: _decode(column, matrix[:, i]) for i, column in enumerate(columns)}


def _decode(column: Column, values: Array) -> Any:
    missing = np.isnan(values)
    dtype = column.numeric_dtype if column.dtype or not column.levels else None
    if column.levels:
        codes = np.where(missing, -1, np.round(values))
        if (codes >= len(column.levels)).any() or (codes[~missing] < 0).any():
            raise ValueError(
                f"column {column.name!r} expects indices of {len(column.levels)} levels, got "
                f"{np.nanmin(values):g}..{np.nanmax(values):g}"
            )
        entries: Array = np.array([*column.levels, None], dtype=object)[codes.astype(int)]
    elif dtype is not None and dtype.kind in "iu":
        lowest = 1 if column.kind == "positive" else -np.inf
        entries = _rounded(np.maximum(values, lowest), dtype).astype(object)
        entries[missing] = None
    else:
        entries = np.array(values)
    if column.dtype.startswith(PANDAS):
        return _as_pandas(column, entries)
    if column.dtype == "object" or entries.dtype != object:
        return entries.astype(column.dtype or np.float64)
    has_none = missing.any() and (dtype is None or dtype.kind in "iu")
    one_type = len({type(level) for level in column.levels}) <= 1
    return entries if has_none or not one_type else np.array(entries.tolist(), dtype=dtype)


def _rounded(values: Array, dtype: "np.dtype[Any]") -> Array:
    """Return integers, zero for NaN, within the range of their type."""
    limits = np.iinfo(dtype)
    highest = min(limits.max, np.nextafter(float(limits.max) + 1, 0))  # 2**63 is no int64
    integers: Array = np.clip(np.round(np.nan_to_num(values)), limits.min, highest).astype(dtype)
    return integers


def _as_pandas(column: Column, entries: Array) -> Any:
    """Return a column as an array of pandas, or of NumPy if pandas is not installed."""
    try:
        pandas = import_module("pandas")
    except ImportError:
        return entries
    name = column.dtype.removeprefix(PANDAS)
    if name.startswith("category"):
        is_ordered = column.dtype == ORDERED
        return pandas.Categorical(entries, categories=list(column.levels), ordered=is_ordered)
    return pandas.array(entries.tolist(), dtype=name)
