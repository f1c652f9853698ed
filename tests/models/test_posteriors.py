"""Posteriors against exact models, and posteriors without gradients in the weights."""

import copy
import math

import pytest
import torch
from helpers.cases import for_each
from helpers.models import (
    DIVERSE,
    REAL_ENCODERS,
    ContextPrior,
    all_images,
    binary,
    combined,
    features,
    perturbed_flow,
)
from helpers.oracles import random_linear_gaussian
from torch import nn
from torch.distributions import MultivariateNormal

from tinyvae import MLP, VAE, BernoulliLikelihood, GaussianEncoder, GaussianLikelihood, log_marginal
from tinyvae.encoders import CategoricalEncoder, FlowEncoder, FullGaussianEncoder
from tinyvae.flows import Flow
from tinyvae.priors import CategoricalPrior, FlowPrior

pytestmark = pytest.mark.usefixtures("float64")


def full_linear_gaussian(num_data=5, num_latents=3, flow=False):
    """z ~ N(0, I), x given z ~ N(W z + b, s^2 I), with a correlated posterior."""
    weight, bias, std = torch.randn(num_data, num_latents), torch.randn(num_data), 0.6
    cov = torch.linalg.inv(torch.eye(num_latents) + weight.T @ weight / std**2)
    gain, factor = cov @ weight.T / std**2, torch.linalg.cholesky(cov)
    encoder = FullGaussianEncoder(nn.Identity(), num_latents, features=num_data)
    decoder = MLP(num_latents, hidden=(), out_shape=num_data)
    rows, columns = torch.tril_indices(num_latents, num_latents, -1)
    with torch.no_grad():
        encoder.head.weight.zero_()
        encoder.head.weight[:num_latents] = gain
        spread = (factor.diagonal().log(), factor[rows, columns])
        encoder.head.bias.copy_(torch.cat([-gain @ bias, *spread]))
        decoder.layers[0].weight.copy_(weight)
        decoder.layers[0].bias.copy_(bias)
    if flow:
        encoder = FlowEncoder(encoder, Flow(num_latents, transforms=2, hidden=(4,)))
    evidence = MultivariateNormal(bias, weight @ weight.T + std**2 * torch.eye(num_data))
    return VAE(encoder, decoder, GaussianLikelihood(std)), evidence, cov


@for_each("flow", [False, True])
def test_exact_full_posterior_attains_the_evidence(flow):
    vae, evidence, cov = full_linear_gaussian(flow=flow)
    assert (cov - cov.diagonal().diag()).abs().max() > 0.02
    x = evidence.sample((6,))
    exact = evidence.log_prob(x)
    with torch.no_grad():
        output = vae(x, num_samples=20_000)
    log_weight = output.log_weight()
    torch.testing.assert_close(log_weight, exact.expand_as(log_weight), rtol=0, atol=1e-10)
    torch.testing.assert_close(log_marginal(vae, x, num_samples=3), exact, rtol=0, atol=1e-10)
    if not flow:
        elbo = output.log_px - output.latents[0].kl("analytic")
        error = elbo.std(0) / math.sqrt(20_000)
        assert error.max() < 0.02
        assert ((elbo.mean(0) - exact).abs() < 4 * error).all()


def test_identity_flow_changes_nothing():
    gaussian = GaussianEncoder(features(), 2)
    decoder, x = MLP(2, (6,), 4), binary(5, 4)
    plain_vae = VAE(gaussian, decoder, BernoulliLikelihood())
    flows = [Flow(2, context_dim=5), Flow(2, kind="affine"), Flow(2, coupling=True)]
    for flow in flows:
        flowing = VAE(FlowEncoder(gaussian, flow), decoder, BernoulliLikelihood())
        records = []
        for vae in (plain_vae, flowing):
            torch.manual_seed(1)
            records.append(vae(x, num_samples=3))
        (a,), (b,) = (record.latents for record in records)
        close = {"rtol": 1e-12, "atol": 1e-12}
        torch.testing.assert_close(b.z, a.z, **close)
        torch.testing.assert_close(b.kl("sample"), a.kl("sample"), **close)
        torch.testing.assert_close(b.kl(), a.kl("sample"), **close)
        torch.testing.assert_close(records[1].log_weight(), records[0].log_weight(), **close)
        torch.testing.assert_close(flowing.reconstruct(x), plain_vae.reconstruct(x), **close)
        # Latents from another source are scored by the inverse.
        z = torch.randn(3, 5, 2)
        log_prob = flowing.encode(x).log_prob(z)
        torch.testing.assert_close(log_prob, plain_vae.encode(x).log_prob(z), **close)


@for_each("kind", ["spline", "affine"])
def test_flow_density_agrees_with_its_inverse(kind):
    encoder, x = REAL_ENCODERS[kind](), binary(5, 4)
    posterior, prior = encoder(x), FlowPrior(perturbed_flow(2, kind=kind))()
    for distribution in (posterior, prior):
        z = distribution.sample((3,))
        log_prob = distribution.log_prob(z.clone())
        torch.testing.assert_close(distribution.log_prob(z), log_prob, rtol=1e-6, atol=1e-6)
    side = torch.linspace(-8, 8, 161)
    with torch.no_grad():
        density = prior.log_prob(torch.cartesian_prod(side, side)).exp()
    assert density.sum().item() * 0.1**2 == pytest.approx(1, abs=0.01)


def test_discrete_latents_agree_with_enumeration():
    encoder = CategoricalEncoder(MLP(3, (5,), activation=nn.Tanh), num_classes=4)
    prior = CategoricalPrior(4, learned=True)
    vae = VAE(encoder, MLP((4, 1), (6,), 3, activation=nn.Tanh), BernoulliLikelihood(), prior)
    x = all_images(3)
    with torch.no_grad():
        prior.logits.normal_()
        for parameter in (*vae.decoder.parameters(), *encoder.parameters()):
            parameter.mul_(2)
        classes = torch.eye(4)[:, None, :, None]  # (4, 1, 4, 1)
        log_px = vae.decode(classes).log_prob(x)  # (4, 8)
        log_p = prior.logits.log_softmax(0)  # (4, 1)
        exact = (log_px + log_p).logsumexp(0)
        log_q = encoder(x).logits.log_softmax(1).squeeze(2).T  # (4, 8)
        elbo = (log_q.exp() * (log_px + log_p - log_q)).sum(0)
        output = vae(x, num_samples=20_000)
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert exact.std() > 0.1
    assert (elbo < exact).all()
    (term,) = output.latents
    assert set(term.z.unique().tolist()) == {0.0, 1.0}
    estimate = output.log_px.mean(0) - term.kl("analytic")
    error = output.log_px.std(0) / math.sqrt(20_000)
    assert ((estimate - elbo).abs() < 4 * error).all()
    torch.testing.assert_close(term.kl("analytic"), (log_q.exp() * (log_q - log_p)).sum(0))
    weight = (output.log_weight() - exact).exp()
    error = weight.std(0) / math.sqrt(20_000)
    assert ((weight.mean(0) - 1).abs() < 4.5 * error).all()
    assert error.max() < 0.02
    estimate = log_marginal(vae, x, num_samples=20_000)
    assert ((estimate - exact).abs() < 5 * error).all()
    assert log_marginal(vae, x, num_samples=20_000).exp().sum().item() == pytest.approx(1, abs=0.01)
    draws = vae.sample(20_000) @ torch.tensor([4.0, 2.0, 1.0])
    shares = torch.bincount(draws.long(), minlength=8) / 20_000
    error = (exact.exp() * (1 - exact.exp()) / 20_000).sqrt()
    assert ((shares - exact.exp()).abs() < 4.5 * error).all()


def test_frozen_posterior_has_no_gradient_variance_at_the_optimum():
    exact = random_linear_gaussian()
    models = [(exact.vae, exact.evidence), full_linear_gaussian()[:2]]
    for vae, evidence in models:
        x, parameters = evidence.sample((6,)), list(vae.encoder.parameters())

        def gradient(frozen, vae=vae, x=x, parameters=parameters):
            log_weight = vae(x, frozen_posterior=frozen).log_weight().mean()
            grads = torch.autograd.grad(log_weight, parameters)
            return torch.cat([g.flatten() for g in grads])

        assert max(gradient(True).abs().max() for _ in range(10)) <= 1e-12
        assert torch.stack([gradient(False) for _ in range(30)]).std(0).max() > 0.1
        assert all(p.requires_grad for p in vae.parameters())


@for_each("name", DIVERSE)
def test_frozen_posterior_equals_a_frozen_copy(name):
    vae, x = combined(name).eval(), all_images(4)[:6]
    parameters = [p for p in vae.parameters() if p.requires_grad]

    def gradients(log_weight):
        grads = torch.autograd.grad(log_weight.mean(), parameters, allow_unused=True)
        pairs = zip(parameters, grads, strict=True)
        return [torch.zeros_like(p) if g is None else g for p, g in pairs]

    torch.manual_seed(1)
    plain_record = vae(x, num_samples=3)
    torch.manual_seed(1)
    record = vae(x, num_samples=3, frozen_posterior=True)
    torch.testing.assert_close(record.log_weight(), plain_record.log_weight())
    frozen_gradients = gradients(record.log_weight())
    twin = copy.deepcopy(vae.encoder).requires_grad_(False)
    torch.manual_seed(1)
    posterior = vae.encode(x)
    z = posterior.sample((3,))
    prior = vae.prior(encoder=vae.encoder)
    log_px = vae.decode(z).log_prob(x)
    expected = gradients(log_px + prior.log_prob(z) - twin(x).log_prob(z))
    for a, b in zip(frozen_gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    encoder_ids = {id(p) for p in vae.encoder.parameters()}
    before = gradients(plain_record.log_weight())
    for p, a, b in zip(parameters, frozen_gradients, before, strict=True):
        if id(p) not in encoder_ids:  # The generative model has the same gradients.
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_frozen_posterior_restores_requires_grad():
    vae = combined("gaussian, normal")
    vae.encoder.network.requires_grad_(False)
    before = {name: p.requires_grad for name, p in vae.named_parameters()}
    vae(binary(3, 4), frozen_posterior=True)
    assert {name: p.requires_grad for name, p in vae.named_parameters()} == before
    vae.prior = ContextPrior(2, 2)
    with pytest.raises(ValueError, match="does it need a context"):
        vae(binary(3, 4), frozen_posterior=True)
    after = {name: p.requires_grad for name, p in vae.named_parameters()}
    assert after.items() >= before.items()
