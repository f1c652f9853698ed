r"""Distributions on the unit sphere in D dimensions.

.. math:: p(x) \propto (1 + \mu^\top x)^\kappa, \qquad \|x\| = 1

The power spherical distribution resembles a von Mises-Fisher distribution, and needs no rejection
sampling and no Bessel function (De Cao, Aziz 2020).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyvae._devices import widest_float
from tinyvae.distributions.base import Distribution
from tinyvae.distributions.special import digamma_difference, gamma_residual, limited


def log_area(dim: int) -> float:
    """Return the log area of the unit sphere in ``dim`` dimensions."""
    return math.log(2) + 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim)


class SphereUniform(Distribution):
    """Uniform distribution on the unit sphere.

    Args:
        like: Any vector, ``(D,)``, with the size, dtype and device of the draws.

    Example:
        >>> SphereUniform(torch.zeros(2)).log_prob(torch.tensor([1.0, 0.0]))  # -log(2 pi)
        tensor(-1.8379)
    """

    support = "the unit sphere"

    def __init__(self, like: Tensor) -> None:
        self._zero = torch.zeros_like(like)
        self.batch_shape, self.event_shape = torch.Size(), like.shape

    @property
    def mean(self) -> Tensor:
        """Expected value, the origin."""
        return self._zero

    def log_prob(self, value: Tensor) -> Tensor:
        """Return minus the log area, nats."""
        return value.new_full(value.shape[:-1], -log_area(value.shape[-1]))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw unit vectors."""
        shape = self._shape(sample_shape)
        noise = torch.randn(shape, dtype=self._zero.dtype, device=self._zero.device)
        return F.normalize(noise, dim=-1)


class PowerSpherical(Distribution):
    r"""Power spherical distribution, by its direction and its concentration.

    .. math:: \log p(x) = \kappa \log \frac{1 + \mu^\top x}{2} - 2 \beta \log 2 - \beta \log\pi
        + \log \frac{\Gamma(\alpha + \beta)}{\Gamma(\alpha)}, \qquad
        \beta = \tfrac{D - 1}{2}, \quad \alpha = \beta + \kappa

    Args:
        direction: :math:`\mu`, unit vectors ``(*batch, D)``, D >= 2.
        log_concentration: :math:`\log\kappa`, ``(*batch)``. Values above
            :math:`-2 \log\epsilon - 12` are replaced by this limit, with a slope of one in
            gradients: 19.9 in float32, 60.1 in float64. There the distribution is about 500 times
            as wide as the rounding of a unit vector, so that rounding changes the log density of a
            draw by about 0.001 nats. Beyond, the score would be that of the rounding.

    References:
        De Cao, Aziz (2020). The Power Spherical distribution. arXiv:2006.04437.

    Example:
        >>> p = PowerSpherical(torch.tensor([1.0, 0.0, 0.0]), torch.tensor(0.0))
        >>> p.log_prob(torch.tensor([1.0, 0.0, 0.0]))  # -log(2 pi)
        tensor(-1.8379)
    """

    support = "the unit sphere"

    def __init__(self, direction: Tensor, log_concentration: Tensor) -> None:
        limit = -2 * math.log(torch.finfo(log_concentration.dtype).eps) - 12
        self.direction = direction
        self.log_concentration = limited(log_concentration, most=limit)
        shape = torch.broadcast_shapes(direction.shape, (*log_concentration.shape, 1))
        self.batch_shape, self.event_shape = shape[:-1], shape[-1:]

    @property
    def beta(self) -> float:
        """Second parameter of the Beta variable (1 + direction . x) / 2."""
        return 0.5 * (self.event_shape[0] - 1)

    @property
    def concentration(self) -> Tensor:
        """Concentration, ``(*batch)``."""
        return self.log_concentration.exp()

    @property
    def mean(self) -> Tensor:
        """Expected value, inside the sphere, ``(*batch, D)``."""
        shrink = self.concentration / (2 * self.beta + self.concentration)
        return (shrink.unsqueeze(-1) * self.direction).expand(self.batch_shape + self.event_shape)

    def point_estimate(self, weights: Tensor | None = None) -> Tensor:
        """Return the direction, or with weights the direction of the weighted mean."""
        if weights is None:
            return self.direction.expand(self.batch_shape + self.event_shape)
        return F.normalize(super().point_estimate(weights), dim=-1)

    def in_widest_float(self) -> "PowerSpherical":
        """Return the distribution in float64, or in float32 on a device without it."""
        dtype = widest_float(self.direction.device)
        return PowerSpherical(self.direction.to(dtype), self.log_concentration.to(dtype))

    @property
    def log_peak(self) -> Tensor:
        """Log density at the direction, ``(*batch)``, nats."""
        beta, alpha = self.beta, self.beta + self.concentration
        # log Gamma(alpha + beta) - log Gamma(alpha); the large terms are canceled.
        growth = alpha * torch.log1p(beta / alpha) + beta * torch.log(alpha + beta) - beta
        growth = growth + gamma_residual(alpha + beta, torch.log(alpha + beta))
        growth = growth - gamma_residual(alpha, torch.log(alpha))
        return growth - beta * math.log(4 * math.pi)

    def entropy(self) -> Tensor:
        """Return the entropy, ``(*batch)``, nats, in double precision if the device has it."""
        wide = self.in_widest_float()
        alpha = wide.beta + wide.concentration
        height = -digamma_difference(alpha, wide.beta)  # E log (1 + mu . x) / 2
        entropy = -(wide.concentration * height + wide.log_peak)
        return entropy.to(self.log_concentration.dtype).expand(self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density on the sphere, nats."""
        # (1 + mu . x) / 2 = 1 - |x - mu|^2 / 4 is accurate near the direction.
        distance = (value - self.direction).square().sum(-1)
        near = distance < 2
        close = torch.log1p(-0.25 * distance.where(near, 0.0))
        # On the opposite side it is |x + mu|^2 / 4, which rounding never makes negative.
        opposite = (value + self.direction).square().sum(-1) / 4
        far = torch.log(opposite.clamp(min=torch.finfo(distance.dtype).tiny))
        return self.concentration * torch.where(near, close, far) + self.log_peak

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw by reparameterization: a Beta height, a uniform angle, a reflection."""
        shape = self._shape(sample_shape)
        alpha = (self.beta + self.concentration).expand(shape[:-1])
        shapes = torch.stack([alpha, torch.full_like(alpha, self.beta)], -1)
        # A ratio of gamma draws, because torch's gradients of Beta draws are NaN or wrong at large
        # shapes. It is a logarithm, because gradients of shares near 0 and 1 would lose digits.
        gammas = torch._standard_gamma(shapes.to(widest_float(shapes.device)))
        log_ratio = gammas[..., :1].log() - gammas[..., 1:].log()
        up, down = torch.sigmoid(log_ratio), torch.sigmoid(-log_ratio)
        height = torch.where(log_ratio < 0, 2 * up - 1, 1 - 2 * down).to(alpha)
        radius = 2 * torch.sqrt(up * down).to(alpha)
        noise = torch.randn(shape, dtype=alpha.dtype, device=alpha.device)[..., 1:]
        around = F.normalize(noise, dim=-1)
        # Reflect from the farther pole. From the nearer one the axis of reflection may vanish.
        side = torch.where(self.direction[..., :1] > 0, -1.0, 1.0).to(alpha)
        upright = torch.cat([side * height, radius * around], -1)
        pole = F.pad(side, (0, self.event_shape[0] - 1))
        axis = F.normalize(pole - self.direction, dim=-1)
        return upright - 2 * axis * (axis * upright).sum(-1, keepdim=True)
