"""Distributions of vectors by the chain rule."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tinyvae.distributions.base import Distribution, check_event, pooled


class Autoregressive(Distribution):
    r"""A vector whose elements are drawn one after the other, each given those before it.

    .. math:: \log p(x) = \textstyle\sum_i \log p(x_i \mid x_1, \dots, x_{i-1})

    A density takes one call of the conditional, a draw takes D. Moments have no closed form.

    Args:
        conditional: Function of values ``(*S, D)`` that returns scalar distributions of batch shape
            ``(*S, D)``. Distribution i depends on the elements before i only.
        start: Zeros ``(D,)``, which determine size, dtype and device of the draws.

    Example:
        >>> def walk(x):
        ...     before = torch.nn.functional.pad(x, (1, -1))
        ...     return Normal(before, torch.zeros_like(x))
        >>> Autoregressive(walk, torch.zeros(2)).log_prob(torch.ones(2))  # -1 / 2 - log(2 pi)
        tensor(-2.3379)
    """

    has_rsample = False

    def __init__(self, conditional: Callable[[Tensor], Distribution], start: Tensor) -> None:
        self.conditional, self.start = conditional, start
        self.batch_shape = torch.Size()
        self.event_shape = start.shape

    @property
    def mean(self) -> Tensor:
        """NaN, because it has no closed form."""
        return torch.full_like(self.start, torch.nan)

    def point_estimate(self, weights: Tensor | None = None) -> Tensor:
        """Return a vector. Each element is the point estimate given the elements before it."""
        value = self.start.clone()
        for index in range(len(self.start)):
            value[index] = self.conditional(value).point_estimate()[index]
        return pooled(value, weights)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the sum of the conditional log densities, nats."""
        check_event(value, self.event_shape)
        return self.conditional(value).log_prob(value).sum(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw the elements in their order, without gradients."""
        value = self.start.expand(self._shape(sample_shape)).clone()
        with torch.no_grad():
            for index in range(len(self.start)):
                value[..., index] = self.conditional(value).sample()[..., index]
        return value
