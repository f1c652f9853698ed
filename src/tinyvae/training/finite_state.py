"""Checks that the state of a run is finite: weights, buffers and the state of optimizers."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from tinyvae.core.module_state import RunningStatistics
from tinyvae.errors import NonFiniteError
from tinyvae.training.optimization import named_parameters
from tinyvae.training.state import TrainState

Named = Iterable[tuple[str, Tensor]]


def require_finite_state(state: TrainState, buffers: Mapping[str, Tensor]) -> None:
    """Raise NonFiniteError if finite losses and gradients have left a state that is not finite.

    Updates may overflow, and so may the state of an optimizer. No file can hold such values.

    Args:
        state: State of the run after an update.
        buffers: Buffers that training changes, by name.
    """
    where = f"step {state.step} (epoch {state.epoch + 1})"
    for name, group in state.groups.items():
        if _find(torch.isfinite, ((name, parameter) for parameter in group)):
            raise NonFiniteError(
                f"{where}: weights of group '{name}' are not finite after finite losses and "
                "gradients: an update was too large. Lower the learning rate"
            )
    if bad := _find(torch.isfinite, _optimizer_state(state)):
        raise NonFiniteError(
            f"{where}: {bad} after finite gradients: lower the learning rate, or clip gradients "
            "by Optimization(clip_norm=1.0)"
        )
    if bad := _find(torch.isfinite, buffers.items()):
        raise NonFiniteError(f"{where}: buffer {bad}: look at the code that writes to it")


def require_finite_start(state: TrainState) -> None:
    """Raise NonFiniteError if the state is not finite before the first step.

    NaN is refused everywhere. Infinity is refused in what training changes: trained parameters,
    running statistics and the state of optimizers. Elsewhere it may be a constant, such as the
    -inf of an attention mask.
    """
    trained = {id(parameter) for group in state.groups.values() for parameter in group}
    named = named_parameters(state.objective, state.model)
    changing = {name: p for name, p in named.items() if id(p) in trained}
    constant = {name: p for name, p in named.items() if id(p) not in trained}
    for prefix, part in (("", state.model), ("objective", state.objective)):
        for path, module in part.named_modules(prefix=prefix):
            is_statistic = isinstance(module, (_NormBase, RunningStatistics))
            kind = changing if is_statistic else constant
            kind.update(module.named_buffers(path, recurse=False))
    bad = (
        _find(torch.isfinite, changing.items())
        or _find(lambda tensor: ~torch.isnan(tensor), constant.items())
        or _find(torch.isfinite, _optimizer_state(state))
    )
    if bad:
        raise NonFiniteError(
            f"fit expects weights, buffers and optimizers without NaN or infinity, got {bad}: "
            "build model and Trainer again, or load a file of an earlier step"
        )


def _find(is_fine: Callable[[Tensor], Tensor], tensors: Named) -> str | None:
    """Return the name of the first tensor with a wrong value, and that value."""
    for name, tensor in tensors:
        if not (tensor.is_floating_point() or tensor.is_complex()) or is_lazy(tensor):
            continue
        values = tensor.detach()
        values = values if values.layout is torch.strided else values.coalesce().values()
        # A norm is cheaper than a look at each value, but it may overflow.
        if not math.isfinite(torch.linalg.vector_norm(values).item()):
            fine = is_fine(values)
            if not fine.all():
                return f"{name} = {values[~fine][0].item()}"
    return None


def _optimizer_state(state: TrainState) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in the state of each optimizer, with names for errors."""
    named = named_parameters(state.objective, state.model)
    names: dict[Any, str] = {parameter: name for name, parameter in named.items()}
    for group, optimizer in state.optimizers.items():
        for key, entries in optimizer.state.items():
            owner = names.get(key, "all parameters")
            yield from _tensors_in(entries, f"optimizer '{group}', {owner}")


def _tensors_in(entry: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    match entry:
        case Tensor():
            yield name, entry
        case Mapping():
            for key, value in entry.items():
                yield from _tensors_in(value, f"{name}: {key}")
        case list() | tuple():
            for value in entry:
                yield from _tensors_in(value, name)
