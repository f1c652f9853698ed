"""Likelihoods of real numbers, positive numbers and proportions."""

import torch
from torch import Tensor

from tinyvae.core.data import spread_rows
from tinyvae.core.keywords import suggest_keywords
from tinyvae.distributions import Beta, ContinuousBernoulli, Laplace, LogNormal, StudentT
from tinyvae.likelihoods.base import Likelihood, smoothed_mean
from tinyvae.likelihoods.parameters import PositiveLike, as_positive
from tinyvae.likelihoods.spikes import (
    MASSES,
    MAX_EXAMPLES,
    MIN_EXAMPLES,
    rounded,
    share_at,
    warn_of_ends,
    warn_of_unbounded_density,
)


@suggest_keywords
class LaplaceLikelihood(Likelihood):
    r"""Real numbers with Laplace noise: the absolute error as a density.

    .. math:: p(x \mid z) = \prod_i \frac{1}{2 b_i} e^{-|x_i - \mu_i(z)| / b_i}

    Args:
        scale: :math:`b`, given like ``std`` of :class:`~tinyvae.GaussianLikelihood`.

    Shape:
        params: ``(..., *E)``, or ``(..., 2, *E)`` with a predicted scale; x: ``(..., *E)``.

    Example:
        >>> LaplaceLikelihood(0.5)(torch.zeros(3), event_ndim=1).log_prob(torch.zeros(3))
        tensor(0.)
    """

    has_location = True

    def __init__(self, scale: PositiveLike = "learned") -> None:
        super().__init__()
        self.scale = as_positive(scale)
        self.num_params = 1 + self.scale.num_params

    def elementwise(self, *params: Tensor) -> Laplace:
        """Return Laplace distributions around the means."""
        return Laplace(*params)


@suggest_keywords
class StudentTLikelihood(Likelihood):
    r"""Real numbers with outliers: Student's t around the decoder's location.

    Args:
        scale: Scale, given like ``std`` of :class:`~tinyvae.GaussianLikelihood`.
        df: Degrees of freedom :math:`\nu`, given the same way. Few of them make heavy tails. With
            one or less there is no mean. ``"learned"`` and ``"predicted"`` ones stay above 1. For
            one value per column, use ``Learned((D,), initial=4.0, minimum=1.0)``.

    Shape:
        params: ``(..., *E)``, or ``(..., P, *E)`` with location, and scale and df if predicted;
        x: ``(..., *E)``.

    Example:
        >>> StudentTLikelihood("predicted", df=3.0).param_shape((28, 20))
        torch.Size([2, 28, 20])
    """

    has_location = True

    def __init__(self, scale: PositiveLike = "learned", *, df: PositiveLike = 4.0) -> None:
        super().__init__()
        self.scale = as_positive(scale)
        self.df = as_positive(df, initial=4.0, minimum=1.0)
        self.num_params = 1 + self.scale.num_params + self.df.num_params

    def elementwise(self, *params: Tensor) -> StudentT:
        """Return Student's t distributions around the locations."""
        return StudentT(*params)


class LogNormalLikelihood(Likelihood):
    r"""Positive numbers whose logarithm is Gaussian: amounts, durations, prices.

    .. math:: p(x \mid z) = \prod_i \frac1{x_i} \mathcal{N}(\log x_i \mid \mu_i(z), \sigma_i^2)

    The encoder's input is log x.

    Args:
        std: :math:`\sigma` of log x, given like ``std`` of :class:`~tinyvae.GaussianLikelihood`.

    Shape:
        params: ``(..., *E)``, or ``(..., 2, *E)`` with a predicted scale; x: ``(..., *E)``.

    Example:
        >>> LogNormalLikelihood(0.1)(torch.zeros(3), event_ndim=1).mean
        tensor([1.0050, 1.0050, 1.0050])
    """

    has_location = True
    support = "finite numbers > 0"
    hint = "give zeros a mass, HurdleLikelihood(LogNormalLikelihood()), or model x + c"
    fill_value = 1.0

    def __init__(self, std: PositiveLike = "learned") -> None:
        super().__init__()
        self.std = as_positive(std)
        self.num_params = 1 + self.std.num_params

    def elementwise(self, *params: Tensor) -> LogNormal:
        """Return log-normal distributions around the means of log x."""
        return LogNormal(*params)

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return log x."""
        return torch.log(x)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Return parameters with the mean of log x."""
        return super().params_for_mean(torch.log(x))

    def warn_of_spikes(self, x: Tensor) -> None:
        """Warn as every density, and if many values are the least one, near 0."""
        super().warn_of_spikes(x)
        x = spread_rows(x, MAX_EXAMPLES)
        least = torch.nan_to_num(x, nan=torch.inf).amin()
        share = share_at(x, least.item())
        if len(x) >= MIN_EXAMPLES and least < x.nanmedian() / 100 and share >= 0.1:
            warn_of_unbounded_density(
                f"LogNormalLikelihood got {rounded(share)} of the values at {least.item():g}, far "
                "below the others",
                self.hint,
            )

    def in_support(self, x: Tensor) -> Tensor:
        """Return true for each entry that is positive and finite."""
        return torch.isfinite(x) & (x > 0)


class BetaLikelihood(Likelihood):
    r"""Proportions strictly between 0 and 1, with mean and concentration as parameters.

    .. math:: p(x \mid z) = \prod_i \mathrm{Beta}(x_i \mid \mu_i \kappa_i, (1 - \mu_i) \kappa_i),
        \qquad \log \tfrac{\mu_i}{1 - \mu_i} = \text{decoder}(z)_i

    Args:
        concentration: :math:`\kappa`, given like ``std`` of :class:`~tinyvae.GaussianLikelihood`.
            The variance is :math:`\mu (1 - \mu) / (1 + \kappa)`.

    Shape:
        params (logits): ``(..., *E)``, or ``(..., 2, *E)`` with a predicted concentration;
        x: ``(..., *E)``.

    Example:
        >>> BetaLikelihood(2.0)(torch.zeros(3), event_ndim=1).log_prob(torch.full((3,), 0.3))
        tensor(0.)
    """

    support = "numbers in the open interval (0, 1)"
    hint = (
        "shrink n proportions to (x (n - 1) + 1/2) / n if few are 0 or 1, and use "
        "DiscretizedLogisticLikelihood(num_levels) for gray levels"
    )
    fill_value = 0.5

    def __init__(self, concentration: PositiveLike = "learned") -> None:
        super().__init__()
        self.concentration = as_positive(concentration, initial=2.0)
        self.num_params = 1 + self.concentration.num_params

    def elementwise(self, *params: Tensor) -> Beta:
        """Return beta distributions around the means."""
        return Beta(*params)

    def param_for_mean(self, mean: Tensor) -> Tensor:
        """Return the log odds of the mean."""
        return torch.logit(mean)

    def warn_of_spikes(self, x: Tensor) -> None:
        """Warn if many values are the least one, near 0, or the largest one, near 1."""
        super().warn_of_spikes(x)
        warn_of_ends("BetaLikelihood", x)

    def in_support(self, x: Tensor) -> Tensor:
        """Return true for each entry that lies strictly between 0 and 1."""
        return (x > 0) & (x < 1)


class ContinuousBernoulliLikelihood(Likelihood):
    r"""Real numbers in [0, 1], with logits: cross-entropy with the normalizer of a density.

    .. math:: p(x \mid z) = \prod_i C(\lambda_i) \lambda_i^{x_i} (1 - \lambda_i)^{1 - x_i}

    The density is unbounded at 0 and 1. Gray levels, which are often exactly black or white, need
    another likelihood: :class:`~tinyvae.likelihoods.DiscretizedLogisticLikelihood`, or
    :class:`~tinyvae.BernoulliLikelihood` with
    :class:`~tinyvae.datasets.DynamicBinarization`.

    Shape:
        params (logits): ``(..., *E)``; x: ``(..., *E)``.

    References:
        Loaiza-Ganem, Cunningham (2019). The continuous Bernoulli. arXiv:1907.06845.

    Example:
        >>> p = ContinuousBernoulliLikelihood()(torch.zeros(5, 4), event_ndim=1)
        >>> p.log_prob(torch.rand(5, 4))  # uniform
        tensor([0., 0., 0., 0., 0.])
    """

    support = "numbers in [0, 1]"
    hint = (
        "rescale real numbers; for gray levels use DiscretizedLogisticLikelihood(num_levels), or "
        "BernoulliLikelihood with transform=tinyvae.datasets.DynamicBinarization(max_value)"
    )
    fill_value = 0.5

    def elementwise(self, *params: Tensor) -> ContinuousBernoulli:
        """Return continuous Bernoulli distributions with these logits."""
        return ContinuousBernoulli(*params)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Return the logits of the smoothed mean, found by bisection."""
        mean = smoothed_mean(x)
        low, high = torch.full_like(mean, -1000.0), torch.full_like(mean, 1000.0)
        for _ in range(50):
            middle = (low + high) / 2
            below = ContinuousBernoulli(middle).mean < mean
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def warn_of_spikes(self, x: Tensor) -> None:
        """Warn if many values are exactly 0 or 1."""
        if (share := share_at(x, 0.0, 1.0)) >= 0.1:
            warn_of_unbounded_density(
                f"ContinuousBernoulliLikelihood got {rounded(share)} of the values at 0 or 1",
                f"use {MASSES}",
            )

    def in_support(self, x: Tensor) -> Tensor:
        """Return true for each entry in [0, 1]."""
        return (x >= 0) & (x <= 1)
