"""Likelihood of values that are known only to lie above, below or between bounds."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyvae.core.keywords import suggest_keywords
from tinyvae.distributions import CensoredDistribution, Distribution, Independent
from tinyvae.likelihoods.base import Likelihood
from tinyvae.likelihoods.wrappers import LikelihoodWrapper


@suggest_keywords
class CensoredLikelihood(LikelihoodWrapper):
    r"""Values that may be known only by bounds: survival times, detection limits, ranges.

    .. math:: p(a, b \mid z) = \prod_i \begin{cases} p(a_i \mid z) & a_i = b_i \\
        P(a_i \le x_i \le b_i \mid z) & a_i < b_i \end{cases}

    Data are pairs along a last dimension, ``torch.stack((low, high), -1)``:

    ===================  ===========================================================================
    pair                 meaning
    ===================  ===========================================================================
    ``(3.5, 3.5)``       exactly 3.5
    ``(3.5, inf)``       3.5 or more, such as a patient who left the study then
    ``(-inf, 3.5)``      3.5 or less, such as a concentration below the detection limit
    ``(3.5, 4.5)``       between, such as a rounded value
    ``(-inf, inf)``      unknown
    ===================  ===========================================================================

    The bounds must say nothing else about the value (independent censoring). The encoder reads the
    exact value, the only finite bound, or the middle between two (zero if there is none), then
    along its first dimension two flags per value: whether the lower and the upper bound are finite.
    Draws and reconstructions are exact values, pairs with equal bounds.

    NaN is missing inside :class:`~tinyvae.likelihoods.MaskedLikelihood`, which needs no
    ``show_mask``, because both flags of a missing value are zero. Masses of intervals and densities
    of exact values enter one bound, as usual in survival analysis. Columns of a
    :class:`~tinyvae.likelihoods.MixedLikelihood` are single numbers, so it does not take pairs.

    Args:
        likelihood: Likelihood of the value: Gaussian, Laplace, log-normal, Bernoulli or
            categorical, or these in :class:`~tinyvae.likelihoods.StandardizedLikelihood` or
            :class:`~tinyvae.likelihoods.MixtureLikelihood`.

    Shape:
        params: those of ``likelihood`` for data ``E``; x: ``(..., *E, 2)``.

    References:
        Tobin (1958). Estimation of Relationships for Limited Dependent Variables. Econometrica 26.

    Example:
        >>> survival = CensoredLikelihood(LogNormalLikelihood(1.0))
        >>> p = survival(torch.zeros(2), event_ndim=1)
        >>> p.log_prob(torch.tensor([[1.0, 1.0], [1.0, torch.inf]]))  # log density + log(1/2)
        tensor(-1.6121)
        >>> survival.input_shape((4, 2)), survival.param_shape((4, 2))
        (torch.Size([12]), torch.Size([4]))
    """

    alternative = "put it outside of the others, and MaskedLikelihood outermost"
    has_bounds = True

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__(likelihood)
        self.takes_integers = False  # type: ignore[misc]
        self.support = f"pairs low <= high of {likelihood.support}"
        self.hint = (
            "give equal bounds for an exact value, and minus infinity or infinity for no bound"
        )

    def factors(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> CensoredDistribution:
        """Return distributions of pairs from the wrapped likelihood's parameters."""
        base = self.likelihood.factors(params, event_ndim, context)
        inside = self.likelihood.fill_value
        inside = inside.to(params) if isinstance(inside, Tensor) else params.new_full((), inside)
        return CensoredDistribution(base, inside)

    def forward(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """Return p(pairs given z); ``E`` has ``event_ndim`` dimensions without that of the pair."""
        return Independent(self.factors(params, event_ndim, context), event_ndim)

    @property
    def fill_value(self) -> float | Tensor:  # type: ignore[override]
        """A value in the support, which both bounds may have."""
        value = self.likelihood.fill_value
        return value.unsqueeze(-1) if isinstance(value, Tensor) else value

    def num_dims(self, x: Tensor) -> Tensor:
        """Return the number of pairs of each example that are not missing, ``(B,)``."""
        return super().num_dims(x) // 2

    def param_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """Return the shape of the wrapped likelihood's parameters for data ``(*E, 2)``."""
        return self.likelihood.param_shape(self._value_shape(data_shape))

    def input_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """Return the shape of the encoder's input: the wrapped likelihood's, and two flags."""
        value_shape = self._value_shape(data_shape)
        shape = self.likelihood.input_shape(value_shape)
        if len(shape) != len(value_shape):
            raise ValueError(
                "CensoredLikelihood expects an encoder input with the dimensions of the values, "
                f"got {tuple(shape)} for values of {tuple(value_shape)}: use ordered classes"
            )
        return torch.Size((shape[0] + 2 * value_shape[0], *shape[1:]))

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return the wrapped likelihood's input at the exact or middle value, and both flags."""
        value = self._middle(x)
        is_unknown = torch.isinf(x).all(-1)
        inner = self.likelihood.encoder_input(value.masked_fill(is_unknown, torch.nan))
        is_finite = torch.isfinite(x) & ~torch.isnan(value).unsqueeze(-1)
        flags = is_finite.to(inner.dtype).unbind(-1)
        # NaN marks missing values. Unknown ones are zeros.
        inner = torch.where(torch.isnan(inner) & is_unknown, 0.0, inner)
        return torch.cat([inner, *flags], 1)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Return the wrapped likelihood's parameters for the mean of exact and middle values."""
        return self.likelihood.params_for_mean(self._middle(x))

    def in_support(self, x: Tensor) -> Tensor:
        """Return true for both numbers of each pair that has a density or a mass."""
        low, high = x.unbind(-1)
        is_ordered = (low < high) | ((low == high) & torch.isfinite(low))
        valid = is_ordered & self.likelihood.in_support(self._middle(x))
        return valid.unsqueeze(-1).expand(x.shape)

    def check_support(self, x: Tensor) -> bool:
        """Raise unless all pairs have a density or a mass."""
        return Likelihood.check_support(self, x)

    def check_parameters(self, data_shape: Sequence[int]) -> None:
        """Raise unless the wrapped likelihood's parameters broadcast over the values."""
        self.likelihood.check_parameters(self._value_shape(data_shape))

    def _middle(self, x: Tensor) -> Tensor:
        """Return the exact value, the finite bound, the middle, or a value in the support."""
        low, high = x.unbind(-1)
        inside = self.likelihood.fill_value
        inside = inside.to(x) if isinstance(inside, Tensor) else x.new_full((), inside)
        low = torch.where(torch.isinf(low), high, low)
        high = torch.where(torch.isinf(high), low, high)
        return torch.where(torch.isinf(low), inside, low / 2 + high / 2)

    def _inner(self, x: Tensor) -> Tensor:
        """Return the exact values, NaN where there are bounds."""
        low, high = x.unbind(-1)
        return low.masked_fill(low != high, torch.nan)

    def _value_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """Return the shape of the values of data ``(*E, 2)``."""
        if len(data_shape) < 2 or data_shape[-1] != 2:
            raise ValueError(
                "CensoredLikelihood expects data (N, *E, 2) of pairs of bounds, got data of shape "
                f"{tuple(data_shape)}: give torch.stack((low, high), -1)"
            )
        return torch.Size(data_shape[:-1])
