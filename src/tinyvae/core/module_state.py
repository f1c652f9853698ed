"""Context managers that change a module's state and restore it afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
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
