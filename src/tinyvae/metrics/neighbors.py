r"""Sample quality by nearest neighbors: precision, recall, density and coverage.

:math:`B(x_i)` is the ball around :math:`x_i` whose radius is the distance to the k-th nearest other
point of the same set. The balls of a set stand for its support.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyvae.metrics.scores import Array, Score, as_pair

CHUNK_ELEMENTS = 2**23  # entries of a matrix of distances, 64 MiB


@dataclass(frozen=True)
class NeighborScores:
    """Quality and variety of samples.

    The standard errors are those of a mean over points, for given balls. Points share balls, so
    repetitions with new data spread more, up to about twice.

    Attributes:
        precision: Share of the samples inside of a ball of real data: quality.
        recall: Share of the real data inside of a ball of samples: variety.
        density: Mean number of balls of real data that contain a sample, over k: quality. It is
            about 1 for samples of the true distribution, may exceed 1, and hardly depends on
            outliers.
        coverage: Share of the balls of real data that contain a sample: variety.
    """

    precision: Score
    recall: Score
    density: Score
    coverage: Score


def neighbor_scores(real: Array, generated: Array, *, k: int = 5) -> NeighborScores:
    r"""Return precision, recall, density and coverage of samples.

    With real features :math:`x_1, \dots, x_N` and generated ones :math:`y_1, \dots, y_M`,

    .. math:: \mathrm{precision} &= \tfrac1M \textstyle\sum_j 1[y_j \in \bigcup_i B(x_i)], &
        \mathrm{recall} &= \tfrac1N \textstyle\sum_i 1[x_i \in \bigcup_j B(y_j)], \\
        \mathrm{density} &= \tfrac{1}{k M} \textstyle\sum_{ij} 1[y_j \in B(x_i)], &
        \mathrm{coverage} &= \tfrac1N \textstyle\sum_i 1[\exists j: y_j \in B(x_i)].

    All depend on k and on the numbers of rows, so compare at the same. For samples of the true
    distribution, coverage is :math:`1 - \prod_{j=1}^k \frac{N - j}{N + M - j}` in expectation:
    .97 at k = 5 and N = M.

    Args:
        real: Features of real data that the model was not trained on. Distances are Euclidean.
        generated: Features of as many samples, by the same function.
        k: Number of neighbors. Kynkaanniemi et al. use 3, Naeem et al. use 5.

    Shape:
        real: ``(N, D)``; generated: ``(M, D)``. Other dimensions are flattened.

    Raises:
        ValueError: If a shape or value is invalid, or a set has k rows or fewer.

    References:
        Kynkaanniemi, Karras, Laine, Lehtinen, Aila (2019). Improved Precision and Recall Metric for
        Assessing Generative Models. arXiv:1904.06991, eq. 1 and 2.
        Naeem, Oh, Uh, Choi, Yoo (2020). Reliable Fidelity and Diversity Metrics for Generative
        Models. arXiv:2002.09797, section 3 and lemma 2.

    Example:
        >>> real, generated = torch.randn(500, 2), 0.1 * torch.randn(500, 2)  # too narrow
        >>> scores = neighbor_scores(real, generated)
        >>> scores.precision.value > 0.95, scores.recall.value < 0.2
        (True, True)
    """
    x, y = as_pair("neighbor_scores", real, generated)
    if not 1 <= k < min(len(x), len(y)):
        raise ValueError(
            f"neighbor_scores expects 1 <= k < number of rows, got k={k} for {len(x)} real and "
            f"{len(y)} generated rows: pass more rows"
        )
    radius_x, radius_y = _radii(x, k), _radii(y, k)  # (N,), (M,)
    balls = x.new_zeros(len(y))  # number of balls of real data that contain each sample, (M,)
    covered, recalled = [], []
    for rows, distances in _distances(x, y):  # (n, M)
        inside = distances <= radius_x[rows, None]
        balls += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distances <= radius_y).any(1))
    each = (balls > 0, torch.cat(recalled), balls / k, torch.cat(covered))
    return NeighborScores(*(Score.of(values.double().cpu().numpy()) for values in each))


def _radii(x: Tensor, k: int) -> Tensor:
    """Return the distance of each row to its k-th nearest other row, ``(N,)``."""
    # The nearest row is the row itself, or one that equals it.
    return torch.cat([d.kthvalue(k + 1, dim=1).values for _, d in _distances(x, x)])


def _distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Return the Euclidean distances of some rows of x at a time to all rows of y."""
    size = max(1, CHUNK_ELEMENTS // len(y))
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        # Exact differences: the faster matrix product loses half of the digits of small distances.
        yield rows, torch.cdist(x[rows], y, compute_mode="donot_use_mm_for_euclid_dist")
