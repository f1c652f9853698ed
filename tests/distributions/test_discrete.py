"""Bits, classes and levels."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from helpers.cases import for_each
from helpers.distributions import chi_squared, floats, masses
from hypothesis import given
from hypothesis import strategies as st

from tinyvae.distributions import (
    Bernoulli,
    Categorical,
    DiscretizedLogistic,
    Independent,
    OneHotCategorical,
)
from tinyvae.distributions.special import gumbel_race

pytestmark = pytest.mark.usefixtures("float64")


def test_bernoulli_at_the_ends_is_exact_in_float32():
    logits = torch.tensor([200.0, -200.0], dtype=torch.float32)
    values = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float32)
    assert Bernoulli(logits).log_prob(values).tolist() == [[0.0, 0.0], [-200.0, -200.0]]


@given(
    num_levels=st.sampled_from([2, 3, 16, 256]),
    mean=st.one_of(floats(-1.5, 1.5), floats(-100, 100)),
    log_scale=floats(-12, 12),
)
def test_discretized_logistic_sums_to_one(num_levels, mean, log_scale):
    p = DiscretizedLogistic(torch.tensor(mean), torch.tensor(log_scale), num_levels)
    levels = torch.arange(num_levels)
    mass = p.log_prob(levels).exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-12)
    if num_levels <= 16:  # the mean is a loop over levels
        assert p.mean.item() == pytest.approx((levels * mass).sum().item(), abs=1e-9)


def test_discretized_logistic_edges_have_all_remaining_mass():
    """Bins that end at the edges would lose the mass outside them: here .157."""
    mean, log_scale, half = -0.3, -1.0, 1 / 255
    levels = torch.arange(256)
    grid = 2 * levels.numpy() / 255 - 1
    sides = [scipy.stats.logistic.cdf(grid + d, mean, math.exp(log_scale)) for d in (-half, half)]
    closed = sides[1] - sides[0]
    assert 1 - closed.sum() == pytest.approx(0.157, abs=5e-4)
    p = DiscretizedLogistic(torch.tensor(mean), torch.tensor(log_scale), 256)
    mass = p.log_prob(levels).exp().numpy()
    np.testing.assert_allclose(mass[1:-1], closed[1:-1], rtol=1e-10)
    np.testing.assert_allclose(mass[[0, -1]], [sides[1][0], 1 - sides[0][-1]], rtol=1e-10)


@for_each("uniform", [torch.zeros, lambda *shape, **kw: 1 - torch.full(*shape, 2**-24, **kw)])
def test_discretized_logistic_draws_of_extreme_noise_are_near_the_mean(uniform, monkeypatch):
    """The noise in [0, 1) is zero in one of 2^24 draws, which are infinite logistic noise."""
    monkeypatch.setattr(torch, "rand", uniform)
    mean, log_scale = torch.tensor([[0.5], [-7.0]], dtype=torch.float32)
    p = DiscretizedLogistic(mean, log_scale, 256)
    level = p.sample()
    assert p.log_prob(level).item() > -30
    assert abs(level.item() - 191) < 5


@for_each("dtype", [torch.float32, torch.float64])
def test_discretized_logistic_at_an_edge_is_exact_at_any_scale(dtype):
    mean = torch.zeros(1, dtype=dtype, requires_grad=True)  # the edge between both levels
    p = DiscretizedLogistic(mean, torch.tensor([-100.0, -800.0], dtype=dtype), num_levels=2)
    log_prob = p.log_prob(torch.tensor([[0.0], [1.0]], dtype=dtype))
    torch.testing.assert_close(log_prob.exp(), torch.full_like(log_prob, 0.5))
    assert p.mean.tolist() == [0.5, 0.5]
    (slope,) = torch.autograd.grad(log_prob[1, 0], mean)
    assert slope > 1e30


@for_each("dim", [-1, -2, -3])
@for_each("lead", [(), (5,), (2, 5)])
def test_categorical(dim, lead):
    logits = torch.randn(4, 3, 6)
    p = Categorical(logits, dim)
    x = torch.randint(logits.shape[dim], (*lead, *p.batch_shape))
    each = scipy.special.log_softmax(logits.numpy(), dim)
    index = np.expand_dims(x.numpy(), dim)
    expected = np.take_along_axis(np.broadcast_to(each, (*lead, *each.shape)), index, dim).squeeze(
        dim
    )
    for values in (x, x.to(torch.uint8), x.double(), x.float()):
        np.testing.assert_allclose(p.log_prob(values), expected, rtol=1e-12)
    assert p.sample(lead).shape == x.shape
    classes = np.arange(logits.shape[dim]).reshape(-1, *[1] * (-dim - 1))
    np.testing.assert_allclose(p.mean, (np.exp(each) * classes).sum(dim), rtol=1e-12)
    assert (p.point_estimate().numpy() == each.argmax(dim)).all()
    assert torch.equal(Categorical(logits, dim, ordered=True).point_estimate(), p.mean)


def test_categorical_broadcasts_its_values():
    p = Categorical(torch.randn(4, 3, 6))
    x = torch.randint(6, (4, 1))
    assert torch.equal(p.log_prob(x), p.log_prob(x.expand(4, 3)))


def test_categorical_point_estimate_with_weights():
    """The mode of a mixture may differ from the modes of all its members."""
    probs = torch.tensor([[0.55, 0.45, 1e-9], [1e-9, 0.45, 0.55]])
    p, weights = Categorical(probs.log()), torch.tensor([0.5, 0.5])
    assert p.point_estimate().tolist() == [0.0, 2.0]
    assert p.point_estimate(weights).item() == 1.0
    ordered = Categorical(probs.log(), ordered=True)
    torch.testing.assert_close(ordered.point_estimate(weights), ordered.mean.mean(0))


def test_categorical_draws():
    p = Categorical(torch.randn(3, 5) * 2)
    mass, draws = masses(p, 5), p.sample((5000,))
    for i in range(3):
        assert chi_squared(draws[:, i].numpy(), mass[:, i].numpy()) > 1e-4


@for_each("shape", [(6,), (6, 3), (6, 3, 2)])
def test_one_hot_is_categorical(shape):
    logits = torch.randn(4, *shape)
    p = OneHotCategorical(logits, len(shape))
    q = Independent(Categorical(logits, -len(shape)), len(shape) - 1)
    index = torch.randint(6, (5, 4, *shape[1:]))
    x = torch.movedim(torch.nn.functional.one_hot(index, 6), -1, -len(shape)).double()
    torch.testing.assert_close(p.log_prob(x), q.log_prob(index), rtol=1e-12, atol=1e-12)
    draws = p.sample((4000,))
    assert (draws.sum(-len(shape)) == 1).all()
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    error = p.mean.mul(1 - p.mean).sqrt() / math.sqrt(4000)
    assert ((draws.mean(0) - p.mean).abs() < 4.5 * error).all()
    torch.testing.assert_close(p.mean.sum(-len(shape)), torch.ones(4, *shape[1:]))


def test_gumbel_race_follows_the_probabilities():
    logits = torch.tensor([0.0, 1.0, -2.0, 500.0]) - torch.tensor([0, 0, 0, 499.0])
    winners = gumbel_race(logits, (20_000,)).argmin(-1).numpy()
    assert chi_squared(winners, np.append(scipy.special.softmax(logits.numpy()), 0.0)) > 1e-4
