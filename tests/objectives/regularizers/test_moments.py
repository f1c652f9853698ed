"""Regularizers that compare moments: DIP and MMD."""

import math

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from helpers.regularizers import (
    DATA,
    LATENT,
    REGULARIZERS,
    assert_same,
    gradients,
    penalty_of,
    small_vae,
)
from torch import nn

from tinyvae import ELBO, MLP, VAE, Batch, GaussianLikelihood
from tinyvae.encoders import DeterministicEncoder, FullGaussianEncoder, LowRankGaussianEncoder
from tinyvae.objectives import DIPRegularizer, MMDRegularizer
from tinyvae.objectives.regularizers.moments import (
    _mean_covariance,
    gaussian_kernel,
    inverse_multiquadratic_kernel,
)

pytestmark = pytest.mark.usefixtures("float64")


def test_dip_is_precise_under_autocast():
    vae, x = small_vae(FullGaussianEncoder).float(), torch.randn(7, DATA).float()
    record = vae(x)
    for regularizer in (DIPRegularizer(1.0), DIPRegularizer(1.0, covariance="total")):
        values = []
        for cast in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=cast):
                values.append(regularizer(vae, Batch(x), record).loss)
        assert values[0].dtype == values[1].dtype
        assert torch.equal(*values)


@for_each("size", [2, 3, 11])
def test_dip_agrees_with_numpy(size):
    vae, x = small_vae(), torch.randn(size, DATA)
    record, penalty = penalty_of(DIPRegularizer(0.3, diagonal=4.0), vae, x, 3)
    normal = record.latents[0].posterior.base
    covariance = np.cov(normal.mean.detach().numpy().T)
    own = np.diag(np.exp(2 * normal.log_std.detach().numpy()).mean(0))
    _, total = penalty_of(DIPRegularizer(0.3, diagonal=4.0, covariance="total"), vae, x, 3)
    for found, c in ((penalty, covariance), (total, covariance + own)):
        expected = 4 * ((np.diag(c) - 1) ** 2).sum() + 2 * c[0, 1] ** 2
        assert found.metrics["batch_dip"].item() == pytest.approx(expected, rel=1e-12)
        assert found.loss.item() == pytest.approx(0.3 * expected, rel=1e-12)


POSTERIORS = {
    "diagonal": lambda: small_vae(),
    "full": lambda: small_vae(FullGaussianEncoder),
    "low rank": lambda: small_vae(LowRankGaussianEncoder, rank=1),
    "points": lambda: small_vae(DeterministicEncoder),
}


@for_each("name", ["diagonal", "full", "low rank"])
def test_mean_covariance_agrees_with_samples(name):
    posterior = POSTERIORS[name]().encode(torch.randn(3, DATA))
    with torch.no_grad():
        centered = posterior.sample((100_000,)) - posterior.mean
        products = (centered.unsqueeze(-1) * centered.unsqueeze(-2)).mean(1)  # (S, D, D)
        error = products.std(0) / math.sqrt(len(products))
        assert ((_mean_covariance(posterior) - products.mean(0)).abs() < 4 * error).all()
        assert (error < 0.02).all()


def test_dip_total_refuses_other_posteriors():
    batch = Batch(torch.randn(7, DATA))
    vae = POSTERIORS["points"]()
    (ELBO(0.0) + DIPRegularizer(1.0)).check(vae, batch)
    with pytest.raises(ValueError, match=r"expects Gaussian posteriors, got Delta.*: use 'means'"):
        (ELBO(0.0) + DIPRegularizer(1.0, covariance="total")).check(vae, batch)


@for_each("covariance", ["means", "total"])
@for_each("estimator", ["pathwise", "stl"])
def test_dip_gradient_reaches_the_encoder(covariance, estimator):
    vae, x = small_vae(), torch.randn(9, DATA)
    bound = ELBO(0.0, likelihood_weight=0.0, estimator=estimator)
    found = gradients(
        (bound + DIPRegularizer(1.0, covariance=covariance))(vae, Batch(x)).losses["model"], vae
    )
    normal = vae.encode(x).base
    c = torch.cov(normal.mean.T)
    c = c + (2 * normal.log_std).exp().mean(0).diag() * (covariance == "total")
    assert_same(found, gradients((c - torch.eye(LATENT)).square().sum(), vae))
    assert found[0].abs().max() > 1e-3


@for_each("name", ["dip", "dip total"])
def test_dip_ignores_the_order_of_the_batch(name):
    """The loss does not depend on the order, and is zero for whitened means."""
    vae, x = small_vae(), torch.randn(9, DATA)
    regularizer = REGULARIZERS[name](1.0)
    values = [penalty_of(regularizer, vae, data)[1].loss for data in (x, x[torch.randperm(9)])]
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)
    encoder = DeterministicEncoder(nn.Identity(), DATA, features=DATA)
    with torch.no_grad():
        encoder.head.weight.copy_(torch.eye(DATA))
        encoder.head.bias.fill_(3.0)
    vae = VAE(encoder, MLP(DATA, hidden=(), out_shape=DATA), GaussianLikelihood())
    x = torch.randn(9, DATA)
    x = torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(8)
    _, penalty = penalty_of(DIPRegularizer(1.0), vae, x)
    assert penalty.loss.item() == pytest.approx(0.0, abs=1e-24)


KERNELS = {
    "imq": (inverse_multiquadratic_kernel, lambda d: 1 / (1 + d)),
    "gaussian": (gaussian_kernel, lambda d: math.exp(-d)),
    "your own": (lambda squared: (1 + squared) ** -0.5, lambda d: 1 / math.sqrt(1 + d)),
}


def direct_mmd(z, y, kernel, scales):
    """Return the MMD of samples ``(B, D)`` from its definition."""
    size, dim = z.shape

    def k(a, b):
        return sum(kernel(((a - b) ** 2).sum() / (2 * dim * s)) for s in scales)

    pairs = [(i, j) for i in range(size) for j in range(size)]
    within = sum(k(z[i], z[j]) + k(y[i], y[j]) for i, j in pairs if i != j)
    return within / (size * (size - 1)) - 2 * sum(k(z[i], y[j]) for i, j in pairs) / size**2


@for_each("kernel", KERNELS)
@for_each("scales", [(1.0,), (0.1, 2.0, 7.0)])
@for_each("num_samples", [1, 2])
def test_mmd_agrees_with_the_double_sum(kernel, scales, num_samples):
    vae, x = small_vae(), torch.randn(6, DATA)
    function, formula = KERNELS[kernel]
    record = vae(x, num_samples=num_samples)
    torch.manual_seed(5)
    penalty = MMDRegularizer(0.3, kernel=function, scales=scales)(vae, Batch(x), record)
    torch.manual_seed(5)
    y = vae.prior().sample((num_samples, 6)).numpy()
    z = record.latents[0].z.detach().numpy()
    expected = np.mean([direct_mmd(z[k], y[k], formula, scales) for k in range(num_samples)])
    assert penalty.metrics["mmd"].item() == pytest.approx(expected, rel=1e-12)
    assert penalty.loss.item() == pytest.approx(0.3 * expected, rel=1e-12)


def test_mmd_default_scales_are_those_of_wae():
    """The kernel is k(a, b) = C / (C + |a - b|^2) with C = 2 D s."""
    vae, x = small_vae(), torch.randn(6, DATA)
    record = vae(x)
    torch.manual_seed(5)
    found = MMDRegularizer(1.0)(vae, Batch(x), record).loss.item()
    torch.manual_seed(5)
    y = vae.prior().sample((1, 6)).numpy()[0]
    z = record.latents[0].z.detach().numpy()[0]
    constants = [2 * LATENT * s for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)]
    expected = sum(
        direct_mmd(z, y, lambda d, c=c: c / (c + 2 * LATENT * d), [1.0]) for c in constants
    )
    assert found == pytest.approx(expected, rel=1e-12)


def gaussian_mmd(mean, std, dim, scale):
    """Return the MMD of N(mean, std^2 I) and N(0, I) with the kernel exp(-|a - b|^2 / (2 D s))."""
    h = dim * scale

    def expected_kernel(square, variance):
        return (1 + variance / h) ** (-dim / 2) * math.exp(-square / (2 * (h + variance)))

    cross = expected_kernel(dim * mean**2, 1 + std**2)
    return expected_kernel(0, 2 * std**2) + expected_kernel(0, 2) - 2 * cross


@for_each(("mean", "std"), [(0.0, 1.0), (0.7, 1.0), (0.4, 0.5)])
def test_mmd_is_unbiased(mean, std):
    vae = small_vae()
    with torch.no_grad():
        vae.encoder.head.weight.zero_()
        vae.encoder.head.bias.copy_(torch.tensor([mean, mean, math.log(std), math.log(std)]))
        regularizer, x = (
            MMDRegularizer(1.0, kernel=gaussian_kernel, scales=(0.6,)),
            torch.zeros(4, DATA),
        )
        values = [penalty_of(regularizer, vae, x, 50)[1].loss for _ in range(400)]
    values = torch.stack(values)
    error = values.std().item() / math.sqrt(len(values))
    assert abs(values.mean().item() - gaussian_mmd(mean, std, LATENT, 0.6)) < 4 * error
    assert error < 2e-3


def test_mmd_samples_the_prior_of_each_example():
    """A prior per example is sampled once per example, a common prior for all of them."""
    vae, x = small_vae(), torch.randn(6, DATA)
    record = vae(x, num_samples=3)
    (term,) = record.latents

    class Fixed:
        def __init__(self, batch_shape):
            self.batch_shape = torch.Size(batch_shape)

        def sample(self, shape):
            return term.z.detach().clone().expand(*shape, *self.batch_shape, LATENT)

    for shape in ((), (6,)):
        own = type(term)("z", term.z, term.posterior, Fixed(shape))
        same = type(record)((own,), record.likelihood, record.log_px)
        direct = direct_mmd(*[term.z[0].detach().numpy()] * 2, lambda d: math.exp(-d), [1.0])
        found = MMDRegularizer(1.0, kernel=gaussian_kernel, scales=(1.0,))(
            vae, Batch(x), same
        ).loss.item()
        each = [
            direct_mmd(*[z.detach().numpy()] * 2, lambda d: math.exp(-d), [1.0]) for z in term.z
        ]
        assert each[0] == direct
        assert found == pytest.approx(np.mean(each), rel=1e-12)
