"""Tables of other libraries as arrays of NumPy by column."""

from collections.abc import Iterable
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Array: TypeAlias = "np.ndarray[Any, Any]"


def named_columns(table: Any) -> dict[str, Array]:
    """Return the columns of a matrix, a mapping of names to columns, or a DataFrame, by name."""
    columns = {name: _as_array(name, values) for name, values in raw_columns(table).items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"a table expects columns of one length, got {lengths}")
    return columns


def raw_columns(table: Any) -> dict[str, Any]:
    """Return the columns of a table by name, as they are."""
    if isinstance(table, (np.ndarray, Tensor)):
        if table.ndim != 2:
            shape = tuple(table.shape)
            raise ValueError(f"a table expects an array (N, D), got one of shape {shape}")
        return {f"x{i}": values for i, values in enumerate(table.T)}
    columns: dict[str, Any] = {}
    for name, values in _items(table):
        if name is None:
            raise ValueError("a table expects columns with names, got None: rename it")
        if str(name) in columns:
            raise ValueError(
                f"a table expects columns with different names, got two of {str(name)!r}: rename "
                "one of them"
            )
        columns[str(name)] = values
    return columns


def column_keys(table: Any) -> dict[str, Any]:
    """Return the names that are not strings, by their text."""
    if isinstance(table, (np.ndarray, Tensor)):
        return {}
    names = [name for name, _ in _items(table)]
    return {str(name): _plain(name) for name in names if not isinstance(name, str)}


def _plain(name: Any) -> Any:
    """Return a name with numbers of Python in place of NumPy's."""
    if isinstance(name, tuple):
        return tuple(map(_plain, name))
    return name.item() if isinstance(name, np.generic) else name


def is_storable(level: Any) -> bool:
    """Return True if a file can hold a level."""
    is_finite = isinstance(level, float) and bool(np.isfinite(level))
    return is_finite or isinstance(level, (int, str))


def is_storable_key(key: Any) -> bool:
    """Return True if a file can hold the name of a column, which is None if it is a string."""
    return (
        key is None or is_storable(key) or (isinstance(key, tuple) and all(map(is_storable, key)))
    )


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
    if getattr(pandas_dtype(values), "tz", None) is not None:  # UTC, without a zone
        return np.asarray(import_module("pandas").Series(values).dt.tz_convert(None).to_numpy())
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype is torch.bfloat16 else values).numpy()
    try:
        array: Array = np.asarray(values)
    except ValueError:  # lists of several lengths
        array = np.empty((0, 0))
    if array.ndim != 1:
        raise ValueError(
            f"column {name!r} expects one value per row, got arrays in its rows: make a column of "
            "each entry"
        )
    # Numpy has converted None, NaN and numbers next to strings into strings, and missing integers
    # of pandas into NaN.
    is_text = array.dtype.kind in "US" and not isinstance(values, np.ndarray)
    is_integer = getattr(pandas_dtype(values), "kind", "") in ("i", "u")
    return np.asarray(values, dtype=object) if is_text or is_integer else array


def pandas_dtype(values: Any) -> Any:
    """Return the dtype of a pandas column if it is not one of NumPy, else None."""
    dtype = getattr(values, "dtype", None)
    return dtype if type(dtype).__module__.startswith("pandas") else None


def is_present(values: Array) -> Array:
    """Return a boolean array, true for values that are not None, NaN or NA."""
    if values.dtype.kind in "biuSU":
        return np.ones(len(values), dtype=bool)
    if values.dtype.kind == "f":
        return np.logical_not(np.isnan(values))
    if values.dtype.kind in "mM":
        return np.logical_not(np.isnat(values))
    # NaN differs from itself. Comparing pandas' NA gives NA, not a boolean.
    pairs = ((value, value == value) for value in values)
    present = (v is not None and isinstance(e, (bool, np.bool_)) and bool(e) for v, e in pairs)
    return np.fromiter(present, dtype=bool, count=len(values))


def check_finite(name: str, values: Array) -> None:
    """Raise if a number of a column is infinite, or their variance exceeds float64."""
    if not np.isfinite(values).all():
        raise ValueError(
            f"column {name!r} expects finite numbers, got infinity: mark it as missing, or drop "
            "the rows"
        )
    spread = float(values.max() / 4 - values.min() / 4) if len(values) else 0.0
    if spread and not 1e-140 < spread < 1e140:
        raise ValueError(
            f"column {name!r} expects numbers whose variance float64 can hold, got a range of "
            f"{4 * spread:g}: rescale them"
        )


def as_numbers(name: str, values: Array) -> Array:
    """Return the values of column ``name`` as float64, or raise if that changes an integer."""
    try:
        numbers: Array = values.astype(np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"column {name!r} expects numbers, got values such as {values.tolist()[0]!r}: declare "
            f"it a category, kinds={{{name!r}: 'category'}}"
        ) from None
    if values.dtype.kind == "f":
        return numbers
    pairs = zip(values.tolist(), numbers.tolist(), strict=True)
    if rounded := [value for value, number in pairs if isinstance(value, int) and value != number]:
        raise ValueError(
            f"column {name!r} expects integers that float64 can hold, up to 2**53, got "
            f"{rounded[0]}: subtract an origin, or declare it a category"
        )
    return numbers
