r"""Sums of many Bernoulli log masses on a CPU, in pieces that fit into its caches.

.. math:: \sum_i x_i \ell_i - \log(1 + e^{\ell_i}) = \log \prod_i \sigma\big((2 x_i - 1) \ell_i\big)
    \quad\text{for } x_i \in \{0, 1\}
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

# Elements per piece, 512 KiB of float32. Smaller sums gain nothing.
PIECE = 1 << 17
# The product of four sigmoids of numbers above -20 is at least 1e-35, not a denormal number.
FAR = 20.0


def summed_log_mass(logits: Tensor, value: Tensor) -> Tensor | None:
    """Return the sum over the last dimension, or None if plain operations are faster.

    Without gradients and for zeros and ones, the error per element is below 2^-24 nats in float32.

    Args:
        logits: ``(K, *batch, N)``.
        value: ``(*batch, N)``, broadcastable to the logits.

    Returns:
        ``(K, *batch)``, nats.
    """
    if (
        logits.device.type != "cpu"
        or logits.numel() <= PIECE
        or value.requires_grad
        or value.dtype != logits.dtype
        or not _is_broadcast(value, logits)
        or is_transformed()
    ):
        return None
    if torch.is_grad_enabled() and logits.requires_grad:
        total: Tensor = _SummedLogMass.apply(logits, value.expand_as(logits))  # type: ignore[no-untyped-call]
        return total
    if _is_tame(logits, value):
        return _by_products(logits, (2 * value - 1).expand_as(logits))
    return _by_terms(logits, value.expand_as(logits))


def _is_broadcast(value: Tensor, logits: Tensor) -> bool:
    pairs = zip(reversed(value.shape), reversed(logits.shape), strict=False)
    return value.dim() <= logits.dim() and all(length in (1, size) for length, size in pairs)


def is_transformed() -> bool:
    """Return True if operations are traced or transformed, which needs plain torch operations."""
    return (
        torch.compiler.is_compiling()
        or is_in_torch_dispatch_mode()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def _is_tame(logits: Tensor, value: Tensor) -> bool:
    """Return True if values are zeros and ones, and logits are far from overflow."""
    low, high = torch.aminmax(logits)
    return bool((low > -FAR) & (high < FAR) & ((value == 0) | (value == 1)).all())


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    size = max(1, PIECE // tensors[0][0].numel())
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def _by_terms(logits: Tensor, value: Tensor) -> Tensor:
    total = logits.new_empty(logits.shape[:-1])
    for part, x, out in _pieces(logits, value, total):
        terms = torch.mul(x, part).sub_(F.softplus(part, threshold=40))
        torch.sum(terms, -1, out=out)
    return total


def _by_products(logits: Tensor, sign: Tensor) -> Tensor:
    """Return the sum for zeros and ones, given as signs, with one logarithm per four elements."""
    half, rest = logits.shape[-1] // 4 * 2, logits.shape[-1] % 4
    total = logits.new_empty(logits.shape[:-1])
    for part, signs, out in _pieces(logits, sign, total):
        masses = torch.mul(signs, part).sigmoid_()
        pairs = masses[..., :half].mul_(masses[..., half : 2 * half])
        fours = pairs[..., : half // 2].mul_(pairs[..., half // 2 :])
        torch.sum(fours.log_(), -1, out=out)
        if rest:
            out += masses[..., 2 * half :].log_().sum(-1)
    return total


class _SummedLogMass(torch.autograd.Function):
    """The sum and its gradient, without temporary tensors as large as the logits."""

    @staticmethod
    def forward(logits: Tensor, value: Tensor) -> Tensor:
        return _by_terms(logits, value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], _: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, value = ctx.saved_tensors
        is_batched = torch._C._functorch.is_legacy_batchedtensor(grad)
        if torch.is_grad_enabled() or is_batched or is_transformed():
            return (value - torch.sigmoid(logits)) * grad.unsqueeze(-1), None
        slope = torch.empty_like(logits)
        for part, x, upstream, out in _pieces(logits, value, grad, slope):
            torch.sub(x, torch.sigmoid(part, out=out), out=out)
            out.mul_(upstream.unsqueeze(-1))
        return slope, None
