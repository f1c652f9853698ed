r"""Maximum mean discrepancy of two samples, and the kernel distance of their features.

For a kernel k, the squared discrepancy is estimated without bias by

.. math:: \widehat{\mathrm{MMD}}^2 = \frac{1}{N (N - 1)} \sum_{i \ne j} k(x_i, x_j)
    + \frac{1}{M (M - 1)} \sum_{i \ne j} k(y_i, y_j) - \frac{2}{N M} \sum_{i, j} k(x_i, y_j),

so it may be negative.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyvae.metrics.scores import Array, Score, as_pair

CHUNK_ELEMENTS = 2**23  # entries of a kernel matrix, 64 MiB
MEDIAN_ROWS = 1000
Kernel = Callable[[Tensor, Tensor], Tensor]  # (n, D) and (m, D) to (n, m)


@dataclass(frozen=True)
class Discrepancy:
    """Squared maximum mean discrepancy.

    Attributes:
        squared: Unbiased estimate. The standard error is by the jackknife over rows. It is up to
            about 1.4 times too large if the distributions are equal.
        p_value: Share of random permutations of the pooled rows with at least this estimate, or
            NaN without permutations. If the distributions are equal it is uniform.
    """

    squared: Score
    p_value: float


def mmd(
    real: Array,
    generated: Array,
    *,
    bandwidth: float | None = None,
    permutations: int = 200,
    seed: int = 0,
) -> Discrepancy:
    r"""Return the squared maximum mean discrepancy, with the p-value of equal distributions.

    The kernel is :math:`\exp(-\|a - b\|^2 / (2 h^2))`. The smallest p-value is 1 / (permutations +
    1). Memory does not grow with the square of the number of rows.

    Args:
        real: Features of real data that the model was not trained on, or the data themselves.
        generated: The same of samples.
        bandwidth: :math:`h`. By default the median distance of (up to 1,000 of) the pooled rows.
        permutations: Number of permutations for the p-value.
        seed: Seed of the permutations and of the rows for the median.

    Shape:
        real: ``(N, D)``; generated: ``(M, D)``. Other dimensions are flattened.

    Raises:
        ValueError: If a shape or value is invalid.

    References:
        Gretton, Borgwardt, Rasch, Scholkopf, Smola (2012). A Kernel Two-Sample Test. JMLR 13, eq. 3
        and section 8.

    Example:
        >>> result = mmd(torch.randn(200, 2), torch.randn(200, 2) + 1)
        >>> result.squared.value > 0.1, round(result.p_value, 4)
        (True, 0.005)
    """
    x, y = as_pair("mmd", real, generated)
    if permutations < 0 or (bandwidth is not None and not 0 < bandwidth < math.inf):
        raise ValueError(
            f"mmd expects permutations >= 0 and bandwidth > 0, got {permutations} and {bandwidth}"
        )
    pooled = torch.cat([x, y])
    generator = torch.Generator().manual_seed(seed)
    if bandwidth is None:
        rows = torch.randperm(len(pooled), generator=generator)[:MEDIAN_ROWS]
        bandwidth = torch.pdist(pooled[rows.to(pooled.device)]).median().item()
        if bandwidth == 0:
            raise ValueError(
                "mmd expects rows that differ, got a median distance of 0: set the bandwidth"
            )

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(a, b).square() / (2 * bandwidth**2))

    is_real = torch.arange(len(pooled)) < len(x)
    shuffled = [
        is_real[torch.randperm(len(pooled), generator=generator)] for _ in range(permutations)
    ]
    labels = torch.stack([is_real, *shuffled], 1).to(pooled)  # (N + M, 1 + permutations)
    score, estimates = _estimates(kernel, pooled, labels)
    above = int((estimates[1:] >= estimates[0]).sum())
    return Discrepancy(score, (above + 1) / (permutations + 1) if permutations else math.nan)


def kernel_distance(real: Array, generated: Array) -> Score:
    r"""Return the kernel distance of features, the KID of Inception features.

    It is the squared maximum mean discrepancy with the kernel :math:`(a^\top b / D + 1)^3`, which
    compares means, covariances and third moments. Unlike the Frechet distance it is unbiased. The
    standard error is by the jackknife over rows.

    Args:
        real: Features of real data that the model was not trained on.
        generated: Features of samples, by the same function.

    Shape:
        real: ``(N, D)``; generated: ``(M, D)``. Other dimensions are flattened.

    Raises:
        ValueError: If a shape or value is invalid.

    References:
        Binkowski, Sutherland, Arbel, Gretton (2018). Demystifying MMD GANs. arXiv:1801.01401,
        section 4.

    Example:
        >>> score = kernel_distance(torch.randn(500, 8), 2 * torch.randn(500, 8))
        >>> score.value > 4 * score.standard_error
        True
    """
    x, y = as_pair("kernel_distance", real, generated)
    pooled = torch.cat([x, y])
    is_real = (torch.arange(len(pooled), device=x.device) < len(x)).to(x).unsqueeze(1)
    return _estimates(lambda a, b: (a @ b.mT / a.shape[1] + 1) ** 3, pooled, is_real)[0]


def _estimates(kernel: Kernel, pooled: Tensor, labels: Tensor) -> tuple[Score, Tensor]:
    """Return the estimate of the first column of labels, and those of all columns.

    Labels are 1 for rows of the first sample and 0 for rows of the second.
    """
    total, n = len(pooled), labels[:, 0].sum()
    m = total - n
    to_all = pooled.new_zeros(total)  # sums of the kernel over the other rows
    to_real = torch.zeros_like(labels)  # the same over the rows of the first sample
    size = max(1, CHUNK_ELEMENTS // total)
    for start in range(0, total, size):
        matrix = kernel(pooled[start : start + size], pooled)  # (s, N + M)
        matrix.diagonal(start).zero_()  # pairs of a row with itself would bias the estimate
        to_all[start : start + size] = matrix.sum(1)
        to_real[start : start + size] = matrix @ labels
    real = (labels * to_real).sum(0)
    cross = (labels * (to_all.unsqueeze(1) - to_real)).sum(0)
    generated = to_all.sum() - real - 2 * cross
    estimates = real / (n * (n - 1)) + generated / (m * (m - 1)) - 2 * cross / (n * m)

    # Jackknife: the estimate without row i follows from the sums of its row.
    is_real, within_real = labels[:, 0] == 1, to_real[:, 0]
    variance = 0.0
    for mask, own, within, across, count, other in (
        (is_real, real[0], within_real, to_all - within_real, n, m),
        (~is_real, generated[0], to_all - within_real, within_real, m, n),
    ):
        left = (own - 2 * within[mask]) / ((count - 1) * (count - 2).clamp(min=1))
        left = left - 2 * (cross[0] - across[mask]) / ((count - 1) * other)
        variance += ((count - 1) * left.var(correction=0)).item()
    enough = min(n, m) > 2
    error = math.sqrt(variance) if enough else math.nan
    return Score(estimates[0].item(), error, 0.0), estimates
