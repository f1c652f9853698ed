"""Distributions of data whose values are missing with a chance that depends on the value."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyvae.distributions.base import (
    Distribution,
    Independent,
    Wrapper,
    pooled,
    sum_last,
    unsqueeze_last,
)
from tinyvae.distributions.discrete import Bernoulli, Categorical
from tinyvae.distributions.joint import TabularDistribution
from tinyvae.distributions.quadrature import quadrature
from tinyvae.distributions.special import gumbel_race
from tinyvae.distributions.wrappers import MaskedDistribution

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
    r"""The joint distribution of the observed entries and the mask.

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


class RowMaskedDistribution(Distribution):
    r"""The distribution of the observed entries of a row and of its mask, by draws of the others.

    .. math:: \log \hat p(x_{\text{obs}}, s) = \log p(x_{\text{obs}}) + \log p(s \mid x), \qquad
        x_{\text{mis}} \sim p(x_{\text{mis}})

    ``log_prob`` is random: the mean of its exponential is the density, so a bound that contains it
    stays a bound. Draws and moments are those of x before values go missing.

    Args:
        base: Scalar families whose last batch dimensions are those of a row.
        inside: A value in the support of ``base``.
        log_odds: Function from complete rows ``(..., *E)`` to the log odds of a missing value.
        event_ndim: Number of dimensions of a row.

    Raises:
        TypeError: If draws of ``base`` carry no gradients.
    """

    def __init__(
        self,
        base: Distribution,
        inside: Tensor,
        log_odds: Callable[[Tensor], Tensor],
        event_ndim: int,
    ) -> None:
        if not base.has_rsample:
            raise TypeError(
                f"RowMaskedDistribution expects draws with gradients, got {base}: use Gaussian, "
                "Laplace or log-normal likelihoods, or SelfMasking(intercept='predicted')"
            )
        self.rows, self.event_ndim = Independent(base, event_ndim), event_ndim
        self.base, self.inside, self.log_odds = base, inside, log_odds
        self.batch_shape, self.event_shape = self.rows.batch_shape, self.rows.event_shape
        self.is_density, self.is_discrete = base.is_density, base.is_discrete or None

    @property
    def mean(self) -> Tensor:
        """Expected value of x, ``(*batch, *E)``."""
        return self.rows.mean

    def point_estimate(self, weights: Tensor | None = None) -> Tensor:
        """Return the point estimate of x."""
        return self.rows.point_estimate(weights)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw x."""
        return self.rows.sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log of an unbiased estimate of the density of ``(*S, *batch, *E)``, nats."""
        observed = MaskedDistribution(self.base, self.inside).summed_log_prob(
            value, self.event_ndim
        )
        shape = torch.broadcast_shapes(value.shape, self.base.batch_shape)
        draws = self.base.sample(shape[: len(shape) - len(self.base.batch_shape)])
        return observed + self.log_prob_of_mask(value, draws)

    def log_prob_of_mask(self, value: Tensor, draws: Tensor) -> Tensor:
        """Return log p(mask given x) with ``draws`` in place of missing values, nats."""
        is_missing = torch.isnan(value)
        log_odds = self.log_odds(torch.where(is_missing, draws, value))
        each = F.logsigmoid(torch.where(is_missing, log_odds, -log_odds))
        return sum_last(each, self.event_ndim)


class RowsGivenMask(Distribution):
    r"""The distribution of rows given their observed entries and their mask.

    .. math:: q(x_{\text{mis}}) \propto p(x_{\text{mis}})\, p(s \mid x)

    Draws and means are those of 100 weighted proposals from :math:`p(x_{\text{mis}})`.

    Args:
        joint: Distribution of observed entries and mask.
        value: Rows ``(B, *E)``, NaN at missing entries.
    """

    has_rsample = False

    def __init__(self, joint: RowMaskedDistribution, value: Tensor) -> None:
        self.joint, self.value = joint, value
        self.batch_shape, self.event_shape = joint.batch_shape, joint.event_shape
        self.is_discrete = joint.base.is_discrete

    @property
    def mean(self) -> Tensor:
        """Mean of the weighted proposals, ``(*batch, *E)``."""
        with torch.no_grad():
            draws, log_weight = self._proposals(())
            weight = log_weight.softmax(0)
            return pooled(draws, weight)

    def log_prob(self, value: Tensor) -> Tensor:
        """Raise, because the normalizer is not known."""
        raise NotImplementedError(f"{self} has no normalized density: use draws")

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw rows without gradients: one of the proposals, by its weight."""
        with torch.no_grad():
            draws, log_weight = self._proposals(sample_shape)
            chosen = gumbel_race(log_weight, ()).argmin(0, keepdim=True)
            index = unsqueeze_last(chosen, self.joint.event_ndim).expand(1, *draws.shape[1:])
            return draws.gather(0, index).squeeze(0)

    def _proposals(self, sample_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Draw complete rows ``(J, *sample_shape, *batch, *E)``; return them with log weights."""
        draws = self.joint.sample((_MOST_PROPOSALS, *sample_shape))
        log_weight = self.joint.log_prob_of_mask(self.value, draws)
        return torch.where(torch.isnan(self.value), draws, self.value), log_weight


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
