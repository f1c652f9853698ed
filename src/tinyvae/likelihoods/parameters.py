r"""Positive parameters of a likelihood: fixed, learned, or predicted by the decoder.

A scale, a concentration, degrees of freedom: each enters a density by its logarithm, with a smooth
lower bound, :math:`\log v = \log v_{\min} + \mathrm{softplus}(r - \log v_{\min})` of a raw value
:math:`r`, which is :math:`\log v` itself far above the bound.
"""

import inspect
import math
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyvae.core.configurable import Configurable


class Positive(Configurable, nn.Module, ABC):
    """A positive parameter of a likelihood, by its logarithm.

    Attributes:
        num_params: Parameters that the decoder emits for it per data dimension: 0 or 1.
    """

    num_params: int = 0

    @abstractmethod
    def forward(self, raw: Tensor, event_ndim: int, context: Tensor | None = None) -> Tensor:
        """Return its logarithm, broadcastable with ``raw`` ``(*batch, *E)``.

        Args:
            raw: What the decoder emits for it; where it emits nothing, its first parameter, of
                which dtype and device are taken.
            event_ndim: Number of dimensions of E.
            context: What the model is conditioned on, ``(B, ...)``.
        """

    def check(self, data_shape: Sequence[int]) -> None:
        """Raise unless it broadcasts over one datum of ``data_shape``."""

    def check_context(self, context: Tensor | None) -> None:
        """Raise unless it can read the context."""

    def __repr__(self) -> str:
        return one_line(self)


class Fixed(Positive):
    """A number.

    Args:
        value: The number.

    Example:
        >>> StudentTLikelihood(scale=Fixed(0.1), df=Fixed(4.0)).num_params
        1
    """

    def __init__(self, value: float) -> None:
        super().__init__()
        if not 0 < value < math.inf:
            raise ValueError(f"expected a finite number > 0, got {value}")
        self.value = float(value)

    def forward(self, raw: Tensor, event_ndim: int, context: Tensor | None = None) -> Tensor:
        """Return the number's logarithm, 0-d."""
        return raw.new_full((), math.log(self.value))

    def __repr__(self) -> str:
        return repr(self.value)


class Predicted(Positive):
    """Emitted by the decoder, for every dimension of every datum.

    Args:
        minimum: Lower bound. Without one the density of a dimension that hardly varies grows beyond
            all bounds.

    Example:
        >>> GaussianLikelihood(Predicted(minimum=0.01)).param_shape((3, 8, 8))
        torch.Size([2, 3, 8, 8])
    """

    num_params = 1

    def __init__(self, *, minimum: float = 1e-3) -> None:
        super().__init__()
        _check_bounds(minimum)
        self.minimum = minimum

    def forward(self, raw: Tensor, event_ndim: int, context: Tensor | None = None) -> Tensor:
        """Return the bounded logarithm of what the decoder emits."""
        return _bounded(raw, self.minimum)


class Learned(Positive):
    """A parameter of the model, shared by all data, or by all of a class.

    Args:
        shape: Its shape, broadcast over one datum: ``()`` one for all dimensions, ``E`` one for
            each, ``(C, 1, 1)`` one per channel.
        initial: Where it starts. Adam moves its logarithm by about the learning rate per update, so
            start near what you expect, or give it its own rate:
            ``Optimization(learning_rates={"likelihood": 2e-2})``.
        minimum: Lower bound.
        num_classes: One for each class, which the model's context names: by index ``(B,)``, or by
            weights ``(B, num_classes)`` such as a one-hot row, under which logarithms are averaged.

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
        initial: float = 1.0,
        minimum: float = 1e-3,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        _check_bounds(minimum)
        if not minimum < initial < math.inf:
            raise ValueError(
                f"expected a finite initial value above minimum = {minimum}, got {initial}"
            )
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"expected num_classes >= 1 or None, got {num_classes}")
        self.shape = torch.Size(shape)
        self.initial = initial
        self.minimum = minimum
        self.num_classes = num_classes
        classes = () if num_classes is None else (num_classes,)
        raw = math.log(minimum) + math.log(math.expm1(math.log(initial / minimum)))
        self.raw = nn.Parameter(torch.full((*classes, *self.shape), raw))

    def forward(self, raw: Tensor, event_ndim: int, context: Tensor | None = None) -> Tensor:
        """Return the logarithm, of ``shape``, or ``(B, ..., *shape)`` of each datum's class."""
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
                f"(B, {self.num_classes}), got {got}: give it as context="
            )
        rows: Tensor = torch.tensordot(context.to(log_value.dtype), log_value, dims=1)
        return rows

    def check_context(self, context: Tensor | None) -> None:
        """Raise unless the context names classes that there are, or weighs them."""
        if self.num_classes is None:
            return
        self._rows(self.raw, None if context is None else context[:0])
        if context is not None:
            self._check_classes(context, self.num_classes)

    def _check_classes(self, context: Tensor, num_classes: int) -> None:
        if context.dim() == 1:
            good = (context >= 0) & (context < num_classes)
        else:
            good = (context >= 0).all(1) & ((context.sum(1) - 1).abs() < 1e-4)
        if not good.all():
            row = int((~good).nonzero()[0])
            raise ValueError(
                f"{self} expects classes 0 to {num_classes - 1}, or weights >= 0 that sum to "
                f"one, got {context[row].tolist()} in row {row} of the context"
            )

    def check(self, data_shape: Sequence[int]) -> None:
        """Raise unless ``shape`` broadcasts over one datum."""
        require_broadcast(self, self.shape, data_shape)

    def config(self) -> dict[str, Any]:
        """Arguments that build an equal one."""
        return {
            "shape": tuple(self.shape),
            "initial": self.initial,
            "minimum": self.minimum,
            "num_classes": self.num_classes,
        }


PositiveLike: TypeAlias = float | Literal["learned", "predicted"] | Positive


def positive(value: PositiveLike, *, initial: float = 1.0, minimum: float = 1e-3) -> Positive:
    """Make a :class:`Positive` of a number, ``"learned"`` or ``"predicted"``.

    Args:
        value: The number; the word; or a :class:`Positive`, which is returned.
        initial: Where a learned one starts.
        minimum: Lower bound of a learned or predicted one.
    """
    if isinstance(value, Positive):
        return value
    if value == "learned":
        return Learned(initial=initial, minimum=minimum)
    if value == "predicted":
        return Predicted(minimum=minimum)
    if isinstance(value, str):
        raise ValueError(
            f"expected a number, 'learned', 'predicted', Learned(...) or Predicted(...), "
            f"got {value!r}"
        )
    return Fixed(value)


def require_broadcast(owner: object, shape: Sequence[int], data_shape: Sequence[int]) -> None:
    """Raise unless parameters of ``shape`` broadcast over one datum."""
    sizes = zip(reversed(shape), reversed(data_shape), strict=False)
    if len(shape) > len(data_shape) or any(n not in (1, size) for n, size in sizes):
        raise ValueError(
            f"{owner} does not broadcast over data of shape {tuple(data_shape)}: give it one "
            "value, shape (); one per dimension, the data's shape; or one per channel, (C, 1, 1)"
        )


def one_line(part: Any) -> str:
    """``repr`` of a part: what of its ``config()`` is not the default, values cut short."""
    parameters = inspect.signature(type(part)).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    shown = [
        f"{name}={value!r}" if isinstance(value, nn.Module) else f"{name}={reprlib.repr(value)}"
        for name, value in part.config().items()
        if value != defaults.get(name)
    ]
    return f"{type(part).__name__}({', '.join(shown)})"


def _check_bounds(minimum: float) -> None:
    if not 0 < minimum < math.inf:
        raise ValueError(f"expected a finite minimum > 0, got {minimum}")


def _bounded(raw: Tensor, minimum: float) -> Tensor:
    """Smooth lower bound on a logarithm, the identity far above it."""
    least = math.log(minimum)
    return least + F.softplus(raw - least)
