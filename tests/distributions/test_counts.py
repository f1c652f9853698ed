"""Counts."""

import math

import pytest
import torch
from helpers.cases import for_each
from helpers.distributions import counts, logarithms
from hypothesis import given

from tinyvae.distributions import NegativeBinomial, Poisson

pytestmark = pytest.mark.usefixtures("float64")


@given(log_mean=logarithms(1e-6, 1e6), k=counts)
def test_negative_binomial_of_large_concentration_is_poisson(log_mean, k):
    log_mean, k = torch.tensor(log_mean), torch.tensor(float(k))
    poisson = Poisson(log_mean).log_prob(k)
    limit = NegativeBinomial(log_mean, torch.tensor(60.0)).log_prob(k)
    torch.testing.assert_close(limit, poisson, rtol=1e-9, atol=1e-9)


@for_each("dtype", [torch.float64, torch.float32])
@for_each("log_mean", [-40.0, 0.0, 13.0])
@for_each("make", [Poisson, lambda m: NegativeBinomial(m, 0 * m)])
def test_zero_counts(make, log_mean, dtype):
    log_mean = torch.tensor(log_mean, dtype=dtype, requires_grad=True)
    log_prob = make(log_mean).log_prob(torch.zeros((), dtype=dtype))
    mean = math.exp(log_mean.item())
    expected = -mean if make is Poisson else -math.log1p(mean)
    assert log_prob.item() == pytest.approx(expected, rel=1e-6)
    (gradient,) = torch.autograd.grad(log_prob, log_mean)
    expected = -mean if make is Poisson else -mean / (1 + mean)
    assert gradient.item() == pytest.approx(expected, rel=1e-6)


@for_each(("log_mean", "log_r"), [(100.0, 0.0), (0.0, 90.0), (100.0, 90.0)])
@for_each("count", [0.0, 3.0])
def test_negative_binomial_where_exp_overflows(log_mean, log_r, count):
    params = [torch.tensor(v, dtype=torch.float32, requires_grad=True) for v in (log_mean, log_r)]
    log_prob = NegativeBinomial(*params).log_prob(torch.tensor(count))
    gradients = torch.autograd.grad(log_prob, params)
    assert torch.isfinite(torch.stack([log_prob, *gradients])).all()


@for_each("dtype", [torch.float32, torch.float64])
def test_negative_binomial_of_a_tiny_concentration(dtype):
    """It counts as exp(-40), at which nearly all mass is at zero."""
    log_mean = torch.tensor([-2000.0, 0.0, 2000.0], dtype=dtype)
    tiny, bound = (NegativeBinomial(log_mean, log_mean * 0 + v) for v in (-2000.0, -40.0))
    for k in (0.0, 1.0, 1000.0):
        log_prob = tiny.log_prob(torch.tensor(k))
        assert log_prob.isfinite().all()
        assert torch.equal(log_prob, bound.log_prob(torch.tensor(k)))
    assert (tiny.sample((9,)) >= 0).all()


def test_draws_of_large_counts_are_counts():
    log_mean = torch.tensor([10.0, 20.0, 50.0]).float()
    draws = Poisson(log_mean).sample((1000,))
    torch.testing.assert_close(draws.mean(0), log_mean.exp(), rtol=0.01, atol=0)
    wide = NegativeBinomial(log_mean, torch.tensor(9.0).float()).sample((1000,))
    assert (wide >= 0).all()
    assert (wide == wide.round()).all()
