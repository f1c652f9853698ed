"""Gradients at exact kinks, where the slope of ``clamp`` depends on the version of torch."""

import math

import numpy as np
import pytest
import scipy.special
import torch
from helpers.cases import for_each
from helpers.clamps import clamp_with_slope
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.functional import hessian
from torch.func import functional_call

from tinyvae.distributions import (
    Beta,
    DiscretizedLogistic,
    Independent,
    Laplace,
    LowRankNormal,
    Mixture,
    NegativeBinomial,
    Normal,
    Poisson,
    PowerSpherical,
    StudentT,
    ZeroInflated,
    kl_divergence,
)
from tinyvae.distributions.special import gamma_residual, limited
from tinyvae.flows import PlanarFlow, RadialFlow
from tinyvae.likelihoods import MultiScaleSSIM

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(autouse=True, params=[0.0, 1.0], ids=["slope 0", "slope 1"])
def slope(request):
    with clamp_with_slope(request.param):
        yield request.param


def leaf(*values, dtype=None):
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def slopes(function, *values, dtype=None):
    leaves = [leaf(value, dtype=dtype) for value in values]
    return torch.stack(torch.autograd.grad(function(*leaves).sum(), leaves)).flatten()


def close(value, expected, tolerance=1e-9):
    expected = torch.as_tensor(expected, dtype=value.dtype)
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


def test_emulated_clamp_has_the_slope(slope):
    x = leaf(-2.0, -1.0, 0.0, 1.0, 2.0)
    for value in (x.clamp(-1, 1), torch.clamp(x, min=-1, max=1), x.clamp_min(-1).clamp_max(1)):
        close(value.detach(), [-1, -1, 0, 1, 1])
        close(torch.autograd.grad(value.sum(), x)[0], [0, slope, 1, slope, 0])


# Closed forms and finite differences --------------------------------------------------------------


def test_limited_has_a_slope_of_one_at_and_beyond_its_limits():
    x = leaf(-math.inf, -2.0, -1.0, 0.0, 1.0, 2.0, math.inf)
    value = limited(x, least=-1.0, most=1.0)
    close(value.detach(), [-1, -1, -1, 0, 1, 1, 1])
    close(torch.autograd.grad(value.sum(), x)[0], [0, 1, 1, 1, 1, 1, 0])


def test_gamma_residual_has_its_derivative_where_series_and_function_meet():
    x = leaf(9.0, 10.0, 11.0)
    gradient = torch.autograd.grad(gamma_residual(x, x.log()).sum(), x)[0]
    x = x.detach().numpy()
    close(gradient, scipy.special.digamma(x) - np.log(x), 1e-12)


def circular(log_concentration):
    return PowerSpherical(torch.tensor([1.0, 0.0]).to(log_concentration), log_concentration)


@for_each(
    ("make", "params", "value"),
    [
        (NegativeBinomial, [0.3, math.log(10)], 4.0),
        (NegativeBinomial, [0.3, math.log(6)], 4.0),
        (NegativeBinomial, [math.log(3), 0.0], 3.0),  # the count is the mean
        (NegativeBinomial, [0.3, 0.0], 1.0),
        (NegativeBinomial, [0.3, 0.0], 10.0),
        (Poisson, [0.3], 10.0),
        (StudentT, [0.1, 0.2, math.log(19)], 0.7),
        (StudentT, [0.1, 0.2, math.log(20)], 0.7),
        (StudentT, [0.7, 0.2, 1.0], 0.7),  # at the location
        (Beta, [0.0, math.log(10)], 0.3),
        (Beta, [0.0, math.log(20)], 0.3),
        (circular, [math.log(9)], [0.6, 0.8]),
        (circular, [math.log(9.5)], [0.6, 0.8]),
        (lambda m, s: DiscretizedLogistic(m, s, 8), [0.0, 0.0], 0.0),
        (lambda m, s: DiscretizedLogistic(m, s, 8), [0.0, 0.0], 7.0),
    ],
)
def test_gradients_of_log_densities_at_kinks(make, params, value):
    def log_prob(*params):
        return make(*params).log_prob(torch.tensor(value, dtype=params[0].dtype))

    assert gradcheck(log_prob, [leaf(param) for param in params], atol=1e-7)
    # In float32, exp(log(10)) is exactly 10.
    exact = slopes(log_prob, *params, dtype=torch.float32)
    close(exact.double(), slopes(log_prob, *params), 1e-4)


@for_each(
    ("make", "limit", "value"),
    [
        (lambda p: NegativeBinomial(torch.ones(()), p), 40.0, 2.0),
        (lambda p: NegativeBinomial(torch.ones(()), p), -40.0, 2.0),
        (lambda p: Beta(torch.ones(()), p), 0.9 * math.log(torch.finfo().max), 0.7),
        (lambda p: StudentT(torch.ones(()), p, p), -0.5 * math.log(torch.finfo().max), 2.0),
        (
            lambda p: DiscretizedLogistic(torch.zeros(()), p, 4),
            0.9 * math.log(torch.finfo().max),
            2.0,
        ),
    ],
)
def test_gradients_at_limits_of_parameters_are_those_inside(make, limit, value):
    def log_prob(p):
        return make(p).log_prob(torch.tensor(value))

    at_limit, inside = slopes(log_prob, limit), slopes(log_prob, limit * (1 - 1e-14))
    close(at_limit, inside.tolist(), 1e-6)


def test_laplace_has_gradient_zero_at_its_mode():
    close(slopes(lambda m, s: Laplace(m, s).log_prob(torch.tensor(0.5)), 0.5, 0.0), [0, -1])


def test_masses_that_round_to_one_have_the_gradients_of_their_parts():
    log_mean = torch.full((2,), -60.0, requires_grad=True)
    certain, log_weights = Poisson(log_mean), torch.tensor([0.25, 0.75]).log()
    for distribution, shares in (
        (Mixture(log_weights, certain, 0), [0.25, 0.75]),
        (ZeroInflated(certain, torch.zeros(2)), [0.5, 0.5]),
    ):
        log_mass = distribution.log_prob(torch.tensor(0.0))
        assert (log_mass == 0).all()
        gradient = torch.autograd.grad(log_mass.sum(), log_mean)[0]
        close(gradient / -math.exp(-60), shares)


@for_each("rank", [1, 3])
def test_kl_of_a_low_rank_normal_has_its_curvature_at_zero(rank):
    p = Independent(Normal(torch.zeros(2), torch.zeros(2)), 1)

    def kl(mean):
        return kl_divergence(LowRankNormal(mean, torch.zeros(2), torch.zeros(2, rank)), p)

    assert kl(torch.zeros(2)) == 0
    close(hessian(kl, torch.zeros(2)), torch.eye(2))


@for_each("level", [0.0, 0.5, 1.0])
def test_similarity_has_its_curvature_at_constant_equal_images(level):
    distance = MultiScaleSSIM(channels=1, scales=1, window=3)
    x = torch.full((1, 1, 4, 4), level)

    def value(difference):
        return distance(x, x + difference)

    difference = torch.zeros(1, 1, 4, 4, requires_grad=True)
    assert gradcheck(value, difference, atol=1e-7)
    assert gradgradcheck(value, difference, atol=1e-5)


@for_each("kind", [PlanarFlow, RadialFlow])
def test_flows_have_their_gradients_at_the_identity(kind):
    flow, z = kind(3, transforms=2), torch.randn(4, 3)
    if kind is RadialFlow:  # the distance of the first vector is the scale of the first transform
        z[0] = flow.offset[0, :3].detach() + torch.tensor([0.6, 0.0, 0.8])

    def outputs(offset, z):
        bijection = functional_call(flow, {"offset": offset}, ())
        return *bijection.call_and_ladj(z), *bijection.inv.call_and_ladj(z)

    offset = flow.offset.detach().requires_grad_()
    close(outputs(offset, z)[0], z)
    assert gradcheck(outputs, (offset, z.requires_grad_()), atol=1e-7)
