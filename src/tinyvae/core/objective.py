"""All that the Trainer knows: batches in, losses and metrics out.

An :class:`Objective` computes one loss per group of parameters. The Trainer differentiates each
with respect to its own group alone, so that several optimizers (a model against a discriminator)
never leak into each other. Weights may follow :mod:`schedules <tinyvae.schedules>`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinyvae.schedules import Constant, Schedule


@dataclass(frozen=True)
class Batch:
    """What one step reads.

    Attributes:
        x: Data, ``(B, *E)``.
        context: What the model is conditioned on, ``(B, ...)``.
        mask: Which entries of x were observed, ``(B, *E)``.
        index: Positions in the data set, ``(B,)``.
    """

    x: Tensor
    context: Tensor | None = None
    mask: Tensor | None = None
    index: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of examples ``B``."""
        return len(self.x)

    def first(self, num: int) -> "Batch":
        """Return the first ``num`` examples."""
        rest = (self.context, self.mask, self.index)
        return Batch(self.x[:num], *(None if part is None else part[:num] for part in rest))


@dataclass(frozen=True)
class ObjectiveOutput:
    """What one pass of an objective returns.

    Attributes:
        losses: One scalar to minimize per parameter group: means over the batch.
        metrics: Scalars to report, detached, on the device; the unit is part of the name. Means
            over the batch.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]


class Scheduled(nn.Module):
    """A module with weights that follow schedules, and so may those within it.

    Weights are 0-d buffers, so that a new value never recompiles anything; those that change are
    part of the module's state.
    """

    def __init__(self) -> None:
        super().__init__()
        self.schedules: dict[str, Schedule] = {}
        self._changing: list[tuple[Scheduled, str, Schedule]] | None = None

    def schedule(
        self,
        name: str,
        value: float | Schedule,
        *,
        least: float = -math.inf,
        most: float = math.inf,
    ) -> None:
        """Make ``name`` a weight: a 0-d buffer that :meth:`at` sets from a schedule.

        Raises:
            ValueError: If a value is known to be outside [``least``, ``most``].
        """
        schedule = value if isinstance(value, Schedule) else Constant(value)
        low, high = schedule.extent
        if (low, high) != (-math.inf, math.inf) and not (least <= low and high <= most):
            bounds = f"in [{least:g}, {most:g}]" if most < math.inf else f">= {least:g}"
            raise ValueError(f"{type(self).__name__} expects {name} {bounds}, got {value!r}")
        self.schedules[name] = schedule
        self.refresh()
        # float64 keeps weights such as 0.1 exact enough for float64 models. It promotes no tensor
        # with dimensions; a 0-d one, such as a loss, needs weight.to(loss.dtype).
        start = torch.tensor(schedule.shape(0, 1), dtype=torch.float64)
        self.register_buffer(name, start, persistent=not isinstance(schedule, Constant))

    def extent(self, name: str) -> tuple[float, float]:
        """Least and largest value of a weight, as far as they are known."""
        return self.schedules[name].extent

    def is_constant(self, name: str, value: float) -> bool:
        """Whether a weight is a constant of that value."""
        schedule = self.schedules[name]
        return isinstance(schedule, Constant) and schedule.value == value

    def scheduled(self) -> dict[str, Tensor]:
        """Present values of the weights that change, by name."""
        return {
            name: self.get_buffer(name).clone()
            for name, schedule in self.schedules.items()
            if not isinstance(schedule, Constant)
        }

    def format_weight(self, name: str) -> str:
        """A weight in words: its number, or its schedule."""
        schedule = self.schedules[name]
        return f"{schedule.value:g}" if isinstance(schedule, Constant) else repr(schedule)

    def at(self, step: int, total_steps: int | None) -> None:
        """Set every weight to its value at ``step`` of ``total_steps`` (None: not known)."""
        weights = self._changing
        if weights is None:
            weights = [
                (module, name, schedule)
                for module in self._scheduled()
                for name, schedule in module.schedules.items()
            ]
            self._changing = [w for w in weights if not isinstance(w[2], Constant)]
        for module, name, schedule in weights:
            module.get_buffer(name).fill_(schedule(step, total_steps))

    def refresh(self) -> None:
        """Have :meth:`at` look anew for weights, and set those that never change, too."""
        self._changing = None

    def unfinished(self, steps: int, total_steps: int | None) -> list[str]:
        """Name the weights that a run of ``steps`` leaves before the end of their schedules."""
        lengths = [
            (name if module is self else f"{type(module).__name__}'s {name}", length)
            for module in self._scheduled()
            for name, schedule in module.schedules.items()
            if (length := schedule.length(total_steps)) > steps
        ]
        return [
            f"{name} reaches its last value after {length} steps, the run ends after {steps}"
            for name, length in lengths
        ]

    def _scheduled(self) -> Iterator["Scheduled"]:
        """This module, and those within it that have schedules."""
        return (module for module in self.modules() if isinstance(module, Scheduled))


class Objective(Scheduled, ABC):
    """A function of model and batch to be minimized.

    Attributes:
        couples_batch: Whether the loss is something other than a mean over examples, so that it
            changes when a batch is split.
    """

    couples_batch: bool = False

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        """Compute losses and metrics of a batch."""

    def parameter_groups(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Parameters that each loss trains, by the loss's name; frozen ones are left out."""
        return {"model": [p for p in model.parameters() if p.requires_grad]}

    def check(self, model: nn.Module, batch: Batch) -> str:
        """Raise, with the remedy, if model and batch do not fit; called before the first step.

        Returns:
            What will be optimized, in a few words.
        """
        return type(self).__name__

    def is_bound(self, model: nn.Module) -> bool:
        """Whether minus the loss is, as it stands and in expectation, a bound on log p(x)."""
        return False
