r"""Expectations under scalar families by weighted points.

.. math:: \mathbb{E}_p f(x) \approx \textstyle\sum_j w_j f(x_j), \qquad \sum_j w_j = 1

The sum is exact for finite families. For others it is a trapezoidal rule over 65 or more points,
whose error decreases geometrically for a smooth :math:`f` (Trefethen, Weideman 2014). For a
logistic sigmoid of slope c per scale of p, the relative error is about 1e-8 at c = 1, 1e-6 at
c = 3 and 1e-2 at c = 10 in the tails. Counts above 129 different values are grouped.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyvae.distributions.base import Distribution
from tinyvae.distributions.bounded import LogitNormal, LogNormal
from tinyvae.distributions.continuous import (
    ElementwiseNormal,
    Laplace,
    Normal,
    StandardNormalDistribution,
    StudentT,
)
from tinyvae.distributions.counts import NegativeBinomial, Poisson
from tinyvae.distributions.discrete import Bernoulli, Categorical, DiscretizedLogistic
from tinyvae.distributions.joint import TabularDistribution
from tinyvae.distributions.mixtures import Hurdle, Mixture, ZeroInflated
from tinyvae.distributions.ordinal import Ordinal
from tinyvae.distributions.trials import BetaBinomial
from tinyvae.distributions.wrappers import Affine

Points: TypeAlias = tuple[Tensor, Tensor]  # points and log weights, (J, *batch) each

_NUM_COUNTS = 129


def quadrature(p: Distribution) -> Points:
    """Return points and log weights whose weighted sums are expectations under ``p``.

    Gradients in the parameters of ``p`` pass through both.

    Args:
        p: A scalar family.

    Returns:
        Points and log weights, ``(J, *batch)`` each.

    Raises:
        TypeError: If there is no rule for the family.

    Example:
        >>> x, log_weight = quadrature(Normal(torch.ones(2), torch.zeros(2)))
        >>> (log_weight.exp() * torch.cos(x)).sum(0)  # cos(1) exp(-1/2)
        tensor([0.3277, 0.3277])
    """
    if type(p) not in _RULES:
        raise TypeError(
            f"quadrature has no rule for {p}: use a Gaussian, Laplace, Student t, log-normal, "
            "logit-normal, Bernoulli, categorical, ordinal or count likelihood, or a mixture or "
            "hurdle of these"
        )
    x, log_weight = _RULES[type(p)](p)
    shape = (len(x), *p.batch_shape)
    return x.expand(shape), log_weight.log_softmax(0).expand(shape)


def _grid(like: Tensor, most: float, num_points: int) -> Tensor:
    """Return equidistant points from ``-most`` to ``most``, ``(J, 1, ..., 1)``."""
    points = torch.linspace(-most, most, num_points, dtype=like.dtype, device=like.device)
    return points.reshape(-1, *[1] * like.dim())


def _normal(p: ElementwiseNormal) -> Points:
    points = _grid(p.mean, 6.4, 65)
    return p.mean + p.stddev * points, -0.5 * points.square()


def _log_normal(p: LogNormal) -> Points:
    x, log_weight = _normal(p.log_distribution)
    return torch.exp(x), log_weight


def _logit_normal(p: LogitNormal) -> Points:
    x, log_weight = _normal(p.logit_distribution)
    return p.low + (p.high - p.low) * torch.sigmoid(x), log_weight


def _laplace(p: Laplace) -> Points:
    # The density has a kink at its mean, so both sides have their own double exponential rule.
    u = _grid(p.mean, 3.4, 53) + 0.2
    x = torch.exp(u - torch.exp(-u))
    log_weight = u - torch.exp(-u) + torch.log1p(torch.exp(-u)) - x
    x, log_weight = torch.cat([-x, x]), torch.cat([log_weight, log_weight])
    return p.mean + torch.exp(p.log_scale) * x, log_weight


def _student_t(p: StudentT) -> Points:
    v = _grid(p.loc.expand(p.batch_shape), 12.0, 161)
    x = torch.sinh(v)
    zero = torch.zeros_like(p.log_df)
    density = StudentT(zero, zero, p.log_df).log_prob(x)
    return p.loc + torch.exp(p.log_scale) * x, density + torch.log(torch.cosh(v))


def _bernoulli(p: Bernoulli) -> Points:
    x = torch.arange(2.0, dtype=p.logits.dtype, device=p.logits.device)
    x = x.reshape(-1, *[1] * p.logits.dim())
    return x, torch.stack([F.logsigmoid(-p.logits), F.logsigmoid(p.logits)])


def _categorical(p: Categorical) -> Points:
    log_weight = p.logits.movedim(p.dim, 0)
    x = torch.arange(len(log_weight), device=log_weight.device).to(log_weight.dtype)
    return x.reshape(-1, *[1] * (log_weight.dim() - 1)), log_weight


def _levels(p: DiscretizedLogistic | Ordinal) -> Points:
    num_levels = len(p.thresholds) + 1 if isinstance(p, Ordinal) else p.num_levels
    x = torch.arange(num_levels, device=p.location.device).to(p.location.dtype)
    x = x.reshape(-1, *[1] * len(p.batch_shape)).expand(-1, *p.batch_shape)
    return x, p.log_prob(x)


def _counts(p: Poisson | NegativeBinomial) -> Points:
    """Return all counts up to a high quantile, or every n-th of them if these are many."""
    mean = p.mean.detach()
    spread = mean.sqrt()
    if isinstance(p, NegativeBinomial):
        spread = (mean + mean.square() * torch.exp(-p.log_concentration.detach())).sqrt()
    steps = torch.arange(_NUM_COUNTS, device=mean.device).to(mean.dtype)
    steps = steps.reshape(-1, *[1] * mean.dim())
    low = (mean - 8 * spread).clamp(min=0).floor()
    stride = ((mean + 12 * spread + 12 - low) / (_NUM_COUNTS - 1)).ceil()
    x = low + stride * steps
    return x, p.log_prob(x)


def _trials(p: BetaBinomial) -> Points:
    """Return all counts of hits, or every n-th of them if there are many trials."""
    num_trials = p.num_trials.to(p.logits.dtype).expand(p.batch_shape)
    steps = torch.arange(_NUM_COUNTS, device=num_trials.device).to(num_trials.dtype)
    stride = (num_trials / (_NUM_COUNTS - 1)).ceil()
    x = steps.reshape(-1, *[1] * num_trials.dim()) * stride
    is_possible = x <= num_trials
    log_weight = p.log_prob(torch.minimum(x, num_trials))
    return x, log_weight.masked_fill(~is_possible, -math.inf)


def _hurdle(p: Hurdle) -> Points:
    x, log_weight = quadrature(p.base)
    log_shares = p.log_weights.movedim(p.dim, 0)
    ones = [1] * (x.dim() - p.points.dim())
    points = p.points.to(x).reshape(len(p.points), *ones, *p.points.shape[1:])
    x = torch.cat([points.expand(-1, *x.shape[1:]), x])
    return x, torch.cat([log_shares[:-1], log_shares[-1] + log_weight])


def _zero_inflated(p: ZeroInflated) -> Points:
    x, log_weight = quadrature(p.base)
    zero = torch.zeros_like(x[:1])
    log_weight = torch.cat([F.logsigmoid(p.logits) + zero, F.logsigmoid(-p.logits) + log_weight])
    return torch.cat([zero, x]), log_weight


def _affine(p: Affine) -> Points:
    x, log_weight = quadrature(p.base)
    return p.shift + p.scale * x, log_weight


def _mixture(p: Mixture) -> Points:
    x, log_weight = quadrature(p.components)
    log_weight = log_weight + p.log_weights
    return tuple(part.movedim(p.dim, 0).flatten(0, 1) for part in (x, log_weight))  # type: ignore[return-value]


def _table(p: TabularDistribution) -> Points:
    """Return the points of all columns, with points of weight zero for those that have fewer."""
    parts = [quadrature(block) for block in p.blocks]
    most, order = max(len(x) for x, _ in parts), torch.cat(p.positions).argsort()
    x = torch.cat([_padded(x, most, 0.0) for x, _ in parts], -1)
    log_weight = torch.cat([_padded(w, most, -math.inf) for _, w in parts], -1)
    return x.index_select(-1, order), log_weight.index_select(-1, order)


def _padded(rows: Tensor, num_rows: int, value: float) -> Tensor:
    return torch.cat([rows, rows.new_full((num_rows - len(rows), *rows.shape[1:]), value)])


_RULES: dict[type, Callable[[Any], Points]] = {
    Affine: _affine,
    Bernoulli: _bernoulli,
    BetaBinomial: _trials,
    Categorical: _categorical,
    DiscretizedLogistic: _levels,
    Hurdle: _hurdle,
    Laplace: _laplace,
    LogitNormal: _logit_normal,
    LogNormal: _log_normal,
    Mixture: _mixture,
    NegativeBinomial: _counts,
    Normal: _normal,
    Ordinal: _levels,
    Poisson: _counts,
    StandardNormalDistribution: _normal,
    StudentT: _student_t,
    TabularDistribution: _table,
    ZeroInflated: _zero_inflated,
}
