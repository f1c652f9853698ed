"""Kullback-Leibler divergences in closed form, by a table of pairs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tinyvae.distributions.base import Distribution, Independent, sum_last
from tinyvae.distributions.continuous import Normal

__all__ = ["NoClosedForm", "has_closed_form", "kl_divergence"]


class NoClosedForm(NotImplementedError):
    """The Kullback-Leibler divergence of this pair has no closed form here: estimate it."""


def _kl_normal_normal(q: Normal, p: Normal) -> Tensor:
    # expm1(2 r) - 2 r with r = log(std_q / std_p) keeps the digits that s^2 - 1 - log s^2 loses
    # near r = 0, where the plain form turns negative in float32.
    log_ratio = q.log_std - p.log_std
    distance = (q.mean - p.mean) * torch.exp(-p.log_std)
    return 0.5 * (torch.expm1(2 * log_ratio) - 2 * log_ratio + distance.square())


_CLOSED_FORMS: dict[tuple[type, type], Callable[[Any, Any], Tensor]] = {
    (Normal, Normal): _kl_normal_normal,
}


def has_closed_form(q: Distribution, p: Distribution) -> bool:
    """Whether :func:`kl_divergence` knows this pair."""
    if isinstance(q, Independent) and isinstance(p, Independent):
        return q.event_shape == p.event_shape and has_closed_form(q.base, p.base)
    return (type(q), type(p)) in _CLOSED_FORMS


def kl_divergence(q: Distribution, p: Distribution, *, per_dim: bool = False) -> Tensor:
    r"""Kullback-Leibler divergence in closed form.

    .. math:: \mathrm{KL}(q \,\|\, p) = \mathbb{E}_{q(z)} [\log q(z) - \log p(z)] \ge 0

    Args:
        q: The distribution under which the expectation is taken.
        p: The other one.
        per_dim: Keep the event dimensions instead of summing over them.

    Returns:
        ``(*batch)``, or ``(*batch, *event)`` with ``per_dim``, nats.

    Raises:
        NoClosedForm: If the pair is not in the table.

    References:
        Kingma, Welling (2014). Auto-Encoding Variational Bayes. arXiv:1312.6114, appendix B.

    Example:
        >>> q = Independent(Normal(torch.ones(2, 3), torch.zeros(2, 3)), 1)
        >>> p = Independent(Normal(torch.zeros(3), torch.zeros(3)), 1)
        >>> kl_divergence(q, p)
        tensor([1.5000, 1.5000])
    """
    if not has_closed_form(q, p):
        raise NoClosedForm(
            f"no closed form of KL({q} || {p}): use a sampled estimate (kl='sample' or 'auto')"
        )
    if isinstance(q, Independent) and isinstance(p, Independent):
        terms = kl_divergence(q.base, p.base)
        return terms if per_dim else sum_last(terms, q.event_ndim)
    return _CLOSED_FORMS[type(q), type(p)](q, p)
