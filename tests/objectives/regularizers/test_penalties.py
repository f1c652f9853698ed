"""Penalties of latents, weights and gradients."""

import math

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from helpers.regularizers import (
    DATA,
    LATENT,
    assert_same,
    conditional_vae,
    gradients,
    penalty_of,
    small_vae,
)

from tinyvae import ELBO, MLP, Batch, BernoulliLikelihood
from tinyvae.encoders import DeterministicEncoder
from tinyvae.objectives import GradientPenaltyRegularizer, LatentL2Regularizer, WeightL2Regularizer

pytestmark = pytest.mark.usefixtures("float64")


def test_l2_regularizers_agree_with_numpy():
    vae, x = small_vae(), torch.randn(7, DATA)
    record, penalty = penalty_of(LatentL2Regularizer(0.3), vae, x, 3)
    z = record.latents[0].z.detach().numpy()
    expected = np.mean([[0.5 * (row**2).sum() for row in draw] for draw in z])
    assert penalty.metrics["latent_l2"].item() == pytest.approx(expected, rel=1e-14)
    assert penalty.loss.item() == pytest.approx(0.3 * expected, rel=1e-14)
    for part in ("decoder", "encoder.network", "encoder"):
        _, penalty = penalty_of(WeightL2Regularizer(0.3, part=part), vae, x)
        arrays = [p.detach().numpy() for p in vae.get_submodule(part).parameters()]
        expected = sum((array**2).sum() for array in arrays)
        name = part.replace(".", "_") + "_l2"
        assert penalty.metrics[name].item() == pytest.approx(expected, rel=1e-14)
        assert penalty.loss.item() == pytest.approx(0.3 * expected, rel=1e-14)


def test_weight_l2_refuses_unknown_parts():
    batch = Batch(torch.randn(7, DATA))
    with pytest.raises(ValueError, match=r"one of \['encoder', .*'decoder'.* got 'decoders'"):
        (ELBO() + WeightL2Regularizer(1.0, part="decoders")).check(small_vae(), batch)
    with pytest.raises(ValueError, match="'prior', which has no parameters"):
        (ELBO() + WeightL2Regularizer(1.0, part="prior")).check(small_vae(), batch)


def assert_mean_slope(vae, x, mean_of):
    """Compare with |J|_F^2, the mean of |J'v|^2, whose variance is 2 |J J'|_F^2."""
    points = vae.encode(x).mean.detach()
    jacobian = torch.stack([torch.autograd.functional.jacobian(mean_of, z) for z in points])
    gram = jacobian @ jacobian.mT
    expected = gram.diagonal(dim1=-2, dim2=-1).sum(-1).mean().item()
    rows = 40_000
    _, penalty = penalty_of(GradientPenaltyRegularizer(1.0), vae, x.repeat(rows // len(x), 1))
    error = math.sqrt(2 * gram.square().sum((-2, -1)).mean().item() / rows)
    assert abs(penalty.loss.item() - expected) < 4 * error
    assert error < 0.03 * expected


def test_gradient_penalty_of_a_linear_decoder():
    vae = small_vae(DeterministicEncoder)
    vae.decoder = MLP(LATENT, hidden=(), out_shape=DATA)
    weight = vae.decoder.layers[0].weight.detach()
    assert_mean_slope(vae, torch.randn(4, DATA), lambda z: weight @ z)


def test_gradient_penalty_uses_the_mean_of_the_likelihood():
    """The Jacobian is that of the probabilities, not of the logits."""
    vae = small_vae(DeterministicEncoder)
    vae.likelihood = BernoulliLikelihood()
    with torch.no_grad():
        vae.decoder.layers[2].weight *= 4
    assert_mean_slope(vae, torch.eye(DATA), lambda z: vae.decoder(z[None])[0].sigmoid())


def test_gradient_penalty_differentiates_in_the_latent():
    """Data divided by three and weights times three give the same latents and penalty."""
    vae, x = small_vae(DeterministicEncoder), torch.randn(7, DATA)
    values = []
    for scale in (1.0, 3.0):
        with torch.no_grad():
            vae.encoder.network.layers[0].weight *= scale
        batch = Batch(x / scale)
        torch.manual_seed(3)
        output = (ELBO() + GradientPenaltyRegularizer(1.0))(vae, batch)
        values.append(output.metrics["gradient_penalty"])
        assert not batch.x.requires_grad
        assert batch.x.grad is None
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)


@for_each("with_context", [False, True])
def test_gradient_penalty_in_validation_and_with_frozen_encoder(with_context):
    vae = conditional_vae() if with_context else small_vae()
    batch = Batch(torch.randn(7, DATA), torch.randn(7, 3) if with_context else None)
    objective = ELBO(num_samples=3) + GradientPenaltyRegularizer(1.0)

    def penalty():
        torch.manual_seed(3)
        record = vae(batch.x, batch.context, num_samples=3)
        return objective.regularizers[0](vae, batch, record).loss

    training = penalty()
    expected = gradients(training, vae.decoder)
    with torch.no_grad():
        validation = penalty()
    torch.testing.assert_close(validation, training, rtol=1e-13, atol=0)
    assert not validation.requires_grad
    vae.encoder.requires_grad_(False)
    frozen = penalty()
    torch.testing.assert_close(frozen, training, rtol=1e-13, atol=0)
    assert_same(gradients(frozen, vae.decoder), expected)
    assert any(g.abs().max() > 1e-3 for g in expected)
