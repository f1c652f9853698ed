"""Latents in closed form: information, aggregate posterior, collapse."""

import math

import pytest
import torch
from helpers.cases import for_each
from helpers.oracles import random_linear_gaussian
from torch import nn

from tinyvae import MLP, VAE, BernoulliLikelihood, BottomUpVAE, GaussianEncoder, GaussianLikelihood
from tinyvae.encoders import VectorQuantizedEncoder
from tinyvae.evaluation import LatentSummary, evaluate
from tinyvae.priors import CodePrior, VampPrior

pytestmark = pytest.mark.usefixtures("float64")


def latents_of(model, x):
    return evaluate(model, x, elbo_samples=2, importance_samples=None).latents


def test_mutual_information_of_a_vamp_prior_at_the_data():
    """With all data as pseudo-inputs the prior is the aggregate posterior: KL = I <= log N."""
    x = torch.rand(60, 4).round()
    encoder = GaussianEncoder(MLP(4, (6,)), 2)
    with torch.no_grad():
        encoder.head.weight.mul_(3)
    prior = VampPrior.from_data(encoder, x, num_components=60)
    vae = VAE(encoder, MLP(2, out_shape=4), BernoulliLikelihood(), prior=prior)
    latent = latents_of(vae, x)["z"]
    report = evaluate(vae, x, elbo_samples=4000, importance_samples=None)
    information = latent.mutual_information
    assert abs(information.mean - report.kl.mean) < 4 * information.standard_error
    assert latent.aggregate_kl.mean == pytest.approx(0.0, abs=1e-10)
    assert information.mean < math.log(60)


def test_information_of_separate_posteriors_is_the_log_of_their_number():
    encoder = GaussianEncoder(nn.Identity(), 1, features=1)
    with torch.no_grad():
        encoder.head.weight.copy_(torch.tensor([[1.0], [0.0]]))
        encoder.head.bias.copy_(torch.tensor([0.0, math.log(1e-3)]))
    vae = VAE(encoder, MLP(1, out_shape=1), GaussianLikelihood())
    latent = latents_of(vae, torch.arange(50.0)[:, None])["z"]
    assert latent.mutual_information.mean == pytest.approx(math.log(50), abs=1e-9)
    assert "at most 3.91 for 50 data" in str(latent)


def test_information_of_a_linear_gaussian_model():
    """I(x; z) and the KL of q(z) = N(0, I) to the prior are known for many data of the model."""
    model = random_linear_gaussian()
    x = model.evidence.sample((4000,))
    latent = latents_of(model.vae, x)["z"]
    precision = (-2 * model.vae.encode(x[:1]).base.log_std[0]).exp()
    exact = 0.5 * precision.log().sum().item()  # of infinitely many data
    information, distance = latent.mutual_information, latent.aggregate_kl
    assert abs(information.mean - exact) < 4 * information.standard_error
    assert abs(distance.mean) < 4 * distance.standard_error + 0.01
    assert latent.kl_per_dim.sum().item() == pytest.approx(
        evaluate(model.vae, x, elbo_samples=1, importance_samples=None).kl.mean
    )
    assert information.num_examples == 1000  # draws, evenly spread


def test_latents_do_not_depend_on_chunks(monkeypatch):
    model = random_linear_gaussian()
    x = model.evidence.sample((300,))
    expected = latents_of(model.vae, x)["z"]
    monkeypatch.setattr("tinyvae.evaluation.latents.CHUNK_ELEMENTS", 200)
    found = latents_of(model.vae, x)["z"]
    torch.testing.assert_close(found.kl_per_dim, expected.kl_per_dim)
    assert found.mutual_information.mean == pytest.approx(expected.mutual_information.mean)


@for_each("top", [False, True])
def test_latents_of_a_collapsed_posterior(top):
    encoder = GaussianEncoder(MLP(4, (6,)), 12)
    vae = VAE(encoder, MLP(12, out_shape=4), BernoulliLikelihood())
    with torch.no_grad():
        encoder.head.weight.zero_()
        encoder.head.bias.zero_()
        if top:
            encoder.head.weight[:2].normal_()
    report = evaluate(vae, torch.rand(100, 4).round(), elbo_samples=2, importance_samples=None)
    latent = report.latents["z"]
    assert latent.has_collapsed is (not top)
    assert ("posterior collapse: 0 of 12 dimensions active in z" in str(report)) is (not top)
    if not top:
        assert latent.mutual_information.mean == pytest.approx(0.0, abs=1e-10)


def test_latents_count_the_codes_of_all_data():
    encoder = VectorQuantizedEncoder(MLP(3, (6,)), num_codes=5, latent_dim=2)
    prior = CodePrior(5, latent_dim=2)
    vae = VAE(encoder, MLP(2, out_shape=3), GaussianLikelihood(), prior)
    x = torch.randn(40, 3)
    latent = latents_of(vae, x)["z"]
    codes = vae.encode(x).mean.unique(dim=0, return_counts=True)[1] / 40
    exact = torch.exp(-(codes * codes.log()).sum()).item()
    assert latent.perplexity["perplexity"] == pytest.approx(exact)
    # The code is a function of x, so the information is the entropy of the codes.
    assert latent.mutual_information.mean == pytest.approx(math.log(exact))


def test_latents_of_several_layers():
    vae = BottomUpVAE(
        [GaussianEncoder(MLP(5, (8,)), 3), GaussianEncoder(MLP(3, (8,)), 2)],
        [GaussianEncoder(MLP(2, (8,)), 3)],
        MLP(3, out_shape=5),
        GaussianLikelihood(),
    )
    latents = latents_of(vae, torch.randn(50, 5))
    assert latents["z1"].mutual_information.mean >= -1e-9
    assert latents["z1"].aggregate_kl is None  # its prior depends on z2
    assert latents["z2"].mutual_information is None
    saved = LatentSummary.from_dict(latents["z1"].to_dict())
    assert str(saved.to_dict()) == str(latents["z1"].to_dict())
