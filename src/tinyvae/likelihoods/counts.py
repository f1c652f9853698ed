"""Likelihoods of counts."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tinyvae.distributions import NegativeBinomial, Poisson
from tinyvae.likelihoods.base import Likelihood
from tinyvae.likelihoods.parameters import PositiveLike, positive, require_broadcast


class CountLikelihood(Likelihood):
    """What likelihoods of counts share: support, baseline, and log(1 + x) for the encoder.

    Args:
        baseline: Count that a decoder's output of zero stands for, a number or one per dimension.
    """

    takes_integers = True
    support = "integers >= 0"
    remedy = "round them if they are counts, or use LogNormalLikelihood for amounts"
    log_baseline: Tensor

    def __init__(self, baseline: float | Sequence[float]) -> None:
        super().__init__()
        means = np.asarray(baseline, dtype=np.float64)
        if not (np.isfinite(means) & (means > 0)).all():
            raise ValueError(f"expected a baseline of finite counts > 0, got {baseline}")
        self.baseline = means.tolist()
        self.register_buffer("log_baseline", torch.tensor(np.log(means).tolist()))

    def encoder_input(self, x: Tensor) -> Tensor:
        """Logarithm of x + 1."""
        return torch.log1p(x)

    def location(self, mean: Tensor) -> Tensor:
        """Logarithm of the mean over the baseline; where all counts are zero, of a small one."""
        return torch.log(mean.clamp(min=1e-3)) - self.log_baseline

    def in_support(self, x: Tensor) -> Tensor:
        """Whether each entry is an integer of at least zero."""
        if not x.is_floating_point():
            return x >= 0
        return torch.isfinite(x) & (x >= 0) & (x == x.round())

    def check_parameters(self, data_shape: Sequence[int]) -> None:
        """Raise unless baseline and concentration broadcast over one datum."""
        super().check_parameters(data_shape)
        require_broadcast(self, self.log_baseline.shape, data_shape)


class PoissonLikelihood(CountLikelihood):
    r"""Counts whose variance is their mean.

    .. math:: p(x \mid z) = \prod_i \frac{\lambda_i^{x_i} e^{-\lambda_i}}{x_i!},
        \qquad \log\lambda_i = \log b_i + \text{decoder}(z)_i

    The encoder is fed log(1 + x).

    Args:
        baseline: Count :math:`b` that a decoder's output of zero stands for, a number or one per
            dimension, such as the data's mean: training starts from it.

    Shape:
        params: ``(..., *E)``; x: ``(..., *E)``.

    Example:
        >>> p = PoissonLikelihood(baseline=3.0)(torch.zeros(2), event_ndim=1)
        >>> p.mean.round(decimals=3)
        tensor([3., 3.])
    """

    def __init__(self, baseline: float | Sequence[float] = 1.0) -> None:
        super().__init__(baseline)

    def elementwise(self, *params: Tensor) -> Poisson:
        """Poisson distributions."""
        (log_ratio,) = params
        return Poisson(log_ratio + self.log_baseline)


class NegativeBinomialLikelihood(CountLikelihood):
    r"""Counts that vary more than a Poisson variable, by mean and concentration.

    The variance is :math:`\mu + \mu^2 / r`. The encoder is fed log(1 + x). With more zeros than
    that it is ``ZeroInflatedLikelihood(NegativeBinomialLikelihood())``.

    Args:
        concentration: :math:`r`, as ``std`` of :class:`~tinyvae.GaussianLikelihood`;
            ``Learned(shape=E)`` is one per dimension, ``num_classes`` one per class beside.
        baseline: As of :class:`~tinyvae.likelihoods.PoissonLikelihood`.

    Shape:
        params: ``(..., *E)``, or ``(..., 2, *E)`` with a predicted concentration; x: ``(..., *E)``.

    References:
        Lopez, Regier, Cole, Jordan, Yosef (2018). Deep generative modeling for single-cell
        transcriptomics. Nature Methods 15.

    Example:
        >>> counts = NegativeBinomialLikelihood("predicted")
        >>> ZeroInflatedLikelihood(counts).param_shape((2000,))
        torch.Size([3, 2000])
    """

    def __init__(
        self, concentration: PositiveLike = "learned", *, baseline: float | Sequence[float] = 1.0
    ) -> None:
        super().__init__(baseline)
        self.concentration = positive(concentration)
        self.num_params = 1 + self.concentration.num_params

    def elementwise(self, *params: Tensor) -> NegativeBinomial:
        """Negative binomial distributions."""
        log_ratio, log_concentration = params
        return NegativeBinomial(log_ratio + self.log_baseline, log_concentration)
