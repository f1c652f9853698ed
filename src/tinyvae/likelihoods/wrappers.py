"""Likelihoods made of likelihoods: scaled, mixed, zero-inflated, in part observed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyvae.distributions import Affine, Distribution, MaskedDistribution, Mixture, ZeroInflated
from tinyvae.likelihoods.base import Likelihood
from tinyvae.likelihoods.counts import CountLikelihood
from tinyvae.likelihoods.discrete import CategoricalLikelihood
from tinyvae.likelihoods.parameters import require_broadcast


class _Wrapper(Likelihood):
    """A likelihood around another one, whose data it shares."""

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        require_separable(
            likelihood, type(self).__name__, tables=isinstance(self, MaskedLikelihood)
        )
        self.likelihood = likelihood
        self.num_params = likelihood.num_params
        self.takes_integers = likelihood.takes_integers  # type: ignore[misc]
        self.support, self.remedy = likelihood.support, likelihood.remedy

    @property
    def is_density(self) -> bool:  # type: ignore[override]
        """Whether the wrapped one is a density."""
        return self.likelihood.is_density

    @property
    def inside(self) -> float | Tensor:  # type: ignore[override]
        """A value in the support."""
        return self.likelihood.inside

    def input_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """What the encoder is fed, as of the wrapped one."""
        return self.likelihood.input_shape(data_shape)

    def encoder_input(self, x: Tensor) -> Tensor:
        """What the encoder is fed, as of the wrapped one."""
        return self.likelihood.encoder_input(x)

    def check_support(self, x: Tensor) -> bool:
        """Raise unless the wrapped one can be fitted to ``x``."""
        return self.likelihood.check_support(x)

    def check_parameters(self, data_shape: Sequence[int]) -> None:
        """Raise unless the wrapped one's parameters broadcast over one datum."""
        self.likelihood.check_parameters(data_shape)

    def in_support(self, x: Tensor) -> Tensor:
        """Whether each entry has a density."""
        return self.likelihood.in_support(x)


def require_separable(likelihood: Likelihood, name: str, *, tables: bool = False) -> None:
    """Raise unless ``name`` may be built on ``likelihood``."""
    if not isinstance(likelihood, Likelihood):
        raise TypeError(f"{name} expects a likelihood, got a {type(likelihood).__name__}")
    if not likelihood.separable or (likelihood.is_table and not tables):
        raise TypeError(
            f"{name} expects a likelihood that is a product over data dimensions, got "
            f"{type(likelihood).__name__}: {likelihood.instead}"
        )


class StandardizedLikelihood(_Wrapper):
    r"""A likelihood of :math:`y = (x - m) / s`, as one of x: the units of x, the ease of y.

    .. math:: \log p(x \mid z) = \log p_y(y \mid z) - \textstyle\sum_i \log s_i

    Decoder and encoder work with y; data, draws, means and densities are in the units of x.

    Args:
        likelihood: The likelihood of y, of real numbers.
        mean: :math:`m`, a number or numbers that broadcast over one datum.
        std: :math:`s > 0`, likewise.

    Example:
        >>> height = StandardizedLikelihood(GaussianLikelihood(1.0), mean=170.0, std=10.0)
        >>> height(torch.zeros(1), event_ndim=1).mean
        tensor([170.])
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        likelihood: Likelihood,
        mean: float | Sequence[Any] = 0.0,
        std: float | Sequence[Any] = 1.0,
    ) -> None:
        super().__init__(likelihood)
        if likelihood.takes_integers:
            raise TypeError(
                "StandardizedLikelihood expects a likelihood with a density, got "
                f"{type(likelihood).__name__}, whose masses know no units"
            )
        shift, scale = np.asarray(mean, dtype=np.float64), np.asarray(std, dtype=np.float64)
        if not (np.isfinite(shift).all() and np.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError(f"expected finite means and finite std > 0, got {mean} and {std}")
        self.mean, self.std = shift.tolist(), scale.tolist()
        self.register_buffer("shift", torch.tensor(self.mean))
        self.register_buffer("scale", torch.tensor(self.std))

    def scalars(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """The wrapped one's distributions, in the units of x."""
        return Affine(self.likelihood.scalars(params, event_ndim, context), self.shift, self.scale)

    @property
    def inside(self) -> float | Tensor:  # type: ignore[override]
        """A value in the support."""
        return self.shift + self.scale * self.likelihood.inside

    def param_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """What the decoder must emit, as of the wrapped one."""
        return self.likelihood.param_shape(data_shape)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """What the wrapped one makes of y."""
        return self.likelihood.params_for_mean(self._standardized(x))

    def encoder_input(self, x: Tensor) -> Tensor:
        """What the wrapped one makes of y."""
        return self.likelihood.encoder_input(self._standardized(x))

    def check_support(self, x: Tensor) -> bool:
        """Raise unless the wrapped one can be fitted to y."""
        return Likelihood.check_support(self, x)

    def check_parameters(self, data_shape: Sequence[int]) -> None:
        """Raise unless mean and std, and the wrapped one's parameters, broadcast over one datum."""
        super().check_parameters(data_shape)
        for shape in (self.shift.shape, self.scale.shape):
            require_broadcast(self, shape, data_shape)

    def in_support(self, x: Tensor) -> Tensor:
        """Whether each entry has a density."""
        return self.likelihood.in_support(self._standardized(x))

    def _standardized(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class MixtureLikelihood(_Wrapper):
    r"""A mixture, for each data dimension, of several of one likelihood.

    .. math:: p(x \mid z) = \prod_i \sum_m \pi_{i m}(z)\, p_m(x_i \mid z)

    Args:
        likelihood: The likelihood of a component. A learned scale of it is shared by all of them.
        num_components: Number of components ``M``.

    Shape:
        params: ``(..., M * (1 + P), *E)``, the M logits of the weights first; x: ``(..., *E)``.

    Example:
        >>> MixtureLikelihood(GaussianLikelihood("predicted"), 5).param_shape((8,))
        torch.Size([15, 8])
    """

    def __init__(self, likelihood: Likelihood, num_components: int) -> None:
        super().__init__(likelihood)
        if num_components < 2:
            raise ValueError(f"MixtureLikelihood expects num_components >= 2, got {num_components}")
        if isinstance(likelihood, CategoricalLikelihood):
            raise TypeError(
                "MixtureLikelihood got a CategoricalLikelihood, a mixture of which is another one: "
                "use it as it is"
            )
        self.num_components = num_components
        self.num_params = num_components * (1 + likelihood.num_params)

    def scalars(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """Mixtures of the wrapped one's distributions."""
        dim = -event_ndim - 1
        rows = params.unflatten(dim, (-1, self.num_components))  # (..., 1 + P, M, *E)
        logits = rows.select(dim - 1, 0)
        each = rows.narrow(dim - 1, 1, self.likelihood.num_params)
        each = each.squeeze(dim - 1) if self.likelihood.num_params == 1 else each
        components = self.likelihood.scalars(each, event_ndim + 1, context)
        return Mixture(logits, components, dim)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Equal weights, and for every component what the wrapped one has."""
        each = self.likelihood.params_for_mean(x).reshape(-1, 1, *x.shape[1:])
        rows = torch.cat([torch.zeros_like(each[:1]), each])  # (1 + P, 1, *E)
        return rows.repeat_interleave(self.num_components, 1).flatten(0, 1)


class ZeroInflatedLikelihood(_Wrapper):
    r"""Counts with more zeros than their likelihood has: some are not counts at all.

    .. math:: p(x \mid z) = \prod_i \big(\pi_i [x_i = 0] + (1 - \pi_i) p(x_i \mid z)\big)

    Args:
        likelihood: The likelihood of a count.

    Shape:
        params: ``(..., 1 + P, *E)``, the log odds of an extra zero first; x: ``(..., *E)``.

    Example:
        >>> zinb = ZeroInflatedLikelihood(NegativeBinomialLikelihood())
        >>> zinb(torch.zeros(2, 3), event_ndim=1).log_prob(torch.zeros(3))  # 3 log(3/4)
        tensor(-0.8630, grad_fn=<SumBackward1>)
    """

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__(likelihood)
        if not isinstance(likelihood, CountLikelihood):
            raise TypeError(
                "ZeroInflatedLikelihood expects a likelihood of counts, such as "
                f"NegativeBinomialLikelihood(), got {type(likelihood).__name__}"
            )
        self.num_params = 1 + likelihood.num_params

    def scalars(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """Zero-inflated distributions of counts."""
        dim = -event_ndim - 1
        logits, rest = params.select(dim, 0), params.narrow(dim, 1, self.likelihood.num_params)
        rest = rest.squeeze(dim) if self.likelihood.num_params == 1 else rest
        return ZeroInflated(self.likelihood.scalars(rest, event_ndim, context), logits)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Even odds of an extra zero, and counts of twice the mean to make up for them."""
        counts = self.likelihood.params_for_mean(2 * x).reshape(-1, *x.shape[1:])
        return torch.cat([torch.zeros_like(counts[:1]), counts])


class MaskedLikelihood(_Wrapper):
    r"""A likelihood of what was observed: missing entries count nothing, in value and gradient.

    .. math:: \log p(x_{\text{obs}} \mid z) = \sum_{i \text{ observed}} \log p(x_i \mid z)

    An entry is missing where x is NaN, or where a mask beside x is false
    (``vae(x, mask=mask)``, ``Batch(x, mask=mask)``). That is the likelihood of the observed data
    where values are missing at random: whether one is missing may depend on what was observed,
    not on the value itself. The encoder is fed zeros in the place of missing entries.

    Args:
        likelihood: Any likelihood that is a product over data dimensions.
        show_mask: DataSource the encoder also which entries were observed, 0 or 1, behind the data along
            the first dimension of E.

    Shape:
        params, x: as of ``likelihood``; x may hold NaN.

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

    separable = False
    instead = "put MaskedLikelihood outermost"

    def __init__(self, likelihood: Likelihood, *, show_mask: bool = False) -> None:
        super().__init__(likelihood)
        self.show_mask = show_mask

    def scalars(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """The wrapped one's distributions, which count what was observed."""
        return MaskedDistribution(
            self.likelihood.scalars(params, event_ndim, context), self._inside(params)
        )

    def params_for_mean(self, x: Tensor) -> Tensor:
        """As of the wrapped one, of what was observed."""
        return self.likelihood.params_for_mean(x)

    def _inside(self, like: Tensor) -> Tensor:
        inside = self.likelihood.inside
        return inside.to(like) if isinstance(inside, Tensor) else like.new_full((), inside)

    def param_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """What the decoder must emit, as of the wrapped one."""
        return self.likelihood.param_shape(data_shape)

    def input_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """As of the wrapped one; with ``show_mask`` larger by the data's first dimension."""
        shape = self.likelihood.input_shape(data_shape)
        if not self.show_mask:
            return shape
        if len(shape) != len(data_shape):
            raise ValueError(
                f"show_mask=True puts the mask beside what the encoder is fed, but {tuple(shape)} "
                f"and {tuple(data_shape)} have no common dimensions: leave it out"
            )
        return torch.Size((shape[0] + data_shape[0], *shape[1:]))

    def encoder_input(self, x: Tensor) -> Tensor:
        """Zeros in the place of missing entries, and with ``show_mask`` the mask."""
        data = self.likelihood.encoder_input(x)
        data = torch.where(torch.isnan(data), 0.0, data)
        return torch.cat([data, (~torch.isnan(x)).to(data.dtype)], 1) if self.show_mask else data

    def with_mask(self, x: Tensor, mask: Tensor) -> Tensor:
        """Put NaN where ``mask`` ``(B, *E)`` is false."""
        if mask.shape != x.shape:
            raise ValueError(
                f"expected a mask of the data's shape {tuple(x.shape)}, true where observed, got "
                f"{tuple(mask.shape)}"
            )
        return x.masked_fill(mask != 1, torch.nan)

    def check_support(self, x: Tensor) -> bool:
        """Raise unless the wrapped one can be fitted to what was observed."""
        if not x.is_floating_point():
            return self.likelihood.check_support(x)
        return self.likelihood.check_support(torch.where(torch.isnan(x), self._inside(x), x))
