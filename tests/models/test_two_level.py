import itertools
import math

import pytest
import torch
from helpers.oracles import gauss_hermite

from tinyvae import (
    ELBO,
    MLP,
    Batch,
    BernoulliLikelihood,
    GaussianEncoder,
    StandardNormal,
    Trainer,
    TwoLevelVAE,
    VampPrior,
    evaluate,
    log_marginal,
)
from tinyvae.encoders import DeterministicEncoder
from tinyvae.networks import ConcatContext
from tinyvae.priors import ConditionalPrior

DATA = 3


pytestmark = pytest.mark.usefixtures("float64")


def gaussian(inputs, latents):
    return GaussianEncoder(MLP(inputs, hidden=(7,)), latents)


def reading(inputs, context, latents):
    network = ConcatContext(MLP(inputs + context, hidden=(7,)), context_dim=context)
    return GaussianEncoder(network, latents)


def make(first=1, second=1, prior=None):
    return TwoLevelVAE(
        gaussian(DATA, second),
        bottom=reading(DATA, second, first),
        generator=gaussian(second, first),
        decoder=MLP(first + second, hidden=(7,), out_shape=DATA),
        likelihood=BernoulliLikelihood(),
        prior=prior,
    )


def binary(n):
    return torch.randint(0, 2, (n, DATA)).double()


def exact(vae, x):
    """log p(x) by quadrature over z2 and, standardized, over z1 given z2."""
    nodes, log_weights = gauss_hermite(40)
    with torch.no_grad():
        lower = vae.generator(nodes).base
        z1 = lower.mean[:, None] + lower.log_std.exp()[:, None] * nodes  # (z2, z1, 1)
        z2 = nodes[:, None].expand_as(z1)
        joined = torch.cat([z1, z2], 2).flatten(0, 1)
        log_px = vae.decode(joined[:, None]).log_prob(x).unflatten(0, (40, 40))
    return (log_px + log_weights[:, None, None] + log_weights[:, None]).logsumexp((0, 1))


def test_importance_weights_are_unbiased():
    vae, x = make(), torch.tensor(list(itertools.product([0.0, 1.0], repeat=DATA)))
    log_px = exact(vae, x)
    assert log_px.exp().sum().item() == pytest.approx(1, abs=1e-8)
    with torch.no_grad():
        weights = vae(x, num_samples=40_000).log_weight().exp()
    error = weights.std(0) / math.sqrt(len(weights))
    assert ((weights.mean(0) - log_px.exp()).abs() < 4.5 * error).all()
    elbo = evaluate(vae, x, elbo_samples=2000, importance_samples=None).elbo
    assert elbo.mean < log_px.mean().item()


def test_samples_have_the_frequencies_of_the_model():
    vae = make()
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=DATA)))
    probabilities = exact(vae, images).exp()
    draws = vae.sample(20_000)
    shares = (draws[:, None] == images).all(2).double().mean(0)
    error = (probabilities * (1 - probabilities) / 20_000).sqrt()
    assert ((shares - probabilities).abs() < 4.5 * error).all()


def test_log_weight_is_the_joint_log_weight():
    vae, x = make(2, 3), binary(5)
    output = vae(x, num_samples=4)
    low, top = output.latents
    by_hand = torch.zeros(4, 5)
    for k, b in itertools.product(range(4), range(5)):
        z1, z2 = low.z[k, b : b + 1], top.z[k, b : b + 1]
        by_hand[k, b] = (
            vae.decode(torch.cat([z1, z2], 1)).log_prob(x[b : b + 1])
            + vae.generator(z2).log_prob(z1)
            + StandardNormal(3)().log_prob(z2)
            - vae.top(x[b : b + 1]).log_prob(z2)
            - vae.bottom(x[b : b + 1], z2).log_prob(z1)
        ).item()
    torch.testing.assert_close(output.log_weight(), by_hand, rtol=1e-12, atol=1e-12)


def test_both_kls_have_closed_forms():
    vae, x = make(2, 3), binary(5)
    with torch.no_grad():
        low, _ = vae(x, num_samples=3).latents
        draws = low.posterior.sample((20_000,))
        ratio = low.posterior.log_prob(draws) - low.prior.log_prob(draws)
    error = ratio.mean(1).std(0) / math.sqrt(20_000)
    assert ((ratio.mean((0, 1)) - low.kl("analytic")).abs() < 4.5 * error).all()


def test_frozen_posterior_keeps_values_without_weight_gradients():
    vae, x = make(2, 3), binary(5)
    values = []
    for frozen in (False, True):
        torch.manual_seed(1)
        output = vae(x, num_samples=2, frozen_posterior=frozen)
        values.append(output.log_weight())
    torch.testing.assert_close(*values)
    score = output.latents[0].posterior.log_prob(output.latents[0].z.detach())
    weights = list(vae.bottom.parameters())
    gradients = torch.autograd.grad(score.sum(), weights, allow_unused=True)
    assert all(g is None or not g.any() for g in gradients)


def test_vamp_prior_on_top_trains_and_is_saved(tmp_path):
    vae, x = make(2, 3), binary(64)
    vae.prior = VampPrior.from_data(vae.top, x, num_components=8)
    before = vae.prior.inputs.detach().clone()
    history = Trainer(vae, ELBO(), progress=False).fit(x, epochs=2, batch_size=16)
    row = history.epochs[-1]
    total = row["train/kl_z1_nats"] + row["train/kl_z2_nats"]
    assert row["train/kl_nats"] == pytest.approx(total, rel=1e-5)
    assert not torch.equal(vae.prior.inputs, before)
    report = evaluate(vae, x, elbo_samples=64, importance_samples=500)
    assert report.is_bound
    assert report.elbo.mean <= report.log_marginal.mean
    assert vae.sample(6).shape == (6, DATA)
    assert vae.reconstruct(x).shape == x.shape
    vae.save(tmp_path / "vae.safetensors")
    twin = TwoLevelVAE.load(tmp_path / "vae.safetensors")
    assert repr(twin) == repr(vae.eval())
    assert torch.equal(log_marginal(twin, x, num_samples=3), log_marginal(vae, x, num_samples=3))


def test_two_level_vae_passes_the_context_to_every_part():
    vae = TwoLevelVAE(
        reading(DATA, 2, 3),
        bottom=reading(DATA, 3 + 2, 4),
        generator=reading(3, 2, 4),
        decoder=ConcatContext(MLP(4 + 3 + 2, (7,), DATA), context_dim=2),
        likelihood=BernoulliLikelihood(),
        prior=ConditionalPrior(gaussian(2, 3)),
    )
    x, context = binary(5), torch.randn(5, 2)
    vae.check(x, context)
    assert vae.sample(6, context).shape == (6, 5, DATA)
    output = vae(x, context, num_samples=2)
    assert output.log_weight().shape == (2, 5)
    gradients = torch.autograd.grad(output.log_weight().sum(), list(vae.parameters()))
    assert all(g.any() for g in gradients)


def test_two_level_vae_refuses_parts_that_do_not_fit():
    parts = {
        "top": gaussian(DATA, 3),
        "bottom": reading(DATA, 3, 2),
        "generator": gaussian(3, 2),
        "decoder": MLP(5),
        "likelihood": BernoulliLikelihood(),
    }
    cases = [
        ("generator", gaussian(3, 5), ValueError, r"generator of z1 over .* \(2,\), got .* \(5,\)"),
        (
            "prior",
            StandardNormal(4),
            ValueError,
            r"prior of z2 over .* \(3,\), got one over \(4,\)",
        ),
        (
            "generator",
            MLP(3),
            TypeError,
            "expects as generator an Encoder, got an instance of MLP",
        ),
    ]
    for name, part, error, message in cases:
        with pytest.raises(error, match=message):
            TwoLevelVAE(**{**parts, name: part})
    vae = make(2, 3)
    vae.generator = DeterministicEncoder(MLP(3), 2)
    assert not ELBO().is_bound(vae)
    with pytest.raises(ValueError, match=r"TwoLevelVAE expects x of shape \(B, 3\), got \(2, 9\)"):
        make(2, 3).check(torch.zeros(2, 9))
    assert "sampled" not in ELBO().check(make(2, 3), Batch(binary(4)))
