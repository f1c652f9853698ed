"""Base class of likelihoods."""

import inspect
from abc import ABC
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tinyvae.core.configurable import Configurable
from tinyvae.distributions import Distribution, Independent
from tinyvae.likelihoods.parameters import PositiveParameter, compact_repr
from tinyvae.likelihoods.spikes import warn_of_repeats


class Likelihood(Configurable, nn.Module, ABC):
    """A module that turns a decoder's output into p(x given z).

    A simple likelihood defines one hook, :meth:`elementwise`. If it has positive parameters
    (:class:`~tinyvae.likelihoods.Learned`, :class:`~tinyvae.likelihoods.Predicted`) as attributes,
    the hook receives their logarithms after the decoder's other parameters.

    Attributes:
        num_params: Number ``P`` of parameters that the decoder emits per data dimension.
        is_density: True if it is a normalized density or mass, which a bound needs.
        couples_batch: True if p(x given z) of one example depends on other examples of its batch,
            in the mode that the likelihood is in.
        factorizes: True if it is the product of the distributions that :meth:`factors` returns, one
            per data dimension. Only then can entries be masked and can other likelihoods wrap it.
        alternative: Advice for errors if it does not factorize.
        has_location: True if the decoder's first parameter has the units of the encoder's input.
        is_tabular: True if dimensions are columns with different likelihoods.
        has_point_masses: True if single values have masses and all others a density.
        takes_integers: True if data may have an integer dtype.
        draws_integers: True if a model's draws are int64: classes, levels, counts.
        centers_are_integers: True if a model's reconstructions are int64: unordered classes.
        support: Description of the data that have a density, for errors.
        hint: Advice for errors if data are outside the support.
        fill_value: A value in the support, one number or one per dimension, that replaces missing
            entries.
    """

    num_params: int = 1
    is_density: bool = True
    couples_batch: bool = False
    factorizes: bool = True
    alternative: str = "leave the wrapper out"
    has_location: bool = False
    is_tabular: bool = False
    has_point_masses: bool = False
    takes_integers: ClassVar[bool] = False
    draws_integers: bool = False
    centers_are_integers: bool = False
    support: str = "finite numbers"
    hint: str = "drop or impute them"
    fill_value: float | Tensor = 0.0

    # Type checkers accept any signature in place of this one, such as (self, loc, log_scale).
    def elementwise(self, *params: Any, **_: Any) -> Distribution:
        """Return a scalar distribution for each element of the parameters ``(*batch, *E)``."""
        raise NotImplementedError(
            f"{type(self).__name__} must define elementwise(*params), which returns a scalar "
            "Distribution of each element"
        )

    def factors(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """Return a scalar distribution for each element, ``(..., *E)``, from ``(..., P, *E)``."""
        parts = (params,) if self.num_params == 1 else params.unbind(-event_ndim - 1)
        positives = self._positives()
        num_free = self.num_params - sum(p.num_params for p in positives)
        emitted = iter(parts[num_free:])
        logs = [
            p(next(emitted) if p.num_params else parts[0], event_ndim, context) for p in positives
        ]
        try:
            distribution = self.elementwise(*parts[:num_free], *logs)
        except TypeError as error:
            self._check_arguments(num_free, len(logs), error)
            raise
        if not isinstance(distribution, Distribution):
            raise TypeError(
                f"{type(self).__name__}.elementwise must return a tinyvae Distribution, got a "
                f"{type(distribution).__name__}: wrap one of torch's, TorchDistribution(...)"
            )
        return distribution

    def forward(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """Return p(x given z) for parameters ``(..., P, *E)``; ``E`` has ``event_ndim`` dimensions.

        Args:
            params: The decoder's output.
            event_ndim: Number of dimensions of ``E``.
            context: Condition of the model, ``(B, ...)``.
        """
        return Independent(self.factors(params, event_ndim, context), event_ndim)

    def update_statistics(self, distribution: Distribution, x: Tensor) -> None:
        """Update running statistics with a batch. The default has none.

        A model calls it in each forward pass. Implementations act in training mode only.

        Args:
            distribution: Value of :meth:`forward` for this batch.
            x: Data ``(B, *E)``.
        """

    def __repr__(self) -> str:
        return compact_repr(self)

    def num_dims(self, x: Tensor) -> Tensor:
        """Return the number of observed dimensions of each example, ``(B,)``.

        One dimension is one variable: an entry that is not NaN, or a one-hot row.
        """
        return (~torch.isnan(x)).flatten(1).sum(1)

    def param_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """Return the decoder's output shape for one datum: ``(P, *E)``, or ``E`` if ``P`` is 1."""
        leading = () if self.num_params == 1 else (self.num_params,)
        return torch.Size((*leading, *data_shape))

    def input_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """Return the shape of the encoder's input for one datum of ``data_shape``."""
        return torch.Size(data_shape)

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return the encoder's input for data ``(B, *E)``. NaN entries stay NaN."""
        return x

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Return parameters whose distribution has about the mean of the data.

        They are the best output of a decoder that ignores z.

        Args:
            x: Data ``(N, *E)``. NaN entries are ignored.

        Returns:
            Parameters of :meth:`param_shape`. All but the first are zero.
        """
        first = self.param_for_mean(torch.nanmean(x, 0))
        first = torch.where(torch.isnan(first), 0.0, first)  # dimensions without observed values
        if self.num_params == 1:
            return first
        rest = first.new_zeros(self.num_params - 1, *first.shape)
        return torch.cat([first.unsqueeze(0), rest])

    def param_for_mean(self, mean: Tensor) -> Tensor:
        """Return the first parameter, ``(*E)``, of a distribution with this mean, ``(*E)``."""
        return mean

    def values_of(self, p: Distribution, *, center: bool) -> Tensor:
        """Return the center or a draw of p(x given z), int64 if it holds classes or counts."""
        values = p.point_estimate() if center else p.sample()
        is_integer = self.centers_are_integers if center else self.draws_integers
        return values.long() if is_integer else values

    def with_mask(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return data whose entries are NaN where ``mask`` ``(B, *E)`` is false.

        Raises:
            ValueError: Always, except in :class:`~tinyvae.likelihoods.MaskedLikelihood`.
        """
        raise ValueError(
            f"{type(self).__name__} got a mask of observed entries, which it does not read: wrap "
            f"it, MaskedLikelihood({type(self).__name__}(...)), or leave the mask out"
        )

    def check_context(self, context: Tensor | None) -> None:
        """Raise unless every parameter that reads the context accepts it."""
        for module in self.modules():
            if isinstance(module, PositiveParameter):
                module.check_context(context)

    def in_support(self, x: Tensor) -> Tensor:
        """Return a boolean tensor, true for each entry of ``x`` that has a density."""
        return torch.isfinite(x)

    def check_support(self, x: Tensor) -> bool:
        """Raise, with a hint, unless this likelihood can be fitted to ``x``.

        Returns:
            True if ``log_prob`` of ``x`` is a log density or mass, which a bound needs.
        """
        self._check_dtype(x)
        self.check_parameters(x.shape[1:])
        check_values(type(self).__name__, x, ~self.in_support(x), self.support, self.hint)
        return True

    def fits_outputs(self, index: int, low: float, high: float, x: Tensor) -> bool:
        """Return True if a decoder may keep its parameter ``index`` within ``[low, high]``.

        By default a location may stay in the range of the data ``x`` ``(B, *E)``. Every other
        parameter is a logit or a logarithm, which may be any real number.
        """
        if index or not self.has_location:
            return False
        inputs = self.encoder_input(x)
        inputs = inputs[~torch.isnan(inputs)]
        return bool(((inputs >= low) & (inputs <= high)).all())

    def warn_of_spikes(self, x: Tensor) -> None:
        """Warn if many values of ``x`` ``(B, *E)`` are equal where the density is unbounded.

        ``fit`` calls it before the first step.
        """
        if not self.takes_integers:
            warn_of_repeats(type(self).__name__, next(iter(self._positives()), None), x)

    def check_parameters(self, data_shape: Sequence[int]) -> None:
        """Raise unless the likelihood's own parameters broadcast over one datum."""
        for parameter in self._positives():
            parameter.check_shape(data_shape)

    def _positives(self) -> list[PositiveParameter]:
        return [child for child in self.children() if isinstance(child, PositiveParameter)]

    def _check_arguments(self, num_free: int, num_logs: int, error: TypeError) -> None:
        """Raise with advice if :meth:`elementwise` takes another number of arguments."""
        signature = inspect.signature(self.elementwise)
        try:
            signature.bind(*range(num_free + num_logs))
        except TypeError:
            raise TypeError(
                f"{type(self).__name__}.elementwise expects {signature}, got {num_free} parameters "
                f"of the decoder and {num_logs} logarithms of positive parameters: set num_params "
                "to the number of the decoder's own parameters, plus the num_params of each "
                "positive parameter, such as 1 + self.scale.num_params"
            ) from error

    def _check_dtype(self, x: Tensor) -> None:
        if not (x.is_floating_point() or self.takes_integers):
            raise TypeError(
                f"{type(self).__name__} expects floating-point data, got {x.dtype}: for gray "
                "levels use DiscretizedLogisticLikelihood(num_levels), or BernoulliLikelihood with "
                "fit's transform=tinyvae.datasets.DynamicBinarization(max_value); convert other "
                "integers, x.float()"
            )


def smoothed_mean(x: Tensor) -> Tensor:
    """Return the mean of values in [0, 1] over the first dimension, with one value of 0.5 added.

    NaN entries are ignored.
    """
    return (torch.nansum(x, 0) + 0.5) / ((~torch.isnan(x)).sum(0) + 1)


def check_values(name: str, x: Tensor, bad: Tensor, support: str, hint: str) -> None:
    """Raise, with the first bad example and a hint, if any entry of ``x`` is ``bad``."""
    if not bad.any():
        return
    bad_values = x[bad].cpu().double()
    if torch.isnan(bad_values).any():
        got = "NaN"
        hint = "drop or impute missing values, or mask them: MaskedLikelihood(likelihood)"
    else:
        low, high = (bound.item() for bound in torch.aminmax(x.cpu().double()))
        got = f"{low:g}..{high:g}, such as {bad_values[0].item():g},"
    rows = bad.flatten(1).any(1)
    raise ValueError(
        f"{name} expects {support}, got {got} in {int(rows.sum())} of {len(x)} examples, first in "
        f"example {int(rows.nonzero()[0])}: {hint}"
    )
