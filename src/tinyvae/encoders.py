"""Encoders: modules whose ``forward`` returns the approximate posterior q(z given x)."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from tinyvae.distributions import Distribution, Independent, Normal
from tinyvae.networks import Network

__all__ = ["Encoder", "GaussianEncoder"]


class Encoder(nn.Module, ABC):
    """A module whose ``forward`` returns q(z given x), a :class:`Distribution` over the latent.

    Attributes:
        latent_shape: Shape of one latent.
        is_density: Whether the posterior is a density, without which no bound holds.
    """

    latent_shape: torch.Size
    is_density: bool = True

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> Distribution:
        """Return q(z given x), ``batch_shape = (B,)``, ``event_shape = latent_shape``."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Arguments that build an equal encoder, for a model's file."""


class GaussianEncoder(Encoder):
    r"""Gaussian posterior with a diagonal covariance.

    .. math:: q(z \mid x) = \mathcal{N}\big(\mu(x), \operatorname{diag} \sigma^2(x)\big)

    A linear head on the features of ``network`` gives :math:`\mu` and :math:`\log\sigma`.

    Args:
        network: Module that maps ``(B, *E)`` to features ``(B, ...)``, flattened for the head. It
            is called with the context as second argument where there is one.
        latent_dim: Number of latent dimensions :math:`D`.
        features: Number of features per example; read off a :class:`~tinyvae.Network`, needed for
            any other module.

    Shape:
        x: ``(B, *E)``; posterior: ``batch_shape (B,)``, ``event_shape (D,)``.

    References:
        Kingma, Welling (2014). Auto-Encoding Variational Bayes. arXiv:1312.6114, appendix C.2.

    Example:
        >>> encoder = GaussianEncoder(MLP((1, 28, 28), hidden=(400,)), latent_dim=20)
        >>> encoder(torch.zeros(5, 1, 28, 28))
        Independent(Normal, batch_shape=(5,), event_shape=(20,))
    """

    def __init__(self, network: nn.Module, latent_dim: int, *, features: int | None = None) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"GaussianEncoder expects latent_dim >= 1, got {latent_dim}")
        self.features = _features(network) if features is None else features
        self.latent_shape = torch.Size((latent_dim,))
        self.network = network
        self.head = nn.Linear(self.features, 2 * latent_dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Independent:
        """Return q(z given x)."""
        features = self.network(x) if context is None else self.network(x, context)
        mean, log_std = self.head(features.flatten(1)).chunk(2, dim=1)  # (B, D) each
        return Independent(Normal(mean, log_std), 1)

    def config(self) -> dict[str, Any]:
        """Arguments that build an equal encoder."""
        latent_dim = self.latent_shape[0]
        return {"network": self.network, "latent_dim": latent_dim, "features": self.features}


def _features(network: nn.Module) -> int:
    if not isinstance(network, Network):
        raise TypeError(
            f"GaussianEncoder cannot read the number of features off a {type(network).__name__}: "
            "give features=, the number of values that it returns per example"
        )
    return network.out_shape.numel()
