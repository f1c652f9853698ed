"""Expectations by weighted points, against scipy."""

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from helpers.cases import for_each
from scipy.integrate import quad
from scipy.special import expit

from tinyvae.distributions import (
    Affine,
    Bernoulli,
    Beta,
    BetaBinomial,
    Categorical,
    DiscretizedLogistic,
    Hurdle,
    Laplace,
    LogisticChance,
    LogitNormal,
    LogNormal,
    Mixture,
    NegativeBinomial,
    Normal,
    Ordinal,
    Poisson,
    SelfMaskedDistribution,
    StudentT,
    TabularDistribution,
    Tilted,
    ZeroInflated,
    quadrature,
    tilted,
)

pytestmark = pytest.mark.usefixtures("float64")

MEAN = torch.tensor([-0.4, 0.7, 2.0], dtype=torch.float64)
LOG = torch.tensor([-1.0, 0.0, 0.4], dtype=torch.float64)
FAMILIES = {
    "normal": (Normal(MEAN, LOG), scipy.stats.norm(MEAN, LOG.exp())),
    "laplace": (Laplace(MEAN, LOG), scipy.stats.laplace(MEAN, LOG.exp())),
    "student t": (StudentT(MEAN, LOG, LOG + 1), scipy.stats.t((LOG + 1).exp(), MEAN, LOG.exp())),
    "log-normal": (LogNormal(MEAN, LOG), scipy.stats.lognorm(LOG.exp(), scale=MEAN.exp())),
    "affine": (
        Affine(Normal(MEAN, LOG), MEAN.new_tensor(3.0), MEAN.new_tensor(0.5)),
        scipy.stats.norm(3 + 0.5 * MEAN, 0.5 * LOG.exp()),
    ),
    "bernoulli": (Bernoulli(MEAN), scipy.stats.bernoulli(torch.sigmoid(MEAN))),
    "poisson": (Poisson(MEAN), scipy.stats.poisson(MEAN.exp())),
    "negative binomial": (
        NegativeBinomial(MEAN, LOG),
        scipy.stats.nbinom(LOG.exp(), LOG.exp() / (LOG.exp() + MEAN.exp())),
    ),
}


def expected(reference, function):
    """Return expectations under a scipy distribution of three elements."""
    if hasattr(reference.dist, "pmf"):
        k = np.arange(3000)[:, None]
        return torch.from_numpy((reference.pmf(k) * function(k)).sum(0))
    cuts = [-np.inf, -30, -3, -0.4, 0, 0.3, 0.7, 1, 2, 4, 10, 40, np.inf]
    pieces = [
        [
            quad(lambda x, i=i: reference.pdf(x)[i] * function(x), a, b)[0]
            for a, b in itertools.pairwise(cuts)
        ]
        for i in range(3)
    ]
    return torch.tensor(pieces).sum(1)


@for_each("name", FAMILIES)
@for_each(("slope", "center"), [(0.5, 0.0), (2.0, 1.0), (-1.0, 0.3)])
def test_quadrature_of_a_sigmoid_is_that_of_scipy(name, slope, center):
    p, reference = FAMILIES[name]
    x, log_weight = quadrature(p)
    assert x.shape == log_weight.shape == (len(x), 3)
    torch.testing.assert_close(log_weight.logsumexp(0), torch.zeros(3))
    got = (log_weight.exp() * torch.sigmoid(slope * (x - center))).sum(0)
    want = expected(reference, lambda x: expit(slope * (x - center)))
    torch.testing.assert_close(got, want, rtol=2e-5, atol=0)


def test_quadrature_of_finite_families_sums_over_their_values():
    logits = torch.randn(4, 2, 3)
    x, log_weight = quadrature(Categorical(logits, -2))
    assert x.shape == (2, 4, 3)
    torch.testing.assert_close(log_weight, logits.log_softmax(-2).movedim(-2, 0))
    p = DiscretizedLogistic(MEAN, LOG, 9)
    x, log_weight = quadrature(p)
    torch.testing.assert_close((log_weight.exp() * x).sum(0), p.mean)


def test_quadrature_of_mixtures_and_tables():
    means, logits = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    p = Mixture(logits, Normal(means, torch.zeros(2, 5, 3)), -2)
    x, log_weight = quadrature(p)
    torch.testing.assert_close((log_weight.exp() * x).sum(0), p.mean)
    zero_inflated = ZeroInflated(Poisson(MEAN), LOG)
    x, log_weight = quadrature(zero_inflated)
    torch.testing.assert_close((log_weight.exp() * x).sum(0), zero_inflated.mean)
    positions = [torch.tensor([2, 0, 4]), torch.tensor([1, 3])]
    table = TabularDistribution(
        [Normal(MEAN, LOG), Bernoulli(torch.tensor([0.3, -2.0]))], positions
    )
    x, log_weight = quadrature(table)
    torch.testing.assert_close((log_weight.exp() * x).sum(0), table.mean)


def test_quadrature_of_hurdles_levels_and_trials():
    points, inside = torch.tensor([[0.0], [9.0]]), torch.tensor(1.0)
    for base in (LogNormal(MEAN, LOG), LogNormal(MEAN.expand(5, 3), LOG)):
        logits = torch.randn(*base.batch_shape[:-1], 2, 3)
        p = Hurdle(base, logits, points, -2, inside)
        x, log_weight = quadrature(p)
        got = (log_weight.exp() * torch.sigmoid(x)).sum(0)
        x, log_weight = quadrature(base)
        inner = (log_weight.exp() * torch.sigmoid(x)).sum(0)
        share = torch.cat([logits, torch.zeros(*base.batch_shape[:-1], 1, 3)], -2).softmax(-2)
        values = torch.stack([inner * 0 + 0.5, inner * 0 + torch.sigmoid(points[1]), inner], -2)
        torch.testing.assert_close(got, (share * values).sum(-2))
    bounded = LogitNormal(MEAN, LOG, torch.tensor(-1.0), torch.tensor(3.0))
    levels = Ordinal(MEAN, torch.tensor(-1.0), torch.randn(3))
    trials = BetaBinomial(MEAN, LOG, torch.tensor([3.0, 7.0, 128.0]))
    for p in (bounded, levels, trials):
        x, log_weight = quadrature(p)
        torch.testing.assert_close((log_weight.exp() * x).sum(0), p.mean)
    many = BetaBinomial(MEAN, LOG + 2, torch.tensor(5000.0))
    x, log_weight = quadrature(many)
    torch.testing.assert_close((log_weight.exp() * x).sum(0), many.mean, rtol=0.02, atol=0)


def test_quadrature_of_large_counts_groups_them():
    p = NegativeBinomial(torch.tensor([9.0]), torch.tensor([1.0]))
    x, log_weight = quadrature(p)
    torch.testing.assert_close((log_weight.exp() * x).sum(0), p.mean, rtol=0.01, atol=0)


def test_quadrature_refuses_other_families():
    with pytest.raises(TypeError, match=r"quadrature has no rule for Beta\(.*: use a Gaussian"):
        quadrature(Beta(MEAN, LOG))


# Selection ----------------------------------------------------------------------------------------

CHANCE = LogisticChance(torch.tensor([2.0, -1.0, 0.7]).double(), 0.3 * MEAN, MEAN + 0.1)


@for_each("name", FAMILIES)
def test_self_masked_masses_of_observed_and_missing_sum_to_one(name):
    base, _ = FAMILIES[name]
    p = SelfMaskedDistribution(base, torch.tensor(1.0), CHANCE)
    x, log_weight = quadrature(base)
    # The observed part integrates exp(log p(x, observed)) = p(x) (1 - chance).
    inside = log_weight + p.log_prob(x) - base.log_prob(x)
    missing = p.log_prob(torch.full((3,), torch.nan))
    torch.testing.assert_close(torch.logaddexp(inside.logsumexp(0), missing), torch.zeros(3))
    assert p.is_discrete is (True if base.is_discrete else None)


def test_self_masked_gradients_pass_gradcheck():
    x = torch.tensor([0.3, torch.nan, torch.nan])

    def log_prob(mean, log_std, slope, intercept):
        chance = LogisticChance(slope, intercept, torch.tensor(0.2))
        return SelfMaskedDistribution(Normal(mean, log_std), torch.tensor(0.0), chance).log_prob(x)

    inputs = [t.clone().requires_grad_() for t in (MEAN, LOG, CHANCE.slope, CHANCE.intercept)]
    assert torch.autograd.gradcheck(log_prob, inputs)


@for_each("name", FAMILIES)
def test_tilted_draws_follow_the_tilted_density(name):
    torch.manual_seed(0)
    base, _ = FAMILIES[name]
    q = tilted(base, CHANCE)
    draws = q.sample((4000,))
    mean, std = draws.tanh().mean(0), draws.tanh().std(0)
    x, log_weight = quadrature(base)
    weight = (log_weight + torch.nn.functional.logsigmoid(CHANCE.logit(x))).softmax(0)
    want = (weight * x.tanh()).sum(0)
    assert ((mean - want).abs() < 4 * std / 4000**0.5 + 1e-9).all()
    torch.testing.assert_close(q.mean, (weight * x).sum(0))
    torch.testing.assert_close(q.log_prob(draws[:5]), _log_tilt(base, draws[:5]))


def _log_tilt(base, x):
    points, log_weight = quadrature(base)
    sigmoid = torch.nn.functional.logsigmoid
    total = (log_weight + sigmoid(CHANCE.logit(points))).logsumexp(0)
    return base.log_prob(x) + sigmoid(CHANCE.logit(x)) - total


def test_tilted_draws_of_rare_events_are_resampled():
    torch.manual_seed(0)
    rare = LogisticChance(torch.tensor(3.0), torch.tensor(-15.0), torch.tensor(0.0))
    q = Tilted(Normal(torch.zeros(4000), torch.zeros(4000)), rare)
    draws = q.sample()
    # The best of 100 proposals lies near the mean of the tilted density, about 3.
    assert (draws.mean() - q.mean[0]).abs() < 0.8


def test_tilted_classes_stay_classes():
    chance = LogisticChance(torch.tensor(2.0), torch.tensor(-1.0), torch.tensor(0.0))
    q = tilted(Categorical(torch.zeros(2, 3, 4), -2), chance)
    weight = torch.sigmoid(2.0 * torch.arange(3) - 1)
    want = (weight / weight.sum()).log()
    classes = torch.arange(3.0)[:, None, None].expand(3, 2, 4)
    torch.testing.assert_close(q.log_prob(classes), want[:, None, None].expand(3, 2, 4))
    assert (q.point_estimate() == 2).all()


def test_tilted_table_tilts_each_column_by_its_own_chance():
    positions = [torch.tensor([2, 0]), torch.tensor([1])]
    table = TabularDistribution([Normal(MEAN[:2], LOG[:2]), Bernoulli(torch.zeros(1))], positions)
    q = tilted(table, CHANCE)
    for block, columns in zip(table.blocks, positions, strict=True):
        alone = tilted(block, CHANCE.columns(columns, 3))
        torch.testing.assert_close(q.mean[columns], alone.mean)
