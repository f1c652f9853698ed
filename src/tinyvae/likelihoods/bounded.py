"""Likelihood of numbers in an interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.module_state import ExactBuffers
from tinyvae.distributions import LogitNormal
from tinyvae.likelihoods.base import Likelihood
from tinyvae.likelihoods.parameters import PositiveLike, as_positive, check_broadcast
from tinyvae.likelihoods.spikes import warn_of_ends


@suggest_keywords
class LogitNormalLikelihood(ExactBuffers, Likelihood):
    r"""Numbers in an open interval (a, b) whose logit is Gaussian: shares, scores, percentages.

    .. math:: p(x \mid z) = \prod_i \frac{b - a}{(x_i - a)(b - x_i)}\,
        \mathcal{N}\Big(\log \frac{x_i - a}{b - x_i} \,\Big|\, \mu_i(z), \sigma_i^2\Big)

    The encoder's input is the logit. Values at the ends have no density: give them masses,
    ``HurdleLikelihood(LogitNormalLikelihood(low=0, high=100), at=(0, 100))``.

    Args:
        std: :math:`\sigma` of the logit, given like ``std`` of
            :class:`~tinyvae.GaussianLikelihood`.
        low: :math:`a`, one number or numbers that broadcast over one datum.
        high: :math:`b > a`, given the same way.

    Shape:
        params: ``(..., *E)``, or ``(..., 2, *E)`` with a predicted scale; x: ``(..., *E)``.

    References:
        Atchison, Shen (1980). Logistic-normal distributions: Some properties and uses. Biometrika
        67.

    Example:
        >>> percent = LogitNormalLikelihood(1.0, high=100.0)
        >>> percent(torch.zeros(3), event_ndim=1).mean
        tensor([50., 50., 50.])
    """

    has_location = True
    lowest: Tensor
    highest: Tensor

    def __init__(
        self,
        std: PositiveLike = "learned",
        *,
        low: float | Sequence[Any] = 0.0,
        high: float | Sequence[Any] = 1.0,
    ) -> None:
        super().__init__()
        self.std = as_positive(std)
        self.num_params = 1 + self.std.num_params
        ends = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        if not (
            np.isfinite(ends[0]).all() and np.isfinite(ends[1]).all() and (ends[0] < ends[1]).all()
        ):
            raise ValueError(
                f"LogitNormalLikelihood expects finite low < high, got low={low}, high={high}"
            )
        self.low, self.high = (end.tolist() for end in ends)
        self.register_constant("lowest", self.low)
        self.register_constant("highest", self.high)
        interval = f"({low:g}, {high:g})" if ends[0].ndim == ends[1].ndim == 0 else "(low, high)"
        self.support = f"numbers in the open interval {interval}"
        self.hint = (
            "give values at the ends masses, HurdleLikelihood(LogitNormalLikelihood(...), at=(low, "
            "high)), or widen the interval"
        )

    @property
    def fill_value(self) -> Tensor:  # type: ignore[override]
        """The middle of the interval."""
        return 0.5 * self.lowest + 0.5 * self.highest

    def elementwise(self, mean_logit: Tensor, log_std: Tensor) -> LogitNormal:
        """Return logit-normal distributions around the means of the logit."""
        return LogitNormal(mean_logit, log_std, self.lowest, self.highest)

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return the logit of the rescaled number."""
        return torch.log(x - self.lowest) - torch.log(self.highest - x)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Return parameters with the mean of the logit."""
        return super().params_for_mean(self.encoder_input(x))

    def warn_of_spikes(self, x: Tensor) -> None:
        """Warn as every density, and if many values are the one next to an end."""
        super().warn_of_spikes(x)
        warn_of_ends("LogitNormalLikelihood", (x - self.lowest) / (self.highest - self.lowest))

    def in_support(self, x: Tensor) -> Tensor:
        """Return true for each entry that lies strictly between the ends."""
        return (x > self.lowest) & (x < self.highest)

    def check_parameters(self, data_shape: Sequence[int]) -> None:
        """Raise unless the ends and the scale broadcast over one datum."""
        super().check_parameters(data_shape)
        for shape in (self.lowest.shape, self.highest.shape):
            check_broadcast(self, shape, data_shape)
