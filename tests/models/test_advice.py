"""Warnings before the first step."""

import pytest
import torch
import torch.nn.functional as F
from helpers.cases import for_each
from torch import nn

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    BernoulliLikelihood,
    CategoricalLikelihood,
    Encoder,
    GaussianEncoder,
    GaussianLikelihood,
    Trainer,
)
from tinyvae.core import Batch
from tinyvae.distributions import Independent, Normal, TorchDistribution
from tinyvae.likelihoods import (
    BetaBinomialLikelihood,
    BetaLikelihood,
    DiscretizedLogisticLikelihood,
    HurdleLikelihood,
    LaplaceLikelihood,
    LogitNormalLikelihood,
    LogNormalLikelihood,
    MaskedLikelihood,
    MixtureLikelihood,
    MultinomialLikelihood,
    NegativeBinomialLikelihood,
    OneHotLikelihood,
    OrdinalLikelihood,
    PoissonLikelihood,
    StandardizedLikelihood,
    ZeroInflatedLikelihood,
)
from tinyvae.models import BottomUpVAE
from tinyvae.networks import ConcatContext
from tinyvae.priors import Prior


def binary():
    return torch.bernoulli(torch.full((20, 4), 0.5))


def unit():
    return torch.rand(20, 4)


def real():
    return torch.randn(20, 4)


def counts():
    return torch.poisson(torch.full((20, 4), 3.0)).clamp(max=8)


class Decoder(nn.Module):
    """A linear layer and a function of its output."""

    def __init__(self, end, shape=(4,), n_in=2):
        super().__init__()
        self.end, self.shape = end, shape
        self.linear = nn.Linear(n_in, torch.Size(shape).numel())

    def forward(self, z):
        return self.end(self.linear(z).unflatten(1, self.shape))


def model(likelihood, end, shape=(4,)):
    encoder = GaussianEncoder(MLP(likelihood.input_shape((4,)), (8,)), 2)
    return VAE(encoder, Decoder(end, likelihood.param_shape(shape)), likelihood)


def second(function):
    """Apply a function to the second parameter only."""
    return lambda params: torch.stack([params[:, 0], function(params[:, 1])], 1)


# Likelihood, data, end of the decoder, and the range that the warning names.
CONFINED = {
    "sigmoid": (BernoulliLikelihood, binary, torch.sigmoid, r"in \[0, 1\]"),
    "softmax": (BernoulliLikelihood, binary, nn.Softmax(1), r"in \[0, 1\]"),
    "tanh": (BernoulliLikelihood, binary, nn.Tanh(), r"in \[-1, 1\]"),
    "hardtanh": (BernoulliLikelihood, binary, nn.Hardtanh(), r"in \[-1, 1\]"),
    "relu": (BernoulliLikelihood, binary, nn.ReLU(), ">= 0"),
    "clamp": (BernoulliLikelihood, binary, lambda p: p.clamp(0, 1), r"in \[0, 1\]"),
    "log softmax": (BernoulliLikelihood, binary, nn.LogSoftmax(1), "<= 0"),
    "gelu": (BernoulliLikelihood, binary, nn.GELU(), ">= -1"),
    "hits": (lambda: BetaBinomialLikelihood(9), counts, torch.sigmoid, r"in \[0, 1\]"),
    "shares of counts": (
        lambda: MultinomialLikelihood(9),
        counts,
        nn.Softmax(1),
        r"in \[0, 1\]",
    ),
    "ordered levels": (lambda: OrdinalLikelihood(9), counts, torch.sigmoid, r"in \[0, 1\]"),
    "logits of shares": (LogitNormalLikelihood, unit, F.softplus, ">= 0"),
    "rates": (PoissonLikelihood, counts, F.softplus, ">= 0"),
    "probabilities": (lambda: CategoricalLikelihood(9), counts, nn.Softmax(1), r"in \[0, 1\]"),
    "one-hot": (
        OneHotLikelihood,
        lambda: torch.eye(4).repeat(5, 1),
        nn.Softmax(1),
        r"in \[0, 1\]",
    ),
    "proportions": (BetaLikelihood, unit, torch.sigmoid, r"in \[0, 1\]"),
    "masked": (lambda: MaskedLikelihood(BernoulliLikelihood()), binary, F.relu, ">= 0"),
    "mean of reals": (GaussianLikelihood, real, torch.sigmoid, r"in \[0, 1\].* a location"),
    "masked mean": (
        lambda: MaskedLikelihood(GaussianLikelihood()),
        real,
        torch.sigmoid,
        r"in \[0, 1\].* a location",
    ),
    "mean of standardized": (
        lambda: StandardizedLikelihood(GaussianLikelihood(), mean=0.5),
        unit,
        F.relu,
        ">= 0",
    ),
    "mean of logarithms": (LogNormalLikelihood, unit, F.softplus, ">= 0"),
    "mean and scale": (
        lambda: GaussianLikelihood("predicted"),
        unit,
        torch.sigmoid,
        r"\(parameter 2 of 2\) stays in \[0, 1\]",
    ),
    "scale": (
        lambda: LaplaceLikelihood("predicted"),
        real,
        second(F.softplus),
        r"\(parameter 2 of 2\) stays >= 0",
    ),
    "extra zeros": (
        lambda: ZeroInflatedLikelihood(NegativeBinomialLikelihood()),
        counts,
        second(F.softplus),
        r"\(parameter 2 of 2\) stays >= 0",
    ),
    "masses": (
        lambda: HurdleLikelihood(GaussianLikelihood()),
        real,
        torch.sigmoid,
        r"\(parameter 1 of 2\) stays in \[0, 1\]",
    ),
    "mean next to masses": (
        lambda: HurdleLikelihood(GaussianLikelihood()),
        real,
        second(F.softplus),
        r"\(parameter 2 of 2\) stays >= 0",
    ),
    "components": (
        lambda: MixtureLikelihood(GaussianLikelihood(), num_components=2),
        real,
        torch.sigmoid,
        r"\(parameter 1 of 4\) stays in \[0, 1\].* logits",
    ),
}


@for_each("name", CONFINED)
def test_fit_warns_of_a_decoder_that_ends_in_an_activation(name):
    make, data, end, confined = CONFINED[name]
    vae = model(make(), end)
    with pytest.warns(UserWarning, match=f"the decoder's output.*{confined}.*remove the last") as w:
        ELBO().check(vae, Batch(data()))
    assert len(w) == 1


FREE = {
    "linear": (BernoulliLikelihood, binary, lambda p: p),
    "leaky": (BernoulliLikelihood, binary, nn.LeakyReLU(0.1)),
    "wide": (BernoulliLikelihood, binary, lambda p: 10 * torch.tanh(p)),
    "mean of proportions": (GaussianLikelihood, unit, torch.sigmoid),
    "mean of positive numbers": (LaplaceLikelihood, unit, F.softplus),
    "masked mean": (lambda: MaskedLikelihood(GaussianLikelihood()), unit, torch.sigmoid),
    "standardized mean": (
        lambda: StandardizedLikelihood(GaussianLikelihood(), std=2.0),
        lambda: 2 * unit(),
        torch.sigmoid,
    ),
    "mean of levels": (
        lambda: DiscretizedLogisticLikelihood(20, scale="learned"),
        counts,
        torch.tanh,
    ),
    "logarithms of probabilities": (lambda: CategoricalLikelihood(9), counts, nn.LogSoftmax(1)),
    "log weights": (
        lambda: MixtureLikelihood(GaussianLikelihood(), num_components=2),
        real,
        lambda p: torch.cat([p[:, :2].log_softmax(1), p[:, 2:]], 1),
    ),
    "constant scale": (lambda: GaussianLikelihood("predicted"), real, second(torch.zeros_like)),
    "bounded scale": (
        lambda: GaussianLikelihood("predicted"),
        real,
        second(lambda p: p.clamp(-5, 2)),
    ),
}


@for_each("name", FREE)
def test_fit_is_silent_about_a_decoder_that_reaches_all_values(name):
    make, data, end = FREE[name]
    vae = model(make(), end)
    vae.decoder.linear.weight.data.mul_(1e-3)
    vae.decoder.linear.bias.data.fill_(0.5)  # the outputs of now are all in [0, 1]
    ELBO().check(vae, Batch(data()))  # warnings are errors


def test_fit_warns_before_the_first_step_and_changes_nothing():
    vae = model(BernoulliLikelihood(), nn.Sigmoid())
    x, before = binary(), [p.clone() for p in vae.parameters()]
    random = torch.get_rng_state()
    with pytest.warns(UserWarning, match="the decoder's output"):
        ELBO().check(vae, Batch(x))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(p, q) for p, q in zip(vae.parameters(), before, strict=True))


def test_fit_warns_of_a_conditional_decoder_with_a_batch_norm():
    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))

        def forward(self, z, context):
            return self.layers(torch.cat([z, context], 1)).sigmoid()

    encoder = GaussianEncoder(ConcatContext(MLP(7, (8,)), context_dim=3), 2)
    vae = VAE(encoder, Conditional(), BernoulliLikelihood())
    with pytest.warns(UserWarning, match=r"the decoder's output stays in \[0, 1\]"):
        ELBO().check(vae, Batch(binary(), torch.randn(20, 3)))
    assert vae.decoder.layers[1].num_batches_tracked == 0


def test_fit_looks_again_at_a_decoder_whose_layers_have_changed():
    encoder = GaussianEncoder(MLP(4, (8,)), 2)
    decoder = nn.Sequential(nn.Linear(2, 4), nn.Sigmoid())
    vae = VAE(encoder, decoder, BernoulliLikelihood())
    with pytest.warns(UserWarning, match="the decoder's output"):
        ELBO().check(vae, Batch(binary()))
    decoder.pop(1)
    ELBO().check(vae, Batch(binary()))


class OwnEncoder(Encoder):
    def __init__(self, end):
        super().__init__()
        self.latent_shape, self.end = torch.Size((2,)), end
        self.linear = nn.Linear(4, 4)

    def forward(self, x, context=None):
        return Independent(Normal(*self.end(self.linear(x)).chunk(2, 1)), 1)


@for_each("end", [nn.ReLU(), nn.Softplus(), nn.Sigmoid()])
@for_each("is_deep", [False, True])
def test_fit_warns_of_an_encoder_that_ends_in_an_activation(end, is_deep):
    own, decoder = OwnEncoder(end), MLP(2, (8,), out_shape=4)
    vae = VAE(own, decoder, BernoulliLikelihood())
    if is_deep:
        layers = [own, GaussianEncoder(MLP(2), 3)], [GaussianEncoder(MLP(3), 2)]
        vae = BottomUpVAE(*layers, decoder, BernoulliLikelihood())
    with pytest.warns(UserWarning, match="mean of the encoder's posterior stays .* prior do not"):
        Trainer(vae, ELBO()).fit(binary(), epochs=1)


class PositivePrior(Prior):
    def __init__(self):
        super().__init__()
        self.latent_shape = torch.Size((2,))

    def forward(self, context=None, *, encoder=None):
        gamma = torch.distributions.Gamma(torch.ones(2), torch.ones(2), validate_args=False)
        return Independent(TorchDistribution(gamma), 1)


class PositiveEncoder(OwnEncoder):
    def forward(self, x, context=None):
        shape, rate = F.softplus(self.linear(x)).chunk(2, 1)
        return Independent(
            TorchDistribution(torch.distributions.Gamma(shape, rate, validate_args=False)), 1
        )


# Encoder and prior.
FREE_ENCODERS = {
    "linear": lambda: (OwnEncoder(nn.Identity()), None),
    "tanh": lambda: (OwnEncoder(nn.Tanh()), None),
    "features": lambda: (
        GaussianEncoder(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), 2, features=8),
        None,
    ),
    "positive prior": lambda: (PositiveEncoder(nn.Identity()), PositivePrior()),
}


@for_each("name", FREE_ENCODERS)
def test_fit_is_silent_about_an_encoder_that_reaches_the_draws_of_the_prior(name):
    encoder, prior = FREE_ENCODERS[name]()
    vae = VAE(encoder, MLP(2, (8,), out_shape=4), BernoulliLikelihood(), prior)
    ELBO().check(vae, Batch(binary()))
