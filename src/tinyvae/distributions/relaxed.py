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


class LogGumbelSoftmax(Distribution):
    r"""Distribution of the logarithm of a Gumbel-softmax variable (ExpConcrete).

    .. math:: y = \log\operatorname{softmax}((\ell + g) / \tau), \qquad
        p(y) = \Gamma(C)\, \tau^{C - 1} \prod_c \operatorname{softmax}(\ell - \tau y)_c

    This is the density of the log ratios of all classes to any one of them. Logarithms keep their
    digits where the smallest coordinates of :class:`GumbelSoftmax` underflow.

    Args:
        logits: :math:`\ell`, ``(*batch, C, *E)``. Minus infinity rules a class out: its logarithm
            is minus infinity, and the density is that of the other classes.
        event_ndim: Number of dimensions of ``(C, *E)``.
        temperature: :math:`\tau > 0`.

    References:
        Maddison, Mnih, Teh (2017). The Concrete Distribution. arXiv:1611.00712, appendix C.3.

    Example:
        >>> p = LogGumbelSoftmax(torch.tensor([0.0, -4000.0]), 1, temperature=0.5)
        >>> y = p.sample()
        >>> (y[1] < -1000).item(), p.log_prob(y).isfinite().item()
        (True, True)
    """

    support = "the simplex, on a log scale"

    def __init__(self, logits: Tensor, event_ndim: int, temperature: float) -> None:
        self.logits = logits
        self.dim = -event_ndim
        self.temperature = temperature
        self.batch_shape = logits.shape[: self.dim]
        self.event_shape = logits.shape[self.dim :]

    @property
    def mean(self) -> Tensor:
        """NaN, because the expected value has no closed form."""
        return torch.full_like(self.logits, math.nan)

    def point_estimate(self, weights: Tensor | None = None) -> Tensor:
        """Return the logarithm of the point estimate of the Gumbel-softmax variable."""
        point = (self.logits / self.temperature).log_softmax(self.dim)
        return point if weights is None else pooled(point.exp(), weights).log()

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of the log ratios, summed over E, nats."""
        is_inside = value > -math.inf
        is_class = is_inside | (self.logits > -math.inf)
        scores = self.logits - self.temperature * torch.where(is_inside, value, 0.0)
        each = torch.where(is_class, scores.log_softmax(self.dim), 0.0).sum(self.dim)
        others = is_class.sum(self.dim).to(each.dtype) - 1
        each = each + torch.lgamma(others + 1) + others * math.log(self.temperature)
        # A class that is not ruled out has a logarithm above minus infinity.
        each = each.masked_fill((is_class & ~is_inside).any(self.dim), -math.inf)
        return each.flatten(self.dim + 1).sum(-1) if self.dim < -1 else each

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw by reparameterization."""
        scores = -gumbel_race(self.logits, sample_shape)  # logits plus Gumbel noise
        return (scores / self.temperature).log_softmax(self.dim)


class GumbelSoftmax(Distribution):
    r"""Gumbel-softmax (Concrete) distribution inside the simplex.

    .. math:: x = \operatorname{softmax}((\ell + g) / \tau), \qquad
        p(x) = \Gamma(C)\, \tau^{C - 1} \prod_c \frac{e^{\ell_c}}{x_c^{\tau + 1}}
        \Big(\sum_c \frac{e^{\ell_c}}{x_c^\tau}\Big)^{-C}

    The smallest coordinates of a draw may underflow to zero, where ``log_prob`` is minus infinity.
    Models therefore draw and score logarithms, :meth:`log_form`. :meth:`sample_and_log_prob` is
    exact for every draw, too.

    Args:
        logits: :math:`\ell`, ``(*batch, C, *E)``.
        event_ndim: Number of dimensions of ``(C, *E)``.
        temperature: :math:`\tau > 0`.

    References:
        Maddison, Mnih, Teh (2017). The Concrete Distribution. arXiv:1611.00712, definition 1.

    Example:
        >>> p = GumbelSoftmax(torch.zeros(3), 1, temperature=0.5)
        >>> p.sample((5,)).shape
        torch.Size([5, 3])
    """

    support = "the simplex"
    yields_log_prob = True

    def __init__(self, logits: Tensor, event_ndim: int, temperature: float) -> None:
        self._log = LogGumbelSoftmax(logits, event_ndim, temperature)
        self.logits, self.temperature = logits, temperature
        self.batch_shape, self.event_shape = self._log.batch_shape, self._log.event_shape

    @property
    def mean(self) -> Tensor:
        """NaN, because the expected value has no closed form."""
        return self._log.mean

    def point_estimate(self, weights: Tensor | None = None) -> Tensor:
        """Return the value of a draw without noise."""
        return pooled(self._log.point_estimate().exp(), weights)

    def log_form(self) -> LogGumbelSoftmax:
        """Return the distribution of the logarithm."""
        return self._log

    def value_of(self, point: Tensor) -> Tensor:
        """Return the exponential of logarithms."""
        return point.exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density over all coordinates except one, summed over E, nats."""
        is_border = value <= 0
        log_value = value.masked_fill(is_border, 1.0).log()
        return self._log_prob_at(log_value.masked_fill(is_border, -math.inf))

    def _log_prob_at(self, log_value: Tensor) -> Tensor:
        # The volume of log ratios. The coordinate of a class that is ruled out has no volume.
        volume = torch.where(log_value > -math.inf, log_value, 0.0)
        return self._log.log_prob(log_value) - volume.flatten(-len(self.event_shape)).sum(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw by reparameterization."""
        return self._log.sample(sample_shape).exp()

    def sample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw and return the log density at the draw before it is rounded, nats."""
        log_value = self._log.sample(sample_shape)
        return log_value.exp(), self._log_prob_at(log_value)
