"""Losses of a batch and their gradients: the pass forwards and backwards of one update."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from tinyvae.core.module_state import preserved_buffers
from tinyvae.core.objective import Batch, Objective, ObjectiveOutput
from tinyvae.core.random import forked_rng


@dataclass(frozen=True)
class Gradients:
    """Computes losses, and leaves their gradients in the parameters' ``grad``.

    Each loss is differentiated with respect to its own group alone.

    Attributes:
        model: The model.
        objective: The objective.
        groups: Parameters by the name of their loss.
        precision: Of products in networks; below float32 by autocast.
    """

    model: nn.Module
    objective: Objective
    groups: Mapping[str, list[nn.Parameter]]
    precision: torch.dtype = torch.float32

    def __call__(self, batch: Batch) -> ObjectiveOutput:
        """Return losses and metrics."""
        output = self.losses(batch)
        if self._trains_all:
            (loss,) = output.losses.values()
            loss.backward()
            return output
        # The graph is kept until the last loss: they share the model's forward pass.
        last = len(output.losses) - 1
        for position, (name, loss) in enumerate(output.losses.items()):
            loss.backward(inputs=self.groups[name], retain_graph=position < last)
        return output

    def losses(self, batch: Batch) -> ObjectiveOutput:
        """Return losses and metrics, without their gradients."""
        with torch.autocast(batch.x.device.type, self.precision, enabled=self.is_mixed):
            output: ObjectiveOutput = self.objective(self.model, batch)
        if output.losses.keys() != self.groups.keys():
            raise ValueError(
                f"{type(self.objective).__name__} has parameter groups {list(self.groups)}, "
                f"expected a loss for each, got {list(output.losses)}"
            )
        return output

    @cached_property
    def _trains_all(self) -> bool:
        """Whether one loss trains all that can be trained: torch is quicker without a choice."""
        every = (*self.model.parameters(), *self.objective.parameters())
        own = {id(p) for group in self.groups.values() for p in group}
        return len(self.groups) == 1 and all(id(p) in own for p in every if p.requires_grad)

    @property
    def is_mixed(self) -> bool:
        """Whether networks compute in fewer digits than the rest."""
        return self.precision != torch.float32


@contextmanager
def scratch(gradients: Gradients, device: torch.device) -> Iterator[None]:
    """Random state, numbers, buffers and gradients as they were, after."""
    numbers = plain_numbers(gradients)
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with (
        forked_rng(device),
        preserved_buffers(gradients.model),
        preserved_buffers(gradients.objective),
    ):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            for module, own in numbers:
                vars(module).update(own)
            for group in gradients.groups.values():
                for parameter in group:
                    parameter.grad = None


def plain_numbers(gradients: Gradients) -> list[tuple[nn.Module, dict[str, Any]]]:
    """Numbers and words that modules have as attributes, such as a count of their calls."""
    return [
        (module, {n: v for n, v in vars(module).items() if isinstance(v, (int, float, str))})
        for part in (gradients.model, gradients.objective)
        for module in part.modules()
    ]
