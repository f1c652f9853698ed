"""Temporary states: what is set inside is put back as it was found."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def preserved_modes(*modules: nn.Module) -> Iterator[None]:
    """Training or evaluation mode of every submodule restored after."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, restored after."""
    with preserved_modes(*modules):
        for module in modules:
            module.eval()
        yield


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """What is computed inside has no gradient in the module's parameters, only in its inputs."""
    owners = [(m._parameters, dict(m._parameters)) for m in module.modules()]
    try:
        for held, own in owners:
            detached: dict[str, Any] = {n: p.detach() for n, p in own.items() if p is not None}
            held.update(detached)
        yield
    finally:
        for held, own in owners:
            held.update(own)


@contextmanager
def preserved_buffers(module: nn.Module) -> Iterator[None]:
    """What a pass leaves in buffers, such as running statistics, undone after."""
    owners = [(m._buffers, dict(m._buffers)) for m in module.modules()]
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for held, own in owners:
            held.update(own)
        for buffer, kept in before:
            buffer.copy_(kept)


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
