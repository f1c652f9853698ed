"""One update: losses, gradients, a check that they are finite, clipping, the optimizer's step."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from tinyvae.core.module_state import preserved_buffers
from tinyvae.core.objective import Batch, Objective, ObjectiveOutput
from tinyvae.core.random import forked_rng
from tinyvae.training.acceleration.fused_adam import make_step
from tinyvae.training.nonfinite import NonFiniteGuard
from tinyvae.training.optimization import Optimization, clip
from tinyvae.training.state import TrainState

ComputeGradients: TypeAlias = Callable[[Batch], ObjectiveOutput]
Groups: TypeAlias = Mapping[str, list[nn.Parameter]]


class TrainStep:
    """One update of the weights. Nothing else in the library changes weights.

    Args:
        state: The run.
        optimization: Clipping, and schedulers that move per step.
        compute_gradients: Leaves the gradients of a batch in the parameters, and returns its
            losses: a :class:`Gradients`, or a compiled one.
    """

    def __init__(
        self, state: TrainState, optimization: Optimization, compute_gradients: ComputeGradients
    ) -> None:
        self.state, self.optimization = state, optimization
        self.compute_gradients = compute_gradients
        self.guard = NonFiniteGuard(state.optimizers, state.trained_parameters())
        state.synchronize = self.guard.synchronize
        self._updates = {name: make_step(optimizer) for name, optimizer in state.optimizers.items()}

    def __call__(self, batch: Batch) -> ObjectiveOutput:
        """Make one update, and return the batch's losses and metrics."""
        state = self.state
        state.objective.set_step(state.step, state.plan.schedule_steps)
        # Gradient accumulation would call this once per part of the batch, and several processes
        # would average gradients after it.
        output = self.compute_gradients(batch)
        self.guard.check(output, f"step {state.step + 1} (epoch {state.epoch + 1})")
        for name, update in self._updates.items():
            clip(state.groups[name], self.optimization.clip_norm)
            update()
            for parameter in state.groups[name]:
                parameter.grad = None
        # Averages of weights would be updated here.
        if self.optimization.scheduler_interval == "step":
            self.optimization.step_schedulers(state.schedulers, {})
        return output

    def close(self) -> None:
        """Leave the optimizers as they were."""
        self.guard.release()


@dataclass(frozen=True)
class Gradients:
    """Computes losses, and leaves their gradients in the parameters' ``grad``.

    Each loss is differentiated with respect to its own group alone.

    Attributes:
        model: The model.
        objective: The objective.
        groups: Parameters by the name of their loss.
        precision: Precision of products in networks; below float32 by autocast.
    """

    model: nn.Module
    objective: Objective
    groups: Groups
    precision: torch.dtype = torch.float32

    def __call__(self, batch: Batch) -> ObjectiveOutput:
        """Return losses and metrics, and leave gradients in the parameters."""
        output = self.losses(batch)
        if self._trains_all:
            (loss,) = output.losses.values()
            loss.backward()
            return output
        # The losses share the model's forward pass: the graph is kept until the last one.
        last = len(output.losses) - 1
        for index, (name, loss) in enumerate(output.losses.items()):
            loss.backward(inputs=self.groups[name], retain_graph=index < last)
        return output

    def losses(self, batch: Batch) -> ObjectiveOutput:
        """Return losses and metrics without gradients."""
        with torch.autocast(batch.x.device.type, self.precision, enabled=self.uses_autocast):
            output: ObjectiveOutput = self.objective(self.model, batch)
        if output.losses.keys() != self.groups.keys():
            raise ValueError(
                f"{type(self.objective).__name__} has parameter groups {list(self.groups)}, "
                f"expected a loss for each, got {list(output.losses)}"
            )
        return output

    @cached_property
    def _trains_all(self) -> bool:
        """True if one loss trains all that can be trained: torch is faster without a selection."""
        every = (*self.model.parameters(), *self.objective.parameters())
        trained = {id(p) for group in self.groups.values() for p in group}
        return len(self.groups) == 1 and all(id(p) in trained for p in every if p.requires_grad)

    @property
    def uses_autocast(self) -> bool:
        """True if networks compute with fewer digits than the rest."""
        return self.precision != torch.float32


@contextmanager
def without_trace(gradients: Gradients, device: torch.device) -> Iterator[None]:
    """Restore random state, numbers of modules, buffers and gradients at the end of the block."""
    numbers = plain_numbers(gradients)
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    model, objective = gradients.model, gradients.objective
    with forked_rng(device), preserved_buffers(model), preserved_buffers(objective):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            for module, values in numbers:
                vars(module).update(values)
            for group in gradients.groups.values():
                for parameter in group:
                    parameter.grad = None


def plain_numbers(gradients: Gradients) -> list[tuple[nn.Module, dict[str, Any]]]:
    """Return the numbers and strings among the attributes of modules, such as counts of calls."""
    return [
        (module, {n: v for n, v in vars(module).items() if isinstance(v, (int, float, str))})
        for part in (gradients.model, gradients.objective)
        for module in part.modules()
    ]
