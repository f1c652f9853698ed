r"""Normal distributions of vectors with correlated dimensions, and points.

A covariance is stored as a factor, so that densities, draws and divergences need no inverse.
"""

import math
from abc import ABC
from collections.abc import Sequence

import torch
from torch import Tensor

from tinyvae.distributions.base import Distribution
from tinyvae.distributions.special import autocast_disabled, limited


class FullNormal(Distribution):
    r"""Normal distribution of a vector, by its mean and the Cholesky factor of its covariance.

    .. math:: \Sigma = L L^\top, \qquad \log p(x) = -\tfrac12 \|L^{-1} (x - \mu)\|^2
        - \textstyle\sum_i \log L_{ii} - \tfrac D2 \log 2\pi

    Args:
        mean: :math:`\mu`, ``(*batch, D)``.
        log_diagonal: :math:`\log L_{ii}`, ``(*batch, D)``.
        lower: Matrix ``(*batch, D, D)`` with the entries of :math:`L` below the diagonal. Its other
            entries are ignored.

    Example:
        >>> p = FullNormal(torch.zeros(2), torch.zeros(2), torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
        >>> p.log_prob(torch.tensor([1.0, 3.0]))  # -log(2 pi) - 1/2
        tensor(-2.3379)
    """

    yields_log_prob = True

    def __init__(self, mean: Tensor, log_diagonal: Tensor, lower: Tensor) -> None:
        self._mean, self.log_diagonal = mean, log_diagonal
        self.scale_tril = lower.tril(-1) + torch.diag_embed(log_diagonal.exp())
        shape = torch.broadcast_shapes(mean.shape, self.scale_tril.shape[:-1])
        self.batch_shape, self.event_shape = shape[:-1], shape[-1:]

    @property
    def mean(self) -> Tensor:
        """Expected value, ``(*batch, D)``."""
        return self._mean.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of each element, ``(*batch, D)``: the diagonal of the covariance."""
        variance: Tensor = self.scale_tril.square().sum(-1)
        return variance.expand(self.batch_shape + self.event_shape)

    def entropy(self) -> Tensor:
        """Return the entropy, nats."""
        constant = 0.5 * self.event_shape[0] * math.log(2 * math.pi * math.e)
        return (self.log_diagonal.sum(-1) + constant).expand(self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, nats."""
        difference = value - self._mean
        noise = torch.linalg.solve_triangular(
            self.scale_tril, difference.unsqueeze(-1), upper=False
        ).squeeze(-1)
        return self._log_density(_overflow_to_inf(noise.square().sum(-1), difference))

    def _log_density(self, square: Tensor) -> Tensor:
        constant = 0.5 * self.event_shape[0] * math.log(2 * math.pi)
        return -0.5 * square - self.log_diagonal.sum(-1) - constant

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw by reparameterization, mean + L noise."""
        return self._draw(sample_shape)[0]

    def sample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw values and return them with the log density of their noise, nats.

        It is exact for any factor. Solving for the noise loses digits if the factor is
        ill-conditioned.
        """
        value, noise = self._draw(sample_shape)
        return value, self._log_density(noise.square().sum(-1))

    def _draw(self, sample_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return draws and their noise, both ``(*sample_shape, *batch, D)``."""
        noise = self._mean.new_empty(self._shape(sample_shape)).normal_()
        with autocast_disabled(noise):
            return self._mean + (self.scale_tril @ noise.unsqueeze(-1)).squeeze(-1), noise


class LowRankNormal(Distribution):
    r"""Normal distribution of a vector with a low-rank plus diagonal covariance.

    .. math:: \Sigma = W W^\top + \operatorname{diag} \sigma^2

    Densities take :math:`O(D r^2)` operations, with the determinant and the inverse of
    :math:`C = I + W^\top \operatorname{diag}(\sigma^{-2}) W`, ``(r, r)``.

    Args:
        mean: :math:`\mu`, ``(*batch, D)``.
        log_std: :math:`\log\sigma`, ``(*batch, D)``. Each :math:`\sigma_i` is limited below to
            :math:`\|W_i\| \sqrt\epsilon / e`, an 8,000th of the length of its row in float32.
            Smaller ones would be lost to rounding next to W.
        factor: :math:`W`, ``(*batch, D, r)``.

    Example:
        >>> p = LowRankNormal(torch.zeros(2), torch.zeros(2), torch.tensor([[3.0], [0.0]]))
        >>> p.log_prob(torch.zeros(2))  # -log(2 pi) - log(10) / 2
        tensor(-2.9892)
    """

    yields_log_prob = True

    def __init__(self, mean: Tensor, log_std: Tensor, factor: Tensor) -> None:
        precision = torch.finfo(factor.dtype)
        length = torch.linalg.vector_norm(factor.detach(), dim=-1)
        least = torch.log(length) + 0.5 * math.log(precision.eps) - 1
        log_std = limited(log_std, least=least.clamp(min=0.99 * math.log(precision.tiny)))
        self._mean, self.log_std, self.factor = mean, log_std, factor
        shape = torch.broadcast_shapes(mean.shape, log_std.shape, factor.shape[:-1])
        self.batch_shape, self.event_shape = shape[:-1], shape[-1:]
        self._scaled = factor * torch.exp(-log_std).unsqueeze(-1)  # U, (*batch, D, r)
        identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        stacked = torch.cat([self._scaled, identity.expand(*self._scaled.shape[:-2], -1, -1)], -2)
        # [U; I] = Q R and C = R' R. A QR decomposition does not square the condition number of U.
        self._basis, self._root = torch.linalg.qr(stacked)  # (*batch, D + r, r), (*batch, r, r)

    @property
    def mean(self) -> Tensor:
        """Expected value, ``(*batch, D)``."""
        return self._mean.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of each element, ``(*batch, D)``: the diagonal of the covariance."""
        variance: Tensor = torch.exp(2 * self.log_std) + self.factor.square().sum(-1)
        return variance.expand(self.batch_shape + self.event_shape)

    def entropy(self) -> Tensor:
        """Return the entropy, nats."""
        constant = 0.5 * self.event_shape[0] * math.log(2 * math.pi * math.e)
        entropy = self.log_std.sum(-1) + 0.5 * self.log_det_excess + constant
        return entropy.expand(self.batch_shape)

    @property
    def log_det_excess(self) -> Tensor:
        """Log determinant of the covariance minus that of its diagonal part, ``(*batch)``."""
        log_diagonal: Tensor = self._root.diagonal(dim1=-2, dim2=-1).abs().log()
        return 2 * log_diagonal.sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, nats."""
        difference = value - self._mean
        standardized = difference * torch.exp(-self.log_std)
        # With s the standardized value and a = C^-1 U' s, the quadratic form s' (I + U U')^-1 s is
        # |s - U a|^2 + |a|^2, a sum without cancellation.
        with autocast_disabled(standardized):
            # a = R^-1 Q' (s, 0). Solving C a = U' s would square the condition number.
            along = self._basis[..., : self.event_shape[0], :].mT @ standardized.unsqueeze(-1)
            along = torch.linalg.solve_triangular(self._root, along, upper=True)  # (..., r, 1)
            rest = standardized - (self._scaled @ along).squeeze(-1)
        square = rest.square().sum(-1) + along.square().sum((-2, -1))
        return self._log_density(_overflow_to_inf(square, difference))

    def _log_density(self, square: Tensor) -> Tensor:
        constant = 0.5 * self.event_shape[0] * math.log(2 * math.pi)
        return -0.5 * (square + self.log_det_excess) - self.log_std.sum(-1) - constant

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw by reparameterization, mean + W noise + std noise."""
        return self._draw(sample_shape)[0]

    def sample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw values and return them with their log density, computed from their noise, nats.

        It is exact for any covariance. The quadratic form of a value loses digits if W is much
        larger than the standard deviations.
        """
        value, noise = self._draw(sample_shape)
        # The quadratic form is the squared distance of (s, 0) from the span of (U, I). With noise
        # (n, e) and s = U e + n, (n, -e) has the same distance.
        with autocast_disabled(noise):
            inside = self._basis @ (self._basis.mT @ noise)
        return value, self._log_density((noise - inside).square().sum((-2, -1)))

    def _draw(self, sample_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return draws ``(*sample_shape, *batch, D)``, and their noise (n, -e) as columns."""
        shape = self._shape(sample_shape)
        noise = self._mean.new_empty(shape).normal_()
        along = self._mean.new_empty((*shape[:-1], self.factor.shape[-1], 1)).normal_()
        with autocast_disabled(noise):
            draw: Tensor = (self.factor @ along).squeeze(-1)
        value = self._mean + torch.exp(self.log_std) * noise + draw
        return value, torch.cat([noise.unsqueeze(-1), -along], -2)


def _overflow_to_inf(square: Tensor, difference: Tensor) -> Tensor:
    """Return quadratic forms ``(...)`` of differences ``(..., D)``, infinite if they overflow.

    Solving with an extreme factor subtracts infinities. The result is NaN for a density of zero.
    """
    overflow = torch.isnan(square) & torch.isfinite(difference).all(-1)
    return square.masked_fill(overflow, math.inf)


class PointMass(Distribution, ABC):
    """Base class of distributions with all mass on one value.

    Args:
        value: The value, ``(*batch, *event)``.
        event_ndim: Number of event dimensions.
    """

    depends_on_parameters = False

    def __init__(self, value: Tensor, event_ndim: int) -> None:
        self.value = value
        split = value.dim() - event_ndim
        self.batch_shape, self.event_shape = value.shape[:split], value.shape[split:]

    @property
    def mean(self) -> Tensor:
        """The value, ``(*batch, *event)``."""
        return self.value

    @property
    def variance(self) -> Tensor:
        """Zero, ``(*batch, *event)``."""
        return torch.zeros_like(self.value)

    def entropy(self) -> Tensor:
        """Return the entropy of the mass: zero."""
        return self.value.new_zeros(self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return zero at the value and minus infinity elsewhere."""
        is_equal = value == self.value
        if self.event_shape:
            is_equal = is_equal.flatten(-len(self.event_shape)).all(-1)
        zero = torch.zeros_like(is_equal, dtype=self.value.dtype)
        return zero.masked_fill(~is_equal, -math.inf)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return the value as every draw, with gradients."""
        return self.value.expand(self._shape(sample_shape))


class Delta(PointMass):
    """A point: every draw is the same vector.

    It has no density. ``log_prob`` is the log of its mass, 0 nats at the point and minus infinity
    elsewhere, so that log q - log p of a bound is -log p(z) at the point.

    Args:
        value: The point, ``(*batch, *event)``.
        event_ndim: Number of event dimensions.

    Example:
        >>> Delta(torch.zeros(5, 2), 1).log_prob(torch.zeros(5, 2))
        tensor([0., 0., 0., 0., 0.])
    """

    is_density = False
