"""Priors with parameters that are trained with the model."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tinyvae.distributions import (
    FullNormal,
    GumbelSoftmax,
    Independent,
    Mixture,
    Normal,
    OneHotCategorical,
)
from tinyvae.encoders.base import latent_size, size_or_shape
from tinyvae.priors.base import PosteriorOf, Prior


class GaussianPrior(Prior):
    """Gaussian prior with a learned mean and a learned diagonal covariance, initially N(0, I).

    Args:
        latent_dim: Number of latent dimensions, or the shape of one latent.

    Example:
        >>> GaussianPrior(2)()
        Independent(Normal, batch_shape=(), event_shape=(2,))
    """

    def __init__(self, latent_dim: int | Sequence[int]) -> None:
        super().__init__()
        self.latent_shape = latent_size(latent_dim)
        self.mean = nn.Parameter(torch.zeros(self.latent_shape))
        self.log_std = nn.Parameter(torch.zeros(self.latent_shape))

    def forward(
        self, context: Tensor | None = None, *, encoder: PosteriorOf | None = None
    ) -> Independent:
        """Return the prior, independent of the context."""
        return Independent(Normal(self.mean, self.log_std), len(self.latent_shape))


class FullGaussianPrior(Prior):
    """Gaussian prior with a learned mean and a learned covariance, initially N(0, I).

    Args:
        latent_dim: Number of latent dimensions.

    Example:
        >>> FullGaussianPrior(2)()
        FullNormal(batch_shape=(), event_shape=(2,))
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_shape = latent_size(latent_dim)
        self.mean = nn.Parameter(torch.zeros(latent_dim))
        self.log_diagonal = nn.Parameter(torch.zeros(latent_dim))
        self.lower = nn.Parameter(torch.zeros(latent_dim, latent_dim))

    def forward(
        self, context: Tensor | None = None, *, encoder: PosteriorOf | None = None
    ) -> FullNormal:
        """Return the prior, independent of the context."""
        return FullNormal(self.mean, self.log_diagonal, self.lower)


class MixturePrior(Prior):
    r"""Mixture of Gaussians with learned weights, means and diagonal covariances.

    .. math:: p(z) = \textstyle\sum_m \pi_m \, \mathcal{N}(z \mid \mu_m, \operatorname{diag} s_m^2)

    Args:
        latent_dim: Number of latent dimensions, or the shape of one latent.
        num_components: Number of components ``M``.

    Example:
        >>> MixturePrior(2, num_components=10)()
        Mixture(batch_shape=(), event_shape=(2,))
    """

    def __init__(self, latent_dim: int | Sequence[int], *, num_components: int) -> None:
        super().__init__()
        if num_components < 1:
            raise ValueError(f"MixturePrior expects num_components >= 1, got {num_components}")
        self.latent_shape = latent_size(latent_dim)
        self.num_components = num_components
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.means = nn.Parameter(torch.randn(num_components, *self.latent_shape))
        self.log_std = nn.Parameter(torch.zeros(num_components, *self.latent_shape))

    def forward(
        self, context: Tensor | None = None, *, encoder: PosteriorOf | None = None
    ) -> Mixture:
        """Return the prior, independent of the context."""
        components = Independent(Normal(self.means, self.log_std), len(self.latent_shape))
        return Mixture(self.logits, components)


class CategoricalPrior(Prior):
    """Independent categorical priors of one-hot latents, initially uniform.

    Args:
        num_classes: Number of classes :math:`C`.
        num_variables: Number of variables, or their shape ``S``.
        learned: True to train the probabilities with the model.

    Example:
        >>> CategoricalPrior(10)().log_prob(torch.eye(10)[:2, :, None])  # -log(10)
        tensor([-2.3026, -2.3026])
    """

    logits: Tensor

    def __init__(
        self, num_classes: int, *, num_variables: int | Sequence[int] = 1, learned: bool = False
    ) -> None:
        super().__init__()
        self.latent_shape = _class_shape("CategoricalPrior", num_classes, num_variables)
        self.num_classes, self.num_variables = num_classes, size_or_shape(self.latent_shape[1:])
        self.learned = learned
        _add_logits(self, learned)

    def forward(
        self, context: Tensor | None = None, *, encoder: PosteriorOf | None = None
    ) -> OneHotCategorical:
        """Return the prior, independent of the context."""
        return OneHotCategorical(self.logits, len(self.latent_shape))


class GumbelSoftmaxPrior(Prior):
    """Independent Gumbel-softmax priors of relaxed classes, initially symmetric.

    Args:
        num_classes: Number of classes :math:`C`.
        num_variables: Number of variables, or their shape ``S``.
        temperature: Temperature. Draws at low ones are nearly one-hot.
        learned: True to train the logits with the model.

    References:
        Maddison, Mnih, Teh (2017). The Concrete Distribution. arXiv:1611.00712.

    Example:
        >>> GumbelSoftmaxPrior(10)()
        GumbelSoftmax(batch_shape=(), event_shape=(10, 1))
    """

    logits: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        num_variables: int | Sequence[int] = 1,
        temperature: float = 0.5,
        learned: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"GumbelSoftmaxPrior expects temperature > 0, got {temperature}")
        self.latent_shape = _class_shape("GumbelSoftmaxPrior", num_classes, num_variables)
        self.num_classes, self.num_variables = num_classes, size_or_shape(self.latent_shape[1:])
        self.temperature, self.learned = temperature, learned
        _add_logits(self, learned)

    def forward(
        self, context: Tensor | None = None, *, encoder: PosteriorOf | None = None
    ) -> GumbelSoftmax:
        """Return the prior, independent of the context."""
        return GumbelSoftmax(self.logits, len(self.latent_shape), self.temperature)


def _class_shape(owner: str, num_classes: int, num_variables: int | Sequence[int]) -> torch.Size:
    if num_classes < 2:
        raise ValueError(f"{owner} expects num_classes >= 2, got {num_classes}")
    return torch.Size((num_classes, *latent_size(num_variables)))


def _add_logits(prior: Prior, learned: bool) -> None:
    """Add logits to a prior: a parameter if they are learned, otherwise a buffer."""
    logits = torch.zeros(prior.latent_shape)
    if learned:
        prior.register_parameter("logits", nn.Parameter(logits))
    else:
        prior.register_buffer("logits", logits)
