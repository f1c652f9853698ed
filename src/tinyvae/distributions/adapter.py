"""Adapter of ``torch.distributions``."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyvae.distributions.base import Distribution, size_of


class TorchDistribution(Distribution):
    """A ``torch.distributions`` object as a :class:`Distribution`.

    Build the wrapped object with ``validate_args=False``: torch's validation is slow, and it
    rejects values on the border of a support with a message that names no remedy.

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
        """Expected value, if torch has it."""
        return self.base.mean

    @property
    def variance(self) -> Tensor:
        """Variance, if torch has it."""
        try:
            return self.base.variance
        except NotImplementedError:
            raise self.no_closed_form("variance") from None

    def entropy(self) -> Tensor:
        """Return the entropy, nats, if torch has it."""
        try:
            entropy: Tensor = self.base.entropy()
        except NotImplementedError:
            raise self.no_closed_form("entropy") from None
        return entropy

    def __repr__(self) -> str:
        return super().__repr__().replace("(", f"({type(self.base).__name__}, ", 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density or mass, nats."""
        log_prob: Tensor = self.base.log_prob(value)
        return log_prob

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw, with gradients if torch reparameterizes."""
        draw = self.base.rsample if self.has_rsample else self.base.sample
        return draw(size_of(sample_shape))
