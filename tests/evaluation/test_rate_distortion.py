"""The curve of a linear VAE against its closed form."""

import math

import pytest
import torch
from torch import nn

from tinyvae import MLP, VAE, GaussianEncoder, GaussianLikelihood
from tinyvae.evaluation import rate_distortion

pytestmark = pytest.mark.usefixtures("float64")

VARIANCES = (4.0, 2.0, 0.5)
NOISE = 0.5  # variance of the decoder


def data(num_examples=500):
    """Data whose covariance is exactly the diagonal matrix of VARIANCES."""
    x = torch.randn(num_examples, 3)
    basis = torch.linalg.qr(x - x.mean(0)).Q
    return math.sqrt(num_examples) * basis * torch.tensor(VARIANCES).sqrt()


def optimum(beta):
    """The linear VAE that minimizes distortion + beta rate, with two latents."""
    variances = torch.tensor(VARIANCES[:2])
    active = variances > beta * NOISE
    weight = (variances - beta * NOISE).clamp(min=0.0).sqrt()
    vae = VAE(
        GaussianEncoder(nn.Identity(), 2, features=3),
        MLP(2, hidden=(), out_shape=3),
        GaussianLikelihood(math.sqrt(NOISE)),
    )
    std = torch.where(active, beta * NOISE / variances, 1.0).sqrt()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
        vae.encoder.head.weight[:2, :2] = torch.diag(weight / variances)
        vae.encoder.head.bias[2:] = std.log()
        vae.decoder.layers[0].weight[:2] = torch.diag(weight)
    return vae


def test_curve_of_a_linear_vae_is_the_closed_form():
    betas = (0.25, 1.0, 5.0, 10.0)  # two, two, one and no active units
    curve = rate_distortion(optimum, data(), betas=betas, elbo_samples=200)
    for beta, point in zip(betas, curve.points, strict=True):
        ratios = [max(1.0, variance / (beta * NOISE)) for variance in VARIANCES[:2]]
        rate = 0.5 * sum(map(math.log, ratios))
        errors = VARIANCES[2] + sum(min(v, beta * NOISE) for v in VARIANCES[:2])
        distortion = 0.5 * errors / NOISE + 1.5 * math.log(2 * math.pi * NOISE)
        assert point.beta == beta
        assert point.rate.mean == pytest.approx(rate, abs=1e-10)
        assert point.distortion.mean == pytest.approx(distortion, abs=0.03)
        assert point.elbo.mean == pytest.approx(-point.rate.mean - point.distortion.mean)
    assert curve.to_dict()["rate"] == [point.rate.mean for point in curve.points]
    assert str(curve).count("\n") == 4


def test_curve_draws_itself():
    figure = rate_distortion(optimum, data(20), betas=(1.0, 4.0), elbo_samples=2).plot()
    assert [text.get_text() for text in figure.axes[0].texts] == ["beta 1", "beta 4"]


def test_rate_distortion_refuses_fit_without_a_model_and_no_betas():
    with pytest.raises(TypeError, match="fit\\(beta\\) that returns the trained model"):
        rate_distortion(lambda _: None, data(20))
    with pytest.raises(ValueError, match="at least one beta"):
        rate_distortion(optimum, data(20), betas=())
