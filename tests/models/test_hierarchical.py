import copy
import itertools
import math
import re
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from helpers.cases import for_each
from helpers.oracles import gauss_hermite
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    Batch,
    BernoulliLikelihood,
    BottomUpVAE,
    ConvNet,
    GaussianEncoder,
    GaussianLikelihood,
    LadderVAE,
    StandardNormal,
    Trainer,
    TransposedConvNet,
    VampPrior,
    evaluate,
    impute,
    log_marginal,
)
from tinyvae.distributions import ReshapedBatch, kl_divergence
from tinyvae.encoders import DeterministicEncoder, FullGaussianEncoder, LaplaceEncoder
from tinyvae.errors import CheckpointError, NoClosedFormError
from tinyvae.likelihoods import MaskedLikelihood
from tinyvae.models import summary
from tinyvae.networks import ConcatContext
from tinyvae.priors import ConditionalPrior, GaussianPrior

pytestmark = pytest.mark.usefixtures("float64")

MODELS = [BottomUpVAE, LadderVAE]
DATA, CONTEXT = 4, 2


def network(inputs, out=None, context=0):
    """Return a network of ``inputs`` values and, if there is one, of a context."""
    mlp = MLP(inputs + context, (7,), out, activation=nn.Tanh)
    return ConcatContext(mlp, context_dim=context) if context else mlp


def make(cls, layers, *, likelihood=None, prior=None, context=0, dims=(3, 2, 1)):
    dims = dims[:layers]
    below = (DATA, *dims) if cls is BottomUpVAE else (DATA, *[7] * layers)
    encoders = []
    for layer, dim in enumerate(dims):
        # The upward pass of a ladder reads the context at the bottom only.
        context_dim = context if cls is BottomUpVAE or layer == 0 else 0
        encoders.append(GaussianEncoder(network(below[layer], context=context_dim), dim))
    generators = [
        GaussianEncoder(network(above, context=context), dim)
        for dim, above in itertools.pairwise(dims)
    ]
    decoder = network(dims[0], DATA, context)
    vae = cls(encoders, generators, decoder, likelihood or BernoulliLikelihood(), prior)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(1.5)  # far enough from independence
    return vae


def tame(vae):
    """Make posteriors as wide as the priors, so that importance weights have small variances."""
    with torch.no_grad():
        for n, encoder in enumerate([*vae.encoders, *vae.generators]):
            dim = encoder.latent_shape[0]
            wide = 1.0 if isinstance(vae, LadderVAE) and n < len(vae.generators) else 0.1
            wide = wide if n < len(vae.encoders) else -0.1
            encoder.head.weight.mul_(0.4)
            encoder.head.weight[dim:] *= 0.3
            encoder.head.bias.copy_(torch.tensor([0.2, wide]).repeat_interleave(dim))
    return vae


def binary(*shape):
    return (torch.rand(shape) > 0.5).to(torch.get_default_dtype())


def data(n=5, context=0):
    return binary(n, DATA), torch.randn(n, context) if context else None


@pytest.fixture(params=MODELS)
def cls(request):
    return request.param


# Shapes and the weight ----------------------------------------------------------------------------


@for_each("layers", [1, 2, 3])
@for_each(("num_samples", "batch"), [(1, 5), (3, 5), (3, 1)])
@for_each("dtype", [torch.float32, torch.float64])
def test_hierarchical_shapes_and_dtypes(cls, layers, num_samples, batch, dtype):
    vae, x = make(cls, layers).to(dtype), binary(batch, DATA).to(dtype)
    output = vae(x, num_samples=num_samples)
    dims = (3, 2, 1)[:layers]
    assert [term.name for term in output.latents] == [f"z{n + 1}" for n in range(layers)]
    assert vae.latent_shape == (3,)
    for term, dim in zip(output.latents, dims, strict=True):
        assert term.z.shape == (num_samples, batch, dim)
        assert term.log_q.shape == term.log_p.shape == (num_samples, batch)
        assert term.kl().shape == term.kl("sample").shape == (batch,)
        assert {t.dtype for t in (term.z, term.log_q, term.log_p, term.kl())} == {dtype}
    assert output.log_px.shape == output.log_weight().shape == (num_samples, batch)
    assert output.log_weight().dtype == dtype
    assert output.likelihood.batch_shape == (num_samples, batch)
    assert vae.reconstruct(x).shape == (batch, DATA)
    for mean in (False, True):
        draws = vae.sample(7, mean=mean)
        assert draws.shape == (7, DATA)
        assert draws.dtype == dtype
        assert not draws.requires_grad
    assert vae.check(x).log_weight().shape == (1, min(batch, 2))


def head(encoder, value, context=None):
    """Return mean and standard deviation of a Gaussian encoder for one row, in NumPy."""
    arguments = () if context is None else (context[None],)
    params = encoder.head(encoder.network(value[None], *arguments))[0].detach().numpy()
    mean, log_std = np.split(params, 2)
    return mean, np.exp(log_std)


def normal(value, mean, std):
    return scipy.stats.norm.logpdf(value.detach().numpy(), mean, std).sum()


def by_hand(vae, x, z, context):
    """Return the joint log weight of one datum and one draw of every layer."""
    layers, up = len(z), context if isinstance(vae, BottomUpVAE) else None
    logits = vae.decoder(z[0][None], *(() if context is None else (context[None],)))[0]
    p = 1 / (1 + np.exp(-logits.detach().numpy()))
    log_weight = np.log(np.where(x.numpy() == 1, p, 1 - p)).sum()
    log_weight += scipy.stats.norm.logpdf(z[-1].detach().numpy()).sum()
    generated = [
        head(vae.generators[n], z[n + 1], context) for n in range(layers - 1)
    ]  # mean and std of p(z_n given z_n+1)
    for n, (mean, std) in enumerate(generated):
        log_weight += normal(z[n], mean, std)
    features = x
    for n, encoder in enumerate(vae.encoders):
        condition = context if n == 0 else up
        mean, std = head(encoder, features, condition)
        if isinstance(vae, LadderVAE):
            features = encoder.network(
                features[None], *(() if condition is None else (condition[None],))
            )[0]
            if n < layers - 1:
                m, s = generated[n]
                precision = std**-2 + s**-2
                mean = (mean * std**-2 + m * s**-2) / precision
                std = precision**-0.5
        else:
            features = z[n]
        log_weight -= normal(z[n], mean, std)
    return log_weight


@for_each("layers", [1, 2, 3])
@for_each("context", [0, CONTEXT])
def test_log_weight_is_the_joint_log_weight(cls, layers, context):
    vae, (x, c) = make(cls, layers, context=context), data(3, context)
    output = vae(x, c, num_samples=2)
    log_weight = output.log_weight().detach().numpy()
    for k, b in itertools.product(range(2), range(3)):
        z = [term.z[k, b] for term in output.latents]
        expected = by_hand(vae, x[b], z, None if c is None else c[b])
        assert log_weight[k, b] == pytest.approx(expected, abs=1e-11)
    spread = log_weight.std()
    assert spread > 0.05  # A wrong row would change the result.


def test_one_layer_equals_the_plain_vae(cls):
    vae = make(cls, 1)
    plain = VAE(vae.encoders[0], vae.decoder, vae.likelihood)
    x, _ = data()
    weights = []
    for model in (vae, plain):
        torch.manual_seed(1)
        weights.append(model(x, num_samples=3).log_weight())
    torch.testing.assert_close(*weights, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(vae(x).latents[0].kl("analytic"), plain(x).latents[0].kl())


def test_draws_follow_the_posteriors(cls):
    """Standardized draws of every layer are standard normal, given those they depend on."""
    vae, (x, _) = make(cls, 3), data(2)
    output = vae(x, num_samples=4000)
    for term in output.latents:
        q = term.posterior.base if isinstance(term.posterior, ReshapedBatch) else term.posterior
        mean = term.posterior.mean
        noise = ((term.z - mean) / q.base.log_std.exp().reshape(mean.shape)).detach()
        assert scipy.stats.kstest(noise.flatten(), "norm").pvalue > 1e-4
        assert noise[:, 0].mean(0).abs().max() < 4.5 / math.sqrt(4000)


# Exact posteriors ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chain:
    """z_L ~ N(0, I), z_l given z_l+1 ~ N(A z + a, S), x given z_1 ~ N(W z_1 + b, std^2 I).

    The loadings are such that the likelihood of x, as a function of each layer, is a Gaussian with
    a diagonal covariance: what the ladder's messages can say.
    """

    weight: Tensor
    bias: Tensor
    std: float
    steps: list[tuple[Tensor, Tensor, Tensor]]  # A, a, diagonal of S
    messages: list[tuple[Tensor, Tensor, Tensor]]  # mean G x + o, variance

    @staticmethod
    def random(layers, dim=2, num_data=DATA):
        std = 0.7
        u = torch.linalg.qr(torch.randn(num_data, dim)).Q
        scale = torch.rand(dim) + 0.5
        weight, bias = u * scale, torch.randn(num_data)
        gain = u.T / scale[:, None]
        messages = [(gain, -gain @ bias, std**2 / scale**2)]
        steps = []
        for _ in range(layers - 1):
            gain, offset, variance = messages[-1]
            shift, noise = torch.randn(dim), torch.rand(dim) + 0.3
            root = (noise + variance).sqrt()
            turn, size = torch.linalg.qr(torch.randn(dim, dim)).Q, torch.rand(dim) + 0.6
            loading = root[:, None] * turn * size
            back = (turn / size).T / root  # its inverse
            steps.append((loading, shift, noise))
            messages.append((back @ gain, back @ (offset - shift), size**-2))
        return Chain(weight, bias, std, steps, messages)

    def marginals(self):
        """Return mean and covariance of every layer, from z_1."""
        dim = self.weight.shape[1]
        moments = [(torch.zeros(dim), torch.eye(dim))]
        for loading, shift, noise in reversed(self.steps):
            mean, cov = moments[-1]
            moments.append((loading @ mean + shift, loading @ cov @ loading.T + noise.diag()))
        return moments[::-1]

    @property
    def evidence(self):
        mean, cov = self.marginals()[0]
        cov = self.weight @ cov @ self.weight.T + self.std**2 * torch.eye(len(self.bias))
        return MultivariateNormal(self.weight @ mean + self.bias, cov)

    def build(self, cls, spoil=0.0):
        dim = self.weight.shape[1]
        generators = [
            linear(GaussianEncoder, a, shift, noise.diag()) for a, shift, noise in self.steps
        ]
        decoder = MLP(dim, (), DATA)
        with torch.no_grad():
            decoder.layers[0].weight.copy_(self.weight)
            decoder.layers[0].bias.copy_(self.bias)
        encoders = self.bottom_up() if cls is BottomUpVAE else self.ladder()
        with torch.no_grad():
            for encoder in encoders:
                encoder.head.bias += spoil
        return cls(encoders, generators, decoder, GaussianLikelihood(self.std))

    def bottom_up(self):
        marginals = self.marginals()
        noises = [self.std**2 * torch.eye(len(self.bias)), *(s.diag() for *_, s in self.steps)]
        maps = [(self.weight, self.bias), *((a, shift) for a, shift, _ in self.steps)]
        encoders = []
        for (mean, cov), (weight, bias), noise in zip(marginals, maps, noises, strict=True):
            prior = torch.linalg.inv(cov)
            upwards = weight.T @ torch.linalg.inv(noise)
            posterior = torch.linalg.inv(prior + upwards @ weight)
            gain = posterior @ upwards
            offset = posterior @ (prior @ mean) - gain @ bias
            encoders.append(linear(FullGaussianEncoder, gain, offset, posterior))
        return encoders

    def ladder(self):
        *lower, (gain, offset, variance) = self.messages
        share = 1 / (1 + variance)  # weight of the message against N(0, I)
        top = (share[:, None] * gain, share * offset, variance * share)
        return [linear(GaussianEncoder, g, o, v.diag()) for g, o, v in (*lower, top)]


def linear(cls, gain, offset, covariance):
    """An encoder that gives N(gain x + offset, covariance)."""
    dim, num_inputs = gain.shape
    encoder = cls(nn.Identity(), dim, features=num_inputs)
    factor = torch.linalg.cholesky(covariance)
    scale = factor.diagonal().log()
    if cls is FullGaussianEncoder:
        rows, columns = torch.tril_indices(dim, dim, -1)
        scale = torch.cat([scale, factor[rows, columns]])
    with torch.no_grad():
        encoder.head.weight.zero_()
        encoder.head.weight[:dim] = gain
        encoder.head.bias.copy_(torch.cat([offset, scale]))
    return encoder


@for_each("layers", [1, 2, 3])
def test_exact_posteriors_attain_the_evidence(cls, layers):
    chain = Chain.random(layers)
    vae, x = chain.build(cls), chain.evidence.sample((6,))
    exact = chain.evidence.log_prob(x)
    with torch.no_grad():
        log_weight = vae(x, num_samples=5).log_weight()
    torch.testing.assert_close(log_weight, exact.expand(5, 6), rtol=1e-12, atol=1e-12)
    for num_samples in (1, 10):
        estimate = log_marginal(vae, x, num_samples=num_samples)
        torch.testing.assert_close(estimate, exact, rtol=1e-12, atol=1e-12)
    elbo = ELBO(kl="sample")(vae, Batch(x)).metrics["elbo_nats"]
    assert elbo.item() == pytest.approx(exact.mean().item(), abs=1e-11)
    report = evaluate(vae, x, elbo_samples=4000, importance_samples=2)
    assert report.elbo.mean == pytest.approx(exact.mean().item(), abs=0.1)
    assert report.log_marginal.mean == pytest.approx(exact.mean().item(), abs=1e-11)


@for_each("layers", [1, 2, 3])
def test_bounds_are_ordered(cls, layers):
    chain = Chain.random(layers)
    vae, x = chain.build(cls, spoil=0.25), chain.evidence.sample((40,))
    exact = chain.evidence.log_prob(x)
    report = evaluate(vae, x, elbo_samples=500, importance_samples=5)
    assert report.elbo.mean < report.log_marginal.mean < exact.mean().item() + 0.02
    with torch.no_grad():
        log_weight = vae(x, num_samples=20_000).log_weight()
    weight = (log_weight - exact).exp()  # mean 1
    error = weight.std(0) / math.sqrt(20_000)
    assert ((weight.mean(0) - 1).abs() < 4.5 * error).all()


def encoder_gradient(vae, x, frozen):
    log_weight = vae(x, num_samples=1, frozen_posterior=frozen).log_weight().mean()
    grads = torch.autograd.grad(log_weight, list(vae.encoders.parameters()))
    return torch.cat([g.flatten() for g in grads])


@for_each("layers", [1, 2, 3])
def test_frozen_posterior_has_no_gradient_at_the_optimum(cls, layers):
    """At the exact posterior the gradient is zero for each draw, not only on average."""
    chain = Chain.random(layers)
    vae, x = chain.build(cls), chain.evidence.sample((6,))
    frozen = torch.stack([encoder_gradient(vae, x, frozen=True) for _ in range(10)])
    assert frozen.abs().max() <= 1e-12
    plain = torch.stack([encoder_gradient(vae, x, frozen=False) for _ in range(30)])
    assert plain.std(0).max() > 0.1
    # requires_grad is restored.
    assert all(p.requires_grad for p in vae.parameters())


@for_each("layers", [1, 2, 3])
def test_frozen_posterior_keeps_values_and_mean_gradients(cls, layers):
    vae, (x, _) = make(cls, layers), data(3)
    parts = {
        "encoders": list(vae.encoders.parameters()),
        "decoder": list(vae.decoder.parameters()),
        "generators": list(vae.generators.parameters()),
    }
    weights, grads = [], []
    for frozen in (False, True):
        torch.manual_seed(5)
        log_weight = vae(x, num_samples=40_000, frozen_posterior=frozen).log_weight()
        weights.append(log_weight.detach())
        everything = [p for group in parts.values() for p in group]
        everything = torch.autograd.grad(log_weight.mean(), everything)
        grads.append(torch.cat([g.flatten() for g in everything]))
    torch.testing.assert_close(*weights, rtol=1e-12, atol=1e-12)
    sizes = [sum(p.numel() for p in group) for group in parts.values()]
    for name, a, b in zip(parts, *(g.split(sizes) for g in grads), strict=True):
        # Parameters outside the posteriors have the same gradient. The ladder's posteriors contain
        # the generators.
        if name == "decoder" or (name == "generators" and cls is BottomUpVAE):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
        else:
            torch.testing.assert_close(a, b, rtol=0, atol=0.06)  # in expectation
            assert name == "generators" or not torch.equal(a, b)


# Non-exact posteriors -----------------------------------------------------------------------------


def log_evidence(vae, x, context, num_nodes=40):
    """Return log p(x) of a chain of one-dimensional latents by quadrature, per example."""
    nodes, log_weights = gauss_hermite(num_nodes)
    nodes = nodes.squeeze(1)
    log_evidence_of_rows = []
    for b in range(len(x)):
        z, log_w = nodes[:, None], log_weights  # (n, 1): the top is N(0, 1)
        for generator in reversed(list(vae.generators)):
            arguments = () if context is None else (context[b].expand(len(z), -1),)
            mean, log_std = generator.head(generator.network(z, *arguments)).chunk(2, 1)
            z = (mean + log_std.exp() * nodes).reshape(-1, 1)
            log_w = (log_w[:, None] + log_weights).reshape(-1)
        arguments = () if context is None else (context[b].expand(len(z), -1),)
        logits = vae.decoder(z, *arguments)
        log_px = -nn.functional.softplus(torch.where(x[b] == 1, -logits, logits)).sum(1)
        log_evidence_of_rows.append((log_px + log_w).logsumexp(0))
    return torch.stack(log_evidence_of_rows)


@for_each("context", [0, CONTEXT])
@for_each("layers", [1, 2, 3])
def test_importance_weights_are_unbiased(cls, layers, context):
    vae = tame(make(cls, layers, context=context, dims=(1, 1, 1)))
    with torch.no_grad():
        vae.decoder.get_parameter("network.layers.2.weight" if context else "layers.2.weight").mul_(
            2
        )
    x, c = data(5, context)
    with torch.no_grad():
        exact = log_evidence(vae, x, c)
        log_weight = vae(x, c, num_samples=40_000).log_weight()
    weight = (log_weight - exact).exp()  # mean 1
    error = weight.std(0) / math.sqrt(40_000)
    assert error.max() < 0.03
    assert ((weight.mean(0) - 1).abs() < 4.5 * error).all()
    report = evaluate(vae, x, c, elbo_samples=500, importance_samples=2000)
    assert report.elbo.mean < exact.mean().item()
    assert report.log_marginal.mean == pytest.approx(exact.mean().item(), abs=0.03)


def test_probabilities_of_all_images_sum_to_one(cls):
    vae = tame(make(cls, 2))
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=DATA)))
    assert log_marginal(vae, x, num_samples=5000).exp().sum().item() == pytest.approx(1, abs=0.02)


def test_samples_have_the_frequencies_of_the_model(cls):
    """Frequencies of all images are their probabilities."""
    vae = make(cls, 3, dims=(1, 1, 1))
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=DATA)))
    with torch.no_grad():
        exact = log_evidence(vae, x, None).exp()
    assert exact.sum().item() == pytest.approx(1, abs=1e-8)
    draws = vae.sample(20_000) @ torch.tensor([8.0, 4.0, 2.0, 1.0])
    counts = torch.bincount(draws.long(), minlength=16)
    assert scipy.stats.chisquare(counts.numpy(), 20_000 * exact.numpy()).pvalue > 1e-4


# KL -----------------------------------------------------------------------------------------------


def test_ladder_kl_equals_the_mean_of_draws():
    vae, (x, _) = make(LadderVAE, 3), data(3)
    with torch.no_grad():
        for term in vae(x, num_samples=2).latents:
            exact = kl_divergence(term.posterior, term.prior)  # (2, 3), or (3,) for the top layer
            draws = term.posterior.sample((20_000,))
            ratio = term.posterior.log_prob(draws) - term.prior.log_prob(draws)
            error = ratio.std(0) / math.sqrt(20_000)
            assert ((ratio.mean(0) - exact).abs() < 4.5 * error).all()
            expected = exact.mean(0) if exact.dim() == 2 else exact
            assert torch.equal(term.kl("analytic"), expected)
            assert torch.equal(term.kl(), expected)


def test_bottom_up_kl_has_a_closed_form_for_the_top_layer_only():
    vae, (x, _) = make(BottomUpVAE, 3), data()
    *lower, top = vae(x, num_samples=3).latents
    for term in lower:
        assert not term.has_analytic_kl
        with pytest.raises(NoClosedFormError, match=rf"'{term.name}' has no closed form: use kl="):
            term.kl("analytic")
        assert torch.equal(term.kl(), (term.log_q - term.log_p).mean(0))
    assert top.has_analytic_kl
    assert torch.equal(top.kl(), kl_divergence(top.posterior, top.prior).mean(0))
    with pytest.raises(NoClosedFormError, match="'z1'"):
        ELBO(kl="analytic").check(vae, Batch(x))
    assert "mixed KL: a lower bound" in ELBO().check(vae, Batch(x))
    assert "sampled KL: a lower bound" in ELBO(kl="sample").check(vae, Batch(x))
    ladder = make(LadderVAE, 3)
    assert "analytic KL: a lower bound" in ELBO(kl="analytic").check(ladder, Batch(x))


@for_each("kl", ["auto", "sample"])
def test_elbo_reports_each_kl(cls, kl):
    vae, (x, _) = make(cls, 3), data()
    metrics = ELBO(num_samples=3, kl=kl)(vae, Batch(x)).metrics
    kls = [metrics[f"kl_z{n}_nats"].item() for n in (1, 2, 3)]
    assert sum(kls) == pytest.approx(metrics["kl_nats"].item(), abs=1e-12)
    elbo = metrics["log_likelihood_nats"] - metrics["kl_nats"]
    assert metrics["elbo_nats"].item() == pytest.approx(elbo.item(), abs=1e-12)
    torch.manual_seed(1)
    sampled = ELBO(kl="sample")(vae, Batch(x)).metrics["elbo_nats"]
    torch.manual_seed(1)
    assert sampled.item() == pytest.approx(vae(x).log_weight().mean().item(), abs=1e-12)


def test_elbo_estimators_agree(cls):
    vae, (x, _) = tame(make(cls, 3)), data(2)
    with torch.no_grad():
        auto, sampled = (
            ELBO(num_samples=40_000, kl=kl)(vae, Batch(x)).metrics["elbo_nats"]
            for kl in ("auto", "sample")
        )
    assert auto.item() == pytest.approx(sampled.item(), abs=0.05)


def test_trainer_reports_each_kl_and_learns(cls):
    vae = make(cls, 2)
    x = binary(1, DATA).repeat(64, 1)
    trainer = Trainer(vae, ELBO(), progress=False)
    history = trainer.fit(x, x[:16], epochs=40, batch_size=16)
    for role in ("train", "validation"):
        kls = [history[f"{role}/kl_z{n}_nats"][-1] for n in (1, 2)]
        assert sum(kls) == pytest.approx(history[f"{role}/kl_nats"][-1], abs=1e-9)
    assert history["validation/elbo_nats"][-1] > history["validation/elbo_nats"][0] + 0.5


@for_each("layers", [1, 2, 3])
@for_each("frozen", [False, True])
def test_hierarchical_gradients_reach_every_parameter(cls, layers, frozen):
    vae, (x, c) = make(cls, layers, context=CONTEXT), data(5, CONTEXT)
    vae(x, c, num_samples=3, frozen_posterior=frozen).log_weight().sum().backward()
    assert not [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.any()]


# Context ------------------------------------------------------------------------------------------


@for_each("layers", [1, 2, 3])
def test_hierarchical_vae_passes_the_context_to_every_part(cls, layers):
    vae, (x, c) = make(cls, layers, context=CONTEXT), data(5, CONTEXT)
    assert vae.sample(7, c).shape == (7, 5, DATA)
    assert vae.sample(7, c[:1], mean=True).shape == (7, 1, DATA)
    assert vae.reconstruct(x, c).shape == (5, DATA)
    rows = torch.cat([vae.reconstruct(x[b, None], c[b, None]) for b in range(5)])
    torch.testing.assert_close(vae.reconstruct(x, c), rows, rtol=1e-12, atol=1e-12)
    assert log_marginal(vae, x, c, num_samples=4).shape == (5,)
    vae.check(x, c)
    history = Trainer(vae, ELBO(), progress=False).fit((x, c), epochs=1, batch=to_batch)
    assert len(history) == 1
    with pytest.raises(ValueError, match="expects a context of"):
        vae(x)
    with pytest.raises(ValueError, match=r"one row of context per example, got \(2, \d\) for 5"):
        vae.check(x, c[:2])


def to_batch(item):
    return Batch(*item)


def test_sample_reads_each_row_of_context(cls):
    """The draws for each row of context are those of the model for that row."""
    vae, (_, c) = make(cls, 2, context=CONTEXT), data(3, 2 * CONTEXT)
    c = 4 * c[:, :CONTEXT]
    together = vae.sample(4000, c).mean(0)
    alone = torch.cat([vae.sample(4000, c[b, None]).mean(0) for b in range(3)])
    assert (together - alone).abs().max() < 4.5 * math.sqrt(0.5 / 4000)
    assert (alone[0] - alone[1]).abs().max() > 0.1


def test_sample_draws_separately_for_equal_rows_of_context(cls):
    """This includes the top layer, whose prior does not read the context."""
    for layers in (1, 2):
        vae = make(cls, layers, context=CONTEXT)
        z = vae.generate(2000, torch.ones(2, CONTEXT)).detach()  # (n, 2, D)
        a, b = z[..., 0].T.numpy()
        assert abs(scipy.stats.pearsonr(a, b).statistic) < 4.5 / math.sqrt(2000)


@for_each("kind", ["conditional", "vamp", "gaussian"])
def test_prior_reads_the_context(cls, kind):
    context, top = CONTEXT, 2
    x, c = data(5, context)
    if kind == "conditional":
        prior = ConditionalPrior(GaussianEncoder(MLP(context, (3,)), top))
    elif kind == "gaussian":
        prior = GaussianPrior(top)
    else:
        shape = (3,) if cls is BottomUpVAE else (DATA,)
        prior = VampPrior(top, input_shape=shape, num_components=4, context_shape=(context,))
    vae = make(cls, 2, prior=prior, context=context)
    vae(x, c, num_samples=3).log_weight().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in prior.parameters())
    assert vae.sample(7, c).shape == (7, 5, DATA)
    report = evaluate(vae, x, c, elbo_samples=200, importance_samples=500)
    assert report.elbo.mean < report.log_marginal.mean


# VampPrior ----------------------------------------------------------------------------------------


def test_vamp_prior_is_a_mixture_of_top_posteriors(cls):
    inputs = (3,) if cls is BottomUpVAE else (DATA,)
    prior = VampPrior(2, input_shape=inputs, num_components=4, learned_weights=True)
    vae, (x, _) = make(cls, 2, prior=prior), data()
    with torch.no_grad():
        prior.inputs.normal_()
        prior.logits.normal_()
    output = vae(x, num_samples=3)
    top = output.latents[-1]
    each = []
    for u, logit in zip(prior.inputs, prior.logits.log_softmax(0), strict=True):
        if cls is LadderVAE:
            u = vae.encoders[0].network(u[None])[0]
        mean, std = head(vae.encoders[1], u)
        log_q = scipy.stats.norm.logpdf(top.z.detach().numpy(), mean, std).sum(-1)
        each.append(log_q + logit.item())
    expected = scipy.special.logsumexp(np.stack(each), axis=0)
    np.testing.assert_allclose(top.log_p.detach(), expected, rtol=1e-11)
    output.log_weight().sum().backward()
    assert prior.inputs.grad.any(dim=1).all()
    assert prior.logits.grad.any()
    assert "sampled" in ELBO().check(vae, Batch(x)) or cls is LadderVAE
    draws = vae.sample(5)
    assert draws.shape == (5, DATA)


def test_vamp_prior_from_data_is_saved(cls, tmp_path):
    vae, (x, _) = make(cls, 2), data(20)
    fed = x if cls is LadderVAE else vae(x).latents[0].z[0].detach()
    vae.prior = VampPrior.from_data(vae.encoders[-1], fed, num_components=6)
    history = Trainer(vae, ELBO(), progress=False).fit(x, epochs=2, batch_size=10)
    assert len(history) == 2
    vae.save(tmp_path / "vae")
    loaded = cls.load(tmp_path / "vae")
    assert torch.equal(loaded.reconstruct(x), vae.reconstruct(x))
    assert evaluate(vae, x, elbo_samples=200, importance_samples=500).is_bound


def test_frozen_posterior_keeps_the_gradient_of_a_vamp_prior(cls):
    """A prior that uses the encoder has its own gradient in the encoder's parameters."""
    shape = (3,) if cls is BottomUpVAE else (DATA,)
    vae, (x, _) = make(cls, 2, prior=VampPrior(2, input_shape=shape, num_components=3)), data()
    grads = []
    for frozen in (False, True):
        torch.manual_seed(2)
        output = vae(x, num_samples=2, frozen_posterior=frozen)
        log_p = output.latents[-1].log_p.sum()
        grads.append(torch.autograd.grad(log_p, vae.encoders[-1].head.weight)[0])
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-13)
    assert grads[0].any()


# Spatial latents ----------------------------------------------------------------------------------


def spatial(likelihood=None):
    """A ladder whose lower latents are maps, z1 (2, 4, 4) and z2 (3, 2, 2)."""
    shape = (1, 8, 8)
    encoders = [
        GaussianEncoder(ConvNet(shape, (4,)), (2, 4, 4)),
        GaussianEncoder(ConvNet((4, 4, 4), (5,)), (3, 2, 2)),
    ]
    generators = [GaussianEncoder(TransposedConvNet((3, 2, 2), (6, 4, 4), (4,)), (2, 4, 4))]
    decoder = TransposedConvNet((2, 4, 4), shape, (4,))
    return LadderVAE(encoders, generators, decoder, likelihood or BernoulliLikelihood())


def test_ladder_of_spatial_latents():
    vae, x = spatial(), binary(5, 1, 8, 8)
    assert isinstance(vae.encoders[0].head, nn.Conv2d)
    output = vae(x, num_samples=3)
    assert [tuple(t.z.shape) for t in output.latents] == [(3, 5, 2, 4, 4), (3, 5, 3, 2, 2)]
    assert all(term.kl("analytic").shape == (5,) for term in output.latents)
    low, top = output.latents
    generator, z2 = vae.generators[0], top.z.flatten(0, 1)
    m, s = (
        a.reshape(3, 5, 2, 4, 4)
        for a in generator.head(generator.network(z2)).reshape(15, 2, 2, 4, 4).unbind(1)
    )
    mean, log_std = vae.encoders[0].head(vae.encoders[0].network(x)).chunk(2, 1)
    precision = torch.exp(-2 * log_std) + torch.exp(-2 * s)
    product_mean = (mean * torch.exp(-2 * log_std) + m * torch.exp(-2 * s)) / precision
    log_q = torch.distributions.Normal(product_mean, precision**-0.5).log_prob(low.z).sum((2, 3, 4))
    log_p = torch.distributions.Normal(m, s.exp()).log_prob(low.z).sum((2, 3, 4))
    torch.testing.assert_close(low.log_q, log_q)
    torch.testing.assert_close(low.log_p, log_p)
    assert vae.sample(6).shape == (6, 1, 8, 8)
    assert vae.reconstruct(x).shape == x.shape
    assert log_marginal(vae, x, num_samples=3).shape == (5,)
    output.log_weight().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in vae.parameters())


def test_ladder_of_spatial_latents_is_saved_and_summarized(tmp_path):
    vae, x = spatial(), binary(2, 1, 8, 8)
    vae.save(tmp_path / "vae")
    loaded = LadderVAE.load(tmp_path / "vae")
    assert torch.equal(loaded.reconstruct(x), vae.reconstruct(x))
    assert "LadderVAE of data (1, 8, 8), latent (2, 4, 4)" in summary(vae)


# Files and states ---------------------------------------------------------------------------------


@for_each("layers", [1, 2, 3])
@for_each("dtype", [torch.float32, torch.float64])
def test_load_restores_every_bit(cls, layers, dtype, tmp_path):
    vae = make(cls, layers, context=CONTEXT).to(dtype)
    vae.save(tmp_path / "vae.safetensors")
    state = torch.get_rng_state()
    loaded = cls.load(tmp_path / "vae.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert repr(loaded) == repr(vae)
    assert repr(vae).startswith(f"{cls.__name__}(\n  latent_shape=(3,)")
    states = vae.state_dict(), loaded.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(t.dtype == states[1][n].dtype for n, t in states[0].items())
    assert all(torch.equal(t, states[1][n]) for n, t in states[0].items())
    x, c = (t.to(dtype) for t in data(5, CONTEXT))
    weights = []
    for each in (vae, loaded):
        torch.manual_seed(1)
        weights.append(each(x, c, num_samples=3).log_weight())
    assert torch.equal(*weights)


def test_load_refuses_another_model(tmp_path):
    make(BottomUpVAE, 2).save(tmp_path / "vae")
    with pytest.raises(CheckpointError, match="expected the file of a LadderVAE, got 'BottomUpVAE"):
        LadderVAE.load(tmp_path / "vae")


def test_load_replaces_foreign_modules_by_name(cls, tmp_path):
    def build():
        return cls(
            [
                GaussianEncoder(nn.Linear(DATA, 3), 3, features=3),
                GaussianEncoder(nn.Linear(3, 5), 2, features=5),
            ],
            [GaussianEncoder(nn.Linear(2, 5), 3, features=5)],
            nn.Linear(3, DATA),
            BernoulliLikelihood(),
        )

    vae, twin, x = build(), build(), binary(5, DATA)
    vae.save(tmp_path / "vae")
    names = ["encoders.0.network", "encoders.1.network", "generators.0.network", "decoder"]
    loaded = cls.load(tmp_path / "vae", replace={name: twin.get_submodule(name) for name in names})
    assert torch.equal(loaded.reconstruct(x), vae.reconstruct(x))
    with pytest.raises(CheckpointError, match=r"'encoders.0.network' \(a Linear\)"):
        cls.load(tmp_path / "vae")


@for_each("layers", [1, 2, 3])
def test_summary_counts_every_parameter_once(cls, layers):
    vae = make(cls, layers)
    text = summary(vae)
    assert text.startswith(f"{cls.__name__} of data (4,), latent (3,), BernoulliLikelihood()")
    total = sum(p.numel() for p in vae.parameters())
    assert re.search(rf"total +{total:,}$", text)
    counts = [int(line.split()[-1].replace(",", "")) for line in text.splitlines()[1:-1]]
    assert sum(counts) == total
    assert "no layer" not in text


def test_reconstruct_and_check_draw_nothing(cls):
    vae, (x, _) = make(cls, 3), data()
    state = torch.get_rng_state()
    reconstruction = vae.reconstruct(x)
    record = vae.check(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(vae.reconstruct(x), reconstruction)
    torch.testing.assert_close(record.likelihood.point_estimate()[0], reconstruction[:2])


def test_reconstruct_decodes_the_centers():
    vae, (x, _) = make(BottomUpVAE, 2), data()
    mean, _ = vae.encoders[0].head(vae.encoders[0].network(x)).chunk(2, 1)
    assert torch.equal(vae.reconstruct(x), vae.decoder(mean).sigmoid())
    vae = make(LadderVAE, 2)
    first = vae.encoders[0].network(x)
    z2, _ = vae.encoders[1].head(vae.encoders[1].network(first)).chunk(2, 1)
    m, s = vae.generators[0].head(vae.generators[0].network(z2)).chunk(2, 1)
    mean, log_std = vae.encoders[0].head(first).chunk(2, 1)
    p, q = torch.exp(-2 * log_std), torch.exp(-2 * s)
    expected = vae.decoder((mean * p + m * q) / (p + q)).sigmoid()
    torch.testing.assert_close(vae.reconstruct(x), expected)


def test_each_example_is_treated_by_itself(cls):
    """The reconstruction of a batch equals those of its rows."""
    vae, (x, _) = make(cls, 3), data(6)
    together = vae.reconstruct(x)
    order = torch.randperm(6)
    torch.testing.assert_close(vae.reconstruct(x[order]), together[order], rtol=1e-12, atol=1e-13)
    parts = torch.cat([vae.reconstruct(part) for part in x.split(4)])
    torch.testing.assert_close(parts, together, rtol=1e-12, atol=1e-13)


def test_evaluate_restores_modes_and_weights(cls):
    vae, (x, _) = make(cls, 2).train(), data()
    vae.encoders[0].eval()
    before = copy.deepcopy(vae.state_dict())
    modes = {name: m.training for name, m in vae.named_modules()}
    evaluate(vae, x, elbo_samples=2, importance_samples=2)
    vae.check(x)
    assert {name: m.training for name, m in vae.named_modules()} == modes
    assert all(torch.equal(t, before[name]) for name, t in vae.state_dict().items())
    assert not log_marginal(vae, x, num_samples=2).requires_grad


def test_training_mode_reaches_the_networks(cls):
    """Dropout acts in training mode, but not in evaluation mode."""
    layers = 2
    vae, (x, _) = make(cls, layers), data()
    vae.encoders[0].network = nn.Sequential(vae.encoders[0].network, nn.Dropout(0.5))
    features = [vae.train(mode).encoders[0].encode(x) for mode in (True, True, False, False)]
    assert not torch.equal(*features[:2])
    assert torch.equal(*features[2:])
    assert torch.equal(vae.train().reconstruct(x), vae.eval().reconstruct(x))
    report = [evaluate(vae.train(), x, elbo_samples=3, importance_samples=3) for _ in range(2)]
    assert report[0] == report[1]


def test_deepcopy_is_independent(cls):
    vae, (x, _) = make(cls, 3), data()
    twin = copy.deepcopy(vae)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin.reconstruct(x), torch.full((5, DATA), 0.5))
    assert (vae.reconstruct(x) - 0.5).abs().max() > 0.05


def test_integer_data_are_converted(cls):
    vae, (x, _) = make(cls, 2).float(), data()
    torch.manual_seed(1)
    expected = vae(x.float()).log_weight()
    torch.manual_seed(1)
    assert torch.equal(vae(x.long()).log_weight(), expected)
    assert torch.equal(vae.reconstruct(x.bool()), vae.reconstruct(x.float()))


def test_functional_call_equals_the_model(cls):
    vae, (x, _) = make(cls, 2), data()
    parameters = dict(vae.named_parameters())

    def loss(values):
        torch.manual_seed(1)
        return torch.func.functional_call(vae, values, (x,)).log_weight().mean()

    grads = torch.func.grad(loss)(parameters)
    loss(parameters).backward()
    for name, parameter in vae.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad)


def test_autocast_changes_only_the_rounding(cls):
    """The output under autocast is that of full precision up to rounding."""
    vae, (x, _) = make(cls, 2).float(), data()
    x = x.float()
    records = []
    for enabled in (False, True):
        torch.manual_seed(1)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=enabled)
        with autocast:
            records.append(vae.check(x).log_weight())
        with autocast:  # torch 2.10 would reuse the weights of a pass without gradients
            vae(x, num_samples=3).log_weight().mean().backward()
    assert records[1].dtype == torch.float32
    torch.testing.assert_close(*records, rtol=0.05, atol=0.2)


@for_each("masked", ["nan", "mask"])
def test_masked_likelihood_ignores_missing_entries(cls, masked):
    vae = make(cls, 2, likelihood=MaskedLikelihood(GaussianLikelihood(0.5)), dims=(3, 2))
    x = torch.randn(6, DATA)
    seen = torch.rand(6, DATA) > 0.3
    holes = x.where(seen, torch.nan)
    mask = seen if masked == "mask" else None
    observed = x if masked == "mask" else holes
    filled = impute(vae, observed, mask=mask, num_samples=50)
    assert torch.equal(filled[seen], x[seen])
    assert not filled.isnan().any()
    draws = impute(vae, observed, mask=mask, num_samples=50, num_imputations=3)
    assert draws.shape == (3, 6, DATA)
    estimate = log_marginal(vae, observed, mask=mask, num_samples=10)
    torch.testing.assert_close(estimate, log_marginal(vae, holes, num_samples=10))
    assert vae.reconstruct(observed, mask=mask).shape == (6, DATA)
    vae(observed, mask=mask, num_samples=2).log_weight().mean().backward()
    assert all(p.grad.isfinite().all() for p in vae.parameters())


def test_impute_returns_the_conditional_mean(cls):
    """The conditional mean of a Gaussian is known."""
    chain = Chain.random(2)
    vae = chain.build(cls)
    vae.likelihood = MaskedLikelihood(GaussianLikelihood(chain.std))
    x = chain.evidence.sample((3,))
    mean, cov = chain.evidence.mean, chain.evidence.covariance_matrix
    seen, lost = [0, 1, 2], [3]
    gain = cov[lost][:, seen] @ torch.linalg.inv(cov[seen][:, seen])
    expected = mean[lost] + (x[:, seen] - mean[seen]) @ gain.T
    holes = x.clone()
    holes[:, lost] = torch.nan
    filled = impute(vae, holes, num_samples=20_000)[:, lost]
    torch.testing.assert_close(filled, expected, rtol=0, atol=0.1)
    narrow = MultivariateNormal(mean[seen], cov[seen][:, seen]).log_prob(x[:, seen])
    estimate = log_marginal(vae, holes, num_samples=20_000)
    torch.testing.assert_close(estimate, narrow, rtol=0, atol=0.1)


# Errors -------------------------------------------------------------------------------------------


def parts(cls):
    vae = make(cls, 2)
    return list(vae.encoders), list(vae.generators), vae.decoder, vae.likelihood


# name: (change of encoders, generators, decoder, likelihood; exception; message)
MISFITS = {
    "no layers": (
        lambda *rest: ([], [], *rest[2:]),
        ValueError,
        "expects encoders of L >= 1 layers and generators of the L - 1 lower ones, got 0 and 0",
    ),
    "no generator": (lambda e, _, *rest: (e, [], *rest), ValueError, "got 2 and 0"),
    "a generator too many": (lambda e, g, *rest: (e, g * 2, *rest), ValueError, "got 2 and 2"),
    "a generator of another latent": (
        lambda e, _, *rest: (e, [GaussianEncoder(MLP(2), 4)], *rest),
        ValueError,
        "expects a generator of z1 over the encoder's latents (3,), got one over (4,)",
    ),
    "a network for an encoder": (
        lambda e, *rest: ([MLP(DATA), e[1]], *rest),
        TypeError,
        "got an instance of MLP: GaussianEncoder(",
    ),
    "a network for a generator": (
        lambda e, _, *rest: (e, [MLP(2, out_shape=6)], *rest),
        TypeError,
        "got an instance of MLP: GaussianEncoder(",
    ),
    "a function for a decoder": (
        lambda e, g, _, li: (e, g, torch.tanh, li),
        TypeError,
        "expects as decoder a Module",
    ),
    "a name for a likelihood": (
        lambda e, g, d, _: (e, g, d, "bernoulli"),
        TypeError,
        "expects as likelihood a Likelihood, got an instance of str: such as",
    ),
    "a network for a prior": (
        lambda e, g, d, li: (e, g, d, li, d),
        TypeError,
        "expects as prior a Prior, got an instance of MLP: such as",
    ),
    "a prior of the bottom": (
        lambda e, g, d, li: (e, g, d, li, StandardNormal(3)),
        ValueError,
        "expects a prior of the top layer over the encoder's latents (2,), got one over (3,)",
    ),
}


@for_each("name", MISFITS)
def test_hierarchical_constructor_names_the_remedy(cls, name):
    change, exception, message = MISFITS[name]
    with pytest.raises(exception, match=re.escape(message)) as caught:
        cls(*change(*parts(cls)))
    assert str(caught.value).startswith(cls.__name__)


def test_ladder_refuses_other_than_gaussian_encoders():
    encoders, generators, decoder, likelihood = parts(LadderVAE)
    for wrong in (LaplaceEncoder(MLP(DATA), 3), FullGaussianEncoder(MLP(DATA), 3)):
        with pytest.raises(TypeError, match=r"a GaussianEncoder, got an? .*: GaussianEncoder\("):
            LadderVAE([wrong, encoders[1]], generators, decoder, likelihood)
    with pytest.raises(TypeError, match="GaussianEncoder, got an instance of LaplaceEncoder"):
        LadderVAE(encoders, [LaplaceEncoder(MLP(2), 3)], decoder, likelihood)


def test_bottom_up_accepts_any_encoders():
    vae = BottomUpVAE(
        [LaplaceEncoder(MLP(DATA, (7,)), 3), FullGaussianEncoder(MLP(3, (7,)), 2)],
        [LaplaceEncoder(MLP(2, (7,)), 3)],
        MLP(3, (7,), DATA),
        BernoulliLikelihood(),
    )
    with torch.no_grad():
        for encoder in (*vae.encoders, *vae.generators):
            encoder.head.weight.mul_(0.3)
        vae.encoders[0].head.bias[3:] += 0.2
    x, _ = data(3)
    low, top = vae(x, num_samples=2).latents
    assert not low.has_analytic_kl
    with torch.no_grad():
        draws = top.posterior.sample((20_000,))
        ratio = top.posterior.log_prob(draws) - top.prior.log_prob(draws)
        error = ratio.std(0) / math.sqrt(20_000)
        exact = kl_divergence(top.posterior, top.prior)
    assert exact.shape == (2, 3)
    assert ((ratio.mean(0) - exact).abs() < 4.5 * error).all()
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=DATA)))
    total = log_marginal(vae, images, num_samples=4000).exp().sum().item()
    assert total == pytest.approx(1, abs=0.03)


def test_check_names_the_layer_that_does_not_fit(cls):
    chain = "chain of encoders and generators"
    for name, wrong in [
        ("encoders", GaussianEncoder(MLP(9), 2)),
        ("generators", GaussianEncoder(MLP(9), 3)),
    ]:
        vae = make(cls, 2)
        vae.get_submodule(name)[-1] = wrong
        with pytest.raises(ValueError, match=rf"the {chain} does not accept .*in_shape = \(9,\)"):
            vae.check(binary(3, DATA))
    vae = make(cls, 2)
    vae.decoder = MLP(9, out_shape=DATA)
    with pytest.raises(ValueError, match="the decoder does not accept"):
        vae.check(binary(3, DATA))
    with pytest.raises(ValueError, match="num_samples >= 1, got 0"):
        vae(binary(3, DATA), num_samples=0)


def test_is_density_needs_every_posterior():
    encoders, generators, decoder, likelihood = parts(BottomUpVAE)
    x, _ = data()
    vae = BottomUpVAE(
        [encoders[0], DeterministicEncoder(MLP(3, (7,)), 2)], generators, decoder, likelihood
    )
    assert not vae.is_density
    assert "not a bound" in ELBO().check(vae, Batch(x))
    vae = BottomUpVAE(encoders, [DeterministicEncoder(MLP(2, (7,)), 3)], decoder, likelihood)
    assert "not a bound" in ELBO().check(vae, Batch(x))
    assert not evaluate(vae, x, elbo_samples=1, importance_samples=None).is_bound


# Regressions --------------------------------------------------------------------------------------


def test_is_density_needs_every_generator():
    encoders, _, decoder, likelihood = parts(BottomUpVAE)
    generators = [DeterministicEncoder(MLP(2, (7,)), 3)]
    assert not ELBO().is_bound(BottomUpVAE(encoders, generators, decoder, likelihood))


def test_frozen_posterior_refuses_dropout(cls):
    vae, (x, _) = make(cls, 2), data()
    vae.encoders[0].network = nn.Sequential(vae.encoders[0].network, nn.Dropout(0.5))
    with pytest.raises(ValueError, match="dropout in the decoder only"):
        vae(x, frozen_posterior=True)
    vae.eval()(x, frozen_posterior=True)


def test_frozen_posterior_works_in_a_functional_call(cls):
    vae, (x, _) = make(cls, 2), data()

    def loss(values):
        call = torch.func.functional_call
        torch.manual_seed(1)
        return call(vae, values, (x,), {"frozen_posterior": True}).log_weight().mean()

    grads = torch.func.grad(loss)(dict(vae.named_parameters()))
    torch.manual_seed(1)
    vae(x, frozen_posterior=True).log_weight().mean().backward()
    for name, parameter in vae.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad)


def test_autocast_keeps_latent_densities_in_full_precision(cls):
    vae, (x, _) = make(cls, 2).float(), data()
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae(x.float()).latents
    assert all(t.dtype == torch.float32 for term in latents for t in (term.log_q, term.kl()))
