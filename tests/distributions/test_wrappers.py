"""Distributions that wrap others."""

import math

import pytest
import torch
from helpers.distributions import independent_normal, integral

from tinyvae.distributions import (
    Affine,
    FullNormal,
    Independent,
    JointDistribution,
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
    rows = Quantized(torch.randn(6, 2, 1), torch.zeros(6, 1, dtype=torch.long), losses, metrics)
    wide = ReshapedBatch(rows, (2, 3))
    assert torch.equal(wide.losses["commitment"], torch.arange(6.0).reshape(2, 3))
    assert wide.metrics == metrics
