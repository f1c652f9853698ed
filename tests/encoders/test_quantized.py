import copy
import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from helpers.codebooks import binary, outputs, same, state
from torch import nn

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
    Optimization,
    StandardNormal,
    Trainer,
    TransposedConvNet,
    evaluate,
    log_marginal,
)
from tinyvae.core.module_state import preserved_statistics
from tinyvae.distributions import CodebookCategorical, Quantized
from tinyvae.encoders import FullGaussianEncoder, JointEncoder
from tinyvae.encoders.quantized import VectorQuantizedEncoder
from tinyvae.models import summary
from tinyvae.priors import JointPrior
from tinyvae.priors.codes import CodePrior

pytestmark = pytest.mark.usefixtures("float64")

CODES, DATA = 6, 4
DECAYS = [0.9, None]


def encoder(latent=(2, 3), *, decay=0.9, codes=CODES, network=None, **options):
    network = MLP(DATA, (7,), activation=nn.Tanh) if network is None else network
    return VectorQuantizedEncoder(
        network, num_codes=codes, latent_dim=latent, decay=decay, **options
    )


def make(latent=(2, 3), **options):
    decoder = MLP(latent, (7,), DATA, activation=nn.Tanh)
    num_quantizers = options.get("num_quantizers", 1)
    prior = CodePrior(options.get("codes", CODES), latent_dim=latent, num_quantizers=num_quantizers)
    return VAE(encoder(latent, **options), decoder, BernoulliLikelihood(), prior)


def spatial(num_quantizers=1):
    """Return a model with codes of (3,) at each of 2 x 2 positions."""
    latent = (3, 2, 2)
    vq = encoder(latent, network=ConvNet((1, 8, 8), (4, 5)), num_quantizers=num_quantizers)
    decoder = TransposedConvNet(latent, (1, 8, 8), (5, 4))
    prior = CodePrior(CODES, latent_dim=latent, num_quantizers=num_quantizers)
    return VAE(vq, decoder, BernoulliLikelihood(), prior)


def all_images():
    bits = torch.arange(2**DATA)[:, None] >> torch.arange(DATA)
    return (bits & 1).to(torch.get_default_dtype())


# The code -----------------------------------------------------------------------------------------


def test_nearest_code_against_brute_force():
    for scale in (1e-3, 1.0, 1e3):
        vq = encoder((3, 50), codes=40, network=nn.Flatten(), features=DATA).eval()
        with torch.no_grad():
            vq.codebook.mul_(scale)
            vq.head.weight.mul_(scale)
        x = torch.randn(20, DATA)
        rows = outputs(vq, x)
        with torch.no_grad():
            codes = vq(x).codes
        expected = np.linalg.norm(rows.numpy()[:, :, None] - vq.codebook.numpy(), axis=-1).argmin(2)
        assert np.array_equal(codes.numpy(), expected)
        assert len(codes.unique()) > 5


def test_spatial_codes():
    vae, x = spatial().eval(), binary(5, 1, 8, 8)
    assert isinstance(vae.encoder.head, nn.Conv2d)
    posterior = vae.encode(x)
    assert posterior.codes.shape == (5, 2, 2)
    z = posterior.mean
    for b, h, w in [(0, 0, 1), (4, 1, 0), (2, 1, 1)]:
        assert torch.equal(z[b, :, h, w], vae.encoder.codebook[posterior.codes[b, h, w]])
    assert vae.sample(7).shape == (7, 1, 8, 8)
    output = vae(x, num_samples=3)
    assert output.latents[0].z.shape == (3, 5, 3, 2, 2)
    assert torch.equal(output.log_weight()[0], output.log_weight()[2])


# Gradients ----------------------------------------------------------------------------------------


@for_each("decay", DECAYS)
@for_each("training", [True, False])
def test_codes_pass_gradients_straight_through(decay, training):
    """The gradient of the network is that of the decoder, as if its outputs were the codes."""
    vae, x = make(decay=decay).train(training), binary(5, DATA)
    vae(x)
    record = vae(x)
    params = list(vae.encoder.network.parameters()) + list(vae.encoder.head.parameters())
    found = torch.autograd.grad(record.log_px.sum(), params)
    code = record.latents[0].z[0].detach().requires_grad_()
    (at_code,) = torch.autograd.grad(vae.decode(code).log_prob(x).sum(), code)
    says = vae.encoder.params(vae.encoder.encode(x)).unflatten(1, (2, 3))
    expected = torch.autograd.grad(says, params, grad_outputs=at_code)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert any(g.any() for g in found)


def test_codebook_gradient_is_from_the_codebook_loss_only():
    vae, x = make(decay=None).eval(), binary(5, DATA)
    record, codebook = vae(x), vae.encoder.codebook
    for value in (record.log_px.sum(), record.losses()["z_commitment"].sum()):
        (grad,) = torch.autograd.grad(value, codebook, retain_graph=True, allow_unused=True)
        assert grad is None or not grad.any()
    kl = record.latents[0].kl()
    assert not kl.requires_grad
    own = record.losses()["z_codebook"].sum()
    found = torch.autograd.grad(own, codebook, retain_graph=True)[0]
    rows, codes = outputs(vae.encoder, x), record.latents[0].posterior.codes
    expected = torch.zeros_like(codebook).detach()
    expected.index_add_(0, codes.flatten(), 2 * (codebook[codes] - rows).detach().reshape(-1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    head = vae.encoder.head.weight
    assert torch.autograd.grad(own, head, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(record.losses()["z_commitment"].sum(), head)[0].any()
    vae.zero_grad()
    ELBO()(vae, Batch(x)).losses["model"].backward()
    torch.testing.assert_close(codebook.grad, found / 5, rtol=1e-12, atol=1e-13)


def test_averaged_codes_have_no_gradient():
    vae, x = make(decay=0.9), binary(5, DATA)
    assert "encoder.codebook" not in dict(vae.named_parameters())
    assert "z_codebook" not in vae(x).losses()
    ELBO()(vae, Batch(x)).losses["model"].backward()
    assert all(p.grad is not None and p.grad.any() for p in vae.parameters())


# Losses -------------------------------------------------------------------------------------------


@for_each("decay", DECAYS)
def test_quantization_losses_agree_with_formulas(decay):
    vae, x = make(decay=decay, commitment=0.7).eval(), binary(5, DATA)
    rows, codes = outputs(vae.encoder, x).numpy(), vae.encode(x).codes.numpy()
    codebook = vae.encoder.codebook.detach().numpy()
    squares = ((rows - codebook[codes]) ** 2).sum((1, 2))  # over S and C
    losses = {name: value.detach().numpy() for name, value in vae(x).losses().items()}
    assert losses.keys() == {"z_commitment", "z_codebook"} - ({"z_codebook"} if decay else set())
    np.testing.assert_allclose(losses["z_commitment"], 0.7 * squares, rtol=1e-12)
    if decay is None:
        np.testing.assert_allclose(losses["z_codebook"], squares, rtol=1e-12)
    shares = np.bincount(codes.ravel(), minlength=CODES) / codes.size
    entropy = -sum(p * np.log(p) for p in shares if p > 0)
    metrics = vae(x).metrics()
    assert metrics.keys() == {"z_perplexity"}
    assert metrics["z_perplexity"].item() == pytest.approx(np.exp(entropy), abs=1e-12)
    assert 1 <= metrics["z_perplexity"] <= CODES


@for_each("decay", DECAYS)
def test_quantization_losses_are_per_example(decay):
    """The losses do not depend on the batch size (in pythae the commitment does)."""
    vae, x = make(decay=decay).eval(), binary(1, DATA)
    one = vae(x)
    metrics = ELBO()(vae, Batch(x)).metrics
    for batch in (8, 64):
        many = vae(x.repeat(batch, 1))
        for name, value in many.losses().items():
            assert value.shape == (batch,)
            torch.testing.assert_close(value, one.losses()[name].expand(batch))
        for name, value in ELBO()(vae, Batch(x.repeat(batch, 1))).metrics.items():
            torch.testing.assert_close(value, metrics[name], rtol=1e-12, atol=1e-13)
    x = binary(12, DATA)
    whole = vae(x).losses()
    for name, value in whole.items():
        parts = torch.cat([vae(part).losses()[name] for part in x.split(5)])
        torch.testing.assert_close(parts, value, rtol=1e-12, atol=1e-13)


@for_each("decay", DECAYS)
@for_each("beta", [1.0, 4.0])
def test_elbo_adds_quantization_losses_to_the_loss_only(decay, beta):
    vae, x = make(decay=decay).eval(), binary(5, DATA)
    output = ELBO(beta)(vae, Batch(x))
    m = output.metrics
    extra = sum(value.mean() for value in vae(x).losses().values())
    loss = beta * m["kl_nats"] - m["log_likelihood_nats"] + extra
    assert output.losses["model"].item() == pytest.approx(loss.item(), abs=1e-12)
    elbo = m["log_likelihood_nats"] - m["kl_nats"]
    assert m["elbo_nats"].item() == pytest.approx(elbo.item(), abs=1e-12)
    names = {"z_commitment", "z_perplexity"} | (set() if decay else {"z_codebook"})
    assert names <= m.keys()
    assert m["z_commitment"].item() == vae(x).losses()["z_commitment"].mean().item() > 0
    assert not any(value.requires_grad for value in m.values())


# Averages -----------------------------------------------------------------------------------------


def test_moving_averages_agree_with_numpy():
    vq = encoder(decay=0.8, restart_below=0.0).train()
    codebook, usage, sums = vq.codebook.numpy().copy(), np.zeros(CODES), np.zeros((CODES, 2))
    for n in range(1, 9):  # of the first 1 / (1 - 0.8) = 5 batches alike
        x = 2 * torch.randn(9, DATA)
        rows = outputs(vq, x).numpy().reshape(-1, 2)
        codes = ((rows[:, None] - codebook) ** 2).sum(-1).argmin(1)
        assert np.array_equal(vq(x).codes.numpy().ravel(), codes)
        one_hot, weight = np.eye(CODES)[codes], max(1 / n, 0.2)
        usage = (1 - weight) * usage + weight * one_hot.sum(0)
        sums = (1 - weight) * sums + weight * one_hot.T @ rows
        used = usage > 0
        codebook[used] = sums[used] / usage[used, None]
        np.testing.assert_allclose(vq.usage.numpy(), usage, rtol=1e-12)
        np.testing.assert_allclose(vq.codebook.numpy(), codebook, rtol=1e-10)
    assert used.sum() > 1


def test_zero_decay_gives_the_batch_mean():
    vq = encoder(decay=0.0, restart_below=0.0).train()
    for _ in range(3):
        x = torch.randn(9, DATA)
        rows, before = outputs(vq, x).reshape(-1, 2), vq.codebook.clone()
        codes = vq(x).codes.flatten()
        for k in range(CODES):
            own = rows[codes == k]
            torch.testing.assert_close(vq.codebook[k], own.mean(0) if len(own) else before[k])
        assert torch.equal(vq.usage, torch.bincount(codes, minlength=CODES).double())


@for_each("decay", DECAYS)
def test_codebook_moves_in_forward_and_not_in_draws(decay):
    vq, x = encoder(decay=decay).train(), torch.randn(9, DATA)
    before = state(vq)
    posterior = vq(x)
    after = state(vq)
    assert not torch.equal(after["usage"], before["usage"])
    assert after["num_batches"] == 1
    posterior.sample()
    posterior.sample((3,))
    posterior.log_prob(posterior.mean)
    vq.posterior(vq.encode(x))
    assert same(state(vq), after)


def test_preserved_statistics_suspends_codebook_updates():
    vq, x = encoder().train(), torch.randn(9, DATA)
    before = state(vq)
    with preserved_statistics(vq):
        vq(x)
    assert same(state(vq), before)
    assert vq.track_running_stats


@for_each("decay", DECAYS)
@for_each(
    "call",
    [
        lambda vae, x: vae.eval()(x),
        lambda vae, x: evaluate(vae, x, elbo_samples=2, importance_samples=2),
        lambda vae, x: log_marginal(vae, x, num_samples=2),
        lambda vae, x: vae.check(x),
        lambda vae, x: ELBO().check(vae, Batch(x)),
        lambda vae, x: vae.reconstruct(x),
        lambda vae, _: vae.sample(3),
        lambda vae, _: summary(vae),
        lambda vae, x: torch.no_grad()(vae)(x),
        lambda vae, x: torch.no_grad()(vae.encode)(x),
    ],
)
@for_each("num_quantizers", [1, 3])
def test_codebook_moves_only_in_training(decay, call, num_quantizers):
    vae, x = make(decay=decay, num_quantizers=num_quantizers).train(), binary(9, DATA)
    vae(x)
    before = state(vae)
    call(vae, x)
    assert same(state(vae), before)
    vae.train()(1 - x)
    levels = zip(vae.encoder.usage, before["encoder.usage"], strict=True)
    if num_quantizers > 1:
        assert all(not torch.equal(now, old) for now, old in levels)
    else:
        assert not torch.equal(vae.encoder.usage, before["encoder.usage"])


def test_codebook_does_not_move_in_validation():
    x = binary(32, DATA)
    states = []
    for validation in (None, binary(16, DATA)):
        torch.manual_seed(0)
        vae = make()
        Trainer(vae, ELBO(), progress=False).fit(x, validation, epochs=3, batch_size=8)
        states.append(state(vae))
    assert same(*states)


# Restarts -----------------------------------------------------------------------------------------


@for_each("decay", DECAYS)
def test_dead_codes_restart_and_live_codes_stay(decay):
    vq = encoder(decay=decay, restart_below=0.5).train()
    x = torch.randn(8, DATA)
    rows = outputs(vq, x).reshape(-1, 2)
    equal, memory = len(rows) / CODES, 0.99 if decay is None else decay
    vq.num_batches.fill_(1000)
    vq.usage.copy_(equal * torch.tensor([20.0, 0.3, 10.0, 0.0, 15.0, 0.2]))
    with torch.no_grad():
        vq.codebook[[1, 3, 5]] += 50  # nothing is near
    before, old = vq.codebook.detach().clone(), vq.usage.clone()
    codes = vq(x).codes.flatten()
    one_hot = nn.functional.one_hot(codes, CODES).double()
    usage = memory * old + (1 - memory) * one_hot.sum(0)
    dead = torch.tensor([False, True, False, True, False, True])
    assert torch.equal(usage < 0.5 * equal, dead)
    after = vq.codebook.detach()
    mass = memory * old[:, None] * before + (1 - memory) * one_hot.T @ rows
    averages = mass / usage[:, None]
    expected = before if decay is None else averages
    torch.testing.assert_close(after[~dead], expected[~dead], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(vq.usage[~dead], usage[~dead])
    torch.testing.assert_close(vq.usage[dead], torch.full((3,), equal))
    assert all((rows == code).all(1).any() for code in after[dead])
    assert vq.codebook.requires_grad == (decay is None)


@for_each("decay", DECAYS)
def test_distant_codes_restart_at_the_first_batch(decay):
    vq = encoder(decay=decay).train()
    with torch.no_grad():
        vq.codebook.add_(100)
    x = torch.randn(50, DATA)
    rows = outputs(vq, x).reshape(-1, 2)
    assert len(vq(x).codes.unique()) < 4
    moved = vq.codebook.detach()
    near = [bool((rows - code).abs().amax(1).min() < 1e-12) for code in moved]
    assert sum(near) >= CODES - 3
    assert len(vq(x).codes.unique()) >= 3


def test_restart_below_zero_disables_restarts():
    vq = encoder(decay=0.9, restart_below=0.0).train()
    before = vq.codebook.clone()
    codes = vq(torch.randn(8, DATA)).codes.unique()
    unused = [k for k in range(CODES) if k not in codes]
    assert unused
    assert torch.equal(vq.codebook[unused], before[unused])
    assert not vq.usage[unused].any()
    assert vq.codebook.isfinite().all()


def test_restarts_draw_from_the_default_generator():
    x, found = torch.randn(8, DATA), []
    vq = encoder().train()
    first = state(vq)
    for _ in range(2):
        vq.load_state_dict(first)
        torch.manual_seed(3)
        vq(x)
        found.append(state(vq))
    assert same(*found)


# The bound ----------------------------------------------------------------------------------------


def log_evidence(vae, x):
    """Return log p(x) by a sum over all sequences of codes."""
    positions = vae.prior.logits.shape[1:].numel()
    grid = torch.cartesian_prod(*[torch.arange(CODES)] * positions).reshape(-1, positions)
    z = vae.encoder.codebook.detach()[grid].movedim(-1, 1)  # (n, C, S)
    log_p = vae.prior.logits.log_softmax(0)  # (J, S)
    log_p = log_p[grid, torch.arange(positions)].sum(1)
    return (vae.decode(z[:, None]).log_prob(x) + log_p[:, None]).logsumexp(0)


@for_each("decay", DECAYS)
@for_each("fitted", [False, True])
def test_elbo_is_a_bound_on_the_enumerated_evidence(decay, fitted):
    vae, x = make(decay=decay).eval(), all_images()
    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            parameter.mul_(2)
    if fitted:
        vae.prior.fit(vae.encode(x[:5]).codes)
    with torch.no_grad():
        output = vae(x, num_samples=2)
        exact = log_evidence(vae, x)
    (term,) = output.latents
    elbo = output.log_px.mean(0) - term.kl()
    if not fitted:
        torch.testing.assert_close(term.kl(), torch.full((16,), 3 * math.log(CODES)))
    torch.testing.assert_close(term.kl("sample"), term.kl("analytic"), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output.log_weight(), elbo.expand(2, 16), rtol=1e-12, atol=1e-12)
    assert (elbo < exact).all()
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-12)
    found = log_marginal(vae, x, num_samples=3)
    torch.testing.assert_close(found, elbo, rtol=1e-12, atol=1e-12)
    assert (vae.check(x).log_weight()[0] - elbo[:2]).abs().max() < 1e-12
    assert ELBO().check(vae, Batch(x)).endswith("analytic KL: a lower bound on log p(x)")
    assert evaluate(vae, x, importance_samples=2).is_bound


def test_frozen_posterior_changes_nothing_in_evaluation():
    vae, x = make().eval(), binary(5, DATA)
    grads = []
    for frozen in (False, True):
        log_weight = vae(x, frozen_posterior=frozen).log_weight()
        grads.append(torch.autograd.grad(log_weight.sum(), list(vae.parameters())))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


# The prior ----------------------------------------------------------------------------------------


def test_fit_gives_smoothed_frequencies():
    vae, x = make().eval(), binary(40, DATA)
    codes = vae.encode(x).codes
    uniform = ELBO()(vae, Batch(x)).metrics["elbo_nats"].item()
    vae.prior.fit(codes)
    counts = np.stack([np.bincount(codes[:, s], minlength=CODES) for s in range(3)], 1)
    expected = (counts + 1) / (counts + 1).sum(0)
    np.testing.assert_allclose(vae.prior.logits.softmax(0), expected, rtol=1e-12)
    assert ELBO()(vae, Batch(x)).metrics["elbo_nats"].item() > uniform + 0.1
    kl = -np.log(expected[codes.numpy(), np.arange(3)]).sum(1)
    np.testing.assert_allclose(vae(x).latents[0].kl(), kl, rtol=1e-12)
    z = vae.generate(20_000, None)  # (n, C, S)
    distances = (z.movedim(1, -1)[:, :, None] - vae.encoder.codebook).abs().sum(-1)
    assert not distances.amin(-1).any()
    found = np.stack([np.bincount(d, minlength=CODES) for d in distances.argmin(-1).T], 1) / 20_000
    error = np.sqrt(expected * (1 - expected) / 20_000)
    assert (np.abs(found - expected) < 4.5 * error).all()


def test_code_prior_uses_the_codebook():
    vae = make().eval()
    prior = vae.prior(encoder=vae.encoder)
    assert isinstance(prior, CodebookCategorical)
    assert isinstance(vae.encode(binary(2, DATA)), Quantized)
    z = vae.generate(5, None)
    expected = torch.full((5,), -3 * math.log(CODES))
    torch.testing.assert_close(prior.log_prob(z), expected)
    assert (prior.log_prob(z + 1e-9) == -math.inf).all()
    vae.prior.logits.normal_()
    p = vae.prior.logits.softmax(0)
    torch.testing.assert_close(prior.mean, torch.einsum("js,jc->cs", p, vae.encoder.codebook))
    assert torch.equal(prior.point_estimate(), vae.encoder.codebook[p.argmax(0)].T)
    draws = prior.sample((20_000,))
    assert (draws.mean(0) - prior.mean).abs().max() < 0.1


def test_sample_given_a_context():
    class WithContext(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.linear = nn.Linear(size + 1, DATA)

        def forward(self, x, context):
            return self.linear(torch.cat([x.flatten(1), context], 1))

    vq = encoder(network=WithContext(DATA), features=DATA)
    vae = VAE(vq, WithContext(6), BernoulliLikelihood(), CodePrior(CODES, latent_dim=(2, 3)))
    x, context = binary(5, DATA), torch.randn(5, 1)
    vae(x, context)
    vae.eval()
    assert vae.sample(7, context).shape == (7, 5, DATA)
    assert vae.reconstruct(x, context).shape == (5, DATA)
    assert evaluate(vae, x, context, elbo_samples=2, importance_samples=2).is_bound


# Training -----------------------------------------------------------------------------------------


@for_each("decay", DECAYS)
def test_training_uses_the_codes_and_lowers_the_loss(decay):
    """The data are eight blobs. The codebook of eight codes starts far away."""
    torch.manual_seed(2)
    centers = 3 * torch.randn(8, DATA)
    x = centers[torch.randint(8, (512,))] + 0.1 * torch.randn(512, DATA)
    vq = encoder((2,), decay=decay, codes=8)
    with torch.no_grad():
        vq.codebook.add_(100)
    vae = VAE(vq, MLP(2, (16,), DATA), GaussianLikelihood(0.5), CodePrior(8, latent_dim=2))
    trainer = Trainer(vae, ELBO(), Optimization(learning_rate=5e-3), progress=False)
    epochs = 60 if decay is None else 30  # use is averaged over 100 batches, or 10
    history = trainer.fit(x, x[:128], epochs=epochs, batch_size=64)
    elbo = history["validation/elbo_nats"]
    assert elbo[-1] > elbo[0] + 5
    assert history["train/z_perplexity"][-1] > 4
    assert len(history["validation/z_commitment"]) == epochs
    with torch.no_grad():
        codes = vae.eval().encode(x).codes
    assert len(codes.unique()) > 4
    assert evaluate(vae, x, importance_samples=None).elbo.mean < 0


# Files, words, copies -----------------------------------------------------------------------------


@for_each("num_quantizers", [1, 2])
@for_each("build", [make, partial(make, decay=None), partial(make, (2,)), spatial])
@for_each("dtype", [torch.float32, torch.float64])
def test_file_round_trip_is_bitwise(build, dtype, num_quantizers, tmp_path):
    vae = build(num_quantizers=num_quantizers).to(dtype).train()
    x = binary(9, *((1, 8, 8) if build is spatial else (DATA,))).to(dtype)
    for _ in range(3):
        vae(x)
    with torch.no_grad():
        vae.prior.logits.normal_()
    vae.save(tmp_path / "vae")
    loaded = VAE.load(tmp_path / "vae")
    states = state(vae), state(loaded)
    assert {"encoder.codebook", "encoder.usage", "prior.logits"} <= states[0].keys()
    assert same(*states)
    assert all(t.dtype == states[1][n].dtype for n, t in states[0].items())
    assert repr(loaded) == repr(vae)
    assert loaded.prior.num_quantizers == num_quantizers
    options = ("commitment", "decay", "restart_below", "num_quantizers")
    assert all(getattr(loaded.encoder, o) == getattr(vae.encoder, o) for o in options)
    vae.eval()
    assert torch.equal(loaded(x).log_weight(), vae(x).log_weight())
    assert torch.equal(loaded.reconstruct(x), vae.reconstruct(x))
    assert torch.equal(loaded.encode(x).codes, vae.encode(x).codes)
    assert loaded.encoder.codebook.requires_grad == vae.encoder.codebook.requires_grad


def test_copied_model_is_independent():
    vae, x = make().train(), binary(9, DATA)
    vae(x)
    twin, before = copy.deepcopy(vae), state(vae)
    twin(1 - x)
    assert same(state(vae), before)
    assert not same(state(twin), before)


@for_each("decay", DECAYS)
def test_batch_of_one_and_integers(decay):
    vae = make(decay=decay).train()
    output = ELBO(num_samples=3)(vae, Batch(binary(1, DATA).long()))
    assert output.losses["model"].isfinite()
    output.losses["model"].backward()


# Errors -------------------------------------------------------------------------------------------


@for_each(
    ("options", "message"),
    [
        ({"codes": 1}, "VectorQuantizedEncoder expects num_codes >= 2, got 1"),
        ({"decay": 1.0}, "expects 0 <= decay < 1 or None, got 1.0"),
        ({"decay": -0.1}, "expects 0 <= decay < 1 or None, got -0.1"),
        ({"commitment": -1.0}, "expects commitment and restart_below >= 0"),
        ({"restart_below": -1.0}, "expects commitment and restart_below >= 0"),
        ({"latent": 0}, "VectorQuantizedEncoder expects latent_dim >= 1, got 0"),
    ],
)
def test_vector_quantized_encoder_rejects_invalid_arguments(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        encoder(**options)


def test_code_prior_names_the_remedy():
    vae = make().eval()
    with pytest.raises(ValueError, match=r"fit expects codes \(N, \*\(3,\)\), got \(5, 2\): give"):
        vae.prior.fit(torch.zeros(5, 2, dtype=torch.long))
    with pytest.raises(
        ValueError, match=r"expects the codebook of a Vector.*, got NoneType: call prior"
    ):
        vae.prior()
    gaussian = GaussianEncoder(MLP(DATA), (2, 3))
    wrong = VAE(
        gaussian,
        MLP((2, 3), out_shape=DATA),
        BernoulliLikelihood(),
        CodePrior(6, latent_dim=(2, 3)),
    )
    with pytest.raises(ValueError, match="got GaussianEncoder: call prior"):
        wrong.check(binary(2, DATA))
    with pytest.raises(ValueError, match=r"latents \(2, 3\), got one over \(2, 4\)"):
        VAE(encoder(), vae.decoder, BernoulliLikelihood(), CodePrior(CODES, latent_dim=(2, 4)))
    normal = VAE(encoder(), vae.decoder, BernoulliLikelihood(), StandardNormal((2, 3)))
    with pytest.raises(ValueError, match="over codes, its prior over reals"):
        normal.check(binary(2, DATA))


# Regressions --------------------------------------------------------------------------------------


@for_each("call", ["fit", "sample"])
def test_codes_without_positions(call):
    vae, x = make((2,)).eval(), binary(20, DATA)
    if call == "sample":
        assert vae.sample(7).shape == (7, DATA)
    else:
        codes = vae.encode(x).codes
        vae.prior.fit(codes)
        counts = np.bincount(codes, minlength=CODES) + 1
        np.testing.assert_allclose(vae.prior.logits.softmax(0), counts / counts.sum())


def test_weights_in_training_are_finite():
    vae = make().train()
    for _ in range(3):
        output = vae(binary(9, DATA))
        (term,) = output.latents
        assert output.log_weight().isfinite().all()
        torch.testing.assert_close(term.kl("sample"), term.kl("analytic"))


def test_frozen_posterior_in_training():
    vae, x = make().train(), binary(9, DATA)
    vae(x)
    twin = copy.deepcopy(vae)
    torch.manual_seed(0)
    vae(x)
    torch.manual_seed(0)
    output = twin(x, frozen_posterior=True)
    assert not output.latents[0].log_q.any()
    assert same(state(vae), state(twin))


def test_autocast_with_averages():
    vae, x = make().float().train(), binary(300, DATA).float()
    with torch.autocast("cpu", torch.bfloat16):
        output = ELBO()(vae, Batch(x))
    output.losses["model"].backward()
    assert vae.encoder.codebook.dtype == torch.float32


def test_autocast_counts_exactly():
    vae = make((2,), decay=None, codes=2).float().train()
    with torch.no_grad():  # everything is nearest to the first code
        vae.encoder.codebook.copy_(torch.tensor([[0.0, 0.0], [1e3, 1e3]]))
        vae.encoder.usage.fill_(500.0)
        vae.encoder.num_batches.fill_(1000)
    with torch.autocast("cpu", torch.bfloat16):
        vae.encoder(binary(257, DATA).float())
    torch.testing.assert_close(vae.encoder.usage, torch.tensor([0.99 * 500 + 2.57, 495.0]).float())


def test_codes_with_a_density_prior_are_refused():
    vae, x = make().eval(), binary(5, DATA)
    vae.prior = StandardNormal((2, 3))
    with pytest.raises(ValueError, match=r"over codes, its prior over reals.*CodePrior"):
        ELBO().check(vae, Batch(x))


@for_each("codes", [CODES - 1, CODES + 1])
def test_code_prior_refuses_another_number_of_codes(codes):
    vae = make().eval()
    vae.prior = CodePrior(codes, latent_dim=(2, 3))
    with pytest.raises(ValueError, match=f"CodePrior expects num_codes={codes} .*, got {CODES}"):
        vae.check(binary(5, DATA))


@for_each("kind", ["joint", "bottom-up"])
def test_losses_pass_through_wrappers(kind):
    codes = encoder((2, 1))
    if kind == "joint":
        both = JointEncoder({"codes": codes, "style": GaussianEncoder(MLP(DATA, (7,)), 2)})
        vae = VAE(both, MLP(4, (7,), DATA), BernoulliLikelihood())
    else:
        low = GaussianEncoder(MLP(DATA, (7,)), 3)
        top = encoder((2, 1), network=MLP(3, (7,)))
        up = FullGaussianEncoder(MLP((2, 1), (7,)), 3)
        prior = CodePrior(CODES, latent_dim=(2, 1))
        vae = BottomUpVAE([low, top], [up], MLP(3, (7,), DATA), BernoulliLikelihood(), prior)
    output = vae.eval()(binary(5, DATA))
    assert [name for name in output.losses() if name.endswith("commitment")]
    assert [name for name in output.metrics() if name.endswith("perplexity")]


def test_codes_with_another_latent():
    both = {"codes": encoder((2, 1)), "style": GaussianEncoder(MLP(DATA, (7,)), 2)}
    prior = JointPrior({"codes": CodePrior(CODES, latent_dim=(2, 1)), "style": StandardNormal(2)})
    vae = VAE(JointEncoder(both), MLP(4, (7,), DATA), BernoulliLikelihood(), prior).eval()
    x = binary(5, DATA)
    metrics = ELBO()(vae, Batch(x)).metrics
    assert {"kl_codes_nats", "kl_style_nats", "codes_commitment"} <= metrics.keys()
    assert metrics["kl_codes_nats"].item() == pytest.approx(math.log(CODES))
    assert vae.sample(3).shape == (3, DATA)


def test_frozen_posterior_of_codes_above_another_layer():
    low = GaussianEncoder(MLP(DATA, (7,)), 3)
    top = encoder((2, 1), network=MLP(3, (7,)))
    up = FullGaussianEncoder(MLP((2, 1), (7,)), 3)
    prior = CodePrior(CODES, latent_dim=(2, 1))
    vae = BottomUpVAE([low, top], [up], MLP(3, (7,), DATA), BernoulliLikelihood(), prior).train()
    for _ in range(3):
        assert vae(binary(5, DATA), frozen_posterior=True).log_weight().isfinite().all()


def test_unused_codes_do_not_move():
    vae = make((2,), decay=0.5, codes=2, restart_below=0.0).train()
    with torch.no_grad():
        vae.encoder.codebook.copy_(torch.tensor([[0.0, 0.0], [50.0, 50.0]]))
    for _ in range(60):
        vae.encoder(binary(9, DATA))
    assert vae.encoder.codebook[1].tolist() == [50, 50]


def test_encode_of_a_model_never_moves_the_codebook():
    encoder = VectorQuantizedEncoder(MLP(4, (8,)), num_codes=5, latent_dim=2)
    vae = VAE(encoder, MLP(2, (8,), 4), BernoulliLikelihood(), CodePrior(5, latent_dim=2)).train()
    before, x = state(vae), binary(16, 4)
    vae.encode(x)
    assert same(before, state(vae))
    vae.encoder(x)  # in training mode the encoder itself moves it
    assert not same(before, state(vae))
