"""Gaussian likelihoods."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tinyvae.distributions import Normal
from tinyvae.likelihoods.base import Likelihood
from tinyvae.likelihoods.parameters import PositiveLike, positive, require_broadcast


class GaussianLikelihood(Likelihood):
    r"""Real numbers with Gaussian noise.

    .. math:: p(x \mid z) = \prod_i \mathcal{N}(x_i \mid \mu_i(z), \sigma_i^2)

    Args:
        std: The scale :math:`\sigma`: a number; ``"learned"``, one for all dimensions;
            ``"predicted"`` by the decoder; or :class:`~tinyvae.likelihoods.Learned` and
            :class:`~tinyvae.likelihoods.Predicted` for other shapes, bounds and starts.

    Shape:
        params: ``(..., *E)``, or ``(..., 2, *E)`` with a predicted scale; x: ``(..., *E)``.

    References:
        Rybkin, Daniilidis, Levine (2021). Simple and Effective VAE Training with Calibrated
        Decoders. arXiv:2006.13202 (learned scales).

    Example:
        >>> p = GaussianLikelihood(std=0.1)(torch.zeros(5, 3), event_ndim=1)
        >>> p.log_prob(torch.zeros(5, 3))[0]  # -3 (log 0.1 + log(2 pi) / 2)
        tensor(4.1509)
    """

    def __init__(self, std: PositiveLike = "learned") -> None:
        super().__init__()
        self.std = positive(std)
        self.num_params = 1 + self.std.num_params

    def elementwise(self, *params: Tensor) -> Normal:
        """Normal distributions around the means."""
        mean, log_std = params
        return Normal(mean, log_std)


class OptimalGaussianLikelihood(Likelihood):
    r"""Gaussian noise of the scale that is best for the batch.

    .. math:: \sigma^2 = \frac1N \sum_i (x_i - \mu_i)^2

    In training mode the mean is over the batch, its draws and the dimensions that share a scale;
    the gradient is that of a fixed scale, as the derivative with respect to the best one is zero.
    That is no density, as the scale has seen x. In evaluation mode the scale is the average that
    training has kept (of the first 100 batches alike, then exponential), and the density is
    Gaussian.

    Args:
        shape: Shape of the scale, broadcast over one datum, as in :class:`~tinyvae.likelihoods.Learned`.
        minimum: Lower bound of the scale.

    Shape:
        params (mean): ``(..., *E)``; x: ``(..., *E)``.

    References:
        Rybkin, Daniilidis, Levine (2021). Simple and Effective VAE Training with Calibrated
        Decoders. arXiv:2006.13202, section 3.

    Example:
        >>> p = OptimalGaussianLikelihood()(torch.zeros(5, 4), event_ndim=1)
        >>> p.log_prob(torch.ones(5, 4))[0]  # at a scale of 1: -4 (1 + log(2 pi)) / 2
        tensor(-5.6758)
    """

    couples_batch = True
    separable = False
    instead = "take GaussianLikelihood('learned')"
    mean_square: Tensor
    num_batches: Tensor

    def __init__(self, shape: Sequence[int] = (), *, minimum: float = 1e-3) -> None:
        super().__init__()
        if not 0 < minimum < math.inf:
            raise ValueError(f"expected a finite minimum > 0, got {minimum}")
        self.shape = torch.Size(shape)
        self.minimum = minimum
        self.register_buffer("mean_square", torch.ones(self.shape))
        self.register_buffer("num_batches", torch.zeros(()))

    @property
    def is_density(self) -> bool:  # type: ignore[override]
        """Whether in evaluation mode."""
        return not self.training

    def elementwise(self, *params: Tensor) -> Normal:
        """Normal distributions of the scale that is kept, or of that of the data to come."""
        (mean,) = params
        return _OptimalNormal(mean, self) if self.training else Normal(mean, self.log_std)

    @property
    def log_std(self) -> Tensor:
        """Logarithm of the scale that training has kept, of ``shape``."""
        return 0.5 * torch.log(self.mean_square.clamp(min=self.minimum**2))

    def update(self, mean_square: Tensor) -> None:
        """Average in the mean square of a batch."""
        mean_square = torch.where(torch.isfinite(mean_square), mean_square, self.mean_square)
        self.num_batches += 1
        weight = (1 / self.num_batches).clamp(min=0.01)
        self.mean_square += weight * (mean_square - self.mean_square)

    def check_parameters(self, data_shape: Sequence[int]) -> None:
        """Raise unless the scale broadcasts over one datum."""
        require_broadcast(self, self.shape, data_shape)

    def config(self) -> dict[str, Any]:
        """Arguments that build an equal likelihood."""
        return {"shape": tuple(self.shape), "minimum": self.minimum}


class _OptimalNormal(Normal):
    """Normal distributions whose scale is fitted to the values that they are asked for."""

    is_density = False

    def __init__(self, mean: Tensor, likelihood: OptimalGaussianLikelihood) -> None:
        super().__init__(mean, likelihood.log_std.to(mean.dtype))
        self.likelihood = likelihood

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each element at the best scale, nats."""
        with torch.no_grad():
            square = (value - self.mean).square()
            shape = self.likelihood.shape
            kept = [1] * (square.dim() - len(shape)) + list(shape)
            shared = [d for d, size in enumerate(kept) if size == 1]
            mean_square = square.mean(shared, keepdim=True).reshape(shape)
            self.likelihood.update(mean_square)
            least = self.likelihood.minimum**2
            log_std = 0.5 * torch.log(mean_square.clamp(min=least))
        return Normal(self.mean, log_std).log_prob(value)
