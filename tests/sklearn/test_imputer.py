import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from tinyvae.sklearn import VAEImputer


def correlated(num_rows=1000, seed=0):
    """Two standard normal columns with correlation 0.8, the second one missing in half the rows."""
    rng = np.random.default_rng(seed)
    x = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], num_rows)
    holes = x.copy()
    holes[rng.random(num_rows) < 0.5, 1] = np.nan
    return x, holes


@pytest.fixture(scope="module")
def fitted():
    _, holes = correlated()
    return VAEImputer(max_epochs=60, random_state=0).fit(holes)


def test_transform_keeps_observed_entries_dtypes_names_and_index(imputer, frame):
    filled, kept = imputer.transform(frame), frame.drop(columns="empty")
    assert filled.dtypes.tolist() == kept.dtypes.tolist()
    assert filled.index.equals(frame.index)
    assert filled.columns.tolist() == kept.columns.tolist() == list(imputer.get_feature_names_out())
    assert filled.notna().all(axis=None)
    for name, values in kept.items():
        observed = values.notna()
        assert (filled[name][observed] == values[observed]).all()
    assert frame.isna().any(axis=None)  # the argument is unchanged


def test_transform_fills_within_the_kind_of_a_column(imputer, frame):
    filled = imputer.transform(frame)
    assert set(filled["city"]) == {"Bern", "Oslo", "Rome"}
    assert (filled["unit"] == 3).all()
    assert filled["born"].between(frame["born"].min(), frame["born"].max()).all()


def test_transform_keeps_empty_features_on_request(frame):
    imputer = VAEImputer(max_epochs=1, random_state=0, keep_empty_features=True).fit(frame)
    filled = imputer.transform(frame)
    assert filled.columns.tolist() == frame.columns.tolist()
    assert filled["empty"].isna().all()
    assert imputer.transform(frame.assign(empty=2.5))["empty"].eq(2.5).all()


def test_transform_keeps_new_levels(imputer, frame):
    changed = frame.assign(city=["Paris", *frame["city"][1:]])
    assert imputer.transform(changed)["city"].iloc[0] == "Paris"


@pytest.mark.parametrize("dtype", [np.float32, np.float64, object])
def test_transform_of_an_array_is_an_array_of_its_dtype(dtype):
    table = np.random.default_rng(0).normal(size=(30, 3)).astype(dtype)
    table[0, 0] = np.nan
    filled = VAEImputer(max_epochs=1, random_state=0).fit_transform(table)
    assert filled.dtype == dtype
    assert (filled[1:] == table[1:]).all()
    assert np.isfinite(filled.astype(float)).all()


def test_transform_of_text_in_an_array():
    rng = np.random.default_rng(0)
    table = np.array(rng.choice(["a", "b"], (30, 2)), dtype=object)
    table[3, 1] = None
    filled = VAEImputer(max_epochs=1, random_state=0).fit_transform(table)
    assert filled[3, 1] in ("a", "b")


@pytest.mark.slow
def test_transform_fills_with_conditional_means(fitted):
    x, holes = correlated(seed=1)
    missing = np.isnan(holes[:, 1])
    error = fitted.transform(holes)[missing, 1] - x[missing, 1]
    # The best possible value is 1 - 0.8 ** 2 = 0.36. The mean of the column gives 1.
    assert np.square(error).mean() < 0.45


@pytest.mark.slow
def test_impute_draws_from_conditional_distributions(fitted):
    x, holes = correlated(seed=2)
    missing = np.isnan(holes[:, 1])
    tables = fitted.impute(holes, num_imputations=20)
    assert all((table[~missing] == holes[~missing]).all() for table in tables)
    draws = np.stack([table[missing, 1] for table in tables])
    assert draws.std(0).mean() == pytest.approx(0.6, abs=0.1)
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    truth = x[missing, 1]
    assert 0.8 < np.mean((low <= truth) & (truth <= high)) < 0.97
    # Draws of different rows are independent.
    standardized = (draws - draws.mean(0)) / draws.std(0)
    assert (
        abs(np.corrcoef(standardized[:, 0::2].mean(1), standardized[:, 1::2].mean(1))[0, 1]) < 0.7
    )


def test_impute_repeats_with_its_random_state(imputer, frame):
    first, again = (imputer.impute(frame, 2, random_state=3) for _ in range(2))
    other = imputer.impute(frame, 2, random_state=4)
    pd.testing.assert_frame_equal(first[1], again[1])
    assert not first[0].equals(first[1])
    assert not first[0].equals(other[0])


def test_sample_posterior_fills_with_a_draw(frame):
    imputer = VAEImputer(max_epochs=1, random_state=0, sample_posterior=True).fit(frame)
    drawn = imputer.transform(frame)
    pd.testing.assert_frame_equal(drawn, imputer.transform(frame))
    mean = imputer.set_params(sample_posterior=False).transform(frame)
    assert not drawn["income"].equals(mean["income"])


def test_transform_of_a_row_does_not_depend_on_the_others(imputer, frame):
    filled = imputer.transform(frame)
    for row in range(3):
        one = imputer.transform(frame.iloc[[row]])
        numbers = ["income", "short"]
        np.testing.assert_allclose(one[numbers], filled[numbers].iloc[[row]], rtol=1e-6)


def test_imputer_works_in_pipelines_and_searches(frame):
    labels = np.arange(len(frame)) % 2
    columns = ColumnTransformer(
        [("numbers", VAEImputer(max_epochs=1, random_state=0), ["age", "income", "short"])]
    )
    pipeline = make_pipeline(columns, LogisticRegression(max_iter=10_000))
    assert pipeline.fit(frame, labels).predict(frame).shape == labels.shape
    search = GridSearchCV(VAEImputer(max_epochs=1, random_state=0), {"latent_dim": [2, 3]}, cv=2)
    search.fit(frame[["age", "income"]])
    assert np.isfinite(search.best_score_)


def test_set_output_names_columns():
    table = np.random.default_rng(0).normal(size=(20, 2))
    table[0, 0] = np.nan
    imputer = VAEImputer(max_epochs=1, random_state=0).set_output(transform="pandas")
    assert imputer.fit_transform(table).columns.tolist() == ["x0", "x1"]


def test_clone_keeps_parameters(imputer):
    copy = clone(imputer.set_params(hidden=(8, 8)))
    assert copy.get_params() == imputer.get_params()
    assert "vae_" not in vars(copy)
    imputer.set_params(hidden="auto")


def test_random_state_repeats_a_fit(frame):
    tables = [
        VAEImputer(max_epochs=1, random_state=s).fit(frame).transform(frame) for s in (1, 1, 2)
    ]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert not tables[0].equals(tables[2])
