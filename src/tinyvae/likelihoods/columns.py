"""TabularDistribution of a table: what they hold, and the way from a table to a tensor and back.

A tensor ``(N, D)`` of a table has numbers as they are, the index of its level in the place of a
category, and NaN where a value is missing.
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
        name: Its name.
        kind: ``"number"``, a real number; ``"positive"``, a positive one, such as an amount;
            ``"count"``; ``"binary"``, one of two levels; ``"category"``, one of several.
        levels: The values of a binary or categorical column, in the order of their indices.
        shift: What is subtracted from a number to standardize it.
        scale: By what a number or a positive number is divided then; of a count, its baseline.
    """

    name: str
    kind: Kind
    levels: tuple[Any, ...] = ()
    shift: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_kind(self.name, self.kind)
        plain = isinstance(self.levels, (tuple, list)) and all(map(_is_plain, self.levels))
        if not plain or len(set(self.levels)) < len(self.levels):
            raise ValueError(
                f"column {self.name!r}: expected a tuple of different levels, texts or finite "
                f"numbers, got {self.levels!r}: turn others into text, str(level)"
            )
        fewest = {"binary": 2, "category": 2}.get(self.kind, 0)
        if len(self.levels) < fewest or (self.kind != "category" and len(self.levels) != fewest):
            raise ValueError(
                f"column {self.name!r}: a {self.kind} column has "
                f"{'two or more' if self.kind == 'category' else fewest or 'no'} levels, "
                f"got {len(self.levels)}"
            )
        if not (np.isfinite(self.shift) and np.isfinite(self.scale) and self.scale > 0):
            raise ValueError(
                f"column {self.name!r}: expected a finite shift and a finite scale > 0, got "
                f"{self.shift} and {self.scale}"
            )


def _is_plain(level: Any) -> bool:
    """Whether a file can hold a level."""
    return isinstance(level, (bool, int, str)) or (
        isinstance(level, float) and bool(np.isfinite(level))
    )


def named_columns(table: Any) -> dict[str, Array]:
    """Take a table apart: a matrix, a mapping of names to columns, or a DataFrame."""
    if isinstance(table, (np.ndarray, Tensor)):
        matrix = np.asarray(table)
        if matrix.ndim != 2:
            raise ValueError(f"expected a table (N, D), got an array of shape {matrix.shape}")
        return {f"x{i}": matrix[:, i] for i in range(matrix.shape[1])}
    columns: dict[str, Array] = {}
    for name, values in _items(table):
        if str(name) in columns:
            raise ValueError(f"expected columns of different names, got two of {str(name)!r}")
        columns[str(name)] = _as_array(str(name), values)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"expected columns of one length, got {lengths}")
    return columns


def _items(table: Any) -> Iterable[tuple[Any, Any]]:
    try:
        return list(table.items())
    except AttributeError:
        raise TypeError(
            f"expected a table as a DataFrame, a dictionary of columns or a matrix (N, D), got a "
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
            f"column {name!r}: expected one value per row, got an array of shape {array.shape}"
        )
    if array.dtype.kind in "US" and not isinstance(values, np.ndarray):
        # Numpy has turned None, NaN and numbers beside text into text.
        return np.asarray(values, dtype=object)
    return array


def infer_columns(table: Any, kinds: Mapping[str, Kind] | None = None) -> list[Column]:
    """Describe the columns of a table.

    A column of two levels is binary; of text or other objects, or of pandas' categorical dtype, a
    category; of integers, none of them negative, a count; of other numbers a number.
    Standardization is that of what is there.

    Args:
        table: DataFrame, dictionary of columns or matrix ``(N, D)``.
        kinds: What a column is, by name, where that differs.

    Raises:
        ValueError: If a column is empty, constant, or not what ``kinds`` says.
    """
    columns = named_columns(table)
    dtypes = {} if isinstance(table, (np.ndarray, Tensor)) else _dtypes(table)
    kinds = {str(name): kind for name, kind in (kinds or {}).items()}
    if unknown := kinds.keys() - columns.keys():
        raise ValueError(f"kinds names {sorted(unknown)}, expected columns of {list(columns)}")
    for name, kind in kinds.items():
        _check_kind(name, kind)
    return [
        _infer(name, values, kinds.get(name), dtypes.get(name)) for name, values in columns.items()
    ]


def _dtypes(table: Any) -> dict[str, Any]:
    """What the columns say of themselves: pandas' dtypes know of levels and of integers."""
    return {str(name): getattr(values, "dtype", None) for name, values in _items(table)}


def _check_kind(name: str, kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"column {name!r}: expected a kind of {KINDS}, got {kind!r}")


def _infer(name: str, values: Array, kind: Kind | None, dtype: Any) -> Column:
    declared = getattr(dtype, "categories", None)
    if kind in (None, "category", "binary") and declared is not None:
        return Column(name, kind or "category", levels=tuple(declared.tolist()))
    if values.dtype.kind in "mM":
        raise ValueError(
            f"column {name!r} holds dates or durations, expected numbers or categories: give days "
            "since a date, say, or the month as a category"
        )
    there = values[_is_present(values)]
    levels = _levels(there)
    if len(levels) < 2:
        raise ValueError(
            f"column {name!r} has {len(levels)} different value(s), expected at least two: leave "
            "it out, there is nothing to model"
        )
    if kind is None:
        integers = getattr(dtype, "kind", "") in ("i", "u")  # of pandas, where values are missing
        plain = np.array(there.tolist())
        kind = _guess(plain.astype(int) if integers else plain, levels)
    if kind in ("binary", "category"):
        return Column(name, kind, levels=tuple(levels))
    numbers = _as_numbers(name, there)
    if not np.isfinite(numbers).all():
        raise ValueError(f"column {name!r} holds infinity: mark it as missing, or drop the rows")
    if kind == "number":
        return Column(name, kind, shift=float(numbers.mean()), scale=float(numbers.std()))
    if kind == "positive":
        if numbers.min() <= 0:
            raise ValueError(f"column {name!r}: positive numbers expected, got {numbers.min():g}")
        return Column(name, kind, scale=float(np.exp(np.log(numbers).mean())))
    if numbers.min() < 0 or (numbers != np.round(numbers)).any():
        raise ValueError(
            f"column {name!r}: counts are integers >= 0, got {numbers.min():g}..{numbers.max():g}: "
            "call it a number"
        )
    return Column(name, kind, scale=float(numbers.mean()))


def _guess(there: Array, levels: Sequence[Any]) -> Kind:
    if len(levels) == 2:
        return "binary"
    if there.dtype.kind not in "fiu":
        return "category"
    return "count" if there.dtype.kind in "iu" and there.min() >= 0 else "number"


def to_tensor(table: Any, columns: Sequence[Column]) -> Tensor:
    """Tensor ``(N, D)`` of a table, NaN where a value is missing.

    Raises:
        ValueError: If a column or a level is unknown.
    """
    arrays = named_columns(table)
    if isinstance(table, (np.ndarray, Tensor)) and len(arrays) == len(columns):
        arrays = dict(zip((column.name for column in columns), arrays.values(), strict=True))
    missing = [column.name for column in columns if column.name not in arrays]
    if missing:
        raise ValueError(f"the table has no columns {missing}, it has {list(arrays)}")
    encoded = [_encode(column, arrays[column.name]) for column in columns]
    exact = torch.from_numpy(np.stack(encoded, 1))
    x = exact.to(torch.get_default_dtype())
    for column, error in zip(columns, (x - exact).abs().nan_to_num().amax(0).tolist(), strict=True):
        if error > (1e-3 * column.scale if column.kind in ("number", "positive") else 0):
            raise ValueError(
                f"column {column.name!r}: {x.dtype} rounds its values by up to {error:g}: subtract "
                "an origin, or work in torch.set_default_dtype(torch.float64)"
            )
    return x


def _encode(column: Column, values: Array) -> Array:
    there = _is_present(values)
    result = np.full(len(values), np.nan)
    if not column.levels:
        result[there] = _as_numbers(column.name, values[there])
        return result
    index = {level: i for i, level in enumerate(column.levels)}
    present = values[there].tolist()
    if unknown := {value for value in present if value not in index}:
        raise ValueError(
            f"column {column.name!r} has unknown levels {sorted(map(str, unknown))}, expected of "
            f"{list(column.levels)}: mark them as missing, or describe the column anew"
        )
    result[there] = [index[value] for value in present]
    return result


def to_arrays(x: Tensor, columns: Sequence[Column]) -> dict[str, Array]:
    """TabularDistribution by name of a tensor ``(N, D)``, with levels in the place of their indices."""
    if x.dim() != 2 or x.shape[1] != len(columns):
        raise ValueError(f"expected a tensor (N, {len(columns)}), got {tuple(x.shape)}")
    matrix = x.detach().cpu().double().numpy()
    return {column.name: _decode(column, matrix[:, i]) for i, column in enumerate(columns)}


def _decode(column: Column, values: Array) -> Array:
    if not column.levels:
        return np.array(values)
    values = np.round(values)
    if (values < 0).any() or (values >= len(column.levels)).any():
        raise ValueError(
            f"column {column.name!r}: expected indices of {len(column.levels)} levels, got "
            f"{np.nanmin(values):g}..{np.nanmax(values):g}"
        )
    levels: Array = np.array([*column.levels, None], dtype=object)  # None: missing
    if np.isnan(values).any():
        with_holes: Array = levels[np.where(np.isnan(values), -1, values).astype(int)]
        return with_holes
    chosen: Array = levels[values.astype(int)]
    one_type = len({type(level) for level in column.levels}) == 1
    return np.array(chosen.tolist()) if one_type else chosen


def _levels(there: Array) -> list[Any]:
    distinct = set(there.tolist())
    try:
        return sorted(distinct)
    except TypeError:
        return sorted(distinct, key=str)


def _is_present(values: Array) -> Array:
    if values.dtype.kind in "biuSU":
        return np.ones(len(values), dtype=bool)
    if values.dtype.kind == "f":
        return np.logical_not(np.isnan(values))
    return np.fromiter(_each_is_present(values), dtype=bool, count=len(values))


def _each_is_present(values: Iterable[Any]) -> Iterable[bool]:
    for value in values:
        # NaN differs from itself, and pandas' NA makes no boolean of the comparison.
        equal = value == value
        yield value is not None and isinstance(equal, (bool, np.bool_)) and bool(equal)


def _as_numbers(name: str, values: Array) -> Array:
    try:
        numbers: Array = values.astype(np.float64)
        return numbers
    except (TypeError, ValueError):
        raise ValueError(
            f"column {name!r} expects numbers, got {values.tolist()[0]!r} and the like: call it a "
            f"category, kinds={{{name!r}: 'category'}}"
        ) from None
