"""One update: losses, gradients, a check that they are finite, clipping, the optimizer's step."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from tinyvae.core.module_state import preserved_buffers
from tinyvae.core.objective import Batch, Objective, ObjectiveOutput, checked_data
from tinyvae.core.random import forked_rng
from tinyvae.errors import NonFiniteError
from tinyvae.training.acceleration.fused_adam import make_step
from tinyvae.training.acceleration.loss_scale import LossScale
from tinyvae.training.accumulation import AccumulatedGradients
from tinyvae.training.buffers import BufferBackup
from tinyvae.training.exchange import average_step
from tinyvae.training.finite_state import require_finite_state
from tinyvae.training.nonfinite import NonFiniteGuard
from tinyvae.training.optimization import Groups, Optimization
from tinyvae.training.state import TrainState

NORMALIZE = "normalize each example (nn.GroupNorm, nn.LayerNorm)"
DROP_LAST = f"use drop_last=True, in fit or in your DataLoader, or {NORMALIZE}"
ComputeGradients: TypeAlias = Callable[[Batch], ObjectiveOutput]


@runtime_checkable
class WholeUpdate(Protocol):
    """Gradients that can also make the update of a batch, such as a graph that holds both."""

    def update(self, batch: Batch, updates: Sequence[Any], /) -> ObjectiveOutput | None:
        """Make the update. Return losses and metrics, or None if nothing was changed."""


class TrainStep:
    """One update of the weights. Nothing else in the library changes weights.

    ``compute_gradients`` sets the gradients of a batch in the parameters and returns its losses: a
    :class:`Gradients`, or a compiled one. ``optimization`` provides clipping and schedulers that
    are called per step. After an error before the update, weights and buffers are those of the
    step before.
    """

    def __init__(
        self, state: TrainState, optimization: Optimization, compute_gradients: ComputeGradients
    ) -> None:
        self.state, self.optimization = state, optimization
        self.compute_gradients = compute_gradients
        if optimization.microbatch_size is not None:
            self.compute_gradients = AccumulatedGradients(
                compute_gradients, state.trained_parameters().values(), optimization.microbatch_size
            )
        scaled = isinstance(compute_gradients, Gradients) and compute_gradients.loss_scale
        self.loss_scale = scaled or None
        self.guard = NonFiniteGuard(
            state.optimizers,
            state.trained_parameters(),
            self._find_problem,
            optimization.clip_norm,
        )
        if self.loss_scale is not None:
            self.guard.waits = True  # an overflow is found before the update, too
        self.buffers = BufferBackup(state.model, state.objective)
        state.synchronize = self.synchronize
        self._updates = {name: make_step(optimizer) for name, optimizer in state.optimizers.items()}

    def __call__(self, batch: Batch) -> ObjectiveOutput:
        """Make one update, and return the batch's losses and metrics."""
        state = self.state
        self.buffers.keep(self.guard.flag)
        where = f"step {state.step + 1} (epoch {state.epoch + 1})"
        try:
            state.objective.set_step(state.step, state.plan.schedule_steps)
            state.weight = batch.total_weight
            overflows = False
            output = self._compiled_update(batch)
            is_updated = output is not None
            if output is None:
                output = average_step(state, self.compute_gradients(batch))
                overflows = self._overflows(output)
            if not (is_updated or overflows):
                self.guard.check(output, batch, where, self.buffers.changed())
        except BaseException as error:
            self.buffers.restore()
            message = str(error) if isinstance(error, ValueError) and len(batch) == 1 else ""
            if "more than 1 value per channel" in message:
                raise needs_two_examples(error, f"step {state.step + 1}", DROP_LAST) from error
            raise
        if not is_updated:
            self._update(overflows=overflows)
        if state.average.rule is not None and not overflows:
            progress = state.plan.progress(state.epoch, state.batch)
            state.average.update(self.buffers.changed(), progress)
        if self.optimization.scheduler_interval == "step":
            self.optimization.step_schedulers(state.schedulers, {}, state.plan.scheduled_steps)
        return output if self.loss_scale is None else self._scaled(output, overflows)

    def _find_problem(self, batch: Batch) -> str | None:
        problem = self.state.objective.find_problem(self.state.model, batch)
        if problem is None and self.loss_scale is not None:
            return (
                "The networks compute in float16, which ends at 65,504: use "
                "Speed(precision='bfloat16')"
            )
        return problem

    def _overflows(self, output: ObjectiveOutput) -> bool:
        """Return True if gradients are not finite because the scale of the loss is too large."""
        if self.loss_scale is None:
            return False
        return self.loss_scale.caused([*output.losses.values()], gradients_of(self.state.groups))

    def _scaled(self, output: ObjectiveOutput, overflows: bool) -> ObjectiveOutput:
        """Move the scale of the loss, and add it to the metrics."""
        loss_scale, (first, *_) = self.state.loss_scale, output.losses.values()
        numbers = {"loss_scale": loss_scale.value, "skipped_updates": float(overflows)}
        loss_scale.update(overflows=overflows)
        added = {f"batch_{name}": first.new_full((), value) for name, value in numbers.items()}
        return replace(output, metrics=output.metrics | added)

    def _compiled_update(self, batch: Batch) -> ObjectiveOutput | None:
        """Make the update by a graph, if there is one. Return None if nothing was changed."""
        if not isinstance(self.compute_gradients, WholeUpdate):
            return None
        output = self.compute_gradients.update(batch, list(self._updates.values()))
        if output is None:
            self.buffers.restore()  # those of the state before ``set_step``
            self.state.objective.set_step(self.state.step, self.state.plan.schedule_steps)
        return output

    def _update(self, *, overflows: bool) -> None:
        for name, update in self._updates.items():
            if self.optimization.clip_norm is not None and not overflows:
                clip_gradients(self.state.groups[name], self.optimization.clip_norm)
            if not overflows:
                update()
            for parameter in self.state.groups[name]:  # other groups still need their gradients
                parameter.grad = None

    def synchronize(self) -> None:
        """Wait for the device. Raise if a step or the state that it left is not finite."""
        try:
            self.guard.synchronize()
        except NonFiniteError:
            self.buffers.restore()
            raise
        require_finite_state(self.state, self.buffers.changed())

    def close(self) -> None:
        """Remove the guard's flag from the optimizers."""
        self.guard.release()


def gradients_of(groups: Groups) -> list[Tensor]:
    """Return the gradients of all groups."""
    return [p.grad for group in groups.values() for p in group if p.grad is not None]


def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> None:
    """Scale gradients so that their norm is at most ``max_norm``, also if squares overflow."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if norm.device.type != "cpu" or norm.isinf():  # the host does not wait for another device
        largest = torch.stack(torch._foreach_norm(gradients, math.inf)).max()
        torch._foreach_div_(gradients, torch.where(norm.isinf(), largest / max_norm, 1.0))
        norm = nn.utils.get_total_norm(gradients)
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)


@dataclass(frozen=True)
class Gradients:
    """Forward and backward pass: it sets the parameters' ``grad``.

    Each loss is differentiated with respect to its own group only.
    """

    model: nn.Module
    objective: Objective
    groups: Groups  # parameters by the name of their loss
    precision: torch.dtype = torch.float32  # of products in networks; autocast if it is lower
    loss_scale: LossScale | None = None  # in float16

    def __call__(self, batch: Batch) -> ObjectiveOutput:
        """Return losses and metrics, and set the parameters' gradients."""
        output = self.losses(batch)
        losses = output.losses
        if self.loss_scale is not None:
            losses = {name: loss * self.loss_scale.value for name, loss in losses.items()}
        if self._trains_all:  # torch is faster without a selection of inputs
            (loss,) = losses.values()
            loss.backward()
        else:
            # The losses share the model's forward pass: the graph is kept until the last one.
            last = len(losses) - 1
            for index, (name, loss) in enumerate(losses.items()):
                loss.backward(inputs=self.groups[name], retain_graph=index < last)
        if self.loss_scale is not None:
            torch._foreach_mul_(gradients_of(self.groups), 1 / self.loss_scale.value)
        return output

    def losses(self, batch: Batch) -> ObjectiveOutput:
        """Return losses and metrics without gradients."""
        uses_autocast = self.precision != torch.float32
        autocast = torch.autocast(batch.x.device.type, self.precision, enabled=uses_autocast)
        with checked_data(), autocast:
            output: ObjectiveOutput = self.objective(self.model, batch)
        if output.losses.keys() != self.groups.keys():
            raise ValueError(
                f"{type(self.objective).__name__} has parameter groups {list(self.groups)}, "
                f"expected a loss for each, got {list(output.losses)}"
            )
        return output

    @cached_property
    def _trains_all(self) -> bool:
        """True if there is one loss and it trains all trainable parameters."""
        every = (*self.model.parameters(), *self.objective.parameters())
        trained = {id(p) for group in self.groups.values() for p in group}
        return len(self.groups) == 1 and all(id(p) in trained for p in every if p.requires_grad)


def needs_two_examples(error: BaseException, where: str, advice: str) -> ValueError:
    """Return an error for a batch of one example, on which batch normalization cannot train."""
    return ValueError(
        "training data: the model expects batches of two or more examples in training mode, got "
        f"one example in {where} ({error}): {advice}"
    )


@contextmanager
def without_trace(gradients: Gradients, device: torch.device) -> Iterator[None]:
    """Restore random state, numbers and buffers of modules after the block. Remove gradients."""
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
