"""Logit-normal distributions, and the mean of a sigmoid of a normal variable."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from helpers.cases import for_each
from helpers.distributions import ks
from mpmath import mpf

from tinyvae.distributions import LogitNormal
from tinyvae.distributions.special import logistic_normal_mean

pytestmark = pytest.mark.usefixtures("float64")


def make(mean, log_std, low=0.0, high=1.0, dtype=torch.float64):
    numbers = (torch.tensor(v, dtype=dtype) for v in (mean, log_std, low, high))
    return LogitNormal(*numbers)


def exact(x, mean, log_std, low, high):
    with mpmath.workdps(50):
        x, mean, log_std, low, high = map(mpf, (x, mean, log_std, low, high))
        y = mpmath.log((x - low) / (high - x))
        square = ((y - mean) / mpmath.exp(log_std)) ** 2
        slope = mpmath.log((high - low) / ((x - low) * (high - x)))
        return float(-square / 2 - log_std - mpmath.log(2 * mpmath.pi) / 2 + slope)


@for_each(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-14)])
@for_each("mean", [0.0, 3.0, -200.0, 200.0])
@for_each("log_std", [0.0, -2.0, 5.0])
@for_each(("low", "high"), [(0.0, 1.0), (-2.0, 6.0), (1024.0, 1040.0)])
def test_log_prob_has_all_digits(dtype, tolerance, mean, log_std, low, high):
    x = low + (high - low) * torch.tensor([2.0**-12, 0.25, 0.5, 0.9375, 1 - 2.0**-12], dtype=dtype)
    got = make([mean], log_std, low, high, dtype).log_prob(x)
    expected = [exact(v, mean, log_std, low, high) for v in x.tolist()]
    np.testing.assert_allclose(got.double(), expected, rtol=10 * tolerance, atol=tolerance)


def test_density_integrates_to_one_and_agrees_with_the_mean():
    for mean, log_std, low, high in [(0.0, 0.0, 0.0, 1.0), (1.0, 0.7, -1.0, 3.0), (-2, -1, 0, 9)]:
        p = make([mean], log_std, low, high)

        def density(x, p=p):
            return p.log_prob(torch.tensor([x])).exp().item()

        total = scipy.integrate.quad(density, low, high, epsabs=1e-12)[0]
        first = scipy.integrate.quad(lambda x: x * density(x), low, high, epsabs=1e-12)[0]
        assert total == pytest.approx(1, abs=1e-9)
        assert p.mean.item() == pytest.approx(first, abs=1e-9)


@for_each("mean", [0.0, 0.3, -2.0, 5.0, -20.0])
@for_each("std", [1e-3, 0.5, 1.2499, 1.25, 2.0, 20.0, 200.0])
def test_mean_of_a_sigmoid(mean, std):
    def integrand(e):
        return scipy.special.expit(mean + std * e) * scipy.stats.norm.pdf(e)

    steep = [(shift - mean) / std for shift in (-40, -1, 0, 1, 40)]
    edges = sorted({-40.0, -1.0, 0.0, 1.0, 40.0, *(e for e in steep if -40 < e < 40)})
    expected = sum(
        scipy.integrate.quad(integrand, *pair, epsabs=1e-15, epsrel=1e-13, limit=500)[0]
        for pair in itertools.pairwise(edges)
    )
    got = logistic_normal_mean(torch.tensor(mean), torch.tensor(std))
    assert got.item() == pytest.approx(expected, abs=1e-11)


def test_sample_agrees_with_the_distribution_function():
    p = make([0.4, -2.0], [0.0, 1.0], -1.0, 3.0)
    draws = p.sample((3000,)).numpy()
    for i, (mean, std) in enumerate([(0.4, 1.0), (-2.0, math.e)]):
        y = scipy.special.logit((draws[:, i] + 1) / 4)
        assert ks(y, scipy.stats.norm(mean, std).cdf) > 1e-4


@for_each("dtype", [torch.float32, torch.float64])
@for_each("mean", [-200.0, 200.0, 0.0])
@for_each(("low", "high"), [(0.0, 1.0), (-1.0, 0.0), (100.0, 101.0)])
def test_draws_stay_inside_and_have_finite_gradients(dtype, mean, low, high):
    mean = torch.full((500,), mean, dtype=dtype, requires_grad=True)
    low, high = (torch.tensor(v, dtype=dtype) for v in (low, high))
    p = LogitNormal(mean, torch.tensor(1.0, dtype=dtype), low, high)
    x = p.sample().detach()
    assert ((x > low) & (x < high)).all()
    log_prob = p.log_prob(x)
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert mean.grad.isfinite().all()
    assert (p.log_prob(low) == -math.inf).all()
    assert (p.log_prob(high) == -math.inf).all()
