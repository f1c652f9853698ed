r"""Regularizers that match the aggregate posterior to the prior.

.. math:: q(z) = \mathbb{E}_{p(x)}\, q(z \mid x)

:class:`DIPRegularizer` compares covariances, :class:`MMDRegularizer` samples.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tinyvae.core.objective import Batch
from tinyvae.distributions import Distribution, FullNormal, Independent, LowRankNormal, Normal
from tinyvae.distributions.special import autocast_disabled
from tinyvae.models.output import LatentVariableModel, VAEOutput
from tinyvae.objectives.regularizers.base import (
    Regularizer,
    RegularizerOutput,
    posterior_given_data,
    prior_samples,
)
from tinyvae.schedules import Schedule

Kernel = Callable[[Tensor], Tensor]  # a function of squared distances
SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # Tolstikhin et al. (2018)


class DIPRegularizer(Regularizer):
    r"""Distance of the aggregate posterior's covariance from the identity (DIP-VAE).

    .. math:: \lambda \sum_{i \ne j} C_{ij}^2 + \lambda d \sum_i (C_{ii} - 1)^2

    C is the covariance over the batch of the posteriors' means (DIP-VAE-I, with :math:`d = 10` in
    the paper). With ``covariance="total"``, C is the covariance of q(z), which adds the mean of the
    posteriors' covariances (DIP-VAE-II, with :math:`d = 1`). The metric is the distance of the
    batch, which is larger for a small batch than for all data.

    Args:
        weight: :math:`\lambda`.
        diagonal: :math:`d`.
        covariance: ``"means"``, or ``"total"``, which needs Gaussian posteriors.
        latent: See :class:`Regularizer`.

    References:
        Kumar, Sattigeri, Balakrishnan (2018). Variational Inference of Disentangled Latent Concepts
        from Unlabeled Observations. arXiv:1711.00848, eq. 5 to 7.

    Example:
        >>> dip_vae_1 = ELBO() + DIPRegularizer(10.0, diagonal=10.0)
        >>> dip_vae_2 = ELBO() + DIPRegularizer(10.0, covariance="total")
    """

    def __init__(
        self,
        weight: float | Schedule,
        *,
        diagonal: float = 1.0,
        covariance: str = "means",
        latent: str | None = None,
    ) -> None:
        super().__init__(weight, latent=latent)
        if covariance not in ("means", "total"):
            raise ValueError(
                f"DIPRegularizer expects covariance 'means' or 'total', got {covariance!r}"
            )
        self.diagonal, self.covariance = diagonal, covariance

    def forward(
        self, model: LatentVariableModel, batch: Batch, output: VAEOutput
    ) -> RegularizerOutput:
        """Return the penalty of one pass; 0 for a batch of one example."""
        posterior = posterior_given_data("DIPRegularizer", self.term(output))
        means = posterior.mean.flatten(1)
        centered = means - means.mean(0)
        with autocast_disabled(means):
            covariance = centered.T @ centered / max(len(means) - 1, 1)
            if self.covariance == "total":
                covariance = covariance + _mean_covariance(posterior)
        diagonal = covariance.diagonal()
        off_diagonal = (covariance - diagonal.diag()).square().sum()
        value = off_diagonal + self.diagonal * (diagonal - 1).square().sum()
        if len(means) < 2:
            value = 0.0 * value
        return RegularizerOutput(self.weighted(value), self.reported(batch_dip=value))


def _mean_covariance(posterior: Distribution) -> Tensor:
    """Return the mean of the posteriors' covariances, ``(D, D)``."""
    if isinstance(posterior, Independent) and isinstance(posterior.base, Normal):
        normal = posterior.base
        return (2 * normal.log_std).exp().expand(normal.batch_shape).flatten(1).mean(0).diag()
    if isinstance(posterior, FullNormal):
        return (posterior.scale_tril @ posterior.scale_tril.mT).mean(0)
    if isinstance(posterior, LowRankNormal):
        diagonal = (2 * posterior.log_std).exp().mean(0).diag()
        return diagonal + (posterior.factor @ posterior.factor.mT).mean(0)
    raise ValueError(
        f"DIPRegularizer with covariance='total' expects Gaussian posteriors, got {posterior}: use "
        "'means'"
    )


def inverse_multiquadratic_kernel(squared: Tensor) -> Tensor:
    """Return the heavy-tailed kernel 1 / (1 + d)."""
    return 1 / (1 + squared)


def gaussian_kernel(squared: Tensor) -> Tensor:
    """Return the kernel exp(-d)."""
    return torch.exp(-squared)


class MMDRegularizer(Regularizer):
    r"""Squared maximum mean discrepancy of the aggregate posterior and the prior.

    .. math:: \frac{1}{B (B - 1)} \sum_{i \ne j} \big[k(z_i, z_j) + k(y_i, y_j)\big]
        - \frac{2}{B^2} \sum_{i, j} k(z_i, y_j), \qquad z_i \sim q(z \mid x_i), \; y_i \sim p(z)

    The estimate is unbiased, so it may be negative. The kernel is a sum over scales s of a function
    of :math:`\|a - b\|^2 / (2 D s)`, where 2 D is the mean squared distance of samples of N(0, I).
    A learned prior moves to the posterior, too.

    Args:
        weight: See :class:`Regularizer`.
        kernel: Function of squared distances: :func:`inverse_multiquadratic_kernel`,
            :func:`gaussian_kernel`, or your own.
        scales: Scales :math:`s`.
        latent: See :class:`Regularizer`.

    References:
        Gretton et al. (2012). A Kernel Two-Sample Test, eq. 3.
        Tolstikhin, Bousquet, Gelly, Scholkopf (2018). Wasserstein Auto-Encoders. arXiv:1711.01558.
        Zhao, Song, Ermon (2019). InfoVAE. arXiv:1706.02262.

    Example:
        >>> wae = ELBO(0.0) + MMDRegularizer(10.0)
        >>> info = ELBO(0.5) + MMDRegularizer(99.5, kernel=gaussian_kernel, scales=(1.0,))
    """

    def __init__(
        self,
        weight: float | Schedule,
        *,
        kernel: Kernel = inverse_multiquadratic_kernel,
        scales: Sequence[float] = SCALES,
        latent: str | None = None,
    ) -> None:
        super().__init__(weight, latent=latent)
        if not scales or min(scales) <= 0:
            raise ValueError(f"MMDRegularizer expects scales > 0, got {tuple(scales)}")
        self.kernel, self.scales = kernel, tuple(scales)

    def forward(
        self, model: LatentVariableModel, batch: Batch, output: VAEOutput
    ) -> RegularizerOutput:
        """Return the penalty of one pass; 0 for a batch of one example."""
        term = self.reparameterized_term(output)
        z, prior = term.z.flatten(2), prior_samples("MMDRegularizer", term).flatten(2)  # (K, B, D)
        size = z.shape[1]
        cross = self._similarity(z, prior).mean((1, 2))
        within = [self._similarity(rows, rows) for rows in (z, prior)]
        # Pairs of a sample with itself would bias the estimate.
        pairs = [(k.sum((1, 2)) - k.diagonal(dim1=1, dim2=2).sum(1)) for k in within]
        value = ((pairs[0] + pairs[1]) / max(size * (size - 1), 1) - 2 * cross).mean()
        if size < 2:
            value = 0.0 * value
        return RegularizerOutput(self.weighted(value), self.reported(mmd=value))

    def _similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the kernel of all pairs, ``(K, B, B)``."""
        squared = (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(-1) / (2 * a.shape[-1])
        return torch.stack([self.kernel(squared / scale) for scale in self.scales]).sum(0)
