"""Devices: choice of one, its module in torch, and its widest floating-point dtype."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

CPU = torch.device("cpu")


def choose_device(name: str | torch.device, model: nn.Module) -> torch.device:
    """Return the device that a name stands for.

    ``"auto"`` takes the accelerator of this computer. Without one it takes the CPU, and so it does
    for a model in float64 if the accelerator may lack float64.

    Raises:
        ValueError: If the device has no random state that can be saved.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True) or CPU
        is_wide = any(p.dtype == torch.float64 for p in model.parameters())
        name = CPU if is_wide and widest_float(accelerator) != torch.float64 else accelerator
    device = torch.device(name)
    module = accelerator_module(device)
    # torchrun's processes on one computer use different devices.
    if module and device.index is None and dist.is_available() and dist.is_torchelastic_launched():
        return torch.device(device.type, int(os.environ["LOCAL_RANK"]) % module.device_count())
    return device


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, but float32 for accelerators, such as Apple's, that may not have it."""
    return torch.float64 if device.type in ("cpu", "cuda", "meta") else torch.float32


def accelerator_module(device: torch.device) -> Any:
    """Return the module of an accelerator, such as torch.cuda, and None for the CPU.

    Raises:
        ValueError: If torch has no module for the device, or the module cannot save a random state.
    """
    if device.type in ("cpu", "meta"):
        return None
    module = getattr(torch, device.type, None)
    if getattr(module, "get_rng_state", None) is None:
        raise ValueError(
            f"tinyvae expects a device whose random state torch.{device.type}.get_rng_state "
            f"returns, got {str(device)!r}: use a device such as 'cpu', 'cuda', 'mps' or 'xpu'"
        )
    return module
