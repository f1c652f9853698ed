"""Likelihoods: modules that turn a decoder's output into p(x given z).

A likelihood owns its constants, its support, its sampling and its mean. A decoder emits ``P``
parameters per data dimension, parameters first: ``(N, P, *E)``, or ``(N, *E)`` where ``P`` is 1.
To write one, say ``num_params`` and how they make a scalar distribution::

    class LaplaceLikelihood(Likelihood):
        num_params = 2

        def elementwise(self, mean, log_scale):
            return TorchDistribution(Laplace(mean, log_scale.exp(), validate_args=False))
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyvae.distributions import Bernoulli, Distribution, Independent, Normal

__all__ = ["BernoulliLikelihood", "GaussianLikelihood", "Likelihood"]


class Likelihood(nn.Module, ABC):
    """Makes p(x given z) of a decoder's output.

    Attributes:
        num_params: Parameters ``P`` per data dimension.
        is_density: Whether it is a normalised density or mass, without which no bound holds.
    """

    num_params: int = 1
    is_density: bool = True

    @abstractmethod
    def elementwise(self, *params: Tensor) -> Distribution:
        """Make a scalar distribution of each element of ``num_params`` tensors of equal shape."""

    def config(self) -> dict[str, Any]:
        """Arguments that build an equal likelihood, for a model's file."""
        return {}

    def param_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """What the decoder must emit for one datum: ``(P, *E)``, or ``E`` where ``P`` is 1."""
        leading = () if self.num_params == 1 else (self.num_params,)
        return torch.Size((*leading, *data_shape))

    def forward(self, params: Tensor, event_ndim: int) -> Distribution:
        """Turn ``(..., P, *E)`` into p(x given z) with ``event_shape = E`` of ``event_ndim``."""
        parts = (params,) if self.num_params == 1 else params.unbind(-event_ndim - 1)
        distribution = self.elementwise(*parts)
        if not isinstance(distribution, Distribution):
            raise TypeError(
                f"{type(self).__name__}.elementwise must return a tinyvae Distribution, got a "
                f"{type(distribution).__name__}: wrap one of torch's, TorchDistribution(...)"
            )
        return Independent(distribution, event_ndim)

    def check_support(self, x: Tensor) -> bool:
        """Raise, with the remedy, unless this likelihood can be fitted to ``x``.

        Returns:
            Whether ``log_prob`` of ``x`` is a log density or mass, without which no bound holds.
        """
        name = type(self).__name__
        if not x.is_floating_point():
            raise TypeError(
                f"{name} expects floating-point data, got {x.dtype}: divide grey levels by their "
                "maximum, or binarise them with tinyvae.datasets.DynamicBinarisation(max_value), "
                "which fit takes as transform="
            )
        bad = ~torch.isfinite(x).flatten(1).all(1)
        if bad.any():
            raise ValueError(
                f"{name} expects finite data, got NaN or infinity in {int(bad.sum())} of {len(x)} "
                f"examples, first in example {int(bad.nonzero()[0])}: drop or impute them"
            )
        return True


class BernoulliLikelihood(Likelihood):
    r"""Zeros and ones, by the logits of a one.

    .. math:: p(x \mid z) = \prod_i \sigma(\ell_i)^{x_i} \sigma(-\ell_i)^{1 - x_i}

    Grey levels in (0, 1) are let through with a warning, as is the custom: their log-likelihood is
    no log probability of anything.

    Shape:
        params (logits): ``(..., *E)``; x: ``(..., *E)``.

    Example:
        >>> p = BernoulliLikelihood()(torch.zeros(5, 1, 2, 2), event_ndim=3)
        >>> p.log_prob(torch.ones(5, 1, 2, 2))[0]  # 4 log(1/2)
        tensor(-2.7726)
    """

    def elementwise(self, *params: Tensor) -> Bernoulli:
        """Bernoulli distributions of the logits."""
        (logits,) = params
        return Bernoulli(logits)

    def check_support(self, x: Tensor) -> bool:
        """Raise outside [0, 1]; warn between 0 and 1, where no pixel has a probability."""
        super().check_support(x)
        low, high = (bound.item() for bound in torch.aminmax(x))
        if low < 0 or high > 1:
            raise ValueError(
                f"BernoulliLikelihood expects values in [0, 1], got {low:g}..{high:g}: "
                "binarise, as with tinyvae.datasets.threshold(x, level), or use GaussianLikelihood"
            )
        binary = not bool(((x != 0) & (x != 1)).any())
        if not binary:
            warnings.warn(
                "BernoulliLikelihood got values between 0 and 1: they have no probability under "
                "it, so what is reported is no bound on log p(x). Binarise them, as with "
                "transform=tinyvae.datasets.DynamicBinarisation()",
                stacklevel=2,
            )
        return binary


class GaussianLikelihood(Likelihood):
    r"""Real numbers with Gaussian noise.

    .. math:: p(x \mid z) = \prod_i \mathcal{N}(x_i \mid \mu_i(z), \sigma_i^2)

    Args:
        std: The scale :math:`\sigma`. A number: fixed. ``"learned"``: a parameter of shape
            ``std_shape``. ``"predicted"``: by the decoder, which then emits two parameters per
            dimension, the mean and the scale.
        std_shape: Shape of a learned scale, broadcast over one datum: ``()`` one for all, ``E``
            one per dimension, ``(C, 1, 1)`` one per channel.
        min_std: Lower bound of a learned or predicted scale. Without one the density of a
            dimension that hardly varies grows beyond all bounds.
        initial_std: Where a learned scale starts. Adam moves log std by about its learning rate per
            update, so start near the noise that you expect, or give the scale its own rate:
            ``Optimization(learning_rates={"likelihood": 2e-2})``.

    Shape:
        params: ``(..., *E)``, or ``(..., 2, *E)`` with a predicted scale; x: ``(..., *E)``.

    Raises:
        ValueError: If a scale or its bound is not positive.

    References:
        Rybkin, Daniilidis, Levine (2021). Simple and Effective VAE Training with Calibrated
        Decoders. arXiv:2006.13202 (learned scales).

    Example:
        >>> p = GaussianLikelihood(std=0.1)(torch.zeros(5, 3), event_ndim=1)
        >>> p.log_prob(torch.zeros(5, 3))[0]  # -3 (log 0.1 + log(2 pi) / 2)
        tensor(4.1509)
    """

    def __init__(
        self,
        std: float | Literal["learned", "predicted"] = "learned",
        *,
        std_shape: Sequence[int] = (),
        min_std: float = 1e-3,
        initial_std: float = 1.0,
    ) -> None:
        super().__init__()
        if min_std <= 0:
            raise ValueError(f"GaussianLikelihood expects min_std > 0, got {min_std}")
        if isinstance(std, str) and std not in ("learned", "predicted"):
            raise ValueError(
                f"GaussianLikelihood expects a number, 'learned' or 'predicted' as std, got {std!r}"
            )
        if not isinstance(std, str) and not 0 < std < math.inf:
            raise ValueError(f"GaussianLikelihood expects a finite std > 0, got {std}")
        if std_shape and std != "learned":
            raise ValueError(f"std_shape is the shape of a learned scale, got std={std!r}")
        if not min_std < initial_std < math.inf:
            raise ValueError(
                f"GaussianLikelihood expects a finite initial_std above min_std = {min_std}, "
                f"got {initial_std}"
            )
        self.std = std
        self.std_shape = torch.Size(std_shape)
        self.min_std = min_std
        self.initial_std = initial_std
        self.num_params = 2 if std == "predicted" else 1
        if std == "learned":
            above = math.log(initial_std / min_std)
            raw = math.log(min_std) + math.log(math.expm1(above))  # what _bounded maps to its log
            self.raw_log_std = nn.Parameter(torch.full(self.std_shape, raw))

    def elementwise(self, *params: Tensor) -> Normal:
        """Normal distributions around the means."""
        if self.std == "predicted":
            mean, raw = params
            return Normal(mean, self._bounded(raw))
        (mean,) = params
        if self.std == "learned":
            return Normal(mean, self._bounded(self.raw_log_std))
        return Normal(mean, mean.new_full((), math.log(self.std)))

    def _bounded(self, raw: Tensor) -> Tensor:
        """Smooth lower bound on log std, the identity far above it."""
        minimum = math.log(self.min_std)
        return minimum + F.softplus(raw - minimum)

    def check_support(self, x: Tensor) -> bool:
        """Raise unless ``x`` is finite and a learned scale broadcasts over one datum."""
        super().check_support(x)
        data_shape = x.shape[1:]
        sizes = zip(reversed(self.std_shape), reversed(data_shape), strict=False)
        if len(self.std_shape) > len(data_shape) or any(n not in (1, size) for n, size in sizes):
            raise ValueError(
                f"{self} does not broadcast over data of shape {tuple(data_shape)}: give it "
                "std_shape=() for one scale, the data's shape for one per dimension, "
                "or (C, 1, 1) for one per channel"
            )
        return True

    def config(self) -> dict[str, Any]:
        """Arguments that build an equal likelihood."""
        names = ("std", "std_shape", "min_std", "initial_std")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        """Scale, for ``repr``."""
        shape = f", std_shape={tuple(self.std_shape)}" if self.std_shape else ""
        return f"std={self.std!r}{shape}"
