import numpy as np
import pandas as pd
import pytest
from helpers.frames import mixed_frame

from tinyvae import GaussianLikelihood
from tinyvae.likelihoods import MixedLikelihood, StandardizedLikelihood, StudentTLikelihood
from tinyvae.sklearn import VAEDetector, VAEImputer


@pytest.fixture(scope="module")
def colors():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"color": rng.choice(["blue", "green", "red"], 58), "unit": 7})
    return VAEDetector(max_epochs=5, random_state=0).fit(frame)


def test_score_samples_is_normalized_over_levels_seen_or_not(colors):
    n = 58
    frame = pd.DataFrame({"color": ["blue", "green", "red", "pink", None], "unit": 7})
    p = np.exp(colors.score_samples(frame)) * (n + 2) / (n + 1)  # without the constant
    assert p[3] == pytest.approx(p[4] / (n + 2), rel=1e-12)
    assert p[4] == pytest.approx(1, abs=1e-2)
    assert p[:4].sum() == pytest.approx(1, abs=1e-2)


def test_score_samples_counts_changed_constants(colors):
    frame = pd.DataFrame({"color": ["blue"] * 4, "unit": [7.0, 8.0, None, 9.0]})
    scores = colors.score_samples(frame)
    expected = np.log([59 / 60, 1 / 60, 1, 1 / 60])
    np.testing.assert_allclose(scores - scores[2], expected, rtol=1e-9)


@pytest.mark.parametrize("value", [np.datetime64("2020-01-01"), "text", True, 3, 2.5])
def test_constants_of_any_dtype_compare_with_new_values(value):
    frame = pd.DataFrame({"x": np.random.default_rng(0).normal(size=20), "constant": value})
    detector = VAEDetector(max_epochs=1, random_state=0).fit(frame)
    changed = frame.assign(constant=np.datetime64("2021-05-05") if value is True else "other")
    excess = detector.score_samples(frame) - detector.score_samples(changed)
    np.testing.assert_allclose(excess, np.log(21))


def test_values_outside_the_support_are_unseen_and_never_nan():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"flag": rng.integers(0, 2, 200), "amount": rng.lognormal(3, 1.5, 200)})
    detector = VAEDetector(max_epochs=2, random_state=0).fit(frame)
    frame = pd.DataFrame({"flag": [0.5, 1.0, 2.0, 1.0], "amount": [3.0, -1.0, 1e300, 1e-300]})
    scores = detector.score_samples(frame)
    assert np.isfinite(scores).all()
    assert detector.explain(frame)["amount"][1] == pytest.approx(np.log(202))
    assert detector.explain(frame)["flag"][0] == pytest.approx(np.log(202))


def test_empty_columns_contribute_zero(imputer, frame):
    detector = VAEDetector.from_fitted(imputer, frame)
    terms = detector.explain(frame.assign(empty=1.0))
    assert (terms["empty"] == 0).all()


def test_likelihood_replaces_that_of_a_column():
    table = np.random.default_rng(0).normal(size=(30, 2))
    heavy = StandardizedLikelihood(StudentTLikelihood(df=3.0), mean=[0.0], std=[1.0])
    imputer = VAEImputer(likelihood={"x1": heavy}, max_epochs=1, random_state=0).fit(table)
    assert "StudentT" in imputer.describe()
    before = [p.clone() for p in heavy.parameters()]
    assert all((p == q).all() for p, q in zip(heavy.parameters(), before, strict=True))


def test_likelihood_of_all_columns_is_copied():
    frame = mixed_frame()
    likelihood = MixedLikelihood.from_table(frame, kinds={"age": "count"})
    state = {name: value.clone() for name, value in likelihood.state_dict().items()}
    imputer = VAEImputer(likelihood=likelihood, max_epochs=1, random_state=0).fit(frame)
    assert imputer.columns_ is not likelihood
    assert all((state[name] == value).all() for name, value in likelihood.state_dict().items())
    assert "count" in imputer.describe()


def test_kinds_correct_the_inferred_ones(frame):
    imputer = VAEImputer(kinds={"age": "count"}, max_epochs=1, random_state=0).fit(frame)
    kinds = {column.name: column.kind for column in imputer.columns_.columns}
    assert kinds["age"] == "count"
    assert kinds["unit"] == kinds["empty"] == "constant"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kinds": {"agee": "count"}}, "agee"),
        ({"likelihood": {"agee": GaussianLikelihood()}}, "agee"),
        ({"likelihood": "gaussian"}, "likelihood expects"),
        ({"likelihood": 3}, "likelihood expects"),
        ({"likelihood": MixedLikelihood.from_table({"x": [1.0, 2.5]})}, "from_table"),
    ],
)
def test_fit_refuses_descriptions_of_other_columns(frame, options, words):
    with pytest.raises(ValueError, match=words):
        VAEImputer(**options).fit(frame)
