import sys

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from tinyvae.sklearn import VAEImputer
from tinyvae.sklearn.tables import columns_of, is_frame


@pytest.mark.parametrize(
    ("table", "error", "words"),
    [
        (scipy.sparse.eye(4, format="csr"), TypeError, "toarray"),
        (pd.DataFrame({"x": pd.arrays.SparseArray([0.0, 1.0])}), TypeError, "to_dense"),
        (pd.DataFrame({"x": [0.0, np.inf]}), ValueError, "infinity.*'x'"),
        (pd.DataFrame({"x": [0.0, np.inf, "a"]}), ValueError, "infinity.*'x'"),
        (np.array([[0.0], [np.inf]]), ValueError, "infinity"),
        (np.array([["a"], [np.inf]], dtype=object), ValueError, "infinity"),
        (pd.DataFrame({"x": [1j, 2j]}), ValueError, "Complex"),
        (pd.DataFrame({"x": [{}, {}]}), TypeError, "argument must be a string"),
        (pd.DataFrame([[1, 2], [3, 4]], columns=["x", "x"]), ValueError, "rename"),
        (pd.DataFrame([[1, 2], [3, 4]], columns=["1", 1]), (TypeError, ValueError), "names"),
        (pd.DataFrame({"x": [1.0]}), ValueError, "1 sample"),
        (pd.DataFrame(index=[0, 1]), ValueError, "0 feature"),
        (pd.DataFrame({"x": [1.0, 1.0]}), ValueError, "constants"),
    ],
)
def test_fit_refuses_a_table_with_the_remedy(table, error, words):
    with pytest.raises(error, match=words):
        VAEImputer().fit(table)


def test_transform_checks_names(imputer, frame):
    with pytest.raises(ValueError, match="feature names"):
        imputer.transform(frame.rename(columns={"age": "years"}))
    with pytest.raises(ValueError, match="expects numbers"):
        imputer.transform(frame.assign(income="a lot"))


def test_columns_of_array_makes_numbers_of_objects():
    table = np.array([[1.5, "a"], [None, "b"]], dtype=object)
    columns = columns_of(table)
    assert columns["x0"].dtype == np.float64
    assert columns["x1"].tolist() == ["a", "b"]


def test_is_frame_imports_no_pandas(monkeypatch):
    monkeypatch.delitem(sys.modules, "pandas")
    assert not is_frame(np.zeros((2, 2)))
    assert "pandas" not in sys.modules
