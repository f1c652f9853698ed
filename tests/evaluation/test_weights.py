"""Statistics of importance weights against numpy, scipy and distributions with known tails."""

import math

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from scipy import stats

from tinyvae.evaluation.weights import (
    RunningWeights,
    WeightQuality,
    pareto_shape,
    pareto_threshold,
    tail_size,
)

pytestmark = pytest.mark.usefixtures("float64")


def running(log_weight, sizes, group_size=None):
    result = RunningWeights(len(log_weight), group_size)
    for part in log_weight.split(sizes):
        result.add(part)
    return result


@for_each("sizes", [1, 7, 64, 1000])
def test_running_weights_agree_with_numpy_for_any_parts(sizes):
    log_weight = 3 * torch.randn(1000, 4) - 700
    found = running(log_weight, sizes, group_size=30)
    w = np.exp(log_weight.numpy() + 700)
    torch.testing.assert_close(found.evidence() + 700, torch.from_numpy(np.log(w.mean(0))))
    size = w.sum(0) ** 2 / (w**2).sum(0)
    torch.testing.assert_close(found.effective_sample_size(), torch.from_numpy(size))
    error = w.std(0) / w.mean(0) / math.sqrt(1000)  # of the delta method
    torch.testing.assert_close(found.error(), torch.from_numpy(error))
    groups = np.log(w[:990].reshape(33, 30, 4).mean(1)) - 700
    mean, spread = found.grouped()
    torch.testing.assert_close(mean, torch.from_numpy(groups.mean(0)))
    torch.testing.assert_close(spread, torch.from_numpy(groups.std(0, ddof=1) / 33**0.5))
    torch.testing.assert_close(found.pareto_k(), running(log_weight, 1000).pareto_k())


def test_running_weights_of_zero_are_no_evidence():
    log_weight = torch.full((100, 2), -math.inf)
    log_weight[3, 1] = 0.0
    found = running(log_weight, 40)
    assert found.evidence().tolist() == [-math.inf, pytest.approx(-math.log(100))]
    assert found.effective_sample_size().tolist() == [0.0, pytest.approx(1.0)]
    assert found.error()[0] == math.inf


@for_each("k", [-0.3, 0.1, 0.4, 0.7, 1.2])
def test_pareto_shape_of_pareto_draws(k):
    """The mean over many fits is that of the method: pulled to 0.5 by ten draws."""
    draws = stats.genpareto.rvs(k, size=(2000, 300), random_state=1)
    tail = torch.from_numpy(np.sort(draws, 0))
    found = pareto_shape((1 + tail).log(), torch.zeros(300))
    expected = (2000 * k + 5) / 2010
    # Zhang and Stephens: the variance is about (1 + k)^2 / M.
    error = (1 + k) / math.sqrt(2000)
    assert abs(found.mean().item() - expected) < 4 * error / math.sqrt(300) + 0.004
    assert found.std().item() == pytest.approx(error, rel=0.25)


def test_pareto_k_of_a_proposal_that_is_too_narrow():
    """q = N(0, s^2) and p = N(0, 1) have weights with shape k = 1 - s^2, for s < 1."""
    z = 0.5**0.5 * torch.randn(200_000, 20)
    log_weight = -0.5 * z.square() + 0.5 * z.square() / 0.5
    k = running(log_weight, 50_000).pareto_k()
    assert abs(k.mean().item() - 0.5) < 0.08
    wide = running(-0.5 * (2**0.5 * z).square() * 2**0.5, 50_000).pareto_k()
    assert wide.max() < 0.2  # bounded weights


def test_pareto_k_of_equal_weights_is_zero():
    assert running(torch.full((500, 3), -80.0), 100).pareto_k().tolist() == [0.0] * 3
    assert running(torch.randn(20, 3), 20).pareto_k().isnan().all()


def test_pareto_threshold():
    assert tail_size(100) == 20
    assert tail_size(10_000) == 300
    assert pareto_threshold(100) == 0.5
    assert pareto_threshold(10**6) == 0.7
    sizes, shapes = torch.tensor([10.0, 20.0, 90.0]), torch.tensor([0.6, 0.2, 0.9])
    quality = WeightQuality(sizes, shapes, 100)
    assert quality.num_unreliable == 2
    assert str(quality) == (
        "effective sample size: median 20, least 10.0; Pareto k > 0.50 in 2 of 3 examples"
    )
