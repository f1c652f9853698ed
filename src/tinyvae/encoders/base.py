"""What an encoder is: a module whose ``forward`` returns a conditional density."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tinyvae.core.configurable import Configurable
from tinyvae.distributions import Distribution
from tinyvae.networks import Network


class Encoder(Configurable, nn.Module, ABC):
    """A module whose ``forward`` returns q(z given x), a :class:`Distribution` over the latent.

    Attributes:
        latent_shape: Shape of one latent.
        is_density: Whether the posterior is a density, without which no bound holds.
    """

    latent_shape: torch.Size

    @property
    def latent_dim(self) -> int | tuple[int, ...]:
        """Number of latent dimensions, or the shape of a latent with several."""
        return as_given(self.latent_shape)

    is_density: bool = True

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> Distribution:
        """Return q(z given x), ``batch_shape = (B,)``, ``event_shape = latent_shape``."""


class NetworkEncoder(Encoder):
    """A network, and a linear head that turns its features into parameters of a posterior.

    The head is a linear layer on the flattened features, or a 1 x 1 convolution where the latent is
    spatial, ``(C, H, W)``, and of the height and width of the network's output.

    Args:
        network: Module that maps ``(B, *E)`` to features ``(B, ...)``. It is called with the
            context as second argument where there is one.
        latent_shape: Shape of one latent.
        num_params: Parameters that the head gives, of any order.
        features: Number of features per example; read off a :class:`~tinyvae.networks.Network`, needed for
            any other module.
    """

    def __init__(
        self,
        network: nn.Module,
        latent_shape: Sequence[int],
        num_params: int,
        features: int | None,
    ) -> None:
        super().__init__()
        self.latent_shape = torch.Size(latent_shape)
        name = type(self).__name__
        if not isinstance(network, nn.Module):
            raise TypeError(f"{name} expects a network, got a {type(network).__name__}")
        if min(latent_shape, default=0) < 1:
            sizes = ", ".join(map(str, latent_shape))
            raise ValueError(f"{name} expects latent_dim >= 1, got {sizes}")
        self.features = _features(network, name) if features is None else features
        self.network = network
        self.head = self._head(num_params)

    def _head(self, num_params: int) -> nn.Conv2d | nn.Linear:
        planes = self.latent_shape[1:].numel()
        out_shape = self.network.out_shape if isinstance(self.network, Network) else torch.Size()
        if len(self.latent_shape) == 3 and out_shape[1:] == self.latent_shape[1:]:
            return nn.Conv2d(out_shape[0], num_params // planes, kernel_size=1)
        return nn.Linear(self.features, num_params)

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Features of ``x``."""
        features: Tensor = self.network(x) if context is None else self.network(x, context)
        return features

    @abstractmethod
    def posterior(self, features: Tensor) -> Distribution:
        """Return the posterior given the features."""

    def params(self, features: Tensor) -> Tensor:
        """What the head gives, ``(B, num_params)`` in the order parameter first."""
        if features.dim() > 2 and isinstance(self.head, nn.Linear):
            features = features.flatten(1)
        params: Tensor = self.head(features)
        # Under autocast the weights have more digits than what comes out, and densities need them.
        params = params.to(self.head.weight.dtype)
        return params.flatten(1) if params.dim() > 2 else params

    def forward(self, x: Tensor, context: Tensor | None = None) -> Distribution:
        """Return q(z given x)."""
        return self.posterior(self.encode(x, context))


def latent_size(latent_dim: int | Sequence[int]) -> torch.Size:
    """Shape of a latent, of which a number is the only size."""
    return torch.Size((latent_dim,) if isinstance(latent_dim, int) else latent_dim)


def as_given(shape: Sequence[int]) -> int | tuple[int, ...]:
    """What :func:`latent_size` makes the shape of."""
    return shape[0] if len(shape) == 1 else tuple(shape)


def _features(network: nn.Module, name: str) -> int:
    if not isinstance(network, Network):
        raise TypeError(
            f"{name} cannot read the number of features off a {type(network).__name__}: "
            "give features=, the number of values that it returns per example"
        )
    return network.out_shape.numel()
