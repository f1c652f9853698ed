import torch

from tinyvae import MLP, VAE, BernoulliLikelihood, GaussianEncoder, StandardNormal
from tinyvae.distributions import Normal
from tinyvae.encoders import FlowEncoder, JointEncoder
from tinyvae.flows import PlanarFlow
from tinyvae.priors import JointPrior


def test_forward_stores_log_q_that_drawing_yields():
    gaussian = GaussianEncoder(MLP(4, (8,)), 2)
    vae = VAE(FlowEncoder(gaussian, PlanarFlow(2)), MLP(2, out_shape=4), BernoulliLikelihood())
    x = torch.rand(5, 4).round()
    (term,) = vae(x, num_samples=3).latents
    assert term.drawn_log_q is not None
    torch.testing.assert_close(term.log_q, term.posterior.log_prob(term.z))
    (term,) = vae(x, num_samples=3, frozen_posterior=True).latents
    assert term.drawn_log_q is None
    torch.testing.assert_close(term.log_q, term.posterior.log_prob(term.z))
    (term,) = vae.check(x).latents
    assert term.drawn_log_q is None


def test_forward_computes_no_log_q_of_plain_posteriors(monkeypatch):
    vae = VAE(GaussianEncoder(MLP(4, (8,)), 2), MLP(2, out_shape=4), BernoulliLikelihood())
    monkeypatch.setattr(Normal, "log_prob", None)  # a call would raise
    (term,) = vae(torch.rand(5, 4).round()).latents
    assert term.drawn_log_q is None
    assert term.kl().shape == (5,)


def test_joint_latents_are_drawn_part_by_part():
    flow = FlowEncoder(GaussianEncoder(MLP(4, (8,)), 2), PlanarFlow(2))
    encoder = JointEncoder({"flow": flow, "plain": GaussianEncoder(MLP(4, (8,)), 3)})
    prior = JointPrior({"flow": StandardNormal(2), "plain": StandardNormal(3)})
    vae = VAE(encoder, MLP(5, out_shape=4), BernoulliLikelihood(), prior)
    output = vae(torch.rand(5, 4).round(), num_samples=3)
    assert [term.drawn_log_q is not None for term in output.latents] == [True, False]
    assert torch.equal(output.z, torch.cat([term.z for term in output.latents], -1))
    assert [draws.shape for draws in output.draws] == [(3, 5, 2), (3, 5, 3)]
