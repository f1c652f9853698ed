"""Relaxed classes: GumbelSoftmax and StraightThrough."""

import itertools
import math

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from helpers.cases import for_each
from helpers.distributions import grid, ks, one_hots

from tinyvae.distributions import GumbelSoftmax, LogGumbelSoftmax, StraightThrough

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


@for_each(("temperature", "scale"), [(0.05, 1.0), (0.3, 1.0), (0.5, 30.0), (2.0, 1e4)])
def test_log_gumbel_softmax_is_exact_in_float32(temperature, scale):
    """Log ratios of densities agree with float64 at draws whose smallest coordinates underflow."""
    logits = (scale * torch.randn(50, 10).float()).requires_grad_()
    q, p = LogGumbelSoftmax(logits, 1, temperature), LogGumbelSoftmax(0 * logits, 1, 0.5)
    y = q.sample((200,))
    assert (y.exp() == 0).any() == (y.min() < -104)
    ratio = q.log_prob(y) - p.log_prob(y)
    wide = logits.detach().double().requires_grad_(), y.detach().double()
    exact = LogGumbelSoftmax(wide[0], 1, temperature).log_prob(wide[1])
    slope = torch.autograd.grad(exact.sum(), wide[0])[0]
    exact = exact - LogGumbelSoftmax(0 * wide[0], 1, 0.5).log_prob(wide[1])
    size = scale / temperature + 10
    torch.testing.assert_close(ratio.double(), exact, rtol=1e-6, atol=1e-5 * size)
    got = torch.autograd.grad(q.log_prob(y.detach()).sum(), logits, retain_graph=True)[0]
    torch.testing.assert_close(got.double(), slope, rtol=1e-4, atol=2e-4 * size)
    assert torch.autograd.grad(ratio.sum(), logits)[0].isfinite().all()


@for_each("gap", [0.5, 40.0, 4e3, 4e6])
@for_each("dtype", [torch.float32, torch.float64])
def test_log_gumbel_softmax_has_the_kl_of_logistic_variables(dtype, gap):
    logits = torch.tensor([[gap, 0.0], [0.0, 0.0]], dtype=dtype)
    q, p = (LogGumbelSoftmax(row, 1, 0.3) for row in logits)
    y = q.sample((10_000,))
    ratio = (q.log_prob(y) - p.log_prob(y)).double()
    expected = gap / math.tanh(gap / 2) - 2
    assert (ratio.mean() - expected).abs() < 4 * ratio.std() / 100 + 1e-6 * gap


def test_gumbel_softmax_is_the_exponential_of_its_log_form():
    p = GumbelSoftmax(torch.randn(5, 3, 2), 2, 0.7)
    form = p.log_form()
    torch.manual_seed(1)
    x, log_prob = p.sample_and_log_prob((4,))
    torch.manual_seed(1)
    y = form.sample((4,))
    assert torch.equal(x, p.value_of(y))
    torch.testing.assert_close(log_prob, form.log_prob(y) - y.sum((-2, -1)))
    torch.testing.assert_close(log_prob, p.log_prob(x))
    torch.testing.assert_close(form.log_prob(y), form.log_prob(y + 3.0))  # of log ratios
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0])
    torch.testing.assert_close(form.point_estimate(weights).exp(), p.point_estimate(weights))
    assert p.mean.isnan().all()
    narrow = GumbelSoftmax(torch.tensor([0.0, 400.0]).float(), 1, 0.3)
    x, log_prob = narrow.sample_and_log_prob()
    assert x.tolist() == [0, 1]
    assert log_prob.isfinite()
    assert narrow.log_prob(x) == -math.inf


@for_each("family", [GumbelSoftmax, LogGumbelSoftmax])
def test_relaxed_classes_that_are_ruled_out(family):
    """The density is that of the other classes."""
    logits = torch.tensor([1.0, -math.inf, 0.0]).requires_grad_()
    q, p = family(logits, 1, 0.5), family(torch.zeros(3), 1, 0.5)
    x = q.sample((50,))
    kept = [0, 2]
    smaller = family(logits[kept], 1, 0.5)
    torch.testing.assert_close(q.log_prob(x), smaller.log_prob(x[:, kept]))
    assert (q.log_prob(p.sample((9,))) == -math.inf).all()
    assert (p.log_prob(x) == -math.inf).all()
    for value in (q.log_prob(x.detach()), q.log_prob(x), x[:, 0]):
        assert torch.autograd.grad(value.sum(), logits, retain_graph=True)[0].isfinite().all()
