r"""Log probabilities of intervals, and distributions of values that are known only by bounds.

.. math:: \log P(a \le x \le b) = \log \big(F(b) - F(a)\big)

A wide interval is a difference of distribution functions in the tail where they are small. A narrow
one, whose difference would cancel, is an integral of the density by five Gauss-Legendre points.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyvae.distributions.base import Distribution
from tinyvae.distributions.bounded import LogitNormal, LogNormal
from tinyvae.distributions.continuous import ElementwiseNormal, Laplace, Normal
from tinyvae.distributions.discrete import Bernoulli, Categorical, DiscretizedLogistic
from tinyvae.distributions.mixtures import Hurdle, Mixture
from tinyvae.distributions.ordinal import Ordinal
from tinyvae.distributions.quadrature import quadrature
from tinyvae.distributions.special import finite_exp
from tinyvae.distributions.wrappers import Affine

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(5)
_NARROW = 0.5
_FARTHEST = 1e15  # scales, whose square is finite in float32


def log_interval(p: Distribution, low: Tensor, high: Tensor) -> Tensor:
    """Return the log probability of ``low <= x <= high`` for each element, nats.

    Gradients are finite, also for intervals far in a tail.

    Args:
        p: A scalar family: Gaussian, Laplace, log-normal, logit-normal, classes, levels, or a
            shifted one, a mixture or a hurdle of these.
        low: Lower bounds, which broadcast with the batch. Minus infinity leaves them out.
        high: Upper bounds above ``low``.

    Raises:
        TypeError: If the distribution function of the family is not known.

    Example:
        >>> p = Normal(torch.zeros(2), torch.zeros(2))
        >>> log_interval(p, torch.tensor([-1.0, 9.0]), torch.tensor([1.0, torch.inf]))
        tensor([ -0.3817, -43.6281])
    """
    if type(p) not in _RULES:
        raise TypeError(
            f"log_interval has no distribution function of {p}: use a Gaussian, Laplace, "
            "log-normal, logit-normal, ordinal or categorical likelihood, or a mixture of these"
        )
    return _RULES[type(p)](p, low, high)


def _symmetric(
    bounds: tuple[Tensor, Tensor],
    location: Tensor,
    log_scale: Tensor,
    log_cdf: Callable[[Tensor], Tensor],
    log_mass: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Return the log probability for a location-scale family with a symmetric density.

    ``log_cdf`` is that of the standard member. ``log_mass`` is its log probability between two
    finite bounds, given also their difference.
    """
    low, high = bounds
    inverse = finite_exp(-log_scale)
    has_low, has_high = torch.isfinite(low), torch.isfinite(high)
    has_both = has_low & has_high
    # Bounds that are left out get a finite value, because a gradient through infinity is NaN.
    a = torch.where(has_low, (low.where(has_low, 0.0) - location) * inverse, -1.0)
    b = torch.where(has_high, (high.where(has_high, 0.0) - location) * inverse, 1.0)
    a, b = a.clamp(-_FARTHEST, _FARTHEST), b.clamp(-_FARTHEST, _FARTHEST)
    width = torch.where(has_both, (high - low).where(has_both, 1.0) * inverse, 1.0)
    # The mirror image of an interval above the center lies in the lower tail.
    is_above = a + b > 0
    lower, upper = torch.where(is_above, -b, a), torch.where(is_above, -a, b)
    between = log_mass(lower.where(has_both, -1.0), upper.where(has_both, 0.0), width)
    one_sided = log_cdf(torch.where(has_low, -a, torch.where(has_high, b, 0.0)))
    one_sided = torch.where(has_low | has_high, one_sided, 0.0)
    return torch.where(has_both, between, one_sided)


def _normal(p: ElementwiseNormal, low: Tensor, high: Tensor) -> Tensor:
    log_cdf = torch.special.log_ndtr
    return _symmetric((low, high), p.mean, p.log_std, log_cdf, _normal_log_mass)


def _normal_log_mass(lower: Tensor, upper: Tensor, width: Tensor) -> Tensor:
    is_narrow = width * (1 + upper.abs()) < _NARROW
    step = width.where(is_narrow, 1.0)
    x = lower + step * _column(step, (1 + _NODES) / 2)
    weighted = _column(step, np.log(_WEIGHTS / 2)) - 0.5 * x.square()
    narrow = torch.logsumexp(weighted, 0) + torch.log(step) - 0.5 * math.log(2 * math.pi)
    log_upper = torch.special.log_ndtr(upper)
    ratio = torch.special.log_ndtr(lower) - log_upper
    ratio = ratio.where(~is_narrow, -1.0).clamp(max=-torch.finfo(ratio.dtype).tiny)
    wide = log_upper + torch.log(-torch.expm1(ratio))
    return torch.where(is_narrow, narrow, wide)


def _column(like: Tensor, numbers: "np.ndarray[Any, Any]") -> Tensor:
    """Return numbers along a new first dimension, ``(n, 1, ..., 1)``."""
    return torch.from_numpy(numbers).to(like).reshape(-1, *[1] * like.dim())


def _laplace(p: Laplace, low: Tensor, high: Tensor) -> Tensor:
    return _symmetric((low, high), p.mean, p.log_scale, _laplace_log_cdf, _laplace_log_mass)


def _laplace_log_cdf(u: Tensor) -> Tensor:
    tail = 0.5 * torch.exp(-u.abs())
    return torch.where(u > 0, torch.log1p(-tail), -u.clamp(max=0).abs() - math.log(2))


def _laplace_log_mass(lower: Tensor, upper: Tensor, width: Tensor) -> Tensor:
    is_below = upper <= 0
    below = upper + torch.log(-torch.expm1(-width))
    around = -torch.expm1(lower.where(~is_below, -1.0)) - torch.expm1(-upper.where(~is_below, 1.0))
    return torch.where(is_below, below, torch.log(around)) - math.log(2)


def _log_normal(p: LogNormal, low: Tensor, high: Tensor) -> Tensor:
    is_positive = low > 0
    log_low = torch.where(is_positive, low.where(is_positive, 1.0).log(), -math.inf)
    return _normal(p.log_distribution, log_low, torch.log(high))


def _logit_normal(p: LogitNormal, low: Tensor, high: Tensor) -> Tensor:
    has_low, has_high = low > p.low, high < p.high
    share_low = torch.where(has_low, (low - p.low) / (p.high - p.low), 0.5)
    share_high = torch.where(has_high, (high - p.low) / (p.high - p.low), 0.5)
    low = torch.where(has_low, torch.logit(share_low), -math.inf)
    return _normal(p.logit_distribution, low, torch.where(has_high, share_high.logit(), math.inf))


def _hurdle(p: Hurdle, low: Tensor, high: Tensor) -> Tensor:
    low, high = low.unsqueeze(p.dim), high.unsqueeze(p.dim)
    inside = (p.points >= low) & (p.points <= high)
    num_points = len(p.points)
    log_masses = p.log_weights.narrow(p.dim, 0, num_points).masked_fill(~inside, -math.inf)
    between = log_interval(p.base, low.squeeze(p.dim), high.squeeze(p.dim)).unsqueeze(p.dim)
    rest = p.log_weights.narrow(p.dim, num_points, 1) + between
    return torch.logsumexp(torch.cat([log_masses, rest], p.dim), p.dim).clamp(max=0.0)


def _affine(p: Affine, low: Tensor, high: Tensor) -> Tensor:
    return log_interval(p.base, (low - p.shift) / p.scale, (high - p.shift) / p.scale)


def _mixture(p: Mixture, low: Tensor, high: Tensor) -> Tensor:
    each = log_interval(p.components, low.unsqueeze(p.dim), high.unsqueeze(p.dim))
    return torch.logsumexp(p.log_weights + each, p.dim).clamp(max=0.0)


def _finite(p: Distribution, low: Tensor, high: Tensor) -> Tensor:
    x, log_weight = quadrature(p)
    inside = (x >= low) & (x <= high)
    return torch.logsumexp(log_weight.masked_fill(~inside, -math.inf), 0)


_RULES: dict[type, Callable[[Any, Tensor, Tensor], Tensor]] = {
    Affine: _affine,
    Bernoulli: _finite,
    Categorical: _finite,
    DiscretizedLogistic: _finite,
    Hurdle: _hurdle,
    Laplace: _laplace,
    LogitNormal: _logit_normal,
    LogNormal: _log_normal,
    Mixture: _mixture,
    Normal: _normal,
    Ordinal: _finite,
}


class CensoredDistribution(Distribution):
    r"""The distribution of values that are known only by bounds: pairs (low, high).

    .. math:: \log p(a, b) = \begin{cases} \log p(a) & a = b \\
        \log P(a \le x \le b) & a < b \end{cases}

    Draws and means are exact values, pairs with equal bounds. How bounds come about is not
    modeled: they say nothing about x but that it lies between them.

    Args:
        base: A scalar family that :func:`log_interval` knows.
        inside: A value in the support of ``base``, in place of x where it has bounds.

    Example:
        >>> p = CensoredDistribution(Normal(torch.zeros(2), torch.zeros(2)), torch.tensor(0.0))
        >>> p.log_prob(torch.tensor([[0.0, 0.0], [0.0, torch.inf]]))
        tensor([-0.9189, -0.6931])
    """

    has_rsample = False

    def __init__(self, base: Distribution, inside: Tensor) -> None:
        self.base, self.inside = base, inside
        self.batch_shape = base.batch_shape
        self.event_shape = torch.Size((2,))
        self.is_density = base.is_density
        self.is_discrete = base.is_discrete or None  # intervals have masses
        self.support = base.support

    @property
    def mean(self) -> Tensor:
        """Expected value of x, twice, ``(*batch, 2)``."""
        return _pair(self.base.mean)

    def point_estimate(self, weights: Tensor | None = None) -> Tensor:
        """Return the point estimate of x, twice."""
        weights = None if weights is None else weights.squeeze(-1)
        return _pair(self.base.point_estimate(weights))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density or mass of each exact value, or the log mass of its bounds."""
        low, high = value.unbind(-1)
        is_exact = low == high
        exact = self.base.log_prob(torch.where(is_exact, low, self.inside))
        low, high = low.masked_fill(is_exact, -math.inf), high.masked_fill(is_exact, math.inf)
        return torch.where(is_exact, exact, log_interval(self.base, low, high))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw exact values without gradients, ``(*sample_shape, *batch, 2)``."""
        with torch.no_grad():
            return _pair(self.base.sample(sample_shape))


def _pair(x: Tensor) -> Tensor:
    return torch.stack([x, x], -1)
