"""check_distribution accepts correct distributions and finds planted faults."""

import pytest
import torch
from helpers.faults import (
    Detached,
    Imprecise,
    NotReparameterized,
    OtherDraws,
    OtherMean,
    Unnormalized,
    Widened,
)

from tinyvae.distributions import (
    Bernoulli,
    Beta,
    ContinuousBernoulli,
    FullNormal,
    Independent,
    Laplace,
    LogNormal,
    LowRankNormal,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    Poisson,
    StudentT,
)
from tinyvae.testing import ContractError, check_distribution


def real(x):
    return torch.isfinite(x)


def positive(x):
    return torch.isfinite(x) & (x > 0)


def count(x):
    return (x >= 0) & (x == x.round())


def unit_interval(x):
    return (x >= 0) & (x <= 1)


GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape):
    return torch.randn(shape, generator=GENERATOR)


# name: (function to the distribution, parameters, options of the check)
DISTRIBUTIONS = {
    "normal": (Normal, (randn(3), randn(3)), {"in_support": real}),
    "normal without a support": (Normal, (randn(2, 2), randn(2, 2)), {}),
    "laplace": (Laplace, (randn(3), randn(3)), {"in_support": real}),
    "student t": (StudentT, (randn(2), randn(2), torch.ones(2)), {"in_support": real}),
    "log-normal": (LogNormal, (randn(2), torch.zeros(2)), {"in_support": positive}),
    "beta": (Beta, (0.3 * randn(2), torch.full((2,), 2.0)), {}),
    "continuous bernoulli": (
        ContinuousBernoulli,
        (3 * randn(3),),
        {"in_support": unit_interval},
    ),
    "bernoulli": (Bernoulli, (randn(3),), {"in_support": lambda x: (x == 0) | (x == 1)}),
    "poisson": (Poisson, (randn(2),), {"in_support": count}),
    "negative binomial": (NegativeBinomial, (randn(2), randn(2)), {"in_support": count}),
    "one-hot": (
        lambda logits: OneHotCategorical(logits, 1),
        (randn(1, 4),),
        {"values": torch.eye(4)},
    ),
    "full normal": (FullNormal, (randn(1, 3), 0.3 * randn(1, 3), randn(1, 3, 3)), {}),
    "low-rank normal": (LowRankNormal, (randn(1, 3), randn(1, 3), randn(1, 3, 1)), {}),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_check_distribution_accepts_correct_distributions(name):
    make, params, options = DISTRIBUTIONS[name]
    check_distribution(make, *params, **options)


class ScaledGradient(Normal):
    """A distribution whose draws have too large a gradient in the scale."""

    def sample(self, sample_shape=()):
        draws = super().sample(sample_shape)
        return draws + 0.5 * (self.log_std - self.log_std.detach())


class OtherElements(Independent):
    """A distribution whose elementwise densities do not sum to its density."""

    def elementwise_log_prob(self, value):
        return super().elementwise_log_prob(value) + 0.1


FAULTS = {
    "a constant": (Unnormalized, {"in_support": real}, "total mass: expected 1, got 6.2"),
    "a constant, by sampling": (Unnormalized, {}, "total mass: expected 1, got 6"),
    "draws": (OtherDraws, {"in_support": real}, "does not agree with log_prob in dimension"),
    "draws, by sampling": (OtherDraws, {}, "does not agree with log_prob along"),
    "the mean": (OtherMean, {"in_support": real}, "mean: .* but log_prob has"),
    "the mean of draws": (OtherMean, {}, "mean: .* but draws have"),
    "the dtype": (Widened, {}, "log_prob: expected torch.float32, got torch.float64"),
    "half precision": (Imprecise, {"in_support": real}, "total mass: expected 1, got"),
    "no gradient of draws": (
        NotReparameterized,
        {},
        "gradients in parameter 0 differ",
    ),
    "a wrong gradient of draws": (
        ScaledGradient,
        {},
        "gradients in parameter 1 differ",
    ),
    "a detached parameter": (Detached, {}, "log_prob: gradients disagree with differences"),
    "the support": (Normal, {"in_support": lambda x: x > 0}, "in_support: expected true for draws"),
    "elements": (
        lambda *params: OtherElements(Normal(*params), 1),
        {},
        "sum of elementwise_log_prob: differs by",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_distribution_finds_faults(fault):
    make, options, message = FAULTS[fault]
    params = torch.linspace(-1, 1, 2), torch.linspace(-0.5, 0.5, 2)
    if fault == "elements":
        params = tuple(p.expand(1, 2) for p in params)
    with pytest.raises(ContractError, match=message):
        check_distribution(make, *params, **options)


def test_check_distribution_rejects_batches_of_vectors():
    with pytest.raises(ValueError, match="one distribution of vectors, got"):
        check_distribution(FullNormal, torch.zeros(5, 2), torch.zeros(5, 2), torch.zeros(5, 2, 2))
    with pytest.raises(ValueError, match="scalar family with batch dimensions"):
        check_distribution(Normal, torch.zeros(()), torch.zeros(()))


def test_check_distribution_changes_nothing():
    params, state = (torch.zeros(2), torch.zeros(2)), torch.get_rng_state()
    check_distribution(Normal, *params)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.dtype == torch.float32 and p.grad is None for p in params)
