"""Looking at a model computes in evaluation mode and changes nothing."""

import copy
from functools import partial

import pytest
import torch
from helpers.cases import for_each
from torch import nn

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    Batch,
    BernoulliLikelihood,
    GaussianEncoder,
    VampPrior,
)
from tinyvae.encoders import VectorQuantizedEncoder
from tinyvae.evaluation import active_units, evaluate, impute, log_marginal
from tinyvae.flows import Flow
from tinyvae.likelihoods import MaskedLikelihood, OptimalGaussianLikelihood
from tinyvae.models import BottomUpVAE, LadderVAE, TwoLevelVAE, summary
from tinyvae.networks import ConcatContext
from tinyvae.objectives import AdversarialPriorRegularizer
from tinyvae.priors import CodePrior, FittedPrior, FlowPrior

DATA, LATENT = 4, 3


def network(n_in, n_out):
    """A network whose output depends on the mode, and whose buffers move in training mode."""
    return nn.Sequential(nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.Dropout(0.5))


def gaussian(n_in, n_out):
    return GaussianEncoder(network(n_in, 6), n_out, features=6)


def vae(likelihood=None, encoder=None, prior=None):
    encoder = gaussian(DATA, LATENT) if encoder is None else encoder
    likelihood = BernoulliLikelihood() if likelihood is None else likelihood
    return VAE(encoder, network(LATENT, DATA), likelihood, prior)


def vector_quantized():
    encoder = VectorQuantizedEncoder(network(DATA, 6), num_codes=4, latent_dim=LATENT, features=6)
    return vae(encoder=encoder, prior=CodePrior(4, latent_dim=LATENT))


def two_level():
    bottom = GaussianEncoder(ConcatContext(MLP(DATA + LATENT), context_dim=LATENT), 2)
    parts = {"bottom": bottom, "generator": gaussian(LATENT, 2)}
    decoder = network(2 + LATENT, DATA)
    return TwoLevelVAE(
        gaussian(DATA, LATENT), decoder=decoder, likelihood=BernoulliLikelihood(), **parts
    )


def layered(cls):
    upper = gaussian(6 if cls is LadderVAE else LATENT, 2)
    parts = {"encoders": [gaussian(DATA, LATENT), upper], "generators": [gaussian(2, LATENT)]}
    return cls(**parts, decoder=network(LATENT, DATA), likelihood=BernoulliLikelihood())


MODELS = {
    "batch norm": vae,
    "optimal scale": lambda: vae(OptimalGaussianLikelihood()),
    "pseudo-inputs": lambda: vae(prior=VampPrior(LATENT, input_shape=DATA, num_components=5)),
    "codebook": vector_quantized,
    "flow prior": lambda: vae(prior=FlowPrior(Flow(LATENT))),
    "masked": lambda: vae(MaskedLikelihood(BernoulliLikelihood())),
    "bottom up": partial(layered, BottomUpVAE),
    "ladder": partial(layered, LadderVAE),
    "two levels": two_level,
}
X = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]).repeat(2, 1)

# name: function of a model; each result is a tensor or a tuple of tensors
LOOKS = {
    "encode": lambda m: m.encode(X).sample() if isinstance(m, VAE) else X,
    "decode": lambda m: m.decode(torch.zeros(2, *m.latent_shape)).mean,
    "reconstruct": lambda m: m.reconstruct(X),
    "sample": lambda m: m.sample(1),
    "check": lambda m: m.check(X).log_px,
    "terms": lambda m: ELBO(num_samples=2).terms(m, Batch(X))["elbo"],
    "objective.check": lambda m: ELBO().check(m, Batch(X)) and X,
    "adversary.check": lambda m: adversary().check(m, Batch(X)) and X,
    "log_marginal": lambda m: log_marginal(m, X, num_samples=3),
    "evaluate": lambda m: torch.tensor(evaluate(m, X, importance_samples=3).elbo.mean),
    "active_units": lambda m: next(iter(active_units(m, X).values())).variance,
    "impute": lambda m: impute(m, X, num_samples=3),
    "summary": lambda m: summary(m, (DATA,)) and X,
}


def adversary():
    return ELBO() + AdversarialPriorRegularizer(network(LATENT, 1))


def state(model):
    return [t.clone() for t in model.state_dict().values()], [m.training for m in model.modules()]


@pytest.mark.parametrize("name", MODELS)
def test_looking_at_a_model_computes_in_evaluation_mode_and_changes_nothing(name):
    for look in LOOKS.values():
        if look is LOOKS["adversary.check"] and name not in ("batch norm", "masked"):
            continue
        torch.manual_seed(0)
        model = MODELS[name]().train()
        model.prior.eval()  # every submodule gets its own mode back
        tensors, modes = state(model)
        results = []
        for twin in (model, copy.deepcopy(model).eval()):
            torch.manual_seed(1)
            results.append(look(twin))
        torch.testing.assert_close(*results, rtol=0, atol=0)
        after, modes_after = state(model)
        assert modes_after == modes
        assert all(torch.equal(a, b) for a, b in zip(after, tensors, strict=True))


@for_each("name", ["batch norm", "optimal scale", "codebook"])
def test_buffers_move_in_a_pass_of_training_alone(name):
    model = MODELS[name]()
    before = {n: b.clone() for n, b in model.named_buffers()}
    ELBO()(model, Batch(X)).losses["model"].backward()
    moved = {n for n, b in model.named_buffers() if not torch.equal(b, before[n])}
    assert moved
    with torch.no_grad():
        values = {n: b.clone() for n, b in model.named_buffers() if "num_batches" not in n}
        ELBO()(model.eval(), Batch(X))
    assert all(torch.equal(model.get_buffer(n), value) for n, value in values.items())


def test_optimal_scale_moves_with_gradients_alone():
    model = VAE(GaussianEncoder(MLP(DATA), 2), MLP(2, (), DATA), OptimalGaussianLikelihood())
    with torch.no_grad():
        model.train()(X)
    assert model.likelihood.num_batches == 0
    model(X)
    assert model.likelihood.num_batches == 1


def test_fitted_prior_is_in_evaluation_mode():
    prior = FittedPrior.fit(torch.randn(50, 2), FlowPrior(Flow(2)), steps=2)
    assert not any(m.training for m in prior.modules())


def test_decode_has_gradients():
    z = torch.zeros(2, LATENT, requires_grad=True)
    vae().decode(z).mean.sum().backward()
    assert z.grad.any()


def test_likelihood_given_follows_the_mode_and_decode_does_not():
    model, z = vae().train(), torch.randn(50, LATENT)
    training, evaluation = model.likelihood_given(z).mean, model.decode(z).mean
    assert not torch.equal(training, evaluation)
    assert torch.equal(model.eval().decode(z).mean, model.likelihood_given(z).mean)


def test_posteriors_of_a_pass_follow_the_mode_and_encode_does_not():
    model = vae().train()
    assert not torch.equal(model(X).latents[0].posterior.mean, model.encode(X).mean)
    assert torch.equal(model.eval()(X).latents[0].posterior.mean, model.encode(X).mean)
