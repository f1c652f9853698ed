"""Metrics of samples, on distributions with known distances."""

import math

import numpy as np
import pytest
import torch

from tinyvae.metrics import discrepancy as discrepancy_module
from tinyvae.metrics import (
    frechet_distance,
    gaussian_frechet_distance,
    kernel_distance,
    mmd,
    neighbor_scores,
)
from tinyvae.metrics import neighbors as neighbors_module

pytestmark = pytest.mark.usefixtures("float64")


def normal(rows, dims=2, seed=0):
    return torch.randn(rows, dims, generator=torch.Generator().manual_seed(seed))


# Neighbors


def direct_scores(x, y, k):
    """The four definitions, one pair of points at a time."""
    d_xx, d_yy, d_xy = torch.cdist(x, x), torch.cdist(y, y), torch.cdist(x, y)
    ball_x = [sorted(row.tolist())[k] for row in d_xx]
    ball_y = [sorted(row.tolist())[k] for row in d_yy]
    n, m = range(len(x)), range(len(y))
    in_x = np.array([[d_xy[i, j] <= ball_x[i] for j in m] for i in n])
    in_y = np.array([[d_xy[i, j] <= ball_y[j] for j in m] for i in n])
    return in_x.any(0).mean(), in_y.any(1).mean(), in_x.sum() / (k * len(y)), in_x.any(1).mean()


def values(scores):
    each = (scores.precision, scores.recall, scores.density, scores.coverage)
    return [score.value for score in each]


def test_neighbor_scores_follow_the_definitions(monkeypatch):
    x, y = normal(40), 0.8 * normal(30, seed=1) + 0.3
    want = direct_scores(x, y, k=3)
    assert values(neighbor_scores(x, y, k=3)) == pytest.approx(want, abs=1e-12)
    assert min(want) < 0.95
    monkeypatch.setattr(neighbors_module, "CHUNK_ELEMENTS", 100)
    assert values(neighbor_scores(x.numpy(), y.numpy(), k=3)) == pytest.approx(want, abs=1e-12)


def test_coverage_and_density_of_the_true_distribution_have_closed_means():
    n, m, k = 100, 60, 5
    repeats = [neighbor_scores(normal(n, seed=s), normal(m, seed=1000 + s)) for s in range(200)]
    coverage = 1 - math.prod((n - j) / (n + m - j) for j in range(1, k + 1))
    for name, want in (("coverage", coverage), ("density", 1.0)):
        got = np.array([getattr(scores, name).value for scores in repeats])
        assert abs(got.mean() - want) < 4 * got.std() / math.sqrt(len(got)), name


def test_neighbor_scores_tell_quality_from_variety():
    x = torch.cat([normal(300), normal(300, seed=1) + 20])
    one_mode = neighbor_scores(x, normal(600, seed=2))
    assert one_mode.precision.value > 0.95
    assert one_mode.recall.value == pytest.approx(0.5, abs=0.03)
    assert one_mode.coverage.value == pytest.approx(0.5, abs=0.03)
    half_outside = torch.cat([normal(300, seed=3), normal(300, seed=4) - 50])
    outside = neighbor_scores(normal(600), half_outside)
    assert outside.precision.value == pytest.approx(0.5, abs=0.03)
    assert values(neighbor_scores(x, x + 1000)) == [0, 0, 0, 0]


# Maximum mean discrepancy


def direct_estimate(x, y, kernel):
    n, m = len(x), len(y)
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    xx, yy = xx.sum() - xx.trace(), yy.sum() - yy.trace()
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy.mean()


def gaussian(h):
    return lambda a, b: torch.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * h**2))


def cubic(a, b):
    return (a @ b.mT / a.shape[1] + 1) ** 3


def test_estimates_and_jackknife_follow_the_definitions(monkeypatch):
    x, y = normal(30, 3), 1.2 * normal(20, 3, seed=1) + 0.5
    monkeypatch.setattr(discrepancy_module, "CHUNK_ELEMENTS", 350)
    for score, kernel in (
        (mmd(x, y, bandwidth=0.7, permutations=0).squared, gaussian(0.7)),
        (kernel_distance(x, y), cubic),
    ):
        assert score.value == pytest.approx(direct_estimate(x, y, kernel).item(), rel=1e-10)
        variance = 0.0
        for count in (len(x), len(y)):
            left = []
            for i in range(count):
                keep = torch.arange(count) != i
                a, b = (x[keep], y) if count == len(x) else (x, y[keep])
                left.append(direct_estimate(a, b, kernel).item())
            variance += (count - 1) * np.var(left)
        assert score.standard_error == pytest.approx(math.sqrt(variance), rel=1e-8)


def test_default_bandwidth_is_the_median_distance():
    x, y = normal(100), normal(80, seed=1) + 0.4
    median = torch.pdist(torch.cat([x, y])).median().item()
    assert mmd(x, y).squared == mmd(x, y, bandwidth=median).squared


def test_mmd_is_unbiased_and_its_error_honest():
    # For a - b ~ N(delta, 2) in one dimension, E exp(-(a - b)^2 / (2 h^2)) is
    # h / sqrt(h^2 + 2) exp(-delta^2 / (2 (h^2 + 2))). Here are two dimensions, one of them shifted.
    h, delta = 1.5, 1.0
    want = 2 * h**2 / (h**2 + 2) * (1 - math.exp(-(delta**2) / (2 * (h**2 + 2))))
    shift = torch.tensor([delta, 0.0])
    repeats = [
        mmd(normal(100, seed=s), normal(50, seed=500 + s) + shift, bandwidth=h, permutations=0)
        for s in range(300)
    ]
    got = np.array([result.squared.value for result in repeats])
    assert abs(got.mean() - want) < 4 * got.std() / math.sqrt(len(got))
    stated = np.sqrt(np.mean([result.squared.standard_error**2 for result in repeats]))
    assert 0.85 < stated / got.std() < 1.2  # the spread of 300 is known to 4 %


def test_kernel_distance_is_unbiased():
    # One feature: E (a b + 1)^3 = 1 + 3 m1 m1' + 3 m2 m2' + m3 m3' with the moments of a and b.
    def kernel(a, b):
        return 1 + 3 * a[0] * b[0] + 3 * a[1] * b[1] + a[2] * b[2]

    p, q = (0.0, 1.0, 0.0), (0.5, 1.25, 0.5**3 + 3 * 0.5)  # N(0, 1), N(.5, 1)
    want = kernel(p, p) + kernel(q, q) - 2 * kernel(p, q)
    repeats = [
        kernel_distance(normal(50, 1, seed=s), normal(50, 1, seed=900 + s) + 0.5)
        for s in range(400)
    ]
    got = np.array([score.value for score in repeats])
    assert abs(got.mean() - want) < 4 * got.std() / math.sqrt(len(got))


def test_p_values_of_equal_distributions_are_uniform():
    p = np.array([
        mmd(normal(30, seed=s), normal(20, seed=700 + s), permutations=99).p_value
        for s in range(300)
    ])  # fmt: skip
    assert np.allclose(p * 100, np.round(p * 100))
    assert abs(p.mean() - 0.505) < 4 / math.sqrt(12 * len(p))
    assert abs((p <= 0.1).mean() - 0.1) < 4 * math.sqrt(0.09 / len(p))
    assert mmd(normal(100), normal(100, seed=1) + 1, permutations=99).p_value == 0.01


def test_mmd_leaves_the_random_state():
    state = torch.get_rng_state()
    first, second = (mmd(normal(20), normal(20, seed=1)) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)


# Frechet distance


def test_gaussian_frechet_distance_has_closed_values():
    mean = normal(1, 4)[0]
    a, b = torch.rand(2, 4)
    # Commuting covariances, in a rotated basis.
    basis = torch.linalg.qr(normal(4, 4, seed=1))[0]
    got = gaussian_frechet_distance(
        mean, basis * a**2 @ basis.mT, 0 * mean, basis * b**2 @ basis.mT
    )
    assert got.item() == pytest.approx((mean.square().sum() + (a - b).square().sum()).item())
    # Noncommuting 2 x 2: tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)).
    p, q = torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([[1.0, -0.5], [-0.5, 2.0]])
    root = torch.sqrt(torch.trace(p @ q) + 2 * torch.sqrt(torch.det(p) * torch.det(q)))
    want = torch.trace(p) + torch.trace(q) - 2 * root
    zero = torch.zeros(2)
    assert gaussian_frechet_distance(zero, p, zero, q).item() == pytest.approx(want.item())
    singular = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    assert abs(gaussian_frechet_distance(zero, singular, zero, singular).item()) < 1e-7


def test_frechet_distance_of_samples_has_the_exact_value():
    scale = torch.tensor([1.0, 2.0, 0.5])
    score = frechet_distance(normal(20_000, 3), normal(20_000, 3, seed=1) * scale + 1)
    want = 3 + (1 - scale).square().sum().item()
    assert abs(score.value - score.bias - want) < 4 * score.standard_error < 0.3


def test_frechet_bias_and_error_are_those_of_repetitions():
    # Means differ: N(0, I) and N(m, I), distance |m|^2.
    dims, rows, shift = 8, 200, 0.25
    scores = [
        frechet_distance(normal(rows, dims, seed=s), normal(rows, dims, seed=600 + s) + shift)
        for s in range(40)
    ]
    got = np.array([score.value for score in scores])
    biases = np.array([score.bias for score in scores])
    corrected = got - biases
    want, error = dims * shift**2, got.std() / math.sqrt(len(got))
    assert got.mean() - want > 4 * error  # the bias shows
    assert abs(corrected.mean() - want) < 4 * corrected.std() / math.sqrt(len(got))
    stated = np.sqrt(np.mean([score.standard_error**2 for score in scores]))
    assert 0.7 < stated / got.std() < 1.5


def test_frechet_distance_warns_of_too_few_rows():
    with pytest.warns(UserWarning, match="mostly bias"):
        frechet_distance(normal(30, 30), normal(100, 30))


@pytest.mark.parametrize("metric", [neighbor_scores, mmd, kernel_distance, frechet_distance])
def test_metrics_of_samples_check_their_features(metric):
    x = normal(40, 3)
    images = x.reshape(40, 3, 1, 1).float()
    assert metric(images, images.numpy()) == metric(images.flatten(1), images.flatten(1))
    with pytest.raises(ValueError, match="same number of features"):
        metric(x, x[:, :2])
    with pytest.raises(ValueError, match="N >= 2"):
        metric(x[:1], x)
    with pytest.raises(ValueError, match="finite generated"):
        metric(x, x * math.nan)


def test_neighbor_scores_need_more_rows_than_neighbors():
    with pytest.raises(ValueError, match="k=5 for 5 real"):
        neighbor_scores(normal(5), normal(9))
