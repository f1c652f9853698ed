"""Distributions of data whose values are missing with a chance that depends on the value."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyvae.distributions.base import Distribution, Wrapper
from tinyvae.distributions.discrete import Bernoulli, Categorical
from tinyvae.distributions.joint import TabularDistribution
from tinyvae.distributions.quadrature import quadrature

_MOST_PROPOSALS = 100


@dataclass(frozen=True)
class LogisticChance:
    r"""The chance :math:`\sigma(w (x - m) + a)` of an event, such as a missing value, given x.

    Args:
        slope: :math:`w`. It and the others broadcast with x.
        intercept: :math:`a`, log odds at ``center``.
        center: :math:`m`.

    Example:
        >>> zero = torch.zeros(())
        >>> LogisticChance(torch.ones(()), zero, zero).logit(torch.tensor([-1.0, 2.0]))
        tensor([-1.,  2.])
    """

    slope: Tensor
    intercept: Tensor
    center: Tensor

    def logit(self, x: Tensor) -> Tensor:
        """Return the log odds of the event given x."""
        return self.slope * (x - self.center) + self.intercept

    def columns(self, indices: Tensor, width: int) -> "LogisticChance":
        """Return the chance in some columns of the last dimension, which has size ``width``."""
        parts = (self.slope, self.intercept, self.center)
        return LogisticChance(
            *(part.expand(*part.shape[:-1], width).index_select(-1, indices) for part in parts)
        )


class SelfMaskedDistribution(Wrapper):
    r"""The distribution of observed entries and of which entries are missing.

    .. math:: \log p(x, s) = \begin{cases} \log p(x) + \log \sigma(-\ell(x)) & \text{observed} \\
        \log \mathbb{E}_{p(x)}\, \sigma(\ell(x)) & \text{missing} \end{cases}

    :math:`\ell(x)` are the log odds of a missing value. The expectation is that of
    :func:`~tinyvae.distributions.quadrature`. Draws and moments are those of ``base``: of x before
    values go missing.

    Args:
        base: A scalar family.
        inside: A value in the support of ``base``, see
            :class:`~tinyvae.distributions.MaskedDistribution`.
        chance: Chance of a missing value given x.

    Raises:
        TypeError: By ``log_prob``, if :func:`~tinyvae.distributions.quadrature` does not know
            ``base``.

    Example:
        >>> zero = torch.zeros(2)
        >>> even = LogisticChance(zero, zero, zero)
        >>> p = SelfMaskedDistribution(Normal(zero, zero), torch.tensor(0.0), even)
        >>> p.log_prob(torch.tensor([0.0, torch.nan]))
        tensor([-1.6121, -0.6931])
    """

    def __init__(self, base: Distribution, inside: Tensor, chance: LogisticChance) -> None:
        super().__init__(base)
        self.inside, self.chance = inside, chance
        self.is_discrete = base.is_discrete or None  # the mask has a mass

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density or mass of each entry and its mask, nats."""
        is_observed = ~torch.isnan(value)
        filled = torch.where(is_observed, value, self.inside)
        observed = self.base.log_prob(filled) + F.logsigmoid(-self.chance.logit(filled))
        x, log_weight = quadrature(self.base)
        missing = torch.logsumexp(log_weight + F.logsigmoid(self.chance.logit(x)), 0)
        return torch.where(is_observed, observed, missing)

    def missing(self) -> Distribution:
        """Return the distribution of each entry given that it is missing."""
        return tilted(self.base, self.chance)


def tilted(p: Distribution, chance: LogisticChance) -> Distribution:
    """Return the distribution of x given the event, whose density is proportional to p(x) chance.

    Args:
        p: A scalar family that :func:`~tinyvae.distributions.quadrature` knows.
        chance: Chance of the event given x.
    """
    if isinstance(p, TabularDistribution):
        width = p.batch_shape[-1]
        pairs = zip(p.blocks, p.positions, strict=True)
        blocks = [tilted(block, chance.columns(indices, width)) for block, indices in pairs]
        return TabularDistribution(blocks, p.positions)
    if isinstance(p, Categorical):
        classes, logits = quadrature(p)
        logits = logits + F.logsigmoid(chance.logit(classes))
        return Categorical(logits.movedim(0, p.dim), p.dim, ordered=p.ordered)
    if isinstance(p, Bernoulli):
        zero = torch.zeros_like(p.logits)
        gain = F.logsigmoid(chance.logit(zero + 1)) - F.logsigmoid(chance.logit(zero))
        return Bernoulli(p.logits + gain)
    return Tilted(p, chance)


class Tilted(Distribution):
    r"""The distribution of x given an event with a logistic chance.

    .. math:: q(x) = \frac{p(x)\, \sigma(\ell(x))}{\mathbb{E}_{p(x)}\, \sigma(\ell(x))}

    Args:
        base: p(x), a scalar family that :func:`~tinyvae.distributions.quadrature` knows.
        chance: Chance of the event given x.

    Example:
        >>> zero = torch.zeros(1)
        >>> above = LogisticChance(torch.full((1,), 9.0), zero, zero)
        >>> Tilted(Normal(zero, zero), above).mean  # about that of the positive half
        tensor([0.7823])
    """

    has_rsample = False

    def __init__(self, base: Distribution, chance: LogisticChance) -> None:
        self.base, self.chance = base, chance
        self.batch_shape, self.event_shape = base.batch_shape, base.event_shape
        self.is_density, self.is_discrete = base.is_density, base.is_discrete
        self.support = base.support

    @property
    def mean(self) -> Tensor:
        """Expected value, ``(*batch)``."""
        x, log_weight = quadrature(self.base)
        weight = (log_weight + F.logsigmoid(self.chance.logit(x))).softmax(0)
        return (weight * x).sum(0)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density or mass of each element, nats."""
        x, log_weight = quadrature(self.base)
        total = torch.logsumexp(log_weight + F.logsigmoid(self.chance.logit(x)), 0)
        return self.base.log_prob(value) + F.logsigmoid(self.chance.logit(value)) - total

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw without gradients, by rejection.

        If none of 100 proposals is accepted, one of them is drawn by its chance.
        """
        with torch.no_grad():
            chosen = self.base.sample(sample_shape)
            log_chance = F.logsigmoid(self.chance.logit(chosen))
            accepted, best = -_exponential(log_chance) < log_chance, _race(log_chance)
            for _ in range(_MOST_PROPOSALS - 1):
                if bool(accepted.all()):
                    break
                proposal = self.base.sample(sample_shape)
                log_chance = F.logsigmoid(self.chance.logit(proposal))
                accepts, arrival = -_exponential(log_chance) < log_chance, _race(log_chance)
                replaces = ~accepted & (accepts | (arrival < best))
                chosen = torch.where(replaces, proposal, chosen)
                best = torch.where(replaces, arrival, best)
                accepted = accepted | accepts
            return chosen


def _exponential(like: Tensor) -> Tensor:
    """Draw exponential noise: minus it is the logarithm of a uniform number."""
    return torch.empty_like(like).exponential_()


def _race(log_chance: Tensor) -> Tensor:
    """Draw log arrival times: the first arrival is a draw by its chance."""
    return _exponential(log_chance).log() - log_chance
