"""Likelihoods of counts."""

from abc import ABC
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tinyvae.core.module_state import ExactBuffers
from tinyvae.distributions import NegativeBinomial, Poisson
from tinyvae.likelihoods.base import Likelihood
from tinyvae.likelihoods.parameters import PositiveLike, as_positive, check_broadcast


class CountLikelihood(ExactBuffers, Likelihood, ABC):
    """Base class of likelihoods of counts: support, baseline, and log(1 + x) for the encoder."""

    takes_integers = True
    draws_integers = True
    support = "integers >= 0"
    hint = "round them if they are counts, or use LogNormalLikelihood for amounts"
    log_baseline: Tensor

    def __init__(self, baseline: float | Sequence[float] = 1.0) -> None:
        super().__init__()
        means = np.asarray(baseline, dtype=np.float64)
        if not (np.isfinite(means) & (means > 0)).all():
            raise ValueError(
                f"{type(self).__name__} expects a baseline of finite counts > 0, got {baseline}"
            )
        self.baseline = means.tolist()
        self.register_constant("log_baseline", np.log(means).tolist())

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return log(1 + x)."""
        return torch.log1p(x)

    def param_for_mean(self, mean: Tensor) -> Tensor:
        """Return the logarithm of the mean over the baseline. A mean of zero counts as 0.001."""
        return torch.log(mean.clamp(min=1e-3)) - self.log_baseline

    def in_support(self, x: Tensor) -> Tensor:
        """Return true for each entry that is an integer of at least zero."""
        if not x.is_floating_point():
            return x >= 0
        return torch.isfinite(x) & (x >= 0) & (x == x.round())

    def check_parameters(self, data_shape: Sequence[int]) -> None:
        """Raise unless baseline and concentration broadcast over one datum."""
        super().check_parameters(data_shape)
        check_broadcast(self, self.log_baseline.shape, data_shape)


class PoissonLikelihood(CountLikelihood):
    r"""Counts whose variance equals their mean.

    .. math:: p(x \mid z) = \prod_i \frac{\lambda_i^{x_i} e^{-\lambda_i}}{x_i!},
        \qquad \log\lambda_i = \log b_i + \text{decoder}(z)_i

    The encoder's input is log(1 + x).

    Args:
        baseline: Count :math:`b` at a decoder's output of zero, one number or one per dimension,
            such as the data's mean. Training starts from it.

    Shape:
        params: ``(..., *E)``; x: ``(..., *E)``.

    Example:
        >>> p = PoissonLikelihood(baseline=3.0)(torch.zeros(2), event_ndim=1)
        >>> p.mean.round(decimals=3)
        tensor([3., 3.])
    """

    def elementwise(self, *params: Tensor) -> Poisson:
        """Return Poisson distributions."""
        return Poisson(params[0] + self.log_baseline)


class NegativeBinomialLikelihood(CountLikelihood):
    r"""Counts whose variance exceeds their mean, with mean and concentration as parameters.

    The variance is :math:`\mu + \mu^2 / r`. The encoder's input is log(1 + x). For more zeros, use
    ``ZeroInflatedLikelihood(NegativeBinomialLikelihood())``.

    Args:
        concentration: :math:`r`, given like ``std`` of :class:`~tinyvae.GaussianLikelihood`.
            ``Learned(shape=E)`` has one value per dimension. ``num_classes`` adds one per class.
        baseline: See :class:`~tinyvae.likelihoods.PoissonLikelihood`.

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
        self.concentration = as_positive(concentration)
        self.num_params = 1 + self.concentration.num_params

    def elementwise(self, *params: Tensor) -> NegativeBinomial:
        """Return negative binomial distributions."""
        log_ratio, log_concentration = params
        return NegativeBinomial(log_ratio + self.log_baseline, log_concentration)
