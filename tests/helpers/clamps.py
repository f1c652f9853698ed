"""Emulation of ``clamp`` in other versions of torch.

The slope of ``clamp`` at its bounds is 1 before torch 2.15, and 0 since then.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

_clamp = torch.Tensor.clamp


@contextmanager
def clamp_with_slope(slope: float) -> Iterator[None]:
    """Give ``clamp`` and its relatives a slope at their bounds."""

    def clamp(x: Tensor, min=None, max=None) -> Tensor:  # noqa: A002
        bounded = _clamp(x.detach(), min, max)
        is_beyond = bounded != x.detach()
        is_bound = sum((x == bound for bound in (min, max) if bound is not None), is_beyond)
        at_bound = x.detach() + slope * (x - x.detach())
        return torch.where(is_beyond, bounded, torch.where(is_bound, at_bound, x))

    functions = {
        "clamp": clamp,
        "clip": clamp,
        "clamp_min": lambda x, bound: clamp(x, bound),
        "clamp_max": lambda x, bound: clamp(x, None, bound),
    }
    with mock.patch.multiple(torch.Tensor, **functions), mock.patch.multiple(torch, **functions):
        yield
