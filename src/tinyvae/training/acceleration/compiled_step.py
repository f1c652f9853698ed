"""A whole update as one compiled graph: forward and backward pass, check, clipping, Adam."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tinyvae.core.objective import Batch, ObjectiveOutput
from tinyvae.core.warnings import warn
from tinyvae.training.acceleration.compiled import (
    CompiledGradients,
    CompiledPass,
    Pass,
    tensors_of,
)
from tinyvae.training.acceleration.fused_adam import (
    DirectFusedAdam,
    FusedAdamArguments,
    is_decoupled,
    make_step,
)
from tinyvae.training.step import Gradients, clip_gradients

NUMBERS = 3  # per group of an optimizer: learning rate and the two corrections of the bias
EXAMPLE_RATE = 30.0  # of the check: a step from moments 0 and 1 is about the gradient


class MissingGradientError(ValueError):
    """A trained parameter gets no gradient, for which Adam makes no step."""


@dataclass(frozen=True)
class AdamGroup:
    """Settings of a group of parameters that are constants of the graph."""

    betas: tuple[float, float]
    eps: float
    weight_decay: float
    is_decoupled: bool
    maximize: bool

    @classmethod
    def of(cls, options: Mapping[str, Any], *, is_decoupled: bool) -> "AdamGroup":
        """Return the settings of a group of an optimizer."""
        betas, eps = tuple(options["betas"]), options["eps"]
        return cls(betas, eps, options["weight_decay"], is_decoupled, options["maximize"])

    def stepped(
        self, parameter: Tensor, gradient: Tensor, moment: Tensor, square: Tensor, numbers: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return parameter, first and second moment after a step of Adam."""
        rate, correction1, correction2 = numbers.unbind()
        beta1, beta2 = self.betas
        gradient = -gradient if self.maximize else gradient
        if self.weight_decay and self.is_decoupled:
            parameter = parameter * (1 - rate * self.weight_decay)
        elif self.weight_decay:
            gradient = gradient + self.weight_decay * parameter
        moment = torch.lerp(moment, gradient, 1 - beta1)
        square = beta2 * square + (1 - beta2) * gradient.square()
        size = (square / correction2).sqrt() + self.eps
        return parameter - rate / correction1 * moment / size, moment, square

    def numbers(self, rate: float, count: float) -> list[float]:
        """Return the learning rate and the corrections of the bias at a step."""
        return [float(rate), *(1 - beta**count for beta in self.betas)]


class CompiledStep(CompiledPass):
    """Compiled update of batches like ``example`` by Adam or AdamW, on a CPU.

    The graph replaces weights and moments only if all losses, gradients and changed buffers are
    finite. Otherwise nothing changes, and the plain path makes the step again, which names the
    value. The plain path also makes the first step, in which torch creates the moments.

    Raises:
        Exception: As :class:`CompiledPass` does.
        MissingGradientError: If a trained parameter gets no gradient.
    """

    def __init__(
        self,
        gradients: Gradients,
        example: Batch,
        optimizers: Mapping[str, Optimizer],
        clip_norm: float | None,
    ) -> None:
        self._clip_norm = clip_norm
        self._options = [
            (group, is_decoupled(optimizer, group))
            for optimizer in optimizers.values()
            for group in optimizer.param_groups
        ]
        self._groups = [
            (AdamGroup.of(options, is_decoupled=decoupled), options["params"])
            for options, decoupled in self._options
        ]
        super().__init__(gradients, example)

    def update(self, batch: Batch, updates: Sequence[DirectFusedAdam]) -> ObjectiveOutput | None:
        """Make the update of a batch. Return losses and metrics, or None if nothing was changed."""
        if not self.fits(batch):
            return None
        arguments = [argument for update in updates for argument in update.current_arguments()]
        groups = [AdamGroup.of(a.options, is_decoupled=a.is_decoupled) for a in arguments]
        if groups != [group for group, _ in self._groups]:
            return None
        noise = torch.get_rng_state()
        results = self._run_on(self._state, batch, arguments)
        if not next(results).item():
            torch.set_rng_state(noise)
            return None
        for argument in arguments:
            argument.count.add_(1)
        for update in updates:
            update.mark_as_called()
        return self._output(results)

    def __call__(self, batch: Batch) -> ObjectiveOutput:
        """Return losses and metrics, and set the parameters' gradients, without the graph."""
        return self.gradients(batch)

    def _run_on(
        self, state: Sequence[Tensor], batch: Batch, arguments: Sequence[FusedAdamArguments]
    ) -> Iterator[Tensor]:
        """Run the graph. The first result tells if it has made the update."""
        groups = zip(self._groups, arguments, strict=True)
        numbers = [g.numbers(a.options["lr"], a.counts[0].item() + 1) for (g, _), a in groups]
        moments = [moment for a in arguments for moment in (*a.moments, *a.squares)]
        with torch.no_grad():
            rates = torch.tensor(numbers, dtype=moments[0].dtype)
            return iter(self._run(*state, *tensors_of(batch).values(), *moments, rates))

    def _traced(self, step: Any, names: list[str], example: Batch) -> Pass:
        """Return the update as a function of all tensors that it reads and writes."""
        compute_gradients = self._traced_gradients(step, names, example)
        num_inputs = len(self._state) + len(tensors_of(example))
        num_parameters = len(self._parameters)
        positions = {id(p): index for index, p in enumerate(self._parameters)}
        clipped = [[positions[id(p)] for p in group] for group in self.gradients.groups.values()]
        groups = [[positions[id(p)] for p in parameters] for _, parameters in self._groups]
        finite = [i for i in self._changed if torch.isfinite(self._buffers[i]).all()]

        def run(*tensors: Tensor) -> list[Tensor]:
            inputs, moments = tensors[:num_inputs], iter(tensors[num_inputs:-1])
            results = compute_gradients(*inputs)
            gradients, values = list(results[:num_parameters]), results[num_parameters:]
            if any(gradients[i] is None for members in groups for i in members):
                raise MissingGradientError
            buffers = [inputs[num_parameters + i] for i in finite]
            losses = values[: len(clipped)]
            squares = [torch.stack([gradients[i].square().sum() for i in g]).sum() for g in clipped]
            # The products are zero, or NaN if a value is not finite.
            checked = [*squares, *((value * 0).sum() for value in (*buffers, *losses))]
            is_finite = torch.isfinite(torch.stack(checked).sum())
            if self._clip_norm is not None:
                for members, square in zip(clipped, squares, strict=True):
                    scale = (self._clip_norm / (square.sqrt() + 1e-6)).clamp(max=1.0)
                    for i in members:
                        gradients[i] = scale * gradients[i]
            for (group, _), members, numbers in zip(
                self._groups, groups, tensors[-1].unbind(), strict=True
            ):
                firsts, seconds = ([next(moments) for _ in members] for _ in range(2))
                for i, first, second in zip(members, firsts, seconds, strict=True):
                    old = (inputs[i], first, second)
                    new = group.stepped(inputs[i], gradients[i], first, second, numbers)
                    for tensor, value in zip(old, new, strict=True):
                        tensor.copy_(torch.where(is_finite, value, tensor))
            return [is_finite, *values]

        return torch.no_grad()(run)

    # The check before the run ---------------------------------------------------------------------

    def _example_inputs(self, example: Batch) -> Sequence[Tensor]:
        """Return inputs of the update that are copies, so that it changes nothing else."""
        state, arguments = self._copies()
        moments = [moment for a in arguments for moment in (*a.moments, *a.squares)]
        rates = torch.ones(len(arguments), NUMBERS, dtype=moments[0].dtype)
        return [*state, *tensors_of(example).values(), *moments, rates]

    def _copies(self) -> tuple[list[Tensor], list[FusedAdamArguments]]:
        """Return copies of the parameters, the buffers themselves, and moments for these copies."""
        copies = {
            id(p): nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad)
            for p in self._parameters
        }
        arguments = []
        for options, decoupled in self._options:
            twins = [copies[id(p)] for p in options["params"]]
            moments, squares = map(torch.zeros_like, twins), map(torch.ones_like, twins)
            count = torch.zeros(len(twins))
            arguments.append(
                FusedAdamArguments(
                    {**options, "lr": EXAMPLE_RATE},
                    decoupled,
                    twins,
                    list(moments),
                    list(squares),
                    list(count.unbind()),
                    count,
                )
            )
        return [*copies.values(), *self._buffers], arguments

    def _computed(self, example: Batch) -> tuple[list[Tensor], ObjectiveOutput]:
        """Return moments and changes of the parameters, losses and metrics of an update."""
        state, arguments = self._copies()
        results = self._run_on(state, example, arguments)
        next(results)
        return self._changes(arguments), self._output(results)

    def _computed_plainly(self, example: Batch) -> tuple[list[Tensor], ObjectiveOutput]:
        _, arguments = self._copies()
        output = self.gradients(example)
        if self._clip_norm is not None:
            for group in self.gradients.groups.values():
                clip_gradients(group, self._clip_norm)
        for (_, parameters), argument in zip(self._groups, arguments, strict=True):
            argument.step([p.grad for p in parameters])
        return self._changes(arguments), output

    def _changes(self, arguments: Sequence[FusedAdamArguments]) -> list[Tensor]:
        pairs = zip(self._groups, arguments, strict=True)
        changes = [
            copy.detach() - p.detach()
            for (_, parameters), a in pairs
            for p, copy in zip(parameters, a.parameters, strict=True)
        ]
        return [*changes, *(moment for a in arguments for moment in (*a.moments, *a.squares))]


def compiled(
    gradients: Gradients,
    example: Batch,
    optimizers: Mapping[str, Optimizer],
    clip_norm: float | None,
) -> Gradients | CompiledPass:
    """Return the compiled step or gradients. If that fails, warn and return the plain gradients."""
    is_adam = all(isinstance(make_step(o), DirectFusedAdam) for o in optimizers.values())
    dtypes = {p.dtype for group in gradients.groups.values() for p in group}
    # torch's kernel computes in float32 for lower precisions, which a graph would not do.
    is_precise = dtypes <= {torch.float32, torch.float64}
    try:
        if optimizers and is_adam and is_precise and example.x.device.type == "cpu":
            with suppress(MissingGradientError):
                return CompiledStep(gradients, example, optimizers, clip_norm)
        return CompiledGradients(gradients, example)
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no message"]
        reason = f"{type(error).__name__}: {lines[0]:.200}"
        warn(f"Speed(compile=True): this run is not compiled, {reason}")
        return gradients
