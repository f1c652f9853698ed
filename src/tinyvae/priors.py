"""Priors: modules whose ``forward`` returns p(z)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tinyvae.distributions import Distribution, Independent, Normal
from tinyvae.encoders import Encoder

__all__ = ["Prior", "StandardNormal"]


class Prior(nn.Module, ABC):
    """A module whose ``forward`` returns p(z), or p(z given context).

    Attributes:
        latent_shape: Shape of one latent.
    """

    latent_shape: torch.Size

    @abstractmethod
    def forward(
        self, context: Tensor | None = None, *, encoder: Encoder | None = None
    ) -> Distribution:
        """Return the prior; ``encoder`` is the VAE's, for priors that are made of posteriors."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Arguments that build an equal prior, for a model's file."""


class StandardNormal(Prior):
    r"""Standard normal prior :math:`p(z) = \mathcal{N}(0, I)`.

    Args:
        latent_shape: Shape of one latent.

    Example:
        >>> StandardNormal(2)().log_prob(torch.zeros(2))  # -log(2 pi)
        tensor(-1.8379)
    """

    zero: Tensor

    def __init__(self, latent_shape: int | Sequence[int]) -> None:
        super().__init__()
        shape = (latent_shape,) if isinstance(latent_shape, int) else latent_shape
        self.latent_shape = torch.Size(shape)
        # A buffer follows the module's device and dtype; it needs no place in a file.
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def forward(
        self, context: Tensor | None = None, *, encoder: Encoder | None = None
    ) -> Independent:
        """Return N(0, I) over one latent, whatever the context."""
        zero = self.zero.expand(self.latent_shape)
        return Independent(Normal(zero, zero), len(self.latent_shape))

    def config(self) -> dict[str, Any]:
        """Arguments that build an equal prior."""
        return {"latent_shape": self.latent_shape}

    def extra_repr(self) -> str:
        """Latent shape, for ``repr``."""
        return f"{tuple(self.latent_shape)}"
