"""Interface between the Trainer and an objective, which maps batches to losses and metrics.

An :class:`Objective` computes one loss per group of parameters. The Trainer differentiates each
loss with respect to its own group only, so several optimizers (a model against a discriminator)
never mix. Weights may follow :mod:`schedules <tinyvae.schedules>`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinyvae.schedules import ScheduledWeight


@dataclass(frozen=True)
class Batch:
    """Data of one step.

    Attributes:
        x: Data, ``(B, *E)``.
        context: Input of a conditional model, ``(B, ...)``.
        mask: True for the observed entries of x, ``(B, *E)``.
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
        others = (self.context, self.mask, self.index)
        return Batch(self.x[:num], *(None if part is None else part[:num] for part in others))


_DATA_ARE_CHECKED = ContextVar("_DATA_ARE_CHECKED", default=False)


@contextmanager
def checked_data() -> Iterator[None]:
    """Tell models that the data of the block have been checked, so that they skip their checks."""
    token = _DATA_ARE_CHECKED.set(True)
    try:
        yield
    finally:
        _DATA_ARE_CHECKED.reset(token)


def data_are_checked() -> bool:
    """Return True inside :func:`checked_data`, and in a graph, which cannot check values."""
    return torch.compiler.is_compiling() or _DATA_ARE_CHECKED.get()


@dataclass(frozen=True)
class ObjectiveOutput:
    """Losses and metrics of one pass.

    Attributes:
        losses: One scalar to minimize per parameter group: means over the batch.
        metrics: Detached scalars to report, on the device: means over the batch. A name ends with
            the unit, if there is one.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]


class Objective(nn.Module, ABC):
    """Function of model and batch that the Trainer minimizes.

    Weights that are :class:`~tinyvae.schedules.ScheduledWeight` attributes, of the objective or of
    any module in it, follow their schedules.

    Attributes:
        couples_batch: True if the loss is not a mean over examples and changes when a batch is
            split.
    """

    couples_batch: bool = False

    def __init__(self) -> None:
        super().__init__()
        self._changing_weights: list[ScheduledWeight] | None = None

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        """Compute losses and metrics of a batch, in the modes that model and objective are in."""

    def parameter_groups(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Return the trainable parameters of each loss, by the name of the loss."""
        return {"model": [p for p in model.parameters() if p.requires_grad]}

    def check(self, model: nn.Module, batch: Batch) -> str:
        """Raise if model and batch do not fit. Return a short description of what is optimized.

        The Trainer calls it before the first step.
        """
        return type(self).__name__

    def is_bound(self, model: nn.Module) -> bool:
        """Return True if the expectation of minus the loss is a lower bound on log p(x)."""
        return False

    def set_step(self, step: int, total_steps: int | None) -> None:
        """Set every weight to its value at ``step`` of ``total_steps`` (None: unknown)."""
        weights = self._changing_weights
        if weights is None:  # the first call also sets constant weights
            weights = [weight for _, weight in self._scheduled_weights()]
            self._changing_weights = [weight for weight in weights if weight.changes]
        for weight in weights:
            weight.set_step(step, total_steps)

    def reset_schedules(self) -> None:
        """Make the next :meth:`set_step` search for weights again and set constant weights, too."""
        self._changing_weights = None

    def unfinished_schedules(self, steps: int, total_steps: int | None) -> list[str]:
        """Return a message for each weight whose schedule is longer than a run of ``steps``."""
        lengths = [(n, w.schedule.length(total_steps)) for n, w in self._scheduled_weights()]
        return [
            f"{name} reaches its last value after {length} steps, the run ends after {steps}"
            for name, length in lengths
            if length > steps
        ]

    def _scheduled_weights(self) -> Iterator[tuple[str, ScheduledWeight]]:
        """Yield the weights of this module and of those in it, with names for messages."""
        for module in self.modules():
            owner = "" if module is self else f"{type(module).__name__}'s "
            for name, child in module.named_children():
                if isinstance(child, ScheduledWeight):
                    yield owner + name, child
