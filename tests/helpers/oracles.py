"""Models whose evidence and posteriors are known exactly, and quadrature for small ones."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from tinyvae import MLP, VAE, Encoder, GaussianEncoder, GaussianLikelihood
from tinyvae.distributions import Independent, Normal
from tinyvae.models import LatentTerm, LatentVariableModel, VAEOutput


def gauss_hermite(num_nodes: int, dim: int = 1) -> tuple[Tensor, Tensor]:
    """Return nodes ``(n ** dim, dim)`` and log weights ``(n ** dim,)`` of means under N(0, I)."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(num_nodes))
    log_weights = weights.log() - 0.5 * math.log(2 * math.pi)
    grid = torch.cartesian_prod(*[nodes] * dim).reshape(-1, dim)
    return grid, torch.cartesian_prod(*[log_weights] * dim).reshape(-1, dim).sum(1)


def log_evidence(vae: VAE, x: Tensor, num_nodes: int) -> Tensor:
    """Return log p(x) ``(B,)`` of a VAE with an N(0, I) prior of 1 or 2 latents by quadrature."""
    nodes, log_weights = gauss_hermite(num_nodes, vae.latent_shape.numel())
    log_px = vae.decode(nodes[:, None]).log_prob(x)  # (n, B)
    return (log_px + log_weights[:, None]).logsumexp(0)


def log_weight_at(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    """Return log importance weights ``(K, B)`` at given latents."""
    term = LatentTerm("z", z, vae.encode(x), vae.prior())
    likelihood = vae.decode(z)
    return VAEOutput((term,), likelihood, likelihood.log_prob(x)).log_weight()


@dataclass(frozen=True)
class LinearGaussian:
    """z ~ N(0, I), x given z ~ N(W z + b, std^2 I), as a VAE with the exact posterior."""

    vae: VAE
    evidence: MultivariateNormal

    def spoil_posterior(self, mean: float = 0.3, log_std: float = 0.2) -> VAE:
        """Shift the posterior's mean and log std in place, without a change of the evidence."""
        shift = torch.tensor([mean, log_std]).repeat_interleave(self.vae.latent_shape[0])
        with torch.no_grad():
            self.vae.encoder.head.bias += shift
        return self.vae


def linear_gaussian(weight: Tensor, bias: Tensor, std: float) -> LinearGaussian:
    """Return the model for ``weight`` ``(data, latent)`` with orthogonal columns."""
    num_data, num_latents = weight.shape
    precision = 1 + weight.square().sum(0) / std**2
    gain = weight.T / (std**2 * precision[:, None])  # (latent, data)
    encoder = GaussianEncoder(nn.Identity(), num_latents, features=num_data)
    decoder = MLP(num_latents, hidden=(), out_shape=num_data)
    with torch.no_grad():
        encoder.head.weight.copy_(torch.cat([gain, torch.zeros_like(gain)]))
        encoder.head.bias.copy_(torch.cat([-gain @ bias, -0.5 * precision.log()]))
        decoder.layers[0].weight.copy_(weight)
        decoder.layers[0].bias.copy_(bias)
    covariance = weight @ weight.T + std**2 * torch.eye(num_data)
    vae = VAE(encoder, decoder, GaussianLikelihood(std))
    return LinearGaussian(vae, MultivariateNormal(bias, covariance))


def random_linear_gaussian(num_data: int = 5, num_latents: int = 2) -> LinearGaussian:
    """Return a model with random weights."""
    u, s, _ = torch.linalg.svd(torch.randn(num_data, num_latents), full_matrices=False)
    return linear_gaussian(u * s, torch.randn(num_data), std=0.7)


def conjugate_normal() -> LinearGaussian:
    """z ~ N(0, 1), x given z ~ N(z, 1), but q = N(0.4, variance 2/3) for every x."""
    model = linear_gaussian(torch.ones(1, 1), torch.zeros(1), std=1.0)
    with torch.no_grad():
        model.vae.encoder.head.weight.zero_()
        model.vae.encoder.head.bias.copy_(torch.tensor([0.4, 0.5 * math.log(2 / 3)]))
    return model


class TwoLayers(LatentVariableModel):
    """z2 ~ N(0, I), z1 given z2 ~ N(a z2, s1^2), x given z1 ~ N(U w z1, s^2), all exact.

    The columns of U are orthonormal, so everything factorizes over the latent dimensions.
    ``top_down`` draws z2 given x, then z1 given z2 and x; otherwise z1 given x, then z2 given z1.
    """

    is_density = True

    def __init__(self, *, top_down: bool, num_data: int = 4, num_latents: int = 2) -> None:
        super().__init__()
        self.top_down = top_down
        self.u = torch.linalg.qr(torch.randn(num_data, num_latents)).Q
        self.w, self.a = torch.rand(2, num_latents) + 0.5
        self.s1, self.s = 0.6, 0.8

    @property
    def evidence(self) -> MultivariateNormal:
        variances = self.w**2 * (self.a**2 + self.s1**2)
        covariance = (self.u * variances) @ self.u.T + self.s**2 * torch.eye(len(self.u))
        return MultivariateNormal(torch.zeros(len(self.u)), covariance)

    def forward(
        self, x: Tensor, context: None = None, *, mask: None = None, num_samples: int = 1
    ) -> VAEOutput:
        w, a, s, s1 = self.w, self.a, self.s, self.s1
        t = x @ self.u  # (B, D), sufficient
        if self.top_down:
            noise = s**2 + (w * s1) ** 2  # of t given z2
            q2 = _normal(1 + (w * a) ** 2 / noise, w * a * t / noise)
            z2 = q2.sample((num_samples,))
            q1 = _normal(1 / s1**2 + (w / s) ** 2, a * z2 / s1**2 + w * t / s**2)
            z1 = q1.sample()
        else:
            q1 = _normal(1 / (a**2 + s1**2) + (w / s) ** 2, w * t / s**2)
            z1 = q1.sample((num_samples,))
            q2 = _normal(1 + (a / s1) ** 2, a * z1 / s1**2)
            z2 = q2.sample()
        zero = torch.zeros_like(a)
        p1 = Independent(Normal(a * z2, zero + math.log(s1)), 1)
        likelihood = Independent(
            Normal((w * z1) @ self.u.T, torch.tensor(math.log(s), dtype=x.dtype)), 1
        )
        terms = (
            # Bottom-up, the prior of z1 depends on a z2 that was drawn from z1.
            LatentTerm("z1", z1, q1, p1, analytic=self.top_down),
            LatentTerm("z2", z2, q2, Independent(Normal(zero, zero), 1)),
        )
        return VAEOutput(terms, likelihood, likelihood.log_prob(x))

    def check(self, x: Tensor, context: None = None, *, mask: None = None) -> VAEOutput:
        return self(x[:2])


def _normal(precision: Tensor, linear: Tensor) -> Independent:
    """Return the normal density proportional to exp(linear z - precision z^2 / 2)."""
    mean = linear / precision
    return Independent(Normal(mean, (-0.5 * precision.log()).expand(mean.shape)), 1)


class Rows(Encoder):
    """q(z given x) = N(mean, exp(log_std)^2) of one latent, with parameters for each example.

    So the gradient of a batch of ``B`` equal data is that of ``B`` draws, one by one.
    """

    latent_shape = torch.Size((1,))

    def __init__(self, num_rows: int, mean: float, log_std: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.full((num_rows, 1), mean))
        self.log_std = nn.Parameter(torch.full((num_rows, 1), log_std))

    def forward(self, x: Tensor, context: None = None) -> Independent:
        return Independent(Normal(self.mean, self.log_std), 1)

    def config(self) -> dict[str, object]:
        return {}


class Scale(nn.Module):
    """Decoder from z to weight z, with a weight for each example."""

    def __init__(self, num_rows: int, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((num_rows, 1), weight))

    def forward(self, z: Tensor) -> Tensor:
        return (z.reshape(-1, len(self.weight), 1) * self.weight).flatten(0, 1)


def one_latent(num_rows: int, mean: float, log_std: float, weight: float = 1.0) -> VAE:
    """z ~ N(0, 1), x given z ~ N(weight z, 1), q = N(mean, exp(log_std)^2)."""
    encoder, decoder = Rows(num_rows, mean, log_std), Scale(num_rows, weight)
    return VAE(encoder, decoder, GaussianLikelihood(1.0))


def exact_iwae(
    mean: Tensor, log_std: Tensor, weight: Tensor, num_samples: int, x: float = 1.0
) -> Tensor:
    """Return IWAE_K of :func:`one_latent` by quadrature, with gradients.

    With S the sum of the weights, E log S is the integral over s of exp(-exp(s)) - M(exp(s))^K,
    where M(t) = E exp(-t w): Frullani's integral.
    """
    nodes, log_mass = gauss_hermite(200)
    z = mean + log_std.exp() * nodes[:, 0]
    log_px = -0.5 * (x - weight * z) ** 2 - 0.5 * math.log(2 * math.pi)
    log_w = log_px - 0.5 * z**2 + 0.5 * nodes[:, 0] ** 2 + log_std  # the normal constants cancel
    s = torch.linspace(-60.0, 60.0, 24_001)
    laplace = (log_mass + -(s[:, None] + log_w).exp()).exp().sum(1)  # M(exp(s))
    integrand = (-s.exp()).exp() - laplace**num_samples
    return integrand.sum() * (s[1] - s[0]) - math.log(num_samples)
