"""Distributions of several parts side by side."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from tinyvae.distributions.base import Distribution, Latest


class TabularDistribution(Distribution):
    """Scalar families side by side: the last batch dimension is a table's columns.

    Draws carry gradients where those of every block do.

    Args:
        blocks: Distributions whose batch shapes agree but for their last dimension.
        positions: Positions in the table of each block's columns; together 0 to D - 1.

    Example:
        >>> numbers = Normal(torch.zeros(5, 2), torch.zeros(5, 2))
        >>> flags = Bernoulli(torch.zeros(5, 1))
        >>> TabularDistribution([numbers, flags], [torch.tensor([0, 2]), torch.tensor([1])]).sample().shape
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


class JointDistribution(Distribution):
    """Independent variables of different kinds as one vector, flattened side by side.

    Args:
        parts: Distributions of one batch shape by their names.

    Example:
        >>> style = Independent(Normal(torch.zeros(5, 2), torch.zeros(5, 2)), 1)
        >>> JointDistribution({"style": style, "kind": OneHotCategorical(torch.zeros(5, 3), 1)})
        JointDistribution(batch_shape=(5,), event_shape=(5,))
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
        self.depends_on_parameters = any(part.depends_on_parameters for part in self.parts.values())
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
