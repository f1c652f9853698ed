"""Scalar families on the real line."""

import math
from abc import ABC
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyvae.distributions.base import Distribution, joint_shape, pooled
from tinyvae.distributions.special import finite_exp, gamma_residual, limited


class ElementwiseNormal(Distribution, ABC):
    """Base class of normal distributions of each element, see :class:`Normal`."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self._mean = mean
        self.log_std = log_std
        self.batch_shape = joint_shape(mean, log_std)

    @property
    def mean(self) -> Tensor:
        """Expected value, ``(*batch)``."""
        has_batch_shape = self._mean.shape == self.batch_shape
        return self._mean if has_batch_shape else self._mean.expand(self.batch_shape)

    @property
    def stddev(self) -> Tensor:
        """Standard deviation, ``(*batch)``."""
        return torch.exp(self.log_std).expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """Variance, ``(*batch)``."""
        return torch.exp(2 * self.log_std).expand(self.batch_shape)

    def entropy(self) -> Tensor:
        """Return the entropy of each element, nats."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).expand(self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each element, nats."""
        standardized = (value - self._mean) * finite_exp(-self.log_std)
        return -0.5 * standardized.square() - self.log_std - 0.5 * math.log(2 * math.pi)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw by reparameterization, mean + std * noise."""
        shape = self._shape(sample_shape)
        noise = torch.randn(shape, dtype=self._mean.dtype, device=self._mean.device)
        return torch.addcmul(self._mean, torch.exp(self.log_std), noise)


class Normal(ElementwiseNormal):
    r"""Normal distribution of each element, by its mean and the logarithm of its scale.

    .. math:: \log p(x) = -\tfrac12 \big((x - \mu) e^{-\log\sigma}\big)^2 - \log\sigma
        - \tfrac12 \log 2\pi

    Args:
        mean: :math:`\mu`, any shape.
        log_std: :math:`\log\sigma`, broadcastable with ``mean``.

    Example:
        >>> Normal(torch.zeros(3), torch.zeros(3)).log_prob(torch.zeros(3))
        tensor([-0.9189, -0.9189, -0.9189])
    """


class StandardNormalDistribution(ElementwiseNormal):
    """Normal distribution of each element with mean 0 and scale 1.

    It computes less than :class:`Normal` with zeros as arguments.

    Args:
        zero: Zeros with the shape of the batch.

    Example:
        >>> StandardNormalDistribution(torch.zeros(3)).log_prob(torch.zeros(3))
        tensor([-0.9189, -0.9189, -0.9189])
    """

    def __init__(self, zero: Tensor) -> None:
        super().__init__(zero, zero)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each element, nats."""
        if not self.agrees_with(value):
            return super().log_prob(value)
        return -0.5 * value.square() - 0.5 * math.log(2 * math.pi)

    def agrees_with(self, *values: Tensor) -> bool:
        """Return True if tensors end in the shape of this batch and have its dtype."""
        for value in values:
            trailing = value.shape[max(0, value.dim() - len(self.batch_shape)) :]
            if trailing != self.batch_shape or value.dtype != self._mean.dtype:
                return False
        return True

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw standard normal noise."""
        shape = self._shape(sample_shape)
        return torch.randn(shape, dtype=self._mean.dtype, device=self._mean.device)


class Laplace(Distribution):
    r"""Laplace distribution of each element, by its mean and the logarithm of its scale.

    .. math:: \log p(x) = -|x - \mu| e^{-\log b} - \log b - \log 2

    At :math:`x = \mu` the gradient in x and :math:`\mu` is zero, the mean of both sides.

    Args:
        mean: :math:`\mu`, any shape.
        log_scale: :math:`\log b`, broadcastable with ``mean``.

    Example:
        >>> Laplace(torch.zeros(2), torch.zeros(2)).log_prob(torch.tensor([0.0, 3.0]))
        tensor([-0.6931, -3.6931])
    """

    def __init__(self, mean: Tensor, log_scale: Tensor) -> None:
        self._mean, self.log_scale = mean, log_scale
        self.batch_shape = joint_shape(mean, log_scale)

    @property
    def mean(self) -> Tensor:
        """Expected value, ``(*batch)``."""
        return self._mean.expand(self.batch_shape)

    @property
    def stddev(self) -> Tensor:
        """Standard deviation, ``(*batch)``."""
        return math.sqrt(2) * torch.exp(self.log_scale).expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """Variance, ``(*batch)``."""
        return 2 * torch.exp(2 * self.log_scale).expand(self.batch_shape)

    def entropy(self) -> Tensor:
        """Return the entropy of each element, nats."""
        return (self.log_scale + 1 + math.log(2)).expand(self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each element, nats."""
        distance = (value - self._mean).abs() * finite_exp(-self.log_scale)
        return -distance - self.log_scale - math.log(2)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw by reparameterization: the difference of two exponential draws is Laplace."""
        shape = torch.Size((2, *self._shape(sample_shape)))
        noise: Tensor = torch.diff(self._mean.new_empty(shape).exponential_(), dim=0)[0]
        return self._mean + torch.exp(self.log_scale) * noise


class StudentT(Distribution):
    r"""Student's t distribution of each element, by location, log scale and log degrees of freedom.

    .. math:: \log p(x) = \log \frac{\Gamma(\frac{\nu + 1}{2})}{\Gamma(\frac\nu2) \sqrt{\pi \nu}}
        - \log\sigma - \frac{\nu + 1}{2} \log\Big(1 + \frac{(x - \mu)^2}{\nu \sigma^2}\Big)

    Args:
        loc: :math:`\mu`, any shape: the median, and the mean if :math:`\nu > 1`.
        log_scale: :math:`\log\sigma`, broadcastable with ``loc``.
        log_df: :math:`\log\nu`, degrees of freedom, broadcastable with ``loc``. It is limited to
            half the range of the precision, -44 to 44 in float32, so that its products are finite.

    Example:
        >>> StudentT(torch.zeros(2), torch.zeros(2), torch.zeros(2)).log_prob(torch.zeros(2))
        tensor([-1.1447, -1.1447])
    """

    has_rsample = False

    def __init__(self, loc: Tensor, log_scale: Tensor, log_df: Tensor) -> None:
        limit = 0.5 * math.log(torch.finfo(log_df.dtype).max)
        self.loc, self.log_scale = loc, log_scale
        self.log_df = limited(log_df, least=-limit, most=limit)
        self.batch_shape = joint_shape(loc, log_scale, log_df)

    @property
    def mean(self) -> Tensor:
        """Expected value, ``(*batch)``; NaN at one degree of freedom or less."""
        return self.loc.where(self.log_df > 0, math.nan).expand(self.batch_shape)

    def point_estimate(self, weights: Tensor | None = None) -> Tensor:
        """Return the location, which exists for any degrees of freedom."""
        return pooled(self.loc.expand(self.batch_shape), weights)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each element, nats."""
        df = torch.exp(self.log_df)
        # log Gamma(a + 1/2) - log Gamma(a) - log(a) / 2 with a = df / 2; the large terms cancel.
        a, log_a = df / 2, self.log_df - math.log(2)
        growth = (a + 0.5) * torch.log1p(0.5 / a) - 0.5
        growth = growth + gamma_residual(a + 0.5, torch.log(a + 0.5)) - gamma_residual(a, log_a)
        # log(1 + s^2), by the logarithm of s if s^2 or the width may overflow.
        distance, log_width = (value - self.loc).abs(), self.log_scale + 0.5 * self.log_df
        log_s = torch.log(distance.clamp(min=torch.finfo(distance.dtype).tiny)) - log_width
        is_near = (log_s < 20) & (log_width.abs() < 80) | (distance == 0)
        near = torch.log1p((distance.where(is_near, 0.0) * finite_exp(-log_width)).square())
        tail = (a + 0.5) * torch.where(is_near, near, F.softplus(2 * log_s, threshold=40))
        return growth - 0.5 * math.log(2 * math.pi) - self.log_scale - tail

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw without gradients: normal draws, divided by roots of chi-squared draws."""
        shape = self._shape(sample_shape)
        with torch.no_grad():
            half = torch.exp(self.log_df).expand(shape) / 2
            spread = torch.rsqrt(torch._standard_gamma(half) / half)
            return self.loc + torch.exp(self.log_scale) * spread * torch.randn_like(spread)
