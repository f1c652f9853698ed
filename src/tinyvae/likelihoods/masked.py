"""Likelihood of data with missing values."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tinyvae.distributions import Distribution, Independent, MaskedDistribution
from tinyvae.likelihoods.base import Likelihood
from tinyvae.likelihoods.mechanisms import Mechanism
from tinyvae.likelihoods.wrappers import LikelihoodWrapper


class MaskedLikelihood(LikelihoodWrapper):
    r"""A likelihood of the observed entries. Missing entries add no log density and no gradient.

    .. math:: \log p(x_{\text{obs}} \mid z) = \sum_{i \text{ observed}} \log p(x_i \mid z)

    An entry is missing if it is NaN in x or False in the mask (``vae(x, mask=mask)``,
    ``Batch(x, mask=mask)``). This is the likelihood of the observed data if values are missing at
    random: the chance that a value is missing may depend on observed values, but not on the value
    itself. The encoder reads zeros at missing entries.

    With a ``mechanism``, values may be missing not at random. A datum is then the observed values
    and the mask s, and its log density is :math:`\log p(x_{\text{obs}}, s \mid z)`. Each entry of
    the mask counts as one more dimension. Draws of the model are complete.

    Args:
        likelihood: Any likelihood that is a product over data dimensions.
        show_mask: True to append the mask (1 if observed, else 0) to the encoder's input, along the
            first dimension of ``E``.
        mechanism: p(s given x, z), such as :class:`~tinyvae.likelihoods.SelfMasking`. None ignores
            the mask.

    Shape:
        params, x: See ``likelihood``. x may hold NaN. A mechanism with predicted log odds has one
        more parameter per entry, the last one.

    References:
        Nazabal, Olmos, Ghahramani, Valera (2020). Handling incomplete heterogeneous data using
        VAEs. arXiv:1807.03653. Mattei, Frellsen (2019). MIWAE. arXiv:1812.02633. Ipsen, Mattei,
        Frellsen (2021). not-MIWAE. arXiv:2006.12871.

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

    def __init__(
        self,
        likelihood: Likelihood,
        *,
        show_mask: bool = False,
        mechanism: Mechanism | None = None,
    ) -> None:
        super().__init__(likelihood)
        if not (mechanism is None or isinstance(mechanism, Mechanism)):
            raise TypeError(
                f"MaskedLikelihood expects a mechanism such as SelfMasking(), got {mechanism!r:.80}"
            )
        if mechanism is not None and likelihood.has_bounds:
            raise TypeError(
                "MaskedLikelihood with a mechanism expects exact values, got CensoredLikelihood: "
                "leave the mechanism out"
            )
        self.show_mask = show_mask
        self.mechanism = mechanism
        self.ignores_mask = False
        if not likelihood.is_tabular:
            self.num_params = likelihood.num_params + self._num_log_odds

    @property
    def _num_log_odds(self) -> int:
        return 0 if self.mechanism is None else self.mechanism.num_params

    def factors(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> MaskedDistribution:
        """Return the wrapped likelihood's distributions, which score observed entries only."""
        params, _ = self._split(params, event_ndim)
        base = self.likelihood.factors(params, event_ndim, context)
        return MaskedDistribution(base, self._fill_value(params))

    def forward(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """Return p(observed values given z), with a mechanism p(observed values, mask given z)."""
        factors = self.factors(params, event_ndim, context)
        if self.mechanism is None or self.ignores_mask:
            return Independent(factors, event_ndim)
        _, log_odds = self._split(params, event_ndim)
        joint: Distribution = self.mechanism(factors, event_ndim, log_odds)
        return joint

    def _split(self, params: Tensor, event_ndim: int) -> tuple[Tensor, Tensor | None]:
        """Return the wrapped likelihood's parameters, and the mechanism's if it has any."""
        if not self._num_log_odds:
            return params, None
        if self.likelihood.is_tabular:
            width = params.shape[-1] - len(self._fill_value(params))
            return params[..., :width], params[..., width:]
        dim, count = -event_ndim - 1, self.likelihood.num_params
        rest = params.narrow(dim, 0, count)
        return rest.squeeze(dim) if count == 1 else rest, params.select(dim, count)

    def conditional(self, p: Distribution, x: Tensor) -> Distribution:
        """Return p(x given z, observed values, mask). Only its missing entries count.

        Args:
            p: Value of :meth:`forward`, with a batch that broadcasts with ``B``.
            x: Data ``(B, *E)``, NaN at missing entries.
        """
        if self.mechanism is None or self.ignores_mask:
            return p
        return self.mechanism.conditional(p, x)

    def num_dims(self, x: Tensor) -> Tensor:
        """Return the number of observed entries, with a mechanism also those of the mask."""
        mask = 0 if self.mechanism is None else x[0].numel()
        return self.likelihood.num_dims(x) + mask

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Return the wrapped likelihood's parameters for the mean of the observed entries."""
        params = self.likelihood.params_for_mean(x)
        if not self._num_log_odds:
            return params
        even = x.new_zeros(x.shape[1:])
        if self.likelihood.is_tabular:
            return torch.cat([params, even])
        return torch.cat([params.reshape(-1, *x.shape[1:]), even.unsqueeze(0)])

    def _fill_value(self, like: Tensor) -> Tensor:
        """Return the value that replaces missing entries, with dtype and device of ``like``."""
        value = self.likelihood.fill_value
        return value.to(like) if isinstance(value, Tensor) else like.new_full((), value)

    def param_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """Return the shape of the wrapped likelihood's and the mechanism's parameters."""
        shape = self.likelihood.param_shape(data_shape)
        if not self._num_log_odds:
            return shape
        if self.likelihood.is_tabular:
            return torch.Size((shape.numel() + data_shape[0],))
        return torch.Size((self.num_params, *data_shape))

    def fits_outputs(self, index: int, low: float, high: float, x: Tensor) -> bool:
        """Return True if a parameter may stay in the range. Predicted log odds may not."""
        is_emitted = index >= self.likelihood.num_params
        return not is_emitted and self.likelihood.fits_outputs(index, low, high, x)

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
        if self.mechanism is not None:
            self.mechanism.check_shape(x.shape[1:])
        if not x.is_floating_point():
            return self.likelihood.check_support(x)
        return self.likelihood.check_support(torch.where(torch.isnan(x), self._fill_value(x), x))


@contextmanager
def ignoring_mask(likelihood: Likelihood) -> Iterator[None]:
    """Score observed values only, without the mechanism of a :class:`MaskedLikelihood`, if any.

    Entries are then not observed because somebody left them out, not because the mechanism did.
    """
    if not isinstance(likelihood, MaskedLikelihood):
        yield
        return
    previous = likelihood.ignores_mask
    try:
        likelihood.ignores_mask = True
        yield
    finally:
        likelihood.ignores_mask = previous
