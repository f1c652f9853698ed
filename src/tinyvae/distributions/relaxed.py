"""Distributions of classes whose draws carry gradients."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tinyvae.distributions.base import Distribution, pooled
from tinyvae.distributions.discrete import OneHotDistribution
from tinyvae.distributions.special import gumbel_race


class StraightThrough(OneHotDistribution):
    r"""Categorical distribution of one-hot values with approximate gradients of draws.

    Draws are exactly one-hot and follow exactly this distribution. Their gradient is that of
    :math:`\operatorname{softmax}((\ell + g) / \tau)` with the same Gumbel noise g. Reported values
    are therefore exact, and only the gradient through the draws is biased.

    Args:
        logits: :math:`\ell`, ``(*batch, C, *E)``.
        event_ndim: Number of dimensions of ``(C, *E)``.
        temperature: :math:`\tau`. Lower values have less bias and more variance.

    References:
        Jang, Gu, Poole (2017). Categorical Reparameterization with Gumbel-Softmax.
        arXiv:1611.01144, section 2.2.

    Example:
        >>> z = StraightThrough(torch.zeros(3, requires_grad=True), 1).sample()
        >>> z.sum().item(), z.requires_grad
        (1.0, True)
    """

    def __init__(self, logits: Tensor, event_ndim: int, temperature: float = 1.0) -> None:
        super().__init__(logits, event_ndim)
        self.temperature = temperature

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw one-hot values with the gradients of relaxed draws."""
        scores = -gumbel_race(self.logits, sample_shape)  # logits plus Gumbel noise
        soft = (scores / self.temperature).softmax(self.dim)
        winner = scores.argmax(self.dim, keepdim=True)
        hard = torch.zeros_like(soft).scatter_(self.dim, winner, 1.0)
        return hard + (soft - soft.detach())


class GumbelSoftmax(Distribution):
    r"""Gumbel-softmax (Concrete) distribution inside the simplex.

    .. math:: x = \operatorname{softmax}((\ell + g) / \tau), \qquad
        p(x) = \Gamma(C)\, \tau^{C - 1} \prod_c \frac{e^{\ell_c}}{x_c^{\tau + 1}}
        \Big(\sum_c \frac{e^{\ell_c}}{x_c^\tau}\Big)^{-C}

    Args:
        logits: :math:`\ell`, ``(*batch, C, *E)``.
        event_ndim: Number of dimensions of ``(C, *E)``.
        temperature: :math:`\tau > 0`, in float32 at least 0.3. At lower values, coordinates
            underflow whose logarithms the density needs.

    Raises:
        ValueError: If the temperature is too low for the precision.

    References:
        Maddison, Mnih, Teh (2017). The Concrete Distribution. arXiv:1611.00712, definition 1.

    Example:
        >>> p = GumbelSoftmax(torch.zeros(3), 1, temperature=0.5)
        >>> p.sample((5,)).shape
        torch.Size([5, 3])
    """

    support = "the simplex"

    def __init__(self, logits: Tensor, event_ndim: int, temperature: float) -> None:
        if temperature < 0.3 and logits.dtype != torch.float64:
            raise ValueError(
                f"GumbelSoftmax expects a temperature >= 0.3 in {logits.dtype}, got {temperature}: "
                "use float64, or discrete latents (CategoricalEncoder)"
            )
        self.logits = logits
        self.dim = -event_ndim
        self.temperature = temperature
        self.batch_shape = logits.shape[: self.dim]
        self.event_shape = logits.shape[self.dim :]

    @property
    def mean(self) -> Tensor:
        """NaN: the expected value has no closed form."""
        return torch.full_like(self.logits, math.nan)

    def point_estimate(self, weights: Tensor | None = None) -> Tensor:
        """Return the value of a draw without noise."""
        return pooled(self._inside(self.logits), weights)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density over all coordinates except one, summed over E, nats."""
        num_classes, tau = self.event_shape[0], self.temperature
        log_value = value.log()
        scores = self.logits - tau * log_value
        constant = math.lgamma(num_classes) + (num_classes - 1) * math.log(tau)
        each = constant + (scores - log_value).sum(self.dim)
        each = each - num_classes * torch.logsumexp(scores, self.dim)
        return each.flatten(self.dim + 1).sum(-1) if self.dim < -1 else each

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw by reparameterization. No coordinate is zero, because the density ends there."""
        return self._inside(-gumbel_race(self.logits, sample_shape))

    def _inside(self, scores: Tensor) -> Tensor:
        smallest = torch.finfo(scores.dtype).tiny
        return (scores / self.temperature).softmax(self.dim).clamp(min=smallest)
