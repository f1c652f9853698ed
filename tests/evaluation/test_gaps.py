"""Inference gaps against closed forms of linear Gaussian models."""

import math

import pytest
import torch
from helpers.cases import for_each
from helpers.models import combined, conditional_vae
from helpers.oracles import linear_gaussian, random_linear_gaussian
from torch.distributions import MultivariateNormal, kl_divergence

from tinyvae import evaluate
from tinyvae.evaluation import annealed_log_marginal, inference_gaps

pytestmark = pytest.mark.usefixtures("float64")


def test_gaps_of_a_wrong_encoder_are_those_of_the_closed_form():
    model = random_linear_gaussian()
    x = model.evidence.sample((6,))
    exact = model.vae.encode(x)
    mean, std = exact.mean.clone(), exact.stddev.clone()
    gaps = inference_gaps(model.spoil_posterior(mean=1.0, log_std=-0.5), x, num_steps=600)
    wrong = torch.distributions.Normal(mean + 1.0, std * math.exp(-0.5))
    expected = kl_divergence(wrong, torch.distributions.Normal(mean, std)).sum(1)
    evidence = model.evidence.log_prob(x)
    torch.testing.assert_close(gaps.log_marginal, evidence, atol=1e-4, rtol=0)
    torch.testing.assert_close(gaps.best_elbo, evidence, atol=1e-4, rtol=0)
    torch.testing.assert_close(gaps.best_elbo - gaps.elbo, expected, atol=0, rtol=0.05)
    assert gaps.amortization.mean == pytest.approx(expected.mean().item(), rel=0.03)
    assert abs(gaps.approximation.mean) < 1e-4


def test_approximation_gap_of_a_correlated_posterior_is_that_of_the_closed_form():
    weight = torch.tensor([[1.0, 0.8], [0.0, 0.9], [0.5, 1.0]])
    model = linear_gaussian(weight, torch.zeros(3), std=0.5)  # its encoder is not exact
    x = model.evidence.sample((5,))
    gaps = inference_gaps(model.vae, x, num_steps=800, evidence=model.evidence.log_prob(x))
    precision = torch.eye(2) + weight.T @ weight / 0.25
    posterior = MultivariateNormal(torch.zeros(2), precision_matrix=precision)
    # The best Gaussian with independent dimensions has the precisions of the posterior's diagonal.
    best = MultivariateNormal(torch.zeros(2), torch.diag(1 / precision.diagonal()))
    expected = kl_divergence(best, posterior).item()
    assert expected > 0.2
    torch.testing.assert_close(
        gaps.log_marginal - gaps.best_elbo, torch.full((5,), expected), atol=0.05, rtol=0
    )
    assert gaps.approximation.mean == pytest.approx(expected, abs=0.03)
    assert gaps.amortization.mean > 0


def test_gaps_add_up_to_those_of_evaluate():
    vae = combined("gaussian, mixture")
    x = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    evidence = annealed_log_marginal(vae, x, num_temperatures=40).values
    gaps = inference_gaps(vae, x, num_steps=300, evidence=evidence)
    total = gaps.amortization.mean + gaps.approximation.mean
    assert total == pytest.approx(gaps.inference.mean)
    elbo = evaluate(vae, x, elbo_samples=4000, importance_samples=None).elbo
    assert gaps.elbo.mean().item() == pytest.approx(elbo.mean, abs=0.05)
    assert (gaps.best_elbo > gaps.elbo).all()
    assert "amortization gap" in str(gaps)


def test_gaps_read_a_context_and_leave_model_and_random_state():
    vae, x, context = conditional_vae(), torch.randn(3, 4), torch.randn(3, 2)
    state = torch.get_rng_state()
    first, second = (inference_gaps(vae, x, context, num_steps=5, num_samples=20) for _ in "ab")
    assert torch.equal(first.best_elbo, second.best_elbo)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in vae.parameters())


@for_each("name", ["full, normal", "spline, normal", "joint", "classes, uniform"])
def test_gaps_refuse_other_posteriors(name):
    with pytest.raises(TypeError, match="expects one latent with a Gaussian posterior"):
        inference_gaps(combined(name), torch.ones(2, 4))


def test_gaps_refuse_evidence_of_another_shape():
    model = random_linear_gaussian()
    with pytest.raises(ValueError, match=r"evidence of shape \(3,\)"):
        inference_gaps(model.vae, torch.zeros(3, 5), evidence=torch.zeros(2))
