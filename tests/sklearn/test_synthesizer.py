import numpy as np
import pandas as pd
import pytest

from tinyvae.sklearn import VAESynthesizer


@pytest.fixture(scope="module")
def synthesizer(imputer):
    return VAESynthesizer.from_fitted(imputer)


def test_sample_has_the_dtypes_and_levels_of_the_table(synthesizer, frame):
    drawn = synthesizer.sample(40)
    assert drawn.dtypes.tolist() == frame.dtypes.tolist()
    assert drawn.drop(columns="empty").notna().all(axis=None)
    assert set(drawn["city"]) <= {"Bern", "Oslo", "Rome"}
    assert (drawn["unit"] == 3).all()


def test_sample_repeats_with_its_random_state(synthesizer):
    first, again, other = (synthesizer.sample(5, random_state=s) for s in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)
    pd.testing.assert_frame_equal(synthesizer.sample(5), synthesizer.sample(5))


def test_sample_keeps_given_values(synthesizer):
    given = {"city": "Oslo", "smokes": True, "visits": 7, "born": pd.Timestamp("1990-05-05")}
    drawn = synthesizer.sample(30, given=given)
    for name, value in given.items():
        assert (drawn[name] == value).all()
    same = synthesizer.sample(30, given=given | {"born": "1990-05-05"})
    pd.testing.assert_frame_equal(drawn, same)


def test_sample_limits_numbers_to_their_range(imputer, frame):
    synthesizer = VAESynthesizer.from_fitted(imputer)
    limits = frame["income"].min(), frame["income"].max()
    assert synthesizer.sample(200)["income"].between(*limits).all()
    free = synthesizer.set_params(clip=False).sample(200)["income"]
    assert free.nunique() == 200
    assert not free.between(*limits).all()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (pd.DataFrame({"city": ["Oslo"]}), TypeError, "got a DataFrame: pass row.to_dict"),
        ({"city": "Paris"}, ValueError, "a level of column 'city' in .*, got 'Paris'"),
        ({"town": "Oslo"}, ValueError, "expects columns in"),
    ],
)
def test_sample_refuses_what_it_cannot_condition_on(synthesizer, given, error, message):
    with pytest.raises(error, match=message):
        synthesizer.sample(3, given=given)


@pytest.mark.slow
def test_sample_draws_from_the_conditional_distribution():
    rng = np.random.default_rng(0)
    x = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 2000)
    synthesizer = VAESynthesizer(max_epochs=60, random_state=0).fit(x)
    drawn = synthesizer.sample(2000, given={"x0": 1.0})
    assert (drawn[:, 0] == 1).all()
    assert drawn[:, 1].mean() == pytest.approx(0.8, abs=0.15)
    assert drawn[:, 1].std() == pytest.approx(0.6, abs=0.1)
    free = synthesizer.sample(4000)
    assert np.corrcoef(free.T)[0, 1] == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"town": "Oslo"}, "town"),
        ({"city": "Paris"}, "Paris"),
        ({"unit": 4.0}, "leave it out"),
    ],
)
def test_sample_refuses_values_that_the_model_cannot_draw(synthesizer, given, words):
    with pytest.raises(ValueError, match=words):
        synthesizer.sample(3, given=given)


def test_sample_leaves_identifiers_out():
    frame = pd.DataFrame({"key": [f"row {i}" for i in range(30)]})
    frame["x"] = np.random.default_rng(0).normal(size=30)
    synthesizer = VAESynthesizer(max_epochs=1, random_state=0).fit(frame)
    assert synthesizer.sample(3).columns.tolist() == ["x"]


@pytest.mark.filterwarnings("error")
def test_sample_leaves_a_column_missing_that_was_never_observed():
    numbers = np.arange(12) / 7
    nothing = pd.Categorical([None] * 12, categories=["u", "v"], ordered=True)
    table = pd.DataFrame({"a": numbers, "b": nothing})
    drawn = VAESynthesizer(max_epochs=1, random_state=0).fit(table).sample(5)
    assert drawn["b"].isna().all()
    assert drawn["b"].dtype == table["b"].dtype
