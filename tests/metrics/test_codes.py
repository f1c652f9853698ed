"""Metrics of codes, on codes with known scores."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from tinyvae.metrics import (
    clustering,
    dci,
    factor_vae_score,
    k_means,
    knn_probe,
    linear_probe,
    modularity,
    mutual_information,
    mutual_information_gap,
    separated_attribute_predictability,
)
from tinyvae.metrics.disentanglement import _predictability
from tinyvae.metrics.scores import jackknife


def grid(repeats=25):
    """Two independent factors of 4 classes, all 16 pairs equally often."""
    cells = np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(-1, 2)
    return np.random.default_rng(0).permutation(np.tile(cells, (repeats, 1)))


def noise(size, dims=2, seed=1):
    return np.random.default_rng(seed).standard_normal((size, dims))


ROTATION = np.array([[1.0, -1.0], [1.0, 1.0]]) / math.sqrt(2)


# Mutual information


def test_mutual_information_has_closed_values():
    v = grid()
    codes = np.stack([v[:, 0], v[:, 0] // 2, 4 * v[:, 0] + v[:, 1], 0 * v[:, 0]], 1)
    want = math.log(2) * np.array([[2, 0], [1, 0], [2, 2], [0, 0]])
    np.testing.assert_allclose(mutual_information(codes, v), want, atol=1e-12)


def test_mutual_information_of_gaussians_approaches_minus_half_log():
    rho, z = 0.8, noise(100_000)
    pair = rho * z[:, 0] + math.sqrt(1 - rho**2) * z[:, 1]
    got = mutual_information(z[:, 0], pair, bins=60)[0, 0]
    assert got == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.02)


@pytest.mark.parametrize(
    ("make", "want"),
    [
        (lambda v: v, 1.0),
        (lambda v: np.column_stack([-v[:, 1], v[:, 0] ** 2]), 1.0),
        (lambda v: np.column_stack([v, v]), 0.0),  # each factor in two dimensions
        (lambda v: np.column_stack([v, v // 2]), 0.5),
        (lambda v: np.column_stack([v, v[:, 0]]), 0.5),
        (lambda v: v @ ROTATION, 0.0),
    ],
)
def test_gap_has_closed_values(make, want):
    v = grid()
    assert mutual_information_gap(make(v), v).value == pytest.approx(want, abs=1e-12)
    assert mutual_information_gap(torch.tensor(make(v)), torch.tensor(v)).value == pytest.approx(
        want, abs=1e-12
    )


def test_gap_of_independent_codes_is_small():
    v = grid(500)
    score = mutual_information_gap(noise(len(v), 4), v)
    assert 0 <= score.value < 0.01


@pytest.mark.parametrize(
    ("make", "want"),
    [
        (lambda v: v, 1.0),
        (lambda v: np.column_stack([v, v[:, 0] // 2]), 1.0),  # completeness does not count
        (lambda v: np.column_stack([v[:, 0], 4 * v[:, 0] + v[:, 1]]), 0.5),
        (lambda v: 4 * v[:, :1] + v[:, 1:] // 2, 0.75),  # log 4 and log 2: 1 - (1 / 2)^2
        (lambda v: np.column_stack([v, 0 * v[:, 0], 0 * v[:, 0]]), 0.5),  # 2 constant dimensions
    ],
)
def test_modularity_has_closed_values(make, want):
    v = grid()
    assert modularity(make(v), v).value == pytest.approx(want, abs=1e-12)


# Predictors


def test_sap_has_closed_values():
    v = grid()
    sap = separated_attribute_predictability
    drawn = np.random.default_rng(0).integers(4, size=(4000, 2))
    score = sap(drawn, drawn)
    assert abs(score.value - (1 - 1 / 4)) < 4 * score.standard_error < 0.15  # chance is 1 / 4
    assert sap(np.column_stack([v, v]), v).value == 0
    u = np.column_stack([v, v // 2])  # two thresholds fewer: mean accuracy of 1 / 2
    assert sap(u, v).value == pytest.approx(0.5, abs=0.01)
    z = noise(20_000)
    real = z[:, 0]
    codes = np.column_stack([z[:, 0], 0.6 * z[:, 0] + 0.8 * z[:, 1]])
    score = sap(codes, real)
    assert abs(score.value - (1 - 0.36)) < 4 * score.standard_error < 0.05


def test_sap_scores_classes_on_rows_that_no_threshold_was_fitted_to():
    y, codes = np.arange(200) % 4, noise(200, 200)
    is_test = np.random.default_rng(2).random(200) < 0.3
    scores = np.array([_predictability(code, y, is_test) for code in codes.T])
    assert abs(scores.mean() - 0.25) < 4 * scores.std() / math.sqrt(len(scores))


def test_dci_of_perfect_rotated_and_repeated_codes():
    v = np.random.default_rng(0).random((1500, 2))
    perfect = dci(v, v, trees=20)
    assert perfect.disentanglement > 0.97
    assert perfect.completeness > 0.97
    assert min(score.value for score in perfect.informativeness) > 0.99
    rotated = dci(v @ ROTATION, v, trees=20)
    assert rotated.disentanglement < 0.1
    assert rotated.completeness < 0.1
    # Each factor in two of four dimensions: 1 - log 2 / log 4.
    repeated = dci(np.column_stack([v, v]), v, trees=50)
    assert repeated.disentanglement > 0.97
    assert repeated.completeness == pytest.approx(0.5, abs=0.05)
    independent = dci(noise(1500), v > 0.5, trees=20)
    assert independent.disentanglement < 0.05
    for score in independent.informativeness:
        assert abs(score.value - 0.5) < 4 * score.standard_error
    np.testing.assert_allclose(independent.importance.sum(0), 1)


def test_factor_vae_score_of_perfect_rotated_and_independent_codes():
    v = np.random.default_rng(0).integers(4, size=(4000, 4))
    assert factor_vae_score(v[:, [2, 0, 1, 3]], v).value == 1
    assert factor_vae_score(np.column_stack([v, 0 * v[:, 0]]), v).value == 1
    scale = np.array([1.0, 100.0, 0.01, 1.0])
    assert factor_vae_score(v * scale + 0.1 * scale * noise(len(v), 4), v).value == 1
    chance = factor_vae_score(noise(len(v), 6), v)
    assert abs(chance.value - 0.25) < 4 * chance.standard_error
    # Factors 0 and 1 are rotated into each other and cannot be told apart: 2 / 4 + (1 / 2) 2 / 4.
    mixed = np.column_stack([v[:, :2] @ ROTATION, v[:, 2:]])
    score = factor_vae_score(mixed, v, votes=4000)
    assert abs(score.value - 0.75) < 4 * score.standard_error
    real = np.random.default_rng(0).random((4000, 2))
    assert factor_vae_score(real, real).value == 1


# Probes


def test_linear_probe_reaches_the_bayes_accuracy():
    labels = np.arange(20_000) % 2
    codes = noise(20_000, 3)
    codes[:, 1] += 1.5 * labels
    score = linear_probe(codes, labels)
    assert abs(score.value - norm.cdf(0.75)) < 4 * score.standard_error
    assert linear_probe(codes, np.where(labels, "a", "b")) == score
    rotated = linear_probe(codes @ np.linalg.qr(noise(3, 3))[0], labels)
    assert rotated.value == pytest.approx(score.value, abs=0.002)


@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_probes_of_independent_codes_are_at_chance(probe):
    score = probe(noise(5000), np.arange(5000) % 4)
    assert abs(score.value - 0.25) < 4 * score.standard_error
    real = probe(noise(5000), noise(5000, 1, seed=2)[:, 0])
    assert real.value < 0.01


def test_linear_probe_has_the_share_of_explained_variance():
    z = noise(20_000)
    score = linear_probe(z[:, :1], z[:, 0] + 0.5 * z[:, 1])
    assert abs(score.value - 0.8) < 4 * score.standard_error
    # Of a squared correlation: 2 rho (1 - rho^2) / sqrt(n), with 4,000 rows to test on.
    want = 2 * math.sqrt(0.8) * (1 - 0.8) / math.sqrt(4000)
    assert score.standard_error == pytest.approx(want, rel=0.1)


def test_knn_probe_solves_what_a_linear_one_cannot():
    codes = noise(4000)
    labels = codes[:, 0] * codes[:, 1] > 0
    assert knn_probe(codes, labels).value > 0.95
    assert linear_probe(codes, labels).value < 0.6


def test_probes_test_only_on_the_given_rows():
    codes, labels = noise(100, 1), np.arange(100) % 2
    codes[:, 0] = labels
    labels[:10] = 1 - labels[:10]  # all wrong where the test is
    assert linear_probe(codes, labels, test_rows=range(10)).value == 0
    assert knn_probe(codes, labels, test_rows=np.arange(100) < 10).value == 0
    assert knn_probe(codes, labels, test_rows=torch.arange(10, 100)).value < 1


# Clusters


def test_clustering_accuracy_is_the_best_over_all_maps():
    rng = np.random.default_rng(0)
    clusters, labels = rng.integers(4, size=(2, 60))
    want = max((np.array(p)[clusters] == labels).mean() for p in permutations(range(4)))
    assert clustering(clusters, labels).accuracy.value == pytest.approx(want)
    more = clustering(np.arange(60) % 6, np.arange(60) % 3)  # 3 of 6 clusters have a class
    assert more.accuracy.value == pytest.approx(0.5)
    # I = log 3, entropies log 6 and log 3.
    want = 2 * math.log(3) / math.log(18)
    assert more.normalized_mutual_information.value == pytest.approx(want)


def test_clustering_of_renamed_and_of_random_clusters():
    labels = np.arange(3000) % 3
    same = clustering(np.array([7, 2, 5])[labels], labels)
    scores = (same.accuracy, same.normalized_mutual_information, same.adjusted_rand_index)
    assert [score.value for score in scores] == pytest.approx([1, 1, 1])
    chance = clustering(np.random.default_rng(0).integers(3, size=3000), labels)
    index = chance.adjusted_rand_index
    assert abs(index.value) < max(4 * index.standard_error, 0.003)
    assert chance.accuracy.value < 0.4


def test_k_means_finds_separate_clusters():
    labels = np.arange(300) % 5
    codes = 20 * noise(5, seed=3)[labels] + noise(300)
    assert clustering(k_means(codes, 5), labels).adjusted_rand_index.value == 1


# Standard errors


def test_jackknife_of_a_mean_is_its_standard_error():
    x = noise(2000, 1)[:, 0]
    score = jackknife(lambda rows: x[rows].mean(), len(x))
    assert score.standard_error == pytest.approx(x.std() / math.sqrt(len(x)), rel=0.5)
    assert abs(score.bias) < 1e-12
    few = x[:10]
    score = jackknife(lambda rows: few[rows].var(), len(few))  # bias -sigma^2 / n
    assert score.bias == pytest.approx(-few.var(ddof=1) / 10)


@pytest.mark.slow
def test_standard_errors_have_the_size_of_the_spread():
    def repeat(score):
        scores = [score(np.random.default_rng(seed)) for seed in range(100)]
        spread = np.std([s.value for s in scores])
        return np.sqrt(np.mean([s.standard_error**2 for s in scores])) / spread

    def noisy_gap(rng):
        v = rng.integers(4, size=(800, 2))
        return mutual_information_gap(v + 0.5 * rng.standard_normal((800, 2)), v)

    def noisy_sap(rng):
        z = rng.standard_normal((400, 2))
        return separated_attribute_predictability(z, z[:, 0] + z[:, 1] / 2)

    def explained(rng):
        z = rng.standard_normal((1000, 2))
        return linear_probe(z[:, :1], z[:, 0] + z[:, 1])

    # The spread of 100 repetitions is known to 7 %.
    for score in (noisy_gap, noisy_sap, explained):
        assert 0.7 < repeat(score) < 1.4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_probe(noise(5), np.zeros(4)), "labels of shape"),
        (lambda: linear_probe(noise(5), np.zeros(5)), "labels that vary"),
        (lambda: knn_probe(noise(5) * np.nan, np.arange(5)), "finite codes"),
        (lambda: mutual_information_gap(noise(16, 1), grid(1)), "2 code dimensions"),
        (lambda: modularity(noise(16), grid(1)[:, 0]), "2 factors"),
        (lambda: dci(noise(16), grid(1)[:, 0]), "2 factors"),
        (lambda: mutual_information(noise(16), grid(2)), "factors"),
        (lambda: clustering(noise(16)[:, 0], grid(1)[:, 0]), "k_means"),
    ],
)
def test_errors_name_the_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()
