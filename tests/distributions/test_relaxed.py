"""Relaxed classes: GumbelSoftmax and StraightThrough."""

import itertools

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from helpers.cases import for_each
from helpers.distributions import grid, ks, one_hots

from tinyvae.distributions import GumbelSoftmax, StraightThrough

pytestmark = pytest.mark.usefixtures("float64")


@for_each("temperature", [0.1, 0.5, 2.0])
@for_each("num_classes", [2, 3])
def test_gumbel_softmax_integrates_to_one(num_classes, temperature):
    p = GumbelSoftmax(torch.randn(num_classes), 1, temperature)
    axis = torch.arange(-30, 30.01, 0.2) / temperature
    u, cell = grid(*[axis] * (num_classes - 1))
    x = F.pad(u, (0, 1)).log_softmax(-1)  # of which all but the last are the coordinates
    log_prob = p.log_prob(x.exp()) + x.sum(-1)
    assert log_prob.exp().sum().item() * cell == pytest.approx(1, abs=1e-6)


def test_masses_of_all_classes_sum_to_one():
    p = StraightThrough(torch.randn(4, 3, 2), 2)
    mass = p.log_prob(one_hots(3, 2)[:, None]).exp()
    torch.testing.assert_close(mass.sum(0), torch.ones(4), rtol=1e-12, atol=0)


@for_each("temperature", [0.1, 0.5, 2.0])
def test_draws_of_gumbel_softmax(temperature):
    """Differences of log draws are logistic, and the largest coordinate is a draw of the class."""
    logits = torch.randn(4)
    z = GumbelSoftmax(logits, 1, temperature).sample((5000,))
    kept = (z > 1e-300).all(-1)
    assert kept.double().mean() > 0.99
    scores = temperature * z.log() - logits
    for i, j in itertools.combinations(range(4), 2):
        assert ks(scores[:, i] - scores[:, j], "logistic") > 1e-4
    winners = torch.bincount(z.argmax(-1), minlength=4)
    assert scipy.stats.chisquare(winners, 5000 * logits.softmax(0)).pvalue > 1e-4
    # Three classes at once: the share of draws in which one exceeds two others.
    expected = torch.sigmoid(logits[0] - logits[1:3].logsumexp(0))
    beats = (scores[:, 0] + logits[0] > (scores + logits)[:, 1:3].amax(1)).double().mean()
    assert (beats - expected).abs() < 4 * (expected * (1 - expected) / 5000).sqrt()


@for_each("dtype", [torch.float32, torch.float64])
def test_straight_through_draws_are_exact(dtype):
    logits = torch.tensor([[0.0, 1.0, -2.0], [200.0, -200.0, 199.0]], dtype=dtype)
    z = StraightThrough(logits.requires_grad_(), 1, 0.1).sample((5000,))
    assert ((z == 0) | (z == 1)).all()
    assert (z.sum(-1) == 1).all()
    assert z.requires_grad
    for i in range(2):
        mass = logits[i].detach().double().softmax(0)
        counts = z[:, i].sum(0).detach().double()
        possible = mass > 1e-6
        assert counts[~possible].sum() == 0
        mass = mass[possible] / mass[possible].sum()
        assert scipy.stats.chisquare(counts[possible], 5000 * mass).pvalue > 1e-4


@for_each(("shape", "event_ndim"), [((5, 3), 1), ((5, 3, 2), 2)])
@for_each("temperature", [0.3, 1.0])
def test_straight_through_gradient_is_that_of_relaxed_draws(shape, event_ndim, temperature):
    logits, direction = torch.randn(shape).requires_grad_(), torch.randn(4, *shape)

    def gradient(draw):
        torch.manual_seed(2)
        return torch.autograd.grad((draw() * direction).sum(), logits)[0]

    def soft():
        gumbel = -torch.empty(4, *shape).exponential_().log()
        return ((logits + gumbel) / temperature).softmax(-event_ndim)

    hard = gradient(lambda: StraightThrough(logits, event_ndim, temperature).sample((4,)))
    torch.testing.assert_close(hard, gradient(soft), rtol=1e-12, atol=1e-14)
    relaxed = gradient(lambda: GumbelSoftmax(logits, event_ndim, temperature).sample((4,)))
    torch.testing.assert_close(relaxed, gradient(soft), rtol=1e-12, atol=1e-14)


def test_gumbel_softmax_low_temperature_needs_float64():
    """At lower temperatures, coordinates underflow whose logarithms the density needs."""
    assert GumbelSoftmax(torch.zeros(3), 1, 0.05).sample().dtype == torch.float64
    with pytest.raises(ValueError, match=r"temperature >= 0.3 in torch.float32, got 0.05: use"):
        GumbelSoftmax(torch.zeros(3).float(), 1, 0.05)


@for_each("temperature", [0.3, 0.5, 2.0])
@for_each("scale", [1.0, 30.0])
def test_relaxed_draws_have_a_density_in_float32(temperature, scale):
    logits = (scale * torch.randn(50, 10).float()).requires_grad_()
    p = GumbelSoftmax(logits, 1, temperature)
    z = p.sample((200,))
    assert (z > 0).all()
    log_prob = p.log_prob(z)
    assert log_prob.isfinite().all()
    assert torch.autograd.grad(log_prob.sum(), logits)[0].isfinite().all()
    prior = GumbelSoftmax(torch.zeros(10), 1, temperature).log_prob(z)
    assert prior.isfinite().all()
