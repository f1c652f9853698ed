import numpy as np
import pandas as pd
import pytest
import scipy.stats

from tinyvae.sklearn import VAEDetector, VAEImputer

CORRELATION = [[1, 0.8], [0.8, 1]]


def normal(num_rows, seed):
    return np.random.default_rng(seed).multivariate_normal([0, 0], CORRELATION, num_rows)


@pytest.fixture(scope="module")
def detector():
    options = {"max_epochs": 40, "validation_fraction": 0.25, "random_state": 0}
    return VAEDetector(**options).fit(normal(1000, seed=0))


def test_score_samples_is_the_log_density(detector):
    x = normal(500, seed=1)
    exact = scipy.stats.multivariate_normal([0, 0], CORRELATION).logpdf(x)
    assert np.abs(detector.score_samples(x) - exact).mean() < 0.1
    assert detector.score(x) == pytest.approx(detector.score_samples(x).mean())


@pytest.mark.parametrize("kind", ["number", "amount"])
def test_score_samples_does_not_depend_on_units(kind):
    x = normal(200, seed=0)
    if kind == "amount":
        x[:120, 1] = 0.0
    x[::7, 0] = np.nan
    scores = []
    for scale in (1.0, 1024.0):  # a power of two, so that no value is rounded
        detector = VAEDetector(max_epochs=1, random_state=0).fit(x * scale)
        assert detector.columns_.columns[1].kind == kind
        scores.append(detector.score_samples(x * scale))
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)


def test_score_samples_is_the_density_of_standardized_values(detector):
    x = normal(500, seed=1)
    x[:, 0] = np.nan
    exact = scipy.stats.norm.logpdf(x[:, 1])
    assert np.abs(detector.score_samples(x) - exact).mean() < 0.1


def test_score_samples_integrates_missing_entries_out(detector):
    x = normal(500, seed=1)
    x[:, 1] = np.nan
    exact = scipy.stats.norm.logpdf(x[:, 0])
    assert np.abs(detector.score_samples(x) - exact).mean() < 0.1


def test_p_values_of_new_rows_are_uniform(detector):
    p = detector.p_values(normal(1000, seed=3))
    assert len(detector.reference_scores_) == 250
    for level in (0.05, 0.2, 0.5):
        # Four standard errors of the share, which has the noise of both samples.
        error = 4 * np.sqrt(level * (1 - level) * (1 / 250 + 1 / 1000))
        assert np.mean(p <= level) == pytest.approx(level, abs=error)


def test_p_values_count_reference_scores(detector):
    x = normal(50, seed=4)
    scores, reference = detector.score_samples(x), detector.reference_scores_
    expected = [(1 + np.sum(reference <= s)) / (1 + len(reference)) for s in scores]
    np.testing.assert_allclose(detector.p_values(x), expected)
    assert detector.p_values([[40.0, -40.0]]) == 1 / 251


def test_predict_follows_the_offset(detector):
    x = np.concatenate([normal(50, seed=5), [[9.0, -9.0], [2.5, -2.5]]])
    decision = detector.decision_function(x)
    np.testing.assert_allclose(decision, detector.score_samples(x) - detector.offset_)
    assert (detector.predict(x) == np.where(decision < 0, -1, 1)).all()
    assert detector.predict(x)[-2:].tolist() == [-1, -1]
    low, high = np.percentile(detector.reference_scores_, [25, 75])
    assert detector.offset_ == pytest.approx(low - 1.5 * (high - low))


def test_contamination_is_the_share_of_outliers():
    x = normal(200, seed=0)
    detector = VAEDetector(contamination=0.05, max_epochs=1, random_state=0)
    assert (detector.fit_predict(x) == -1).sum() == 10
    for wrong in (0.0, 0.6, "half"):
        with pytest.raises(ValueError, match="contamination"):
            VAEDetector(contamination=wrong).fit(x)


def test_explain_splits_the_score_by_column(detector, frame, imputer):
    other = VAEDetector.from_fitted(imputer, frame)
    terms = other.explain(frame)
    assert terms.columns.tolist() == [*frame.columns, "latent"]
    assert terms.index.equals(frame.index)
    np.testing.assert_allclose(terms.sum(axis=1), -other.score_samples(frame))
    assert (terms.to_numpy()[:, :-1][frame.isna()] == 0).all()
    x = normal(20, seed=0)
    assert detector.explain(x).shape == (20, 3)


def test_explain_finds_the_unusual_column():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(300, 4)) * [1, 1e-3, 1e3, 1], columns=list("abcd"))
    detector = VAEDetector(max_epochs=5, random_state=0).fit(frame)
    changed = pd.DataFrame([[0, 8e-3, 0, 0], [0, 0, 8e3, 0]], columns=list("abcd"))
    terms = detector.explain(changed, relative=True)
    assert terms.idxmax(axis=1).tolist() == ["b", "c"]
    reference = detector.explain(frame, relative=True)
    assert abs(reference.mean().sum()) < 1


def test_relative_terms_compare_observed_entries_with_observed_entries(imputer, frame):
    detector = VAEDetector.from_fitted(imputer, frame)
    terms = detector.explain(frame, relative=True).to_numpy()
    missing = frame.isna().to_numpy()
    assert (terms[:, :-1][missing] == 0).all()
    np.testing.assert_allclose(terms.sum(0), 0, atol=1e-9)


def test_reference_rows_are_all_rows_without_early_stopping():
    x = normal(40, seed=0)
    detector = VAEDetector(max_epochs=1, random_state=0, early_stopping=False).fit(x)
    np.testing.assert_allclose(detector.reference_scores_, np.sort(detector.score_samples(x)))


def test_from_fitted_shares_the_model(imputer, frame):
    detector = VAEDetector.from_fitted(imputer, frame)
    assert detector.vae_ is imputer.vae_
    assert detector.get_params()["random_state"] == 0
    np.testing.assert_array_equal(detector.score_samples(frame), imputer.score_samples(frame))
    assert detector.feature_names_in_.tolist() == frame.columns.tolist()


def test_scores_do_not_depend_on_other_rows(detector):
    x = normal(300, seed=6)
    scores, order = detector.score_samples(x), np.random.default_rng(0).permutation(300)
    np.testing.assert_allclose(detector.score_samples(x[order]), scores[order], rtol=1e-12)
    np.testing.assert_allclose(detector.score_samples(x[:1]), scores[:1], rtol=1e-12)


def test_from_fitted_refuses_an_unfitted_estimator():
    with pytest.raises(ValueError, match="not fitted"):
        VAEDetector.from_fitted(VAEImputer(), [[1.0]])
