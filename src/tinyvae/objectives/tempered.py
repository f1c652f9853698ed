r"""Bounds from powers of the importance weights.

.. math:: w_k^\beta = \Big(\frac{p(x, z_k)}{q(z_k \mid x)}\Big)^\beta
"""

import torch
from torch import Tensor

from tinyvae.objectives.base import VariationalBound, log_mean_exp
from tinyvae.objectives.estimators import Baseline, Estimator
from tinyvae.schedules import Schedule, ScheduledWeight


class RenyiBound(VariationalBound):
    r"""Variational Renyi bound of order :math:`\alpha`.

    .. math:: \hat{\mathcal{L}}_\alpha = \frac{1}{1 - \alpha}
        \log \frac1K \sum_k w_k^{1 - \alpha}

    It is the logarithm of a power mean of the weights. Order 0 gives :class:`IWAE`, the limit of
    order 1 the ELBO. For :math:`\alpha \ge 0` and any :math:`K` its expectation is a lower bound on
    log p(x); for :math:`\alpha < 0` it is not.

    Args:
        num_samples: Number of samples :math:`K`.
        alpha: Order :math:`\alpha`, a number or a :class:`~tinyvae.schedules.Schedule`.
        beta: See :class:`IWAE`.
        estimator: See :class:`IWAE`.
        baseline: See :class:`IWAE`.

    References:
        Li, Turner (2016). Renyi Divergence Variational Inference. arXiv:1602.02311, section 4.1.

    Example:
        >>> RenyiBound(5, alpha=0.5).is_bound(vae), RenyiBound(5, alpha=-1.0).is_bound(vae)
        (True, False)
    """

    metric = "renyi"

    def __init__(
        self,
        num_samples: int,
        *,
        alpha: float | Schedule,
        beta: float | Schedule = 1.0,
        estimator: Estimator = "pathwise",
        baseline: Baseline = "vimco",
    ) -> None:
        super().__init__(num_samples, beta=beta, estimator=estimator, baseline=baseline)
        self.alpha = ScheduledWeight(alpha)

    def value(self, log_weight: Tensor) -> Tensor:
        """Return the log of the power mean."""
        power = (1 - self.alpha.value).to(log_weight.dtype)
        mean = log_weight.mean(0)
        tilted = power * (log_weight - mean)
        # Near power zero, the logarithm is as small as the power that divides it: use log1p there.
        is_near = tilted.abs().amax(0) < 0.5
        divisor = power.where(power != 0, 1.0)
        near = mean + torch.log1p(torch.expm1(tilted.where(is_near, 0.0)).mean(0)) / divisor
        return torch.where(is_near, near, log_mean_exp(power * log_weight) / divisor)

    def derivatives(self, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalized powers v of the weights, and (1 - alpha) v (1 - v)."""
        power = (1 - self.alpha.value).to(log_weight.dtype)
        weight = (power * log_weight).softmax(0)
        return weight, power * weight * (1 - weight)

    def is_unmodified(self) -> bool:
        """Return True if ``beta`` is 1 and the order is never below 0."""
        return super().is_unmodified() and self.alpha.value_range[0] >= 0

    def options(self) -> dict[str, str]:
        """Return the order, formatted."""
        return {"alpha": str(self.alpha)}


class TVO(VariationalBound):
    r"""Thermodynamic variational objective, a left Riemann sum.

    .. math:: \log p(x) = \int_0^1 \mathbb{E}_{\pi_\beta} [\ell] \, d\beta
        \ge \sum_{j=1}^{J} (\beta_j - \beta_{j-1})\, \mathbb{E}_{\pi_{\beta_{j-1}}} [\ell], \qquad
        \pi_\beta \propto p(x, z)^\beta q(z \mid x)^{1 - \beta}

    Self-normalized importance sampling with the weights :math:`w_k^\beta` gives the expectations.
    With these expectations, the integral is the log of the mean weight and the integrand increases.
    So the sum is at most :class:`IWAE` for every sample, and a bound for any :math:`K`. The
    gradient is that of this expression. One partition gives the ELBO.

    Args:
        num_samples: Number of samples :math:`K`.
        num_partitions: Number of rectangles :math:`J`.
        smallest: :math:`\beta_1` in [0, 1], a number or a :class:`~tinyvae.schedules.Schedule`. The
            logarithms of the points from there to 1 are equally spaced.
        beta: See :class:`IWAE`.
        estimator: See :class:`IWAE`.
        baseline: See :class:`IWAE`.

    References:
        Masrani, Le, Wood (2019). The Thermodynamic Variational Objective. arXiv:1907.00031.

    Example:
        >>> metrics = TVO(50, num_partitions=5)(vae, Batch(x)).metrics
        >>> bool(metrics["elbo_nats"] <= metrics["tvo_nats"])
        True
    """

    metric = "tvo"

    def __init__(
        self,
        num_samples: int,
        *,
        num_partitions: int = 2,
        smallest: float | Schedule = 0.1,
        beta: float | Schedule = 1.0,
        estimator: Estimator = "pathwise",
        baseline: Baseline = "vimco",
    ) -> None:
        super().__init__(num_samples, beta=beta, estimator=estimator, baseline=baseline)
        self.num_partitions = self.require_positive("num_partitions", num_partitions)
        self.smallest = ScheduledWeight(smallest, name="TVO's smallest", least=0.0, most=1.0)

    def value(self, log_weight: Tensor) -> Tensor:
        """Return the left Riemann sum."""
        widths, _, weight = self._rectangles(log_weight)
        return (widths * (weight * log_weight).sum(1, keepdim=True)).sum(0)[0]

    def derivatives(self, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives of the sum over k of softmax(beta l)_k l_k in each rectangle."""
        widths, points, weight = self._rectangles(log_weight)
        excess = log_weight - (weight * log_weight).sum(1, keepdim=True)
        slope = weight * (1 + points * excess)
        curvature = points * weight * ((1 - weight) * (1 + points * excess) + 1 - slope)
        return (widths * slope).sum(0), (widths * curvature).sum(0)

    def _rectangles(self, log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return widths, left ends, and the sample weights there, ``(J, K, ..., B)``."""
        last = self.num_partitions - 1
        steps = torch.arange(last, -1, -1, dtype=log_weight.dtype, device=log_weight.device)
        right = self.smallest.type_as(log_weight) ** (steps / max(last, 1))
        left = torch.cat([right.new_zeros(1), right[:-1]])
        widths, points = (
            ends.reshape(-1, *[1] * log_weight.dim()) for ends in (right - left, left)
        )
        return widths, points, (points * log_weight).softmax(1)

    def is_unmodified(self) -> bool:
        """Return True if ``beta`` is 1 and the points stay in [0, 1]."""
        low, high = self.smallest.value_range
        return super().is_unmodified() and low >= 0 and high <= 1

    def options(self) -> dict[str, str]:
        """Return the partition, formatted."""
        return {"num_partitions": str(self.num_partitions), "smallest": str(self.smallest)}
