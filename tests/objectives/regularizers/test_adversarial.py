"""Regularizers with a discriminator: each side is trained on its own loss only."""

import itertools
import math

import numpy as np
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
    GaussianLikelihood,
    Optimization,
    Trainer,
)
from tinyvae.encoders import DeterministicEncoder
from tinyvae.networks import ConcatContext
from tinyvae.objectives import (
    PIWAE,
    AdversarialPriorRegularizer,
    AdversarialTotalCorrelationRegularizer,
    MMDRegularizer,
    VAEGANRegularizer,
)
from tinyvae.objectives.regularizers.adversarial import permute_dims
from tinyvae.objectives.regularizers.moments import gaussian_kernel

pytestmark = pytest.mark.usefixtures("float64")

DATA, LATENT = 5, 2


def mlp(in_shape, out_shape=None, width=6):
    return MLP(in_shape, hidden=(width,), out_shape=out_shape, activation=nn.Tanh)


def small_vae(context=0):
    def reading(network):
        return ConcatContext(network, context_dim=context) if context else network

    encoder = GaussianEncoder(reading(mlp(DATA + context)), LATENT)
    return VAE(encoder, reading(mlp(LATENT + context, DATA)), GaussianLikelihood(0.4))


def points():
    """An autoencoder whose latents are the data."""
    encoder = DeterministicEncoder(nn.Identity(), LATENT, features=LATENT)
    with torch.no_grad():
        encoder.head.weight.copy_(torch.eye(LATENT))
        encoder.head.bias.zero_()
    return VAE(encoder, MLP(LATENT, hidden=(), out_shape=LATENT), GaussianLikelihood(1.0))


REGULARIZERS = {
    "total correlation": lambda **o: AdversarialTotalCorrelationRegularizer(
        mlp(LATENT, 1),
        weight=1.7,
        **o,
    ),
    "prior": lambda **o: AdversarialPriorRegularizer(mlp(LATENT, 1), weight=1.7, **o),
    "data": lambda **o: VAEGANRegularizer(
        mlp(DATA), num_features=6, weight=1.7, similarity=0.6, **o
    ),
}


def softplus(values):
    return np.log1p(np.exp(-np.abs(values))) + np.maximum(values, 0)


def layers(network, values):
    """Return the hidden layer and the output of a network with one hidden layer."""
    first, *rest = (m for m in network.modules() if isinstance(m, nn.Linear))
    hidden = np.tanh(values @ first.weight.detach().numpy().T + first.bias.detach().numpy())
    if not rest:
        return hidden, None
    return hidden, hidden @ rest[0].weight.detach().numpy().T + rest[0].bias.detach().numpy()


def run(regularizer, vae, batch, num_samples=1):
    """Return the output of a pass, and the regularizer's output with the noise of seed 5."""
    record = vae(batch.x, batch.context, num_samples=num_samples)
    torch.manual_seed(5)
    return record, regularizer(vae, batch, record)


def parameter_gradients(loss, parameters):
    return torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)


# Values -------------------------------------------------------------------------------------------


def test_permute_dims_keeps_the_values_of_each_dimension():
    z = torch.randn(3, 7, 2, 2)
    shuffled = permute_dims(z)
    assert torch.equal(shuffled.sort(1).values, z.sort(1).values)
    assert (shuffled != z).any()


def test_permute_dims_is_uniform_and_independent():
    """All 36 pairs of orders of three examples in two dimensions are equally frequent."""
    num = 72_000
    z = torch.arange(6.0).reshape(1, 3, 2).expand(num, 3, 2)
    shuffled = permute_dims(z).long()
    counts = dict.fromkeys(itertools.product(itertools.permutations(range(3)), repeat=2), 0)
    for first, second in (shuffled // 2).movedim(2, 1).tolist():
        counts[tuple(first), tuple(second)] += 1
    assert len(counts) == 36
    error = math.sqrt(num * (1 / 36) * (35 / 36))
    assert max(abs(count - num / 36) for count in counts.values()) < 4 * error


@for_each("num_samples", [1, 3])
def test_adversarial_losses_agree_with_numpy(num_samples):
    vae, batch = small_vae(), Batch(torch.randn(7, DATA))
    for name in ("total correlation", "prior"):
        regularizer = REGULARIZERS[name]()
        record, penalty = run(regularizer, vae, batch, num_samples)
        z = record.latents[0].z.detach()
        torch.manual_seed(5)
        if name == "prior":
            first, second = vae.prior().sample((num_samples, 7)), z
        else:
            first, second = z, permute_dims(z)
        one, zero = (
            layers(regularizer.discriminator, v.flatten(0, 1).numpy())[1] for v in (first, second)
        )
        value = softplus(-zero).mean() if name == "prior" else one.mean()
        assert penalty.loss.item() == pytest.approx(1.7 * value, rel=1e-12)
        adversary = 0.5 * softplus(-one).mean() + 0.5 * softplus(zero).mean()
        assert penalty.adversary.item() == pytest.approx(adversary, rel=1e-12)
        hits = 0.5 * (one > 0).mean() + 0.5 * (zero < 0).mean()
        assert penalty.metrics["discriminator_accuracy"].item() == pytest.approx(hits, rel=1e-12)


@for_each("num_samples", [1, 3])
@for_each("context", [0, 3])
def test_vae_gan_losses_agree_with_numpy(num_samples, context):
    vae = small_vae(context)
    batch = Batch(torch.randn(7, DATA), torch.randn(7, context) if context else None)
    regularizer = REGULARIZERS["data"]()
    record, penalty = run(regularizer, vae, batch, num_samples)
    z = record.latents[0].z.detach().numpy()
    torch.manual_seed(5)
    y = torch.randn(num_samples, 7, LATENT).numpy()

    def decoded(latents):
        if context:
            given = np.broadcast_to(batch.context.numpy(), (num_samples, 7, context))
            latents = np.concatenate([latents, given], 2)
        return layers(vae.decoder, latents)[1]

    head = regularizer.discriminator[-1]

    def log_odds(x):
        features, _ = layers(regularizer.discriminator[0], x)
        return features @ head.weight.detach().numpy().T + head.bias.detach().numpy()

    fakes = np.stack([log_odds(decoded(z)), log_odds(decoded(y))])
    true, made = (layers(regularizer.discriminator[0], x)[0] for x in (batch.x.numpy(), decoded(z)))
    distance = 0.5 * ((made - true) ** 2).sum(-1).mean()
    loss = 1.7 * softplus(-fakes).mean() + 0.6 * distance
    assert penalty.loss.item() == pytest.approx(loss, rel=1e-12)
    real = log_odds(batch.x.numpy())
    adversary = 0.5 * softplus(-real).mean() + 0.5 * softplus(fakes).mean()
    assert penalty.adversary.item() == pytest.approx(adversary, rel=1e-12)
    hits = 0.5 * (real > 0).mean() + 0.5 * (fakes < 0).mean()
    assert penalty.metrics["discriminator_accuracy"].item() == pytest.approx(hits, rel=1e-12)


# Whose gradient is whose --------------------------------------------------------------------------


@for_each("name", REGULARIZERS)
@for_each("order", [("model", "discriminator"), ("discriminator", "model")])
def test_adversarial_backward_passes_do_not_mix(name, order):
    """Without zero_grad between the passes, each side still has the gradient of its own loss."""
    vae, batch = small_vae(), Batch(torch.randn(7, DATA))
    objective = ELBO() + REGULARIZERS[name]()
    groups = objective.parameter_groups(vae)
    torch.manual_seed(3)
    output = objective(vae, batch)
    expected = {n: parameter_gradients(output.losses[n], groups[n]) for n in groups}
    others = {"model": "discriminator", "discriminator": "model"}
    for group, other in others.items():
        leaked = parameter_gradients(output.losses[group], groups[other])
        assert not any(g.any() for g in leaked)
    for group in order:
        output.losses[group].backward(retain_graph=True)
    for group, parameters in groups.items():
        for parameter, gradient in zip(parameters, expected[group], strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-15)
        assert all(g.any() for g in expected["discriminator"])


@for_each("name", REGULARIZERS)
def test_trainer_steps_each_side_on_its_own_loss(name):
    """One SGD step moves each parameter along the gradient of the loss of its group."""
    x, seen = torch.randn(8, DATA), {}
    vae, regularizer = small_vae(), REGULARIZERS[name]()
    objective = ELBO() + regularizer
    groups = {n: list(g) for n, g in objective.parameter_groups(vae).items()}
    start = {n: [p.detach().clone() for p in g] for n, g in groups.items()}

    def forward(model, batch, original=objective.forward):
        output = original(model, batch)
        if model.training:
            for n, parameters in groups.items():
                seen[n] = parameter_gradients(output.losses[n], parameters)
        return output

    objective.forward = forward
    optimization = Optimization(0.1, optimizer=torch.optim.SGD)
    trainer = Trainer(vae, objective, optimization, progress=False, device="cpu")
    trainer.fit(x, epochs=1, batch_size=8)
    assert seen.keys() == {"model", "discriminator"}
    for n, parameters in groups.items():
        for parameter, before, gradient in zip(parameters, start[n], seen[n], strict=True):
            torch.testing.assert_close(parameter, before - 0.1 * gradient, rtol=1e-12, atol=1e-12)


def test_vae_gan_decoder_opposes_the_discriminator():
    """The decoder's gradient opposes the gradient that would help the discriminator."""
    vae, batch = small_vae(), Batch(torch.randn(64, DATA))
    regularizer = VAEGANRegularizer(mlp(DATA), num_features=6, similarity=0.0)
    _, penalty = run(regularizer, vae, batch)
    decoder = list(vae.decoder.parameters())
    intended = parameter_gradients(penalty.loss, decoder)
    torch.manual_seed(5)
    record = vae(batch.x)
    fakes = vae.decode(torch.stack([record.latents[0].z[0], torch.randn(64, LATENT)])).mean
    uncut = nn.functional.softplus(regularizer.discriminator(fakes.flatten(0, 1))).mean()
    helping = parameter_gradients(uncut, decoder)
    product = sum((a * b).sum() for a, b in zip(intended, helping, strict=True))
    norms = [math.sqrt(sum((g**2).sum() for g in grads)) for grads in (intended, helping)]
    assert product / math.prod(norms) < -0.5


def test_adversarial_parameter_groups():
    vae, batch = small_vae(), Batch(torch.randn(7, DATA))
    objective = PIWAE(2, num_bounds=2) + REGULARIZERS["prior"]() + REGULARIZERS["data"](group="gan")
    groups = objective.parameter_groups(vae)
    assert list(groups) == ["posterior", "generative", "discriminator", "gan"]
    output = objective(vae, batch)
    assert output.losses.keys() == groups.keys()
    assert {"discriminator_accuracy", "gan_accuracy"} <= output.metrics.keys()
    for parameter in objective.regularizers[0].discriminator.parameters():
        parameter.requires_grad_(False)
    objective.regularizers[0].discriminator.layers[2].bias.requires_grad_(True)
    (trained,) = objective.parameter_groups(vae)["discriminator"]
    assert trained is objective.regularizers[0].discriminator.layers[2].bias


@for_each("context", [0, 3])
def test_vae_gan_discriminator_does_not_train_the_encoder(context):
    vae = small_vae(context)
    batch = Batch(torch.randn(7, DATA), torch.randn(7, context) if context else None)
    for regularizer, reached in (
        (VAEGANRegularizer(mlp(DATA), num_features=6, similarity=0.0), False),
        (VAEGANRegularizer(mlp(DATA), num_features=6, weight=0.0), True),
    ):
        objective = ELBO(0.0, likelihood_weight=0.0) + regularizer
        assert objective.check(vae, batch)
        losses = objective(vae, batch).losses
        encoder = parameter_gradients(losses["model"], list(vae.encoder.parameters()))
        decoder = parameter_gradients(losses["model"], list(vae.decoder.parameters()))
        assert any(g.any() for g in encoder) is reached
        assert all(g.any() for g in decoder)


def test_adversarial_gradcheck():
    """The encoder's gradients agree with finite differences for a fixed discriminator."""
    torch.manual_seed(1)
    x = torch.randn(4, DATA)
    for name in ("total correlation", "prior"):
        vae, regularizer = small_vae(), REGULARIZERS[name]()
        parameters = {n: p.detach().requires_grad_() for n, p in vae.encoder.named_parameters()}

        class Alone(nn.Module):
            def __init__(self, vae, regularizer):
                super().__init__()
                self.vae, self.regularizer = vae, regularizer

            def forward(self):
                torch.manual_seed(7)
                record = self.vae(x, num_samples=2)
                return self.regularizer(self.vae, Batch(x), record).loss

        module = Alone(vae, regularizer)

        def loss(*values, module=module, parameters=parameters):
            named = {f"vae.encoder.{n}": v for n, v in zip(parameters, values, strict=True)}
            return torch.func.functional_call(module, named, ())

        assert torch.autograd.gradcheck(loss, tuple(parameters.values()))
        assert all(g.any() for g in parameter_gradients(module(), list(vae.encoder.parameters())))


# What is learned ----------------------------------------------------------------------------------


def train_discriminator(regularizer, sample, steps=500, size=512):
    vae = points()
    optimizer = torch.optim.Adam(regularizer.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = Batch(sample(size))
        optimizer.zero_grad()
        regularizer(vae, batch, vae(batch.x)).adversary.backward()
        optimizer.step()
        scheduler.step()
    return vae


def test_adversarial_total_correlation_estimates_the_exact_one():
    rho = 0.8
    root = torch.linalg.cholesky(torch.tensor([[1.0, rho], [rho, 1.0]]))

    def sample(size):
        return torch.randn(size, 2) @ root.T

    regularizer = AdversarialTotalCorrelationRegularizer(mlp(2, 1, width=32), weight=1.0)
    vae = train_discriminator(regularizer, sample)
    with torch.no_grad():
        _, penalty = run(regularizer, vae, Batch(sample(50_000)))
    expected = -0.5 * math.log(1 - rho**2)
    assert penalty.metrics["adversarial_total_correlation_nats"].item() == pytest.approx(
        expected, abs=0.05
    )
    assert penalty.metrics["discriminator_accuracy"] > 0.6


def test_adversarial_prior_estimates_the_divergence():
    """The exact log odds of N(0, I) against N(m, I) are -m'z + |m|^2 / 2."""
    mean = torch.tensor([0.8, -0.5])
    regularizer = AdversarialPriorRegularizer(mlp(2, 1, width=32), weight=1.0)
    train_discriminator(regularizer, lambda size: mean + torch.randn(size, 2))
    with torch.no_grad():
        divergence = regularizer.log_odds(torch.randn(50_000, 2)).mean().item()
    assert divergence == pytest.approx(0.5 * mean.square().sum().item(), abs=0.05)


def test_adversarial_prior_matches_the_aggregate_posterior():
    x, vae = torch.randn(512, LATENT) + 1.5, points()
    distance = MMDRegularizer(1.0, kernel=gaussian_kernel, scales=(0.5,))
    before = run(distance, vae, Batch(x))[1].loss.item()
    objective = ELBO(0.0, likelihood_weight=0.1) + AdversarialPriorRegularizer(mlp(2, 1, 16))
    optimization = Optimization(1e-2, learning_rates={"objective": 3e-2})
    trainer = Trainer(vae, objective, optimization, progress=False, device="cpu")
    trainer.fit(x, epochs=60, batch_size=128)
    assert before > 0.1
    assert run(distance, vae, Batch(x))[1].loss.item() < 0.2 * before


# Errors -------------------------------------------------------------------------------------------


@for_each("cls", [AdversarialTotalCorrelationRegularizer, AdversarialPriorRegularizer])
def test_adversarial_refuses_discriminators_of_other_shapes(cls):
    vae, batch = small_vae(), Batch(torch.randn(7, DATA))
    with pytest.raises(
        ValueError, match=r"one number per example, \(N, 1\), got \(2, 3\) for N = 2"
    ):
        (ELBO() + cls(mlp(LATENT, 3))).check(vae, batch)
    with pytest.raises(ValueError, match="in_shape"):
        (ELBO() + cls(mlp(LATENT + 1, 1))).check(vae, batch)
    with pytest.raises(ValueError, match=r"a discriminator that accepts its inputs, .*shapes"):
        (ELBO() + cls(nn.Linear(LATENT + 1, 1))).check(vae, batch)
    with pytest.raises(TypeError, match=r"such as MLP\(latent_dim, out_shape=1\), got a function"):
        cls(lambda z: z)
    flat = nn.Sequential(nn.Linear(LATENT, 1), nn.Flatten(0))  # (N,)
    assert (ELBO() + cls(flat)).check(vae, batch)


def test_vae_gan_refuses_other_features_and_masks():
    vae, batch = small_vae(), Batch(torch.randn(7, DATA))
    with pytest.raises(ValueError, match="VAEGANRegularizer expects a discriminator that accepts"):
        (ELBO() + VAEGANRegularizer(mlp(DATA), num_features=7)).check(vae, batch)
    masked = Batch(batch.x, mask=torch.ones_like(batch.x, dtype=torch.bool))
    record = vae(batch.x)
    with pytest.raises(ValueError, match="complete data, got a mask"):
        REGULARIZERS["data"]()(vae, masked, record)


def test_vae_gan_compares_data_with_the_mean():
    """Bits of any dtype are compared with probabilities."""
    vae = small_vae()
    vae.likelihood = BernoulliLikelihood()
    bits = torch.randn(7, DATA) > 0
    regularizer = REGULARIZERS["data"]()
    torch.manual_seed(3)
    record, penalty = run(regularizer, vae, Batch(bits.double()))
    of_bytes = Batch(bits.to(torch.uint8))
    torch.manual_seed(5)
    assert torch.equal(regularizer(vae, of_bytes, record).loss, penalty.loss)
    features = regularizer.discriminator[:-1]
    made, true = features(record.likelihood.mean[0]), features(bits.double())
    expected = 0.5 * (made - true).square().sum(1).mean()
    torch.testing.assert_close(penalty.metrics["feature_distance"], expected.detach())


def test_adversarial_refuses_groups_of_equal_names():
    with pytest.raises(ValueError, match=r"got \['discriminator', 'discriminator'\]: set group="):
        ELBO() + REGULARIZERS["prior"]() + REGULARIZERS["data"]()
    objective = ELBO() + REGULARIZERS["prior"](group="model")
    with pytest.raises(ValueError, match=r"got \['model'\] twice: set group="):
        objective.parameter_groups(small_vae())
