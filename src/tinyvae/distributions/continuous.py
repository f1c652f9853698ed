"""Scalar families on the real line, the positive numbers and the unit interval."""

import math
from abc import ABC
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyvae.distributions.base import Distribution, joint_shape, pooled
from tinyvae.distributions.special import gamma_residual, log_sinhc

# Below this absolute value of the logits, the mean of a continuous Bernoulli is computed from a
# series. The first omitted term, l^9 / 47,900,160, is 1e-14 at the limit.
_NEAR_UNIFORM = 0.2


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

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each element, nats."""
        standardized = (value - self._mean) * torch.exp(-self.log_std)
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

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each element, nats."""
        distance = (value - self._mean).abs() * torch.exp(-self.log_scale)
        return -distance - self.log_scale - math.log(2)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw by reparameterization: the difference of two exponential draws is Laplace."""
        shape = torch.Size((2, *sample_shape, *self.batch_shape))
        noise: Tensor = torch.diff(self._mean.new_empty(shape).exponential_(), dim=0)[0]
        return self._mean + torch.exp(self.log_scale) * noise


class StudentT(Distribution):
    r"""Student's t distribution of each element, by location, log scale and log degrees of freedom.

    .. math:: \log p(x) = \log \frac{\Gamma(\frac{\nu + 1}{2})}{\Gamma(\frac\nu2) \sqrt{\pi \nu}}
        - \log\sigma - \frac{\nu + 1}{2} \log\Big(1 + \frac{(x - \mu)^2}{\nu \sigma^2}\Big)

    Args:
        loc: :math:`\mu`, any shape: the median, and the mean if :math:`\nu > 1`.
        log_scale: :math:`\log\sigma`, broadcastable with ``loc``.
        log_df: :math:`\log\nu`, degrees of freedom, broadcastable with ``loc``.

    Example:
        >>> StudentT(torch.zeros(2), torch.zeros(2), torch.zeros(2)).log_prob(torch.zeros(2))
        tensor([-1.1447, -1.1447])
    """

    has_rsample = False

    def __init__(self, loc: Tensor, log_scale: Tensor, log_df: Tensor) -> None:
        self.loc, self.log_scale, self.log_df = loc, log_scale, log_df
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
        standardized = (value - self.loc) * torch.exp(-self.log_scale - 0.5 * self.log_df)
        tail = (a + 0.5) * torch.log1p(standardized.square())
        return growth - 0.5 * math.log(2 * math.pi) - self.log_scale - tail

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw without gradients: normal draws, divided by roots of chi-squared draws."""
        shape = self._shape(sample_shape)
        with torch.no_grad():
            half = torch.exp(self.log_df).expand(shape) / 2
            spread = torch.rsqrt(torch._standard_gamma(half) / half)
            return self.loc + torch.exp(self.log_scale) * spread * torch.randn_like(spread)


class LogNormal(Distribution):
    r"""Log-normal distribution of each element: :math:`\log x` is normal.

    .. math:: \log p(x) = \log \mathcal{N}(\log x \mid \mu, \sigma^2) - \log x

    Args:
        mean_log: :math:`\mu`, any shape.
        log_std: :math:`\log\sigma`, broadcastable with ``mean_log``.

    Example:
        >>> LogNormal(torch.zeros(2), torch.zeros(2)).log_prob(torch.ones(2))
        tensor([-0.9189, -0.9189])
    """

    def __init__(self, mean_log: Tensor, log_std: Tensor) -> None:
        self._log = Normal(mean_log, log_std)
        self.batch_shape = self._log.batch_shape

    @property
    def mean(self) -> Tensor:
        """Expected value, ``(*batch)``."""
        return torch.exp(self._log.mean + 0.5 * torch.exp(2 * self._log.log_std))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each element, nats."""
        log_value = torch.log(value)
        return self._log.log_prob(log_value) - log_value

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw by reparameterization."""
        return torch.exp(self._log.sample(sample_shape))


class Beta(Distribution):
    r"""Beta distribution of each element, by its mean and its concentration.

    .. math:: p(x) = \frac{x^{\alpha - 1} (1 - x)^{\beta - 1}}{B(\alpha, \beta)}, \qquad
        \alpha = \mu \kappa, \quad \beta = (1 - \mu) \kappa

    Args:
        logits: Log odds of the mean, :math:`\log \tfrac{\mu}{1 - \mu}`, any shape.
        log_concentration: :math:`\log\kappa`, broadcastable with ``logits``: the variance is
            :math:`\mu (1 - \mu) / (1 + \kappa)`.

    Example:
        >>> Beta(torch.zeros(2), torch.full((2,), 2.0).log()).log_prob(torch.tensor([0.1, 0.9]))
        tensor([0., 0.])
    """

    has_rsample = False

    def __init__(self, logits: Tensor, log_concentration: Tensor) -> None:
        self.logits, self.log_concentration = logits, log_concentration
        self.batch_shape = joint_shape(logits, log_concentration)

    @property
    def mean(self) -> Tensor:
        """Expected value, ``(*batch)``."""
        return torch.sigmoid(self.logits).expand(self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each element, nats."""
        total = torch.exp(self.log_concentration)
        mean, rest = torch.sigmoid(self.logits), torch.sigmoid(-self.logits)
        log_mean, log_rest = F.logsigmoid(self.logits), F.logsigmoid(-self.logits)
        log_x, log_not_x = torch.log(value), torch.log1p(-value)
        far = mean * (log_x - log_mean) + rest * (log_not_x - log_rest)
        # Near the mean both terms are large and nearly cancel. Their linear parts cancel exactly
        # and are omitted.
        near = (value - mean).abs() < 0.5 * torch.minimum(mean, rest)
        excess = torch.where(near, value - mean, 0.0)
        up, down = excess / mean.where(near, 1.0), -excess / rest.where(near, 1.0)
        close = mean * (torch.log1p(up) - up) + rest * (torch.log1p(down) - down)
        fit = total * torch.where(near, close, far) - log_x - log_not_x
        log_alpha, log_beta = log_mean + self.log_concentration, log_rest + self.log_concentration
        constant = gamma_residual(total, self.log_concentration) - (
            gamma_residual(total * mean, log_alpha) + gamma_residual(total * rest, log_beta)
        )
        return fit + constant

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw without gradients, excluding 0 and 1, where the density is not finite."""
        limits = torch.finfo(self.logits.dtype)
        with torch.no_grad():
            total = torch.exp(self.log_concentration)
            shape = self._shape(sample_shape)
            alpha, beta = (
                (total * torch.sigmoid(logits)).expand(shape)
                for logits in (self.logits, -self.logits)
            )
            # The ratio x / (x + y) of two gamma draws. Logarithms avoid underflow at small shapes.
            draws = torch.sigmoid(_log_gamma_draw(alpha) - _log_gamma_draw(beta))
            return draws.clamp(limits.tiny, 1 - limits.eps / 2)


def _log_gamma_draw(shape: Tensor) -> Tensor:
    """Draw log gamma variables. A draw of shape a is one of shape a + 1 times uniform^(1 / a)."""
    exponential = torch.empty_like(shape, memory_format=torch.contiguous_format).exponential_()
    least = torch.finfo(shape.dtype).tiny
    return torch.log(torch._standard_gamma(shape + 1)) - exponential / shape.clamp(min=least)


class ContinuousBernoulli(Distribution):
    r"""Continuous Bernoulli distribution of each element on [0, 1], by its logits.

    .. math:: p(x) = C(\lambda) \lambda^x (1 - \lambda)^{1 - x}, \qquad
        \log p(x) = (x - \tfrac12) \ell - \log \frac{\sinh(\ell / 2)}{\ell / 2}, \quad
        \ell = \log \tfrac{\lambda}{1 - \lambda}

    Args:
        logits: :math:`\ell`, any shape.

    References:
        Loaiza-Ganem, Cunningham (2019). The continuous Bernoulli. arXiv:1907.06845.

    Example:
        >>> ContinuousBernoulli(torch.zeros(2)).log_prob(torch.tensor([0.7, 0.9]))  # uniform
        tensor([0., 0.])
    """

    has_rsample = False

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.batch_shape = logits.shape

    @property
    def mean(self) -> Tensor:
        """Expected value, ``(*batch)``."""
        square = self.logits.square()
        series = self.logits * (
            1 / 12 - square * (1 / 720 - square * (1 / 30240 - square / 1209600))
        )
        far = self.logits.where(square >= _NEAR_UNIFORM**2, 1.0)
        exact = 0.5 / torch.tanh(far / 2) - 1 / far
        return 0.5 + torch.where(square < _NEAR_UNIFORM**2, series, exact)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each element, nats."""
        return (value - 0.5) * self.logits - log_sinhc(0.5 * self.logits)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw without gradients by the inverse of the distribution function."""
        shape = self._shape(sample_shape)
        with torch.no_grad():
            uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
            # A truncated exponential draw, reflected if the logit is positive.
            rate = self.logits.abs()
            steep = rate.clamp(min=1e-4)
            draw = -torch.log1p(uniform * torch.expm1(-steep)) / steep
            draw = torch.where(rate < 1e-4, uniform, draw)
            return torch.where(self.logits > 0, 1 - draw, draw)
