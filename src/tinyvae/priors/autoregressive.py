"""Autoregressive prior: each latent dimension given those before it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyvae.distributions import Autoregressive, Mixture, Normal
from tinyvae.networks.base import positive_shape
from tinyvae.priors.base import PosteriorOf, Prior

# Bound of log scales, so that the density of a latent far from the training data is finite.
LIMIT = 7.0


class MaskedLinear(nn.Linear):
    """A linear layer whose weights are zero where a mask is false.

    Args:
        mask: ``(out, in)``, true for weights in use.

    Example:
        >>> from tinyvae.priors.autoregressive import MaskedLinear
        >>> layer = MaskedLinear(torch.zeros(2, 3) > 0)
        >>> bool((layer(torch.ones(3)) == layer.bias).all())
        True
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``."""
        return F.linear(x, self.weight * self.mask, self.bias)


class AutoregressivePrior(Prior):
    r"""A product of mixtures of Gaussians, each given the latent dimensions before it.

    .. math:: p(z) = \textstyle\prod_i \sum_m \pi_{im}(z_{<i}) \,
              \mathcal{N}\big(z_i \mid \mu_{im}(z_{<i}), s_{im}^2(z_{<i})\big)

    A masked network computes the parameters of all dimensions in one pass. Initially the mean is
    zero and the covariance the identity. The prior can follow an aggregate posterior of many
    separate clusters, such as that of a table, where one Gaussian or a mixture cannot. A density
    takes one pass, a draw as many passes as there are dimensions.

    Args:
        latent_dim: Number of latent dimensions, at least 2.
        hidden: Widths of the hidden layers.
        num_components: Number of components of each conditional.

    References:
        Germain, Gregor, Murray, Larochelle (2015). MADE: Masked Autoencoder for Distribution
        Estimation. arXiv:1502.03509. Chen et al. (2017). Variational Lossy Autoencoder.
        arXiv:1611.02731 (autoregressive priors).

    Example:
        >>> AutoregressivePrior(3, hidden=(16,))()
        Autoregressive(batch_shape=(), event_shape=(3,))
    """

    zero: Tensor

    def __init__(
        self, latent_dim: int, *, hidden: Sequence[int] = (128, 128), num_components: int = 8
    ) -> None:
        super().__init__()
        if num_components < 1:
            raise ValueError(
                f"AutoregressivePrior expects num_components >= 1, got {num_components}"
            )
        self.latent_shape = positive_shape(latent_dim, "AutoregressivePrior latent_dim")
        if len(self.latent_shape) != 1 or self.latent_shape[0] < 2:
            raise ValueError(
                "AutoregressivePrior expects a vector of 2 or more dimensions, got "
                f"{tuple(self.latent_shape)}: use MixturePrior(latent_dim, num_components=10)"
            )
        self.hidden = positive_shape(hidden, "AutoregressivePrior hidden")
        self.num_components = num_components
        dim = self.latent_shape[0]
        self.register_buffer("zero", torch.zeros(()), persistent=False)
        # A unit of rank r reads dimensions 1 to r. Output i reads hidden units of lower rank.
        ranks = torch.arange(1, dim + 1)
        layers: list[nn.Module] = []
        before = ranks
        for width in self.hidden:
            after = torch.arange(width) * (dim - 1) // width + 1
            layers += [MaskedLinear(after[:, None] >= before), nn.ReLU()]
            before = after
        outputs = ranks.repeat_interleave(3 * num_components)
        last = MaskedLinear(outputs[:, None] > before)
        last.weight.data.zero_()
        last.bias.data = _standardized(num_components).repeat(dim)
        self.layers = nn.Sequential(*layers, last)

    def conditional(self, z: Tensor) -> Mixture:
        """Return p(z_i given the dimensions before i) for all i, ``batch_shape (*S, D)``."""
        params = self.layers(z).unflatten(-1, (self.latent_shape[0], 3, self.num_components))
        logits, means, log_stds = params.unbind(-2)  # (*S, D, M) each
        return Mixture(logits, Normal(means, log_stds.clamp(-LIMIT, LIMIT)))

    def forward(
        self, context: Tensor | None = None, *, encoder: PosteriorOf | None = None
    ) -> Autoregressive:
        """Return the prior, independent of the context."""
        return Autoregressive(self.conditional, self.zero.expand(self.latent_shape))


def _standardized(num_components: int) -> Tensor:
    """Return logits, means and log scales of a mixture of mean 0 and variance 1, ``(3 M,)``."""
    means = (2 * torch.arange(num_components) + 1) / num_components - 1  # variance below 1
    log_stds = 0.5 * torch.log1p(-means.square().mean()).expand(num_components)
    return torch.cat([torch.zeros(num_components), means, log_stds])
