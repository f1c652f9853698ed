r"""Bounds by powers of the weights.

.. math:: w_k^\beta = \Big(\frac{p(x, z_k)}{q(z_k \mid x)}\Big)^\beta
"""

import torch
from torch import Tensor

from tinyvae.objectives.estimators import Baseline, Estimator
from tinyvae.objectives.log_weights import ImportanceBound, log_mean_exp
from tinyvae.schedules import Schedule


class RenyiBound(ImportanceBound):
    r"""Variational Renyi bound of order :math:`\alpha`.

    .. math:: \hat{\mathcal{L}}_\alpha = \frac{1}{1 - \alpha}
        \log \frac1K \sum_k w_k^{1 - \alpha}

    The logarithm of a power mean of the weights: 0 gives :class:`IWAE`, 1 in the limit the ELBO.
    From 0 on it is a lower bound on log p(x) in expectation, whatever :math:`K`; below it is none.

    Args:
        alpha: Order :math:`\alpha`, a number or a :class:`~tinyvae.schedules.Schedule`.
        num_samples: Number of draws :math:`K`.
        beta: As of :class:`IWAE`.
        estimator: As of :class:`IWAE`.
        baseline: As of :class:`IWAE`.

    References:
        Li, Turner (2016). Renyi Divergence Variational Inference. arXiv:1602.02311, section 4.1.

    Example:
        >>> RenyiBound(0.5, num_samples=5).is_bound(vae), RenyiBound(-1.0, 5).is_bound(vae)
        (True, False)
    """

    metric = "renyi"
    alpha: Tensor

    def __init__(
        self,
        alpha: float | Schedule,
        num_samples: int,
        *,
        beta: float | Schedule = 1.0,
        estimator: Estimator = "pathwise",
        baseline: Baseline = "vimco",
    ) -> None:
        super().__init__(
            num_samples, num_bounds=1, beta=beta, estimator=estimator, baseline=baseline
        )
        self.schedule("alpha", alpha)

    def value(self, log_weight: Tensor) -> Tensor:
        """Log of the power mean."""
        power = (1 - self.alpha).to(log_weight.dtype)
        mean = log_weight.mean(0)
        tilted = power * (log_weight - mean)
        # Near power zero the logarithm is as small as the power that it is divided by.
        near = tilted.abs().amax(0) < 0.5
        divisor = power.where(power != 0, 1.0)
        close = mean + torch.log1p(torch.expm1(tilted.where(near, 0.0)).mean(0)) / divisor
        return torch.where(near, close, log_mean_exp(power * log_weight) / divisor)

    def derivatives(self, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized powers v of the weights, and (1 - alpha) v (1 - v)."""
        power = (1 - self.alpha).to(log_weight.dtype)
        weight = (power * log_weight).softmax(0)
        return weight, power * weight * (1 - weight)

    def is_plain(self) -> bool:
        """Whether log weights have no factor, and the order is at least 0."""
        return super().is_plain() and self.extent("alpha")[0] >= 0

    def own_arguments(self) -> dict[str, str]:
        """Order."""
        return {"alpha": self.format_weight("alpha")}


class TVO(ImportanceBound):
    r"""Thermodynamic variational objective, a left Riemann sum.

    .. math:: \log p(x) = \int_0^1 \mathbb{E}_{\pi_\beta} [\ell] \, d\beta
        \ge \sum_{j=1}^{J} (\beta_j - \beta_{j-1})\, \mathbb{E}_{\pi_{\beta_{j-1}}} [\ell], \qquad
        \pi_\beta \propto p(x, z)^\beta q(z \mid x)^{1 - \beta}

    with expectations by self-normalized importance sampling, weights :math:`w_k^\beta`. Of these
    the integral is log of the mean weight, and the integrand rises, so that for every draw the sum
    is at most :class:`IWAE`'s: a bound, whatever :math:`K`. The gradient is that of this
    expectation. One partition is the ELBO.

    Args:
        num_samples: Number of draws :math:`K`.
        num_partitions: Number of rectangles :math:`J`.
        smallest: :math:`\beta_1` in [0, 1], a number or a :class:`~tinyvae.schedules.Schedule`; the points
            from there to 1 are evenly spaced in their logarithms.
        beta: As of :class:`IWAE`.
        estimator: As of :class:`IWAE`.
        baseline: As of :class:`IWAE`.

    References:
        Masrani, Le, Wood (2019). The Thermodynamic Variational Objective. arXiv:1907.00031.

    Example:
        >>> metrics = TVO(50, num_partitions=5)(vae, Batch(x)).metrics
        >>> bool(metrics["elbo_nats"] <= metrics["tvo_nats"])
        True
    """

    metric = "tvo"
    smallest: Tensor

    def __init__(
        self,
        num_samples: int,
        num_partitions: int = 2,
        smallest: float | Schedule = 0.1,
        *,
        beta: float | Schedule = 1.0,
        estimator: Estimator = "pathwise",
        baseline: Baseline = "vimco",
    ) -> None:
        super().__init__(
            num_samples, num_bounds=1, beta=beta, estimator=estimator, baseline=baseline
        )
        self.num_partitions = self.count("num_partitions", num_partitions)
        self.schedule("smallest", smallest, least=0.0, most=1.0)

    def is_plain(self) -> bool:
        """Whether log weights have no factor, and the points are of [0, 1]."""
        low, high = self.extent("smallest")
        return super().is_plain() and low >= 0 and high <= 1

    def value(self, log_weight: Tensor) -> Tensor:
        """Left Riemann sum."""
        widths, _, weight = self._rectangles(log_weight)
        return (widths * (weight * log_weight).sum(1, keepdim=True)).sum(0)[0]

    def derivatives(self, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the sum over k of softmax(beta l)_k l_k, in each rectangle."""
        widths, points, weight = self._rectangles(log_weight)
        excess = log_weight - (weight * log_weight).sum(1, keepdim=True)
        slope = weight * (1 + points * excess)
        bend = points * weight * ((1 - weight) * (1 + points * excess) + 1 - slope)
        return (widths * slope).sum(0), (widths * bend).sum(0)

    def _rectangles(self, log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Widths, left ends, and weights of the draws there, ``(J, K, ..., B)``."""
        steps = torch.arange(self.num_partitions - 1, -1, -1, device=log_weight.device)
        right = self.smallest.to(log_weight.dtype) ** (steps / max(self.num_partitions - 1, 1))
        left = torch.cat([right.new_zeros(1), right[:-1]])
        widths, points = (
            ends.reshape(-1, *[1] * log_weight.dim()) for ends in (right - left, left)
        )
        return widths, points, (points * log_weight).softmax(1)

    def own_arguments(self) -> dict[str, str]:
        """Partition."""
        return {
            "num_partitions": str(self.num_partitions),
            "smallest": self.format_weight("smallest"),
        }
