"""Log densities and divergences of real numbers and vectors, at extreme arguments."""

import math

import pytest
import torch
from helpers.cases import for_each

from tinyvae.distributions import (
    Independent,
    Laplace,
    LowRankNormal,
    Normal,
    StudentT,
    kl_divergence,
)

DTYPES = [torch.float32, torch.float64]


@for_each("dtype", DTYPES)
@for_each("log_scale", [-1e30, -1e3, -90.0, 90.0, 1e3, 1e30])
def test_density_at_the_location_of_an_extreme_scale(log_scale, dtype):
    # Regression: zero times an infinite inverse scale is NaN.
    zero, log_scale = torch.zeros((), dtype=dtype), torch.tensor(log_scale, dtype=dtype)
    for family, peak in (
        (Normal, -0.5 * math.log(2 * math.pi)),
        (Laplace, -math.log(2)),
        (lambda *p: StudentT(*p, zero), -math.log(math.pi)),
    ):
        scale = log_scale.clone().requires_grad_()
        log_prob = family(zero, scale).log_prob(zero)
        torch.testing.assert_close(log_prob, peak - log_scale)
        assert torch.autograd.grad(log_prob, scale)[0] == -1


@for_each("dtype", DTYPES)
def test_kl_of_extreme_scales(dtype):
    # Regression: NaN, because scales overflow although the divergence does not.
    zero, one, far = (torch.tensor(v, dtype=dtype) for v in (0.0, 1.0, -1e3))
    for family, tail in ((Normal, 0.5), (Laplace, 1.0)):
        for equal in (far, 90 * one, -far):
            assert kl_divergence(family(one, equal), family(one, equal)) == 0
        assert kl_divergence(family(zero, far), family(zero, zero)) == 1e3 - tail
        assert kl_divergence(family(zero, zero), family(zero, -far)) == 1e3 - tail
        assert kl_divergence(family(zero, -far), family(zero, zero)) == math.inf
    # log(b_p / b_q) + |m| / b_p - 1
    assert kl_divergence(Laplace(one, far), Laplace(zero, zero)) == 1e3


@for_each("dtype", DTYPES)
@for_each("log_df", [0.0, 30.0])
def test_student_t_far_from_its_location(log_df, dtype):
    # Regression: minus infinity in float32, because the square overflows.
    x = torch.tensor([-1e30, 1e20, 1e30], dtype=dtype, requires_grad=True)
    zero, log_df = torch.zeros((), dtype=dtype), torch.tensor(log_df, dtype=dtype)
    log_prob = StudentT(zero, zero, log_df).log_prob(x)
    df = log_df.double().exp()
    constant = torch.lgamma(0.5 * df + 0.5) - torch.lgamma(0.5 * df)
    constant = constant - 0.5 * torch.log(math.pi * df)
    wide = x.detach().double()
    expected = constant - 0.5 * (df + 1) * (2 * wide.abs().log() - df.log())
    torch.testing.assert_close(log_prob.double(), expected, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(log_prob.sum(), x)
    torch.testing.assert_close(gradient.double(), -(df + 1) / wide, rtol=1e-5, atol=0)


@for_each("dtype", DTYPES)
@for_each("log_df", [-1e30, -200.0, 200.0, 1e30])
def test_student_t_of_extreme_degrees_of_freedom(log_df, dtype):
    # Regression: draws with many degrees of freedom were NaN.
    zero = torch.zeros((), dtype=dtype)
    p = StudentT(zero, zero, torch.tensor(log_df, dtype=dtype))
    assert not p.sample((1000,)).isnan().any()
    assert p.log_prob(torch.linspace(-9, 9, 7, dtype=dtype)).isfinite().all()
    if log_df > 0:
        torch.testing.assert_close(p.log_prob(zero + 3), Normal(zero, zero).log_prob(zero + 3))


@for_each("log_std", [-5.0, -7.0, -9.0])
def test_low_rank_normal_of_mixed_scales(log_std):
    # Regression: an error of 1.6 nats at exp(-7) and of 230 at exp(-9), because the equations
    # had the square of the condition number.
    log_stds = torch.tensor([0.0, log_std, 0.0]).expand(200, 3)
    params = (torch.zeros(200, 3), log_stds, torch.randn(200, 3, 2))
    p = LowRankNormal(*params)
    z = p.sample()
    exact = LowRankNormal(*(v.double() for v in params)).log_prob(z.double())
    torch.testing.assert_close(p.log_prob(z).double(), exact, rtol=1e-5, atol=1e-3)


@for_each("dtype", DTYPES)
def test_low_rank_normal_limits_its_diagonal(dtype):
    mean, factor = torch.zeros(3, dtype=dtype), torch.randn(3, 2, dtype=dtype)
    raw = torch.tensor([-1e4, -200.0, 0.5], dtype=dtype, requires_grad=True)
    p = LowRankNormal(mean, raw, factor)
    least = factor.norm(dim=1) * math.sqrt(torch.finfo(dtype).eps) / math.e
    torch.testing.assert_close(p.log_std[:2].exp(), least[:2])
    assert p.log_std[2] == raw[2]
    (gradient,) = torch.autograd.grad(p.log_std.sum(), raw)
    assert (gradient == 1).all()
    assert p.log_prob(p.sample((100,))).isfinite().all()


@pytest.mark.parametrize("size", [1e-1, 1e-2, 1e-3, 1e-4])
def test_kl_of_a_low_rank_normal_is_not_negative(size):
    # Regression: -1e-7, as a difference of a trace and a log determinant.
    zero, factor = torch.zeros(1000, 4), size * torch.randn(1000, 4, 2)
    p = Independent(Normal(zero, zero), 1)
    assert (kl_divergence(LowRankNormal(zero, zero, factor), p) >= 0).all()
