"""check_likelihood accepts correct likelihoods and finds planted faults."""

import pytest
import torch
from helpers.faults import (
    Coupled,
    Detached,
    Imprecise,
    Logistic,
    NoFactorial,
    OtherDraws,
    OtherMean,
    Summed,
    Unnormalized,
    Widened,
)

from tinyvae import GaussianLikelihood, Likelihood
from tinyvae.distributions import LogNormal, TorchDistribution
from tinyvae.likelihoods import Learned, OneHotLikelihood
from tinyvae.testing import ContractError, check_likelihood


class GumbelLikelihood(Likelihood):
    """A custom likelihood, as in the documentation."""

    num_params = 2

    def elementwise(self, loc, log_scale):
        gumbel = torch.distributions.Gumbel(loc, log_scale.exp(), validate_args=False)
        return TorchDistribution(gumbel)


class LogisticLikelihood(Likelihood):
    """A custom likelihood with a learned scale."""

    num_params = 1

    def __init__(self):
        super().__init__()
        self.scale = Learned((3,))

    def elementwise(self, loc, log_scale):
        base = torch.distributions.Uniform(torch.zeros_like(loc), 1.0, validate_args=False)
        steps = [
            torch.distributions.SigmoidTransform().inv,
            torch.distributions.AffineTransform(loc, log_scale.exp()),
        ]
        return Logistic(torch.distributions.TransformedDistribution(base, steps, False), loc)


@pytest.mark.parametrize("make", [GumbelLikelihood, LogisticLikelihood])
def test_check_likelihood_accepts_custom_likelihoods(make):
    check_likelihood(make())


FAULTS = {
    "a constant": (Unnormalized, "total mass: expected 1, got 15.7"),
    "no factorial": (NoFactorial, "total mass: expected 1, got inf"),
    "draws": (OtherDraws, "sample.. does not agree with log_prob in dimension 0: p = "),
    "the mean": (OtherMean, "mean: .* but log_prob has"),
    "other rows": (Coupled, "log_prob of a batch in two chunks: differs by"),
    "no gradient": (Detached, "log_prob: gradients disagree|no gradient reaches"),
    "the dtype": (Widened, "log_prob: expected torch.float32, got torch.float64"),
    "half precision": (Imprecise, "total mass: expected 1, got"),
    "the event": (Summed, "log_prob: expected shape"),
    "no fill value in the support": (LogNormal, "MaskedLikelihood: .* see `fill_value`"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_likelihood_finds_faults(fault):
    family, message = FAULTS[fault]

    class Faulty(Likelihood):
        num_params = 2

        def elementwise(self, *params):
            return family(*params)

    with pytest.raises(ContractError, match=message):
        check_likelihood(Faulty())


def test_check_likelihood_finds_a_wrong_config():
    class Forgetful(GaussianLikelihood):
        def config(self):
            return {"std": 1.0}

    with pytest.raises(ContractError, match=r"config\(\): "):
        check_likelihood(Forgetful(0.5))


def test_check_likelihood_finds_wrong_one_hot_draws():
    class Tempered(OneHotLikelihood):
        def forward(self, params, event_ndim, context=None):
            p = super().forward(params, event_ndim, context)
            draws = super().forward(-4 * params, event_ndim, context)
            p.sample = draws.sample
            return p

    with pytest.raises(ContractError, match=r"sample.. does not agree with log_prob: p ="):
        check_likelihood(Tempered(), values=torch.eye(3))


def test_check_likelihood_changes_nothing():
    likelihood = GaussianLikelihood("learned")
    before = torch.get_rng_state()
    check_likelihood(likelihood)
    assert torch.equal(torch.get_rng_state(), before)
    assert likelihood.training
    assert likelihood.std.raw.dtype == torch.float32
    assert likelihood.std.raw.grad is None
