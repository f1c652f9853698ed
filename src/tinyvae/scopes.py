"""Temporary states: what is set inside is put back as it was found."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = [
    "evaluating",
    "forked_rng",
    "frozen",
    "kept_buffers",
    "resting_statistics",
    "restored_modes",
    "rng_state",
    "seed_rng",
    "set_rng_state",
]


@contextmanager
def restored_modes(*modules: nn.Module) -> Iterator[None]:
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
    with restored_modes(*modules):
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
def kept_buffers(module: nn.Module) -> Iterator[None]:
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


@contextmanager
def resting_statistics(module: nn.Module) -> Iterator[None]:
    """Batch normalisation in training mode as it is, but without a trace in running statistics."""
    layers = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    tracking = [layer for layer in layers if layer.training and layer.track_running_stats]
    try:
        for layer in tracking:
            layer.track_running_stats = False
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True


def seed_rng(device: torch.device, seed: int) -> None:
    """Seed the default generators of the CPU and of ``device``, and no other device's."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextmanager
def forked_rng(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Default generators of the CPU and of ``device``, seeded if asked for, restored after."""
    state = rng_state(device)
    try:
        if seed is not None:
            seed_rng(device, seed)
        yield
    finally:
        set_rng_state(device, state)


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """States of the default generators of the CPU and of ``device``."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_rng_state(device: torch.device, states: Mapping[str, Tensor]) -> None:
    """Put default generators where :func:`rng_state` found them."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    elif "mps" in states and device.type == "mps":
        torch.mps.set_rng_state(states["mps"])
