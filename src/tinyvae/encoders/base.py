"""Interface of encoders: modules whose ``forward`` returns a conditional density."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from tinyvae.core.configurable import Configurable
from tinyvae.distributions import Distribution
from tinyvae.networks import Network
from tinyvae.networks.base import within_range


class Encoder(Configurable, nn.Module, ABC):
    """A module whose ``forward`` returns q(z given x), a :class:`Distribution` over the latent.

    Attributes:
        latent_shape: Shape of one latent.
        is_density: True if the posterior is a density, which a bound needs.
    """

    latent_shape: torch.Size
    is_density: bool = True

    @cached_property  # a subclass may also store it
    def latent_dim(self) -> int | tuple[int, ...]:
        """Number of latent dimensions, or the shape of a latent with several."""
        return size_or_shape(self.latent_shape)

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> Distribution:
        """Return q(z given x), ``batch_shape = (B,)``, ``event_shape = latent_shape``."""


class NetworkEncoder(Encoder):
    """A network, and a linear head that maps its features to the parameters of a posterior.

    The head is a linear layer on the flattened features. For a spatial latent ``(C, H, W)`` with
    the height and width of the network's output, it is a 1 x 1 convolution.

    Args:
        network: Module that maps ``(B, *E)`` to features ``(B, ...)``. If there is a context, it is
            the second argument.
        latent_shape: Shape of one latent.
        num_params: Number of outputs of the head per example.
        features: Number of features per example. A :class:`~tinyvae.networks.Network` knows it;
            any other module needs it.
    """

    def __init__(
        self, network: nn.Module, latent_shape: Sequence[int], num_params: int, features: int | None
    ) -> None:
        super().__init__()
        self.latent_shape = torch.Size(latent_shape)
        name = type(self).__name__
        if not isinstance(network, nn.Module):
            raise TypeError(f"{name} expects a network, got a {type(network).__name__}")
        if min(latent_shape, default=0) < 1:
            sizes = ", ".join(map(str, latent_shape))
            raise ValueError(f"{name} expects latent_dim >= 1, got {sizes}")
        if features is None:
            if not isinstance(network, Network):
                raise TypeError(
                    f"{name} cannot read the number of features from a {type(network).__name__}: "
                    "give features=, the number of values that it returns per example"
                )
            features = network.out_shape.numel()
        self.features = features
        self.network = network
        self.head = self._head(num_params)

    def _head(self, num_params: int) -> nn.Conv2d | nn.Linear:
        planes = self.latent_shape[1:].numel()
        out_shape = self.network.out_shape if isinstance(self.network, Network) else torch.Size()
        if len(self.latent_shape) == 3 and out_shape[1:] == self.latent_shape[1:]:
            return nn.Conv2d(out_shape[0], num_params // planes, kernel_size=1)
        return nn.Linear(self.features, num_params)

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the features of ``x``."""
        features: Tensor = self.network(*within_range(self, x, context))
        if not isinstance(features, Tensor):
            raise ValueError(
                f"{type(self).__name__} expects a network that returns features, a tensor (B, ...),"
                f" got a {type(features).__name__}: return the last hidden layer alone. The head "
                "of the encoder computes the parameters of the posterior"
            )
        return features

    @abstractmethod
    def posterior(self, features: Tensor) -> Distribution:
        """Return the posterior given the features."""

    def params(self, features: Tensor) -> Tensor:
        """Return the output of the head, ``(B, num_params)``, parameter by parameter."""
        if isinstance(self.head, nn.Linear):
            features = features.flatten(1) if features.dim() > 2 else features
            if features.shape[-1] != self.features:
                raise ValueError(
                    f"{type(self).__name__} expects a network that returns {self.features} "
                    f"features per example, got {features.shape[-1]}: give it "
                    f"features={features.shape[-1]}"
                )
        params: Tensor = self.head(features)
        # Densities need the precision of the weights. Outputs under autocast have less.
        if isinstance(self.head.weight, Tensor):  # not of a quantized layer
            params = params.to(self.head.weight.dtype)
        return params.flatten(1) if params.dim() > 2 else params

    def forward(self, x: Tensor, context: Tensor | None = None) -> Distribution:
        """Return q(z given x)."""
        return self.posterior(self.encode(x, context))


def latent_size(latent_dim: int | Sequence[int]) -> torch.Size:
    """Return the shape of a latent, given its only size or its shape."""
    return torch.Size((latent_dim,) if isinstance(latent_dim, int) else latent_dim)


def size_or_shape(shape: Sequence[int]) -> int | tuple[int, ...]:
    """Return the only size of a shape, or all sizes; the inverse of :func:`latent_size`."""
    return shape[0] if len(shape) == 1 else tuple(shape)
