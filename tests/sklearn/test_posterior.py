import torch
from helpers.oracles import random_linear_gaussian
from torch.distributions import MultivariateNormal, kl_divergence

from tinyvae import VAE
from tinyvae.likelihoods import MaskedLikelihood
from tinyvae.sklearn.posterior import contributions


def masked(model):
    """The model with a likelihood that accepts missing entries, in float64."""
    vae = model.vae
    return VAE(vae.encoder, vae.decoder, MaskedLikelihood(vae.likelihood)).double().eval()


def test_contributions_are_those_of_a_linear_gaussian_model(float64):
    model = random_linear_gaussian()
    x = model.evidence.sample((50,))
    model.spoil_posterior(mean=0.1, log_std=0.1)
    terms = contributions(masked(model), x, seed=0)
    weight, bias = (p.detach() for p in model.vae.decoder.layers[0].parameters())
    variance = 0.7**2
    precision = torch.eye(2) + weight.T @ weight / variance
    covariance = precision.inverse()
    mean = (x - bias) @ weight @ covariance / variance
    spread = torch.einsum("dl,lm,dm->d", weight, covariance, weight)
    squared = (x - bias - mean @ weight.T).square() + spread
    surprise = 0.5 * (squared / variance + torch.tensor(2 * torch.pi * variance).log())
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    divergence = kl_divergence(MultivariateNormal(mean, covariance), prior)
    # The error of 256 independent draws would be about 0.1.
    torch.testing.assert_close(terms[:, :-1], surprise, atol=0.1, rtol=0)
    torch.testing.assert_close(terms[:, -1], divergence, atol=0.1, rtol=0)
    torch.testing.assert_close(-terms.sum(1), model.evidence.log_prob(x), atol=0.02, rtol=0)


def test_missing_entries_contribute_zero(float64):
    model = random_linear_gaussian()
    x = model.evidence.sample((4,))
    x[:, 1] = torch.nan
    terms = contributions(masked(model), x, seed=0)
    assert (terms[:, 1] == 0).all()
    assert torch.isfinite(terms).all()


def test_contributions_of_extreme_rows_are_finite(float64):
    vae = masked(random_linear_gaussian())
    x = torch.full((3, 5), 1e200) * torch.tensor([[1.0], [-1.0], [1e100]])
    assert torch.isfinite(contributions(vae, x, seed=0)).all()
