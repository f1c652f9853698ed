"""Columns of a table, and conversions between tables and tensors.

The tensor ``(N, D)`` of a table holds numbers unchanged, categories as the index of their level,
and missing values as NaN.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

Array: TypeAlias = "np.ndarray[Any, Any]"
Kind: TypeAlias = Literal["number", "positive", "count", "binary", "category"]
KINDS: tuple[Kind, ...] = ("number", "positive", "count", "binary", "category")


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
    """

    name: str
    kind: Kind
    levels: tuple[Any, ...] = ()
    shift: float = 0.0
    scale: float = 1.0

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


def _is_storable(level: Any) -> bool:
    """Return True if a file can hold a level."""
    is_finite = isinstance(level, float) and bool(np.isfinite(level))
    return is_finite or isinstance(level, (int, str))


def named_columns(table: Any) -> dict[str, Array]:
    """Return the columns of a matrix, a mapping of names to columns, or a DataFrame, by name."""
    if isinstance(table, (np.ndarray, Tensor)):
        matrix: Array = np.asanyarray(table.detach().cpu() if isinstance(table, Tensor) else table)
        if matrix.ndim != 2:
            raise ValueError(f"a table expects an array (N, D), got one of shape {matrix.shape}")
        return {f"x{i}": _as_array(f"x{i}", matrix[:, i]) for i in range(matrix.shape[1])}
    columns: dict[str, Array] = {}
    for name, values in _items(table):
        if str(name) in columns:
            raise ValueError(
                f"a table expects columns with different names, got two of {str(name)!r}"
            )
        columns[str(name)] = _as_array(str(name), values)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"a table expects columns of one length, got {lengths}")
    return columns


def _items(table: Any) -> Iterable[tuple[Any, Any]]:
    try:
        return list(table.items())
    except AttributeError:
        raise TypeError(
            f"a table must be a DataFrame, a dictionary of columns or a matrix (N, D), got a "
            f"{type(table).__name__}"
        ) from None


def _as_array(name: str, values: Any) -> Array:
    if isinstance(values, np.ma.MaskedArray):
        entries: Any = values.data.astype(object)
        entries[np.ma.getmaskarray(values)] = None
        return np.asarray(entries)
    array: Array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(
            f"column {name!r} expects one value per row, got an array of shape {array.shape}"
        )
    if array.dtype.kind in "US" and not isinstance(values, np.ndarray):
        # Numpy has converted None, NaN and numbers next to strings into strings.
        return np.asarray(values, dtype=object)
    return array


def infer_columns(table: Any, kinds: Mapping[str, Kind] | None = None) -> list[Column]:
    """Return descriptions of the columns of a table, see ``MixedLikelihood.from_table``."""
    columns = named_columns(table)
    dtypes = {}  # those of pandas hold levels and mark integers
    if not isinstance(table, (np.ndarray, Tensor)):
        dtypes = {str(name): getattr(values, "dtype", None) for name, values in _items(table)}
    kinds = {str(name): kind for name, kind in (kinds or {}).items()}
    if unknown := kinds.keys() - columns.keys():
        raise ValueError(f"kinds expects columns in {list(columns)}, got {sorted(unknown)}")
    for name, kind in kinds.items():
        _check_kind(name, kind)
    return [
        _infer(name, values, kinds.get(name), dtypes.get(name)) for name, values in columns.items()
    ]


def _check_kind(name: str, kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"column {name!r} expects a kind in {KINDS}, got {kind!r}")


def _infer(name: str, values: Array, kind: Kind | None, dtype: Any) -> Column:
    declared = getattr(dtype, "categories", None)
    if kind in (None, "category", "binary") and declared is not None:
        return Column(name, kind or "category", levels=tuple(declared.tolist()))
    if values.dtype.kind in "mM":
        raise ValueError(
            f"column {name!r} expects numbers or categories, got dates or durations: convert them, "
            "for example to days since a date, or to the month as a category"
        )
    observed = values[_is_present(values)]
    distinct = set(observed.tolist())
    try:
        levels = sorted(distinct)
    except TypeError:  # values of several types
        levels = sorted(distinct, key=str)
    if len(levels) < 2:
        raise ValueError(
            f"column {name!r} expects at least two different values, got {len(levels)}: leave it "
            "out, there is nothing to model"
        )
    if kind is None:
        integers = getattr(dtype, "kind", "") in ("i", "u")  # pandas' nullable integers
        plain = np.array(observed.tolist())
        kind = _guess(plain.astype(int) if integers else plain, levels)
    if kind in ("binary", "category"):
        return Column(name, kind, levels=tuple(levels))
    numbers = _as_numbers(name, observed)
    if not np.isfinite(numbers).all():
        raise ValueError(
            f"column {name!r} expects finite numbers, got infinity: mark it as missing, or drop "
            "the rows"
        )
    if kind == "number":
        return Column(name, kind, shift=float(numbers.mean()), scale=float(numbers.std()))
    if kind == "positive":
        if numbers.min() <= 0:
            raise ValueError(f"column {name!r} expects positive numbers, got {numbers.min():g}")
        return Column(name, kind, scale=float(np.exp(np.log(numbers).mean())))
    if numbers.min() < 0 or (numbers != np.round(numbers)).any():
        raise ValueError(
            f"column {name!r} expects counts, integers >= 0, got "
            f"{numbers.min():g}..{numbers.max():g}: declare it a number"
        )
    return Column(name, kind, scale=float(numbers.mean()))


def _guess(observed: Array, levels: Sequence[Any]) -> Kind:
    if len(levels) == 2:
        return "binary"
    if observed.dtype.kind not in "fiu":
        return "category"
    return "count" if observed.dtype.kind in "iu" and observed.min() >= 0 else "number"


def to_tensor(table: Any, columns: Sequence[Column]) -> Tensor:
    """Return a table as a tensor ``(N, D)``, with NaN for missing values."""
    arrays = named_columns(table)
    if isinstance(table, (np.ndarray, Tensor)) and len(arrays) == len(columns):
        arrays = dict(zip((column.name for column in columns), arrays.values(), strict=True))
    missing = [column.name for column in columns if column.name not in arrays]
    if missing:
        raise ValueError(f"the table expects columns {missing}, got only {list(arrays)}")
    encoded = [_encode(column, arrays[column.name]) for column in columns]
    exact = torch.from_numpy(np.stack(encoded, 1))
    x = exact.to(torch.get_default_dtype())
    for column, error in zip(columns, (x - exact).abs().nan_to_num().amax(0).tolist(), strict=True):
        if error > (1e-3 * column.scale if column.kind in ("number", "positive") else 0):
            raise ValueError(
                f"column {column.name!r} expects values that {x.dtype} can hold, got a rounding "
                f"error of up to {error:g}: subtract an origin, or use float64 as default dtype"
            )
    return x


def _encode(column: Column, values: Array) -> Array:
    present = _is_present(values)
    result = np.full(len(values), np.nan)
    if not column.levels:
        result[present] = _as_numbers(column.name, values[present])
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


def to_arrays(x: Tensor, columns: Sequence[Column]) -> dict[str, Array]:
    """Return the columns of a tensor ``(N, D)`` by name, with levels instead of their indices."""
    if x.dim() != 2 or x.shape[1] != len(columns):
        raise ValueError(f"to_arrays expects a tensor (N, {len(columns)}), got {tuple(x.shape)}")
    matrix = x.detach().cpu().double().numpy()
    return {column.name: _decode(column, matrix[:, i]) for i, column in enumerate(columns)}


def _decode(column: Column, values: Array) -> Array:
    if not column.levels:
        return np.array(values)
    values = np.round(values)
    if (values < 0).any() or (values >= len(column.levels)).any():
        raise ValueError(
            f"column {column.name!r} expects indices of {len(column.levels)} levels, got "
            f"{np.nanmin(values):g}..{np.nanmax(values):g}"
        )
    levels: Array = np.array([*column.levels, None], dtype=object)  # None: missing
    if np.isnan(values).any():
        with_missing: Array = levels[np.where(np.isnan(values), -1, values).astype(int)]
        return with_missing
    chosen: Array = levels[values.astype(int)]
    one_type = len({type(level) for level in column.levels}) == 1
    return np.array(chosen.tolist()) if one_type else chosen


def _is_present(values: Array) -> Array:
    if values.dtype.kind in "biuSU":
        return np.ones(len(values), dtype=bool)
    if values.dtype.kind == "f":
        return np.logical_not(np.isnan(values))
    # NaN differs from itself. Comparing pandas' NA gives NA, not a boolean.
    pairs = ((value, value == value) for value in values)
    present = (v is not None and isinstance(e, (bool, np.bool_)) and bool(e) for v, e in pairs)
    return np.fromiter(present, dtype=bool, count=len(values))


def _as_numbers(name: str, values: Array) -> Array:
    try:
        numbers: Array = values.astype(np.float64)
        return numbers
    except (TypeError, ValueError):
        raise ValueError(
            f"column {name!r} expects numbers, got values such as {values.tolist()[0]!r}: declare "
            f"it a category, kinds={{{name!r}: 'category'}}"
        ) from None
