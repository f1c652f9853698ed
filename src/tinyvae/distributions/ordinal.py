"""Distribution of ordered levels."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyvae.distributions.base import Distribution, joint_shape
from tinyvae.distributions.special import limited


class Ordinal(Distribution):
    r"""Ordered levels of each element: a logistic variable, cut at increasing thresholds.

    .. math:: P(x \leq k) = \sigma(\theta_k - \eta), \qquad
        \theta_0 = \text{first}, \quad \theta_k = \theta_{k-1} + e^{w_k}

    The mass between thresholds :math:`a < b` is computed as
    :math:`\sigma(b - \eta)\, \sigma(\eta - a)\, (1 - e^{a - b})`, without a difference that loses
    digits.

    Args:
        location: :math:`\eta`, any shape. A larger one shifts mass to higher levels.
        first: Lowest threshold :math:`\theta_0`, broadcastable with ``location``.
        log_widths: :math:`w_1, \dots, w_{L-2}`, ``(L - 2, *first.shape)``. Beyond -79 and 79 (638
            in float64) they count as that.

    References:
        McCullagh (1980). Regression Models for Ordinal Data. Journal of the Royal Statistical
        Society B 42.

    Example:
        >>> p = Ordinal(torch.zeros(1), torch.tensor(0.0), torch.zeros(0))
        >>> p.log_prob(torch.tensor([[0.0], [1.0]]))
        tensor([[-0.6931],
                [-0.6931]])
    """

    has_rsample = False
    is_discrete = True

    def __init__(self, location: Tensor, first: Tensor, log_widths: Tensor) -> None:
        most = 0.9 * math.log(torch.finfo(log_widths.dtype).max)  # neither e^w nor e^-w overflows
        self.location = location
        self.log_widths = limited(log_widths, least=-most, most=most)
        above = first + self.log_widths.exp().cumsum(0)
        self.thresholds = torch.cat([first.unsqueeze(0), above])  # (L - 1, *S)
        self.batch_shape = joint_shape(location, first)

    @property
    def mean(self) -> Tensor:
        """Expected level, ``(*batch)``: the sum over levels k of P(x > k)."""
        expected = self.location.new_zeros(self.batch_shape)
        for threshold in self.thresholds:
            expected = expected + torch.sigmoid(self.location - threshold)
        return expected

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log mass of each element, nats."""
        last = len(self.thresholds)
        level = value.to(self.location.dtype).clamp(0, last)
        upper = _entries(self.thresholds, level.clamp(max=last - 1))
        lower = _entries(self.thresholds, (level - 1).clamp(min=0))
        log_prob = torch.where(level < last, F.logsigmoid(upper - self.location), 0.0)
        log_prob = log_prob + torch.where(level > 0, F.logsigmoid(self.location - lower), 0.0)
        if last == 1:
            return log_prob
        width = _entries(self.log_widths, (level - 1).clamp(0, last - 2)).exp()
        inner = torch.log(-torch.expm1(-width))
        return log_prob + torch.where((level > 0) & (level < last), inner, 0.0)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw levels without gradients: the number of thresholds below a logistic draw."""
        shape = self._shape(sample_shape)
        with torch.no_grad():
            uniform = torch.rand(shape, dtype=self.location.dtype, device=self.location.device)
            noise = torch.logit(uniform, eps=torch.finfo(uniform.dtype).eps / 2)  # 0 is infinite
            draw, level = self.location + noise, torch.zeros_like(noise)
            for threshold in self.thresholds:
                level = level + (draw > threshold)
            return level


def _entries(table: Tensor, index: Tensor) -> Tensor:
    """Return ``table[index]`` for each element, from ``(R, *S)`` and ``(..., *E)``.

    ``S`` broadcasts with ``E``.
    """
    shape = table.shape[1:]
    columns = torch.arange(shape.numel(), device=table.device).reshape(shape)
    return table.flatten()[index.long() * shape.numel() + columns]
