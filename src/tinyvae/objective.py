"""All that the Trainer knows: batches in, losses and metrics out.

An :class:`Objective` computes one loss per group of parameters. The Trainer differentiates each
with respect to its own group alone, so that several optimisers (a model against a discriminator)
never leak into each other.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinyvae.schedules import Constant, Schedule

__all__ = ["Batch", "Objective", "ObjectiveOutput"]


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


@dataclass(frozen=True)
class ObjectiveOutput:
    """What one pass of an objective returns.

    Attributes:
        losses: One scalar to minimise per parameter group: means over the batch.
        metrics: Scalars to report, detached, on the device; the unit is part of the name. Means
            over the batch.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]


class Objective(nn.Module, ABC):
    """A function of model and batch to be minimised.

    Attributes:
        couples_batch: Whether the loss is something other than a mean over examples, so that it
            changes when a batch is split.
    """

    couples_batch: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.schedules: dict[str, Schedule] = {}

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        """Compute losses and metrics of a batch."""

    def parameter_groups(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Parameters that each loss trains, by the loss's name; frozen ones are left out."""
        return {"model": [p for p in model.parameters() if p.requires_grad]}

    def check(self, model: nn.Module, batch: Batch) -> str:
        """Raise, with the remedy, if model and batch do not fit; called before the first step.

        Returns:
            What will be optimised, in a few words.
        """
        return type(self).__name__

    def is_bound(self, model: nn.Module) -> bool:
        """Whether the negative loss is, in expectation, a lower bound on log p(x)."""
        return False

    def schedule(self, name: str, value: float | Schedule) -> None:
        """Make ``name`` a weight: a 0-d buffer that :meth:`at` sets from a schedule."""
        schedule = value if isinstance(value, Schedule) else Constant(value)
        self.schedules[name] = schedule
        # float64 keeps weights such as 0.1 exact enough for float64 models. It promotes no tensor
        # with dimensions; a 0-d one, such as a loss, needs weight.to(loss.dtype).
        start = torch.tensor(schedule.shape(0, 1), dtype=torch.float64)
        self.register_buffer(name, start, persistent=False)

    def at(self, step: int, total_steps: int | None) -> None:
        """Set every weight to its value at ``step`` of ``total_steps`` (None: not known)."""
        for name, schedule in self.schedules.items():
            self.get_buffer(name).fill_(schedule(step, total_steps))

    def unfinished(self, steps: int, total_steps: int | None) -> list[str]:
        """Name the weights that a run of ``steps`` leaves before the end of their schedules."""
        lengths = {name: s.length(total_steps) for name, s in self.schedules.items()}
        return [
            f"{name} reaches its last value after {length} steps, the run ends after {steps}"
            for name, length in lengths.items()
            if length > steps
        ]
