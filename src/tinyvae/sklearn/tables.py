"""Tables that users pass: scikit-learn's checks, and columns by name."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator

from tinyvae.likelihoods.tables import Array

FLOATS = (type(None), float, np.floating)


def is_frame(data: Any) -> bool:
    """Return True for a DataFrame of pandas, which is imported if there is one."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(data, pandas.DataFrame)


def validate_table(estimator: BaseEstimator, data: Any, *, reset: bool, min_rows: int = 1) -> Any:
    """Return a table as a DataFrame or an array ``(N, C)`` after scikit-learn's checks.

    With ``reset``, the estimator stores the number and the names of the columns.

    Raises:
        TypeError: If the table is sparse or a dictionary, or an entry is a list or the like.
        ValueError: If the table is empty, has infinite or complex entries, or other columns than
            those that were fitted.
    """
    name = type(estimator).__name__
    if isinstance(data, (Mapping, str, Path)) and not issparse(data):  # a sparse one is a mapping
        remedy = "pandas.DataFrame(X)" if isinstance(data, Mapping) else "pandas.read_csv(X)"
        raise TypeError(
            f"{name} expects a DataFrame or an array, got a {type(data).__name__}: use {remedy}"
        )
    if not is_frame(data):
        options = {"dtype": None, "ensure_min_samples": min_rows, FINITE: "allow-nan"}
        array: Array = _validate(estimator, data, reset=reset, **options)
        array = array.astype(object) if array.dtype.kind in "US" else array
        _check_entries(name, "the array", array.ravel())
        return array
    labels = [str(label) for label in data.columns]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(
            f"{name} expects columns with different names, got several of {repeated}: rename them"
        )
    for axis, kind, least in ((0, "sample", min_rows), (1, "feature", 1)):
        if data.shape[axis] < least:
            raise ValueError(  # the words of scikit-learn, for its users and checks
                f"Found array with {data.shape[axis]} {kind}(s) (shape={data.shape}) while a "
                f"minimum of {least} is required by {name}."
            )
    for label, column in data.items():
        if str(column.dtype).startswith("Sparse"):
            raise TypeError(
                f"{name} expects dense columns, got sparse ones such as {label!r}: use "
                "X.sparse.to_dense()"
            )
        _check_entries(name, f"column {label!r}", column.to_numpy())
    _validate(estimator, data, reset=reset, **NO_CHECK_ARRAY)
    return data


def _check_entries(name: str, where: str, values: Array) -> None:
    if values.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: {name} got complex numbers in {where}")
    is_infinite = values.dtype.kind == "f" and bool(np.isinf(values).any())
    for value in values if values.dtype.kind == "O" else ():
        if type(value).__hash__ is None:
            raise TypeError(
                f"{name} got a {type(value).__name__} in {where}, but each entry as an argument "
                "must be a string, a number, a boolean or a date: convert it"
            )
        is_infinite |= isinstance(value, (float, np.floating)) and bool(np.isinf(value))
    if is_infinite:
        raise ValueError(
            f"Input X contains infinity: {name} expects finite numbers in {where}, so mark such "
            "entries as missing, or drop the rows"
        )


def columns_of(table: Any) -> dict[Any, Any]:
    """Return the columns of a validated table by label, ``x0``, ``x1``, ... for an array."""
    if is_frame(table):
        return dict(table.items())
    return {f"x{index}": _plain(values) for index, values in enumerate(table.T)}


def _plain(values: Array) -> Array:
    """Return objects as floats if all of them are floats or missing, else unchanged."""
    if values.dtype != object or not all(isinstance(value, FLOATS) for value in values):
        return values
    return values.astype(np.float64)


# Differences between versions of scikit-learn -----------------------------------------------------


try:
    from sklearn.utils.validation import validate_data as _validate

    FINITE, NO_CHECK_ARRAY = "ensure_all_finite", {"skip_check_array": True}
except ImportError:  # scikit-learn 1.5

    def _validate(estimator: Any, data: Any, **options: Any) -> Any:
        return estimator._validate_data(data, **options)

    FINITE, NO_CHECK_ARRAY = "force_all_finite", {"cast_to_ndarray": False}
