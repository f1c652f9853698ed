r"""Sums of many Bernoulli log masses on a CPU, by pieces that stay in its caches.

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

# Elements of a piece, 512 KiB of float32; what is not larger gains nothing.
PIECE = 1 << 17
# The product of four sigmoids of what is above -20 is no denormal number, of 1e-35 at least.
FAR = 20.0


def summed_log_mass(logits: Tensor, value: Tensor) -> Tensor | None:
    """Sum over the last dimension; None where it is better done by the operations themselves.

    Without gradients, of zeros and ones, each element adds an error below 2^-24 nats in float32.

    Args:
        logits: ``(K, *batch, N)``.
        value: ``(*batch, N)``, broadcast to the logits.

    Returns:
        ``(K, *batch)``, nats.
    """
    if (
        logits.device.type != "cpu"
        or logits.numel() <= PIECE
        or value.requires_grad
        or value.dtype != logits.dtype
        or not _is_broadcast(value, logits)
        or _is_transformed()
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
    return value.dim() <= logits.dim() and all(own in (1, size) for own, size in pairs)


def _is_transformed() -> bool:
    """Whether operations are recorded or transformed, for which they must be torch's plain ones."""
    return (
        torch.compiler.is_compiling()
        or is_in_torch_dispatch_mode()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def _is_tame(logits: Tensor, value: Tensor) -> bool:
    """Whether values are zeros and ones, and logits far from overflow."""
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
    """The same of zeros and ones, by their signs: one logarithm for four elements."""
    half, rest = logits.shape[-1] // 4 * 2, logits.shape[-1] % 4
    total = logits.new_empty(logits.shape[:-1])
    for part, own, out in _pieces(logits, sign, total):
        masses = torch.mul(own, part).sigmoid_()
        pairs = masses[..., :half].mul_(masses[..., half : 2 * half])
        fours = pairs[..., : half // 2].mul_(pairs[..., half // 2 :])
        torch.sum(fours.log_(), -1, out=out)
        if rest:
            out += masses[..., 2 * half :].log_().sum(-1)
    return total


class _SummedLogMass(torch.autograd.Function):
    """The sum with its gradient, neither of which needs a tensor as large as the logits twice."""

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
        if torch.is_grad_enabled() or is_batched or _is_transformed():
            return (value - torch.sigmoid(logits)) * grad.unsqueeze(-1), None
        slope = torch.empty_like(logits)
        for part, x, own, out in _pieces(logits, value, grad, slope):
            torch.sub(x, torch.sigmoid(part, out=out), out=out)
            out.mul_(own.unsqueeze(-1))
        return slope, None
