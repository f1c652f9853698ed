"""Several codebooks, each of which quantizes the residual of the ones before."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from helpers.codebooks import binary, outputs
from torch import nn

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    Batch,
    BernoulliLikelihood,
    ConvNet,
    GaussianEncoder,
    GaussianLikelihood,
    Optimization,
    StandardNormal,
    Trainer,
    TransposedConvNet,
    evaluate,
    log_marginal,
)
from tinyvae.datasets import digits
from tinyvae.distributions import (
    CodebookCategorical,
    Quantized,
    ReshapedBatch,
    kl_divergence,
    log_prob_of_draws,
)
from tinyvae.distributions.quantized import nearest
from tinyvae.encoders import JointEncoder
from tinyvae.encoders.quantized import VectorQuantizedEncoder
from tinyvae.models.serialization import build_part, describe_part
from tinyvae.priors import JointPrior
from tinyvae.priors.codes import CodePrior
from tinyvae.testing import check_encoder

pytestmark = pytest.mark.usefixtures("float64")

LEVELS, CODES, DATA = 3, 4, 4
DECAYS = [0.9, None]


def encoder(latent=(2, 3), *, levels=LEVELS, codes=CODES, decay=0.9, network=None, **options):
    network = MLP(DATA, (7,), activation=nn.Tanh) if network is None else network
    return VectorQuantizedEncoder(
        network, num_codes=codes, latent_dim=latent, num_quantizers=levels, decay=decay, **options
    )


def make(latent=(2, 3), *, levels=LEVELS, codes=CODES, **options):
    decoder = MLP(latent, (7,), DATA, activation=nn.Tanh)
    prior = CodePrior(codes, latent_dim=latent, num_quantizers=levels)
    vq = encoder(latent, levels=levels, codes=codes, **options)
    return VAE(vq, decoder, BernoulliLikelihood(), prior)


def spatial(levels=2):
    """Return a model with codes of (3,) at each of 2 x 2 positions."""
    latent = (3, 2, 2)
    vq = encoder(latent, levels=levels, network=ConvNet((1, 8, 8), (4, 5)))
    decoder = TransposedConvNet(latent, (1, 8, 8), (5, 4))
    prior = CodePrior(CODES, latent_dim=latent, num_quantizers=levels)
    return VAE(vq, decoder, BernoulliLikelihood(), prior)


def by_hand(rows, codebooks):
    """Return codes ``(Q, ...)`` and residuals ``(Q + 1, ..., C)``, computed in numpy."""
    left, codes = [rows], []
    for codebook in codebooks:
        distances = ((left[-1][..., None, :] - codebook) ** 2).sum(-1)
        codes.append(distances.argmin(-1))
        left.append(left[-1] - codebook[codes[-1]])
    return np.stack(codes), np.stack(left)


def every_choice(levels, codes, positions):
    """Return all codes of all levels and positions, ``(n, Q, S)``."""
    index = torch.tensor([*itertools.product(range(codes), repeat=levels * positions)])
    return index.reshape(-1, levels, positions)


def summed(codebook, index):
    """Return the sums ``(n, C, S)`` of codes ``(n, Q, S)``."""
    total = codebook[0][index[:, 0]]
    for q in range(1, len(codebook)):
        total = total + codebook[q][index[:, q]]
    return total.movedim(-1, 1)


# One codebook -------------------------------------------------------------------------------------


class Single:
    """Step-by-step reference of the encoder with one codebook."""

    def __init__(self, vq):
        self.vq = vq
        self.codebook, self.usage = vq.codebook.detach().clone(), vq.usage.clone()
        self.num_batches = 0

    def step(self, x, decay):
        out = self.vq.params(self.vq.encode(x)).detach().unflatten(1, self.vq.latent_shape)
        rows = out.movedim(1, -1)
        codes = nearest(rows, self.codebook)
        vectors = self.codebook[codes].movedim(-1, 1)
        squares = (out - vectors).square().flatten(1).sum(1)
        rows, index = rows.flatten(0, -2), codes.flatten()
        self.num_batches += 1
        counts = torch.bincount(index, minlength=len(self.usage)).to(rows.dtype)
        memory = torch.tensor(0.99 if decay is None else decay, dtype=rows.dtype)
        weight = torch.tensor(1 / self.num_batches, dtype=rows.dtype).clamp(min=1 - float(memory))
        usage = torch.lerp(self.usage, counts, weight)
        if decay is not None:
            sums = torch.zeros_like(self.codebook).index_add_(0, index, rows)
            mass = torch.lerp(self.usage.unsqueeze(1) * self.codebook, sums, weight)
            seen = counts.unsqueeze(1) > 0
            self.codebook = torch.where(seen, mass / usage.unsqueeze(1), self.codebook)
        equal = len(rows) / len(usage)
        dead = usage < 0.05 * equal
        chosen = torch.randint(len(rows), (len(usage),))
        self.codebook = torch.where(dead.unsqueeze(1), rows[chosen], self.codebook)
        self.usage = torch.where(dead, equal, usage)
        return codes, vectors, squares


@for_each("decay", DECAYS)
@for_each("latent", [(2,), (2, 3)])
@for_each("dtype", [torch.float32, torch.float64])
def test_one_codebook_agrees_bitwise_with_reference(decay, latent, dtype):
    vq = encoder(latent, levels=1, codes=8, decay=decay).to(dtype).train()
    assert vq.codebook.shape == (8, 2)
    assert vq.usage.shape == (8,)
    plain = Single(vq)
    for seed in range(6):
        x = torch.randn(9, DATA).to(dtype)
        torch.manual_seed(seed)
        posterior = vq(x)
        value = posterior.sample()
        torch.manual_seed(seed)
        codes, vectors, squares = plain.step(x, decay)
        assert torch.equal(posterior.codes, codes)
        assert torch.equal(value, vectors)
        assert torch.equal(posterior.losses["commitment"], 0.25 * squares)
        if decay is None:
            assert torch.equal(posterior.losses["codebook"], squares)
        assert torch.equal(vq.codebook, plain.codebook)
        assert torch.equal(vq.usage, plain.usage)
        assert list(posterior.metrics) == ["perplexity"]


def test_zero_codebooks_do_not_change_the_value():
    one, many = make(levels=1).eval(), make().eval()
    with torch.no_grad():
        for name, tensor in one.state_dict().items():
            own = many.state_dict()[name]
            if own.shape == tensor.shape:
                own.copy_(tensor)
        many.encoder.codebook.zero_()
        many.encoder.codebook[1] = one.encoder.codebook  # the second has it all
    x = binary(20, DATA)
    q, p = one.encode(x), many.encode(x)
    assert torch.equal(p.mean, q.mean)
    assert torch.equal(p.codes[:, 1], q.codes)
    assert torch.equal(many.reconstruct(x), one.reconstruct(x))


def test_description_without_num_quantizers_has_one_codebook():
    for part in (encoder((2, 3), levels=1), CodePrior(CODES, latent_dim=(2, 3))):
        description = describe_part(part)
        del description["config"]["num_quantizers"]
        twin = build_part(description)
        assert twin.num_quantizers == 1
        twin.load_state_dict(part.state_dict())


# The codes ----------------------------------------------------------------------------------------


@for_each("decay", DECAYS)
@for_each("levels", [2, 5])
@for_each("latent", [(2,), (2, 3), (1, 3), (5, 2, 2)])
@for_each("training", [True, False])
def test_codes_are_nearest_to_the_residuals(decay, levels, latent, training):
    vq = encoder(latent, levels=levels, decay=decay, codes=9).train(training)
    assert vq.codebook.shape == (levels, 9, latent[0])
    x = 3 * torch.randn(30, DATA)
    rows, codebooks = outputs(vq, x).numpy(), vq.codebook.detach().numpy().copy()
    codes, left = by_hand(rows, codebooks)
    posterior = vq(x)
    assert posterior.batch_shape == (30,)
    assert posterior.event_shape == latent
    assert posterior.codes.shape == (30, levels, *latent[1:])
    assert np.array_equal(posterior.codes.movedim(1, 0), codes)
    value = posterior.mean.detach().movedim(1, -1).numpy()
    np.testing.assert_allclose(value, rows - left[-1], rtol=0, atol=1e-12)
    chosen = sum(codebook[index] for codebook, index in zip(codebooks, codes, strict=True))
    np.testing.assert_allclose(value, chosen, rtol=0, atol=1e-12)
    draws = posterior.sample((3,))
    assert torch.equal(draws, posterior.mean.expand(3, 30, *latent))
    assert not posterior.log_prob(draws).any()


def test_levels_reduce_the_error():
    vq, x = encoder(levels=4, decay=0.0, codes=6).train(), torch.randn(200, DATA)
    for _ in range(20):
        vq(x)
    _, left = by_hand(outputs(vq, x).numpy(), vq.codebook.numpy())
    errors = (left**2).sum((1, 2, 3))
    assert (np.diff(errors) < -0.3 * errors[:-1]).all()


def test_decoder_reads_the_sum_of_codes():
    vae, x, read = spatial().eval(), binary(5, 1, 8, 8), []
    vae.decoder.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].detach()))
    vae.reconstruct(x)
    codes = vae.encode(x).codes
    assert codes.shape == (5, 2, 2, 2)
    first, second = vae.encoder.codebook
    for b, h, w in [(0, 0, 1), (4, 1, 0), (2, 1, 1)]:
        expected = first[codes[b, 0, h, w]] + second[codes[b, 1, h, w]]
        assert torch.equal(read[0][b, :, h, w], expected)
    output = vae(x, num_samples=3)
    assert output.latents[0].z.shape == (3, 5, 3, 2, 2)
    assert torch.equal(output.log_weight()[0], output.log_weight()[2])
    assert vae.sample(7).shape == (7, 1, 8, 8)


# Losses and gradients -----------------------------------------------------------------------------


@for_each("decay", DECAYS)
def test_quantization_losses_agree_with_formulas(decay):
    vae, x = make(decay=decay, commitment=0.7).eval(), binary(9, DATA)
    codes, left = by_hand(outputs(vae.encoder, x).numpy(), vae.encoder.codebook.detach().numpy())
    squares = (left[1:] ** 2).sum((0, 2, 3))  # of levels, positions and coordinates
    losses = {name: value.detach().numpy() for name, value in vae(x).losses().items()}
    assert losses.keys() == {"z_commitment", "z_codebook"} - ({"z_codebook"} if decay else set())
    np.testing.assert_allclose(losses["z_commitment"], 0.7 * squares, rtol=1e-12)
    if decay is None:
        np.testing.assert_allclose(losses["z_codebook"], squares, rtol=1e-12)
    metrics = vae(x).metrics()
    assert list(metrics) == ["z_perplexity_1", "z_perplexity_2", "z_perplexity_3"]
    for index, found in zip(codes, metrics.values(), strict=True):
        shares = np.bincount(index.ravel(), minlength=CODES) / index.size
        entropy = -sum(p * np.log(p) for p in shares if p > 0)
        assert found.item() == pytest.approx(np.exp(entropy), abs=1e-12)


@for_each("decay", DECAYS)
def test_quantization_gradients_agree_with_formulas(decay):
    vae, x = make(decay=decay, commitment=0.7).eval(), binary(9, DATA)
    vq = vae.encoder
    codebooks = vq.codebook.detach().numpy()
    codes, left = by_hand(outputs(vq, x).numpy(), codebooks)
    said = []
    vq.head.register_forward_hook(lambda *args: said.append(args[2]))
    record = vae(x)
    losses = record.losses()
    commitment = losses["z_commitment"].sum()
    (found,) = torch.autograd.grad(commitment, said[0], retain_graph=True)
    expected = 0.7 * 2 * np.moveaxis(left[1:].sum(0), -1, 1)  # 2 c sum_q (h - z_q)
    np.testing.assert_allclose(found.reshape(9, 2, 3), expected, rtol=1e-11, atol=1e-13)
    code = record.latents[0].z[0].detach().requires_grad_()
    (at_code,) = torch.autograd.grad(vae.decode(code).log_prob(x).sum(), code)
    (through,) = torch.autograd.grad(record.log_px.sum(), said[0], retain_graph=True)
    torch.testing.assert_close(through.reshape(at_code.shape), at_code, rtol=1e-12, atol=1e-14)
    if decay is not None:
        assert "encoder.codebook" not in dict(vae.named_parameters())
        return
    for value in (commitment, record.log_px.sum()):
        (grad,) = torch.autograd.grad(value, vq.codebook, retain_graph=True, allow_unused=True)
        assert grad is None or not grad.any()
    own = losses["z_codebook"].sum()
    assert torch.autograd.grad(own, said[0], retain_graph=True, allow_unused=True)[0] is None
    (found,) = torch.autograd.grad(own, vq.codebook)
    expected = np.zeros_like(codebooks)
    for q in range(LEVELS):
        np.add.at(expected[q], codes[q].ravel(), -2 * left[q + 1].reshape(-1, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)


# Averages and restarts ----------------------------------------------------------------------------


def test_moving_averages_agree_with_numpy():
    vq = encoder(decay=0.8, restart_below=0.0).train()
    codebooks, usage = vq.codebook.numpy().copy(), np.zeros((LEVELS, CODES))
    sums = np.zeros((LEVELS, CODES, 2))
    for n in range(1, 9):  # of the first 1 / (1 - 0.8) = 5 batches alike
        x, weight = 2 * torch.randn(9, DATA), max(1 / n, 0.2)
        codes, left = by_hand(outputs(vq, x).numpy(), codebooks)
        assert np.array_equal(vq(x).codes.movedim(1, 0), codes)
        for q in range(LEVELS):
            one_hot = np.eye(CODES)[codes[q].ravel()]
            usage[q] = (1 - weight) * usage[q] + weight * one_hot.sum(0)
            sums[q] = (1 - weight) * sums[q] + weight * one_hot.T @ left[q].reshape(-1, 2)
            used = usage[q] > 0
            codebooks[q][used] = sums[q][used] / usage[q][used, None]
        np.testing.assert_allclose(vq.usage, usage, rtol=1e-12)
        np.testing.assert_allclose(vq.codebook, codebooks, rtol=1e-9, atol=1e-12)
    assert vq.num_batches == 8


@for_each("decay", DECAYS)
def test_dead_codes_restart_at_residuals_of_their_level(decay):
    vq, x = encoder(decay=decay, restart_below=0.5).train(), torch.randn(8, DATA)
    with torch.no_grad():
        vq.codebook[:, 1:] += 50  # nothing is near but the first code of each
    before = vq.codebook.detach().clone()
    _, left = by_hand(outputs(vq, x).numpy(), before.numpy())
    vq(x)
    after = vq.codebook.detach().numpy()
    for q in range(LEVELS):
        rows = left[q].reshape(-1, 2)
        for code in after[q, 1:]:
            assert np.abs(rows - code).max(1).min() < 1e-12
        expected = before[q, 0] if decay is None else rows.mean(0)
        np.testing.assert_allclose(after[q, 0], expected, rtol=1e-12, atol=1e-12)
    assert vq.usage.tolist() == [[24.0, 6.0, 6.0, 6.0]] * LEVELS
    assert vq.codebook.requires_grad == (decay is None)


# The bound ----------------------------------------------------------------------------------------


@for_each("decay", DECAYS)
@for_each("fitted", [False, True])
def test_elbo_is_a_bound_on_the_enumerated_evidence(decay, fitted):
    vae = make((2, 2), levels=2, codes=3, decay=decay).eval()
    x = (torch.arange(2**DATA)[:, None] >> torch.arange(DATA) & 1).double()
    if fitted:
        vae.prior.fit(vae.encode(x[:5]).codes)
    index = every_choice(2, 3, 2)
    each = vae.prior.logits.log_softmax(0)  # (J, Q, S)
    log_p = sum(each[index[:, q, s], q, s] for q in range(2) for s in range(2))
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)
    with torch.no_grad():
        z = summed(vae.encoder.codebook.detach(), index)
        exact = (vae.decode(z[:, None]).log_prob(x) + log_p[:, None]).logsumexp(0)
        output = vae(x, num_samples=2)
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-12)
    (term,) = output.latents
    if not fitted:
        torch.testing.assert_close(term.kl(), torch.full((16,), 2 * 2 * math.log(3)))
    codes = term.posterior.codes
    surprise = -sum(each[codes[:, q, s], q, s] for q in range(2) for s in range(2))
    torch.testing.assert_close(term.kl(), surprise)
    torch.testing.assert_close(term.kl("sample"), surprise, rtol=1e-12, atol=1e-12)
    elbo = output.log_px.mean(0) - surprise
    torch.testing.assert_close(output.log_weight(), elbo.expand(2, 16), rtol=1e-12, atol=1e-12)
    assert (elbo < exact).all()
    torch.testing.assert_close(log_marginal(vae, x, num_samples=3), elbo, rtol=1e-12, atol=1e-12)
    assert evaluate(vae, x, importance_samples=2).is_bound
    metrics = ELBO()(vae, Batch(x)).metrics
    assert metrics["kl_nats"].item() == pytest.approx(surprise.mean().item(), abs=1e-12)


def test_codes_with_another_latent():
    both = {"codes": encoder((2, 1)), "style": GaussianEncoder(MLP(DATA, (7,)), 2)}
    codes = CodePrior(CODES, latent_dim=(2, 1), num_quantizers=LEVELS)
    prior = JointPrior({"codes": codes, "style": StandardNormal(2)})
    vae = VAE(JointEncoder(both), MLP(4, (7,), DATA), BernoulliLikelihood(), prior).eval()
    metrics = ELBO(kl="sample")(vae, Batch(binary(5, DATA))).metrics
    assert {"kl_style_nats", "codes_commitment", "codes_perplexity_3"} <= metrics.keys()
    assert metrics["kl_codes_nats"].item() == pytest.approx(LEVELS * math.log(CODES))
    assert vae.sample(3).shape == (3, DATA)


# The prior ----------------------------------------------------------------------------------------


@for_each("latent", [(2,), (2, 3), (3, 2, 2)])
def test_fit_gives_frequencies_per_level(latent):
    vae, x = make(latent, levels=2).eval(), binary(40, DATA)
    codes = vae.encode(x).codes
    vae.prior.fit(codes)
    assert vae.prior.logits.shape == (CODES, 2, *latent[1:])
    found = vae.prior.logits.softmax(0).flatten(2) if latent[1:] else vae.prior.logits.softmax(0)
    found, codes = found.reshape(CODES, 2, -1), codes.reshape(40, 2, -1)
    for q, s in itertools.product(range(2), range(found.shape[2])):
        counts = np.bincount(codes[:, q, s], minlength=CODES) + 1
        np.testing.assert_allclose(found[:, q, s], counts / counts.sum(), rtol=1e-12)


def test_code_prior_samples_sums_of_codes():
    vae = make((2, 2), levels=2, codes=3).eval()
    vae.prior.logits.normal_()
    prior = vae.prior(encoder=vae.encoder)
    z = vae.generate(20_000, None)
    index = every_choice(2, 3, 2)
    values = summed(vae.encoder.codebook, index)  # (81, 2, 2)
    hits = (z.flatten(1)[:, None] == values.flatten(1)).all(-1)
    assert (hits.sum(1) == 1).all()
    found, expected = hits.double().mean(0), prior.log_mass(index).exp()
    assert expected.sum().item() == pytest.approx(1, abs=1e-12)
    error = (expected * (1 - expected) / 20_000).sqrt()
    assert ((found - expected).abs() < 4.5 * error).all()
    torch.testing.assert_close(prior.mean, (expected[:, None, None] * values).sum(0))
    assert torch.equal(prior.point_estimate(), values[expected.argmax()])
    torch.manual_seed(0)
    draws, log_mass = prior.sample_and_log_prob((50,))
    torch.manual_seed(0)
    assert torch.equal(draws, prior.sample((50,)))
    chosen = (draws.flatten(1)[:, None] == values.flatten(1)).all(-1).long().argmax(1)
    torch.testing.assert_close(log_mass, prior.log_mass(index[chosen]))


# Sums of codes ------------------------------------------------------------------------------------


def test_log_prob_refuses_sums_of_codes():
    prior = CodebookCategorical(torch.randn(4, 3), torch.randn(3, 4, 2))
    message = r"expects vectors of one codebook, got sums of 3 codes.*log_mass\(posterior.codes\)"
    with pytest.raises(ValueError, match=message):
        prior.log_prob(prior.sample())


def test_log_prob_of_draws_tells_equal_sums_apart():
    codebook = torch.tensor([[[0.0], [1.0]], [[1.0], [2.0]]])
    prior = CodebookCategorical(torch.tensor([[0.3, 0.1], [0.0, 0.0]]), codebook)
    codes = torch.tensor([[0, 1], [1, 0]])  # both sums are 2
    posterior = Quantized(torch.full((2, 1), 2.0), codes, {}, {})
    z = posterior.sample((5,))
    log_p = log_prob_of_draws(posterior, prior, z)
    assert log_p.shape == (5, 2)
    assert torch.equal(log_p, prior.log_mass(codes).expand(5, 2))
    assert log_p[0, 0] != log_p[0, 1]
    rows = ReshapedBatch(posterior, (1, 2))
    assert torch.equal(log_prob_of_draws(rows, prior, rows.sample()), log_p[:1])


def test_kl_of_residual_codes_is_minus_log_mass():
    vq, prior = encoder().eval(), CodePrior(CODES, latent_dim=(2, 3), num_quantizers=LEVELS)
    prior.logits.normal_()
    q, p = vq(torch.randn(7, DATA)), prior(encoder=vq)
    each = prior.logits.log_softmax(0)
    expected = [
        -sum(each[code, k, s] for k, row in enumerate(rows) for s, code in enumerate(row))
        for rows in q.codes.tolist()
    ]
    torch.testing.assert_close(kl_divergence(q, p), torch.stack(expected))
    torch.testing.assert_close(log_prob_of_draws(q, p, q.sample()), -torch.stack(expected))


@for_each("decay", DECAYS)
@for_each("latent", [2, (2, 1)])
def test_residual_encoder_contract(decay, latent):
    torch.set_default_dtype(torch.float32)
    vq = encoder(latent, levels=2, decay=decay)
    with torch.no_grad():  # sums of float32 numbers that are the same in float64
        vq.codebook.mul_(256).round_().div_(256)
    prior = CodePrior(CODES, latent_dim=latent, num_quantizers=2)
    prior.logits.normal_()
    check_encoder(vq, torch.randn(5, DATA), prior=prior, spread=0.0)


# Training and files -------------------------------------------------------------------------------


@for_each("decay", DECAYS)
def test_fifty_steps_lower_the_loss(decay):
    vae, x = spatial().train(), binary(32, 1, 8, 8)
    vae.encoder = encoder((3, 2, 2), levels=2, decay=decay, network=ConvNet((1, 8, 8), (4, 5)))
    optimizer, losses = torch.optim.Adam(vae.parameters(), 1e-2), []
    for _ in range(50):
        losses.append(ELBO()(vae, Batch(x)).losses["model"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 3


def test_two_levels_reconstruct_digits_better_than_one():
    """With 16 codes at each of 2 x 2 positions, the squared errors are 1.9 and 2.9."""
    torch.set_default_dtype(torch.float32)
    x, latent = digits().images / 16, (8, 2, 2)
    errors = []
    for levels in (1, 2):
        torch.manual_seed(0)
        vq = encoder(latent, levels=levels, codes=16, network=ConvNet((1, 8, 8), (16, 32)))
        decoder = TransposedConvNet(latent, (1, 8, 8), (32, 16))
        prior = CodePrior(16, latent_dim=latent, num_quantizers=levels)
        vae = VAE(vq, decoder, GaussianLikelihood(0.1), prior)
        trainer = Trainer(vae, ELBO(), Optimization(learning_rate=5e-3), progress=False)
        trainer.fit(x[:1400], epochs=10, batch_size=64)
        found = vae.eval().reconstruct(x[1400:])
        errors.append((found - x[1400:]).square().flatten(1).sum(1).mean().item())
    assert errors[1] < 0.85 * errors[0]


# Errors -------------------------------------------------------------------------------------------


def test_num_quantizers_must_agree():
    for levels in (0, -1):
        with pytest.raises(ValueError, match=f"Encoder expects num_quantizers >= 1, got {levels}"):
            encoder(levels=levels)
        with pytest.raises(
            ValueError, match=f"CodePrior expects num_quantizers >= 1, got {levels}"
        ):
            CodePrior(CODES, latent_dim=2, num_quantizers=levels)
    vae, x = make().eval(), binary(5, DATA)
    message = "CodePrior.fit expects codes (N, *(3, 3)), got (5, 3): give vae.encode(x).codes"
    with pytest.raises(ValueError, match=re.escape(message)):
        vae.prior.fit(torch.zeros(5, 3, dtype=torch.long))
    for levels in (1, 2):
        vae.prior = CodePrior(CODES, latent_dim=(2, 3), num_quantizers=levels)
        message = f"num_quantizers={levels} from the encoder, got 3: give both the same"
        with pytest.raises(ValueError, match=message):
            vae.check(x)
    vae.prior = CodePrior(CODES + 1, latent_dim=(2, 3), num_quantizers=LEVELS)
    with pytest.raises(ValueError, match="CodePrior expects num_codes=5 from the encoder, got 4"):
        vae.check(x)
