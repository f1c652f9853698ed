"""Forward and backward pass of an update as one compiled graph.

The Python code runs once and every tensor operation is traced, also those of autograd. Then the
trace is compiled. torch's own generators draw the noise, in the same order as without compilation.
"""

import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import _inductor as inductor
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from tinyvae.core.objective import Batch, ObjectiveOutput
from tinyvae.training.step import Gradients, plain_numbers, without_trace

OPTIONS = {"fallback_random": True, "compile_threads": 1}
OPTIONS_OF = {"cpu": {"cpp_wrapper": True}, "cuda": {"triton.cudagraphs": True}}
# Share of a gradient's norm: ten thousand roundings of float32, far less than a wrong graph gives.
TOLERANCE, ROUNDING = 1e-3, 1e-6

# Maps parameters, buffers and the batch's tensors to gradients, losses, metrics and shares.
Pass = Callable[..., Sequence[Any]]


class CompiledPass(ABC):
    """One graph of :class:`Gradients`, and what follows them, for batches like ``example``.

    Raises:
        Exception: Of any type, if the pass cannot be compiled.
        ValueError: If the pass has side effects that a graph would not replay, or the batch has a
            field that is not a tensor.
    """

    def __init__(self, gradients: Gradients, example: Batch) -> None:
        self.gradients = gradients
        self._step = step = _Step(gradients)
        names = [name for name, _ in (*step.named_parameters(), *step.named_buffers())]
        self._parameters, self._buffers = list(step.parameters()), list(step.buffers())
        self._state = [*self._parameters, *self._buffers]
        self._signature = _signature(example)
        for field in fields(example):
            if not isinstance(getattr(example, field.name), Tensor | None):
                raise ValueError(f"the batch's field {field.name!r} is not a tensor")
        self._trained = [p.requires_grad for p in self._parameters]
        # Names of losses, metrics and shares in the order of the graph's outputs, set by the trace.
        self._names: list[list[str]] = []
        self._changed: list[int] = []  # positions of the buffers that a pass changes
        self._require_no_side_effects(example)
        traced = self._traced(step, names, example)
        # torch 2.10 may change the order of draws: of some passes with this option, of others
        # without it.
        for reorder in (True, False):
            self._run = self._compile(traced, example, reorder=reorder)
            if self._equals_plain_pass(example):
                return
        raise ValueError("the graph computes other losses, gradients or buffers than the pass")

    @abstractmethod
    def __call__(self, batch: Batch) -> ObjectiveOutput:
        """Return losses and metrics, and set the parameters' gradients."""

    @abstractmethod
    def _traced(self, step: "_Step", names: list[str], example: Batch) -> Pass:
        """Return the function that becomes the graph. It reads tensors only from its arguments."""

    @abstractmethod
    def _example_inputs(self, example: Batch) -> Sequence[Tensor]:
        """Return arguments of that function, with which it is traced and compiled."""

    @abstractmethod
    def _computed(self, example: Batch) -> tuple[list[Tensor], ObjectiveOutput]:
        """Return what the graph computes: tensors such as gradients, losses and metrics."""

    @abstractmethod
    def _computed_plainly(self, example: Batch) -> tuple[list[Tensor], ObjectiveOutput]:
        """Return the same without the graph."""

    def fits(self, batch: Batch) -> bool:
        """Return True if the graph is right for a batch and for what is trained."""
        return _signature(batch) == self._signature and self._is_as_traced()

    def _output(self, values: Iterator[Tensor]) -> ObjectiveOutput:
        return ObjectiveOutput(*(dict(zip(names, values, strict=False)) for names in self._names))

    def _traced_gradients(self, step: "_Step", names: list[str], example: Batch) -> Pass:
        """Return the forward and backward pass as a function of all tensors that it reads."""
        positions = {id(p): index for index, p in enumerate(self._parameters)}
        groups = {n: [positions[id(p)] for p in g] for n, g in self.gradients.groups.items()}
        trained = self._trained

        def run(*tensors: Tensor) -> list[Any]:
            parameters, rest = tensors[: len(trained)], tensors[len(trained) :]
            # Gradients end at new leaves: the graph reads the parameters and writes none of them.
            leaves = [
                p.detach().requires_grad_(t) for p, t in zip(parameters, trained, strict=True)
            ]
            named = dict(zip(names, (*leaves, *rest), strict=False))
            parts = rest[len(names) - len(leaves) :]
            batch = replace(example, **dict(zip(tensors_of(example), parts, strict=True)))
            with torch.enable_grad():
                output: ObjectiveOutput = functional_call(step, named, (batch,))
                gradients: list[Tensor | None] = [None] * len(leaves)
                for name, loss in output.losses.items():
                    group = [leaves[index] for index in groups[name]]
                    slopes = torch.autograd.grad(loss, group, retain_graph=True, allow_unused=True)
                    for index, slope in zip(groups[name], slopes, strict=True):
                        gradients[index] = _laid_out(slope, leaves[index])
            parts_of_output = (output.losses, output.metrics, output.shares)
            self._names = [list(part) for part in parts_of_output]
            return [*gradients, *(v.detach() for part in parts_of_output for v in part.values())]

        return run

    def _compile(self, run: Pass, example: Batch, *, reorder: bool) -> Pass:
        with (
            without_trace(self.gradients, example.x.device),
            _restored_validation(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # torch warns about its own code
            inputs = self._example_inputs(example)
            graph = make_fx(run, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
            device = example.x.device.type
            options: dict[str, Any] = {**OPTIONS, **OPTIONS_OF.get(device, {})}
            options["reorder_for_locality"] = reorder
            result: Pass
            if device == "cuda":
                # Otherwise CUDA graphs would copy the weights in every step.
                for tensor in (*self._parameters, *self._buffers):
                    torch._dynamo.mark_static_address(tensor)
                result = torch.compile(graph, fullgraph=True, dynamic=False, options=options)
            else:
                # Without torch.compile's checks of all inputs in each step: the weights are always
                # the same tensors, and ``_signature`` has checked the batch.
                result = inductor.compile(graph, list(inputs), options=options)
            with torch.no_grad():
                result(*inputs)  # compiles now, so that errors come before the run
        return result

    def _require_no_side_effects(self, example: Batch) -> None:
        """Run the pass once, and raise if it has side effects that a graph would not replay."""
        if not self._is_as_traced():
            raise ValueError("parameters have hooks, which a graph does not call: remove them")
        with without_trace(self.gradients, example.x.device):
            state, numbers = _foreign_rng_state(), plain_numbers(self.gradients)
            before = [buffer.clone() for buffer in self._buffers]
            self.gradients(example)
            pairs = zip(self._buffers, before, strict=True)
            self._changed = [i for i, (now, old) in enumerate(pairs) if not torch.equal(now, old)]
            if [id(b) for b in self._step.buffers()] != [id(b) for b in self._buffers]:
                raise ValueError("the pass replaces a buffer: change it in place by copy_(...)")
            if _foreign_rng_state() != state:
                raise ValueError(
                    "the pass draws random numbers from Python or numpy: draw them from torch"
                )
            if plain_numbers(self.gradients) != numbers:
                raise ValueError("the pass changes a number of a module: make it a buffer")

    def _is_as_traced(self) -> bool:
        """Return True if the same parameters are trained and none of them has hooks."""
        return all(
            p.requires_grad is trained
            and not p._backward_hooks
            and not p._post_accumulate_grad_hooks
            for p, trained in zip(self._parameters, self._trained, strict=True)
        )

    def _equals_plain_pass(self, example: Batch) -> bool:
        """Return True if the results are those of the plain pass, on other noise than the trace."""
        results = []
        for compute in (self._computed, self._computed_plainly):
            with without_trace(self.gradients, example.x.device):
                torch.rand(8, device=example.x.device)  # a graph with constant noise differs now
                gradients, output = compute(example)
                named = (output.losses, output.metrics, output.shares)
                reported = [value for part in named for value in part.values()]
                values = [*gradients, *reported, *self._step.buffers()]
                results.append([value.detach().cpu().double() for value in values])
        norm = torch.linalg.vector_norm
        # A gradient that is zero up to rounding, e.g. of a bias before normalization, has no scale.
        floor = ROUNDING * max(norm(plain) for plain in results[1][: len(self._parameters)])
        return all(
            norm(compiled_value - plain) <= TOLERANCE * norm(plain) + floor
            or torch.equal(compiled_value, plain)
            for compiled_value, plain in zip(*results, strict=True)
        )


class CompiledGradients(CompiledPass):
    """Compiled :class:`Gradients` for batches like ``example``. Others use the plain pass."""

    def __call__(self, batch: Batch) -> ObjectiveOutput:
        """Return losses and metrics, and set the parameters' gradients."""
        if not self.fits(batch):
            return self.gradients(batch)
        with torch.no_grad():
            results = iter(self._run(*self._example_inputs(batch)))
        for parameter, gradient in zip(self._parameters, results, strict=False):
            parameter.grad = gradient
        return self._output(results)

    def _traced(self, step: "_Step", names: list[str], example: Batch) -> Pass:
        return self._traced_gradients(step, names, example)

    def _example_inputs(self, example: Batch) -> Sequence[Tensor]:
        return [*self._state, *tensors_of(example).values()]

    def _computed(self, example: Batch) -> tuple[list[Tensor], ObjectiveOutput]:
        output = self(example)
        return self._gradients_or_zeros(), output

    def _computed_plainly(self, example: Batch) -> tuple[list[Tensor], ObjectiveOutput]:
        output = self.gradients(example)
        return self._gradients_or_zeros(), output

    def _gradients_or_zeros(self) -> list[Tensor]:
        return [torch.zeros(1) if p.grad is None else p.grad for p in self._parameters]


class _Step(nn.Module):
    """Model and objective as one module, which owns all their tensors."""

    def __init__(self, gradients: Gradients) -> None:
        super().__init__()
        self.model, self.objective = gradients.model, gradients.objective
        self._gradients = gradients

    def forward(self, batch: Batch) -> ObjectiveOutput:
        return self._gradients.losses(batch)


def _foreign_rng_state() -> tuple[Any, ...]:
    """Return the states of Python's and numpy's default generators."""
    numpy: Any = np.random.get_state()  # noqa: NPY002
    _, keys, *rest = numpy
    return random.getstate(), bytes(keys), *rest


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    """Return the fields of a batch that are tensors, by name."""
    parts = ((field.name, getattr(batch, field.name)) for field in fields(batch))
    return {name: part for name, part in parts if isinstance(part, Tensor)}


def _signature(batch: Batch) -> tuple[Any, ...]:
    names = [f.name for f in fields(batch) if getattr(batch, f.name) is not None]
    return type(batch), names, [(t.shape, t.dtype, t.stride()) for t in tensors_of(batch).values()]


def _laid_out(gradient: Tensor | None, parameter: Tensor) -> Tensor | None:
    """Return the gradient with the parameter's strides, which fused optimizers require."""
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


@contextmanager
def _restored_validation() -> Iterator[None]:
    """Restore the validation of torch's distributions, which torch's compiler turns off."""
    validates = torch.distributions.Distribution._validate_args
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(validates)
