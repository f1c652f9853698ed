"""Annealed importance sampling against exact evidence, in both directions."""

import math

import pytest
import torch
from helpers.cases import for_each
from helpers.models import combined, conditional_vae, features
from helpers.oracles import linear_gaussian, random_linear_gaussian

from tinyvae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    GaussianEncoder,
    GaussianLikelihood,
    log_marginal,
)
from tinyvae.encoders import DeterministicEncoder
from tinyvae.evaluation import HMC, annealed_log_marginal, bidirectional
from tinyvae.evaluation.annealing import anneal, sigmoid_powers
from tinyvae.evaluation.paths import AnnealingPath
from tinyvae.likelihoods import MaskedLikelihood
from tinyvae.models import BottomUpVAE, LadderVAE, TwoLevelVAE

pytestmark = pytest.mark.usefixtures("float64")


class PerfectTransition:
    """Nodes of a quadrature of the exact density at a power, whose means of squares are exact."""

    def __init__(self, path, x, variance):
        self.path, self.x, self.variance = path, x, variance

    def nodes(self, power):
        precision = 1 + power / self.variance
        mean = power * self.x / self.variance / precision
        return mean + torch.tensor([-1.0, 1.0]).reshape(2, 1, 1) / math.sqrt(precision)

    def __call__(self, z, power):
        z = self.nodes(power)
        return z, self.path.log_densities(z)[1]


@for_each(
    "num_temperatures, lower, upper",
    [(10, -2.975619, -1.405371), (100, -2.070116, -1.913091), (1000, -1.997195, -1.981493)],
)
def test_anneal_with_perfect_transitions_gives_expected_log_weights(num_temperatures, lower, upper):
    model = linear_gaussian(torch.ones(1, 1), torch.zeros(1), std=math.sqrt(0.1))
    x = torch.tensor([[1.5]])
    path = AnnealingPath.of(model.vae, (x, None, None), "prior")
    move = PerfectTransition(path, 1.5, 0.1)
    powers = [t / num_temperatures for t in range(num_temperatures + 1)]
    forward = anneal(path, move.nodes(0.0), powers, move)
    reverse = anneal(path, move.nodes(1.0), powers[::-1], move)
    assert forward.mean().item() == pytest.approx(lower, abs=1e-6)
    assert -reverse.mean().item() == pytest.approx(upper, abs=1e-6)


def test_sigmoid_powers_rise_from_0_to_1_and_are_dense_at_both_ends():
    powers = torch.tensor(sigmoid_powers(100))
    steps = powers.diff()
    assert (powers[0], powers[-1]) == (0, 1)
    assert (steps > 0).all()
    assert steps[0] < 0.2 * steps[50]
    torch.testing.assert_close(steps, steps.flip(0))


@for_each("start, leapfrog_steps", [("prior", 1), ("prior", 7), ("posterior", 3)])
def test_annealed_weights_are_unbiased_with_few_temperatures(start, leapfrog_steps):
    model = random_linear_gaussian()
    x = model.evidence.sample((3,))
    evidence = annealed_log_marginal(
        model.spoil_posterior(mean=0.3, log_std=0.3),
        x,
        num_temperatures=4,
        num_chains=5000,
        start=start,
        transition=HMC(leapfrog_steps),
    )
    ratio = (evidence.values - model.evidence.log_prob(x)).exp()
    assert ((ratio - 1).abs() < 4 * ratio * evidence.monte_carlo_error).all()
    assert evidence.monte_carlo_error.max() < 0.15
    assert (evidence.effective_sample_size < 4900).all()


def test_annealed_reverse_weights_are_unbiased_with_few_temperatures():
    model = random_linear_gaussian()
    bounds = bidirectional(
        model.spoil_posterior(),
        5000,
        num_temperatures=16,
        num_chains=1,
        start="posterior",
    )
    # One chain for each x: the expectation of p(x) / w is 1.
    ratio = (model.evidence.log_prob(bounds.x) - bounds.upper.log_weight[0]).exp()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(len(ratio))
    assert 0.01 < ratio.std() < 2


def test_annealing_from_the_exact_posterior_gives_the_evidence():
    model = random_linear_gaussian()
    x = model.evidence.sample((4,))
    evidence = annealed_log_marginal(
        model.vae, x, num_temperatures=3, num_chains=2, start="posterior"
    )
    expected = model.evidence.log_prob(x)
    torch.testing.assert_close(evidence.log_weight, expected.expand(2, -1), atol=1e-10, rtol=0)
    torch.testing.assert_close(evidence.effective_sample_size, torch.full((4,), 2.0))
    assert evidence.monte_carlo_error.abs().max() < 1e-6


@pytest.mark.slow
@for_each("num_latents", [2, 20])
def test_bidirectional_brackets_the_evidence(num_latents):
    model = random_linear_gaussian(num_data=30, num_latents=num_latents)
    bounds = bidirectional(model.spoil_posterior(), 40, num_temperatures=400)
    exact = model.evidence.log_prob(bounds.x)
    lower, upper = exact - bounds.lower.values, bounds.upper.values - exact
    for gap in (lower, upper):
        error = gap.std().item() / math.sqrt(len(gap))
        assert -4 * error < gap.mean().item() < 1.0
    assert bounds.gap.mean == pytest.approx((lower + upper).mean().item())
    for bound in (bounds.lower, bounds.upper):
        assert 0.55 < bound.acceptance_rate.mean() < 0.75


def prior_evidence(vae, x, num_samples=400_000):
    """Return log p(x), ``(B,)``, by draws from the prior."""
    with torch.no_grad():
        z = vae.generate(num_samples, None).unsqueeze(1)
        log_px = torch.stack([vae.likelihood_given(z, None).log_prob(row) for row in x], 1)
    return log_px[..., 0].logsumexp(0) - math.log(num_samples)


def bottom_up():
    return BottomUpVAE(
        encoders=[GaussianEncoder(features(), 3), GaussianEncoder(MLP(3, (5,)), 2)],
        generators=[GaussianEncoder(MLP(2, (5,)), 3)],
        decoder=MLP(3, (5,), out_shape=4),
        likelihood=GaussianLikelihood(0.7),
    )


def ladder():
    return LadderVAE(
        encoders=[GaussianEncoder(features(), 3), GaussianEncoder(MLP(5, (5,)), 2)],
        generators=[GaussianEncoder(MLP(2, (5,)), 3)],
        decoder=MLP(3, (5,), out_shape=4),
        likelihood=GaussianLikelihood(0.7),
    )


def two_level():
    return TwoLevelVAE(
        GaussianEncoder(features(), 2),
        bottom=GaussianEncoder(ConcatInput(), 3, features=6),
        generator=GaussianEncoder(MLP(2, (5,)), 3),
        decoder=MLP(5, (5,), out_shape=4),
        likelihood=GaussianLikelihood(0.7),
    )


class ConcatInput(torch.nn.Module):
    def forward(self, x, condition):
        return torch.cat([x, condition], 1)


@for_each("make", [bottom_up, ladder, two_level])
def test_annealing_several_layers_agrees_with_draws_from_the_prior(make):
    vae, x = make(), torch.randn(3, 4)
    expected = prior_evidence(vae, x)
    evidence = annealed_log_marginal(vae, x, num_temperatures=4, num_chains=4000, transition=HMC(2))
    error = 4 * evidence.monte_carlo_error + 0.02
    assert ((evidence.values - expected).abs() < error).all()
    assert evidence.monte_carlo_error.max() < 0.1


@for_each("prior", ["mixture", "vamp", "flow"])
def test_annealing_takes_other_priors(prior):
    vae = combined(f"gaussian, {prior}")
    x = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    evidence = annealed_log_marginal(vae, x, num_temperatures=5, num_chains=1000, transition=HMC(3))
    expected = prior_evidence(vae, x, num_samples=40_000)
    assert abs(evidence.values - expected) < 4 * evidence.monte_carlo_error + 0.02


def test_annealing_reads_a_context():
    vae, x, context = conditional_vae(), torch.randn(2, 4), torch.randn(2, 2)
    evidence = annealed_log_marginal(
        vae, x, context, num_temperatures=40, num_chains=500, transition=HMC(5)
    )
    expected = log_marginal(vae, x, context, num_samples=100_000)
    assert ((evidence.values - expected).abs() < 4 * evidence.monte_carlo_error + 0.05).all()
    assert bidirectional(vae, context=context, num_temperatures=5).x.shape == (2, 4)


def test_annealing_of_missing_entries_gives_the_evidence_of_the_others():
    model = random_linear_gaussian()
    vae = VAE(model.vae.encoder, model.vae.decoder, MaskedLikelihood(GaussianLikelihood(0.7)))
    x = model.evidence.sample((3,))
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[:, 2:] = False
    evidence = annealed_log_marginal(vae, x, mask=mask, num_temperatures=10, num_chains=2000)
    observed = torch.distributions.MultivariateNormal(
        model.evidence.loc[:2], model.evidence.covariance_matrix[:2, :2]
    )
    gap = evidence.values - observed.log_prob(x[:, :2])
    assert (gap.abs() < 4 * evidence.monte_carlo_error).all()


def test_annealing_takes_a_deterministic_encoder_from_the_prior_only():
    exact = random_linear_gaussian()
    encoder = DeterministicEncoder(MLP(5, (4,)), 2)
    vae = VAE(encoder, exact.vae.decoder, GaussianLikelihood(0.7))
    x = exact.evidence.sample((3,))
    evidence = annealed_log_marginal(vae, x, num_temperatures=10, num_chains=2000)
    gap = evidence.values - exact.evidence.log_prob(x)
    assert (gap.abs() < 4 * evidence.monte_carlo_error).all()
    with pytest.raises(TypeError, match="annealing from the posterior expects latents"):
        annealed_log_marginal(vae, x, start="posterior")


@for_each("name", ["classes, uniform", "sphere, uniform", "relaxed, symmetric", "joint"])
def test_annealing_refuses_latents_that_are_not_real(name):
    with pytest.raises(TypeError, match="use log_marginal"):
        annealed_log_marginal(combined(name), torch.ones(2, 4))


def test_annealing_is_deterministic_and_leaves_model_and_random_state():
    vae = VAE.from_shapes(4, latent_dim=2, likelihood=BernoulliLikelihood()).train()
    x, state = torch.ones(3, 4), torch.get_rng_state()
    first, second = (
        annealed_log_marginal(vae, x, num_temperatures=5, num_chains=2).log_weight for _ in "ab"
    )
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.training
    assert all(p.grad is None for p in vae.parameters())


def test_annealing_reports_its_progress(monkeypatch):
    monkeypatch.setattr("tinyvae.evaluation.progress.LINE_SECONDS", 0.0)
    totals = []
    monkeypatch.setattr(
        "tinyvae.evaluation.progress.Progress.__exit__",
        lambda progress, *_: totals.append((progress._done, progress.total)),
    )
    vae = VAE.from_shapes(4, latent_dim=2, likelihood=BernoulliLikelihood())
    annealed_log_marginal(vae, torch.ones(3, 4), num_temperatures=5, num_chains=2)
    bidirectional(vae, 3, num_temperatures=5, num_chains=2)
    assert all(done == total for done, total in totals)
    assert len(totals) == 2


@for_each(
    "options, message",
    [
        ({"num_temperatures": 1}, "num_temperatures >= 2"),
        ({"num_chains": 0}, "num_chains >= 1"),
        ({"start": "middle"}, "start 'prior' or 'posterior'"),
    ],
)
def test_annealing_refuses_arguments(options, message):
    vae = VAE.from_shapes(4, latent_dim=2, likelihood=BernoulliLikelihood())
    with pytest.raises(ValueError, match=message):
        annealed_log_marginal(vae, torch.ones(1, 4), **options)
    with pytest.raises(ValueError, match=message):
        bidirectional(vae, **options)


def test_hmc_refuses_settings():
    with pytest.raises(ValueError, match="leapfrog_steps >= 1"):
        HMC(leapfrog_steps=0)
