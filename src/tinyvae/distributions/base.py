"""What a distribution is, many of one as one event, and the border to ``torch.distributions``."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Generic, TypeVar

import torch
from torch import Tensor

Known = TypeVar("Known")


class Distribution(ABC):
    """A (batch of) probability distribution(s).

    Attributes:
        batch_shape: Shape of the batch of distributions.
        event_shape: Shape of one draw.
        has_rsample: Whether draws carry gradients to the parameters (reparameterization).
        is_mixed: Whether a part of each draw does, and a part does not.
        is_density: Whether ``log_prob`` is the logarithm of a normalized density or mass.
        is_discrete: Whether ``log_prob`` is a mass, which has no unit, and no density; None where
            it is a mass of some dimensions and a density of others.
        depends_on_parameters: Whether ``log_prob`` hangs on parameters at all.
        space: What its values are. A log q - log p of different spaces means nothing.
        losses: What training has to add to its loss for parameters that no density depends on, by
            name, ``(*batch)``.
        metrics: What to report beside, by name, 0-d.
    """

    batch_shape: torch.Size
    event_shape: torch.Size = torch.Size()
    has_rsample: bool = True
    is_mixed: bool = False
    is_density: bool = True
    is_discrete: bool | None = False
    depends_on_parameters: bool = True
    space: str = "reals"
    losses: Mapping[str, Tensor] = MappingProxyType({})
    metrics: Mapping[str, Tensor] = MappingProxyType({})

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Expected value, ``(*batch, *event)``; NaN where it has no closed form, or is none."""

    @abstractmethod
    def log_prob(self, value: Tensor) -> Tensor:
        """Log density or mass of ``value`` ``(*S, *batch, *event)``, as ``(*S, *batch)``, nats."""

    @abstractmethod
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw ``(*sample_shape, *batch, *event)``, with gradients where ``has_rsample``."""

    def summed_log_prob(self, value: Tensor, ndim: int) -> Tensor:
        """Log density or mass, summed over the last ``ndim`` batch dimensions, nats."""
        return sum_last(self.log_prob(value), ndim)

    def elementwise_log_prob(self, value: Tensor) -> Tensor:
        """Log density of each element of ``value``, ``(*S, *batch, *event)``, nats.

        Raises:
            TypeError: If the elements are not independent.
        """
        raise TypeError(f"{self} is no product over the elements of an event")

    def center(self, weights: Tensor | None = None) -> Tensor:
        """One value in place of the distribution: its mean, or its most probable class.

        Args:
            weights: ``(K, *batch[1:])``, sums to one over ``K``: the first batch dimension is
                pooled, as a mixture with these weights.

        Returns:
            ``(*batch, *event)``, or ``(*batch[1:], *event)`` with weights.
        """
        return pooled(self.mean, weights)

    def _shape(self, sample_shape: Sequence[int]) -> torch.Size:
        """Shape of draws."""
        return torch.Size(sample_shape) + self.batch_shape + self.event_shape

    def __repr__(self) -> str:
        batch, event = tuple(self.batch_shape), tuple(self.event_shape)
        return f"{type(self).__name__}(batch_shape={batch}, event_shape={event})"


class Wrapper(Distribution):
    """A distribution around another one, by default the same in all respects.

    Args:
        base: The other one.
    """

    def __init__(self, base: Distribution) -> None:
        self.base = base
        self.batch_shape = base.batch_shape
        self.event_shape = base.event_shape
        self.has_rsample, self.is_mixed = base.has_rsample, base.is_mixed
        self.is_density = base.is_density
        self.is_discrete = base.is_discrete
        self.space = base.space
        self.depends_on_parameters = base.depends_on_parameters
        self.losses, self.metrics = base.losses, base.metrics

    @property
    def mean(self) -> Tensor:
        """Expected value, ``(*batch, *event)``."""
        return self.base.mean

    def center(self, weights: Tensor | None = None) -> Tensor:
        """Center of the wrapped one."""
        return self.base.center(weights)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density or mass, nats."""
        return self.base.log_prob(value)

    def elementwise_log_prob(self, value: Tensor) -> Tensor:
        """Log density of each element, nats."""
        return self.base.elementwise_log_prob(value)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw of the wrapped one."""
        return self.base.sample(sample_shape)


class Independent(Wrapper):
    """The last ``event_ndim`` batch dimensions of ``base`` as one event of independent elements.

    Args:
        base: A distribution whose ``batch_shape`` ends in the event.
        event_ndim: Number of its batch dimensions that become event dimensions.

    Example:
        >>> Independent(Normal(torch.zeros(5, 2), torch.zeros(5, 2)), 1)
        Independent(Normal, batch_shape=(5,), event_shape=(2,))
    """

    def __init__(self, base: Distribution, event_ndim: int) -> None:
        split = len(base.batch_shape) - event_ndim
        if split < 0:
            raise ValueError(
                f"Independent expects at least {event_ndim} batch dimensions, "
                f"got {base}: lower event_ndim"
            )
        super().__init__(base)
        self.event_ndim = event_ndim
        self.batch_shape = base.batch_shape[:split]
        self.event_shape = base.batch_shape[split:] + base.event_shape

    def log_prob(self, value: Tensor) -> Tensor:
        """Sum of the elements' log densities, nats."""
        check_event(value, self.event_shape)
        return self.base.summed_log_prob(value, self.event_ndim)

    def elementwise_log_prob(self, value: Tensor) -> Tensor:
        """Log density of each element, nats."""
        if self.base.event_shape:
            return self.base.elementwise_log_prob(value)
        return self.base.log_prob(value)

    def center(self, weights: Tensor | None = None) -> Tensor:
        """Center of every element."""
        if weights is None:
            return self.base.center()
        return self.base.center(unsqueeze_last(weights, self.event_ndim))

    def __repr__(self) -> str:
        return super().__repr__().replace("(", f"({type(self.base).__name__}, ", 1)


class TorchDistribution(Distribution):
    """A ``torch.distributions`` object as a :class:`Distribution`.

    Build the wrapped one with ``validate_args=False``: torch's validation is slow, and refuses
    values on the border of a support with a message that names no remedy.

    Args:
        base: The ``torch.distributions`` object.

    Example:
        >>> laplace = torch.distributions.Laplace(torch.zeros(3), 1.0, validate_args=False)
        >>> TorchDistribution(laplace).log_prob(torch.zeros(3))
        tensor([-0.6931, -0.6931, -0.6931])
    """

    def __init__(self, base: torch.distributions.Distribution) -> None:
        self.base = base
        self.batch_shape = base.batch_shape
        self.event_shape = base.event_shape
        self.has_rsample = base.has_rsample
        self.is_discrete = base.support is not None and base.support.is_discrete

    @property
    def mean(self) -> Tensor:
        """Expected value, where torch has it."""
        return self.base.mean

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density or mass, nats."""
        log_prob: Tensor = self.base.log_prob(value)
        return log_prob

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw, with gradients where torch reparameterizes."""
        draw = self.base.rsample if self.has_rsample else self.base.sample
        return draw(torch.Size(sample_shape))


class Latest(Generic[Known]):
    """What is known of the latest draw, for as long as the draw is what it was."""

    def __init__(self) -> None:
        self._kept: tuple[Tensor, tuple[int, bool], Known] | None = None

    def keep(self, draw: Tensor, known: Known) -> None:
        """Remember what is known of a draw."""
        self._kept = (draw, _state(draw), known)

    def of(self, value: Tensor) -> Known | None:
        """What is known of ``value``, None if it is another one, or was changed."""
        if self._kept is None:
            return None
        draw, state, known = self._kept
        return known if value is draw and state == _state(value) else None


def _state(value: Tensor) -> tuple[int, bool]:
    """What changes when a tensor does, or when gradients are wanted that were not."""
    return (0 if value.is_inference() else value._version), torch.is_grad_enabled()


def check_event(value: Tensor, event_shape: torch.Size) -> None:
    """Raise unless values end in the event's shape."""
    if value.shape[value.dim() - len(event_shape) :] != event_shape:
        raise ValueError(
            f"log_prob expects values that end in the event shape {tuple(event_shape)}, "
            f"got {tuple(value.shape)}"
        )


def joint_shape(*tensors: Tensor) -> torch.Size:
    """Shape that the tensors broadcast to."""
    # torch.broadcast_shapes is Python code, as slow as ten small tensor operations.
    first, *others = (tensor.shape for tensor in tensors)
    if all(shape == first for shape in others):
        return first
    return torch.Size(torch.broadcast_shapes(first, *others))


def sum_last(values: Tensor, ndim: int) -> Tensor:
    """Sum over the last ``ndim`` dimensions; ``ndim = 0`` changes nothing."""
    return values.sum(tuple(range(-ndim, 0))) if ndim else values


def unsqueeze_last(values: Tensor, ndim: int) -> Tensor:
    """Append ``ndim`` dimensions of size one."""
    return values.reshape(*values.shape, *[1] * ndim)


def pooled(values: Tensor, weights: Tensor | None) -> Tensor:
    """Weighted sum over the first dimension; without weights, ``values`` as they are."""
    if weights is None:
        return values
    weights = unsqueeze_last(weights, values.dim() - weights.dim())
    return torch.where(weights > 0, weights * values, 0.0).sum(0)  # zero times infinity is NaN
