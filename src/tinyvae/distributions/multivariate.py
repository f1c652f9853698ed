r"""Normal distributions of vectors with correlated dimensions, and points.

A covariance is stored as a factor, so that densities, draws and divergences need no inverse.
"""

import math
from abc import ABC
from collections.abc import Sequence

import torch
from torch import Tensor

from tinyvae.distributions.base import Distribution
from tinyvae.distributions.special import autocast_disabled


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
        difference = (value - self._mean).unsqueeze(-1)
        standardized = torch.linalg.solve_triangular(self.scale_tril, difference, upper=False)
        square: Tensor = standardized.squeeze(-1).square().sum(-1)
        constant = 0.5 * self.event_shape[0] * math.log(2 * math.pi)
        return -0.5 * square - self.log_diagonal.sum(-1) - constant

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw by reparameterization, mean + L noise."""
        shape = self._shape(sample_shape)
        noise = self._mean.new_empty(shape).normal_()
        with autocast_disabled(noise):
            return self._mean + (self.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)


class LowRankNormal(Distribution):
    r"""Normal distribution of a vector with a low-rank plus diagonal covariance.

    .. math:: \Sigma = W W^\top + \operatorname{diag} \sigma^2

    Densities take :math:`O(D r^2)` operations, with the determinant and the inverse of
    :math:`C = I + W^\top \operatorname{diag}(\sigma^{-2}) W`, ``(r, r)``.

    Args:
        mean: :math:`\mu`, ``(*batch, D)``.
        log_std: :math:`\log\sigma`, ``(*batch, D)``.
        factor: :math:`W`, ``(*batch, D, r)``.

    Example:
        >>> p = LowRankNormal(torch.zeros(2), torch.zeros(2), torch.tensor([[3.0], [0.0]]))
        >>> p.log_prob(torch.zeros(2))  # -log(2 pi) - log(10) / 2
        tensor(-2.9892)
    """

    def __init__(self, mean: Tensor, log_std: Tensor, factor: Tensor) -> None:
        self._mean, self.log_std, self.factor = mean, log_std, factor
        shape = torch.broadcast_shapes(mean.shape, log_std.shape, factor.shape[:-1])
        self.batch_shape, self.event_shape = shape[:-1], shape[-1:]
        self._scaled = factor * torch.exp(-log_std).unsqueeze(-1)  # U, (*batch, D, r)
        identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        stacked = torch.cat([identity.expand(*self._scaled.shape[:-2], -1, -1), self._scaled], -2)
        # C = I + U' U = R' R. A QR decomposition does not square the condition number of U.
        self._root = torch.linalg.qr(stacked).R

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
        standardized = (value - self._mean) * torch.exp(-self.log_std)
        # With s the standardized value and a = C^-1 U' s, the quadratic form s' (I + U U')^-1 s is
        # |s - U a|^2 + |a|^2, a sum without cancellation.
        with autocast_disabled(standardized):
            along = self._scaled.mT @ standardized.unsqueeze(-1)  # (..., r, 1)
            along = torch.linalg.solve_triangular(self._root.mT, along, upper=False)
            along = torch.linalg.solve_triangular(self._root, along, upper=True)
            rest = standardized - (self._scaled @ along).squeeze(-1)
        square: Tensor = rest.square().sum(-1) + along.square().sum((-2, -1))
        constant = 0.5 * self.event_shape[0] * math.log(2 * math.pi)
        return -0.5 * (square + self.log_det_excess) - self.log_std.sum(-1) - constant

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw by reparameterization, mean + W noise + std noise."""
        shape = self._shape(sample_shape)
        noise = self._mean.new_empty(shape).normal_()
        along = self._mean.new_empty((*shape[:-1], self.factor.shape[-1], 1)).normal_()
        with autocast_disabled(noise):
            draw: Tensor = (self.factor @ along).squeeze(-1)
        return self._mean + torch.exp(self.log_std) * noise + draw


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
