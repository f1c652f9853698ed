"""Encoder of directions on a sphere."""

import torch.nn.functional as F
from torch import Tensor, nn

from tinyvae.distributions import PowerSpherical
from tinyvae.encoders.base import NetworkEncoder


class PowerSphericalEncoder(NetworkEncoder):
    r"""Power spherical posterior on the unit sphere, for a prior such as ``SphereUniformPrior``.

    .. math:: q(z \mid x) \propto \big(1 + \mu(x)^\top z\big)^{\kappa(x)}, \qquad \|z\| = 1

    The concentration is at most that of :class:`~tinyvae.distributions.PowerSpherical`, e^19.9 in
    float32.

    Args:
        network: See :class:`~tinyvae.GaussianEncoder`.
        latent_dim: Number of coordinates :math:`D \ge 2`. The sphere has :math:`D - 1` dimensions.
        features: See :class:`~tinyvae.GaussianEncoder`.

    Shape:
        x: ``(B, *E)``; posterior: ``batch_shape (B,)``, ``event_shape (D,)``.

    References:
        De Cao, Aziz (2020). The Power Spherical distribution. arXiv:2006.04437. Davidson, Falorsi,
        De Cao, Kipf, Tomczak (2018). Hyperspherical Variational Auto-Encoders. arXiv:1804.00891.

    Example:
        >>> encoder = PowerSphericalEncoder(MLP(4, hidden=(8,)), latent_dim=3)
        >>> encoder(torch.zeros(5, 4)).sample().detach().norm(dim=1).round(decimals=4)
        tensor([1., 1., 1., 1., 1.])
    """

    def __init__(self, network: nn.Module, latent_dim: int, *, features: int | None = None) -> None:
        if latent_dim < 2:
            raise ValueError(f"PowerSphericalEncoder expects latent_dim >= 2, got {latent_dim}")
        super().__init__(network, (latent_dim,), latent_dim + 1, features)

    def posterior(self, features: Tensor) -> PowerSpherical:
        """Return q(z given the features)."""
        params = self.params(features)
        return PowerSpherical(F.normalize(params[:, :-1], dim=1), params[:, -1])
