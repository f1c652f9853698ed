"""Scalar families on the positive numbers and on intervals."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyvae.distributions.base import Distribution, joint_shape
from tinyvae.distributions.continuous import Normal
from tinyvae.distributions.special import gamma_residual, limited, logistic_normal_mean

# Below this absolute value of the logits, mean and log density of a continuous Bernoulli are
# series. The first omitted term of the mean, l^9 / 47,900,160, is 1e-14 at the limit.
_NEAR_UNIFORM = 0.2


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
        log_value = torch.log(_at_least(value, self._log.log_std))
        log_prob = self._log.log_prob(log_value) - log_value
        return log_prob.masked_fill(value == 0, -math.inf)  # of a draw that underflows

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw by reparameterization."""
        return torch.exp(self._log.sample(sample_shape))


class LogitNormal(Distribution):
    r"""Logit-normal distribution of each element on an interval (a, b).

    .. math:: y = \log \frac{x - a}{b - x} \sim \mathcal{N}(\mu, \sigma^2), \qquad
        \log p(x) = \log \mathcal{N}(y \mid \mu, \sigma^2) + \log \frac{b - a}{(x - a)(b - x)}

    Args:
        mean_logit: :math:`\mu`, any shape.
        log_std: :math:`\log\sigma`, broadcastable with ``mean_logit``.
        low: :math:`a`, 0-d or broadcastable.
        high: :math:`b > a`, 0-d or broadcastable.

    References:
        Atchison, Shen (1980). Logistic-normal distributions: Some properties and uses. Biometrika
        67.

    Example:
        >>> low, high = torch.tensor(0.0), torch.tensor(1.0)
        >>> p = LogitNormal(torch.zeros(2), torch.zeros(2), low, high)
        >>> p.mean, p.log_prob(torch.tensor(0.5))  # log 4 - log(2 pi) / 2
        (tensor([0.5000, 0.5000]), tensor([0.4674, 0.4674]))
    """

    def __init__(self, mean_logit: Tensor, log_std: Tensor, low: Tensor, high: Tensor) -> None:
        self._logit = Normal(mean_logit, log_std)
        self.low, self.high = low, high
        self.batch_shape = self._logit.batch_shape

    @property
    def mean(self) -> Tensor:
        """Expected value, ``(*batch)``, by quadrature to 11 digits."""
        share = logistic_normal_mean(self._logit.mean, self._logit.stddev)
        return self.low + (self.high - self.low) * share

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each element, nats."""
        value = _at_least(value, self._logit.log_std)
        is_inside = (value > self.low) & (value < self.high)
        value = torch.where(is_inside, value, 0.5 * self.low + 0.5 * self.high)
        above, below = torch.log(value - self.low), torch.log(self.high - value)
        log_prob = self._logit.log_prob(above - below) - above - below
        log_prob = log_prob + torch.log(self.high - self.low)
        return log_prob.masked_fill(~is_inside, -math.inf)  # also of a draw at an end

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw by reparameterization, excluding the ends."""
        share = torch.sigmoid(self._logit.sample(sample_shape))
        draws = self.low + (self.high - self.low) * share
        least = torch.nextafter(self.low, self.high).clamp(min=torch.finfo(draws.dtype).tiny)
        least = torch.where(self.low == 0, least, torch.nextafter(self.low, self.high))
        return draws.clamp(least, torch.nextafter(self.high, self.low))


class Beta(Distribution):
    r"""Beta distribution of each element, by its mean and its concentration.

    .. math:: p(x) = \frac{x^{\alpha - 1} (1 - x)^{\beta - 1}}{B(\alpha, \beta)}, \qquad
        \alpha = \mu \kappa, \quad \beta = (1 - \mu) \kappa

    Args:
        logits: Log odds of the mean, :math:`\log \tfrac{\mu}{1 - \mu}`, any shape.
        log_concentration: :math:`\log\kappa`, broadcastable with ``logits``: the variance is
            :math:`\mu (1 - \mu) / (1 + \kappa)`. It is at most 79 (638 in float64).

    Example:
        >>> Beta(torch.zeros(2), torch.full((2,), 2.0).log()).log_prob(torch.tensor([0.1, 0.9]))
        tensor([0., 0.])
    """

    has_rsample = False

    def __init__(self, logits: Tensor, log_concentration: Tensor) -> None:
        # Alpha and beta are finite. The distribution is far narrower than the digits of a value.
        most = 0.9 * math.log(torch.finfo(log_concentration.dtype).max)
        self.logits, self.log_concentration = logits, limited(log_concentration, most=most)
        self.batch_shape = joint_shape(logits, log_concentration)

    @property
    def mean(self) -> Tensor:
        """Expected value, ``(*batch)``."""
        return torch.sigmoid(self.logits).expand(self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each element, nats."""
        value = _at_least(value, self.logits)
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
            draws = torch.sigmoid(log_gamma_draw(alpha) - log_gamma_draw(beta))
            return draws.clamp(limits.tiny, 1 - limits.eps / 2)


def log_gamma_draw(shape: Tensor) -> Tensor:
    """Draw log gamma variables. A draw of shape a is one of shape a + 1 times uniform^(1 / a)."""
    exponential = torch.empty_like(shape, memory_format=torch.contiguous_format).exponential_()
    least = 1e3 * torch.finfo(shape.dtype).tiny  # so that the quotient is finite
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
        is_near = self.logits.abs() < _NEAR_UNIFORM
        flat, steep = self.logits.where(is_near, 0.0), self.logits.where(~is_near, 1.0)
        square = flat.square()
        series = flat * (1 / 12 - square * (1 / 720 - square * (1 / 30240 - square / 1209600)))
        exact = 0.5 / torch.tanh(steep / 2) - 1 / steep
        return 0.5 + torch.where(is_near, series, exact)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each element, nats."""
        size = self.logits.abs()
        is_near = size < _NEAR_UNIFORM
        flat, steep = self.logits.where(is_near, 0.0), size.where(~is_near, 1.0)
        square = (0.5 * flat).square()
        series = square * (1 / 6 - square * (1 / 180 - square * (1 / 2835 - square / 37800)))
        near = (value - 0.5) * flat - series
        # The decay from the end at which the density is largest. No large terms cancel.
        value = _at_least(value, self.logits)
        distance = torch.where(self.logits > 0, 1 - value, value)
        far = -steep * distance - torch.log(-torch.expm1(-steep) / steep)
        return torch.where(is_near, near, far)

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


def _at_least(value: Tensor, like: Tensor) -> Tensor:
    """Return values in at least the precision of parameters, in which to compute logarithms."""
    return value.to(torch.promote_types(value.dtype, like.dtype))
