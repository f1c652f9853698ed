"""What every contract check is made of."""

import torch
from torch import Tensor

from tinyvae.errors import TinyVAEError


class ContractError(TinyVAEError, AssertionError):
    """A part does not do what its interface promises."""


def require(condition: bool | Tensor, message: str) -> None:
    """Raise :class:`ContractError` unless ``condition`` holds."""
    if not bool(condition):
        raise ContractError(message)


def require_close(got: Tensor, expected: Tensor, what: str, tolerance: float = 1e-10) -> None:
    """Raise unless both agree to ``tolerance``, absolute below 1 and relative above."""
    got, expected = got.detach().double(), expected.detach().double()
    error = torch.max((got - expected).abs() / (1 + expected.abs())).item()
    require(error <= tolerance, f"{what}: differs by {error:.1e}, expected at most {tolerance:g}")
