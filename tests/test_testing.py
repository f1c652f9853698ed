"""The contract checks find what is wrong, and let pass what is right."""

import pytest
import torch
from torch import nn

from tinyvae import (
    BernoulliLikelihood,
    BetaLikelihood,
    CategoricalLikelihood,
    Column,
    ContinuousBernoulliLikelihood,
    DiscretisedLogisticLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
    Learned,
    Likelihood,
    LogNormalLikelihood,
    Masked,
    MixedLikelihood,
    MixtureLikelihood,
    NegativeBinomialLikelihood,
    OneHotLikelihood,
    OptimalGaussianLikelihood,
    PoissonLikelihood,
    StandardisedLikelihood,
    StudentTLikelihood,
    TorchDistribution,
    ZeroInflatedLikelihood,
)
from tinyvae.distributions import LogNormal, Normal, Poisson
from tinyvae.testing import ContractError, check_likelihood


class GumbelLikelihood(Likelihood):
    """One's own, as the documentation has it."""

    num_params = 2

    def elementwise(self, loc, log_scale):
        gumbel = torch.distributions.Gumbel(loc, log_scale.exp(), validate_args=False)
        return TorchDistribution(gumbel)


class LogisticLikelihood(Likelihood):
    """One's own with a learned scale."""

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
        return _Logistic(torch.distributions.TransformedDistribution(base, steps, False), loc)


class _Logistic(TorchDistribution):
    def __init__(self, base, loc):
        super().__init__(base)
        self.loc = loc

    @property
    def mean(self):
        return self.loc


TABLE = [
    Column("age", "number", shift=4.0, scale=3.0),
    Column("visits", "count"),
    Column("income", "positive", scale=100.0),
    Column("colour", "category", levels=("red", "green", "blue")),
    Column("smokes", "binary", levels=("no", "yes")),
]
CLASSES = torch.tensor([0, 3, 2, 1, 1])

# name: (likelihood, options of the check)
LIKELIHOODS = {
    "bernoulli": (BernoulliLikelihood(), {}),
    "gaussian, fixed": (GaussianLikelihood(0.3), {}),
    "gaussian, learned": (GaussianLikelihood(Learned((3,))), {}),
    "gaussian, predicted": (GaussianLikelihood("predicted"), {"data_shape": (2, 1, 2)}),
    "gaussian, of classes": (
        GaussianLikelihood(Learned((3,), num_classes=4)),
        {"context": CLASSES},
    ),
    "gaussian, of one-hot classes": (
        GaussianLikelihood(Learned(num_classes=4)),
        {"context": nn.functional.one_hot(CLASSES, 4).double()},
    ),
    "optimal gaussian": (OptimalGaussianLikelihood(), {}),
    "laplace": (LaplaceLikelihood("predicted"), {}),
    "student t": (StudentTLikelihood(), {}),
    "student t, predicted": (StudentTLikelihood("predicted", "predicted"), {}),
    "log-normal": (LogNormalLikelihood("predicted"), {}),
    "beta": (BetaLikelihood(Learned(initial=5.0)), {"spread": 0.3}),
    "continuous bernoulli": (ContinuousBernoulliLikelihood(), {"spread": 5.0}),
    "categorical": (CategoricalLikelihood(5), {}),
    "categorical, ordered": (CategoricalLikelihood(5, ordered=True), {"data_shape": (1, 2)}),
    "one-hot": (OneHotLikelihood(), {"values": torch.eye(3)}),
    "poisson": (PoissonLikelihood(3.0), {}),
    "negative binomial": (NegativeBinomialLikelihood("predicted"), {}),
    "zero-inflated poisson": (ZeroInflatedLikelihood(PoissonLikelihood(4.0)), {}),
    "zero-inflated negative binomial": (
        ZeroInflatedLikelihood(NegativeBinomialLikelihood(Learned((3,)))),
        {},
    ),
    "discretised logistic": (DiscretisedLogisticLikelihood(16), {}),
    "its mixture": (MixtureLikelihood(DiscretisedLogisticLikelihood(16), 3), {}),
    "mixture of gaussians": (MixtureLikelihood(GaussianLikelihood("predicted"), 2), {}),
    "mixture, learned scales": (MixtureLikelihood(LaplaceLikelihood(Learned((3,))), 2), {}),
    "standardised": (StandardisedLikelihood(GaussianLikelihood(), [1.0, 2.0, 3.0], 4.0), {}),
    "masked": (Masked(GaussianLikelihood()), {}),
    "table": (MixedLikelihood(TABLE), {"data_shape": (5,)}),
    "own": (GumbelLikelihood(), {}),
    "own, with a learned scale": (LogisticLikelihood(), {}),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods_keep_their_contract(name):
    likelihood, options = LIKELIHOODS[name]
    check_likelihood(likelihood, **options)


class Unnormalised(Normal):
    def log_prob(self, value):
        return super().log_prob(value) + 0.9189


class OtherDraws(Normal):
    def sample(self, sample_shape=()):
        return self.mean + 1.1 * (super().sample(sample_shape) - self.mean)


class OtherMean(Normal):
    @property
    def mean(self):
        return super().mean + 0.2


class Coupled(Normal):
    def log_prob(self, value):
        log_prob = super().log_prob(value)
        return log_prob - 0.1 * log_prob.mean(1, keepdim=True)


class Detached(Normal):
    def __init__(self, mean, log_std):
        super().__init__(mean, log_std.detach())


class Widened(Normal):
    def log_prob(self, value):
        return super().log_prob(value).double()


class Imprecise(Normal):
    def log_prob(self, value):
        return super().log_prob(value.bfloat16().to(value.dtype))


class Summed(Normal):
    def log_prob(self, value):
        return super().log_prob(value).sum(-1)


class NoFactorial(Poisson):
    def __init__(self, log_mean, other):
        super().__init__(log_mean + other)

    def log_prob(self, value):
        return super().log_prob(value) + torch.lgamma(value + 1)


FAULTS = {
    "a constant": (Unnormalised, "total mass: expected 1, got 15.7"),
    "no factorial": (NoFactorial, "total mass: expected 1, got inf"),
    "draws": (OtherDraws, "sample.. does not agree with log_prob in dimension 0: p = "),
    "the mean": (OtherMean, "mean: .* but draws have"),
    "other rows": (Coupled, "log_prob of a batch in two chunks: differs by"),
    "no gradient": (Detached, "log_prob: gradients disagree|no gradient reaches"),
    "the dtype": (Widened, "log_prob: expected float32, got torch.float64"),
    "half precision": (Imprecise, "total mass: expected 1, got"),
    "the event": (Summed, "log_prob: expected shape"),
    "no place for what is missing": (LogNormal, "Masked: .* see `inside`"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault):
    family, message = FAULTS[fault]

    class Faulty(Likelihood):
        num_params = 2

        def elementwise(self, *params):
            return family(*params)

    with pytest.raises(ContractError, match=message):
        check_likelihood(Faulty())


def test_a_config_that_forgets_is_found():
    class Forgetful(GaussianLikelihood):
        def config(self):
            return {"std": 1.0}

    with pytest.raises(ContractError, match=r"config\(\): the likelihood that it builds"):
        check_likelihood(Forgetful(0.5))


def test_one_hot_draws_of_another_law_are_found():
    class Tempered(OneHotLikelihood):
        def forward(self, params, event_ndim, context=None):
            p = super().forward(params, event_ndim, context)
            draws = super().forward(-4 * params, event_ndim, context)
            p.sample = draws.sample
            return p

    with pytest.raises(ContractError, match=r"sample.. does not agree with log_prob: p ="):
        check_likelihood(Tempered(), values=torch.eye(3))


def test_nothing_is_changed():
    likelihood = GaussianLikelihood("learned")
    before = torch.get_rng_state()
    check_likelihood(likelihood)
    assert torch.equal(torch.get_rng_state(), before)
    assert likelihood.training
    assert likelihood.std.raw.dtype == torch.float32
    assert likelihood.std.raw.grad is None
