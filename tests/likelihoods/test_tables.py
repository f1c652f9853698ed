"""Tables as tensors and back: values and dtypes."""

import math

import numpy as np
import pytest
import torch
from helpers.cases import for_each

from tinyvae.likelihoods import Column, MixedLikelihood, StudentTLikelihood
from tinyvae.likelihoods.conversion import to_arrays, to_tensor
from tinyvae.likelihoods.inference import infer_columns
from tinyvae.models.serialization import build_part, describe_part


def after_a_file(columns):
    return build_part(describe_part(MixedLikelihood(columns))).columns


# The default dtype is float32.
@for_each(
    "values",
    [
        np.array([1234567.89, 2.5, -0.1]),
        np.array([1e16, 3e16, 2.0]),
        np.array([0.1, 0.2, 0.7], np.float32),
        np.array([0.1, 0.2, np.nan], np.float16),
        np.array([3, 1, 2]),
        np.array([3, 250, 2], np.uint8),
        np.array([-3, 1, 100], np.int8),
        np.array([2**40 + 1, 2**41 + 1, 2**42]),
        np.array([0, 1, 1], np.int16),
        np.array([0.1, 0.3, 0.3], np.float32),
        np.array([True, False, True]),
        np.array(["u", "v", "u"]),
        np.array(["u", "v", "w"], dtype=object),
        np.array(["u", None, "w"], dtype=object),
        np.array([True, None, False], dtype=object),
        np.array([2**60 + 1, 2**60 + 3, 2**60 + 1]),
    ],
)
def test_to_arrays_returns_values_and_dtype(values):
    columns = after_a_file(infer_columns({"a": values}))
    got = to_arrays(to_tensor({"a": values}, columns), columns)["a"]
    assert got.dtype == values.dtype
    np.testing.assert_array_equal(got, values)
    assert list(map(type, got.tolist())) == list(map(type, values.tolist()))


@for_each(
    ("values", "expected"),
    [
        ([3, None, 5, 9], [3, None, 5, 9]),
        ([1.5, None, 2.5, 3.5], [1.5, math.nan, 2.5, 3.5]),
        ([0.5, None, 0.25], [0.5, math.nan, 0.25]),
        (np.ma.array([3, 4, 9, 5], mask=[0, 1, 0, 0]), [3, None, 9, 5]),
        (torch.tensor([3.5, 4.5, 5.5], dtype=torch.bfloat16), [3.5, 4.5, 5.5]),
        (torch.tensor([3.5, 4.5, 5.5], requires_grad=True), [3.5, 4.5, 5.5]),
    ],
)
def test_to_arrays_returns_missing_values(values, expected):
    columns = infer_columns({"a": values})
    got = to_arrays(to_tensor({"a": values}, columns), columns)["a"].tolist()
    assert repr(got) == repr(expected)  # NaN differs from itself


def test_matrix_keeps_its_mask_and_dtype():
    matrix = np.ma.array([[3, 7], [4, 8], [9, 9]], mask=[[0, 0], [1, 0], [0, 0]])
    columns = infer_columns(matrix)
    assert to_tensor(matrix, columns).isnan().tolist() == [[False] * 2, [True, False], [False] * 2]
    assert to_arrays(to_tensor(matrix, columns), columns)["x1"].dtype == matrix.dtype


PANDAS = {
    "Int64": [3, None, 5, 9],
    "UInt8": [3, 250, 5, 9],
    "Float64": [1.5, None, 2.5, 3.5],
    "Float32": [0.1, None, 2.5, 3.5],
    "boolean": [True, None, False, True],
    "string": ["u", None, "w", "x"],
    "str": ["u", "v", "w", "x"],
    "category": ["u", None, "w", "u"],
    "int32": [3, 4, 5, 9],
    "bool": [True, False, True, True],
}


@pytest.mark.parametrize("dtype", PANDAS)
def test_to_arrays_returns_the_dtypes_of_pandas(dtype):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": pandas.Series(PANDAS[dtype], dtype=dtype)})
    columns = after_a_file(infer_columns(frame))
    back = pandas.DataFrame(to_arrays(to_tensor(frame, columns), columns))
    pandas.testing.assert_frame_equal(back, frame)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(
    "dtype", ["int8", "uint16", "float32", "Int64", "boolean", "string", "str"]
)
def test_to_arrays_returns_the_dtype_of_categories(dtype, ordered):
    pandas = pytest.importorskip("pandas")
    levels = pandas.Index([True, False] if dtype == "boolean" else [3, 1, 2]).astype(dtype)
    for categories in (levels, levels[:1], levels[:0]):
        values = pandas.Categorical(
            [*categories, None, None], categories=categories, ordered=ordered
        )
        frame = pandas.DataFrame({"a": values, "b": np.arange(len(values)) / 7})
        columns = after_a_file(infer_columns(frame, {"b": "number"}))
        back = pandas.DataFrame(to_arrays(to_tensor(frame, columns), columns))
        observed = values.notna() if columns[0].kind == "constant" else slice(None)
        pandas.testing.assert_series_equal(back["a"][observed], frame["a"][observed])


@pytest.mark.parametrize("ordered", [False, True])
def test_to_arrays_returns_categories_that_no_row_has(ordered):
    pandas = pytest.importorskip("pandas")
    sizes = pandas.Categorical(["L", "S", None], categories=["S", "M", "L"], ordered=ordered)
    codes = pandas.Categorical([5, 7, 5], categories=[7, 6, 5])
    frame = pandas.DataFrame({"size": sizes, "code": codes})
    columns = after_a_file(infer_columns(frame))
    back = pandas.DataFrame(to_arrays(to_tensor(frame, columns), columns))
    pandas.testing.assert_frame_equal(back, frame)
    numbers = infer_columns(frame, {"code": "number"})
    assert to_arrays(to_tensor(frame, numbers), numbers)["code"].tolist() == [5, 7, 5]


def test_to_arrays_rounds_draws_of_integers_within_their_range():
    x = torch.tensor([[-7.6, 2.5, 300.0, 2.4, 0.2], [99.4, 1e30, -3.0, 1.6, 7.9]])
    columns = [
        Column("a", "number", dtype="int64"),
        Column("b", "number", dtype="int64"),
        Column("c", "number", dtype="uint8"),
        Column("d", "count"),
        Column("e", "positive", dtype="int64"),
    ]
    arrays = to_arrays(x, columns)
    assert arrays["a"].tolist() == [-8, 99]
    assert arrays["b"].tolist()[0] == 2
    assert arrays["b"].tolist()[1] > 9e18  # 1e30 is no int64
    assert arrays["c"].tolist() == [255, 0]
    assert arrays["e"].tolist() == [1, 8]
    assert (arrays["d"].tolist(), arrays["d"].dtype) == ([2, 2], np.int64)


def test_tables_without_rows():
    columns = [Column("a", "number"), Column("b", "category", ("u", "v")), Column("c", "count")]
    x = to_tensor({"a": [], "b": [], "c": []}, columns)
    assert x.shape == (0, 3)
    assert [len(values) for values in to_arrays(x, columns).values()] == [0, 0, 0]


def test_to_tensor_is_float64_if_the_default_dtype_rounds():
    columns = [Column("a", "number", dtype="float64")]
    assert to_tensor({"a": [0.5, 2.0]}, columns).dtype == torch.float32
    assert to_tensor({"a": [0.1, 2.0]}, columns).dtype == torch.float64


def test_numbers_refuse_integers_that_float64_rounds():
    table = {"id": [2**60 + 1, 2**60 + 3, 2**60 + 8]}
    with pytest.raises(ValueError, match=r"'id' expects integers that float64 can hold, .* got 11"):
        infer_columns(table)
    columns = infer_columns(table, {"id": "category"})
    assert to_arrays(to_tensor(table, columns), columns)["id"].tolist() == table["id"]


@for_each("dtype", ["int65", "datetime64[ns]", "category", "U5"])
def test_column_rejects_other_dtypes(dtype):
    with pytest.raises(ValueError, match="column 'a' expects the name of a dtype"):
        Column("a", "number", dtype=dtype)


def test_describe_names_the_choices():
    table = {
        "height": [171, 186, 160, 165],
        "visits": [0, 2, 7, None],
        "income": [1.5, 10.0, 100.0, 3.0],
        "color": ["red", "blue", "red", "green"],
        "score": [0.5, 1.5, 0.0, 2.0],
    }
    likelihood = MixedLikelihood.from_table(
        table, kinds={"income": "positive"}, likelihoods={"score": StudentTLikelihood()}
    )
    rows = [
        ("column", "kind", "details", "reason"),
        ("height", "number", "mean 170.5, std 9.76, rounded", ""),
        ("visits", "count", "mean 3", "a negative binomial fits"),
        ("income", "positive", "geometric mean 8.19", "declared"),
        ("color", "category", "3 levels ['blue', 'green', 'red']", "text"),
        ("score", "number", "StudentTLikelihood(scale=Learned(), df=4.0)", ""),
    ]
    expected = [
        f"{name:6}  {kind:8}  {details:43}  {why}".rstrip() for name, kind, details, why in rows
    ]
    assert likelihood.describe().splitlines() == expected
