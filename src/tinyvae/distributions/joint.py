"""Distributions of several variables: the columns of a table, the parts of a vector."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from tinyvae.distributions.base import Distribution, size_of


class TabularDistribution(Distribution):
    """The columns of a table: blocks of scalar families along the last batch dimension.

    Draws carry gradients if the draws of every block do.

    Args:
        blocks: Distributions whose batch shapes agree except for their last dimension.
        positions: Positions of each block's columns in the table; together 0 to D - 1.

    Example:
        >>> numbers = Normal(torch.zeros(5, 2), torch.zeros(5, 2))
        >>> flags = Bernoulli(torch.zeros(5, 1))
        >>> positions = [torch.tensor([0, 2]), torch.tensor([1])]
        >>> TabularDistribution([numbers, flags], positions).sample().shape
        torch.Size([5, 3])
    """

    def __init__(self, blocks: Sequence[Distribution], positions: Sequence[Tensor]) -> None:
        self.blocks = tuple(blocks)
        self.positions = tuple(positions)
        width = sum(len(columns) for columns in positions)
        self.batch_shape = torch.Size((*blocks[0].batch_shape[:-1], width))
        self.is_density = all(block.is_density for block in self.blocks)
        self.has_rsample = all(block.has_rsample for block in self.blocks)
        self.is_discrete = common_kind(self.blocks)

    @property
    def mean(self) -> Tensor:
        """Expected value of each column."""
        return self._joined([block.mean for block in self.blocks])

    def point_estimate(self, weights: Tensor | None = None) -> Tensor:
        """Return the point estimate of each column."""
        return self._joined([block.point_estimate(weights) for block in self.blocks])

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density or mass of each column, nats."""
        pairs = zip(self.blocks, self.positions, strict=True)
        return self._joined(
            [block.log_prob(value.index_select(-1, columns)) for block, columns in pairs]
        )

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw every column."""
        return self._joined([block.sample(sample_shape) for block in self.blocks])

    def _joined(self, parts: list[Tensor]) -> Tensor:
        values = torch.cat(parts, -1)
        return torch.empty_like(values).index_copy(-1, torch.cat(self.positions), values)


class JointDistribution(Distribution):
    """Independent variables of different kinds, flattened and concatenated to one vector.

    Args:
        parts: Distributions by name. Their batch shapes broadcast.

    Example:
        >>> style = Independent(Normal(torch.zeros(5, 2), torch.zeros(5, 2)), 1)
        >>> JointDistribution({"style": style, "kind": OneHotCategorical(torch.zeros(5, 3), 1)})
        JointDistribution(batch_shape=(5,), event_shape=(5,))
    """

    def __init__(self, parts: Mapping[str, Distribution]) -> None:
        self.parts = dict(parts)
        values, items = self.parts.values(), self.parts.items()
        self.widths = [part.event_shape.numel() for part in values]
        self.batch_shape = torch.broadcast_shapes(*(part.batch_shape for part in values))
        self.event_shape = torch.Size((sum(self.widths),))
        self.is_density = all(part.is_density for part in values)
        self.has_rsample = all(part.has_rsample for part in values)
        self.is_partly_reparameterized = not self.has_rsample and any(
            part.has_rsample or part.is_partly_reparameterized for part in values
        )
        self.yields_log_prob = any(part.yields_log_prob for part in values)
        self.is_discrete = common_kind(values)
        supports = ", ".join(f"{name}: {part.support}" for name, part in items)
        self.support = "reals" if {part.support for part in values} == {"reals"} else supports
        self.depends_on_parameters = any(part.depends_on_parameters for part in values)
        self.losses = {f"{n}_{key}": x for n, part in items for key, x in part.losses.items()}
        self.metrics = {f"{n}_{key}": x for n, part in items for key, x in part.metrics.items()}
        self.shares = {f"{n}_{key}": x for n, part in items for key, x in part.shares.items()}

    @property
    def mean(self) -> Tensor:
        """Expected values, concatenated."""
        return self.concatenate([part.mean for part in self.parts.values()])

    @property
    def variance(self) -> Tensor:
        """Variances of the parts, concatenated."""
        return self.concatenate([part.variance for part in self.parts.values()])

    def entropy(self) -> Tensor:
        """Return the sum of the parts' entropies, nats."""
        entropies = [part.entropy().expand(self.batch_shape) for part in self.parts.values()]
        return torch.stack(entropies).sum(0)

    def point_estimate(self, weights: Tensor | None = None) -> Tensor:
        """Return the point estimates of the parts, concatenated."""
        return self.concatenate([part.point_estimate(weights) for part in self.parts.values()])

    def log_form(self) -> Distribution:
        """Return the joint distribution of the parts' log forms."""
        forms = {name: part.log_form() for name, part in self.parts.items()}
        is_same = all(form is self.parts[name] for name, form in forms.items())
        return self if is_same else JointDistribution(forms)

    def value_of(self, point: Tensor) -> Tensor:
        """Return the values of the parts' points, concatenated."""
        points = self.split(point)
        return self.concatenate([part.value_of(points[n]) for n, part in self.parts.items()])

    def split(self, value: Tensor) -> dict[str, Tensor]:
        """Split a vector ``(..., D)`` into the values of the parts, each with its own shape."""
        pieces = zip(self.parts.items(), value.split(self.widths, -1), strict=True)
        return {name: piece.unflatten(-1, part.event_shape) for (name, part), piece in pieces}

    def concatenate(self, values: Sequence[Tensor]) -> Tensor:
        """Flatten the values of the parts and concatenate them; the inverse of :meth:`split`."""
        events = (len(part.event_shape) for part in self.parts.values())
        flat = [v.flatten(-n) for v, n in zip(values, events, strict=True)]
        batch = torch.broadcast_shapes(*(v.shape[:-1] for v in flat))
        return torch.cat([v.expand(*batch, v.shape[-1]) for v in flat], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the sum of the parts' log densities and masses, nats."""
        values = self.split(value)
        return torch.stack([p.log_prob(values[name]) for name, p in self.parts.items()]).sum(0)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw every part, with gradients in the reparameterized ones."""
        return self.concatenate(
            [part.sample(self._part_shape(part, sample_shape)) for part in self.parts.values()]
        )

    def sample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw every part and return the vectors with their log densities and masses, nats."""
        pairs = [
            part.sample_and_log_prob(self._part_shape(part, sample_shape))
            for part in self.parts.values()
        ]
        value = self.concatenate([value for value, _ in pairs])
        return value, torch.stack([log_prob for _, log_prob in pairs]).sum(0)

    def _part_shape(self, part: Distribution, sample_shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of a part's draws, including batch dimensions that the part lacks."""
        missing = self.batch_shape[: len(self.batch_shape) - len(part.batch_shape)]
        return (*size_of(sample_shape), *missing)


def common_kind(distributions: Iterable[Distribution]) -> bool | None:
    """Return ``is_discrete`` of several distributions, None if they differ."""
    kinds = {distribution.is_discrete for distribution in distributions}
    return kinds.pop() if len(kinds) == 1 else None
