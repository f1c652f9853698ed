"""Distributions of counts."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyvae.distributions.base import Distribution, joint_shape
from tinyvae.distributions.special import gamma_residual, limited

# The exponential of this log parameter is practically infinite, and its square fits in float32.
_LOG_HUGE = 40.0


class Poisson(Distribution):
    r"""Poisson distribution of each element, by the logarithm of its mean.

    .. math:: \log p(k) = k \log\lambda - \lambda - \log k!

    The log mass is the sum of a deviance and a small residual (Loader 2000), so that counts of a
    million stay accurate in float32.

    Args:
        log_mean: :math:`\log\lambda`, any shape.

    Example:
        >>> Poisson(torch.zeros(2)).log_prob(torch.tensor([0.0, 1.0]))
        tensor([-1., -1.])
    """

    has_rsample = False
    is_discrete = True

    def __init__(self, log_mean: Tensor) -> None:
        self.log_mean = log_mean
        self.batch_shape = log_mean.shape

    @property
    def mean(self) -> Tensor:
        """Expected count, ``(*batch)``."""
        return torch.exp(self.log_mean)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log mass of each element, nats."""
        count, log_count = _count(value, self.log_mean.dtype)
        log_ratio = torch.where(value > 0, self.log_mean - log_count, 0.0)
        positive = -_deviance(count, log_ratio) - log_count - gamma_residual(count, log_count)
        zero = -torch.exp(torch.where(value > 0, 0.0, self.log_mean))
        return torch.where(value > 0, positive, zero)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw counts without gradients."""
        shape = self._shape(sample_shape)
        return _poisson(self.mean.detach().expand(shape))


class NegativeBinomial(Distribution):
    r"""Negative binomial distribution of each element, by its mean and its concentration.

    .. math:: p(k) = \frac{\Gamma(k + r)}{\Gamma(r)\, k!}
        \Big(\frac{r}{r + \mu}\Big)^r \Big(\frac{\mu}{r + \mu}\Big)^k

    The variance is :math:`\mu + \mu^2 / r`. The limit :math:`r \to \infty` is Poisson.

    Args:
        log_mean: :math:`\log\mu`, any shape.
        log_concentration: :math:`\log r`, broadcastable with ``log_mean``, limited to -40 to 40.

    Example:
        >>> NegativeBinomial(torch.zeros(2), torch.zeros(2)).log_prob(torch.tensor([0.0, 1.0]))
        tensor([-0.6931, -1.3863])
    """

    has_rsample = False
    is_discrete = True

    def __init__(self, log_mean: Tensor, log_concentration: Tensor) -> None:
        self.log_mean, self.log_concentration = log_mean, log_concentration
        self.batch_shape = joint_shape(log_mean, log_concentration)

    @property
    def mean(self) -> Tensor:
        """Expected count, ``(*batch)``."""
        return torch.exp(self.log_mean).expand(self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log mass of each element, nats."""
        log_r = self._log_r
        zero = -torch.exp(log_r) * F.softplus(self.log_mean - log_r, threshold=40)
        return torch.where(value > 0, self._log_prob_positive(value, log_r), zero)

    @property
    def _log_r(self) -> Tensor:
        # The limits of large and small concentrations are reached long before.
        return limited(self.log_concentration, least=-_LOG_HUGE, most=_LOG_HUGE)

    def _log_prob_positive(self, value: Tensor, log_r: Tensor) -> Tensor:
        count, log_count = _count(value, self.log_mean.dtype)
        mean, r = torch.exp(self.log_mean.clamp(max=2 * _LOG_HUGE)), torch.exp(log_r)
        log_total = torch.logaddexp(self.log_mean, log_r)
        total, log_sum = count + r, torch.log(count + r)
        # log (k + r) / (mu + r), computed from the excess of the ratio over one if that is small.
        excess = (count - mean) / (mean + r)
        log_excess = torch.where(
            excess.abs() < 0.5, torch.log1p(excess.clamp(-0.5, 0.5)), log_sum - log_total
        )
        fit = _deviance(count, log_excess + self.log_mean - log_count) + r * (excess - log_excess)
        constant = gamma_residual(total, log_sum) - gamma_residual(r, log_r)
        return constant - gamma_residual(count, log_count) - fit - log_count

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw counts without gradients: Poisson with a gamma draw as rate."""
        shape = self._shape(sample_shape)
        with torch.no_grad():
            r = torch.exp(self._log_r).expand(shape)
            mean = self.mean.clamp(max=torch.finfo(r.dtype).max)
            return _poisson(torch._standard_gamma(r) / r * mean)


def _poisson(rate: Tensor) -> Tensor:
    """Draw Poisson counts, or rounded normal draws above the integers that the dtype represents."""
    most, rate = 1 / torch.finfo(rate.dtype).eps, rate.clamp(max=torch.finfo(rate.dtype).max)
    normal = torch.round(rate + rate.sqrt() * torch.randn_like(rate))
    return torch.where(rate < most, torch.poisson(rate.clamp(max=most)), normal)


def _count(value: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return counts, raised to at least one, and their logarithms."""
    count = value.to(dtype).masked_fill(value < 1, 1.0)
    return count, torch.log(count)


def _deviance(count: Tensor, log_ratio: Tensor) -> Tensor:
    """Return half the deviance of a count from the mean ``count * exp(log_ratio)``."""
    excess: Tensor = torch.expm1(log_ratio) - log_ratio
    return count * excess
