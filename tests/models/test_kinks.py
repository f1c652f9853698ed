"""Gradients of models on integers and at their initialization, where kinks are met exactly."""

import pytest
import torch
from helpers.cases import for_each
from helpers.clamps import clamp_with_slope
from helpers.likelihoods import LIKELIHOODS, Sample
from helpers.models import DIVERSE, all_images, combined
from torch import nn

from tinyvae import ELBO, MLP, VAE, Batch, BernoulliLikelihood, GaussianEncoder
from tinyvae.encoders import FlowEncoder
from tinyvae.flows import PlanarFlow, RadialFlow
from tinyvae.priors import FlowPrior

pytestmark = pytest.mark.usefixtures("float64")


def assert_same_gradients(compute):
    """Compare gradients between slopes of ``clamp``; ``compute`` returns a loss and its leaves."""
    first, second = [], []
    for slope, results in ((0.0, first), (1.0, second)):
        torch.manual_seed(1)
        with clamp_with_slope(slope):
            loss, leaves = compute()
            results += torch.autograd.grad(loss, leaves, allow_unused=True)
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)


@for_each("name", LIKELIHOODS)
def test_gradients_of_likelihoods_on_integers(name):
    """In float32, where ``exp(log(10))`` is exactly 10."""
    family = LIKELIHOODS[name]
    sample = Sample(family, family.events[0])
    likelihood, context = sample.likelihood.float(), sample.context(30)
    x, shape = sample.observed(30).float(), (30, *sample.param_shape)
    integers = torch.randint(-3, 4, shape).float()
    logarithms = torch.randint(1, 21, shape).float().log()
    for params in (integers, logarithms):
        leaves = [params.requires_grad_(), *likelihood.parameters()]

        def compute(leaves=leaves):
            distribution = likelihood(leaves[0], len(sample.event), context)
            return distribution.log_prob(x).sum(), leaves

        assert_same_gradients(compute)


def planar_or_radial(kind):
    encoder = FlowEncoder(GaussianEncoder(MLP(4, hidden=(5,)), 2), kind(2, context_dim=5))
    decoder = MLP(2, hidden=(6,), out_shape=4, activation=nn.Tanh)
    return VAE(encoder, decoder, BernoulliLikelihood(), FlowPrior(kind(2))).double()


MODELS = {name: lambda name=name: combined(name) for name in DIVERSE}
MODELS |= {k.__name__: lambda kind=k: planar_or_radial(kind) for k in (PlanarFlow, RadialFlow)}


@for_each(("name", "is_training"), [(name, mode) for name in MODELS for mode in (True, False)])
def test_gradients_of_models_at_initialization(name, is_training):
    def compute():
        vae = MODELS[name]().train(is_training)
        losses = ELBO()(vae, Batch(all_images(4))).losses
        return sum(losses.values()), [p for p in vae.parameters() if p.requires_grad]

    assert_same_gradients(compute)
