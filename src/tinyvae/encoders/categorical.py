"""Encoders of classes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tinyvae.distributions import (
    GumbelSoftmax,
    OneHotCategorical,
    OneHotDistribution,
    StraightThrough,
)
from tinyvae.encoders.base import NetworkEncoder, latent_size, size_or_shape


class CategoricalEncoder(NetworkEncoder):
    r"""Categorical posterior of one-hot latents.

    Draws are exactly one-hot and the KL divergence to a categorical prior is exact. The reported
    value is therefore a bound on log p(x) of the model with discrete latents. The gradient through
    a draw is approximate (straight through): it is that of the relaxed draw with the same noise.
    With ``temperature=None`` draws carry no gradient. An objective with several draws then
    estimates the gradient without bias, such as ``IWAE(num_samples=5)`` by VIMCO.

    Args:
        network: See :class:`~tinyvae.GaussianEncoder`.
        num_classes: Number of classes :math:`C`.
        num_variables: Number of variables, or their shape ``S`` such as ``(H, W)``.
        temperature: Temperature of the relaxed draws, or None for draws without gradients. The
            attribute may change during training.
        features: See :class:`~tinyvae.GaussianEncoder`.

    Shape:
        x: ``(B, *E)``; posterior: ``batch_shape (B,)``, ``event_shape (C, *S)``.

    References:
        Jang, Gu, Poole (2017). Categorical Reparameterization with Gumbel-Softmax.
        arXiv:1611.01144.

    Example:
        >>> CategoricalEncoder(MLP(4, hidden=(8,)), num_classes=10, num_variables=3)(x)
        StraightThrough(batch_shape=(8,), event_shape=(10, 3))
    """

    temperature: float | None

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        *,
        num_variables: int | Sequence[int] = 1,
        temperature: float | None = 1.0,
        features: int | None = None,
    ) -> None:
        shape = _checked_shape("CategoricalEncoder", num_classes, num_variables, temperature)
        super().__init__(network, shape, shape.numel(), features)
        self.num_classes, self.num_variables = num_classes, size_or_shape(shape[1:])
        self.temperature = temperature

    def posterior(self, features: Tensor) -> OneHotDistribution:
        """Return q(z given the features)."""
        logits = self.params(features).unflatten(1, self.latent_shape)  # (B, C, *S)
        if self.temperature is None:
            return OneHotCategorical(logits, logits.dim() - 1)
        return StraightThrough(logits, logits.dim() - 1, self.temperature)


class GumbelSoftmaxEncoder(NetworkEncoder):
    r"""Gumbel-softmax posterior: relaxed classes, points inside the simplex.

    With a :class:`~tinyvae.priors.GumbelSoftmaxPrior` the KL term is log q - log p of the two
    densities on the simplex at the draws. This gives a bound on log p(x) of the model with relaxed
    latents. The divergence of the underlying categorical distributions would give no bound.
    Models draw and score the logarithms of the points, because the smallest coordinates of a point
    underflow (Maddison et al. 2017, appendix C.3).

    Args:
        network: See :class:`~tinyvae.GaussianEncoder`.
        num_classes: Number of classes :math:`C`.
        num_variables: Number of variables, or their shape ``S`` such as ``(H, W)``.
        temperature: Temperature. At low ones draws are nearly one-hot, and gradients vary much.
        features: See :class:`~tinyvae.GaussianEncoder`.

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
        *,
        num_variables: int | Sequence[int] = 1,
        temperature: float = 2 / 3,
        features: int | None = None,
    ) -> None:
        if temperature is None:
            raise TypeError("GumbelSoftmaxEncoder expects a temperature > 0, got None")
        shape = _checked_shape("GumbelSoftmaxEncoder", num_classes, num_variables, temperature)
        super().__init__(network, shape, shape.numel(), features)
        self.num_classes, self.num_variables = num_classes, size_or_shape(shape[1:])
        self.temperature = temperature

    def posterior(self, features: Tensor) -> GumbelSoftmax:
        """Return q(z given the features)."""
        logits = self.params(features).unflatten(1, self.latent_shape)  # (B, C, *S)
        return GumbelSoftmax(logits, logits.dim() - 1, self.temperature)


def _checked_shape(
    owner: str, num_classes: int, num_variables: int | Sequence[int], temperature: float | None
) -> torch.Size:
    """Return the shape ``(C, *S)`` of a latent, or raise if an argument is invalid."""
    if num_classes < 2:
        raise ValueError(f"{owner} expects num_classes >= 2, got {num_classes}")
    if temperature is not None and not 0 < temperature < math.inf:
        raise ValueError(f"{owner} expects a finite temperature > 0, got {temperature}")
    return torch.Size((num_classes, *latent_size(num_variables)))
