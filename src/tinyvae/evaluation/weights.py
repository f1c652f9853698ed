r"""Statistics of importance weights: evidence, effective sample size, shape of the tail.

.. math:: \log \hat p(x) = \log \frac1K \sum_k w_k, \qquad
    \text{ESS} = \frac{(\sum_k w_k)^2}{\sum_k w_k^2}, \qquad
    \operatorname{Var} \log \hat p(x) \approx \frac{1}{\text{ESS}} - \frac1K

The variance is that of the delta method. The tail of the weights is fitted by a generalized Pareto
distribution. Its shape k tells how far these errors can be trusted.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TAIL_SHARE = 0.2  # at most, of the draws
PRIOR_DRAWS, PRIOR_SHAPE = 10, 0.5  # of the weakly informative prior on the shape
FEWEST_IN_TAIL = 5


class RunningWeights:
    """Running statistics of the log weights of ``B`` examples, in memory that does not grow.

    Args:
        num_samples: Number of draws ``K`` in total.
        group_size: Number of draws of the smaller bound IWAE_k, None for no such bound.
    """

    def __init__(self, num_samples: int, group_size: int | None = None) -> None:
        self.num_samples, self.group_size = num_samples, group_size
        self.tail_size = tail_size(num_samples)
        self._is_empty = True
        self._bounds: Tensor | None = None

    def add(self, log_weight: Tensor) -> None:
        """Add log weights ``(k, B)``, nats."""
        if self._is_empty:  # what follows is relative to these, so that float32 is enough
            self._is_empty = False
            self._reference = log_weight.amax(0).nan_to_num(0.0, 0.0, 0.0)  # (B,)
            self._sum = self._square = torch.full_like(self._reference, -math.inf)
            self._top = self._rest = log_weight[:0]
        relative = log_weight - self._reference
        self._sum = torch.logaddexp(self._sum, relative.logsumexp(0))
        self._square = torch.logaddexp(self._square, (2 * relative).logsumexp(0))
        top = torch.cat([self._top, relative])
        self._top = top.topk(min(self.tail_size + 1, len(top)), 0).values
        if self.group_size is not None:
            self._add_groups(torch.cat([self._rest, relative]), self.group_size)

    def _add_groups(self, relative: Tensor, size: int) -> None:
        """Keep sum and sum of squares of the log means of full groups, and the draws left over."""
        count = len(relative) // size
        groups = relative[: count * size].unflatten(0, (count, size))
        bounds = groups.logsumexp(1) - math.log(size)  # (count, B)
        sums = torch.stack([bounds.sum(0), bounds.square().sum(0)])
        self._bounds = sums if self._bounds is None else self._bounds + sums
        self._rest = relative[count * size :]

    def evidence(self) -> Tensor:
        """Return the log mean of the weights, ``(B,)``, nats."""
        return self._reference + self._sum - math.log(self.num_samples)

    def effective_sample_size(self) -> Tensor:
        """Return the effective sample size, ``(B,)``, 0 if all weights are zero."""
        return (2 * self._sum - self._square).exp().nan_to_num(0.0)

    def error(self) -> Tensor:
        """Return the Monte Carlo standard error of :meth:`evidence`, ``(B,)``, nats."""
        return (1 / self.effective_sample_size() - 1 / self.num_samples).clamp(min=0).sqrt()

    def pareto_k(self) -> Tensor:
        """Return the shape of the tail of the weights, ``(B,)``. NaN for fewer than 25 draws."""
        if self.tail_size < FEWEST_IN_TAIL or len(self._top) <= self.tail_size:
            return torch.full_like(self._reference, math.nan)
        # (M, B) ascending, as in Zhang and Stephens
        return pareto_shape(self._top[:-1].flip(0), self._top[-1])

    def grouped(self) -> tuple[Tensor, Tensor] | tuple[()]:
        """Return the bound IWAE_k, ``(B,)``, and its Monte Carlo standard error, nats, if any."""
        if self.group_size is None or self._bounds is None:
            return ()
        count = self.num_samples // self.group_size
        mean, square = self._bounds / count
        if count == 1:
            return self._reference + mean, torch.full_like(mean, math.nan)
        variance = (square - mean.square()).clamp(min=0) / (count - 1)
        return self._reference + mean, variance.sqrt()


def tail_size(num_samples: int) -> int:
    """Return the number of largest weights to which the tail is fitted."""
    return math.ceil(min(TAIL_SHARE * num_samples, 3 * math.sqrt(num_samples)))


def pareto_shape(log_tail: Tensor, log_cutoff: Tensor) -> Tensor:
    r"""Return the shape k of the generalized Pareto distribution of the largest weights, ``(B,)``.

    .. math:: p(w - u) \propto \Big(1 + k \frac{w - u}{\sigma}\Big)^{-1/k - 1}

    The weights have moments of order below 1/k. The estimate is pulled a little to 0.5. It is 0 for
    equal weights.

    Args:
        log_tail: Logarithms of the ``M`` largest weights, ascending, ``(M, B)``.
        log_cutoff: Logarithm of the next smaller weight :math:`u`, ``(B,)``.

    References:
        Zhang, Stephens (2009). A New and Efficient Estimation Method for the Generalized Pareto
        Distribution. Vehtari, Simpson, Gelman, Yao, Gabry (2024). Pareto Smoothed Importance
        Sampling. arXiv:1507.02646, appendix C.

    Example:
        >>> quantiles = (torch.arange(1000.0) + 0.5) / 1000
        >>> excess = ((1 - quantiles) ** -0.4 - 1) / 0.4  # k = 0.4
        >>> log_tail = (1 + excess).log().unsqueeze(1)
        >>> round(pareto_shape(log_tail, torch.zeros(1)).item(), 1)
        0.4
    """
    num_tail, largest = len(log_tail), log_tail[-1]
    excess = (log_tail - largest).exp() - (log_cutoff - largest).exp()  # (M, B)
    is_flat = ~(largest - log_cutoff > 1e-6)  # also if all weights are zero
    excess = torch.where(is_flat, 1.0, excess)
    num_points = 30 + int(math.sqrt(num_tail))
    index = torch.arange(1, num_points + 1, dtype=excess.dtype, device=excess.device) - 0.5
    quartile = excess[int(num_tail / 4 + 0.5) - 1].clamp(min=torch.finfo(excess.dtype).tiny)
    spread = 1 - (num_points / index).sqrt()
    theta = spread.unsqueeze(1) / (3 * quartile) + 1 / excess[-1]  # (P, B)
    shape = torch.stack([torch.log1p(-row * excess).mean(0) for row in theta])  # (P, B)
    log_profile = num_tail * ((-theta / shape).log() - shape - 1)
    weight = log_profile.nan_to_num(-math.inf).softmax(0).nan_to_num(0.0)
    best = (weight * theta).sum(0)
    k = torch.log1p(-best * excess).mean(0)
    k = (num_tail * k + PRIOR_DRAWS * PRIOR_SHAPE) / (num_tail + PRIOR_DRAWS)
    return torch.where(is_flat, 0.0, k)


def pareto_threshold(num_samples: int) -> float:
    """Return the largest shape k at which log p(x) of ``num_samples`` draws is reliable.

    Reference: Vehtari et al. (2024), arXiv:1507.02646, section 3.2.4.

    Example:
        >>> pareto_threshold(100), pareto_threshold(5000)
        (0.5, 0.7)
    """
    return min(1 - 1 / math.log10(num_samples), 0.7) if num_samples > 1 else -math.inf


@dataclass(frozen=True, eq=False)
class WeightQuality:
    """Quality of the importance weights of each example.

    Attributes:
        effective_sample_size: Number of independent draws that the weighted ones are worth,
            ``(N,)``.
        pareto_k: Shape of the tail of the weights, ``(N,)``. NaN for fewer than 25 draws.
        num_samples: Draws per example.
    """

    effective_sample_size: Tensor
    pareto_k: Tensor
    num_samples: int

    @property
    def threshold(self) -> float:
        """Largest reliable shape for this number of draws."""
        return pareto_threshold(self.num_samples)

    @property
    def num_unreliable(self) -> int:
        """Number of examples whose shape exceeds the threshold."""
        return int((self.pareto_k > self.threshold).sum())

    def __str__(self) -> str:
        size = self.effective_sample_size
        text = f"effective sample size: median {size.median():,.0f}, least {size.min():,.1f}"
        if bool(self.pareto_k.isnan().all()):
            return text
        count = f"{self.num_unreliable:,} of {len(size):,} examples"
        return f"{text}; Pareto k > {self.threshold:.2f} in {count}"
