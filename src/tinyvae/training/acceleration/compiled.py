"""The pass forwards and backwards of an update as one compiled graph.

Python runs once, while every tensor operation of the pass, of autograd too, is written down; the
record is compiled. Noise is drawn by torch's own generators, in the same order as without.
"""

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from tinyvae.core.objective import Batch, ObjectiveOutput
from tinyvae.core.warnings import warn
from tinyvae.training.step import Gradients, plain_numbers, scratch

OPTIONS = {"fallback_random": True, "compile_threads": 1}
OPTIONS_OF = {"cpu": {"cpp_wrapper": True}, "cuda": {"triton.cudagraphs": True}}
# Of a gradient's norm: ten thousand roundings of float32, and far less than any mistake makes.
TOLERANCE, ROUNDING = 1e-3, 1e-6

Pass = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor | None]], tuple[Any, ...]]


class CompiledGradients:
    """:class:`Gradients` of batches of one shape as one graph; others are computed as ever.

    Args:
        gradients: What is compiled, in training mode.
        example: A batch of the shape.

    Raises:
        Exception: Of any kind, where the pass cannot be compiled.
        ValueError: If it does what a graph does not.
    """

    def __init__(self, gradients: Gradients, example: Batch) -> None:
        self.gradients = gradients
        self._step = step = _Step(gradients)
        names = [name for name, _ in (*step.named_parameters(), *step.named_buffers())]
        self._parameters, self._buffers = list(step.parameters()), list(step.buffers())
        self._signature = _signature(example)
        self._trained = [p.requires_grad for p in self._parameters]
        self._losses: list[str] = []
        self._metrics: list[str] = []
        self._require_operations_alone(example)
        self._run = self._compile(self._written(step, names), example)
        self._verify(example)

    def __call__(self, batch: Batch) -> ObjectiveOutput:
        """Return losses and metrics, and leave gradients in the parameters."""
        if _signature(batch) != self._signature or not self._is_as_written():
            return self.gradients(batch)
        with torch.no_grad():
            losses, metrics, gradients = self._run(self._parameters, self._buffers, _parts(batch))
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return ObjectiveOutput(
            dict(zip(self._losses, losses, strict=True)),
            dict(zip(self._metrics, metrics, strict=True)),
        )

    def _written(self, step: "_Step", names: list[str]) -> Pass:
        """The pass as a function of all tensors that it reads."""
        position = {id(p): place for place, p in enumerate(self._parameters)}
        groups = {n: [position[id(p)] for p in g] for n, g in self.gradients.groups.items()}
        trained = self._trained

        def run(
            parameters: Sequence[Tensor],
            buffers: Sequence[Tensor],
            batch: Sequence[Any],
        ) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
            leaves = [
                p.detach().requires_grad_(own) for p, own in zip(parameters, trained, strict=True)
            ]
            tensors = dict(zip(names, (*leaves, *buffers), strict=True))
            with torch.enable_grad():
                output: ObjectiveOutput = functional_call(step, tensors, (Batch(*batch),))
                found: list[Tensor | None] = [None] * len(leaves)
                for name, loss in output.losses.items():
                    own = [leaves[place] for place in groups[name]]
                    gradients = torch.autograd.grad(loss, own, retain_graph=True, allow_unused=True)
                    for place, gradient in zip(groups[name], gradients, strict=True):
                        found[place] = _laid_out(gradient, leaves[place])
            self._losses, self._metrics = list(output.losses), list(output.metrics)
            losses = [loss.detach() for loss in output.losses.values()]
            return losses, list(output.metrics.values()), found

        return run

    def _compile(self, run: Pass, example: Batch) -> Pass:
        with (
            scratch(self.gradients, example.x.device),
            _restored_validation(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # of torch, about itself
            inputs = (self._parameters, self._buffers, _parts(example))
            graph = make_fx(run, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
            device = example.x.device.type
            if device == "cuda":
                for tensor in (*self._parameters, *self._buffers):
                    torch._dynamo.mark_static_address(tensor)
            options: dict[str, Any] = {**OPTIONS, **OPTIONS_OF.get(device, {})}
            result: Pass = torch.compile(graph, fullgraph=True, dynamic=False, options=options)
            with torch.no_grad():
                result(*inputs)
        return result

    def _require_operations_alone(self, example: Batch) -> None:
        """Raise if the pass does more than operations on its tensors; make what it makes once."""
        if not self._is_as_written():
            raise ValueError("parameters have hooks, which a graph does not call")
        with scratch(self.gradients, example.x.device):
            drawn, numbers = _drawn(), plain_numbers(self.gradients)
            self.gradients(example)
            if [id(b) for b in self._step.buffers()] != [id(b) for b in self._buffers]:
                raise ValueError("a buffer is replaced in the pass: change it in place, copy_(...)")
            if _drawn() != drawn:
                raise ValueError("the pass draws numbers of Python or numpy: draw them by torch")
            if plain_numbers(self.gradients) != numbers:
                raise ValueError("the pass changes a number of a module: make it a buffer")

    def _is_as_written(self) -> bool:
        """Whether the same parameters are trained, and nothing else is to be done with them."""
        return all(
            p.requires_grad is trained
            and not p._backward_hooks
            and not p._post_accumulate_grad_hooks
            for p, trained in zip(self._parameters, self._trained, strict=True)
        )

    def _verify(self, example: Batch) -> None:
        """Compare with the pass itself, on noise that the graph was not written with."""
        seen = []
        for differentiate in (self, self.gradients):
            with scratch(self.gradients, example.x.device):
                torch.rand(8, device=example.x.device)
                output = differentiate(example)
                grads = [torch.zeros(1) if p.grad is None else p.grad for p in self._parameters]
                named = (*output.losses.values(), *output.metrics.values())
                values = [*grads, *named, *self._step.buffers()]
                seen.append([value.detach().double() for value in values])
        norm = torch.linalg.vector_norm
        # A gradient that is zero but for rounding, as of a bias before a normalization, is no size.
        floor = ROUNDING * max(norm(plain) for plain in seen[1][: len(self._parameters)])
        for own, plain in zip(*seen, strict=True):
            near = norm(own - plain) <= TOLERANCE * norm(plain) + floor
            if not (near or torch.equal(own, plain)):
                raise ValueError("the graph gives other losses, gradients or buffers than the pass")


class _Step(nn.Module):
    """Model and objective as one module, so that all their tensors are its own."""

    def __init__(self, gradients: Gradients) -> None:
        super().__init__()
        self.model, self.objective = gradients.model, gradients.objective
        self._gradients = gradients

    def forward(self, batch: Batch) -> ObjectiveOutput:
        return self._gradients.losses(batch)


def compiled(gradients: Gradients, example: Batch) -> Gradients | CompiledGradients:
    """Compile; or warn, and return what was given."""
    try:
        return CompiledGradients(gradients, example)
    except Exception as error:
        lines = str(error).strip().splitlines() or ["without a word"]
        reason = f"{type(error).__name__}: {lines[0]:.200}"
        warn(f"Speed(compile=True): this run is not compiled, {reason}")
        return gradients


def _drawn() -> tuple[Any, ...]:
    """What changes when Python's or numpy's default generator is drawn from."""
    numpy: Any = np.random.get_state()  # noqa: NPY002
    _, keys, *rest = numpy
    return random.getstate(), bytes(keys), *rest


def _parts(batch: Batch) -> list[Tensor | None]:
    return [batch.x, batch.context, batch.mask, batch.index]


def _signature(batch: Batch) -> list[tuple[Any, ...] | None]:
    return [None if t is None else (t.shape, t.dtype, t.stride()) for t in _parts(batch)]


def _laid_out(gradient: Tensor | None, parameter: Tensor) -> Tensor | None:
    """A gradient with the parameter's strides, which fused optimizers take for granted."""
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


@contextmanager
def _restored_validation() -> Iterator[None]:
    """Torch's compiler switches off the validation of distributions for the whole process."""
    validates = torch.distributions.Distribution._validate_args
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(validates)
