"""Conversions between tables and tensors.

The tensor ``(N, D)`` of a table holds the modeled columns: numbers unchanged, levels as their
index, dates as steps from the first one, and missing values as NaN.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tinyvae.likelihoods.columns import ORDERED, PANDAS, Column
from tinyvae.likelihoods.dates import (
    PYTHON_NAMES,
    as_column,
    as_dates,
    from_steps,
    is_date_dtype,
    ticks,
    to_steps,
)
from tinyvae.likelihoods.tables import Array, as_numbers, is_present, named_columns, raw_columns


def to_tensor(
    table: Any, columns: Sequence[Column], *, unknown: Literal["raise", "missing"] = "raise"
) -> Tensor:
    """Return a table as a tensor ``(N, D)``, with NaN for missing values.

    Its dtype is torch's default one, or float64 if that one rounds a value.
    """
    if unknown not in ("raise", "missing"):
        raise ValueError(f"to_tensor expects unknown='raise' or 'missing', got {unknown!r}")
    arrays = _arrays(table, columns)
    modeled = [column for column in columns if column.is_modeled]
    if absent := [column.name for column in modeled if column.name not in arrays]:
        raise ValueError(f"the table expects columns {absent}, got only {list(arrays)}")
    encoded = [_encode(column, arrays[column.name], unknown) for column in modeled]
    exact = torch.from_numpy(np.stack(encoded, 1))
    x = exact.to(torch.get_default_dtype())
    errors = (x - exact).abs().nan_to_num().numpy().max(0, initial=0).tolist()
    for column, error in zip(modeled, errors, strict=True):
        if error > (0 if column.has_levels else 1e-3 * column.scale):
            raise ValueError(
                f"column {column.name!r} expects values that {x.dtype} can hold, got a rounding "
                f"error of up to {error:g}: subtract an origin, or use float64 as default dtype"
            )
    return exact if any(errors) else x


def _arrays(table: Any, columns: Sequence[Column]) -> dict[str, Array]:
    """Return the columns of a table by name. A matrix has them in the order of ``columns``."""
    arrays = named_columns(table)
    if isinstance(table, (np.ndarray, Tensor)) and len(arrays) == len(columns):
        return dict(zip((column.name for column in columns), arrays.values(), strict=True))
    return arrays


def _encode(column: Column, values: Array, unknown: str) -> Array:
    present = is_present(values)
    result = np.full(len(values), np.nan)
    if column.kind == "date":
        if present.any():
            result[present] = _date_steps(column, values[present])
    elif column.has_levels:
        result[present] = _level_indices(column, values[present], unknown)
    else:
        result[present] = as_numbers(column.name, values[present])
    return result


def _date_steps(column: Column, values: Array) -> Array:
    dates, dtype = as_dates(column.name, values)
    expected = from_steps(np.zeros(1), column.origin, column.step, column.dtype).dtype
    if dates.dtype.kind != expected.kind:
        raise ValueError(
            f"column {column.name!r} expects {expected}, got {dtype}: convert it with astype"
        )
    return to_steps(column.name, ticks(dates.astype(expected)), column.origin, column.step)


def _level_indices(column: Column, values: Array, unknown: str) -> Array:
    levels = np.array(column.levels)
    if values.dtype.kind in "biuf" and levels.dtype.kind in "biuf":
        order = levels.argsort()
        nearest = order[levels.searchsorted(values, sorter=order).clip(max=len(levels) - 1)]
        indices = np.where(levels[nearest] == values, nearest.astype(np.float64), np.nan)
    else:
        index = {level: i for i, level in enumerate(column.levels)}
        listed = [index.get(value, np.nan) for value in values.tolist()]
        indices = np.array(listed, dtype=np.float64)
    if unknown == "raise" and (strange := set(values[np.isnan(indices)].tolist())):
        raise ValueError(
            f"column {column.name!r} expects levels in {list(column.levels)}, got "
            f"{sorted(map(str, strange))}: mark them as missing, with unknown='missing', or add "
            "them to the column's levels"
        )
    return indices


def to_arrays(x: Tensor, columns: Sequence[Column]) -> dict[Any, Any]:
    """Return the columns of a tensor ``(N, D)`` by name, with levels instead of their indices."""
    modeled = [column for column in columns if column.is_modeled]
    if x.dim() != 2 or x.shape[1] != len(modeled):
        raise ValueError(f"to_arrays expects a tensor (N, {len(modeled)}), got {tuple(x.shape)}")
    matrix = iter(x.detach().cpu().double().numpy().T)
    arrays = {}
    for column in columns:
        if column.kind == "constant":
            arrays[column.label] = _repeat(column, len(x))
        elif column.is_modeled:
            arrays[column.label] = _decode(column, next(matrix))
    return arrays


def to_frame(x: Tensor, columns: Sequence[Column], *, index: Any = None) -> Any:
    """Return :func:`to_arrays` as a DataFrame of pandas."""
    try:
        pandas = import_module("pandas")
    except ImportError:
        raise ImportError(
            "to_frame expects pandas: install it with pip install pandas, or use to_arrays"
        ) from None
    arrays = to_arrays(x, columns)
    types = ("object", *PYTHON_NAMES)
    objects = {column.label for column in columns if column.dtype in types}
    values = [
        pandas.Series(array, dtype=object) if label in objects else array
        for label, array in arrays.items()  # pandas reads text as str, unless told otherwise
    ]
    frame = pandas.DataFrame(dict(enumerate(values)))
    frame.index = frame.index if index is None else index
    frame.columns = pandas.Index(list(arrays))  # a MultiIndex if all names are tuples
    return frame


def _repeat(column: Column, num_rows: int) -> Any:
    """Return a constant column."""
    missing = np.full(num_rows, not column.levels)
    if is_date_dtype(column.dtype):
        origin = column.levels[0] if column.levels else 0
        return as_column(
            from_steps(np.zeros(num_rows), origin, 1, column.dtype), missing, column.dtype
        )
    value = column.levels[0] if column.levels else None
    entries: Array = np.empty(num_rows, dtype=object)
    entries[:] = value
    return _typed(column, entries, missing)


def _decode(column: Column, values: Array) -> Any:
    missing = np.isnan(values)
    if column.kind == "date":
        dates = from_steps(values, column.origin, column.step, column.dtype)
        return as_column(dates, missing, column.dtype)
    if column.has_levels:
        codes = np.where(missing, -1, np.round(values))
        if (codes >= len(column.levels)).any() or (codes[~missing] < 0).any():
            raise ValueError(
                f"column {column.name!r} expects indices of {len(column.levels)} levels, got "
                f"{np.nanmin(values):g}..{np.nanmax(values):g}"
            )
        entries: Array = np.array([*column.levels, None], dtype=object)[codes.astype(int)]
    else:
        entries = _rounded(column, values) if column.is_rounded else np.array(values)
        if (dtype := column.numeric_dtype) is not None and dtype.kind in "iu":
            entries = _as_integers(entries, dtype).astype(object)
            entries[missing] = None
    return _typed(column, entries, missing)


def _typed(column: Column, entries: Array, missing: Array) -> Any:
    """Return entries in the type of the column."""
    if column.dtype.startswith(PANDAS):
        return _as_pandas(column, entries)
    if column.dtype == "object" or entries.dtype != object:
        return entries.astype(column.dtype or np.float64)
    dtype = column.numeric_dtype if column.dtype or not column.levels else None
    has_none = missing.any() and (dtype is None or dtype.kind in "iu")
    one_type = len({type(level) for level in column.levels}) <= 1
    ends_in_null = any(str(level).endswith("\0") for level in column.levels)  # NumPy drops it
    if has_none or not one_type or ends_in_null:
        return entries
    return np.array(entries.tolist(), dtype=dtype)


def _rounded(column: Column, values: Array) -> Array:
    """Return whole numbers that the likelihood of the column can hold."""
    whole: Array = np.round(values)
    if "positive" in (column.kind, column.rest):
        whole = np.where(np.isin(whole, column.points), whole, np.maximum(whole, 1))
    if column.kind == "bounded":
        low, high = column.bounds
        whole = np.clip(whole, low + (low not in column.points), high - (high not in column.points))
    return whole


def _as_integers(whole: Array, dtype: "np.dtype[Any]") -> Array:
    """Return whole numbers in a type of integers, zero for NaN."""
    limits = np.iinfo(dtype)
    highest = min(limits.max, np.nextafter(float(limits.max) + 1, 0))  # 2**63 is no int64
    integers: Array = np.clip(np.nan_to_num(whole), limits.min, highest).astype(dtype)
    return integers


def _as_pandas(column: Column, entries: Array) -> Any:
    """Return a column as an array of pandas, or of NumPy if pandas is not installed."""
    try:
        pandas = import_module("pandas")
    except ImportError:
        return entries
    name = column.dtype.removeprefix(PANDAS)
    if name.startswith("category"):
        levels = pandas.Index(list(column.levels), dtype=name.partition(" of ")[2] or None)
        is_ordered = column.dtype.startswith(ORDERED)
        return pandas.Categorical(entries, categories=levels, ordered=is_ordered)
    return pandas.array(entries.tolist(), dtype=name)


def fill(table: Any, x: Tensor, columns: Sequence[Column]) -> Any:
    """Return a copy of a table in which entries of ``x`` replace the missing ones."""
    arrays, filled = _arrays(table, columns), to_arrays(x, columns)
    replacements: dict[str, tuple[Array, Any]] = {}
    for column in columns:
        missing = ~is_present(arrays[column.name]) if column.name in arrays else np.zeros(0, bool)
        if missing.any() and column.label in filled and (column.is_modeled or column.levels):
            if len(missing) != len(x):
                raise ValueError(
                    f"fill expects a tensor of {len(missing)} rows, as the table has, got {len(x)}"
                )
            replacements[column.name] = (missing, filled[column.label])
    if isinstance(table, (np.ndarray, Tensor)):
        result = table.clone() if isinstance(table, Tensor) else table.copy()
        for index, column in enumerate(columns):
            if column.name in replacements:
                result[:, index] = _filled(result[:, index], *replacements[column.name])
        return result
    if type(table).__module__.startswith("pandas"):
        frame = table.copy()
        for index, label in enumerate(table.columns):
            if str(label) in replacements:
                series = table.iloc[:, index]
                array = _filled(series.array, *replacements[str(label)])
                series = type(series)(array, index=series.index, dtype=series.dtype)
                frame.isetitem(index, series)
        return frame
    names = dict(zip(raw_columns(table), table, strict=True))
    changed = {
        names[name]: _filled(table[names[name]], *pair) for name, pair in replacements.items()
    }
    return {label: changed.get(label, values) for label, values in table.items()}


def _filled(values: Any, missing: Array, replacement: Any) -> Any:
    """Return a copy of a column with other missing entries, in the type that it has."""
    if isinstance(values, (list, tuple)):
        pairs = zip(values, missing.tolist(), list(replacement), strict=True)
        entries = [_python(new) if gone else value for value, gone, new in pairs]
        return type(values)(entries)
    if isinstance(values, Tensor):
        new = torch.as_tensor(np.asarray(replacement, dtype=np.float64), dtype=values.dtype)
        mask = torch.from_numpy(missing).to(values.device)
        return torch.where(mask, new.to(values.device), values)
    result = values.copy()
    result[missing] = replacement[missing]
    return result


def _python(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
