"""Distributions on the sphere."""

import math

import mpmath
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F
from helpers.cases import for_each
from helpers.distributions import ks, power_spherical

from tinyvae import VAE, GaussianLikelihood
from tinyvae.distributions import PowerSpherical, SphereUniform, kl_divergence
from tinyvae.encoders import PowerSphericalEncoder
from tinyvae.evaluation import log_marginal
from tinyvae.priors import SphereUniformPrior

pytestmark = pytest.mark.usefixtures("float64")


@for_each("concentration", [1e-3, 1.0, 30.0])
def test_power_spherical_integrates_to_one(concentration):
    log_concentration = torch.tensor(concentration).log()
    angle = torch.arange(4000) * (2 * math.pi / 4000)
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    p = power_spherical(torch.randn(2), log_concentration)
    assert p.log_prob(circle).exp().mean().item() * 2 * math.pi == pytest.approx(1, abs=1e-5)
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(200))
    around = circle[::20] * (1 - nodes.square()).sqrt()[:, None, None]  # (height, angle, 2)
    sphere = torch.cat([around, nodes[:, None, None].expand(-1, 200, 1)], -1)
    p = power_spherical(torch.randn(3), log_concentration)
    total = (p.log_prob(sphere).exp().mean(1) * weights).sum().item() * 2 * math.pi
    assert total == pytest.approx(1, abs=1e-6)


@for_each("dtype", [torch.float32, torch.float64])
@for_each("concentration", [1e-3, 1.0, 20.0, 1e5])
@for_each("dim", [2, 3, 5, 20])
def test_draws_on_the_sphere(dim, concentration, dtype):
    direction = F.normalize(torch.randn(dim), dim=-1).to(dtype)
    log_concentration = torch.tensor(concentration, dtype=dtype).log()
    z = PowerSpherical(direction, log_concentration).sample((4000,))
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(4000, dtype=dtype), rtol=0, atol=8 * eps)
    down = (z - direction).double().square().sum(-1) / 4
    beta = (dim - 1) / 2
    assert ks(down, scipy.stats.beta(beta, beta + concentration).cdf) > 1e-4
    # Around the direction it is uniform, whatever the height.
    basis = torch.linalg.qr(torch.cat([direction.double()[:, None], torch.eye(dim)], 1)).Q[:, 1:dim]
    around = F.normalize(z.double() @ basis, dim=-1)
    if dim == 2:
        assert scipy.stats.binomtest(int((around > 0).sum()), 4000).pvalue > 1e-4
    else:
        beta = (dim - 2) / 2
        for column in around.T[:3]:
            assert ks((1 + column) / 2, scipy.stats.beta(beta, beta).cdf) > 1e-4
    assert abs(scipy.stats.spearmanr(around[:, 0], down).statistic) < 4 / math.sqrt(4000)


@for_each("dim", [2, 3, 20])
def test_draws_of_the_whole_sphere(dim):
    z = SphereUniform(torch.zeros(dim)).sample((4000,))
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(4000))
    beta = (dim - 1) / 2
    for column in (z @ torch.linalg.qr(torch.randn(dim, dim)).Q).T[:4]:
        assert ks((1 + column) / 2, scipy.stats.beta(beta, beta).cdf) > 1e-4


def test_power_spherical_point_estimate():
    p = power_spherical(torch.randn(4, 3), torch.randn(4))
    torch.testing.assert_close(p.point_estimate(), p.direction)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    mean = (weights[:, None] * p.mean).sum(0)
    torch.testing.assert_close(p.point_estimate(weights), mean / mean.norm())


def exact_power_spherical(direction, log_concentration, x):
    """Return the log density with sixty digits, after normalizing the vectors."""
    with mpmath.workdps(60):
        u, v = ([mpmath.mpf(float(c)) for c in w] for w in (direction, x))
        length = mpmath.sqrt(mpmath.fsum(c * c for c in u) * mpmath.fsum(c * c for c in v))
        cosine = mpmath.fsum(a * b for a, b in zip(u, v, strict=True)) / length
        k, beta = mpmath.exp(mpmath.mpf(float(log_concentration))), mpmath.mpf(len(u) - 1) / 2
        log_prob = k * mpmath.log((1 + cosine) / 2) - 2 * beta * mpmath.log(2)
        log_prob += mpmath.loggamma(k + 2 * beta) - mpmath.loggamma(k + beta)
        return float(log_prob - beta * mpmath.log(mpmath.pi))


@for_each("dim", [2, 3, 5, 20])
@for_each("concentration", [1e-3, 0.1, 1.0, 10.0, 1e3, 1e5, 1e8])
def test_power_spherical_accuracy(dim, concentration):
    direction = F.normalize(torch.randn(dim), dim=-1).float()
    log_concentration = torch.tensor(math.log(concentration)).float()
    narrow = PowerSpherical(direction, log_concentration)
    far = F.normalize(torch.randn(3, dim), dim=-1).float()
    z = torch.cat([narrow.sample((6,)), direction[None], far])
    exact = [exact_power_spherical(direction, log_concentration, v) for v in z]
    tolerance = 1e-5 + 1e-7 * math.sqrt(concentration)  # the vectors are rounded
    np.testing.assert_allclose(narrow.log_prob(z), exact, rtol=1e-5, atol=tolerance)
    direction, z = F.normalize(direction.double(), dim=-1), F.normalize(z.double(), dim=-1)
    wide = PowerSpherical(direction, log_concentration.double())
    exact = [exact_power_spherical(direction, log_concentration, v) for v in z]
    np.testing.assert_allclose(wide.log_prob(z), exact, rtol=1e-11, atol=1e-4 * tolerance)


@for_each("dtype", [torch.float32, torch.float64])
@for_each("dim", [2, 3, 5, 20])
def test_density_opposite_to_the_direction(dim, dtype):
    # Regression: where rounding makes |x - mu|^2 more than four, the log density is NaN.
    direction = F.normalize(torch.randn(500, dim, dtype=dtype), dim=-1)
    log_prob = PowerSpherical(direction, torch.zeros(500, dtype=dtype)).log_prob(-direction)
    assert not log_prob.isnan().any()
    assert (log_prob < -25).all()  # log eps^2 is -32 in float32


def test_density_of_nearly_uniform_draws_on_the_circle():
    # Regression: NaN, as opposite to the direction, at one of some 30,000 draws.
    direction = F.normalize(torch.randn(100_000, 2).float(), dim=-1)
    p = PowerSpherical(direction, torch.full((100_000,), -7.0).float())
    assert p.log_prob(p.sample()).isfinite().all()


@for_each("dtype", [torch.float32, torch.float64])
@for_each("angle", [0.0, 1e-6, 1e-4, 1e-2, math.pi - 1e-4, math.pi])
@for_each("dim", [2, 3, 5])
def test_draws_near_the_poles(dim, angle, dtype):
    """The pole of the reflection, e1, and its opposite are ordinary directions."""
    direction = torch.zeros(dim)
    direction[0], direction[1] = math.cos(angle), math.sin(angle)
    if angle == math.pi:
        direction = -torch.eye(dim)[0]
    direction = direction.to(dtype)
    for concentration in (1.0, 1e4):
        p = PowerSpherical(direction, torch.tensor(concentration, dtype=dtype).log())
        z = p.sample((4000,))
        eps = torch.finfo(dtype).eps
        assert ((z.norm(dim=-1) - 1).abs() < 8 * eps).all()
        error = z.double().std(0) / math.sqrt(4000) + 2 * eps
        assert ((z.double().mean(0) - p.mean).abs() < 4.5 * error).all()
        down = (z - direction).double().square().sum(-1) / 4
        beta = (dim - 1) / 2
        assert ks(down, scipy.stats.beta(beta, beta + concentration).cdf) > 1e-4


@for_each("angle", [0.0, 1e-3, 0.1, 1.5, 3.0, math.pi])
def test_gradient_of_draws_near_the_poles(angle):
    # Regression: at the pole the gradient is zero, and near it its error grows as 1 / angle.
    direction = torch.zeros(4000, 3)
    direction[:, 0], direction[:, 1] = math.cos(angle), math.sin(angle)
    direction.requires_grad_()
    p = PowerSpherical(direction, torch.zeros(4000))
    (gradient,) = torch.autograd.grad(p.sample()[:, 2].sum(), direction)
    error = gradient[:, 2].std() / math.sqrt(4000)
    assert error < 0.1
    assert (gradient[:, 2].mean() - 1 / 3).abs() < 4.5 * error  # E z is direction k / (D - 1 + k)


@for_each("dtype", [torch.float32, torch.float64])
@for_each("concentration", [1e-2, 1.0, 100.0, 1e4, 1e5])
@for_each("dim", [2, 3, 5])
def test_gradient_of_a_height_to_the_concentration(dim, concentration, dtype):
    # Regression: in float32 at 1e5, shares of a float32 Dirichlet were 34 % too small.
    count = 10_000
    direction = F.normalize(torch.randn(dim), dim=-1).to(dtype)
    log_concentration = torch.full((count,), math.log(concentration), dtype=dtype).requires_grad_()
    z = PowerSpherical(direction, log_concentration).sample()
    (gradient,) = torch.autograd.grad((z * direction).sum(), log_concentration)
    expected = concentration * (dim - 1) / (dim - 1 + concentration) ** 2
    error = gradient.double().std() / math.sqrt(count)
    assert (gradient.double().mean() - expected).abs() < 4.5 * error


@for_each(
    ("dtype", "log_concentration"),
    [(torch.float32, 15.0), (torch.float32, 19.0), (torch.float64, 40.0), (torch.float64, 59.0)],
)
@for_each("dim", [3, 8, 50])
def test_gradient_of_a_radius_at_a_high_concentration(dim, log_concentration, dtype):
    # Regression: gradients of Beta draws were 12 % too large at exp(20), and NaN at exp(40).
    log_concentration = torch.full((1000,), log_concentration, dtype=dtype).requires_grad_()
    direction = torch.eye(dim, dtype=dtype)[1]
    z = PowerSpherical(direction, log_concentration).sample()
    log_radius = torch.cat([z[:, :1], z[:, 2:]], 1).norm(dim=1).log()
    (gradient,) = torch.autograd.grad(log_radius.sum(), log_concentration)
    assert gradient.mean().item() == pytest.approx(-0.5, abs=2e-3)


@for_each("dtype", [torch.float32, torch.float64])
def test_power_spherical_limits_its_concentration(dtype):
    limit = -2 * math.log(torch.finfo(dtype).eps) - 12
    raw = torch.tensor([-1e3, 2.0, limit - 0.1, limit + 0.1, 1e3, 1e30], dtype=dtype)
    raw.requires_grad_()
    p = PowerSpherical(torch.eye(3, dtype=dtype)[0].expand(6, 3), raw)
    torch.testing.assert_close(p.log_concentration, raw.clamp(max=limit), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(p.log_concentration.sum(), raw, retain_graph=True)
    assert (gradient == 1).all()
    z = p.sample((100,))
    (gradient,) = torch.autograd.grad(p.log_prob(z).sum(), raw)
    assert p.log_prob(z).isfinite().all()
    assert gradient.isfinite().all()


@for_each("dtype", [torch.float32, torch.float64])
@for_each("log_concentration", [5.0, 15.0, 19.0, 25.0, 35.0, 40.0, 80.0])
def test_evidence_of_a_model_with_a_narrow_posterior(log_concentration, dtype):
    # Regression: with exp(40) in float32 it exceeded the truth by 600 nats.
    limit = -2 * math.log(torch.finfo(dtype).eps) - 12
    std = math.sqrt(2) * math.exp(-min(log_concentration, limit) / 2)  # as wide as the posterior
    encoder = PowerSphericalEncoder(torch.nn.Identity(), 2, features=2)
    vae = VAE(encoder, torch.nn.Identity(), GaussianLikelihood(std), SphereUniformPrior(2))
    x = F.normalize(torch.randn(20, 2), dim=1).to(dtype)
    with torch.no_grad():
        encoder.head.weight.copy_(torch.eye(3, 2))
        encoder.head.bias.copy_(torch.tensor([0.0, 0.0, log_concentration]))
    estimate = log_marginal(vae.to(dtype), x, num_samples=2000)
    precision = std**-2  # The integral over the circle is a Bessel function.
    exact = math.log(precision * scipy.special.i0e(precision) / (2 * math.pi))
    assert (estimate - exact).abs().max() < 0.05


@for_each(("dtype", "tolerance"), [(torch.float32, 1e-7), (torch.float64, 1e-12)])
@for_each("dim", [2, 8, 50])
def test_kl_at_any_concentration(dim, dtype, tolerance):
    # Regression: differences of digammas and log gammas lost all digits above exp(30).
    direction = torch.eye(dim, dtype=dtype)[0].expand(161, dim)
    log_concentration = torch.arange(-60.0, 101, dtype=dtype).requires_grad_()
    q = PowerSpherical(direction, log_concentration)
    kl = kl_divergence(q, SphereUniform(torch.zeros(dim, dtype=dtype)))
    (gradient,) = torch.autograd.grad(kl.sum(), log_concentration)
    assert (kl >= 0).all()
    area = -SphereUniform(direction[0]).log_prob(direction[0])
    torch.testing.assert_close(q.entropy(), area - kl.detach(), rtol=1e-6, atol=1e-6)
    for row, logarithm in enumerate(q.log_concentration.tolist()):
        with mpmath.workdps(60):
            beta, k = mpmath.mpf(dim - 1) / 2, mpmath.exp(logarithm)
            ratio = mpmath.loggamma(k + 2 * beta) - mpmath.loggamma(k + beta)
            uniform = mpmath.loggamma(2 * beta) - mpmath.loggamma(beta)
            digammas = mpmath.digamma(k + 2 * beta) - mpmath.digamma(k + beta)
            slope = k * k * (mpmath.psi(1, k + beta) - mpmath.psi(1, k + 2 * beta))
            exact = float(ratio - uniform - k * digammas)
        assert kl[row].item() == pytest.approx(exact, rel=tolerance, abs=tolerance)
        assert gradient[row].item() == pytest.approx(float(slope), rel=tolerance, abs=tolerance)


@for_each("dtype", [torch.float32, torch.float64])
def test_power_spherical_has_exact_gradients_of_concentrated_draws(apple, dtype):
    """In 3 dimensions and far above 1, the slope of 1 - mu . z in log kappa is itself negative."""
    device = "mps" if dtype == torch.float32 else "cpu"
    log_concentration = torch.full((50,), 18.0, dtype=dtype).to(device).requires_grad_()
    direction = torch.tensor([0.0, 1.0, 0.0], dtype=dtype).to(device)
    z = PowerSpherical(direction, log_concentration).sample()
    (slope,) = torch.autograd.grad(z[:, 1].sum(), log_concentration)
    depth = 0.5 * z.detach()[:, ::2].square().sum(-1)  # 1 - mu . z, about |z - mu|^2 / 2
    torch.testing.assert_close(slope, depth, rtol=2e-3, atol=0.0)


@pytest.mark.parametrize("dim", [2, 8, 32])
def test_power_spherical_kl_needs_no_float64(apple, dim):
    log_concentration, direction = torch.linspace(-5, 18, 40), torch.eye(dim)[0]

    def kl(device):
        like = torch.zeros(dim).to(device)
        q = PowerSpherical(direction.to(device), log_concentration.to(device))
        return kl_divergence(q, SphereUniform(like)).cpu()

    torch.testing.assert_close(kl("mps"), kl("cpu"), rtol=1e-5, atol=1e-6 * dim)
