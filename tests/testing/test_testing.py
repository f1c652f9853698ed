"""The contract checks find what is wrong, and let pass what is right."""

import pytest
import torch
from torch import nn

from tinyvae import (
    MLP,
    BernoulliLikelihood,
    CategoricalLikelihood,
    Encoder,
    GaussianEncoder,
    GaussianLikelihood,
    Likelihood,
    Prior,
    StandardNormal,
    VampPrior,
)
from tinyvae.distributions import (
    Independent,
    LogNormal,
    Normal,
    OneHotCategorical,
    Poisson,
    TorchDistribution,
)
from tinyvae.likelihoods import (
    BetaLikelihood,
    Column,
    ContinuousBernoulliLikelihood,
    DiscretizedLogisticLikelihood,
    LaplaceLikelihood,
    Learned,
    LogNormalLikelihood,
    MaskedLikelihood,
    MixedLikelihood,
    MixtureLikelihood,
    NegativeBinomialLikelihood,
    OneHotLikelihood,
    OptimalGaussianLikelihood,
    PoissonLikelihood,
    StandardizedLikelihood,
    StudentTLikelihood,
    ZeroInflatedLikelihood,
)
from tinyvae.priors import CategoricalPrior, ConditionalPrior, FittedPrior, GaussianPrior
from tinyvae.testing import ContractError, cases, check_encoder, check_likelihood, check_prior


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
    Column("color", "category", levels=("red", "green", "blue")),
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
    "discretized logistic": (DiscretizedLogisticLikelihood(16), {}),
    "its mixture": (MixtureLikelihood(DiscretizedLogisticLikelihood(16), 3), {}),
    "mixture of gaussians": (MixtureLikelihood(GaussianLikelihood("predicted"), 2), {}),
    "mixture, learned scales": (MixtureLikelihood(LaplaceLikelihood(Learned((3,))), 2), {}),
    "standardized": (StandardizedLikelihood(GaussianLikelihood(), [1.0, 2.0, 3.0], 4.0), {}),
    "masked": (MaskedLikelihood(GaussianLikelihood()), {}),
    "table": (MixedLikelihood(TABLE), {"data_shape": (5,)}),
    "own": (GumbelLikelihood(), {}),
    "own, with a learned scale": (LogisticLikelihood(), {}),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods_keep_their_contract(name):
    likelihood, options = LIKELIHOODS[name]
    check_likelihood(likelihood, **options)


class Unnormalized(Normal):
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
    "a constant": (Unnormalized, "total mass: expected 1, got 15.7"),
    "no factorial": (NoFactorial, "total mass: expected 1, got inf"),
    "draws": (OtherDraws, "sample.. does not agree with log_prob in dimension 0: p = "),
    "the mean": (OtherMean, "mean: .* but draws have"),
    "other rows": (Coupled, "log_prob of a batch in two chunks: differs by"),
    "no gradient": (Detached, "log_prob: gradients disagree|no gradient reaches"),
    "the dtype": (Widened, "log_prob: expected float32, got torch.float64"),
    "half precision": (Imprecise, "total mass: expected 1, got"),
    "the event": (Summed, "log_prob: expected shape"),
    "no place for what is missing": (LogNormal, "MaskedLikelihood: .* see `inside`"),
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


# Encoders and priors ------------------------------------------------------------------------------

INPUTS = torch.linspace(-2, 2, 20).sin().reshape(5, 4)


class OwnEncoder(Encoder):
    """One's own, of two elements: a posterior of one family."""

    family = Normal

    def __init__(self, width=6):
        super().__init__()
        self.latent_shape = torch.Size((2,))
        self.width = width
        self.network = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 4))

    def params(self, x):
        return self.network(x).chunk(2, 1)

    def forward(self, x, context=None):
        return Independent(self.family(*self.params(x)), 1)

    def config(self):
        return {"width": self.width}


class OwnPrior(Prior):
    """One's own, logistic."""

    def __init__(self, latent_dim=2):
        super().__init__()
        self.latent_shape = torch.Size((latent_dim,))
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, context=None, *, encoder=None):
        uniform = torch.distributions.Uniform(torch.zeros_like(self.loc), 1.0, validate_args=False)
        steps = [
            torch.distributions.SigmoidTransform().inv,
            torch.distributions.AffineTransform(self.loc, self.log_scale.exp()),
        ]
        logistic = torch.distributions.TransformedDistribution(uniform, steps, False)
        return Independent(_Logistic(logistic, self.loc), 1)

    def config(self):
        return {"latent_dim": self.latent_shape[0]}


def test_good_ones_of_ones_own_pass():
    check_encoder(OwnEncoder(), INPUTS)
    check_prior(OwnPrior())
    check_prior(OwnPrior(1), torch.randn(5, 3))


def of(family_, **attributes):
    return type("Faulty", (OwnEncoder,), {"family": family_, **attributes})


class CoupledRows(Normal):
    def log_prob(self, value):
        log_prob = super().log_prob(value)
        return log_prob - 0.1 * log_prob.mean(-2, keepdim=True)


class NotReparameterized(Normal):
    """Says that draws carry gradients; they do not."""

    def sample(self, sample_shape=()):
        return super().sample(sample_shape).detach()


class SecretlyReparameterized(Normal):
    has_rsample = False


class NoGradientOfScale(Normal):
    def log_prob(self, value):
        fixed = Normal(self.mean, self.log_std.detach())
        return fixed.log_prob(value)


class NoGradientOfValue(Normal):
    def log_prob(self, value):
        return super().log_prob(value.detach())


class SharedNoise(Normal):
    def sample(self, sample_shape=()):
        noise = torch.randn(*sample_shape, 1, self.mean.shape[-1], dtype=self.mean.dtype)
        return self.mean + self.log_std.exp() * noise


class CenterElsewhere(Normal):
    def point_estimate(self, weights=None):
        return super().point_estimate(weights) * float("inf")


class CorrelatedElements(Normal):
    def sample(self, sample_shape=()):
        noise = torch.randn(*sample_shape, *self.mean.shape[:-1], 1, dtype=self.mean.dtype)
        return self.mean + self.log_std.exp() * noise


def forward_of(change):
    """An encoder whose parameters are changed by ``change(params, x)``."""

    def params(self, x):
        location, log_scale = OwnEncoder.params(self, x)
        return change(location), log_scale

    return of(Normal, params=params)


class Unflat(OwnEncoder):
    def forward(self, x, context=None):
        return Normal(*self.params(x))


class Params(OwnEncoder):
    def forward(self, x, context=None):
        return self.params(x)


class OtherSize(OwnEncoder):
    def forward(self, x, context=None):
        location, log_scale = self.params(x)
        return Independent(Normal(location[:, :1], log_scale[:, :1]), 1)


class FirstOnly(OwnEncoder):
    def forward(self, x, context=None):
        return super().forward(x[:1])


class Forgetful(OwnEncoder):
    def config(self):
        return {}


class OtherWidth(OwnEncoder):
    def config(self):
        return {"width": 7}


class Unsaved(OwnEncoder):
    """Standardizes by what it was given, and saves it not."""

    def __init__(self, width=6):
        super().__init__(width)
        self.register_buffer("shift", torch.zeros(4), persistent=False)

    def params(self, x):
        return super().params(x - self.shift)


def unsaved():
    encoder = Unsaved()
    encoder.shift.fill_(0.3)
    return encoder


class NoDensity(OwnEncoder):
    is_density = False


class Unused(OwnEncoder):
    def __init__(self, width=6):
        super().__init__(width)
        self.temperature = nn.Parameter(torch.zeros(()))


ENCODER_FAULTS = {
    "parameters": (Params, "forward: expected a Distribution, got a tuple"),
    "event shape": (OtherSize, r"event_shape \(2,\), got Independent.*event_shape=\(1,\)"),
    "elements as a batch": (Unflat, r"expected batch_shape \(5,\).*got Normal\(batch_shape=\(5, 2"),
    "batch shape": (FirstOnly, r"expected batch_shape \(5,\).*batch_shape=\(1,\)"),
    "centered": (
        forward_of(lambda m: m - m.mean(0)),
        r"point_estimate\(\) of a permute_dims|in two chunks",
    ),
    "coupled log_prob": (of(CoupledRows), "log_prob of a batch in two chunks: differs by"),
    "a constant": (of(Unnormalized), "total mass: expected 1, got 6.2"),
    "a small constant": (
        of(type("Off", (Normal,), {"log_prob": lambda p, z: Normal.log_prob(p, z) + 0.03})),
        "total mass: expected 1, got 1.0",
    ),
    "the dtype": (of(Widened), "log_prob: expected torch.float32, got torch.float64"),
    "half precision": (of(Imprecise), "its gradient in the|total mass: expected 1, got"),
    "draws": (of(OtherDraws), r"sample\(\) does not agree with log_prob along"),
    "the mean": (of(OtherMean), "mean: .* but draws have"),
    "the center": (of(CenterElsewhere), r"log_prob: expected finite numbers of point_estimate\(\)"),
    "shared noise": (of(SharedNoise), r"sample\(\): noise of two examples: correlated by"),
    "one noise for all": (of(CorrelatedElements), r"sample\(\): elements: correlated by"),
    "no draws' gradient": (
        of(NotReparameterized),
        r"sample\(\) or losses: no gradient reaches net",
    ),
    "draws' gradient": (of(SecretlyReparameterized), "have a gradient, has_rsample is False"),
    "scale's gradient": (of(NoGradientOfScale), "log_prob: its gradient in the parameters"),
    "value's gradient": (of(NoGradientOfValue), "log_prob: its gradient in the value"),
    "an unused parameter": (Unused, "no gradient reaches temperature"),
    "no density": (NoDensity, "is_density: the encoder's is False, its posterior's True"),
    "config": (Forgetful, r"config\(\): a file cannot describe it: .*must return every argument"),
    "other config": (OtherWidth, r"config\(\): what it builds has another state_dict"),
    "a buffer": (unsaved, r"config\(\): what it builds, with the same state_dict, has another"),
}


@pytest.mark.parametrize("fault", ENCODER_FAULTS)
def test_faults_of_encoders_are_found(fault):
    make, message = ENCODER_FAULTS[fault]
    with pytest.raises(ContractError, match=message):
        check_encoder(make(), INPUTS)


def prior_of(change):
    """A prior whose distribution is changed by ``change(distribution)``."""

    class Faulty(GaussianPrior):
        def forward(self, context=None, *, encoder=None):
            return change(super().forward(context))

    return Faulty(2)


def gaussian_prior_of(family):
    return prior_of(lambda p: Independent(family(p.base.mean, p.base.log_std), 1))


def narrower(p):
    """Draws of the same kind, but some of them missing: those of the left."""
    draw = p.sample
    p.sample = lambda shape=(): p.mean + (draw(shape) - p.mean).abs()
    return p


class Noisy(Prior):
    """Of another law at every call."""

    def __init__(self):
        super().__init__()
        self.latent_shape = torch.Size((2,))

    def forward(self, context=None, *, encoder=None):
        noise = torch.randn(2, dtype=torch.float64)
        return Independent(Normal(noise, torch.zeros_like(noise)), 1)

    def config(self):
        return {}


class Rounded(CategoricalPrior):
    """Of other masses than draws."""

    def forward(self, context=None, *, encoder=None):
        p, other = super().forward(context), OneHotCategorical(-self.logits, 2)
        p.sample = other.sample
        p.__class__ = type("OneHot", (OneHotCategorical,), {"mean": other.mean})
        return p


class Heavy(CategoricalPrior):
    """Of masses that sum to two."""

    def forward(self, context=None, *, encoder=None):
        p = super().forward(context)
        log_prob = p.log_prob
        p.log_prob = lambda value: log_prob(value) + 0.6931
        return p


class NoShape(GaussianPrior):
    def __init__(self, latent_shape):
        super().__init__(latent_shape)
        self.latent_shape = 2


class WrongJacobian(FittedPrior):
    """Standardizes, and forgets the units."""

    def forward(self, context=None, *, encoder=None):
        p = super().forward(context)
        p.log_prob = lambda value: p.base.log_prob((value - self.shift) / self.scale)
        return p


def wrong_jacobian():
    prior = WrongJacobian(GaussianPrior(2))
    prior.scale.fill_(3.0)
    return prior


PRIOR_FAULTS = {
    "latent_shape": (lambda: NoShape(2), "latent_shape: expected a torch.Size, got 2"),
    "event shape": (
        lambda: prior_of(lambda p: Independent(Normal(p.mean[:1], p.mean[:1]), 1)),
        r"expected batch_shape \(\) and event_shape \(2,\), got",
    ),
    "batch shape": (
        lambda: prior_of(lambda p: Independent(Normal(p.mean[None], p.mean[None]), 1)),
        r"expected batch_shape \(\) and event_shape \(2,\), got",
    ),
    "elements as a batch": (lambda: prior_of(lambda p: p.base), r"batch_shape=\(2,\)"),
    "a constant": (lambda: gaussian_prior_of(Unnormalized), "total mass: expected 1, got 6.2"),
    "units": (wrong_jacobian, "total mass: expected 1, got 9"),
    "draws": (lambda: gaussian_prior_of(OtherDraws), "does not agree with log_prob along"),
    "half of the draws": (lambda: prior_of(narrower), "mean: .* but draws have|does not agree"),
    "the mean": (lambda: gaussian_prior_of(OtherMean), "mean: .* but draws have"),
    "no gradient": (lambda: gaussian_prior_of(Detached), "no gradient reaches log_std"),
    "no draws' gradient": (
        lambda: gaussian_prior_of(NotReparameterized),
        r"sample\(\) or losses: no gradient reaches mean, log_std",
    ),
    "the dtype": (lambda: gaussian_prior_of(Widened), "log_prob: expected torch.float32"),
    "another at every call": (Noisy, "permute_dims batch: differs|expected torch.float32"),
    "masses of draws": (lambda: fitted_classes(Rounded), "does not agree with log_prob: p ="),
    "masses": (lambda: fitted_classes(Heavy), "total mass: expected 1, got 1.9999"),
}


def fitted_classes(cls):
    prior = cls(3, learned=True)
    prior.logits.data = torch.tensor([[1.0], [0.0], [-1.0]])
    return prior


@pytest.mark.parametrize("fault", PRIOR_FAULTS)
def test_faults_of_priors_are_found(fault):
    make, message = PRIOR_FAULTS[fault]
    with pytest.raises(ContractError, match=message):
        check_prior(make())


def test_a_prior_whose_rows_touch_each_other_is_found():
    class Centered(ConditionalPrior):
        def forward(self, context=None, *, encoder=None):
            return super().forward(context - context.mean(0))

    with pytest.raises(ContractError, match="two chunks: differs by"):
        check_prior(Centered(GaussianEncoder(MLP(4), 2)), INPUTS)


def test_a_wrong_closed_form_is_found(monkeypatch):
    encoder = GaussianEncoder(MLP(4, hidden=(6,)), 2)
    right = cases.kl_divergence
    monkeypatch.setattr(cases, "kl_divergence", lambda q, p: 1.5 * right(q, p))
    with pytest.raises(ContractError, match=r"KL to .*: the closed form says .* but log q - log p"):
        check_encoder(encoder, INPUTS, prior=GaussianPrior(2))
    monkeypatch.setattr(cases, "kl_divergence", lambda q, p: -right(q, p))
    with pytest.raises(ContractError, match=r"KL to .*: expected >= 0, got"):
        check_encoder(encoder, INPUTS)


@pytest.mark.parametrize(
    "check", [check_encoder, lambda *a: check_prior(StandardNormal(2), *a[1:])]
)
def test_few_rows_are_refused(check):
    with pytest.raises(ValueError, match="of at least 5 rows, got 4: give more"):
        check(OwnEncoder(), INPUTS[:4])


def test_checks_of_latents_change_nothing():
    encoder = GaussianEncoder(MLP(4), 2)
    prior = VampPrior.from_data(encoder, INPUTS, num_components=2)
    parts = [encoder, prior]
    states = [{k: v.clone() for k, v in part.state_dict().items()} for part in parts]
    inputs, before = INPUTS.clone(), torch.get_rng_state()
    check_encoder(encoder, INPUTS, prior=StandardNormal(2))
    check_prior(prior, encoder=encoder)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(inputs, INPUTS)
    for part, state in zip(parts, states, strict=True):
        assert part.training
        assert all(p.grad is None for p in part.parameters())
        assert all(torch.equal(part.state_dict()[k], v) for k, v in state.items())
        assert all(p.dtype == torch.float32 for p in part.parameters())
