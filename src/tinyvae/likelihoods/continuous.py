"""Likelihoods of real numbers, positive numbers and proportions."""

import torch
from torch import Tensor

from tinyvae.distributions import Beta, ContinuousBernoulli, Laplace, LogNormal, StudentT
from tinyvae.likelihoods.base import Likelihood, smoothed_mean
from tinyvae.likelihoods.parameters import PositiveLike, positive


class LaplaceLikelihood(Likelihood):
    r"""Real numbers with Laplace noise: the absolute error as a density.

    .. math:: p(x \mid z) = \prod_i \frac{1}{2 b_i} e^{-|x_i - \mu_i(z)| / b_i}

    Args:
        scale: :math:`b`, as ``std`` of :class:`~tinyvae.GaussianLikelihood`.

    Shape:
        params: ``(..., *E)``, or ``(..., 2, *E)`` with a predicted scale; x: ``(..., *E)``.

    Example:
        >>> LaplaceLikelihood(0.5)(torch.zeros(3), event_ndim=1).log_prob(torch.zeros(3))
        tensor(0.)
    """

    def __init__(self, scale: PositiveLike = "learned") -> None:
        super().__init__()
        self.scale = positive(scale)
        self.num_params = 1 + self.scale.num_params

    def elementwise(self, *params: Tensor) -> Laplace:
        """Laplace distributions around the means."""
        mean, log_scale = params
        return Laplace(mean, log_scale)


class StudentTLikelihood(Likelihood):
    r"""Real numbers with outliers: Student's t around the decoder's location.

    Args:
        scale: As ``std`` of :class:`~tinyvae.GaussianLikelihood`.
        df: Degrees of freedom :math:`\nu`, likewise: few for heavy tails; at one or less there is
            no mean. ``"learned"`` and ``"predicted"`` ones stay above 1.

    Shape:
        params: ``(..., *E)``, or ``(..., P, *E)`` with location, and scale and df if predicted;
        x: ``(..., *E)``.

    Example:
        >>> StudentTLikelihood("predicted", df=3.0).param_shape((28, 20))
        torch.Size([2, 28, 20])
    """

    def __init__(self, scale: PositiveLike = "learned", df: PositiveLike = 4.0) -> None:
        super().__init__()
        self.scale = positive(scale)
        self.df = positive(df, initial=4.0, minimum=1.0)
        self.num_params = 1 + self.scale.num_params + self.df.num_params

    def elementwise(self, *params: Tensor) -> StudentT:
        """Student's t distributions around the locations."""
        loc, log_scale, log_df = params
        return StudentT(loc, log_scale, log_df)


class LogNormalLikelihood(Likelihood):
    r"""Positive numbers whose logarithm is Gaussian: amounts, durations, prices.

    .. math:: p(x \mid z) = \prod_i \frac1{x_i} \mathcal{N}(\log x_i \mid \mu_i(z), \sigma_i^2)

    The encoder is fed log x.

    Args:
        std: :math:`\sigma`, of log x, as of :class:`~tinyvae.GaussianLikelihood`.

    Shape:
        params: ``(..., *E)``, or ``(..., 2, *E)`` with a predicted scale; x: ``(..., *E)``.

    Example:
        >>> LogNormalLikelihood(0.1)(torch.zeros(3), event_ndim=1).mean
        tensor([1.0050, 1.0050, 1.0050])
    """

    support = "finite numbers > 0"
    remedy = "give zeros a likelihood of their own, or model x + c"
    inside = 1.0

    def __init__(self, std: PositiveLike = "learned") -> None:
        super().__init__()
        self.std = positive(std)
        self.num_params = 1 + self.std.num_params

    def elementwise(self, *params: Tensor) -> LogNormal:
        """Log-normal distributions around the means of log x."""
        mean_log, log_std = params
        return LogNormal(mean_log, log_std)

    def encoder_input(self, x: Tensor) -> Tensor:
        """Log x."""
        return torch.log(x)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """As of any likelihood, with the mean of log x."""
        return super().params_for_mean(torch.log(x))

    def in_support(self, x: Tensor) -> Tensor:
        """Whether each entry is positive and finite."""
        return torch.isfinite(x) & (x > 0)


class BetaLikelihood(Likelihood):
    r"""Proportions strictly between 0 and 1, by mean and concentration.

    .. math:: p(x \mid z) = \prod_i \mathrm{Beta}(x_i \mid \mu_i \kappa_i, (1 - \mu_i) \kappa_i),
        \qquad \log \tfrac{\mu_i}{1 - \mu_i} = \text{decoder}(z)_i

    Args:
        concentration: :math:`\kappa`, as ``std`` of :class:`~tinyvae.GaussianLikelihood`; the
            variance is :math:`\mu (1 - \mu) / (1 + \kappa)`.

    Shape:
        params (logits): ``(..., *E)``, or ``(..., 2, *E)`` with a predicted concentration;
        x: ``(..., *E)``.

    Example:
        >>> BetaLikelihood(2.0)(torch.zeros(3), event_ndim=1).log_prob(torch.full((3,), 0.3))
        tensor(0.)
    """

    support = "numbers in the open interval (0, 1)"
    remedy = "shrink n proportions to (x (n - 1) + 1/2) / n, or use ContinuousBernoulliLikelihood"
    inside = 0.5

    def __init__(self, concentration: PositiveLike = "learned") -> None:
        super().__init__()
        self.concentration = positive(concentration, initial=2.0)
        self.num_params = 1 + self.concentration.num_params

    def elementwise(self, *params: Tensor) -> Beta:
        """Beta distributions around the means."""
        logits, log_concentration = params
        return Beta(logits, log_concentration)

    def location(self, mean: Tensor) -> Tensor:
        """Log odds of the mean."""
        return torch.logit(mean)

    def in_support(self, x: Tensor) -> Tensor:
        """Whether each entry lies strictly between 0 and 1."""
        return (x > 0) & (x < 1)


class ContinuousBernoulliLikelihood(Likelihood):
    r"""Gray levels in [0, 1], by logits: what the cross-entropy lacks to be a density.

    .. math:: p(x \mid z) = \prod_i C(\lambda_i) \lambda_i^{x_i} (1 - \lambda_i)^{1 - x_i}

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
    remedy = "divide gray levels by their maximum"
    inside = 0.5

    def elementwise(self, *params: Tensor) -> ContinuousBernoulli:
        """Continuous Bernoulli distributions of the logits."""
        (logits,) = params
        return ContinuousBernoulli(logits)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Logits of the mean, by bisection, half a one and half a zero added to those observed."""
        mean = smoothed_mean(x)
        low, high = torch.full_like(mean, -1000.0), torch.full_like(mean, 1000.0)
        for _ in range(50):
            middle = (low + high) / 2
            below = ContinuousBernoulli(middle).mean < mean
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def in_support(self, x: Tensor) -> Tensor:
        """Whether each entry lies in [0, 1]."""
        return (x >= 0) & (x <= 1)
