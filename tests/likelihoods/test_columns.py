import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvae.likelihoods import Column
from tinyvae.likelihoods.conversion import to_arrays, to_tensor
from tinyvae.likelihoods.inference import infer_columns
from tinyvae.likelihoods.tables import named_columns

pytestmark = pytest.mark.usefixtures("float64")


def kinds_of(table, kinds=None):
    return {column.name: column.kind for column in infer_columns(table, kinds)}


# Inference ----------------------------------------------------------------------------------------


@for_each(
    ("values", "kind", "levels"),
    [
        ([1.5, 2.5, -3.0], "number", ()),
        ([1.0, 2.0, 3.0], "number", ()),
        ([-1, 2, 3], "number", ()),
        ([0, 2, 7], "count", ()),
        ([0, 2, 7, None], "count", ()),
        ([4, 9, 4], "binary", (4, 9)),
        ([0.5, 0.25, None], "binary", (0.25, 0.5)),
        ([True, False, True], "binary", (False, True)),
        ([None, False, True], "binary", (False, True)),
        (["no", "yes", None, "no"], "binary", ("no", "yes")),
        (["red", "blue", "red", "green"], "category", ("blue", "green", "red")),
        ([1.5, None, 3.5, 2.5], "number", ()),
        ([1.5, math.nan, 3.5, 2.5], "number", ()),
    ],
)
def test_infer_columns_guesses_the_kind(values, kind, levels):
    (column,) = infer_columns({"a": values})
    assert (column.name, column.kind, column.levels) == ("a", kind, levels)


def test_levels_keep_their_python_types():
    (column,) = infer_columns({"a": np.array([3, 5, 3])})
    assert [type(level) for level in column.levels] == [int, int]
    (column,) = infer_columns({"a": np.array(["u", "v"])})
    assert [type(level) for level in column.levels] == [str, str]


def test_levels_may_lack_an_order():
    (column,) = infer_columns({"a": np.array(["u", 1, "v", 1], dtype=object)})
    assert set(column.levels) == {"u", "v", 1}


def test_infer_columns_of_a_matrix():
    matrix = np.array([[0.5, 1, 0], [1.5, 0, 2], [math.nan, 1, 5]])
    assert kinds_of(matrix) == {"x0": "binary", "x1": "binary", "x2": "number"}
    assert kinds_of(matrix[:, 2:].astype(int)) == {"x0": "count"}
    assert kinds_of(torch.from_numpy(matrix)) == kinds_of(matrix)


def test_infer_columns_of_a_matrix_of_objects():
    matrix = np.array([[1.5, "a", 3], [2.5, "b", None], [None, "c", 1], [3.5, None, 2]], object)
    assert kinds_of(matrix) == {"x0": "number", "x1": "category", "x2": "count"}


def test_infer_columns_standardizes_by_observed_values():
    table = {
        "number": [1.0, 2.0, None, 6.0],
        "count": [0, 2, 7, None],
        "positive": [1.0, 10.0, 100.0, math.nan],
    }
    number, count, positive = infer_columns(table, {"positive": "positive"})
    assert (number.shift, number.scale) == pytest.approx((3.0, np.std([1, 2, 6])), rel=1e-14)
    assert (count.shift, count.scale) == pytest.approx((0.0, 3.0), rel=1e-14)
    assert (positive.shift, positive.scale) == pytest.approx((0.0, 10.0), rel=1e-14)


@for_each(
    ("values", "kind"),
    [
        ([0, 2, 7], "number"),
        ([0, 2, 7], "category"),
        ([1, 2, 7], "positive"),
        ([0.0, 2.0, 7.0, math.nan], "count"),
        ([0, 1], "count"),
        ([0, 1], "category"),
        ([False, True], "number"),
        (["1.5", "2", "4"], "number"),
    ],
)
def test_infer_columns_lets_kinds_override(values, kind):
    assert kinds_of({"a": values, "b": [1.5] * (len(values) - 1) + [2.5]}, {"a": kind}) == {
        "a": kind,
        "b": "binary",
    }


# pandas -------------------------------------------------------------------------------------------


@pytest.fixture
def pandas():
    return pytest.importorskip("pandas")


def test_infer_columns_of_a_frame(pandas):
    frame = pandas.DataFrame(
        {
            "income": [1.5, math.nan, 3.5, 2.0],
            "visits": pandas.array([3, 1, None, 0], dtype="Int64"),
            "color": pandas.Categorical(["red", None, "blue", "green"]),
            "member": [True, False, True, True],
            "left": pandas.array([True, None, False, True], dtype="boolean"),
            "answer": pandas.Series(["no", "yes", None, "no"], dtype=object),
            "city": pandas.array(["b", "a", None, "c"], dtype="string"),
        }
    )
    columns = infer_columns(frame, {"visits": "count"})
    assert {column.name: column.kind for column in columns} == {
        "income": "number",
        "visits": "count",
        "color": "category",
        "member": "binary",
        "left": "binary",
        "answer": "binary",
        "city": "category",
    }
    nan = math.nan
    expected = [
        [1.5, 3, 2, 1, 1, 0, 1],
        [nan, 1, nan, 0, nan, 1, 0],
        [3.5, nan, 0, 1, 0, nan, nan],
        [2.0, 0, 1, 1, 1, 0, 2],
    ]
    torch.testing.assert_close(
        to_tensor(frame, columns), torch.tensor(expected), rtol=0, atol=0, equal_nan=True
    )


def test_frame_and_dictionary_agree(pandas):
    table = {"a": [1.5, 2.5, -1.0], "b": ["u", "v", "w"], "c": [0, 1, 5]}
    frame = pandas.DataFrame(table)
    of_frame, of_table = infer_columns(frame), infer_columns(table)
    of_frame[1] = replace(of_frame[1], dtype="")  # pandas before 3 stores text as objects
    assert of_frame == of_table
    assert torch.equal(to_tensor(frame, of_table), to_tensor(table, of_frame))


def test_to_arrays_returns_a_frame(pandas):
    frame = pandas.DataFrame(
        {"a": [1.5, math.nan, 3.5, 2.0], "b": ["u", None, "w", "u"], "c": [True, False] * 2}
    )
    columns = infer_columns(frame)
    back = pandas.DataFrame(to_arrays(to_tensor(frame, columns), columns))
    pandas.testing.assert_frame_equal(
        back.astype({"b": object}), frame.astype({"b": object}), check_dtype=False
    )


def test_column_names_become_strings(pandas):
    frame = pandas.DataFrame(np.array([[1.5, 2], [2.5, 3], [4, 9]]))
    assert [column.name for column in infer_columns(frame)] == ["0", "1"]


# Errors -------------------------------------------------------------------------------------------


@for_each(
    ("table", "kinds", "message"),
    [
        ({"a": [1, 2, 3]}, {"b": "count"}, r"kinds expects columns in \['a'\], got \['b'\]"),
        ({"a": [1, 2], "b": [1, 2, 3]}, None, r"columns of one length, got {'a': 2, 'b': 3}"),
        ({}, None, "columns of one length, got {}"),
        (np.zeros(3), None, r"an array \(N, D\), got one of shape \(3,\)"),
        (
            {"a": ["u", "v"]},
            {"a": "number"},
            "'a' expects numbers, got .*'u'.* declare it a category",
        ),
        ({"a": [1.0, 0.0, 2.0]}, {"a": "positive"}, "'a' expects positive numbers, got 0"),
        ({"a": [1.0, -3.5]}, {"a": "positive"}, "'a' expects positive numbers, got -3.5"),
        ({"a": [1, 2, 3]}, {"a": "binary"}, "'a' of kind binary expects 2 levels, got 3"),
        ({"a": [1, 2, 3]}, {"a": "real"}, "'a' expects a kind in .*, got 'real'"),
        ({"a": [1, 1]}, {"a": "number"}, "'a' of kind number expects at least two different val"),
        ({"a": [1, 2]}, {"a": "constant"}, "'a' of kind constant expects one value, got 2"),
        ({"a": ["low", "high"]}, {"a": "ordinal"}, "'a' of kind ordinal .*ordered=True"),
        ({"a": [1.5, 2.5]}, {"a": "date"}, "'a' of kind date expects dates .*to_datetime"),
        ({"a": [1.5, 2.5]}, {"a": "amount"}, "'a' of kind amount expects zeros .*: declare it"),
        (
            {"a": [0.0, 1.0]},
            {"a": "bounded"},
            "'a' of kind bounded expects numbers between 0 and 1",
        ),
        ({"a": [[1], [2, 3]]}, None, "'a' expects "),
        ({"a": np.array([[1], {2}, 3], object)}, None, "numbers or text, .*: convert them"),
        ({"a": [1e200, -1e200, 3.0]}, None, "'a' expects .* variance float64 can hold.*: rescale"),
    ],
)
def test_infer_columns_rejects_invalid_tables(table, kinds, message):
    with pytest.raises(ValueError, match=message):
        infer_columns(table, kinds)


@for_each("table", [[1, 2], "table", None])
def test_infer_columns_rejects_other_types(table):
    with pytest.raises(TypeError, match="a DataFrame, a dictionary of columns or a matrix"):
        infer_columns(table)


@for_each(
    ("arguments", "message"),
    [
        (("a", "real"), "expects a kind in"),
        (("a", "binary"), "of kind binary expects 2 levels, got 0"),
        (("a", "binary", ("u", "v", "w")), "of kind binary expects 2 levels, got 3"),
        (("a", "category", ("u",)), "of kind category expects two or more levels, got 1"),
        (("a", "number", ("u", "v")), "of kind number expects no levels, got 2"),
        (("a", "number", (), 0.0, 0.0), "a finite scale > 0, got 0.0 and 0.0"),
        (("a", "count", (), 0.0, -1.0), "a finite scale > 0"),
        (("a", "number", (), math.inf, 1.0), "a finite shift"),
        (("a", "number", (), math.nan, 1.0), "a finite shift"),
        (("a", "positive", (), 0.0, math.inf), "a finite scale"),
    ],
)
def test_column_rejects_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"column 'a' .*{message}"):
        Column(*arguments)


@for_each(
    ("table", "message"),
    [
        ({"age": [1.0]}, r"expects columns \['color'\], got only \['age'\]"),
        (
            {"age": [1.0, 2.0], "color": ["pink", "red"]},
            r"'color' expects levels in \['blue', 'red'\], got \['pink'\]",
        ),
        ({"age": ["old", "new"], "color": ["red", "red"]}, "'age' expects numbers, got .*'old'"),
        (np.zeros((2, 3)), r"expects columns \['age', 'color'\], got only \['x0', 'x1', 'x2'\]"),
    ],
)
def test_to_tensor_rejects_tables_that_do_not_fit(table, message):
    columns = [Column("age", "number"), Column("color", "binary", ("blue", "red"))]
    with pytest.raises(ValueError, match=message):
        to_tensor(table, columns)


@for_each("shape", [(3,), (2, 3), (1, 2, 2)])
def test_to_arrays_rejects_tensors_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"to_arrays expects a tensor \(N, 2\), got"):
        to_arrays(torch.zeros(shape), [Column("a", "number"), Column("b", "number")])


# To a tensor and back -----------------------------------------------------------------------------


def test_to_tensor_uses_the_order_of_the_columns():
    columns = [Column("b", "number"), Column("a", "binary", ("u", "v"))]
    table = {"extra": ["?", "?"], "a": ["v", "u"], "b": [3.0, 4.0]}
    assert torch.equal(to_tensor(table, columns), torch.tensor([[3.0, 1.0], [4.0, 0.0]]))
    assert list(to_arrays(torch.zeros(1, 2), columns)) == ["b", "a"]


def test_to_tensor_reads_a_matrix_by_position():
    columns = [Column("b", "number"), Column("a", "binary", (7, 9))]
    x = to_tensor(np.array([[1.5, 9], [2.5, math.nan]]), columns)
    torch.testing.assert_close(x, torch.tensor([[1.5, 1.0], [2.5, math.nan]]), equal_nan=True)


def test_levels_keep_their_order():
    columns = [Column("size", "category", ("small", "large", "huge"))]
    table = {"size": ["huge", "small", "large"]}
    assert torch.equal(to_tensor(table, columns)[:, 0], torch.tensor([2.0, 0.0, 1.0]))


@for_each("dtype", [torch.float32, torch.float64])
def test_to_tensor_uses_the_default_dtype(dtype):
    torch.set_default_dtype(dtype)  # restored by the fixture
    assert to_tensor({"a": [1, 2]}, [Column("a", "count")]).dtype == dtype


def test_to_arrays_returns_the_types_of_the_levels():
    columns = [
        Column("flag", "binary", (False, True)),
        Column("code", "category", (3, 5, 8)),
        Column("name", "category", ("u", "v")),
        Column("age", "number"),
    ]
    whole = to_arrays(torch.ones(2, 4), columns)
    assert [array.dtype.kind for array in whole.values()] == ["b", "i", "U", "f"]
    holes = to_arrays(torch.full((1, 4), math.nan), columns)
    assert [holes[name].tolist() for name in ("flag", "code", "name")] == [[None]] * 3
    assert math.isnan(holes["age"].item())


def test_to_arrays_copies_the_tensor():
    x = torch.zeros(2, 1)
    to_arrays(x, [Column("a", "number")])["a"][:] = 5
    assert torch.equal(x, torch.zeros(2, 1))


def test_to_tensor_does_not_change_the_table():
    table = {"a": np.array([1.5, math.nan, 2.5]), "b": np.array(["u", None, "v"], dtype=object)}
    before = {name: values.copy() for name, values in table.items()}
    columns = infer_columns(table)
    to_tensor(table, columns)
    for name, values in table.items():
        np.testing.assert_array_equal(values, before[name])


LEVELS = st.one_of(
    st.lists(st.text(max_size=3), min_size=2, max_size=5, unique=True),
    st.lists(st.integers(-9, 9), min_size=2, max_size=5, unique=True),
    st.just([False, True]),
)


@st.composite
def tables(draw):
    """Columns with missing values, and their values in Python."""
    rows = draw(st.integers(1, 5))
    columns, table = [], {}
    for name in draw(st.lists(st.text(max_size=3), min_size=1, max_size=5, unique=True)):
        kind = draw(st.sampled_from(["number", "positive", "count", "binary", "category"]))
        levels = ()
        if kind == "number":
            values = st.floats(allow_nan=False, allow_infinity=False)
        elif kind == "positive":
            values = st.floats(1e-300, 1e300)
        elif kind == "count":
            values = st.integers(0, 2**53)
        else:
            levels = draw(LEVELS)
            levels = tuple(levels[:2] if kind == "binary" else levels)
            values = st.sampled_from(levels)
        columns.append(Column(name, kind, levels))
        table[name] = draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
    return columns, table


def missing(value):
    return value is None or value != value


@settings(max_examples=100)
@given(tables())
def test_to_arrays_inverts_to_tensor(drawn):
    columns, table = drawn
    objects = {name: np.array(values, dtype=object) for name, values in table.items()}
    x = to_tensor(objects, columns)
    assert x.shape == (len(next(iter(table.values()))), len(columns))
    back = to_arrays(x, columns)
    assert list(back) == [column.name for column in columns]
    for name, values in table.items():
        for value, got in zip(values, back[name].tolist(), strict=True):
            assert (missing(value) and missing(got)) or value == got
    torch.testing.assert_close(to_tensor(back, columns), x, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=100)
@given(tables(), st.randoms())
def test_to_tensor_ignores_the_order_of_the_table(drawn, random):
    columns, table = drawn
    names = random.sample(list(table), len(table))
    shuffled = {name: np.array(table[name], dtype=object) for name in names}
    given_order = {name: shuffled[name] for name in table}
    x = to_tensor(given_order, columns)
    assert torch.equal(to_tensor(shuffled, columns).isnan(), x.isnan())
    assert torch.equal(to_tensor(shuffled, columns).nan_to_num(), x.nan_to_num())


def test_named_columns_names_the_columns_of_a_matrix():
    assert list(named_columns(np.zeros((2, 3)))) == ["x0", "x1", "x2"]


def test_infer_columns_reads_nan_among_text_as_missing():
    (column,) = infer_columns({"a": ["u", "v", math.nan, None]})
    assert (column.kind, column.levels) == ("binary", ("u", "v"))


def test_to_arrays_returns_levels_of_two_types():
    table = {"a": ["u", 1, 1, 2.5]}
    columns = infer_columns(table)
    assert to_arrays(to_tensor(table, columns), columns)["a"].tolist() == ["u", 1, 1, 2.5]


@for_each("values", [[-1, 5, 7], [0.5, 1.5, 2.5]])
def test_infer_columns_rejects_invalid_counts(values):
    with pytest.raises(ValueError, match="column 'a' expects counts, integers >= 0"):
        infer_columns({"a": values}, {"a": "count"})


@for_each(
    ("table", "message"),
    [
        ({"a": [1.0, math.inf, 2.0]}, "column 'a' expects finite numbers, got infinity"),
        ({"a": 3.0}, "column 'a' expects one value per row"),
        ({"a": [[1.0, 2.0], [3.0, 4.0]]}, "column 'a' expects one value per row"),
        ({1: [1.0, 2.0], "1": [1.0, 2.0]}, "columns with different names, got two of '1'"),
    ],
)
def test_infer_columns_rejects_invalid_columns(table, message):
    with pytest.raises(ValueError, match=message):
        infer_columns(table)


@for_each("levels", ["no", ("a", "a")])
def test_column_rejects_equal_levels(levels):
    with pytest.raises(ValueError, match="expects a tuple of different levels"):
        Column("a", "binary", levels)


def test_infer_columns_reads_the_dtypes_of_pandas():
    pandas = pytest.importorskip("pandas")
    sizes = pandas.Categorical(["L", "S", None], categories=["S", "M", "L"], ordered=True)
    visits = pandas.array([1, None, 3], dtype="Int64")
    frame = pandas.DataFrame({"size": sizes, "visits": visits})
    size, count = infer_columns(frame)
    assert (size.kind, size.levels) == ("ordinal", ("S", "M", "L"))
    assert infer_columns(frame.assign(visits=pandas.array([1, None, 3], "Int64")))[1] == count
    x = to_tensor(frame, [size, count])
    assert x[:, 0].nan_to_num(-1).tolist() == [2, 0, -1]


def test_to_tensor_rejects_values_that_float32_rounds():
    torch.set_default_dtype(torch.float32)  # restored by the fixture
    times = {"t": [1.7e9, 1.7e9 + 5, 1.7e9 + 11]}
    with pytest.raises(
        ValueError,
        match=r"column 't' expects values that torch.float32 can hold.*subtract an origin",
    ):
        to_tensor(times, infer_columns(times))


def test_to_tensor_reads_masked_arrays():
    (column,) = infer_columns({"a": np.ma.array([1.0, 2.0, -999.0, 4.5], mask=[0, 0, 1, 0])})
    assert column.shift == 2.5


@for_each("levels", [(None, "a"), (math.nan, 1.0), (1j, 2j), (("a",), ("b",))])
def test_column_rejects_levels_that_a_file_cannot_hold(levels):
    with pytest.raises(ValueError, match="strings or finite numbers"):
        Column("a", "binary", levels)


def test_to_arrays_rejects_indices_without_a_level():
    column = Column("a", "binary", ("no", "yes"))
    assert to_arrays(torch.tensor([[0.99999]]), [column])["a"].tolist() == ["yes"]
    for index in (-1.0, 2.0):
        with pytest.raises(ValueError, match="expects indices of 2 levels"):
            to_arrays(torch.tensor([[index]]), [column])


def test_matrices_keep_their_mask_and_may_have_gradients():
    values, mask = np.arange(12.0).reshape(6, 2) ** 2, np.arange(12).reshape(6, 2) % 5 == 0
    expected = torch.from_numpy(np.where(mask, np.nan, values)).to(torch.get_default_dtype())
    masked = np.ma.masked_array(values, mask)
    columns = infer_columns(masked)
    x = to_tensor(masked, columns)
    assert torch.equal(x.nan_to_num(-1), expected.nan_to_num(-1))
    assert columns == infer_columns(np.where(mask, np.nan, values))
    matrix = torch.from_numpy(values).requires_grad_()
    assert torch.equal(to_tensor(matrix, columns).double(), matrix.detach())
