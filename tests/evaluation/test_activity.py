"""Active units of linear VAEs, whose collapse is known in closed form."""

import math

import pytest
import torch
from helpers.cases import for_each
from torch import nn

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    BottomUpVAE,
    GaussianEncoder,
    GaussianLikelihood,
    Optimization,
    Trainer,
)
from tinyvae.encoders import FlowEncoder
from tinyvae.evaluation import active_units
from tinyvae.flows import PlanarFlow

pytestmark = pytest.mark.usefixtures("float64")

EIGENVALUES = torch.tensor([4.0, 2.0, 1.0, 0.3, 0.1], dtype=torch.float64)
VARIANCE = 0.5  # variance of the decoder


def data(num=400):
    """Return rows whose covariance (with 1/N) has exactly the eigenvalues, and its eigenvectors."""
    noise = torch.randn(num, 5)
    noise = noise - noise.mean(0)
    u, _, _ = torch.linalg.svd(noise, full_matrices=False)
    rotation = torch.linalg.qr(torch.randn(5, 5)).Q
    return math.sqrt(num) * u * EIGENVALUES.sqrt() @ rotation.T, rotation


def optimal(beta, rotation, latents=4):
    """Return the linear VAE that minimizes -E log p(x given z) + beta KL."""
    kept = (EIGENVALUES[:latents] - beta * VARIANCE).clamp(min=0)
    encoder = GaussianEncoder(nn.Identity(), latents, features=5)
    decoder = MLP(latents, hidden=(), out_shape=5)
    mean = (kept.sqrt() / EIGENVALUES[:latents])[:, None] * rotation.T[:latents]
    log_std = 0.5 * (beta * VARIANCE / EIGENVALUES[:latents]).clamp(max=1.0).log()
    with torch.no_grad():
        encoder.head.weight.copy_(torch.cat([mean, torch.zeros_like(mean)]))
        encoder.head.bias.copy_(torch.cat([torch.zeros(latents), log_std]))
        decoder.layers[0].weight.copy_(rotation[:, :latents] * kept.sqrt())
        decoder.layers[0].bias.zero_()
    return VAE(encoder, decoder, GaussianLikelihood(math.sqrt(VARIANCE)))


@for_each(("beta", "count"), [(0.5, 4), (1.0, 3), (1.5, 3), (3.0, 2), (9.0, 0)])
def test_active_units_of_linear_vaes(beta, count):
    x, rotation = data()
    vae = optimal(beta, rotation)
    activity = active_units(vae, x)["z"]
    expected = (1 - beta * VARIANCE / EIGENVALUES[:4]).clamp(min=0)
    found = activity.variance * (len(x) - 1) / len(x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert activity.count == count
    assert str(activity) == f"{count} of 4 dimensions active"
    kl = vae.encode(x)
    own = 0.5 * ((2 * kl.base.log_std).exp() + kl.mean**2 - 1 - 2 * kl.base.log_std).mean(0)
    closed = 0.5 * (EIGENVALUES[:4] / (beta * VARIANCE)).log().clamp(min=0)
    torch.testing.assert_close(own, closed, rtol=1e-10, atol=1e-12)


def test_active_units_after_training_agree_with_theory():
    """The weight beta determines how many dimensions stay active, for any start."""
    torch.manual_seed(3)
    x, rotation = data(200)
    beta = 2.5
    vae = optimal(0.1, rotation)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    optimization = Optimization(0.02, schedule="cosine")
    trainer = Trainer(
        vae, ELBO(beta, num_samples=4), optimization, progress=False, device="cpu", seed=1
    )
    trainer.fit(x, epochs=1500, batch_size=200)
    activity = active_units(vae, x)["z"]
    expected = (1 - beta * VARIANCE / EIGENVALUES[:4]).clamp(min=0)
    found = activity.variance.sort(descending=True).values
    assert (found - expected).abs().max() < 0.02
    assert activity.count == 2


def test_active_units_sample_unknown_means():
    """A new flow is the identity, so the activity is that of its Gaussian base."""
    x, rotation = data(2000)
    vae = optimal(1.0, rotation)
    expected = active_units(vae, x)["z"]
    vae.encoder = FlowEncoder(vae.encoder, PlanarFlow(4, transforms=1))
    found = active_units(vae, x, num_samples=8)["z"]
    assert (found.variance - expected.variance).abs().max() < 0.02
    assert found.count == expected.count == 3
    assert expected.variance[3] < 1e-12


def test_active_units_of_each_layer():
    vae = BottomUpVAE(
        [GaussianEncoder(MLP(5, (8,)), 3), GaussianEncoder(MLP(3, (8,)), 2)],
        [GaussianEncoder(MLP(2, (8,)), 3)],
        MLP(3, out_shape=5),
        GaussianLikelihood(),
    )
    activity = active_units(vae, torch.randn(50, 5))
    assert {name: tuple(a.variance.shape) for name, a in activity.items()} == {
        "z1": (3,),
        "z2": (2,),
    }


def test_active_units_do_not_depend_on_chunks(monkeypatch):
    import tinyvae.evaluation.importance as module

    x, rotation = data(60)
    vae = optimal(1.0, rotation)
    torch.manual_seed(5)
    whole = active_units(vae, x)["z"].variance
    after = torch.rand(3)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 64 * 5 * 7)
    torch.testing.assert_close(active_units(vae, x)["z"].variance, whole, rtol=1e-12, atol=1e-14)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)


def test_active_units_decode_nothing():
    x, rotation = data(60)
    vae = optimal(1.0, rotation)
    encoded, decoded = [], []
    vae.encoder.register_forward_pre_hook(lambda _, args: encoded.append(len(args[0])))
    vae.decoder.register_forward_pre_hook(lambda _, args: decoded.append(len(args[0])))
    active_units(vae, x)
    assert encoded[-1] == 60
    assert max(decoded) == 2  # the check of two examples


def test_active_units_refuses_invalid_arguments():
    x, rotation = data(10)
    with pytest.raises(ValueError, match="at least two examples, got 1"):
        active_units(optimal(1.0, rotation), x[:1])
    with pytest.raises(ValueError, match="num_samples >= 2, got 1"):
        active_units(optimal(1.0, rotation), x, num_samples=1)
