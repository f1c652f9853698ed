"""Interface of normalizing flows, and the transformed distribution."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from tinyvae.core.configurable import Configurable
from tinyvae.distributions import Distribution
from tinyvae.distributions.special import autocast_disabled

# A model file cannot make its reader allocate more before the weights are compared.
MOST_WEIGHTS = 100_000_000
MOST_TRANSFORMS = 100


class Bijection(Protocol):
    """An invertible map of vectors ``(..., D)``, smooth almost everywhere."""

    def __call__(self, value: Tensor, /) -> Tensor:
        """Return the image of ``value``."""

    def call_and_ladj(self, value: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return the image of ``value``, and the log determinant of the Jacobian, ``(...)``."""

    @property
    def inv(self) -> "Bijection":
        """Inverse map."""


class NormalizingFlow(Configurable, nn.Module, ABC):
    """A module whose ``forward`` returns a :class:`~tinyvae.flows.Bijection` of vectors.

    Attributes:
        dim: Number of dimensions of the vectors.
        context_dim: Number of values of the context, 0 without a context.
    """

    dim: int
    context_dim: int

    @abstractmethod
    def forward(self, context: Tensor | None = None) -> Bijection:
        """Return the bijection given the context ``(*batch, context_dim)``."""


def check_sizes(owner: str, dim: int, context_dim: int, transforms: int) -> None:
    """Raise unless the sizes of a flow are valid."""
    if dim < 1 or context_dim < 0 or not 1 <= transforms <= MOST_TRANSFORMS:
        raise ValueError(
            f"{owner} expects dim >= 1, context_dim >= 0 and 1 to {MOST_TRANSFORMS} transforms, "
            f"got {dim}, {context_dim} and {transforms}"
        )


def check_weights(owner: str, count: int) -> None:
    """Raise if a flow has more weights than the limit."""
    if count > MOST_WEIGHTS:
        raise ValueError(f"{owner} expects at most {MOST_WEIGHTS:,} weights: make it smaller")


class Transformed(Distribution):
    """The distribution of T(y), where ``base`` is the distribution of y.

    :meth:`sample_and_log_prob` needs no inverse of T.

    Args:
        base: Distribution of vectors.
        transform: Bijection of vectors, from a :class:`NormalizingFlow`, or its ``inv``.

    Example:
        >>> base = Independent(Normal(torch.zeros(2), torch.zeros(2)), 1)
        >>> Transformed(base, Flow(2)()).log_prob(torch.zeros(2)).detach()  # -log(2 pi)
        tensor(-1.8379)
    """

    yields_log_prob = True

    def __init__(self, base: Distribution, transform: Bijection) -> None:
        self.base, self.transform = base, transform
        self.batch_shape, self.event_shape = base.batch_shape, base.event_shape
        self.has_rsample, self.is_density = base.has_rsample, base.is_density
        self.is_discrete, self.support = base.is_discrete, base.support

    @property
    def mean(self) -> Tensor:
        """NaN, because the expected value has no closed form."""
        return torch.full_like(self.base.mean, math.nan)

    def point_estimate(self, weights: Tensor | None = None) -> Tensor:
        """Return the image of the base's point estimate."""
        with autocast_disabled(self.base.mean):
            return self.transform(self.base.point_estimate(weights))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, nats."""
        with autocast_disabled(value):
            y, log_det = self.transform.inv.call_and_ladj(value)
        log_prob: Tensor = self.base.log_prob(y) + log_det
        return log_prob

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw from the base and transform."""
        return self._transformed(self.base.sample(sample_shape))[0]

    def sample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw and return the draws with their log density, nats."""
        y, log_prob = self.base.sample_and_log_prob(sample_shape)
        value, log_det = self._transformed(y)
        return value, log_prob - log_det

    def _transformed(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return T(y) and the log determinant of T at y."""
        with autocast_disabled(y):
            return self.transform.call_and_ladj(y)
