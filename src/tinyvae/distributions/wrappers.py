"""Wrappers of another distribution: shifted and scaled, with a reshaped batch, partly observed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyvae.distributions.base import Distribution, Wrapper, pooled


class Affine(Wrapper):
    r"""The distribution of :math:`x = a + b y`, where ``base`` is the distribution of y.

    .. math:: \log p(x) = \log p_y\big((x - a) / b\big) - \log b

    Args:
        base: A scalar family with a density, or any density of one event.
        shift: :math:`a`, broadcastable with the batch, or with the event.
        scale: :math:`b > 0`, broadcastable in the same way.

    Raises:
        TypeError: If ``base`` is discrete.

    Example:
        >>> y = Normal(torch.zeros(1), torch.zeros(1))
        >>> Affine(y, torch.tensor(50.0), torch.tensor(10.0)).mean
        tensor([50.])
    """

    def __init__(self, base: Distribution, shift: Tensor, scale: Tensor) -> None:
        if base.is_discrete is not False:
            raise TypeError(
                f"Affine expects a density to shift and scale, got {base}: masses have no units, "
                "use the distribution without Affine"
            )
        super().__init__(base)
        self.shift, self.scale = shift, scale

    @property
    def mean(self) -> Tensor:
        """Expected value, in the units of x."""
        return self.shift + self.scale * self.base.mean

    @property
    def stddev(self) -> Tensor:
        """Standard deviation, in the units of x."""
        return self.scale * self.base.stddev

    @property
    def variance(self) -> Tensor:
        """Variance, in the squared units of x."""
        return self.scale.square() * self.base.variance

    def entropy(self) -> Tensor:
        """Return the entropy in the units of x, nats."""
        return self.base.entropy() + self._log_det

    def point_estimate(self, weights: Tensor | None = None) -> Tensor:
        """Return the point estimate of the base, in the units of x."""
        return self.shift + self.scale * self.base.point_estimate(weights)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in the units of x, nats."""
        return self.base.log_prob((value - self.shift) / self.scale) - self._log_det

    @property
    def _log_det(self) -> Tensor:
        log_scale = torch.log(self.scale)
        return log_scale.expand(self.event_shape).sum() if self.event_shape else log_scale

    def elementwise_log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each element in the units of x, nats."""
        each = self.base.elementwise_log_prob((value - self.shift) / self.scale)
        return each - torch.log(self.scale)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw in the units of x."""
        return self.shift + self.scale * self.base.sample(sample_shape)


class ReshapedBatch(Wrapper):
    """A batch of ``K * B`` distributions, reshaped to ``(K, B)``.

    Args:
        base: A distribution with ``batch_shape = (K * B,)``.
        shape: ``(K, B)``.

    Example:
        >>> rows = Independent(Normal(torch.zeros(6, 4), torch.zeros(6, 4)), 1)
        >>> ReshapedBatch(rows, (2, 3)).log_prob(torch.zeros(2, 3, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(self, base: Distribution, shape: Sequence[int]) -> None:
        super().__init__(base)
        self.batch_shape = torch.Size(shape)
        self.yields_log_prob = base.yields_log_prob
        self.losses = {name: v.unflatten(0, self.batch_shape) for name, v in base.losses.items()}

    @property
    def mean(self) -> Tensor:
        """Expected value, ``(K, B, *event)``."""
        return torch.unflatten(self.base.mean, 0, self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of each element, ``(K, B, *event)``."""
        return torch.unflatten(self.base.variance, 0, self.batch_shape)

    @property
    def stddev(self) -> Tensor:
        """Standard deviation of each element, ``(K, B, *event)``."""
        return torch.unflatten(self.base.stddev, 0, self.batch_shape)

    def entropy(self) -> Tensor:
        """Return the entropies, ``(K, B)``, nats."""
        return torch.unflatten(self.base.entropy(), 0, self.batch_shape)

    def point_estimate(self, weights: Tensor | None = None) -> Tensor:
        """Return the point estimates; weights pool the first batch dimension."""
        return pooled(self.base.point_estimate().unflatten(0, self.batch_shape), weights)

    def log_form(self) -> Distribution:
        """Return the log form of the base, reshaped."""
        form = self.base.log_form()
        return self if form is self.base else ReshapedBatch(form, self.batch_shape)

    def value_of(self, point: Tensor) -> Tensor:
        """Return the values of points of the base."""
        return self.base.value_of(point)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density or mass of ``(*S, K, B, *event)``, nats."""
        return torch.unflatten(self.base.log_prob(self._rows(value)), -1, self.batch_shape)

    def elementwise_log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each element of ``(*S, K, B, *event)``, nats."""
        log_prob = self.base.elementwise_log_prob(self._rows(value))
        return torch.unflatten(log_prob, -len(self.event_shape) - 1, self.batch_shape)

    def _rows(self, value: Tensor) -> Tensor:
        first = value.dim() - len(self.event_shape) - 2
        value = value.expand(*value.shape[:first], *self.batch_shape, *self.event_shape)
        return value.flatten(first, first + 1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw ``(*S, K, B, *event)``."""
        rows = self.base.sample(sample_shape)
        return torch.unflatten(rows, len(sample_shape), self.batch_shape)

    def sample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw ``(*S, K, B, *event)`` and return it with its log density or mass, nats."""
        rows, log_prob = self.base.sample_and_log_prob(sample_shape)
        dim = len(sample_shape)
        return rows.unflatten(dim, self.batch_shape), log_prob.unflatten(dim, self.batch_shape)


class MaskedDistribution(Wrapper):
    """The distribution of observed entries. A NaN entry has log density zero and no gradient.

    Args:
        base: A scalar family, or one of pairs such as :class:`CensoredDistribution`.
        inside: A value in the support of ``base``. It replaces NaN before the density is computed,
            because a gradient through NaN is NaN even if it is masked afterwards.

    Example:
        >>> p = MaskedDistribution(Normal(torch.zeros(2), torch.zeros(2)), inside=torch.tensor(0.0))
        >>> p.log_prob(torch.tensor([0.0, torch.nan]))
        tensor([-0.9189,  0.0000])
    """

    def __init__(self, base: Distribution, inside: Tensor) -> None:
        super().__init__(base)
        self.inside = inside

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density or mass of each entry, zero if it is missing, nats."""
        is_observed = ~torch.isnan(value)
        if not self.event_shape:
            filled = torch.where(is_observed, value, self.inside)
            return torch.where(is_observed, self.base.log_prob(filled), 0.0)
        whole = is_observed.all(-1)
        filled = torch.where(whole.unsqueeze(-1), value, self.inside)
        return torch.where(whole, self.base.log_prob(filled), 0.0)
