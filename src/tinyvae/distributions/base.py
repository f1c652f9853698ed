"""Interface of distributions, and independent events."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor


class Distribution(ABC):
    """A batch of probability distributions.

    Attributes:
        batch_shape: Shape of the batch of distributions.
        event_shape: Shape of one draw.
        has_rsample: True if draws carry gradients to the parameters (reparameterization).
        is_partly_reparameterized: True if one part of each draw carries gradients and another does
            not.
        yields_log_prob: True if drawing yields the log density as a by-product, so that
            :meth:`sample_and_log_prob` is cheaper than :meth:`sample` and :meth:`log_prob`.
        is_density: True if ``log_prob`` is the logarithm of a normalized density or mass.
        is_discrete: True if ``log_prob`` is a mass, which has no unit. False if it is a density.
            None if it is a mass in some dimensions and a density in others.
        depends_on_parameters: True if ``log_prob`` depends on parameters.
        support: Name of the set of values. log q - log p has no meaning if the supports differ.
        losses: Terms ``(*batch)`` by name that training adds to its loss. They train parameters
            that no density depends on.
        metrics: Other values to report, 0-d, by name.
        shares: Shares of the codes that the batch uses, ``(J,)``, by the name of the metric that is
            their perplexity.
    """

    batch_shape: torch.Size
    event_shape: torch.Size = torch.Size()
    has_rsample: bool = True
    is_partly_reparameterized: bool = False
    yields_log_prob: bool = False
    is_density: bool = True
    is_discrete: bool | None = False
    depends_on_parameters: bool = True
    support: str = "reals"
    losses: Mapping[str, Tensor] = MappingProxyType({})
    metrics: Mapping[str, Tensor] = MappingProxyType({})
    shares: Mapping[str, Tensor] = MappingProxyType({})

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Expected value, ``(*batch, *event)``; NaN if it does not exist or has no closed form."""

    @abstractmethod
    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density or mass of values, nats.

        Args:
            value: ``(*S, *batch, *event)``.

        Returns:
            ``(*S, *batch)``.
        """

    @abstractmethod
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw ``(*sample_shape, *batch, *event)``, with gradients if ``has_rsample``."""

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw as :meth:`sample` does, with gradients.

        Raises:
            NotImplementedError: If draws carry no gradients (``has_rsample`` is False).
        """
        if not self.has_rsample:
            raise NotImplementedError(f"draws of {self} carry no gradients: use sample")
        return self.sample(sample_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of each element, ``(*batch, *event)``.

        Raises:
            NotImplementedError: If it has no closed form here, as for the next two.
        """
        raise self.no_closed_form("variance")

    @property
    def stddev(self) -> Tensor:
        """Standard deviation of each element, ``(*batch, *event)``."""
        return self.variance.sqrt()

    def entropy(self) -> Tensor:
        """Return the entropy of each event, ``(*batch)``, nats: minus the mean of ``log_prob``."""
        raise self.no_closed_form("entropy")

    def no_closed_form(self, quantity: str) -> NotImplementedError:
        """Return an error that names the family and a quantity that it lacks."""
        return NotImplementedError(f"{self} has no closed form of its {quantity}: use draws")

    def sample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw values and return them with their log density or mass, nats.

        Returns:
            ``(*sample_shape, *batch, *event)`` and ``(*sample_shape, *batch)``.
        """
        value = self.sample(sample_shape)
        return value, self.log_prob(value)

    def log_form(self) -> "Distribution":
        """Return the distribution of the points that a model draws and scores instead of values.

        It is this distribution, unless values lose digits that its log density needs. The point of
        a relaxed class is its logarithm. :meth:`value_of` maps points to values.
        """
        return self

    def value_of(self, point: Tensor) -> Tensor:
        """Return the values ``(..., *event)`` of points, which are draws of :meth:`log_form`."""
        return point

    def summed_log_prob(self, value: Tensor, ndim: int) -> Tensor:
        """Return the log density or mass, summed over the last ``ndim`` batch dimensions, nats."""
        return sum_last(self.log_prob(value), ndim)

    def elementwise_log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each element of ``value`` ``(*S, *batch, *event)``, nats.

        Raises:
            TypeError: If the elements are not independent.
        """
        raise TypeError(
            f"elementwise_log_prob expects independent elements, got {self}: use log_prob"
        )

    def point_estimate(self, weights: Tensor | None = None) -> Tensor:
        """Return one value that represents the distribution: its mean or its most probable class.

        Args:
            weights: ``(K, *batch[1:])``, with sum one over ``K``. They pool the first batch
                dimension: the result represents the mixture with these weights.

        Returns:
            ``(*batch, *event)``, or ``(*batch[1:], *event)`` with weights.
        """
        return pooled(self.mean, weights)

    def _shape(self, sample_shape: Sequence[int]) -> torch.Size:
        """Return the shape of draws."""
        return size_of(sample_shape) + self.batch_shape + self.event_shape

    def __repr__(self) -> str:
        batch, event = tuple(self.batch_shape), tuple(self.event_shape)
        return f"{type(self).__name__}(batch_shape={batch}, event_shape={event})"


class Wrapper(Distribution, ABC):
    """Base class of distributions that forward to another one and change a part of it.

    ``sample_and_log_prob`` is not forwarded, because a subclass may change ``sample`` or
    ``log_prob``. A subclass that forwards it sets ``yields_log_prob``.

    Args:
        base: The wrapped distribution.
    """

    def __init__(self, base: Distribution) -> None:
        self.base = base
        self.batch_shape = base.batch_shape
        self.event_shape = base.event_shape
        self.has_rsample = base.has_rsample
        self.is_partly_reparameterized = base.is_partly_reparameterized
        self.is_density = base.is_density
        self.is_discrete = base.is_discrete
        self.support = base.support
        self.depends_on_parameters = base.depends_on_parameters
        self.losses, self.metrics, self.shares = base.losses, base.metrics, base.shares

    @property
    def mean(self) -> Tensor:
        """Expected value, ``(*batch, *event)``."""
        return self.base.mean

    @property
    def variance(self) -> Tensor:
        """Variance of each element of the wrapped distribution."""
        return self.base.variance

    @property
    def stddev(self) -> Tensor:
        """Standard deviation of each element of the wrapped distribution."""
        return self.base.stddev

    def entropy(self) -> Tensor:
        """Return the entropy of the wrapped distribution, nats."""
        return self.base.entropy()

    def point_estimate(self, weights: Tensor | None = None) -> Tensor:
        """Return the point estimate of the wrapped distribution."""
        return self.base.point_estimate(weights)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density or mass, nats."""
        return self.base.log_prob(value)

    def elementwise_log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each element, nats."""
        return self.base.elementwise_log_prob(value)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw from the wrapped distribution."""
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
        self.yields_log_prob = base.yields_log_prob
        self.batch_shape = base.batch_shape[:split]
        self.event_shape = base.batch_shape[split:] + base.event_shape

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the sum of the elements' log densities, nats."""
        check_event(value, self.event_shape)
        return self.base.summed_log_prob(value, self.event_ndim)

    def sample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw events and return them with their log density or mass, nats."""
        if not self.yields_log_prob:
            return super().sample_and_log_prob(sample_shape)
        value, log_prob = self.base.sample_and_log_prob(sample_shape)
        return value, sum_last(log_prob, self.event_ndim)

    def entropy(self) -> Tensor:
        """Return the sum of the elements' entropies, nats."""
        return sum_last(self.base.entropy(), self.event_ndim)

    def elementwise_log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each element, nats."""
        if self.base.event_shape:
            return self.base.elementwise_log_prob(value)
        return self.base.log_prob(value)

    def point_estimate(self, weights: Tensor | None = None) -> Tensor:
        """Return the point estimate of every element."""
        if weights is None:
            return self.base.point_estimate()
        return self.base.point_estimate(unsqueeze_last(weights, self.event_ndim))

    def __repr__(self) -> str:
        return super().__repr__().replace("(", f"({type(self.base).__name__}, ", 1)


def size_of(sample_shape: Sequence[int]) -> torch.Size:
    """Return the shape of draws. Raise if it is a number."""
    if isinstance(sample_shape, int):
        raise TypeError(
            f"sample expects a shape, got {sample_shape}: give ({sample_shape},) for "
            f"{sample_shape} draws of each distribution"
        )
    return torch.Size(sample_shape)


def check_event(value: Tensor, event_shape: torch.Size) -> None:
    """Raise unless values end in the event's shape."""
    if value.shape[value.dim() - len(event_shape) :] != event_shape:
        raise ValueError(
            f"log_prob expects values that end in the event shape {tuple(event_shape)}, "
            f"got {tuple(value.shape)}"
        )


def joint_shape(*tensors: Tensor) -> torch.Size:
    """Return the shape that the tensors broadcast to."""
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
    """Return the weighted sum over the first dimension, or ``values`` if there are no weights."""
    if weights is None:
        return values
    weights = unsqueeze_last(weights, values.dim() - weights.dim())
    return torch.where(weights > 0, weights * values, 0.0).sum(0)  # zero times infinity is NaN
