"""Distributions made of distributions: scaled, mixed, zero-inflated, side by side, in part seen."""

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyvae.distributions.base import Distribution, Latest, Wrapper, pooled, unsqueeze_last
from tinyvae.distributions.special import race

__all__ = [
    "Affine",
    "Columns",
    "Joint",
    "Mixture",
    "Observed",
    "Unflattened",
    "ZeroInflated",
    "common_kind",
]


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

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw in the units of x."""
        return self.shift + self.scale * self.base.sample(sample_shape)


class Mixture(Distribution):
    r"""Mixture along one batch dimension of ``components``.

    .. math:: p(x) = \textstyle\sum_m \pi_m \, p_m(x)

    Args:
        logits: :math:`\log\pi` up to a constant, of the components' batch shape.
        components: The components.
        dim: Batch dimension of the components, negative.

    Example:
        >>> apart = Normal(torch.tensor([-9.0, 9.0]), torch.zeros(2))
        >>> Mixture(torch.zeros(2), apart).log_prob(torch.tensor(9.0))  # -log(2 pi) / 2 - log 2
        tensor(-1.6121)
    """

    has_rsample = False

    def __init__(self, logits: Tensor, components: Distribution, dim: int = -1) -> None:
        self.log_weights = logits.expand(components.batch_shape).log_softmax(dim)
        self.components = components
        self.dim = dim
        self._value_dim = dim - len(components.event_shape)
        self.batch_shape = self.log_weights.select(dim, 0).shape
        self.event_shape = components.event_shape
        self.is_density = components.is_density
        self.is_discrete = components.is_discrete
        self.space = components.space

    @property
    def mean(self) -> Tensor:
        """Expected value, ``(*batch, *event)``."""
        return self._mixed(self.components.mean)

    def center(self, weights: Tensor | None = None) -> Tensor:
        """Weighted sum of the components' centers."""
        return pooled(self._mixed(self.components.center()), weights)

    def _mixed(self, values: Tensor) -> Tensor:
        weights = unsqueeze_last(self.log_weights.exp(), len(self.event_shape))
        return (weights * values).sum(self._value_dim)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density or mass, nats."""
        each = self.components.log_prob(value.unsqueeze(self._value_dim))
        return torch.logsumexp(self.log_weights + each, self.dim)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw without gradients: a component, then of it."""
        with torch.no_grad():
            draws = self.components.sample(sample_shape)
            chosen = race(self.log_weights, sample_shape).argmin(self.dim, keepdim=True)
            index = unsqueeze_last(chosen, len(self.event_shape))
            size = [*index.shape[: index.dim() - len(self.event_shape)], *self.event_shape]
            return draws.gather(self._value_dim, index.expand(size)).squeeze(self._value_dim)


class ZeroInflated(Distribution):
    r"""Counts of ``base``, with more zeros.

    .. math:: p(x) = \pi \, [x = 0] + (1 - \pi) \, p_{\text{base}}(x)

    Args:
        base: A scalar family of counts.
        logits: Log odds of an extra zero, :math:`\log \tfrac{\pi}{1 - \pi}`, of its batch shape.

    Example:
        >>> ZeroInflated(Poisson(torch.zeros(1)), torch.zeros(1)).mean
        tensor([0.5000])
    """

    has_rsample = False
    is_discrete = True

    def __init__(self, base: Distribution, logits: Tensor) -> None:
        self.base, self.logits = base, logits
        self.batch_shape = base.batch_shape
        self.event_shape = base.event_shape
        self.is_density = base.is_density

    @property
    def mean(self) -> Tensor:
        """Expected count, ``(*batch)``."""
        return torch.sigmoid(-self.logits) * self.base.mean

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass of each element, nats."""
        counted = F.logsigmoid(-self.logits) + self.base.log_prob(value)
        zero = torch.logaddexp(F.logsigmoid(self.logits), counted)
        return torch.where(value == 0, zero, counted)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw counts, without gradients."""
        with torch.no_grad():
            draws = self.base.sample(sample_shape)
            kept = torch.bernoulli(torch.sigmoid(-self.logits).expand(draws.shape))
            return draws * kept


class Columns(Distribution):
    """Scalar families side by side: the last batch dimension is a table's columns.

    Draws carry gradients where those of every block do.

    Args:
        blocks: Distributions whose batch shapes agree but for their last dimension.
        positions: Positions in the table of each block's columns; together 0 to D - 1.

    Example:
        >>> numbers = Normal(torch.zeros(5, 2), torch.zeros(5, 2))
        >>> flags = Bernoulli(torch.zeros(5, 1))
        >>> Columns([numbers, flags], [torch.tensor([0, 2]), torch.tensor([1])]).sample().shape
        torch.Size([5, 3])
    """

    def __init__(self, blocks: Sequence[Distribution], positions: Sequence[Tensor]) -> None:
        self.blocks = tuple(blocks)
        self.positions = tuple(positions)
        width = sum(len(at) for at in positions)
        self.batch_shape = torch.Size((*blocks[0].batch_shape[:-1], width))
        self.is_density = all(block.is_density for block in self.blocks)
        self.has_rsample = all(block.has_rsample for block in self.blocks)
        self.is_discrete = common_kind(self.blocks)

    @property
    def mean(self) -> Tensor:
        """Expected value of each column."""
        return self._joined([block.mean for block in self.blocks])

    def center(self, weights: Tensor | None = None) -> Tensor:
        """Center of each column."""
        return self._joined([block.center(weights) for block in self.blocks])

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density or mass of each column, nats."""
        pairs = zip(self.blocks, self.positions, strict=True)
        return self._joined([b.log_prob(value.index_select(-1, at)) for b, at in pairs])

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw every column."""
        return self._joined([block.sample(sample_shape) for block in self.blocks])

    def _joined(self, parts: list[Tensor]) -> Tensor:
        values = torch.cat(parts, -1)
        return torch.empty_like(values).index_copy(-1, torch.cat(self.positions), values)


class Joint(Distribution):
    """Independent variables of different kinds as one vector, flattened side by side.

    Args:
        parts: Distributions of one batch shape by their names.

    Example:
        >>> style = Independent(Normal(torch.zeros(5, 2), torch.zeros(5, 2)), 1)
        >>> Joint({"style": style, "kind": OneHotCategorical(torch.zeros(5, 3), 1)})
        Joint(batch_shape=(5,), event_shape=(5,))
    """

    def __init__(self, parts: Mapping[str, Distribution]) -> None:
        self.parts = dict(parts)
        self.widths = [part.event_shape.numel() for part in self.parts.values()]
        shapes = (part.batch_shape for part in self.parts.values())
        self.batch_shape = torch.Size(torch.broadcast_shapes(*shapes))
        self.event_shape = torch.Size((sum(self.widths),))
        self.is_density = all(part.is_density for part in self.parts.values())
        self.has_rsample = all(part.has_rsample for part in self.parts.values())
        self.is_mixed = not self.has_rsample and any(
            part.has_rsample or part.is_mixed for part in self.parts.values()
        )
        self.is_discrete = common_kind(self.parts.values())
        spaces = {part.space for part in self.parts.values()}
        named = ", ".join(f"{name}: {part.space}" for name, part in self.parts.items())
        self.space = "reals" if spaces == {"reals"} else named
        self.scored_by_weights = any(part.scored_by_weights for part in self.parts.values())
        self._latest = Latest[dict[str, Tensor]]()
        self.losses = self._named({name: part.losses for name, part in self.parts.items()})
        self.metrics = self._named({name: part.metrics for name, part in self.parts.items()})

    @staticmethod
    def _named(own: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {f"{name}_{key}": v for name, values in own.items() for key, v in values.items()}

    @property
    def mean(self) -> Tensor:
        """Expected values, side by side."""
        return self._joined([part.mean for part in self.parts.values()])

    def center(self, weights: Tensor | None = None) -> Tensor:
        """Centers, side by side."""
        return self._joined([part.center(weights) for part in self.parts.values()])

    def split(self, value: Tensor) -> dict[str, Tensor]:
        """Take a vector ``(..., D)`` apart, each part in its own shape.

        Of the latest draw, these are the parts' own draws, whose log densities they may know.
        """
        if (draws := self._latest.of(value)) is not None:
            return draws
        pieces = zip(self.parts.items(), value.split(self.widths, -1), strict=True)
        return {name: piece.unflatten(-1, part.event_shape) for (name, part), piece in pieces}

    def log_prob(self, value: Tensor) -> Tensor:
        """Sum of the parts' log densities and masses, nats."""
        values = self.split(value)
        return torch.stack([p.log_prob(values[name]) for name, p in self.parts.items()]).sum(0)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw every part, with gradients in those that have some."""
        draws = {}
        for name, part in self.parts.items():
            missing = self.batch_shape[: len(self.batch_shape) - len(part.batch_shape)]
            draws[name] = part.sample((*sample_shape, *missing))
        value = self._joined(list(draws.values()))
        self._latest.keep(value, draws)
        return value

    def _joined(self, values: list[Tensor]) -> Tensor:
        events = (len(part.event_shape) for part in self.parts.values())
        flat = [v.flatten(-n) for v, n in zip(values, events, strict=True)]
        batch = torch.broadcast_shapes(*(v.shape[:-1] for v in flat))
        return torch.cat([v.expand(*batch, v.shape[-1]) for v in flat], -1)


def common_kind(distributions: Iterable[Distribution]) -> bool | None:
    """``is_discrete`` of several side by side."""
    kinds = {distribution.is_discrete for distribution in distributions}
    return kinds.pop() if len(kinds) == 1 else None


class Unflattened(Wrapper):
    """A batch of ``K * B`` distributions as one of ``(K, B)``.

    Args:
        base: A distribution with ``batch_shape = (K * B,)``.
        shape: ``(K, B)``.

    Example:
        >>> rows = Independent(Normal(torch.zeros(6, 4), torch.zeros(6, 4)), 1)
        >>> Unflattened(rows, (2, 3)).log_prob(torch.zeros(2, 3, 4)).shape
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


class Observed(Wrapper):
    """What was seen of ``base``: an entry that is NaN has log density zero, and no gradient.

    Args:
        base: A scalar family.
        inside: A value in its support, put in place of NaN before the density is taken: a gradient
            through NaN is NaN even where it is masked after.

    Example:
        >>> p = Observed(Normal(torch.zeros(2), torch.zeros(2)), inside=torch.tensor(0.0))
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
