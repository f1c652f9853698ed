"""Relaxed classes in models: logarithms are scored, and decoders read points of the simplex.

With two classes at the temperature of the prior, the log ratio of the classes is a logistic
variable. KL(q || p) of logits that are d apart from equal ones is d coth(d / 2) - 2.
"""

import math

import pytest
import torch
from helpers.cases import for_each
from torch import nn

from tinyvae import ELBO, IWAE, MLP, VAE, Batch, BernoulliLikelihood, Encoder, VampPrior, evaluate
from tinyvae.distributions import Distribution, GumbelSoftmax
from tinyvae.encoders import GumbelSoftmaxEncoder, JointEncoder
from tinyvae.models import BottomUpVAE, TwoLevelVAE
from tinyvae.priors import ConditionalPrior, GumbelSoftmaxPrior, JointPrior

BATCH, TAU = 1000, 0.5


class Apart(Encoder):
    """q(z) of two classes whose logits are ``gap`` apart, with one parameter for each example."""

    def __init__(self, gap):
        super().__init__()
        self.latent_shape = torch.Size((2, 1))
        self.gap = nn.Parameter(torch.full((BATCH,), gap))

    def forward(self, x, context=None):
        gap = self.gap.repeat(-(-len(x) // BATCH))[: len(x)]
        return GumbelSoftmax(torch.stack([gap, 0 * gap], 1).unsqueeze(2), 2, TAU)


class Simplex(nn.Module):
    """A decoder that reads points of the simplex, and returns logits of zero."""

    def forward(self, z, context=None):
        sums = z.flatten(1).unflatten(1, (-1, 2)).sum(2)
        assert (z >= 0).all()
        torch.testing.assert_close(sums, torch.ones_like(sums))
        return 0 * z.flatten(1)[:, :1]


def several(model, gap):
    prior = GumbelSoftmaxPrior(2, temperature=TAU)
    parts = {"decoder": Simplex(), "likelihood": BernoulliLikelihood()}
    if model == "one":
        return VAE(Apart(gap), prior=prior, **parts)
    if model == "joint":
        encoder = JointEncoder({"a": Apart(gap), "b": Apart(gap)})
        return VAE(encoder, prior=JointPrior({"a": prior, "b": prior}), **parts)
    if model == "bottom-up":
        encoders, generators = [Apart(gap), Apart(gap)], [Apart(0.0)]
        return BottomUpVAE(encoders, generators, prior=prior, **parts)
    return TwoLevelVAE(Apart(gap), bottom=Apart(gap), generator=Apart(0.0), prior=prior, **parts)


CASES = [
    (model, gap)
    for model in ("one", "joint", "bottom-up", "two levels")
    for gap in (0.5, 40.0, 4e3, 4e6)
]


@for_each(("model", "gap"), CASES)
def test_relaxed_latents_have_the_kl_of_logistic_variables_in_float32(model, gap):
    vae, x = several(model, gap), torch.zeros(BATCH, 1)
    with torch.no_grad():
        output = vae(x)
    total = sum(term.kl("sample") for term in output.latents).double()
    expected = len(output.latents) * (gap / math.tanh(gap / 2) - 2)
    assert (total.mean() - expected).abs() < 4 * total.std() / BATCH**0.5 + 1e-6 * gap
    torch.testing.assert_close(output.log_weight(), output.log_px - total.float())


@for_each("estimator", ["pathwise", "stl"])
@for_each(("model", "gap"), CASES[::2] + CASES[1::4])
def test_relaxed_latents_have_the_gradient_of_the_kl_in_float32(model, gap, estimator):
    vae, batch = several(model, gap), Batch(torch.zeros(BATCH, 1))
    ELBO(estimator=estimator)(vae, batch).losses["model"].backward()
    small = gap < 100
    expected = 1 / math.tanh(gap / 2) - (gap / 2 / math.sinh(gap / 2) ** 2 if small else 0.0)
    gradients = [p.grad * BATCH for n, p in vae.named_parameters() if "generator" not in n]
    for slope in gradients:
        assert (slope.mean() - expected).abs() < 4.5 * slope.std() / BATCH**0.5 + 1e-5


@for_each("objective", [IWAE(5), IWAE(5, estimator="dreg")])
def test_no_bound_of_relaxed_latents_exceeds_the_evidence_in_float32(objective):
    vae, batch = several("one", 40.0), Batch(torch.zeros(BATCH, 1))
    output = objective(vae, batch)
    output.losses["model"].backward()
    assert output.metrics["iwae_nats"] < -math.log(2)
    assert vae.encoder.gap.grad.isfinite().all()
    assert evaluate(vae, batch.x[:20], elbo_samples=9, importance_samples=9).log_marginal.mean < -1


def test_latent_term_of_relaxed_classes_has_values_in_the_simplex():
    vae, x = several("one", 400.0), torch.zeros(BATCH, 1)
    (term,) = vae(x).latents
    assert torch.equal(term.z, term.point.exp())
    assert (term.point.isfinite() & (term.z == 0)).any()
    posterior = vae.encode(x)
    torch.testing.assert_close(posterior.point_estimate().sum(1), torch.ones(BATCH, 1))
    assert isinstance(posterior, GumbelSoftmax)


@for_each("conditional", [False, True])
def test_prior_of_relaxed_posteriors_scores_logarithms(conditional):
    """The prior is the posterior, so that log q - log p is zero at every draw."""
    encoder, vamp = Apart(400.0), VampPrior((2, 1), input_shape=1, num_components=3)
    prior = ConditionalPrior(encoder) if conditional else vamp
    vae = VAE(encoder, Simplex(), BernoulliLikelihood(), prior)
    x = torch.zeros(BATCH, 1)
    (term,) = vae(x, context=x).latents
    assert (term.z == 0).any()
    torch.testing.assert_close(term.log_q, term.log_p, rtol=1e-5, atol=1e-4)


class FlatSimplex(Distribution):
    """A prior over the simplex without a log form."""

    support = "the simplex"

    def __init__(self, shape):
        self.batch_shape, self.event_shape = torch.Size(), shape

    @property
    def mean(self):
        return torch.full(self.event_shape, 1 / self.event_shape[0])

    def log_prob(self, value):
        return torch.full(value.shape[:-2], math.lgamma(self.event_shape[0]))

    def sample(self, sample_shape=()):
        raise NotImplementedError


def test_relaxed_latents_are_scored_in_the_simplex_by_a_prior_without_log_form(monkeypatch):
    vae = VAE(
        GumbelSoftmaxEncoder(MLP(4, (8,)), 3),
        MLP((3, 1), (8,)),
        BernoulliLikelihood(),
        GumbelSoftmaxPrior(3),
    )
    monkeypatch.setattr(vae.prior, "forward", lambda *_, **__: FlatSimplex(torch.Size((3, 1))))
    (term,) = vae(torch.zeros(5, 4)).latents
    assert term.is_density
    torch.testing.assert_close(term.log_q, vae.encode(torch.zeros(5, 4)).log_prob(term.z))
    assert term.log_p.tolist() == [[pytest.approx(math.log(2))] * 5]
