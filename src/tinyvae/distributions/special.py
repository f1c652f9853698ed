r"""Special functions in numerically accurate form, and noise of categorical draws.

Log densities of counts and proportions are small differences of large log-gamma values. With
:math:`\Gamma(x) = x^x e^{-x} e^{r(x)}` the large terms cancel analytically, and the residual
:math:`r(x) \approx -\tfrac12 \log \tfrac{x}{2\pi}` is small.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from tinyvae.distributions.base import size_of

# Coefficients B_2k / (2k (2k - 1)) of Stirling's series for k = 1 to 7, exact in float64 at
# x >= 10.
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)


def at_least_float32(values: Tensor) -> Tensor:
    """Return values in at least float32, because outputs under autocast are too inaccurate."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def autocast_disabled(like: Tensor) -> AbstractContextManager[None]:
    """Disable autocast, which is for networks and too inaccurate for densities."""
    context: AbstractContextManager[None] = torch.autocast(like.device.type, enabled=False)
    return context


def finite_exp(x: Tensor) -> Tensor:
    """Return exp(x), at most about the largest number, so that a product with zero is zero."""
    return torch.exp(x.clamp(max=0.99 * math.log(torch.finfo(x.dtype).max)))


def limited(x: Tensor, *, least: Tensor | float = -math.inf, most: float = math.inf) -> Tensor:
    """Return x within limits, with a slope of one also at and beyond them.

    There a loss pulls x back. Infinities have a slope of zero.
    """
    bounded = x.detach().clamp(max=most).clamp(min=least)
    return x.where(bounded == x, bounded + (x - x.detach()).nan_to_num())


def digamma_difference(x: Tensor, step: float) -> Tensor:
    r"""Return :math:`\psi(x + h) - \psi(x)` for :math:`x > 0` and a step :math:`h > 0`.

    It is accurate where the difference is far below the rounding of both terms.
    """
    # Ten steps of psi(x + 1) = psi(x) + 1 / x reach x >= 10, where Stirling's series is exact.
    shifts = torch.arange(10, dtype=x.dtype, device=x.device)
    below = x.unsqueeze(-1) + shifts
    steps: Tensor = (step / (below * (below + step))).sum(-1)
    low, high = x + 10, x + 10 + step
    series = torch.log1p(step / low) + 0.5 * step / (low * high)
    for k, coefficient in enumerate(_STIRLING, start=1):
        series = series + (2 * k - 1) * coefficient * (low ** (-2 * k) - high ** (-2 * k))
    return steps + series


def gamma_residual(x: Tensor, log_x: Tensor) -> Tensor:
    r"""Return the residual :math:`r(x) = \log\Gamma(x) - x \log x + x` for :math:`x > 0`.

    Args:
        x: Positive numbers, any shape. They may underflow to zero if ``log_x`` does not.
        log_x: Logarithm of ``x``.

    References:
        Loader (2000). Fast and Accurate Computation of Binomial Probabilities.
    """
    is_small = x < 10
    inverse = 1 / x.masked_fill(is_small, 10.0)
    square = inverse.square()
    series = torch.zeros_like(inverse)
    for coefficient in reversed(_STIRLING):
        series = series * square + coefficient
    large = series * inverse - 0.5 * (log_x - math.log(2 * math.pi))
    small = x.where(is_small, 10.0)
    near = torch.lgamma(small + 1) - log_x - small * log_x + small
    return torch.where(is_small, near, large)


def logistic_normal_mean(mean: Tensor, std: Tensor) -> Tensor:
    r"""Return :math:`E[\sigma(y)]` of the sigmoid of a normal variable y, to about 1e-11.

    The trapezoidal rule converges geometrically for both of its forms,
    :math:`E_\epsilon[\sigma(\mu + s \epsilon)]` with normal noise, for small scales, and
    :math:`E_l[\Phi((\mu - l) / s)]` with logistic noise, for large ones.

    Args:
        mean: :math:`\mu`, any shape.
        std: Scale :math:`s > 0`, broadcastable with ``mean``.

    References:
        Trefethen, Weideman (2014). The Exponentially Convergent Trapezoidal Rule. SIAM Review 56.
    """
    is_small = std < 1.25
    small, large = std.where(is_small, 1.0), std.where(~is_small, 2.0)
    near, far = torch.zeros_like(mean + std), torch.zeros_like(mean + std)
    for k in range(-17, 18):
        node = 0.5 * k
        weight = 0.5 * math.exp(-0.5 * node**2) / math.sqrt(2 * math.pi)
        near = near + weight * torch.sigmoid(mean + small * node)
    for k in range(-50, 51):
        node = 0.6 * k
        weight = 0.6 / (2 + 2 * math.cosh(node))
        far = far + weight * torch.special.ndtr((mean - node) / large)
    return torch.where(is_small, near, far)


def gumbel_race(logits: Tensor, sample_shape: Sequence[int]) -> Tensor:
    """Draw log arrival times ``(*sample_shape, *logits.shape)`` with rates exp(logits).

    The class of the first arrival is a draw from the categorical distribution of the logits.
    """
    logits = logits.expand(size_of(sample_shape) + logits.shape)
    times = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device).exponential_()
    return times.log() - logits
