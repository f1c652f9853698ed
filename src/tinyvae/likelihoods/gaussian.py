"""Gaussian likelihoods."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyvae.core.keywords import suggest_keywords
from tinyvae.distributions import Distribution, Normal, Wrapper
from tinyvae.likelihoods.base import Likelihood
from tinyvae.likelihoods.parameters import (
    PositiveLike,
    as_positive,
    check_broadcast,
    check_positive,
)
from tinyvae.likelihoods.spikes import has_constant_group, warn_of_unbounded_density


@suggest_keywords
class GaussianLikelihood(Likelihood):
    r"""Real numbers with Gaussian noise.

    .. math:: p(x \mid z) = \prod_i \mathcal{N}(x_i \mid \mu_i(z), \sigma_i^2)

    Args:
        std: The scale :math:`\sigma`: a number; ``"learned"``, one for all dimensions;
            ``"predicted"`` by the decoder; or :class:`~tinyvae.likelihoods.Learned` and
            :class:`~tinyvae.likelihoods.Predicted` for other shapes, bounds and initial values.

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

    has_location = True

    def __init__(self, std: PositiveLike = "learned") -> None:
        super().__init__()
        self.std = as_positive(std)
        self.num_params = 1 + self.std.num_params

    def elementwise(self, *params: Tensor) -> Normal:
        """Return normal distributions around the means."""
        return Normal(*params)


class OptimalGaussianLikelihood(Likelihood):
    r"""Gaussian noise with the scale that is optimal for the batch.

    .. math:: \sigma^2 = \frac1N \sum_i (x_i - \mu_i)^2

    In training mode the mean is over the batch, its draws and the dimensions that share a scale.
    The gradient is that of a fixed scale, because the derivative with respect to the optimal one is
    zero. This is not a density, because the scale depends on x. In evaluation mode the density is
    Gaussian with the average scale of training, which each forward pass in training mode with
    gradients updates: the mean over the first 100 batches, then an exponential moving average.

    Args:
        shape: Shape of the scale, broadcast over one datum; see
            :class:`~tinyvae.likelihoods.Learned`.
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

    has_location = True
    factorizes = False
    alternative = "use GaussianLikelihood('learned')"
    mean_square: Tensor
    num_batches: Tensor

    def __init__(self, shape: Sequence[int] = (), *, minimum: float = 1e-3) -> None:
        super().__init__()
        check_positive("OptimalGaussianLikelihood", "minimum", minimum)
        self.shape = tuple(shape)
        self.minimum = minimum
        self.register_buffer("mean_square", torch.ones(self.shape))
        self.register_buffer("num_batches", torch.zeros(()))

    @property
    def is_density(self) -> bool:  # type: ignore[override]
        """True in evaluation mode."""
        return not self.training

    @property
    def couples_batch(self) -> bool:  # type: ignore[override]
        """True in training mode."""
        return self.training

    def elementwise(self, *params: Tensor) -> Distribution:
        """Return normal distributions with the average scale, or that of the data in training."""
        (mean,) = params
        if not self.training:
            return Normal(mean, self.log_std)
        kept = Normal(mean, self.log_std.to(mean.dtype))
        return _OptimalScale(kept, self.shape, self.minimum)

    @property
    def log_std(self) -> Tensor:
        """Logarithm of the average scale of training, of ``shape``."""
        return 0.5 * torch.log(self.mean_square.clamp(min=self.minimum**2))

    def update_statistics(self, distribution: Distribution, x: Tensor) -> None:
        """Add the mean square of a batch to the average, in training mode with gradients."""
        if not (self.training and torch.is_grad_enabled()):
            return
        mean_square = _mean_square((x - distribution.mean).detach(), self.shape)
        mean_square = torch.where(torch.isfinite(mean_square), mean_square, self.mean_square)
        self.num_batches += 1
        weight = (1 / self.num_batches).clamp(min=0.01)
        self.mean_square += weight * (mean_square - self.mean_square)

    def warn_of_spikes(self, x: Tensor) -> None:
        """Warn if dimensions that share a scale are constant in ``x``."""
        if has_constant_group(x, self.shape):
            warn_of_unbounded_density(
                "OptimalGaussianLikelihood computes a scale of constant dimensions",
                "leave constant dimensions out, or compute one scale for all dimensions, shape=()",
            )

    def check_parameters(self, data_shape: Sequence[int]) -> None:
        """Raise unless the scale broadcasts over one datum."""
        check_broadcast(self, self.shape, data_shape)


class _OptimalScale(Wrapper):
    """Normal distributions whose scale is fitted to the values that ``log_prob`` gets."""

    def __init__(self, base: Normal, shape: Sequence[int], minimum: float) -> None:
        super().__init__(base)
        self.shape = shape
        self.minimum = minimum
        self.is_density = False

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each element at the optimal scale, nats."""
        with torch.no_grad():
            mean_square = _mean_square(value - self.mean, self.shape)
            log_std = 0.5 * torch.log(mean_square.clamp(min=self.minimum**2))
        return Normal(self.mean, log_std).log_prob(value)


def _mean_square(difference: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the mean square over all dimensions that share a scale, of ``shape``."""
    square = difference.square()
    sizes = [1] * (square.dim() - len(shape)) + list(shape)
    shared = [dim for dim, size in enumerate(sizes) if size == 1]
    return square.mean(shared, keepdim=True).reshape(shape)
