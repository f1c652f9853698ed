r"""Positive parameters of a likelihood: fixed, learned, or predicted by the decoder.

Examples are scales, concentrations and degrees of freedom. A density uses the logarithm of such a
parameter. A raw value :math:`r` gets a smooth lower bound,
:math:`\log v = \log v_{\min} + \mathrm{softplus}(r - \log v_{\min})`. Far above the bound,
:math:`\log v = r`.
"""

import inspect
import math
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyvae.core.configurable import Configurable


class PositiveParameter(Configurable, nn.Module, ABC):
    """A module that returns the logarithm of a positive parameter of a likelihood.

    Attributes:
        num_params: Number of values that the decoder emits for it per data dimension: 0 or 1.
    """

    num_params: int = 0

    @abstractmethod
    def forward(self, raw: Tensor, event_ndim: int, context: Tensor | None = None) -> Tensor:
        """Return the logarithm, broadcastable with ``raw`` ``(*batch, *E)``.

        Args:
            raw: The decoder's output for this parameter. If ``num_params`` is 0, the decoder's
                first parameter, for its dtype and device.
            event_ndim: Number of dimensions of ``E``.
            context: Condition of the model, ``(B, ...)``.
        """

    def check_shape(self, data_shape: Sequence[int]) -> None:
        """Raise unless the parameter broadcasts over one datum of ``data_shape``."""

    def check_context(self, context: Tensor | None) -> None:
        """Raise unless the parameter accepts the context."""

    def __repr__(self) -> str:
        return compact_repr(self)


class Fixed(PositiveParameter):
    """A constant.

    Args:
        value: Value of the constant, finite and positive.

    Example:
        >>> StudentTLikelihood(scale=Fixed(0.1), df=Fixed(4.0)).num_params
        1
    """

    def __init__(self, value: float) -> None:
        super().__init__()
        check_positive("Fixed", "number", value)
        self.value = float(value)

    def forward(self, raw: Tensor, event_ndim: int, context: Tensor | None = None) -> Tensor:
        """Return the logarithm of the constant, 0-d."""
        return raw.new_full((), math.log(self.value))

    def __repr__(self) -> str:
        return repr(self.value)


class Predicted(PositiveParameter):
    """A parameter that the decoder emits for every dimension of every datum.

    Args:
        minimum: Lower bound. It keeps the density of a dimension that hardly varies finite.

    Example:
        >>> GaussianLikelihood(Predicted(minimum=0.01)).param_shape((3, 8, 8))
        torch.Size([2, 3, 8, 8])
    """

    num_params = 1

    def __init__(self, *, minimum: float = 1e-3) -> None:
        super().__init__()
        check_positive("Predicted", "minimum", minimum)
        self.minimum = minimum

    def forward(self, raw: Tensor, event_ndim: int, context: Tensor | None = None) -> Tensor:
        """Return the decoder's output with the lower bound applied."""
        return _bounded(raw, self.minimum)


class Learned(PositiveParameter):
    """A learned parameter that all data share, or all data of a class.

    Args:
        shape: Shape, broadcast over one datum: ``()`` for one value, ``E`` for one value per
            dimension, ``(C, 1, 1)`` for one value per channel.
        initial: Initial value, or values that broadcast to ``shape``. Adam moves the logarithm by
            about the learning rate per update, so start near the expected value, or set its own
            rate: ``Optimization(learning_rates={"likelihood": 2e-2})``.
        minimum: Lower bound.
        num_classes: Number of classes with one value each. The model's context names the class by
            index ``(B,)`` or by weights ``(B, num_classes)``, such as one-hot rows. Weights average
            the logarithms.

    Example:
        >>> per_channel = GaussianLikelihood(Learned((3, 1, 1), initial=0.1))
        >>> per_class = NegativeBinomialLikelihood(Learned((2000,), num_classes=5))
        >>> sum(p.numel() for p in per_class.parameters())
        10000
    """

    def __init__(
        self,
        shape: Sequence[int] = (),
        *,
        initial: float | Sequence[Any] = 1.0,
        minimum: float = 1e-3,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_positive("Learned", "minimum", minimum)
        starts = np.asarray(initial, dtype=np.float64)
        if not ((minimum < starts) & (starts < math.inf)).all():
            raise ValueError(
                f"Learned expects a finite initial value above minimum = {minimum}, got {initial}"
            )
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"Learned expects num_classes >= 1 or None, got {num_classes}")
        self.shape, self.initial = tuple(shape), initial
        self.minimum, self.num_classes = minimum, num_classes
        classes = () if num_classes is None else (num_classes,)
        inverses = [math.log(math.expm1(math.log(v / minimum))) for v in starts.ravel().tolist()]
        raw = torch.tensor([math.log(minimum) + v for v in inverses]).reshape(starts.shape)
        raw = raw.expand((*classes, *self.shape))
        self.raw = nn.Parameter(raw.clone(memory_format=torch.contiguous_format))

    def forward(self, raw: Tensor, event_ndim: int, context: Tensor | None = None) -> Tensor:
        """Return the logarithm, of ``shape``, or with classes ``(B, ..., *shape)``."""
        log_value = _bounded(self.raw, self.minimum)
        if self.num_classes is None:
            return log_value
        rows = self._rows(log_value, context)
        ones = event_ndim - len(self.shape)
        return rows.reshape(len(rows), *[1] * ones, *self.shape)

    def _rows(self, log_value: Tensor, context: Tensor | None) -> Tensor:
        if context is not None and context.dim() == 1 and not context.is_floating_point():
            return log_value[context.long()]
        if context is None or context.dim() != 2 or context.shape[1] != self.num_classes:
            got = "none" if context is None else f"{tuple(context.shape)} of {context.dtype}"
            raise ValueError(
                f"{self} expects a context of class indices (B,) or weights "
                f"(B, {self.num_classes}), got {got}: pass it as context="
            )
        rows: Tensor = torch.tensordot(context.to(log_value.dtype), log_value, dims=1)
        return rows

    def check_context(self, context: Tensor | None) -> None:
        """Raise unless the context holds valid class indices or weights."""
        if self.num_classes is None:
            return
        self._rows(self.raw, None if context is None else context[:0])
        if context is None:
            return
        if context.dim() == 1:
            valid = (context >= 0) & (context < self.num_classes)
        else:
            valid = (context >= 0).all(1) & ((context.sum(1) - 1).abs() < 1e-4)
        if not valid.all():
            row = int((~valid).nonzero()[0])
            raise ValueError(
                f"{self} expects classes 0 to {self.num_classes - 1}, or weights >= 0 that sum to "
                f"one, got {context[row].tolist()} in row {row} of the context"
            )

    def check_shape(self, data_shape: Sequence[int]) -> None:
        """Raise unless ``shape`` broadcasts over one datum."""
        check_broadcast(self, self.shape, data_shape)


PositiveLike: TypeAlias = float | Literal["learned", "predicted"] | PositiveParameter


def as_positive(
    value: PositiveLike, *, initial: float = 1.0, minimum: float = 1e-3
) -> PositiveParameter:
    """Return a :class:`PositiveParameter` for a number, ``"learned"``, ``"predicted"`` or itself.

    ``initial`` and ``minimum`` are those of a learned or predicted parameter.
    """
    if isinstance(value, PositiveParameter):
        return value
    if value == "learned":
        return Learned(initial=initial, minimum=minimum)
    if value == "predicted":
        return Predicted(minimum=minimum)
    if isinstance(value, str):
        raise ValueError(
            "a positive parameter expects a number, 'learned', 'predicted', Learned(...) or "
            f"Predicted(...), got {value!r}"
        )
    return Fixed(value)


def check_broadcast(owner: object, shape: Sequence[int], data_shape: Sequence[int]) -> None:
    """Raise unless parameters of ``shape`` broadcast over one datum."""
    sizes = zip(reversed(shape), reversed(data_shape), strict=False)
    if len(shape) > len(data_shape) or any(n not in (1, size) for n, size in sizes):
        raise ValueError(
            f"{owner} does not broadcast over data of shape {tuple(data_shape)}: use shape () for "
            "one value, the data's shape for one per dimension, or (C, 1, 1) for one per channel"
        )


def compact_repr(part: Any) -> str:
    """Return a one-line ``repr``: arguments of ``config()`` that are not defaults, abbreviated."""
    parameters = inspect.signature(type(part)).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    shown = [
        f"{name}={value!r}" if isinstance(value, nn.Module) else f"{name}={reprlib.repr(value)}"
        for name, value in part.config().items()
        if value != defaults.get(name)
    ]
    return f"{type(part).__name__}({', '.join(shown)})"


def check_positive(owner: str, name: str, value: float) -> None:
    """Raise unless a number is finite and positive."""
    if not 0 < value < math.inf:
        raise ValueError(f"{owner} expects a finite {name} > 0, got {value}")


def _bounded(raw: Tensor, minimum: float) -> Tensor:
    """Return a logarithm with a smooth lower bound. Far above the bound it does not change."""
    lowest = math.log(minimum)
    return lowest + F.softplus(raw - lowest, threshold=40)
