"""Distributions that wrap others."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from helpers.cases import for_each
from helpers.distributions import independent_normal, integral, normal

from tinyvae.distributions import (
    Affine,
    FullNormal,
    Independent,
    JointDistribution,
    MaskedDistribution,
    Normal,
    Poisson,
    Quantized,
    ReshapedBatch,
)
from tinyvae.flows import Transformed

pytestmark = pytest.mark.usefixtures("float64")


def test_affine_integrates_to_one():
    base = FullNormal(torch.randn(2), torch.randn(2) / 2, torch.randn(2, 2))
    p = Affine(base, torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5]))
    assert integral(p, 30, 801) == pytest.approx(1, abs=1e-8)


def test_reshaped_batch_agrees_with_rows():
    rows = FullNormal(torch.randn(6, 2), torch.randn(6, 2), torch.randn(6, 2, 2))
    p = ReshapedBatch(rows, (2, 3))
    z = torch.randn(4, 2, 3, 2)
    expected = rows.log_prob(z.reshape(4, 6, 2)).reshape(4, 2, 3)
    torch.testing.assert_close(p.log_prob(z), expected)
    torch.testing.assert_close(p.log_prob(z[0]), expected[0])
    torch.testing.assert_close(p.mean, rows.mean.reshape(2, 3, 2))
    torch.testing.assert_close(p.log_prob(z[0, 0][None]), p.log_prob(z[0, 0].expand(2, 3, 2)))


class OneWay:
    """A bijection without an inverse."""

    def call_and_ladj(self, value):
        return 2 * value, value.new_full(value.shape[:-1], 2 * math.log(2))


def test_sample_and_log_prob_needs_no_inverse():
    base = independent_normal(torch.zeros(6, 2), torch.zeros(6, 2))
    flow = Transformed(base, OneWay())
    wrapped = [
        flow,
        ReshapedBatch(flow, (2, 3)),
        Independent(flow, 1),
        JointDistribution({"flow": flow, "plain": base}),
    ]
    scaled = independent_normal(torch.zeros(6, 2), torch.full((6, 2), math.log(2)))
    equal = [
        scaled,
        ReshapedBatch(scaled, (2, 3)),
        Independent(scaled, 1),
        JointDistribution({"flow": scaled, "plain": base}),
    ]
    for p, expected in zip(wrapped, equal, strict=True):
        assert p.yields_log_prob
        assert not expected.yields_log_prob
        z, log_prob = p.sample_and_log_prob((3,))
        torch.testing.assert_close(log_prob, expected.log_prob(z))
        with pytest.raises(AttributeError, match="inv"):
            p.log_prob(z)


def test_losses_of_rows():
    # Regression: a wrapper has none of the losses and metrics of what it wraps.
    losses, metrics = {"commitment": torch.arange(6.0)}, {"perplexity": torch.tensor(2.0)}
    codes, shares = torch.zeros(6, 1, dtype=torch.long), {"perplexity": torch.tensor([0.5, 0.5])}
    rows = Quantized(torch.randn(6, 2, 1), codes, losses, metrics, shares)
    wide = ReshapedBatch(rows, (2, 3))
    assert torch.equal(wide.losses["commitment"], torch.arange(6.0).reshape(2, 3))
    assert wide.metrics == metrics
    assert wide.shares == shares


def test_affine():
    base, shift, scale = normal(4, 3), torch.randn(3), torch.rand(3) + 0.5
    p = Affine(base, shift, scale)
    loc, std = shift + scale * base.mean, scale * base.log_std.exp()
    x = torch.randn(5, 4, 3)
    expected = scipy.stats.norm.logpdf(x, loc, std)
    np.testing.assert_allclose(p.log_prob(x), expected, rtol=1e-12)
    torch.testing.assert_close(p.mean, loc)
    weights = torch.randn(4).softmax(0)
    torch.testing.assert_close(p.point_estimate(weights), (weights[:, None] * loc).sum(0))
    uniform = scipy.stats.norm.cdf(p.sample((2000,)), loc, std)
    assert scipy.stats.kstest(uniform.ravel(), "uniform", method="asymp").pvalue > 1e-4
    assert (p.batch_shape, p.event_shape, p.has_rsample) == ((4, 3), (), True)


@for_each("scale", [0.5, [0.5], [0.5, 2.0, 3.0]])
def test_affine_of_vectors_counts_the_scale_of_each_dimension(scale):
    base, shift, scale = Independent(normal(4, 3), 1), torch.randn(3), torch.tensor(scale)
    x = torch.randn(5, 4, 3)
    loc, std = shift + scale * base.mean, scale * base.base.log_std.exp()
    expected = scipy.stats.norm.logpdf(x, loc, std)
    p = Affine(base, shift, scale)
    np.testing.assert_allclose(p.log_prob(x), expected.sum(-1), rtol=1e-12)
    np.testing.assert_allclose(p.elementwise_log_prob(x), expected, rtol=1e-12)


def test_affine_draws_carry_gradients():
    scale = torch.tensor(2.0, requires_grad=True)
    Affine(normal(3), torch.zeros(()), scale).sample().sum().backward()
    assert scale.grad != 0


def test_masked_distribution_scores_observed_entries():
    loc = torch.randn(4, 3, requires_grad=True)
    base = Normal(loc, torch.zeros(3))
    p = MaskedDistribution(base, inside=torch.tensor(0.0))
    x = torch.randn(2, 4, 3)
    assert torch.equal(p.log_prob(x), base.log_prob(x))
    missing = torch.rand(2, 4, 3) < 0.4
    log_prob = p.log_prob(x.masked_fill(missing, math.nan))
    assert (log_prob[missing] == 0).all()
    assert torch.equal(log_prob[~missing], base.log_prob(x)[~missing])
    (gradient,) = torch.autograd.grad(log_prob.sum(), loc)
    torch.testing.assert_close(gradient, ((x - loc.detach()) * ~missing).sum(0))
    assert torch.equal(p.mean, base.mean)
    assert torch.equal(p.point_estimate(), base.point_estimate())
    assert p.sample((7,)).shape == (7, 4, 3)
    assert p.has_rsample == base.has_rsample


def test_masked_distribution_takes_only_nan_for_missing():
    p = MaskedDistribution(normal(3), inside=torch.tensor(0.0))
    log_prob = p.log_prob(torch.tensor([math.nan, math.inf, -math.inf]))
    assert log_prob.tolist() == [0.0, -math.inf, -math.inf]


def test_affine_refuses_masses():
    with pytest.raises(
        TypeError, match=r"expects a density to shift and scale.*masses have no units"
    ):
        Affine(Poisson(torch.zeros(2)), torch.tensor(0.0), torch.tensor(2.0))
