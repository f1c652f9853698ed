"""Tables of all dtypes as tensors and back: dates, constants, names, filled entries."""

import math
from datetime import date, datetime, timedelta

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyvae.likelihoods import Column, MaskedLikelihood, MixedLikelihood
from tinyvae.likelihoods.conversion import fill, to_arrays, to_tensor
from tinyvae.likelihoods.inference import infer_columns
from tinyvae.models.serialization import build_part, describe_part

pd = pytest.importorskip("pandas")


def after_a_file(likelihood):
    return build_part(describe_part(likelihood))


# Dates --------------------------------------------------------------------------------------------

DAYS = np.array(["2020-01-05", "2021-03-01", "NaT", "2019-12-31"], "datetime64[D]")
DATES = {
    "days": (DAYS, "days"),
    "nanoseconds of days": (DAYS.astype("datetime64[ns]"), "days"),
    "months": (DAYS.astype("datetime64[M]"), "months"),
    "minutes": (np.datetime64("2020-01-01T10:30") + np.arange(4) ** 2 * 60, "hours"),
    "seconds": (np.datetime64("1969-12-31T23:59:59", "ns") + np.arange(4) * 10**9, "seconds"),
    "nanoseconds": (np.datetime64(5, "ns") + np.array([0, 7, 2**50 + 1]), "nanoseconds"),
    "durations": (np.array([1, -5, 40], "timedelta64[h]"), "hours"),
    "dates in a list": (list(DAYS), "days"),
    "objects": (np.array([date(2020, 1, 1), None, date(1999, 5, 7)], object), "days"),
    "moments": (np.array([datetime(2020, 1, 1, 5), None, datetime(1999, 5, 7)], object), "hours"),
    "lengths": (np.array([timedelta(3), timedelta(0, 5), timedelta(9)], object), "seconds"),
    "pandas": (pd.Series(DAYS.astype("datetime64[us]")), "days"),
    "zone": (pd.Series(DAYS.astype("datetime64[us]")).dt.tz_localize("Europe/Berlin"), "days"),
    "zone of summer": (
        pd.Series(pd.to_datetime(["2020-01-01", "2020-07-01", None])).dt.tz_localize(
            "America/Lima"
        ),
        "days",
    ),
    "pandas durations": (pd.Series(pd.to_timedelta([1, None, 7], "min")), "minutes"),
}


@for_each("name", DATES)
def test_dates_come_back(name):
    values, step = DATES[name]
    likelihood = after_a_file(MixedLikelihood.from_table({"a": values}))
    (column,) = likelihood.columns
    assert column.kind == "date"
    assert step in column.details()
    back = likelihood.to_arrays(likelihood.to_tensor({"a": values}))["a"]
    values = np.array(values) if isinstance(values, list) else values
    assert back.dtype == values.dtype
    assert pd.Series(back).equals(pd.Series(values))
    if values.dtype == object:
        assert [type(v) for v in back] == [type(v) for v in values]


def test_draws_of_dates_are_whole_steps_within_the_range_of_their_type():
    (column,) = infer_columns({"a": np.array(["2020-01-01", "2020-03-01"], "datetime64[ns]")})
    back = to_arrays(torch.tensor([[0.4], [59.6], [math.nan]]), [column])["a"]
    assert back[:2].astype("datetime64[D]").astype(str).tolist() == ["2020-01-01", "2020-03-01"]
    assert (back[:2] == back[:2].astype("datetime64[D]")).all()
    assert np.isnat(back[2])
    (day,) = infer_columns({"a": [date(2020, 1, 1), date(2020, 3, 1)]})
    wild = torch.tensor([[-1e30], [1e30]])
    assert to_arrays(wild, [day])["a"].tolist() == [date.min, date.max]
    assert to_arrays(wild, [column])["a"].dtype == np.dtype("datetime64[ns]")


def test_dates_reject_what_they_cannot_hold():
    columns = infer_columns({"a": DAYS})
    with pytest.raises(ValueError, match=r"'a' expects datetime64\[D\], got timedelta64"):
        to_tensor({"a": np.array([1, 2], "timedelta64[h]")}, columns)
    far = np.array([0, 1, 2**62 + 5], "datetime64[ns]")
    with pytest.raises(ValueError, match=r"'a' expects dates less than .* use a coarser unit"):
        infer_columns({"a": far})
    fine = np.array([0, 1, 2**60 + 1], "datetime64[ns]")
    with pytest.raises(ValueError, match=r"'a' expects dates that float64 can hold.*round"):
        infer_columns({"a": fine})
    with pytest.raises(ValueError, match="got dates or durations: leave it a date"):
        infer_columns({"a": DAYS}, {"a": "category"})


# Constants and identifiers ------------------------------------------------------------------------


def frame(rows=40):
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": [f"row {i}" for i in range(rows)],
            "unit": "cm",
            7: generator.normal(size=rows),
            "empty": np.full(rows, np.nan),
            ("a", 1): pd.Series(generator.integers(0, 2, rows), dtype="Int8"),
            "since": pd.Timestamp("2020-01-01"),
            "size": pd.Categorical(["S", "L"] * (rows // 2), ["S", "M", "L"], ordered=True),
            "none": pd.Series([None] * rows, dtype=object),
            "fixed": pd.Categorical(["x"] * rows),
        }
    ).set_index(pd.Index(range(5, 5 + rows), name="row"))


def test_constants_and_names_come_back():
    table = frame()
    likelihood = after_a_file(MixedLikelihood.from_table(table))
    assert [c.name for c in likelihood.modeled] == ["7", "('a', 1)", "size"]
    assert {c.name: c.kind for c in likelihood.columns if not c.is_modeled} == {
        "id": "identifier",
        **dict.fromkeys(("unit", "empty", "since", "none", "fixed"), "constant"),
    }
    x = likelihood.to_tensor(table)
    assert x.shape == (40, 3)
    back = likelihood.to_frame(x, index=table.index)
    pd.testing.assert_frame_equal(back, table.drop(columns="id"))
    other = table.assign(unit="kg", id=0)[["since", 7, ("a", 1), "size"]]
    torch.testing.assert_close(likelihood.to_tensor(other), x)
    MaskedLikelihood(likelihood).check_support(x)


@for_each(
    "values",
    [
        np.full(5, 3),
        np.full(5, 2**60 + 1),
        np.full(5, 0.1, np.float32),
        np.full(5, True),
        np.full(5, np.nan),
        np.array(["u"] * 5),
        np.array([None] * 5, dtype=object),
        np.array(["u"] * 5, dtype=object),
        np.full(5, 3, "timedelta64[s]"),
        np.full(5, "NaT", "datetime64[s]"),
        np.array([date(2020, 1, 1)] * 5, dtype=object),
    ],
)
def test_constants_keep_value_and_dtype(values):
    columns = [*infer_columns({"a": values}), Column("b", "number")]
    assert columns[0].kind == "constant"
    back = to_arrays(torch.zeros(5, 1), columns)["a"]
    assert back.dtype == values.dtype
    np.testing.assert_array_equal(back, values)
    assert list(map(type, back.tolist())) == list(map(type, values.tolist()))


def test_table_without_a_column_to_model_is_refused():
    with pytest.raises(
        ValueError, match=r"column to model, got only constants .* declare the kind"
    ):
        MixedLikelihood.from_table({"a": [1, 1], "b": [None, None]})
    columns = [Column("a", "constant", (1,)), Column("b", "number")]
    with pytest.raises(ValueError, match="likelihoods of columns"):
        MixedLikelihood(columns, likelihoods={"a": MixedLikelihood([("c", "number")])})


def test_declared_identifiers_are_left_out():
    table = {"a": [1.5, 2.5, 7.5], "b": ["u", "v", "u"]}
    likelihood = MixedLikelihood.from_table(table, kinds={"a": "identifier"})
    assert likelihood.to_tensor(table).tolist() == [[0], [1], [0]]
    assert "a       identifier  left out" in likelihood.describe()


@for_each(
    ("name", "message"),
    [
        (None, "names, got None: rename"),
        (math.nan, "got nan: rename"),
        (date(2020, 1, 1), "rename"),
    ],
)
def test_names_that_a_file_cannot_hold_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        infer_columns(pd.DataFrame({name: [1.5, 2.5, 3.5]}))


@for_each(
    ("values", "message"),
    [
        (pd.arrays.SparseArray([0.0, 1.0, 3.0]), r"dense values, .*: convert it with \.sparse"),
        (pd.cut([1.0, 2.0, 3.0], 3), r"convert other types with str\(level\)"),
        ([pd.Timestamp("2020"), pd.Timestamp("2021")], "convert them with pandas.to_datetime"),
    ],
)
def test_dtypes_without_a_model_are_refused(values, message):
    with pytest.raises(ValueError, match=f"column 'a' expects .*{message}"):
        infer_columns({"a": values})


@for_each(
    ("fields", "message"),
    [
        ({"kind": "amount"}, "amount expects points and a rest"),
        ({"kind": "amount", "points": (0.0,)}, "amount expects points and a rest"),
        ({"kind": "bounded", "bounds": (1.0, 0.0)}, r"bounded expects bounds \(low, high\)"),
        ({"kind": "modes"}, "modes expects num_components >= 2"),
        ({"kind": "ordinal", "levels": (1, 2), "frequencies": (1.0,)}, "one frequency per level"),
        ({"kind": "date", "step": 0}, "date expects step > 0"),
        ({"kind": "constant", "levels": (1, 2)}, "constant expects 1 levels, got 2"),
        ({"kind": "number", "key": b"a"}, "as name, got b'a': rename it"),
    ],
)
def test_column_rejects_incomplete_details(fields, message):
    with pytest.raises(ValueError, match=f"column 'a' .*{message}"):
        Column("a", **fields)


# Unknown values -----------------------------------------------------------------------------------


def test_unknown_values_may_be_missing():
    generator = np.random.default_rng(0)
    table = {
        "color": generator.choice(["red", "blue", "green"], 500),
        "code": generator.integers(0, 2, 500),
        "price": generator.lognormal(2, 1, 500),
        "visits": generator.poisson(2, 500),
        "gain": generator.lognormal(2, 1, 500) * (np.arange(500) % 2),
        "share": 1 / (1 + np.exp(-generator.normal(0.5, 2, 500))),
        "age": generator.normal(40, 9, 500),
    }
    likelihood = MixedLikelihood.from_table(table)
    assert [c.kind for c in likelihood.columns] == [
        *("category", "binary", "positive", "count", "amount", "bounded", "number")
    ]
    known = {name: [*values[:2].tolist(), None] for name, values in table.items()}
    strange = ["pink", 7, -1.0, 1.5, -3.0, 1.5, math.inf]
    masked = MaskedLikelihood(likelihood)
    for index, (name, value) in enumerate(zip(table, strange, strict=True)):
        other = known | {name: [value, *known[name][1:]]}
        with pytest.raises(ValueError, match=f"column '{name}' expects"):
            masked.check_support(likelihood.to_tensor(other))
        x = likelihood.to_tensor(other, unknown="missing")
        expected = torch.zeros(3, 7, dtype=torch.bool)
        expected[0, index], expected[2] = True, True
        assert torch.equal(x.isnan(), expected)
    with pytest.raises(ValueError, match="unknown='raise' or 'missing', got 'skip'"):
        likelihood.to_tensor(known, unknown="skip")


# Filled tables ------------------------------------------------------------------------------------


def test_integers_that_missing_values_made_floats_stay_whole():
    ages = np.random.default_rng(0).normal(40, 12, 200).round()
    ages[::5] = np.nan
    likelihood = MixedLikelihood.from_table({"age": ages, "height": ages + 0.5})
    assert likelihood.describe().count("rounded") == 1
    drawn = likelihood.to_arrays(torch.tensor([[33.4, 33.4], [torch.nan, 41.2]]))
    np.testing.assert_array_equal(drawn["age"], [33.0, np.nan])
    np.testing.assert_allclose(drawn["height"], [33.4, 41.2], rtol=1e-6)
    assert drawn["age"].dtype == np.float64


def test_fill_replaces_missing_entries_only():
    table = frame()
    table[7] = table[7].where(np.arange(40) != 3)
    table[("a", 1)] = table[("a", 1)].where(np.arange(40) != 4)
    table["size"] = table["size"].where(np.arange(40) != 5)
    table["unit"] = table["unit"].where(np.arange(40) != 6)
    table["note"] = [None] * 40
    table[8] = pd.Series(pd.date_range("2020", periods=40), table.index).where(np.arange(40) != 7)
    likelihood = MixedLikelihood.from_table(table)
    x = likelihood.to_tensor(table).nan_to_num(1.0) + 0.0
    before = table.copy()
    filled = likelihood.fill(table, x)
    pd.testing.assert_frame_equal(table, before)
    assert filled.iloc[3, 2] == 1.0
    assert filled.iloc[4, 4] == 1
    assert filled.iloc[5, 6] == "M"
    assert filled.iloc[6, 1] == "cm"
    assert filled.iloc[7, 10] == pd.Timestamp("2020-01-02")
    assert filled["note"].isna().all()
    pd.testing.assert_frame_equal(filled.where(table.notna()), table.where(table.notna()))
    assert filled.dtypes.tolist() == table.dtypes.tolist()


@for_each("kind", ["dict of lists", "dict of arrays", "masked", "matrix", "tensor"])
def test_fill_returns_the_type_of_the_table(kind):
    matrix = np.random.default_rng(0).normal(size=(6, 2))
    holes = matrix.copy()
    holes[2, 0] = math.nan
    table = {
        "dict of lists": {0: holes[:, 0].tolist(), "b": matrix[:, 1].tolist()},
        "dict of arrays": {0: holes[:, 0], "b": matrix[:, 1]},
        "masked": np.ma.array(matrix, mask=np.isnan(holes)),
        "matrix": holes,
        "tensor": torch.from_numpy(holes),
    }[kind]
    columns = infer_columns(table)
    x = to_tensor(table, columns)
    filled = fill(table, torch.where(x.isnan(), 0.5, x), columns)
    assert type(filled) is type(table)
    values = filled[0] if isinstance(table, dict) else filled[:, 0]
    expected = np.where(np.isnan(holes[:, 0]), 0.5, matrix[:, 0])
    np.testing.assert_array_equal(np.asarray(values), expected)
    if isinstance(table, dict):
        assert list(filled) == [0, "b"]
        assert type(filled[0]) is type(table[0])
    with pytest.raises(ValueError, match=r"fill expects a tensor of 6 rows, .* got 5"):
        fill(table, x[:5], columns)


def test_fill_keeps_integers_that_a_tensor_cannot_hold():
    table = {"a": [2**60 + 1, None, 5, 5], "b": [0.1, 0.2, 0.3, None]}
    columns = infer_columns(table, {"a": "category"})
    filled = fill(table, to_tensor(table, columns).nan_to_num(1.0), columns)
    assert filled == {"a": [2**60 + 1, 2**60 + 1, 5, 5], "b": [0.1, 0.2, 0.3, 1.0]}


# Any table ----------------------------------------------------------------------------------------

NAMES = st.one_of(
    st.text(max_size=3), st.integers(-3, 3), st.tuples(st.text(max_size=1), st.integers(0, 2))
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=4)
DTYPES = {
    "float64": FINITE | st.just(math.nan),
    "float32": st.floats(width=32, allow_infinity=False),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "int8": st.integers(-128, 127),
    "uint64": st.integers(0, 2**64 - 1),
    "bool": st.booleans(),
    "Int64": st.none() | st.integers(-(2**40), 2**40),
    "Float64": st.none() | FINITE,
    "boolean": st.none() | st.booleans(),
    "string": st.none() | TEXT,
    "str": st.none() | TEXT,
    "object": st.none() | TEXT,
    "category": st.none() | TEXT,
    "datetime64[ns]": st.none() | st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)),
    "datetime64[us, Europe/Paris]": st.none() | st.datetimes(datetime(1990, 1, 1)),
    "timedelta64[us]": st.none() | st.timedeltas(timedelta(-9999), timedelta(9999)),
}


@st.composite
def frames(draw):
    rows = draw(st.integers(1, 30))
    names = draw(st.lists(NAMES, min_size=1, max_size=6))
    columns = []
    for _ in names:
        dtype = draw(st.sampled_from(list(DTYPES)))
        values = DTYPES[dtype]
        if draw(st.booleans()):  # few values
            values = st.sampled_from(draw(st.lists(values, min_size=1, max_size=3)))
        entries = draw(st.lists(values, min_size=rows, max_size=rows))
        if "Paris" in dtype:
            stamps = pd.Series(pd.to_datetime(pd.Series(entries, dtype="datetime64[us]")))
            columns.append(stamps.dt.tz_localize("UTC").astype(dtype))
        else:
            columns.append(pd.Series(entries, dtype=dtype))
    table = pd.concat(columns, axis=1)
    table.columns = pd.Index(names, tupleize_cols=False)
    return table


REMEDIES = (
    *("rename", "declare", "leave", "convert", "rescale", "drop the rows", "subtract", "round"),
    *("coarser", "str(level)"),
)


def read(table):
    """The likelihood and the tensor of a table, or an error before training."""
    likelihood = MixedLikelihood.from_table(table)
    x = likelihood.to_tensor(table)
    MaskedLikelihood(likelihood).check_support(x)
    return likelihood, x


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(frames())
def test_any_frame_comes_back_or_is_refused_with_a_remedy(table):
    before = table.copy()
    refusal = ""
    try:
        likelihood, x = read(table)
    except ValueError as error:
        refusal = str(error)
    pd.testing.assert_frame_equal(table, before)
    if refusal:
        assert any(remedy in refusal for remedy in REMEDIES), refusal
        return
    kept = [c.label for c in likelihood.columns if c.kind != "identifier"]
    assert x.shape == (len(table), len(likelihood.modeled))
    back = after_a_file(likelihood).to_frame(x, index=table.index)
    assert list(back.columns) == kept
    expected = table.drop(columns=[c.label for c in likelihood.columns if c.kind == "identifier"])
    for name in kept:
        got, values = back[name], expected[name]
        observed = values.notna()
        if any(c.label == name and c.kind == "constant" for c in likelihood.columns):
            got = got[observed]
            values = values[observed]
        pd.testing.assert_series_equal(got, values, check_categorical=True)
    filled = likelihood.fill(table, x.nan_to_num(0.0))
    pd.testing.assert_frame_equal(filled.where(table.notna()), table.where(table.notna()))


def test_thousand_columns_make_few_blocks():
    generator = np.random.default_rng(0)
    table = pd.DataFrame(generator.normal(size=(50, 1000)))
    binary = pd.DataFrame(generator.integers(0, 2, (50, 500))).add_prefix("b")
    table = pd.concat([table, binary], axis=1)
    likelihood = MixedLikelihood.from_table(table)
    kinds = {c.kind for c in likelihood.columns}
    assert len(likelihood.blocks) <= len(kinds)
    pd.testing.assert_frame_equal(likelihood.to_frame(likelihood.to_tensor(table)), table)
