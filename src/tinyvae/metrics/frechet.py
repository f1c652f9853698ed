"""Frechet distance of the Gaussians with the moments of two samples."""

import torch
from torch import Tensor

from tinyvae.core.warnings import warn
from tinyvae.metrics.scores import Array, Indices, Score, as_pair, jackknife


def gaussian_frechet_distance(
    mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor
) -> Tensor:
    r"""Return the squared Wasserstein-2 distance of two Gaussians.

    .. math:: \|\mu_a - \mu_b\|^2 + \operatorname{tr}\Big(\Sigma_a + \Sigma_b
        - 2 \big(\Sigma_a^{1/2} \Sigma_b \Sigma_a^{1/2}\big)^{1/2}\Big)

    Args:
        mean_a: Mean of the first Gaussian.
        covariance_a: Its covariance, which may be singular.
        mean_b: Mean of the second Gaussian.
        covariance_b: Its covariance.

    Shape:
        means: ``(D,)``; covariances: ``(D, D)``; distance: ``()``.

    References:
        Dowson, Landau (1982). The Frechet distance between multivariate normal distributions.
        Journal of Multivariate Analysis 12.

    Example:
        >>> zero, one = torch.zeros(3), torch.eye(3)
        >>> gaussian_frechet_distance(zero, one, zero + 1, 4 * one)  # 3 + 3 (2 - 1)^2
        tensor(6.)
    """
    values, vectors = torch.linalg.eigh(covariance_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    # Rounding may make eigenvalues negative.
    product = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0)
    trace = (covariance_a.diagonal() + covariance_b.diagonal()).sum() - 2 * product.sqrt().sum()
    distance: Tensor = (mean_a - mean_b).square().sum() + trace
    return distance


def frechet_distance(real: Array, generated: Array) -> Score:
    r"""Return the Frechet distance of features, the FID of Inception features.

    It is :func:`gaussian_frechet_distance` of the sample means and the unbiased sample covariances.
    It compares two moments only. It is biased upwards by about a constant over the number of rows,
    and the constant depends on the model: compare at the same number of rows, next to the distance
    of two parts of the real data. Standard error and bias are by the grouped jackknife.

    Args:
        real: Features of real data that the model was not trained on.
        generated: Features of samples, by the same function.

    Shape:
        real: ``(N, D)``; generated: ``(M, D)``. Other dimensions are flattened.

    Returns:
        Distance, without correction of the bias. ``score.value - score.bias`` has less bias.

    Warns:
        UserWarning: If a sample has no more rows than features. Its covariance is singular, and the
            distance mostly bias.

    Raises:
        ValueError: If a shape or value is invalid.

    References:
        Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter (2017). GANs Trained by a Two Time-Scale
        Update Rule Converge to a Local Nash Equilibrium. arXiv:1706.08500, eq. 6.
        Chong, Forsyth (2020). Effectively Unbiased FID and Inception Score. arXiv:1911.07023.

    Example:
        >>> score = frechet_distance(torch.randn(2000, 2), torch.randn(2000, 2) + 1)  # 2
        >>> abs(score.value - 2) < 4 * score.standard_error
        True
    """
    x, y = as_pair("frechet_distance", real, generated)
    if min(len(x), len(y)) <= x.shape[1]:
        warn(
            f"frechet_distance expects many more rows than features, got {len(x)} real and "
            f"{len(y)} generated rows of {x.shape[1]} features: the distance is mostly bias, use "
            "kernel_distance, fewer features or more rows"
        )

    def distance(rows_x: Indices, rows_y: Indices) -> float:
        moments = []
        for sample, rows in ((x, rows_x), (y, rows_y)):
            part = sample[torch.as_tensor(rows, device=sample.device)]
            moments += [part.mean(0), torch.atleast_2d(part.mT.cov())]
        return gaussian_frechet_distance(*moments).item()

    return jackknife(distance, len(x), len(y))
