"""Distribution of ordered levels."""

import math

import mpmath
import numpy as np
import pytest
import scipy.special
import torch
from helpers.cases import for_each
from helpers.distributions import chi_squared, masses
from mpmath import mpf

from tinyvae.distributions import Bernoulli, Ordinal

pytestmark = pytest.mark.usefixtures("float64")


def sigmoid(x):
    return 1 / (1 + mpmath.exp(-x))


def exact(level, location, first, log_widths):
    """Return the log mass with 200 digits."""
    with mpmath.workdps(200):
        cuts = [mpf(first)]
        for log_width in log_widths:
            cuts.append(cuts[-1] + mpmath.exp(mpf(log_width)))
        below = mpf(0) if level == 0 else sigmoid(cuts[level - 1] - mpf(location))
        above = mpf(1) if level == len(cuts) else sigmoid(cuts[level] - mpf(location))
        return float(mpmath.log(above - below))


@for_each(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
@for_each("location", [0.0, 0.75, -5.0, 30.0, 200.0, -200.0])
@for_each("log_widths", [[], [0.0, -1.0], [-20.0, 3.0, -0.5], [4.0, -60.0]])
def test_log_prob_has_all_digits(dtype, tolerance, location, log_widths):
    p = Ordinal(
        torch.tensor([location], dtype=dtype),
        torch.tensor(-0.5, dtype=dtype),
        torch.tensor(log_widths, dtype=dtype),
    )
    levels = torch.arange(len(log_widths) + 2, dtype=dtype)
    got = p.log_prob(levels[:, None])[:, 0].double()
    expected = [exact(level, location, -0.5, log_widths) for level in range(len(levels))]
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    assert got.logsumexp(0).item() == pytest.approx(0, abs=10 * tolerance)
    mean = (levels.double() * torch.tensor(expected).exp()).sum().item()
    assert p.mean.item() == pytest.approx(mean, rel=1e-5 if tolerance > 1e-10 else 1e-12)


@for_each("location", [0.0, 200.0, -200.0, 1e4])
@for_each("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite(dtype, location):
    params = [
        torch.tensor(v, dtype=dtype, requires_grad=True)
        for v in ([location], -0.5, [0.0, -200.0, 200.0])
    ]
    p = Ordinal(*params)
    p.log_prob(torch.arange(5, dtype=dtype)[:, None]).sum().backward()
    assert all(param.grad.isfinite().all() for param in params)


def test_sample_agrees_with_the_masses():
    p = Ordinal(torch.tensor([0.3, -2.0]), torch.tensor([-1.0, 0.0]), torch.zeros(3, 2))
    draws, mass = p.sample((4000,)), masses(p, 5)
    torch.testing.assert_close(mass[-1], torch.zeros(2), rtol=0, atol=1e-12)
    for i in range(2):
        assert chi_squared(draws[:, i].numpy(), mass[:, i].numpy()) > 1e-4
    error = draws.std(0) / math.sqrt(4000)
    assert ((draws.mean(0) - p.mean).abs() < 4 * error).all()
    torch.testing.assert_close(p.point_estimate(), p.mean)


def test_two_levels_are_a_bernoulli():
    logits, first = torch.randn(5), torch.randn(5)
    p, q = Ordinal(logits, first, torch.zeros(0, 5)), Bernoulli(logits - first)
    for x in (torch.zeros(5), torch.ones(5)):
        torch.testing.assert_close(p.log_prob(x), q.log_prob(x))


def test_thresholds_of_one_column_do_not_reach_another():
    first, log_widths = torch.tensor([[-1.0], [2.0]]), torch.tensor([[[0.5], [-0.5]]])
    p = Ordinal(torch.zeros(3, 2, 4), first, log_widths)
    x = torch.randint(3, (3, 2, 4)).double()
    cuts = np.array(
        [[-np.inf, -1.0, math.exp(0.5) - 1, np.inf], [-np.inf, 2, 2 + math.exp(-0.5), np.inf]]
    )
    mass = np.diff(scipy.special.expit(cuts))  # (2, 3)
    expected = np.log(mass[np.arange(2)[:, None], x.long().numpy()])
    np.testing.assert_allclose(p.log_prob(x), expected, rtol=1e-12)
