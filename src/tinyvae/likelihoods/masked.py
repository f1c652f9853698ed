"""Likelihood of data with missing values."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyvae.distributions import Distribution, MaskedDistribution
from tinyvae.likelihoods.base import Likelihood
from tinyvae.likelihoods.wrappers import LikelihoodWrapper


class MaskedLikelihood(LikelihoodWrapper):
    r"""A likelihood of the observed entries. Missing entries add no log density and no gradient.

    .. math:: \log p(x_{\text{obs}} \mid z) = \sum_{i \text{ observed}} \log p(x_i \mid z)

    An entry is missing if it is NaN in x or False in the mask (``vae(x, mask=mask)``,
    ``Batch(x, mask=mask)``). This is the likelihood of the observed data if values are missing at
    random: the chance that a value is missing may depend on observed values, but not on the value
    itself. The encoder reads zeros at missing entries.

    Args:
        likelihood: Any likelihood that is a product over data dimensions.
        show_mask: True to append the mask (1 if observed, else 0) to the encoder's input, along the
            first dimension of ``E``.

    Shape:
        params, x: See ``likelihood``. x may hold NaN.

    References:
        Nazabal, Olmos, Ghahramani, Valera (2020). Handling incomplete heterogeneous data using
        VAEs. arXiv:1807.03653. Mattei, Frellsen (2019). MIWAE. arXiv:1812.02633.

    Example:
        >>> p = MaskedLikelihood(GaussianLikelihood(1.0))(torch.zeros(1, 2), event_ndim=1)
        >>> p.log_prob(torch.tensor([[0.0, torch.nan]]))
        tensor([-0.9189])
        >>> MaskedLikelihood(GaussianLikelihood(), show_mask=True).input_shape((3, 8, 8))
        torch.Size([6, 8, 8])
    """

    factorizes = False
    alternative = "put MaskedLikelihood outermost"
    _wraps_tables = True

    def __init__(self, likelihood: Likelihood, *, show_mask: bool = False) -> None:
        super().__init__(likelihood)
        self.show_mask = show_mask

    def factors(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """Return the wrapped likelihood's distributions, which score observed entries only."""
        base = self.likelihood.factors(params, event_ndim, context)
        return MaskedDistribution(base, self._fill_value(params))

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Return the wrapped likelihood's parameters for the mean of the observed entries."""
        return self.likelihood.params_for_mean(x)

    def _fill_value(self, like: Tensor) -> Tensor:
        """Return the value that replaces missing entries, with dtype and device of ``like``."""
        value = self.likelihood.fill_value
        return value.to(like) if isinstance(value, Tensor) else like.new_full((), value)

    def param_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """Return the shape of the wrapped likelihood's parameters."""
        return self.likelihood.param_shape(data_shape)

    def input_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """Return the shape of the encoder's input, which includes the mask if ``show_mask``."""
        shape = self.likelihood.input_shape(data_shape)
        if not self.show_mask:
            return shape
        if len(shape) != len(data_shape):
            raise ValueError(
                "MaskedLikelihood with show_mask=True expects an encoder input with the dimensions "
                f"of the data, got {tuple(shape)} for data of {tuple(data_shape)}: leave it out"
            )
        return torch.Size((shape[0] + data_shape[0], *shape[1:]))

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return the encoder's input, zero at missing entries, and the mask if ``show_mask``."""
        data = self.likelihood.encoder_input(x)
        data = torch.where(torch.isnan(data), 0.0, data)
        return torch.cat([data, (~torch.isnan(x)).to(data.dtype)], 1) if self.show_mask else data

    def with_mask(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return data whose entries are NaN where ``mask`` ``(B, *E)`` is false."""
        if mask.shape != x.shape:
            raise ValueError(
                f"MaskedLikelihood expects a mask of the data's shape {tuple(x.shape)}, got "
                f"{tuple(mask.shape)}: pass one value per entry, true if observed"
            )
        return x.masked_fill(mask != 1, torch.nan)

    def check_support(self, x: Tensor) -> bool:
        """Raise unless the wrapped likelihood can be fitted to the observed entries."""
        if not x.is_floating_point():
            return self.likelihood.check_support(x)
        return self.likelihood.check_support(torch.where(torch.isnan(x), self._fill_value(x), x))
