"""Mixtures and zero-inflated counts."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from helpers.cases import for_each
from helpers.distributions import chi_squared, masses, normal

from tinyvae.distributions import (
    Hurdle,
    Independent,
    LogNormal,
    Mixture,
    Normal,
    Poisson,
    ZeroInflated,
)

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


def hurdle(logits, base=None, points=(0.0, 2.0)):
    """Return distributions of two elements with masses at two points."""
    base = Normal(torch.tensor([0.4, 2.0]), torch.tensor([0.0, -0.5])) if base is None else base
    inside = torch.tensor(1.0, dtype=logits.dtype)
    points = torch.tensor(points, dtype=logits.dtype)[:, None]
    return Hurdle(base, logits.expand(2, 2), points, -2, inside)


@for_each("logits", [[-200.0, 0.0], [-1.0, 0.5], [3.0, -40.0], [200.0, 0.0], [200.0, 200.0]])
def test_hurdle(logits):
    p = hurdle(torch.tensor(logits)[:, None])
    *shares, rest = scipy.special.softmax([*logits, 0.0])
    log_shares = scipy.special.log_softmax([*logits, 0.0])
    theirs = scipy.stats.norm([0.4, 2.0], [1.0, math.exp(-0.5)])
    x = torch.tensor([[0.0, 0.0], [2.0, 2.0], [0.3, 2.1]])
    expected = np.stack([np.full(2, log_shares[0]), np.full(2, log_shares[1])])
    expected = np.vstack([expected, log_shares[2] + theirs.logpdf([0.3, 2.1])])
    np.testing.assert_allclose(p.log_prob(x), expected, rtol=1e-13, atol=1e-80)
    mean = shares[1] * 2.0 + rest * theirs.mean()
    np.testing.assert_allclose(p.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(p.point_estimate(), mean, rtol=1e-12)
    draws = p.sample((4000,)).numpy()
    at = np.stack([draws == 0.0, draws == 2.0])
    counts = at.sum(1).tolist()
    for i in range(2):
        observed = np.array([*(count[i] for count in counts), 4000 - sum(c[i] for c in counts)])
        certain = np.array([*shares, rest]) * 4000 < 1e-9
        assert observed[certain].sum() == 0
        if (~certain).sum() > 1:
            ours, exact = observed[~certain], np.array([*shares, rest])[~certain] * 4000
            assert scipy.stats.chisquare(ours, exact * ours.sum() / exact.sum()).pvalue > 1e-4
        others = draws[~at.any(0)[:, i], i]
        if len(others) > 50:
            cdf = scipy.stats.norm([0.4, 2.0][i], [1.0, math.exp(-0.5)][i]).cdf
            assert scipy.stats.kstest(others, cdf).pvalue > 1e-4


@for_each("dtype", [torch.float32, torch.float64])
@for_each("logit", [-200.0, -3.0, 200.0])
def test_hurdle_gradients_are_finite_at_points_outside_the_density(dtype, logit):
    logits = torch.full((2, 2), logit, dtype=dtype, requires_grad=True)
    mean = torch.zeros(2, dtype=dtype, requires_grad=True)
    base = LogNormal(mean, torch.zeros(2, dtype=dtype))  # has no density at 0
    p = hurdle(logits, base)
    log_prob = p.log_prob(torch.tensor([0.0, 1.5], dtype=dtype))
    assert log_prob.dtype == dtype
    log_prob.sum().backward()
    assert logits.grad.isfinite().all()
    assert mean.grad[0] == 0  # the density does not see a point
    assert mean.grad[1].item() == pytest.approx(math.log(1.5), rel=1e-6)
    expected = scipy.special.log_softmax([logit, logit, 0.0])[0]
    assert log_prob[0].item() == pytest.approx(expected, rel=1e-6, abs=1e-30)


def test_hurdle_over_an_infinite_mean_of_no_mass():
    p = hurdle(torch.tensor([[800.0], [800.0]]), LogNormal(torch.zeros(2), torch.full((2,), 300.0)))
    assert p.mean.tolist() == [1.0, 1.0]


def test_hurdle_expects_a_density():
    with pytest.raises(TypeError, match=r"Hurdle expects a density .* use ZeroInflated for counts"):
        hurdle(torch.zeros(2, 2), Poisson(torch.zeros(2)))


def test_hurdle_points_may_be_rounded_to_float32():
    p = hurdle(torch.zeros(2, 2), points=(0.1, 0.7))
    assert (p.log_prob(torch.full((2,), 0.1)) == math.log(1 / 3)).all()
    assert (p.log_prob(torch.full((2,), 0.7).float()) == math.log(1 / 3)).all()
    assert (p.log_prob(torch.full((2,), 0.7 + 1e-12)) < math.log(1 / 3)).all()


def test_point_estimate_ignores_zero_weights():
    p = LogNormal(torch.zeros(2, 1), torch.tensor([[0.0], [300.0]]))
    assert p.point_estimate(torch.tensor([[1.0], [0.0]])).item() == pytest.approx(math.exp(0.5))
