"""Context managers that change a module's state and restore it afterwards; kinds of buffers."""

from abc import ABC
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def preserved_modes(*modules: nn.Module) -> Iterator[None]:
    """Restore the training or evaluation mode of every submodule afterwards."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Set evaluation mode inside the block, and restore the modes afterwards."""
    with preserved_modes(*modules):
        for module in modules:
            module.eval()
        yield


@contextmanager
def evaluating_afterwards(*modules: nn.Module) -> Iterator[None]:
    """Set evaluation mode at the end of the block, also after an error."""
    try:
        yield
    finally:
        for module in modules:
            module.eval()


def set_training_mode(*modules: nn.Module) -> None:
    """Set training mode, but evaluation mode in parts whose parameters are all frozen.

    A frozen part computes the same function in every step: without dropout, and with the running
    statistics that it has.
    """
    for module in modules:
        module.train()
        for part in module.modules():
            parameters = list(part.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                part.eval()


@contextmanager
def training(*modules: nn.Module) -> Iterator[None]:
    """Set training mode inside the block, see :func:`set_training_mode`. Restore the modes."""
    with preserved_modes(*modules):
        set_training_mode(*modules)
        yield


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Detach the module's parameters inside the block.

    Results computed inside have gradients in the inputs, but not in the parameters.
    """
    owners = [(m._parameters, dict(m._parameters)) for m in module.modules()]
    try:
        for registry, parameters in owners:
            detached: dict[str, Any] = {
                name: p.detach() for name, p in parameters.items() if p is not None
            }
            registry.update(detached)
        yield
    finally:
        for registry, parameters in owners:
            registry.update(parameters)


@contextmanager
def preserved_buffers(module: nn.Module) -> Iterator[None]:
    """Restore all buffers, such as running statistics, afterwards."""
    owners = [(m._buffers, dict(m._buffers)) for m in module.modules()]
    copies = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for registry, buffers in owners:
            registry.update(buffers)
        for buffer, copy in copies:
            buffer.copy_(copy)


class ExactBuffers(nn.Module, ABC):
    """Base class of modules with constants, which a conversion to float64 does not round.

    A module is built in float32 and may be converted by ``double()`` later. Its constants are then
    the given numbers, not their copies in float32.
    """

    def register_constant(self, name: str, numbers: Any) -> None:
        """Register a buffer that holds a number or nested lists of numbers."""
        exact = torch.tensor(numbers, dtype=torch.float64)
        self.__dict__.setdefault("_exact", {})[name] = exact
        self.register_buffer(name, exact.to(torch.get_default_dtype()))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact: dict[str, Tensor] = self.__dict__.get("_exact", {})
        before = {name: getattr(self, name) for name in exact}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            if torch.equal(buffer, exact[name].to(buffer)):  # no file has changed it
                setattr(self, name, exact[name].to(getattr(self, name)))
        return self


class RunningStatistics:
    """Mixin of modules whose ``forward`` updates their buffers in training mode, as BatchNorm does.

    A module updates them only if ``training`` and ``track_running_stats`` are True and gradients
    are enabled.

    Attributes:
        track_running_stats: False suspends the updates. The constructor of the module sets it.
    """

    track_running_stats: bool


@contextmanager
def preserved_statistics(module: nn.Module) -> Iterator[None]:
    """Run modules in training mode without an update of their running statistics.

    A second pass over the same batch uses it: each batch updates the statistics once.
    """
    layers = [m for m in module.modules() if isinstance(m, (_BatchNorm, RunningStatistics))]
    tracking = [layer for layer in layers if layer.training and layer.track_running_stats]
    try:
        for layer in tracking:
            layer.track_running_stats = False
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True


def mixes_examples(module: nn.Module) -> bool:
    """Return True if a layer normalizes an example by the statistics of its batch, in its mode."""
    layers = (layer for layer in module.modules() if isinstance(layer, _BatchNorm))
    return any(layer.training or layer.running_mean is None for layer in layers)
