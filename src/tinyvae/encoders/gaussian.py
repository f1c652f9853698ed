"""Encoders of real vectors: Gaussian and Laplace posteriors, and points."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tinyvae.core.keywords import suggest_keywords
from tinyvae.distributions import Delta, FullNormal, Independent, Laplace, LowRankNormal, Normal
from tinyvae.encoders.base import NetworkEncoder, latent_size


@suggest_keywords
class GaussianEncoder(NetworkEncoder):
    r"""Gaussian posterior with a diagonal covariance.

    .. math:: q(z \mid x) = \mathcal{N}\big(\mu(x), \operatorname{diag} \sigma^2(x)\big)

    A linear head on the features of ``network`` computes :math:`\mu` and :math:`\log\sigma`. In
    evaluation mode the scale stays between the machine epsilon of the dtype and its inverse (1e-7
    and 8e6 in float32), so that posteriors of data far from the training data are proper.

    Args:
        network: Module that maps ``(B, *E)`` to features ``(B, ...)``, which are flattened for the
            head. If there is a context, it is the second argument.
        latent_dim: Number of latent dimensions :math:`D`, or shape of a latent. If the shape is
            ``(C, H, W)`` with the height and width of the network's output, the head is a 1 x 1
            convolution.
        features: Number of features per example. A :class:`~tinyvae.networks.Network` knows it;
            any other module needs it.

    Shape:
        x: ``(B, *E)``; posterior: ``batch_shape (B,)``, ``event_shape (D,)``.

    References:
        Kingma, Welling (2014). Auto-Encoding Variational Bayes. arXiv:1312.6114, appendix C.2.

    Example:
        >>> encoder = GaussianEncoder(MLP((1, 28, 28), hidden=(400,)), latent_dim=20)
        >>> encoder(torch.zeros(5, 1, 28, 28))
        Independent(Normal, batch_shape=(5,), event_shape=(20,))
        >>> GaussianEncoder(ConvNet((1, 28, 28)), latent_dim=(4, 7, 7)).head
        Conv2d(64, 8, kernel_size=(1, 1), stride=(1, 1))
    """

    def __init__(
        self, network: nn.Module, latent_dim: int | Sequence[int], *, features: int | None = None
    ) -> None:
        shape = latent_size(latent_dim)
        super().__init__(network, shape, 2 * shape.numel(), features)

    def location_and_scale(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the logarithm of the scale, ``(B, *L)`` each."""
        location, log_scale = _halves(self.params(features), self.latent_shape)
        return location, _bounded(self, log_scale)

    def posterior(self, features: Tensor) -> Independent:
        """Return q(z given the features)."""
        return Independent(Normal(*self.location_and_scale(features)), len(self.latent_shape))


class LaplaceEncoder(NetworkEncoder):
    """Laplace posterior of independent elements, with a head like that of :class:`GaussianEncoder`.

    Args:
        network: See :class:`GaussianEncoder`.
        latent_dim: See :class:`GaussianEncoder`.
        features: See :class:`GaussianEncoder`.

    Example:
        >>> LaplaceEncoder(MLP(4, hidden=(8,)), latent_dim=2)(torch.zeros(5, 4))
        Independent(Laplace, batch_shape=(5,), event_shape=(2,))
    """

    def __init__(
        self, network: nn.Module, latent_dim: int | Sequence[int], *, features: int | None = None
    ) -> None:
        shape = latent_size(latent_dim)
        super().__init__(network, shape, 2 * shape.numel(), features)

    def posterior(self, features: Tensor) -> Independent:
        """Return q(z given the features)."""
        location, log_scale = _halves(self.params(features), self.latent_shape)
        return Independent(Laplace(location, _bounded(self, log_scale)), len(self.latent_shape))


class FullGaussianEncoder(NetworkEncoder):
    r"""Gaussian posterior with a full covariance :math:`L L^\top`.

    Args:
        network: See :class:`GaussianEncoder`.
        latent_dim: Number of latent dimensions :math:`D`. The head has :math:`D (D + 3) / 2`
            outputs.
        features: See :class:`GaussianEncoder`.

    Example:
        >>> FullGaussianEncoder(MLP(4, hidden=(8,)), latent_dim=2)(torch.zeros(5, 4))
        FullNormal(batch_shape=(5,), event_shape=(2,))
    """

    def __init__(self, network: nn.Module, latent_dim: int, *, features: int | None = None) -> None:
        num_params = latent_dim * (latent_dim + 3) // 2
        super().__init__(network, (latent_dim,), num_params, features)

    def posterior(self, features: Tensor) -> FullNormal:
        """Return q(z given the features)."""
        params, size = self.params(features), self.latent_shape[0]
        mean, log_diagonal, below = params.split([size, size, size * (size - 1) // 2], 1)
        rows, columns = torch.tril_indices(size, size, -1, device=params.device)
        lower = params.new_zeros(len(params), size, size)  # (B, D, D)
        lower[:, rows, columns] = _bounded_factor(self, below)
        return FullNormal(mean, _bounded(self, log_diagonal), lower)


class LowRankGaussianEncoder(NetworkEncoder):
    r"""Gaussian posterior with covariance :math:`W W^\top + \operatorname{diag} \sigma^2`.

    Args:
        network: See :class:`GaussianEncoder`.
        latent_dim: Number of latent dimensions :math:`D`.
        rank: Number of columns of :math:`W`.
        features: See :class:`GaussianEncoder`.

    Example:
        >>> LowRankGaussianEncoder(MLP(4, hidden=(8,)), latent_dim=50, rank=2)(torch.zeros(5, 4))
        LowRankNormal(batch_shape=(5,), event_shape=(50,))
    """

    def __init__(
        self, network: nn.Module, latent_dim: int, *, rank: int, features: int | None = None
    ) -> None:
        if rank < 1:
            raise ValueError(f"LowRankGaussianEncoder expects rank >= 1, got {rank}")
        super().__init__(network, (latent_dim,), latent_dim * (2 + rank), features)
        self.rank = rank

    def posterior(self, features: Tensor) -> LowRankNormal:
        """Return q(z given the features)."""
        params = self.params(features).unflatten(1, (2 + self.rank, -1))  # (B, 2 + r, D)
        factor = _bounded_factor(self, params[:, 2:].mT)
        return LowRankNormal(params[:, 0], _bounded(self, params[:, 1]), factor)


class DeterministicEncoder(NetworkEncoder):
    """A point instead of a posterior: an autoencoder, for which no bound holds.

    The "KL" term of :class:`~tinyvae.ELBO` is -log p(z). With a standard normal prior that is half
    the squared norm of z, up to a constant.

    Args:
        network: See :class:`GaussianEncoder`.
        latent_dim: See :class:`GaussianEncoder`.
        features: See :class:`GaussianEncoder`.

    Example:
        >>> DeterministicEncoder(MLP(4, hidden=(8,)), latent_dim=2)(torch.zeros(5, 4))
        Delta(batch_shape=(5,), event_shape=(2,))
    """

    is_density = False

    def __init__(
        self, network: nn.Module, latent_dim: int | Sequence[int], *, features: int | None = None
    ) -> None:
        shape = latent_size(latent_dim)
        super().__init__(network, shape, shape.numel(), features)

    def posterior(self, features: Tensor) -> Delta:
        """Return the point."""
        point = self.params(features).unflatten(1, self.latent_shape)
        return Delta(point, len(self.latent_shape))


def _bounded(encoder: nn.Module, log_scale: Tensor) -> Tensor:
    """Return log scales, in evaluation mode between those of the machine epsilon and its inverse.

    Then the density is finite, however far an input is from the data. In training mode nothing is
    bounded: the step is faster, and the error for a loss that is not finite names the cause.
    """
    if encoder.training:
        return log_scale
    limit = math.log(_largest_scale(log_scale))
    return log_scale.clamp(-limit, limit)


def _bounded_factor(encoder: nn.Module, factor: Tensor) -> Tensor:
    """Return entries of a factor, in evaluation mode no larger than the largest scale."""
    if encoder.training:
        return factor
    limit = _largest_scale(factor)
    return factor.clamp(-limit, limit)


def _largest_scale(values: Tensor) -> float:
    return 1 / torch.finfo(torch.promote_types(values.dtype, torch.float32)).eps


def _halves(params: Tensor, latent_shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Split parameters ``(B, 2 L)`` into two tensors ``(B, *L)``."""
    first, second = params.chunk(2, dim=1)
    if len(latent_shape) == 1:
        return first, second
    return first.unflatten(1, latent_shape), second.unflatten(1, latent_shape)
