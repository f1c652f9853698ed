"""Tables that users pass, by column, and tables of the same type that they get back."""

import sys
from datetime import date, time, timedelta
from typing import Any, TypeAlias

import numpy as np
from sklearn.base import BaseEstimator


Array: TypeAlias = "np.ndarray[Any, Any]"
ENTRIES = (str, bytes, bool, int, float, np.generic, date, time, timedelta, type(None))


def is_frame(data: Any) -> bool:
    """Return True for a DataFrame of pandas, which is imported if there is one."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(data, pandas.DataFrame)


def validate_table(estimator: BaseEstimator, data: Any, *, reset: bool, min_rows: int = 1) -> Any:
    """Return a table as a DataFrame or an array ``(N, D)`` after scikit-learn's checks.

    With ``reset``, the estimator stores the number and the names of the columns.

    Raises:
        TypeError: If the table is sparse, or an entry is no number, string, date or boolean.
        ValueError: If the table is empty, has infinite or complex entries, or other columns than
            those that were fitted.
    """
    if not is_frame(data):
        options = {"dtype": None, "ensure_min_samples": min_rows, FINITE: "allow-nan"}
        data = _validate(estimator, data, reset=reset, **options)
        data = data.astype(object) if data.dtype.kind in "US" else data
        _check_entries(estimator, "the array", data.ravel())
        return data
    name, labels = type(estimator).__name__, [str(label) for label in data.columns]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(
            f"{name} expects columns with different names, got several of {repeated}: rename them"
        )
    for axis, kind, least in ((0, "sample", min_rows), (1, "feature", 1)):
        if data.shape[axis] < least:
            raise ValueError(
                f"Found array with {data.shape[axis]} {kind}(s) (shape={data.shape}) while a "
                f"minimum of {least} is required by {name}."
            )
    for label, column in data.items():
        if str(column.dtype).startswith("Sparse"):
            raise TypeError(
                f"{name} expects dense columns, got sparse ones such as {label!r}: use "
                "X.sparse.to_dense()"
            )
        _check_entries(estimator, f"column {label!r}", column.to_numpy())
    _validate(estimator, data, reset=reset, **NO_CHECK_ARRAY)
    return data


def _check_entries(estimator: BaseEstimator, where: str, values: Array) -> None:
    name = type(estimator).__name__
    if values.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: {name} got complex numbers in {where}")
    if values.dtype.kind == "f" and np.isinf(values).any():
        raise ValueError(
            f"Input X contains infinity: {name} expects finite numbers in {where}, so mark such "
            "entries as missing, or drop the rows"
        )
    if values.dtype.kind != "O":
        return
    for value in values:
        if not isinstance(value, ENTRIES) and type(value).__module__.partition(".")[0] != "pandas":
            raise TypeError(
                f"{name} got a {type(value).__name__} in {where}, but each entry as an argument "
                "must be a string, a number, a boolean or a date: convert it"
            )
        if isinstance(value, (float, np.floating)) and np.isinf(value):
            raise ValueError(f"Input X contains infinity: {name} expects finite numbers in {where}")


def columns_of(table: Any, names: list[str]) -> dict[str, Any]:
    """Return the columns of a validated table by name, objects of one type as NumPy has it."""
    if is_frame(table):
        return dict(zip(names, (column for _, column in table.items()), strict=True))
    columns = dict(zip(names, table.T, strict=True))
    if table.dtype != object:
        return columns
    return {name: plain(values) for name, values in columns.items()}


def plain(values: Array) -> Array:
    """Return objects as numbers if all of them are floats or missing, else unchanged."""
    kinds = {type(value) for value in values}
    floats = kinds <= {float, np.float64, np.float32, type(None)}
    return values.astype(np.float64) if floats else values


def missing_entries(column: Any) -> Array:
    """Return a boolean array, true for None, NaN, NaT and NA."""
    from tinyvae.likelihoods.tables import is_present

    values = np.asarray(column, dtype=object if is_extension(column) else None)
    if values.dtype.kind in "mM":
        return np.isnat(values)
    return ~is_present(values)


def is_extension(column: Any) -> bool:
    """Return True for a column of a dtype that NumPy lacks."""
    return not isinstance(getattr(column, "dtype", None), np.dtype)


def fill_table(table: Any, missing: dict[int, Array], values: dict[int, Any]) -> Any:
    """Return a copy of a table with ``values`` at its missing entries, by position of the column.

    Observed entries, dtypes, names and index are unchanged.
    """
    if not is_frame(table):
        filled = table.copy()
        for index, mask in missing.items():
            filled[mask, index] = np.asarray(values[index], dtype=object)[mask]
        return filled
    columns = []
    for index in range(table.shape[1]):
        column = table.iloc[:, index].copy()
        if index in missing:
            mask = missing[index]
            column[mask] = as_column(values[index], column)[mask].to_numpy(dtype=object)
        columns.append(column)
    return join_columns(columns, table)


def as_column(values: Any, like: Any) -> Any:
    """Return values as a column of pandas with the dtype and the index of ``like``."""
    pandas = sys.modules["pandas"]
    if like.dtype.kind in "iu" and isinstance(values, np.ndarray):
        values = np.round(values.astype(np.float64))
    series = pandas.Series(values, index=like.index if len(like) == len(values) else None)
    return series.astype(like.dtype)


def join_columns(columns: list[Any], like: Any) -> Any:
    """Return a DataFrame of columns with the labels of ``like``."""
    frame = sys.modules["pandas"].concat(columns, axis=1)
    frame.columns = like.columns
    return frame


def build_table(values: dict[int, Any], template: Any, num_rows: int) -> Any:
    """Return a table of the type of ``template`` from the values of its columns, by position.

    A column without values is missing in all rows.
    """
    nothing = np.full(num_rows, np.nan)
    if is_frame(template):
        columns = []
        for index in range(template.shape[1]):
            like = template.iloc[:, index]
            if index in values:
                columns.append(as_column(values[index], like))
            else:
                column = sys.modules["pandas"].Series(np.full(num_rows, None, dtype=object))
                columns.append(column if like.dtype.kind in "iub" else column.astype(like.dtype))
        return join_columns(columns, template)
    kind = template.dtype.kind
    if kind == "O":
        columns = [np.asarray(values.get(i, nothing), object) for i in range(template.shape[1])]
        return np.stack(columns, 1)
    columns = [np.asarray(values.get(i, nothing), float) for i in range(template.shape[1])]
    matrix = np.stack(columns, 1)
    matrix = np.round(matrix) if kind in "iu" else matrix
    return matrix if kind in "iu" and np.isnan(matrix).any() else matrix.astype(template.dtype)


# Differences between versions of scikit-learn ------------------------------------------------------


try:  # scikit-learn 1.6
    from sklearn.utils.validation import validate_data as _validate

    FINITE, NO_CHECK_ARRAY = "ensure_all_finite", {"skip_check_array": True}
except ImportError:  # scikit-learn 1.5

    def _validate(estimator: Any, data: Any, **options: Any) -> Any:
        return estimator._validate_data(data, **options)

    FINITE, NO_CHECK_ARRAY = "force_all_finite", {"cast_to_ndarray": False}
