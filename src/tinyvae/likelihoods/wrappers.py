"""Likelihoods that wrap another likelihood: standardized, mixture, zero-inflated."""

import math
from abc import ABC
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyvae.core.data import spread_rows
from tinyvae.core.module_state import ExactBuffers
from tinyvae.distributions import Affine, Distribution, Mixture, ZeroInflated
from tinyvae.likelihoods.base import Likelihood
from tinyvae.likelihoods.clusters import cluster_indices
from tinyvae.likelihoods.counts import CountLikelihood
from tinyvae.likelihoods.discrete import CategoricalLikelihood
from tinyvae.likelihoods.parameters import check_broadcast


class LikelihoodWrapper(Likelihood, ABC):
    """Base class of likelihoods that wrap another one for the same data."""

    _wraps_tables = False

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        check_factorizes(likelihood, type(self).__name__, allow_tables=self._wraps_tables)
        self.likelihood = likelihood
        self.num_params = likelihood.num_params
        self.takes_integers = likelihood.takes_integers  # type: ignore[misc]
        self.draws_integers = likelihood.draws_integers
        self.centers_are_integers = likelihood.centers_are_integers
        self.support, self.hint = likelihood.support, likelihood.hint
        self.has_location = likelihood.has_location
        self.has_point_masses = likelihood.has_point_masses

    @property
    def is_density(self) -> bool:  # type: ignore[override]
        """True if the wrapped likelihood is a density."""
        return self.likelihood.is_density

    @property
    def fill_value(self) -> float | Tensor:  # type: ignore[override]
        """A value in the support of the wrapped likelihood."""
        return self.likelihood.fill_value

    def input_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """Return the shape of the wrapped likelihood's encoder input."""
        return self.likelihood.input_shape(data_shape)

    def _inner(self, x: Tensor) -> Tensor:
        """Return the data of the wrapped likelihood."""
        return x

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return the wrapped likelihood's encoder input."""
        return self.likelihood.encoder_input(self._inner(x))

    def check_support(self, x: Tensor) -> bool:
        """Raise unless the wrapped likelihood can be fitted to ``x``."""
        return self.likelihood.check_support(x)

    def fits_outputs(self, index: int, low: float, high: float, x: Tensor) -> bool:
        """Return True if the wrapped likelihood's parameter may stay within ``[low, high]``."""
        return self.likelihood.fits_outputs(index, low, high, self._inner(x))

    def warn_of_spikes(self, x: Tensor) -> None:
        """Warn if the wrapped likelihood's density is unbounded at many values of ``x``."""
        self.likelihood.warn_of_spikes(self._inner(x))

    def check_parameters(self, data_shape: Sequence[int]) -> None:
        """Raise unless the wrapped likelihood's parameters broadcast over one datum."""
        self.likelihood.check_parameters(data_shape)

    def in_support(self, x: Tensor) -> Tensor:
        """Return true for each entry in the support of the wrapped likelihood."""
        return self.likelihood.in_support(self._inner(x))


def check_factorizes(likelihood: Likelihood, name: str, *, allow_tables: bool = False) -> None:
    """Raise unless ``likelihood`` is a product over data dimensions, which ``name`` requires."""
    if not isinstance(likelihood, Likelihood):
        raise TypeError(f"{name} expects a likelihood, got a {type(likelihood).__name__}")
    if not likelihood.factorizes or (likelihood.is_tabular and not allow_tables):
        raise TypeError(
            f"{name} expects a likelihood that is a product over data dimensions, got "
            f"{type(likelihood).__name__}: {likelihood.alternative}"
        )


class StandardizedLikelihood(ExactBuffers, LikelihoodWrapper):
    r"""A likelihood of x that models the standardized data :math:`y = (x - m) / s`.

    .. math:: \log p(x \mid z) = \log p_y(y \mid z) - \textstyle\sum_i \log s_i

    Decoder and encoder work with y. Data, draws, means and densities are in the units of x.

    Args:
        likelihood: Likelihood of y, with a density.
        mean: :math:`m`, one number or numbers that broadcast over one datum.
        std: :math:`s > 0`, one number or numbers that broadcast over one datum.

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
        *,
        mean: float | Sequence[Any] = 0.0,
        std: float | Sequence[Any] = 1.0,
    ) -> None:
        super().__init__(likelihood)
        if likelihood.takes_integers:
            raise TypeError(
                "StandardizedLikelihood expects a likelihood with a density, got "
                f"{type(likelihood).__name__}: masses have no units, so leave the wrapper out"
            )
        if likelihood.has_point_masses:
            raise TypeError(
                "StandardizedLikelihood expects a likelihood with a density at all values, got "
                f"{type(likelihood).__name__}: standardize inside it, with points in units of the "
                "data, HurdleLikelihood(StandardizedLikelihood(...), at=0.0)"
            )
        shift, scale = np.asarray(mean, dtype=np.float64), np.asarray(std, dtype=np.float64)
        if not (np.isfinite(shift).all() and np.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError(
                f"StandardizedLikelihood expects finite means and finite std > 0, got {mean} and "
                f"{std}: leave out constant columns, std = 0, and take the mean and std of the "
                "observed values if some are missing"
            )
        self.mean, self.std = shift.tolist(), scale.tolist()
        self.register_constant("shift", self.mean)
        self.register_constant("scale", self.std)

    def factors(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """Return the wrapped likelihood's distributions in the units of x."""
        return Affine(self.likelihood.factors(params, event_ndim, context), self.shift, self.scale)

    @property
    def fill_value(self) -> float | Tensor:  # type: ignore[override]
        """A value in the support, in the units of x."""
        return self.shift + self.scale * self.likelihood.fill_value

    def param_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """Return the shape of the wrapped likelihood's parameters."""
        return self.likelihood.param_shape(data_shape)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Return the wrapped likelihood's parameters for the mean of y."""
        return self.likelihood.params_for_mean(self._inner(x))

    def check_support(self, x: Tensor) -> bool:
        """Raise unless the wrapped likelihood can be fitted to y."""
        return Likelihood.check_support(self, x)

    def check_parameters(self, data_shape: Sequence[int]) -> None:
        """Raise unless mean, std and the wrapped parameters broadcast over one datum."""
        super().check_parameters(data_shape)
        for shape in (self.shift.shape, self.scale.shape):
            check_broadcast(self, shape, data_shape)

    def _inner(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class MixtureLikelihood(LikelihoodWrapper):
    r"""A mixture of several components of one likelihood, for each data dimension.

    .. math:: p(x \mid z) = \prod_i \sum_m \pi_{i m}(z)\, p_m(x_i \mid z)

    Components that start equal get equal gradients, so a mixture should start from the data:
    ``vae.init_output_bias(x)`` starts the components of each dimension from clusters of its values,
    with their shares as weights. A learned scale should start at the width of a cluster:
    ``Learned(initial=within_cluster_std(x, M).mean().item())``, see
    :func:`~tinyvae.likelihoods.within_cluster_std`.

    Args:
        likelihood: Likelihood of a component. All components share its learned scale.
        num_components: Number of components ``M``.

    Shape:
        params: ``(..., M * (1 + P), *E)``, the M logits of the weights first; x: ``(..., *E)``.

    Example:
        >>> MixtureLikelihood(GaussianLikelihood("predicted"), num_components=5).param_shape((8,))
        torch.Size([15, 8])
    """

    def __init__(self, likelihood: Likelihood, *, num_components: int) -> None:
        super().__init__(likelihood)
        if num_components < 2:
            raise ValueError(f"MixtureLikelihood expects num_components >= 2, got {num_components}")
        if isinstance(likelihood, CategoricalLikelihood):
            raise TypeError(
                "MixtureLikelihood expects any likelihood but CategoricalLikelihood, whose mixture "
                "is another CategoricalLikelihood: use CategoricalLikelihood alone"
            )
        self.num_components = num_components
        self.num_params = num_components * (1 + likelihood.num_params)
        self.has_location = False  # weights come first

    def factors(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """Return mixtures of the wrapped likelihood's distributions."""
        dim = -event_ndim - 1
        rows = params.unflatten(dim, (-1, self.num_components))  # (..., 1 + P, M, *E)
        logits = rows.select(dim - 1, 0)
        each = rows.narrow(dim - 1, 1, self.likelihood.num_params)
        each = each.squeeze(dim - 1) if self.likelihood.num_params == 1 else each
        components = self.likelihood.factors(each, event_ndim + 1, context)
        return Mixture(logits, components, dim)

    def fits_outputs(self, index: int, low: float, high: float, x: Tensor) -> bool:
        """Return True if parameter ``index`` of a component may stay within ``[low, high]``."""
        part = index // self.num_components
        if part == 0:  # weights
            return math.isinf(low) or math.isinf(high)
        return self.likelihood.fits_outputs(part - 1, low, high, x)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Return weights and parameters of components that fit clusters of each dimension.

        A component without values of its own has the parameters of all values. They are computed
        from at most 10,000 examples.
        """
        x = spread_rows(x)
        inputs = self.likelihood.encoder_input(x)  # logarithms of amounts
        index = cluster_indices(inputs if inputs.shape == x.shape else x, self.num_components)
        whole = self.likelihood.params_for_mean(x).reshape(-1, *x.shape[1:])  # (P, *E)
        total, components = (~torch.isnan(x)).sum(0).clamp(min=1), []
        for component in range(self.num_components):
            values = x.masked_fill(index != component, torch.nan)
            count = (~torch.isnan(values)).sum(0)
            each = self.likelihood.params_for_mean(values).reshape(-1, *x.shape[1:])
            log_share = torch.log(count.clamp(min=1) / total).to(each.dtype)
            components.append(torch.cat([log_share[None], torch.where(count > 0, each, whole)]))
        rows = torch.stack(components, 1)  # (1 + P, M, *E)
        return rows.flatten(0, 1)


class ZeroInflatedLikelihood(LikelihoodWrapper):
    r"""Counts with extra zeros: with some probability an entry is zero instead of a count.

    .. math:: p(x \mid z) = \prod_i \big(\pi_i [x_i = 0] + (1 - \pi_i) p(x_i \mid z)\big)

    Args:
        likelihood: Likelihood of a count.

    Shape:
        params: ``(..., 1 + P, *E)``, starting with the log odds of an extra zero; x: ``(..., *E)``.

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

    def factors(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """Return zero-inflated distributions of counts."""
        dim = -event_ndim - 1
        logits, rest = params.select(dim, 0), params.narrow(dim, 1, self.likelihood.num_params)
        rest = rest.squeeze(dim) if self.likelihood.num_params == 1 else rest
        return ZeroInflated(self.likelihood.factors(rest, event_ndim, context), logits)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Return even odds of an extra zero, and parameters for twice the mean to compensate."""
        counts = self.likelihood.params_for_mean(2 * x).reshape(-1, *x.shape[1:])
        return torch.cat([torch.zeros_like(counts[:1]), counts])
