"""Likelihoods of the outcomes of a number of trials."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.module_state import ExactBuffers
from tinyvae.distributions import BetaBinomial, Distribution, Multinomial
from tinyvae.likelihoods.base import Likelihood, smoothed_mean
from tinyvae.likelihoods.parameters import PositiveLike, as_positive, check_broadcast


@suggest_keywords
class BetaBinomialLikelihood(ExactBuffers, Likelihood):
    r"""Numbers of hits in a known number of trials, more dispersed than binomial ones.

    .. math:: p(x \mid z) = \prod_i \binom{n_i}{x_i}
        \frac{B(x_i + \mu_i \kappa_i, n_i - x_i + (1 - \mu_i) \kappa_i)}
        {B(\mu_i \kappa_i, (1 - \mu_i) \kappa_i)}, \qquad
        \log \tfrac{\mu_i}{1 - \mu_i} = \text{decoder}(z)_i

    Examples are correct answers of a test, methylated reads, days of a week. The encoder reads
    :math:`2 x / n - 1`.

    Args:
        num_trials: :math:`n \geq 1`, one number or numbers that broadcast over one datum.
        concentration: :math:`\kappa`, given like ``std`` of :class:`~tinyvae.GaussianLikelihood`.
            The variance is :math:`n \mu (1 - \mu) (n + \kappa) / (1 + \kappa)`, nearly that of a
            binomial distribution if :math:`\kappa` is large.

    Shape:
        params (logits): ``(..., *E)``, or ``(..., 2, *E)`` with a predicted concentration;
        x: ``(..., *E)``.

    References:
        Skellam (1948). A probability distribution derived from the binomial distribution. Journal
        of the Royal Statistical Society B 10.

    Example:
        >>> p = BetaBinomialLikelihood(4, 2.0)(torch.zeros(3), event_ndim=1)
        >>> p.elementwise_log_prob(torch.tensor([0.0, 2.0, 4.0])).exp()
        tensor([0.2000, 0.2000, 0.2000])
    """

    takes_integers = True
    draws_integers = True
    trials: Tensor

    def __init__(
        self, num_trials: int | Sequence[Any], concentration: PositiveLike = "learned"
    ) -> None:
        super().__init__()
        numbers = np.asarray(num_trials, dtype=np.float64)
        if not (numbers.size and ((numbers >= 1) & (numbers == np.round(numbers))).all()):
            raise ValueError(
                f"BetaBinomialLikelihood expects integers num_trials >= 1, got {num_trials}"
            )
        self.num_trials = numbers.astype(np.int64).tolist()
        self.register_constant("trials", numbers.tolist())
        self.concentration = as_positive(concentration, initial=2.0)
        self.num_params = 1 + self.concentration.num_params
        self.support = f"integers 0 to {num_trials if numbers.ndim == 0 else 'num_trials'}"
        self.hint = "change num_trials, or use NegativeBinomialLikelihood for counts without limit"

    def elementwise(self, logits: Tensor, log_concentration: Tensor) -> BetaBinomial:
        """Return beta-binomial distributions of the numbers of hits."""
        return BetaBinomial(logits, log_concentration, self.trials)

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return shares of hits, scaled to [-1, 1]."""
        return 2 * x / self.trials - 1

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Return the log odds of the smoothed mean share."""
        first = torch.logit(smoothed_mean(x / self.trials))
        rest = first.new_zeros(self.num_params - 1, *first.shape)
        return first if self.num_params == 1 else torch.cat([first.unsqueeze(0), rest])

    def in_support(self, x: Tensor) -> Tensor:
        """Return true for each entry that is an integer from 0 to the number of trials."""
        return (x >= 0) & (x <= self.trials) & (x == torch.round(x))

    def check_parameters(self, data_shape: Sequence[int]) -> None:
        """Raise unless numbers of trials and concentrations broadcast over one datum."""
        super().check_parameters(data_shape)
        check_broadcast(self, self.trials.shape, data_shape)


class MultinomialLikelihood(Likelihood):
    r"""Counts of several outcomes along the first dimension of E, given their total.

    .. math:: \log p(x \mid z, n) = \log n! + \sum_c \big(x_c \log \pi_c(z) - \log x_c!\big),
        \qquad \pi = \mathrm{softmax}(\ell), \quad n = \sum_c x_c

    Examples are words of a document, votes, the composition of a sample. Data may have any totals:
    each datum is scored given its own total, which z does not model. Draws and reconstructions need
    a total, ``num_trials``. The encoder's input is log(1 + x).

    Args:
        num_trials: Total of draws and reconstructions, such as the mean total of the data.

    Shape:
        params (logits): ``(..., C, *E')``; x: ``(..., C, *E')``, counts along C.

    References:
        Miao, Yu, Blunsom (2016). Neural Variational Inference for Text Processing.
        arXiv:1511.06038.

    Example:
        >>> p = MultinomialLikelihood(10)(torch.zeros(4), event_ndim=1)
        >>> p.mean, p.log_prob(torch.tensor([1.0, 1.0, 0.0, 0.0]))  # log(2 / 16)
        (tensor([2.5000, 2.5000, 2.5000, 2.5000]), tensor(-2.0794))
    """

    factorizes = False
    alternative = "use PoissonLikelihood, which models each count"
    takes_integers = True
    draws_integers = True
    support = "integers >= 0"
    hint = "pass counts, not shares of their total"

    def __init__(self, num_trials: int) -> None:
        super().__init__()
        if num_trials < 1 or num_trials % 1:
            raise ValueError(
                f"MultinomialLikelihood expects an integer num_trials >= 1, got {num_trials}"
            )
        self.num_trials = int(num_trials)

    def forward(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """Return multinomial distributions with these logits."""
        return Multinomial(params, event_ndim, self.num_trials)

    def num_dims(self, x: Tensor) -> Tensor:
        """Return the number of rows of counts of each example, ``(B,)``."""
        return super().num_dims(x[:, :1])

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return log(1 + x)."""
        return torch.log1p(x)

    def fits_outputs(self, index: int, low: float, high: float, x: Tensor) -> bool:
        """Return True if one bound is missing, because only differences of logits count."""
        return math.isinf(low) or math.isinf(high)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Return log shares of the outcomes, with one half added to each count."""
        counts = x.sum(0) + 0.5
        return torch.log(counts / counts.sum(0))

    def in_support(self, x: Tensor) -> Tensor:
        """Return true for each entry that is an integer of at least zero."""
        return torch.isfinite(x) & (x >= 0) & (x == torch.round(x))
