"""Mixtures and zero-inflated counts."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from helpers.cases import for_each
from helpers.distributions import chi_squared, masses, normal

from tinyvae.distributions import Independent, LogNormal, Mixture, Normal, Poisson, ZeroInflated

pytestmark = pytest.mark.usefixtures("float64")


@for_each("dim", [-1, -2, -3])
def test_mixture_of_scalars(dim):
    components, logits = normal(4, 3, 2), torch.randn(4, 3, 2)
    p = Mixture(logits, components, dim)
    weights = scipy.special.softmax(logits.numpy(), dim)
    x = torch.randn(5, *p.batch_shape)
    at = np.expand_dims(x.numpy(), dim)
    density = scipy.stats.norm.pdf(at, components.mean, components.log_std.exp())
    np.testing.assert_allclose(p.log_prob(x), np.log((weights * density).sum(dim)), rtol=1e-12)
    mean = (weights * components.mean.numpy()).sum(dim)
    np.testing.assert_allclose(p.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(p.point_estimate(), mean, rtol=1e-12)
    pool = torch.randn(len(mean)).softmax(0)
    np.testing.assert_allclose(p.point_estimate(pool), np.tensordot(pool, mean, 1), rtol=1e-12)
    cdf = scipy.stats.norm.cdf(
        np.expand_dims(p.sample((2000,)).numpy(), dim), components.mean, components.log_std.exp()
    )
    uniform = (weights * cdf).sum(dim)
    assert scipy.stats.kstest(uniform.ravel(), "uniform", method="asymp").pvalue > 1e-4


def test_mixture_of_events():
    """All elements of one event belong to one component."""
    loc = torch.tensor([[-9.0, -9.0], [9.0, 9.0]])
    p = Mixture(torch.tensor([0.0, 1.0]), Independent(Normal(loc, torch.zeros(2, 2)), 1))
    assert (p.batch_shape, p.event_shape) == ((), (2,))
    draws = p.sample((2000,))
    signs = draws.sign()
    assert (signs[:, 0] == signs[:, 1]).all()
    ones = int((signs[:, 0] > 0).sum())
    share = scipy.special.expit(1.0)
    assert scipy.stats.binomtest(ones, 2000, share).pvalue > 1e-4
    each = scipy.stats.norm.logpdf(draws[:, None], loc).sum(-1)  # (n, 2)
    expected = scipy.special.logsumexp(each + np.log([1 - share, share]), axis=1)
    np.testing.assert_allclose(p.log_prob(draws), expected, rtol=1e-12)
    torch.testing.assert_close(p.mean, torch.full((2,), 9 * (2 * share - 1)))


def test_mixture_broadcasts_weights_and_keeps_attributes():
    p = Mixture(torch.zeros(2), Poisson(torch.randn(4, 2)))
    assert p.batch_shape == (4,)
    assert p.is_discrete
    assert not p.has_rsample
    assert not Mixture(torch.zeros(2), normal(4, 2)).is_discrete


def test_mixture_draws_carry_no_gradient():
    p = Mixture(torch.zeros(2), Normal(torch.zeros(2, requires_grad=True), torch.zeros(2)))
    assert not p.sample().requires_grad


@for_each("logits", [-200.0, -1.0, 0.0, 3.0, 200.0])
def test_zero_inflated(logits):
    log_mean, extra = torch.tensor([0.4, 2.0]), scipy.special.expit(logits)
    p = ZeroInflated(Poisson(log_mean), torch.full((2,), logits))
    theirs = scipy.stats.poisson(log_mean.exp().numpy())
    mass = masses(p, 60)
    expected = (1 - extra) * theirs.pmf(np.arange(60)[:, None])
    expected[0] += extra
    np.testing.assert_allclose(mass[:-1], expected, rtol=1e-9, atol=1e-80)
    np.testing.assert_allclose(p.mean, (1 - extra) * theirs.mean(), rtol=1e-9, atol=1e-16)
    draws = p.sample((4000,))
    for i in range(2):
        assert chi_squared(draws[:, i].numpy(), mass[:, i].numpy()) > 1e-4


@for_each("dtype", [torch.float32, torch.float64])
def test_mass_of_a_sure_count_is_at_most_one(dtype):
    # Regression: 1e-7 in float32, because rounded shares may add up to more than one.
    logits, sure = torch.randn(1000, 3, dtype=dtype), torch.full((1000, 3), -1e6, dtype=dtype)
    zero = torch.zeros((), dtype=dtype)
    for p in (ZeroInflated(Poisson(sure[:, 0]), logits[:, 0]), Mixture(logits, Poisson(sure))):
        log_mass = p.log_prob(zero)
        assert (log_mass <= 0).all()
        assert (log_mass > -1e-6).all()


def test_point_estimate_ignores_zero_weights():
    p = LogNormal(torch.zeros(2, 1), torch.tensor([[0.0], [300.0]]))
    assert p.point_estimate(torch.tensor([[1.0], [0.0]])).item() == pytest.approx(math.exp(0.5))
