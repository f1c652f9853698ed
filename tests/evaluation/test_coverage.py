"""Exactness of log p(x), and coverage of the intervals that reports state."""

import math

import pytest
import torch
from helpers.cases import for_each
from helpers.oracles import random_linear_gaussian

from tinyvae import evaluate

pytestmark = pytest.mark.usefixtures("float64")


@for_each("num_latents", [1, 5, 20])
def test_log_marginal_is_within_its_error_of_the_evidence(num_latents):
    torch.manual_seed(num_latents)
    model = random_linear_gaussian(num_data=24, num_latents=num_latents)
    x = model.evidence.sample((60,))
    shift = 0.2 / num_latents
    vae = model.spoil_posterior(mean=shift, log_std=0.1)
    report = evaluate(vae, x, elbo_samples=200, importance_samples=5000)
    exact = model.evidence.log_prob(x).mean().item()
    estimate = report.log_marginal
    assert abs(estimate.mean - exact) < 4 * estimate.monte_carlo_error
    assert 0 < estimate.monte_carlo_error < 0.02
    assert report.weights.num_unreliable == 0
    # The ELBO of this posterior is known: its distance to the evidence is KL(q || p(z given x)).
    log_std, precision = 0.1, (-2 * (vae.encode(x[:1]).base.log_std - 0.1)).exp()[0]
    each = 0.5 * (math.exp(2 * log_std) + shift**2 * precision - 1) - log_std
    gap = exact - report.elbo.mean
    assert abs(gap - each.sum().item()) < 4 * report.elbo.monte_carlo_error
    assert report.elbo.mean < report.iwae.mean < estimate.mean


@pytest.mark.slow
def test_stated_intervals_cover_the_truth():
    """Of 200 intervals of 95 %, 90 to 99 % contain the exact value, for data and for draws."""
    torch.manual_seed(0)
    model = random_linear_gaussian(num_data=6, num_latents=3)
    vae = model.spoil_posterior(mean=0.2, log_std=0.15)
    covered = dict.fromkeys(("data", "log_marginal", "elbo", "iwae"), 0)
    population = -model.evidence.entropy().item()  # E log p(x)
    fixed = model.evidence.sample((20,))
    exact = model.evidence.log_prob(fixed).mean().item()
    options = {"elbo_samples": 100_000, "importance_samples": 100_000, "iwae_samples": 10}
    long = evaluate(vae, fixed, seed=999, **options)
    for seed in range(200):
        x = model.evidence.sample((100,))
        options = {"elbo_samples": 20, "iwae_samples": 10, "latents": False, "seed": seed}
        estimate = evaluate(vae, x, importance_samples=400, **options).log_marginal
        covered["data"] += abs(estimate.mean - population) < 1.96 * estimate.standard_error
        report = evaluate(vae, fixed, importance_samples=1000, **options)
        truths = {"log_marginal": exact, "elbo": long.elbo.mean, "iwae": long.iwae.mean}
        for name, truth in truths.items():
            found = report.estimates()[name]
            covered[name] += abs(found.mean - truth) < 1.96 * found.monte_carlo_error
    assert all(180 <= count <= 198 for count in covered.values()), covered
