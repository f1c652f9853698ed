"""What a likelihood is: from a decoder's output to p(x given z)."""

from abc import ABC
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from tinyvae.core.configurable import Configurable
from tinyvae.distributions import Distribution, Independent
from tinyvae.likelihoods.parameters import Positive, one_line


class Likelihood(Configurable, nn.Module, ABC):
    """Makes p(x given z) of a decoder's output.

    A plain one is written by one hook, :meth:`elementwise`. Positive parameters
    (:class:`~tinyvae.likelihoods.Learned`, :class:`~tinyvae.likelihoods.Predicted`) that it has as attributes come after
    the decoder's other parameters, by their logarithms.

    Attributes:
        num_params: Parameters ``P`` per data dimension that the decoder emits.
        is_density: Whether it is a normalized density or mass, without which no bound holds.
        couples_batch: Whether p(x given z) of one example depends on the others of its batch.
        separable: Whether it is a product over data dimensions of what :meth:`scalars` returns, so
            that entries may be left out and others be built on it.
        instead: What to do where it is not, for errors.
        is_table: Whether dimensions are columns of different likelihoods.
        takes_integers: Whether data may have an integer dtype.
        support: Description of the data that have a density, for errors.
        remedy: What to do with others, for errors.
        inside: A number, or one per dimension, in the support: stands for missing entries.
    """

    num_params: int = 1
    is_density: bool = True
    couples_batch: bool = False
    separable: bool = True
    instead: str = "leave the wrapper out"
    is_table: bool = False
    takes_integers: ClassVar[bool] = False
    support: str = "finite numbers"
    remedy: str = "drop or impute them"
    inside: float | Tensor = 0.0

    def elementwise(self, *params: Tensor) -> Distribution:
        """Make a scalar distribution of each element of the parameters ``(*batch, *E)``."""
        raise NotImplementedError(
            f"{type(self).__name__} must define elementwise(*params), which returns a scalar "
            "Distribution of each element"
        )

    def scalars(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """Turn ``(..., P, *E)`` into a scalar distribution of each element, ``(..., *E)``."""
        parts = (params,) if self.num_params == 1 else params.unbind(-event_ndim - 1)
        positives = [child for child in self.children() if isinstance(child, Positive)]
        free = self.num_params - sum(p.num_params for p in positives)
        emitted = iter(parts[free:])
        logs = [
            p(next(emitted) if p.num_params else parts[0], event_ndim, context) for p in positives
        ]
        distribution = self.elementwise(*parts[:free], *logs)
        if not isinstance(distribution, Distribution):
            raise TypeError(
                f"{type(self).__name__}.elementwise must return a tinyvae Distribution, got a "
                f"{type(distribution).__name__}: wrap one of torch's, TorchDistribution(...)"
            )
        return distribution

    def forward(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """Turn ``(..., P, *E)`` into p(x given z) with ``event_shape = E`` of ``event_ndim``."""
        return Independent(self.scalars(params, event_ndim, context), event_ndim)

    def __repr__(self) -> str:
        return one_line(self)

    def param_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """What the decoder must emit for one datum: ``(P, *E)``, or ``E`` where ``P`` is 1."""
        leading = () if self.num_params == 1 else (self.num_params,)
        return torch.Size((*leading, *data_shape))

    def input_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """What the encoder is fed for one datum of ``data_shape``."""
        return torch.Size(data_shape)

    def encoder_input(self, x: Tensor) -> Tensor:
        """Turn data ``(B, *E)`` into what the encoder is fed; an entry that is NaN stays so."""
        return x

    def params_for_mean(self, x: Tensor) -> Tensor:
        """What a decoder that knows no z should emit: its mean is about that of the data.

        Args:
            x: Data ``(N, *E)``; what is NaN is left out.

        Returns:
            Of :meth:`param_shape`. Parameters behind the first one are zero.
        """
        location = self.location(torch.nanmean(x, 0))
        location = torch.where(torch.isnan(location), 0.0, location)  # where nothing was observed
        if self.num_params == 1:
            return location
        rest = location.new_zeros(self.num_params - 1, *location.shape)
        return torch.cat([location.unsqueeze(0), rest])

    def location(self, mean: Tensor) -> Tensor:
        """First parameter, ``(*E)``, of a distribution with ``mean`` ``(*E)``."""
        return mean

    def with_mask(self, x: Tensor, mask: Tensor) -> Tensor:
        """Mark what ``mask`` ``(B, *E)`` leaves out; refused but by :class:`~tinyvae.likelihoods.MaskedLikelihood`."""
        raise ValueError(
            f"{type(self).__name__} got a mask of observed entries, which it does not read: wrap "
            f"it, MaskedLikelihood({type(self).__name__}(...)), or leave the mask out"
        )

    def check_context(self, context: Tensor | None) -> None:
        """Raise unless every parameter that reads the context can."""
        for module in self.modules():
            if isinstance(module, Positive):
                module.check_context(context)

    def in_support(self, x: Tensor) -> Tensor:
        """Whether each entry of ``x`` has a density."""
        return torch.isfinite(x)

    def check_support(self, x: Tensor) -> bool:
        """Raise, with the remedy, unless this likelihood can be fitted to ``x``.

        Returns:
            Whether ``log_prob`` of ``x`` is a log density or mass, without which no bound holds.
        """
        self._check_dtype(x)
        self.check_parameters(x.shape[1:])
        refuse(type(self).__name__, x, ~self.in_support(x), self.support, self.remedy)
        return True

    def check_parameters(self, data_shape: Sequence[int]) -> None:
        """Raise unless what is learned or fixed broadcasts over one datum of ``data_shape``."""
        for child in self.children():
            if isinstance(child, Positive):
                child.check(data_shape)

    def _check_dtype(self, x: Tensor) -> None:
        if not (x.is_floating_point() or self.takes_integers):
            raise TypeError(
                f"{type(self).__name__} expects floating-point data, got {x.dtype}: divide gray "
                "levels by their maximum, or binarize them with "
                "tinyvae.datasets.DynamicBinarization(max_value), which fit takes as transform=; "
                "levels as they are suit CategoricalLikelihood and DiscretizedLogisticLikelihood"
            )


def smoothed_mean(x: Tensor) -> Tensor:
    """Mean of zeros, ones and what lies between, half a one and half a zero added."""
    return (torch.nansum(x, 0) + 0.5) / ((~torch.isnan(x)).sum(0) + 1)


def refuse(name: str, x: Tensor, bad: Tensor, support: str, remedy: str) -> None:
    """Raise, with the first example and the remedy, if any entry of ``x`` is ``bad``."""
    if not bad.any():
        return
    wrong = x[bad].double()
    if torch.isnan(wrong).any():
        got = "NaN"
        remedy = (
            "drop or impute what is missing, or count what is there: MaskedLikelihood(likelihood)"
        )
    else:
        low, high = (bound.item() for bound in torch.aminmax(x.double()))
        got = f"{low:g}..{high:g}, such as {wrong[0].item():g},"
    rows = bad.flatten(1).any(1)
    raise ValueError(
        f"{name} expects {support}, got {got} in {int(rows.sum())} of {len(x)} examples, first in "
        f"example {int(rows.nonzero()[0])}: {remedy}"
    )
