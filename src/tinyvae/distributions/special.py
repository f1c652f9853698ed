r"""Special functions in the form in which they keep their digits.

Log densities of counts and proportions are small differences of large log-gamma values. With
:math:`\Gamma(x) = x^x e^{-x} e^{r(x)}` the large parts cancel on paper, and the residual
:math:`r(x) \approx -\tfrac12 \log \tfrac{x}{2\pi}` is small.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

# Stirling's series, B_2k / (2k (2k - 1)) for k = 1 to 7: at x >= 10 exact to float64.
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)


def at_least_float32(values: Tensor) -> Tensor:
    """Values in float32 at least: what a network gives under autocast has too few digits."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def autocast_disabled(like: Tensor) -> AbstractContextManager[None]:
    """Products inside keep their digits: autocast is for networks, not for densities."""
    context: AbstractContextManager[None] = torch.autocast(like.device.type, enabled=False)
    return context


def gamma_residual(x: Tensor, log_x: Tensor) -> Tensor:
    r"""Residual :math:`r(x) = \log\Gamma(x) - x \log x + x` for :math:`x > 0`.

    Args:
        x: Any shape; may underflow to zero where ``log_x`` does not.
        log_x: Its logarithm.

    References:
        Loader (2000). Fast and Accurate Computation of Binomial Probabilities.
    """
    inverse = 1 / x.clamp(min=10)
    square = inverse.square()
    series = torch.zeros_like(inverse)
    for coefficient in reversed(_STIRLING):
        series = series * square + coefficient
    large = series * inverse - 0.5 * (log_x - math.log(2 * math.pi))
    small = x.clamp(max=10)
    near = torch.lgamma(small + 1) - log_x - small * log_x + small
    return torch.where(x < 10, near, large)


def log_sinhc(y: Tensor) -> Tensor:
    r""":math:`\log(\sinh(y) / y)`, zero at zero."""
    square = y.square()
    series = square * (1 / 6 - square * (1 / 180 - square * (1 / 2835 - square / 37800)))
    a = y.abs().clamp(min=0.1)
    far = a + torch.log(-torch.expm1(-2 * a) / (2 * a))
    return torch.where(square < 0.01, series, far)


def gumbel_race(logits: Tensor, sample_shape: Sequence[int]) -> Tensor:
    """Log arrival times ``(*sample_shape, *logits.shape)`` at rates exp(logits).

    Which comes first is a draw of the classes that the logits weigh.
    """
    logits = logits.expand(*sample_shape, *logits.shape)
    times = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device).exponential_()
    return times.log() - logits
