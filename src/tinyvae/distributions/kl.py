"""Kullback-Leibler divergences in closed form, from a table of pairs of families."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from tinyvae.distributions.base import Distribution, Independent, sum_last
from tinyvae.distributions.continuous import (
    ElementwiseNormal,
    Laplace,
    Normal,
    StandardNormalDistribution,
)
from tinyvae.distributions.discrete import OneHotDistribution
from tinyvae.distributions.joint import JointDistribution
from tinyvae.distributions.multivariate import FullNormal, LowRankNormal
from tinyvae.distributions.quantized import CodebookCategorical, Quantized
from tinyvae.distributions.special import finite_exp, limited
from tinyvae.distributions.spherical import PowerSpherical, SphereUniform, log_area
from tinyvae.distributions.wrappers import ReshapedBatch
from tinyvae.errors import NoClosedFormError


def _excess(log_ratio: Tensor) -> Tensor:
    """Return exp(r) - 1 - r >= 0, accurate near zero."""
    return torch.expm1(log_ratio) - log_ratio


def _kl_normal_normal(q: ElementwiseNormal, p: ElementwiseNormal) -> Tensor:
    if isinstance(p, StandardNormalDistribution) and p.agrees_with(q.mean, q.log_std):
        return 0.5 * torch.addcmul(_excess(2 * q.log_std), q.mean, q.mean)
    distance = (q.mean - p.mean) * finite_exp(-p.log_std)
    return 0.5 * (_excess(2 * (q.log_std - p.log_std)) + distance.square())


def _kl_laplace_laplace(q: Laplace, p: Laplace) -> Tensor:
    log_ratio = q.log_scale - p.log_scale
    difference = (q.mean - p.mean).abs()
    distance = difference * finite_exp(-q.log_scale)
    spread, ratio = _excess(log_ratio), finite_exp(log_ratio)
    is_near = distance < 1000
    near = ratio * _excess(-distance.where(is_near, 0.0))
    # Farther apart, the ratio may underflow and the distance overflow.
    far = difference * finite_exp(-p.log_scale) + ratio * torch.expm1(-distance)
    return spread + torch.where(is_near, near, far)


def _kl_full_full(q: FullNormal, p: FullNormal) -> Tensor:
    # With M = L_p^-1 L_q: the sum of squares below the diagonal, and of m^2 - 1 - log m^2 on it.
    ratio = torch.linalg.solve_triangular(p.scale_tril, q.scale_tril, upper=False)
    difference = (q.mean - p.mean).unsqueeze(-1)
    distance = torch.linalg.solve_triangular(p.scale_tril, difference, upper=False)
    squares: Tensor = ratio.tril(-1).square().sum((-2, -1)) + distance.square().sum((-2, -1))
    return 0.5 * (_excess(2 * (q.log_diagonal - p.log_diagonal)).sum(-1) + squares)


def _kl_low_rank_diagonal(q: LowRankNormal, p: Independent) -> Tensor:
    diagonal = _kl_normal_normal(Normal(q.mean, q.log_std), _normal(p)).sum(-1)
    along = (q.factor * torch.exp(-_normal(p).log_std).unsqueeze(-1)).square().sum((-2, -1))
    kl = diagonal + 0.5 * (along - q.log_det_excess)
    return limited(kl, least=0.0)  # rounding of the difference may exceed it


def _kl_spherical_uniform(q: PowerSpherical, _: SphereUniform) -> Tensor:
    kl = log_area(q.event_shape[0]) - q.in_widest_float().entropy()
    return limited(kl, least=0.0).to(q.direction.dtype)  # nearly uniform, rounding exceeds it


def _kl_categorical(q: OneHotDistribution, p: OneHotDistribution) -> Tensor:
    # sum q (p / q - 1 - log p / q), where every term is non-negative.
    log_q, log_p = q.logits.log_softmax(q.dim), p.logits.log_softmax(p.dim)
    # The term of a class that q rules out is p, and that of a class that only p rules out infinite.
    is_out = (log_q == -math.inf) | (log_p == -math.inf)
    log_ratio, probs = (log_p - log_q).masked_fill(is_out, 0.0), log_q.exp()
    near = (log_ratio < 1) & ~is_out
    close = probs * _excess(log_ratio.where(near, 0.0))
    far = log_p.exp() - probs - probs * log_ratio
    kl = torch.where(near, close, far).flatten(q.dim).sum(-1)
    is_infinite = (is_out & (log_q > -math.inf)).flatten(q.dim).any(-1)
    return kl.masked_fill(is_infinite, math.inf)


def _normal(distribution: Independent) -> ElementwiseNormal:
    return cast("ElementwiseNormal", distribution.base)  # the tables guarantee it


def _full(distribution: Independent | FullNormal) -> FullNormal:
    """Return a diagonal normal distribution as one with a full covariance."""
    if isinstance(distribution, FullNormal):
        return distribution
    base = _normal(distribution)
    log_std = base.log_std.expand(base.batch_shape)
    return FullNormal(base.mean, log_std, base.mean.new_zeros(1, 1))


Form = Callable[[Any, Any], Tensor]
# Closed forms for scalar families, one term per element.
_ELEMENTWISE: dict[tuple[type, type], Form] = {
    (ElementwiseNormal, ElementwiseNormal): _kl_normal_normal,
    (Laplace, Laplace): _kl_laplace_laplace,
}
# Closed forms for events. ElementwiseNormal means an event of independent normal elements.
_EVENTWISE: dict[tuple[type, type], Form] = {
    (FullNormal, FullNormal): _kl_full_full,
    (FullNormal, ElementwiseNormal): lambda q, p: _kl_full_full(q, _full(p)),
    (ElementwiseNormal, FullNormal): lambda q, p: _kl_full_full(_full(q), p),
    (LowRankNormal, ElementwiseNormal): _kl_low_rank_diagonal,
    (PowerSpherical, SphereUniform): _kl_spherical_uniform,
    (OneHotDistribution, OneHotDistribution): _kl_categorical,
    (Quantized, CodebookCategorical): lambda q, p: -p.log_mass(q.codes),
}


def _family(distribution: Distribution) -> type:
    """Return the class that the tables name, for a distribution or for its elements."""
    if isinstance(distribution, Independent) and not distribution.base.event_shape:
        distribution = distribution.base
    for family in (OneHotDistribution, ElementwiseNormal):
        if isinstance(distribution, family):
            return family
    return type(distribution)


def _look_up(q: Distribution, p: Distribution) -> tuple[Form | None, bool]:
    """Return the closed form of KL(q || p) or None, and True if it is elementwise."""
    pair = (_family(q), _family(p))
    if q.event_shape != p.event_shape:
        return None, False
    if isinstance(q, JointDistribution) and isinstance(p, JointDistribution):
        have_forms = list(q.parts) == list(p.parts) and all(
            has_closed_form(part, p.parts[name]) for name, part in q.parts.items()
        )
        return (_kl_joint if have_forms else None), False
    if isinstance(q, Independent) == isinstance(p, Independent) and pair in _ELEMENTWISE:
        return _ELEMENTWISE[pair], True
    is_vector = len(q.event_shape) == 1 or not isinstance(q, Independent)
    return (_EVENTWISE.get(pair) if is_vector else None), False


def _kl_joint(q: JointDistribution, p: JointDistribution) -> Tensor:
    kls = [kl_divergence(part, p.parts[name]) for name, part in q.parts.items()]
    return torch.stack(torch.broadcast_tensors(*kls)).sum(0)


def has_closed_form(q: Distribution, p: Distribution) -> bool:
    """Return True if :func:`kl_divergence` has a closed form for this pair."""
    q, p = _flat(q, p)
    return _look_up(q, p)[0] is not None


def _flat(q: Distribution, p: Distribution) -> tuple[Distribution, Distribution]:
    """Return q and p without :class:`ReshapedBatch`, if p has the same batch or none."""
    if not isinstance(q, ReshapedBatch):
        return q, p
    if isinstance(p, ReshapedBatch) and p.batch_shape == q.batch_shape:
        return q.base, p.base
    return (q.base, p) if p.batch_shape == () else (q, p)


def kl_divergence(q: Distribution, p: Distribution, *, per_dim: bool = False) -> Tensor:
    r"""Return the Kullback-Leibler divergence in closed form.

    .. math:: \mathrm{KL}(q \,\|\, p) = \mathbb{E}_{q(z)} [\log q(z) - \log p(z)] \ge 0

    Args:
        q: The distribution of the expectation.
        p: The distribution that q is compared with.
        per_dim: Keep the event dimensions instead of summing over them. This needs independent
            elements.

    Returns:
        ``(*batch)``, or ``(*batch, *event)`` with ``per_dim``, nats.

    Raises:
        NoClosedFormError: If the pair has no closed form, or no terms per dimension.

    References:
        Kingma, Welling (2014). Auto-Encoding Variational Bayes. arXiv:1312.6114, appendix B.
        De Cao, Aziz (2020). The Power Spherical distribution. arXiv:2006.04437, section 2.3.

    Example:
        >>> q = Independent(Normal(torch.ones(2, 3), torch.zeros(2, 3)), 1)
        >>> p = Independent(Normal(torch.zeros(3), torch.zeros(3)), 1)
        >>> kl_divergence(q, p)
        tensor([1.5000, 1.5000])
    """
    if isinstance(q, ReshapedBatch) and (rows := _flat(q, p)) != (q, p):
        return torch.unflatten(kl_divergence(*rows, per_dim=per_dim), 0, q.batch_shape)
    form, elementwise = _look_up(q, p)
    if form is None:
        raise NoClosedFormError(
            f"KL({q} || {p}) has no closed form: use a sampled estimate (kl='sample' or 'auto')"
        )
    if per_dim and not elementwise:
        raise NoClosedFormError(
            f"per_dim expects independent elements, got KL({q} || {p}): use per_dim=False"
        )
    if isinstance(q, Independent) and isinstance(p, Independent) and elementwise:
        terms = form(q.base, p.base)
        return terms if per_dim else sum_last(terms, q.event_ndim)
    return form(q, p)


def log_prob_of_draws(q: Distribution, p: Distribution, z: Tensor) -> Tensor:
    """Return the log density under p of draws from q, nats.

    Codes from codebooks are scored by their indices, which a sum of codes does not determine.

    Args:
        q: The distribution that ``z`` was drawn from.
        p: The distribution that scores ``z``.
        z: Draws ``(*S, *batch, *event)``.

    Returns:
        ``(*S, *batch)``.
    """
    base = q.base if isinstance(q, ReshapedBatch) else q
    if isinstance(base, Quantized) and isinstance(p, CodebookCategorical):
        return (-kl_divergence(q, p)).expand(z.shape[: z.dim() - len(q.event_shape)])
    return p.log_prob(z)
