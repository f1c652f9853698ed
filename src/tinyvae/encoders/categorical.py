"""Encoders of classes."""

import math
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from tinyvae.distributions import (
    GumbelSoftmax,
    OneHotCategorical,
    OneHotDistribution,
    StraightThrough,
)
from tinyvae.encoders.base import NetworkEncoder, as_given, latent_size


class _ClassEncoder(NetworkEncoder):
    """Logits of classes, ``(B, C, *S)``."""

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        num_variables: int | Sequence[int],
        temperature: float | None,
        features: int | None,
    ) -> None:
        if num_classes < 2:
            raise ValueError(f"{type(self).__name__} expects num_classes >= 2, got {num_classes}")
        if temperature is not None and not 0 < temperature < math.inf:
            raise ValueError(
                f"{type(self).__name__} expects a finite temperature > 0, got {temperature}"
            )
        shape = (num_classes, *latent_size(num_variables))
        super().__init__(network, shape, latent_size(shape).numel(), features)
        self.temperature = temperature

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``(B, C, *S)``."""
        logits: Tensor = self.params(features).unflatten(1, self.latent_shape)
        return logits

    def config(self) -> dict[str, Any]:
        """Arguments that build an equal encoder."""
        num_classes, *variables = self.latent_shape
        return {
            "network": self.network,
            "num_classes": num_classes,
            "num_variables": as_given(variables),
            "temperature": self.temperature,
            "features": self.features,
        }


class CategoricalEncoder(_ClassEncoder):
    r"""Categorical posterior of one-hot latents.

    Draws are exactly one-hot, the KL divergence to a categorical prior is the exact one, and so
    what is reported is a bound on log p(x) of the model with discrete latents. The gradient that
    passes through a draw is approximate, straight through: that of the relaxed draw with the same
    noise. With ``temperature=None`` none passes, and the objective estimates it without bias from
    several draws, ``IWAE(num_samples=5)`` by VIMCO.

    Args:
        network: As of :class:`~tinyvae.GaussianEncoder`.
        num_classes: Number of classes :math:`C`.
        num_variables: Number of variables, or their shape ``S`` such as ``(H, W)``.
        temperature: Of the relaxed draws whose gradients stand in, None for draws without; an
            attribute that may be changed in the course of training.
        features: As of :class:`~tinyvae.GaussianEncoder`.

    Shape:
        x: ``(B, *E)``; posterior: ``batch_shape (B,)``, ``event_shape (C, *S)``.

    References:
        Jang, Gu, Poole (2017). Categorical Reparameterization with Gumbel-Softmax.
        arXiv:1611.01144.

    Example:
        >>> CategoricalEncoder(MLP(4, hidden=(8,)), num_classes=10, num_variables=3)(x)
        StraightThrough(batch_shape=(8,), event_shape=(10, 3))
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        num_variables: int | Sequence[int] = 1,
        *,
        temperature: float | None = 1.0,
        features: int | None = None,
    ) -> None:
        super().__init__(network, num_classes, num_variables, temperature, features)

    def posterior(self, features: Tensor) -> OneHotDistribution:
        """Return q(z given the features)."""
        logits = self.logits(features)
        if self.temperature is None:
            return OneHotCategorical(logits, logits.dim() - 1)
        return StraightThrough(logits, logits.dim() - 1, self.temperature)


class GumbelSoftmaxEncoder(_ClassEncoder):
    r"""Gumbel-softmax posterior: relaxed classes, points on the inside of the simplex.

    With a :class:`~tinyvae.priors.GumbelSoftmaxPrior` the KL term is log q - log p of the two densities on
    the simplex at the draws. That makes a bound on log p(x) of the model with relaxed latents; the
    divergence of the categorical distributions behind them would be none (Maddison et al. 2017,
    appendix C.3).

    Args:
        network: As of :class:`~tinyvae.GaussianEncoder`.
        num_classes: Number of classes :math:`C`.
        num_variables: Number of variables, or their shape ``S`` such as ``(H, W)``.
        temperature: Low ones are nearly one-hot, and have gradients of large variance.
        features: As of :class:`~tinyvae.GaussianEncoder`.

    Shape:
        x: ``(B, *E)``; posterior: ``batch_shape (B,)``, ``event_shape (C, *S)``.

    References:
        Maddison, Mnih, Teh (2017). The Concrete Distribution. arXiv:1611.00712.

    Example:
        >>> GumbelSoftmaxEncoder(MLP(4, hidden=(8,)), num_classes=10, num_variables=3)(x)
        GumbelSoftmax(batch_shape=(8,), event_shape=(10, 3))
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        num_variables: int | Sequence[int] = 1,
        *,
        temperature: float = 2 / 3,
        features: int | None = None,
    ) -> None:
        if temperature is None:
            raise TypeError("GumbelSoftmaxEncoder expects a temperature > 0, got None")
        super().__init__(network, num_classes, num_variables, temperature, features)

    def posterior(self, features: Tensor) -> GumbelSoftmax:
        """Return q(z given the features)."""
        logits = self.logits(features)
        return GumbelSoftmax(logits, logits.dim() - 1, cast("float", self.temperature))
