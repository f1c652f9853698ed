"""Distributions made of distributions: scaled, mixed, zero-inflated, side by side, in part seen."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyvae.distributions.base import Distribution, Latest, Wrapper, pooled


class Affine(Wrapper):
    r"""The distribution of :math:`x = a + b y`, where ``base`` is that of y.

    .. math:: \log p(x) = \log p_y\big((x - a) / b\big) - \log b

    Args:
        base: A scalar family with a density, or any density of one event.
        shift: :math:`a`, broadcastable with the batch, or with the event.
        scale: :math:`b > 0`, likewise.

    Example:
        >>> y = Normal(torch.zeros(1), torch.zeros(1))
        >>> Affine(y, torch.tensor(50.0), torch.tensor(10.0)).mean
        tensor([50.])
    """

    def __init__(self, base: Distribution, shift: Tensor, scale: Tensor) -> None:
        if base.is_discrete is not False:
            raise TypeError(
                f"expected a density to shift and scale, got {base}, whose masses know no units"
            )
        super().__init__(base)
        self.shift, self.scale = shift, scale

    @property
    def mean(self) -> Tensor:
        """Expected value, in the units of x."""
        return self.shift + self.scale * self.base.mean

    def center(self, weights: Tensor | None = None) -> Tensor:
        """Center of the base, in the units of x."""
        return self.shift + self.scale * self.base.center(weights)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in the units of x, nats."""
        log_scale = torch.log(self.scale)
        if self.event_shape:
            log_scale = log_scale.expand(self.event_shape).sum()
        return self.base.log_prob((value - self.shift) / self.scale) - log_scale

    def elementwise_log_prob(self, value: Tensor) -> Tensor:
        """Log density of each element in the units of x, nats."""
        each = self.base.elementwise_log_prob((value - self.shift) / self.scale)
        return each - torch.log(self.scale)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw in the units of x."""
        return self.shift + self.scale * self.base.sample(sample_shape)


class ReshapedBatch(Wrapper):
    """A batch of ``K * B`` distributions as one of ``(K, B)``.

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
        self._latest = Latest[Tensor]()
        self.losses = {name: v.unflatten(0, self.batch_shape) for name, v in base.losses.items()}

    @property
    def mean(self) -> Tensor:
        """Expected value, ``(K, B, *event)``."""
        mean: Tensor = self.base.mean.unflatten(0, self.batch_shape)
        return mean

    def center(self, weights: Tensor | None = None) -> Tensor:
        """Center of each; with weights, of those of the first dimension."""
        center = self.base.center().unflatten(0, self.batch_shape)
        return pooled(center, weights)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density or mass of ``(*S, K, B, *event)``, nats."""
        log_prob: Tensor = self.base.log_prob(self._rows(value)).unflatten(-1, self.batch_shape)
        return log_prob

    def elementwise_log_prob(self, value: Tensor) -> Tensor:
        """Log density of each element of ``(*S, K, B, *event)``, nats."""
        log_prob = self.base.elementwise_log_prob(self._rows(value))
        elements: Tensor = log_prob.unflatten(-len(self.event_shape) - 1, self.batch_shape)
        return elements

    def _rows(self, value: Tensor) -> Tensor:
        rows = self._latest.of(value)
        if rows is not None:
            return rows
        first = value.dim() - len(self.event_shape) - 2
        value = value.expand(*value.shape[:first], *self.batch_shape, *self.event_shape)
        return value.flatten(first, first + 1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw of each, ``(*S, K, B, *event)``."""
        rows = self.base.sample(sample_shape)
        draws: Tensor = rows.unflatten(len(sample_shape), self.batch_shape)
        self._latest.keep(draws, rows)
        return draws


class MaskedDistribution(Wrapper):
    """What was seen of ``base``: an entry that is NaN has log density zero, and no gradient.

    Args:
        base: A scalar family.
        inside: A value in its support, put in place of NaN before the density is taken: a gradient
            through NaN is NaN even where it is masked after.

    Example:
        >>> p = MaskedDistribution(Normal(torch.zeros(2), torch.zeros(2)), inside=torch.tensor(0.0))
        >>> p.log_prob(torch.tensor([0.0, torch.nan]))
        tensor([-0.9189,  0.0000])
    """

    def __init__(self, base: Distribution, inside: Tensor) -> None:
        super().__init__(base)
        self.inside = inside

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density or mass of each entry, zero where it was not seen, nats."""
        seen = ~torch.isnan(value)
        return torch.where(seen, self.base.log_prob(torch.where(seen, value, self.inside)), 0.0)
