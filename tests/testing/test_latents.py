"""check_encoder and check_prior accept correct parts and find planted faults."""

import pytest
import torch
from helpers.faults import (
    CenterElsewhere,
    CorrelatedElements,
    CoupledRows,
    Detached,
    Imprecise,
    Logistic,
    NoGradientOfScale,
    NoGradientOfValue,
    NotReparameterized,
    OtherDraws,
    OtherMean,
    SecretlyReparameterized,
    SharedNoise,
    Unnormalized,
    Widened,
)
from torch import nn

from tinyvae import MLP, Encoder, GaussianEncoder, Prior, StandardNormal, VampPrior
from tinyvae.distributions import Independent, Normal, OneHotCategorical
from tinyvae.priors import CategoricalPrior, ConditionalPrior, FittedPrior, GaussianPrior
from tinyvae.testing import ContractError, check_encoder, check_prior, latents

INPUTS = torch.linspace(-2, 2, 20).sin().reshape(5, 4)


class OwnEncoder(Encoder):
    """A custom encoder of two elements, with a posterior of one family."""

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
    """A custom logistic prior."""

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
        return Independent(Logistic(logistic, self.loc), 1)

    def config(self):
        return {"latent_dim": self.latent_shape[0]}


def test_check_encoder_and_check_prior_accept_custom_parts():
    check_encoder(OwnEncoder(), INPUTS)
    check_prior(OwnPrior())
    check_prior(OwnPrior(1), torch.randn(5, 3))


def of(family_, **attributes):
    return type("Faulty", (OwnEncoder,), {"family": family_, **attributes})


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
    """An encoder that does not save a buffer."""

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
        r"point_estimate\(\) of a permuted|in two chunks",
    ),
    "coupled log_prob": (of(CoupledRows), "log_prob of a batch in two chunks: differs by"),
    "a constant": (of(Unnormalized), r"total mass: expected 1, got 6\.[23]"),
    "a small constant": (
        of(type("Off", (Normal,), {"log_prob": lambda p, z: Normal.log_prob(p, z) + 0.03})),
        "total mass: expected 1, got 1.0",
    ),
    "the dtype": (of(Widened), "log_prob: expected torch.float32, got torch.float64"),
    "half precision": (of(Imprecise), "its gradient in the|total mass: expected 1, got"),
    "draws": (of(OtherDraws), r"sample\(\) does not agree with log_prob along"),
    "the mean": (of(OtherMean), "mean: .* but draws have"),
    "the center": (
        of(CenterElsewhere),
        r"log_prob: expected finite numbers for point_estimate\(\)",
    ),
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
    "other config": (OtherWidth, r"config\(\): the rebuilt part has another state_dict"),
    "a buffer": (unsaved, r"config\(\): the rebuilt part, with the same state_dict, has another"),
}


@pytest.mark.parametrize("fault", ENCODER_FAULTS)
def test_check_encoder_finds_faults(fault):
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
    """Replace draws below the mean by draws above it."""
    draw = p.sample
    p.sample = lambda shape=(): p.mean + (draw(shape) - p.mean).abs()
    return p


class Noisy(Prior):
    """A prior that changes with every call."""

    def __init__(self):
        super().__init__()
        self.latent_shape = torch.Size((2,))

    def forward(self, context=None, *, encoder=None):
        noise = torch.randn(2, dtype=torch.float64)
        return Independent(Normal(noise, torch.zeros_like(noise)), 1)

    def config(self):
        return {}


class Rounded(CategoricalPrior):
    """A prior whose draws do not follow its masses."""

    def forward(self, context=None, *, encoder=None):
        p, other = super().forward(context), OneHotCategorical(-self.logits, 2)
        p.sample = other.sample
        p.__class__ = type("OneHot", (OneHotCategorical,), {"mean": other.mean})
        return p


class Heavy(CategoricalPrior):
    """A prior whose masses sum to two."""

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
    """A standardized prior without its Jacobian."""

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
    "a constant": (lambda: gaussian_prior_of(Unnormalized), r"total mass: expected 1, got 6\.[23]"),
    "units": (wrong_jacobian, "sum of elementwise_log_prob: differs by"),
    "draws": (lambda: gaussian_prior_of(OtherDraws), "does not agree with log_prob along"),
    "half of the draws": (lambda: prior_of(narrower), "mean: .* but draws have|does not agree"),
    "the mean": (lambda: gaussian_prior_of(OtherMean), "mean: .* but draws have"),
    "no gradient": (lambda: gaussian_prior_of(Detached), "no gradient reaches log_std"),
    "no draws' gradient": (
        lambda: gaussian_prior_of(NotReparameterized),
        r"sample\(\) or losses: no gradient reaches mean, log_std",
    ),
    "the dtype": (lambda: gaussian_prior_of(Widened), "log_prob: expected torch.float32"),
    "another at every call": (Noisy, "permuted batch: differs|expected torch.float32"),
    "masses of draws": (lambda: fitted_classes(Rounded), "does not agree with log_prob: p ="),
    "masses": (lambda: fitted_classes(Heavy), "total mass: expected 1, got 1.9999"),
}


def fitted_classes(cls):
    prior = cls(3, learned=True)
    prior.logits.data = torch.tensor([[1.0], [0.0], [-1.0]])
    return prior


@pytest.mark.parametrize("fault", PRIOR_FAULTS)
def test_check_prior_finds_faults(fault):
    make, message = PRIOR_FAULTS[fault]
    with pytest.raises(ContractError, match=message):
        check_prior(make())


def test_check_prior_finds_coupled_rows():
    class Centered(ConditionalPrior):
        def forward(self, context=None, *, encoder=None):
            return super().forward(context - context.mean(0))

    with pytest.raises(ContractError, match="two chunks: differs by"):
        check_prior(Centered(GaussianEncoder(MLP(4), 2)), INPUTS)


def test_check_encoder_finds_a_wrong_closed_form(monkeypatch):
    encoder = GaussianEncoder(MLP(4, hidden=(6,)), 2)
    right = latents.kl_divergence
    monkeypatch.setattr(latents, "kl_divergence", lambda q, p: 1.5 * right(q, p))
    with pytest.raises(ContractError, match=r"KL to .*: the closed form says .* but log q - log p"):
        check_encoder(encoder, INPUTS, prior=GaussianPrior(2))
    monkeypatch.setattr(latents, "kl_divergence", lambda q, p: -right(q, p))
    with pytest.raises(ContractError, match=r"KL to .*: expected >= 0, got"):
        check_encoder(encoder, INPUTS)


@pytest.mark.parametrize(
    "check", [check_encoder, lambda *a: check_prior(StandardNormal(2), *a[1:])]
)
def test_checks_reject_few_rows(check):
    with pytest.raises(ValueError, match=r"at least 5 rows of .*, got 4"):
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
