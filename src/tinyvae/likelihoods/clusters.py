"""One-dimensional clusters of data, from which the components of a mixture start."""

from itertools import pairwise

import torch
from torch import Tensor

from tinyvae.core.data import spread_rows

MAX_EXAMPLES = 2000  # from which clusters are computed
NUM_QUANTILES = 200  # of them, which also leaves out outliers
NUM_STEPS = 30


def cluster_indices(x: Tensor, num_clusters: int) -> Tensor:
    """Return the cluster of each value of ``x`` ``(N, *E)`` in its dimension, ``(N, *E)``.

    Clusters are ordered. Their squared distances are small (k-means in one dimension, Lloyd 1982).
    The result is the better of two starts, from equal numbers of values and from equal widths. A
    dimension with fewer different values has empty clusters. NaN entries are in cluster 0.
    """
    points = _quantiles(x)
    shares = (torch.arange(num_clusters, dtype=x.dtype, device=x.device) + 0.5) / num_clusters
    low, high = points[0], points[-1]
    by_number = points[(shares * len(points)).long()]
    by_width = low + (high - low) * shares.reshape(-1, *[1] * low.dim())
    first, second = _fitted(by_number, points), _fitted(by_width, points)
    is_better = _squared_distance(second, points) < _squared_distance(first, points)
    return _nearest(torch.where(is_better, second, first), x)


def within_cluster_std(x: Tensor, num_clusters: int) -> Tensor:
    """Return the standard deviation of values around the mean of their cluster, ``(*E)``.

    A mixture whose learned scale starts there finds narrow modes early in training. It is at least
    0.01 of the standard deviation of all values, and 1 for a dimension of one value.

    Args:
        x: Data ``(N, *E)``. NaN entries are ignored.
        num_clusters: Number of clusters in each dimension, as many as the mixture's components.

    Example:
        >>> x = torch.tensor([[-2.1], [-1.9], [0.9], [1.1]])
        >>> scale = Learned((1,), initial=within_cluster_std(x, 2).tolist())
        >>> MixtureLikelihood(GaussianLikelihood(scale), num_components=2).likelihood
        GaussianLikelihood(std=Learned(shape=(1,), initial=[0.09999...]))
    """
    observed, index = ~torch.isnan(x), cluster_indices(x, num_clusters)
    within = torch.zeros_like(x[0])
    for cluster in range(num_clusters):
        values = x.masked_fill(index != cluster, torch.nan)
        within = within + (values - values.nanmean(0)).square().nansum(0)
    number = observed.sum(0).clamp(min=1)
    total = (x - x.nanmean(0)).square().nansum(0)
    std = torch.maximum(within / number, 1e-4 * total / number).sqrt()
    return torch.where(std > 0, std, 1.0)


def _quantiles(x: Tensor) -> Tensor:
    """Return quantiles of the observed values of each dimension, ``(Q, *E)``, NaN without any."""
    rows: Tensor = spread_rows(x, MAX_EXAMPLES).sort(0).values  # NaN last
    counts = (~torch.isnan(rows)).sum(0)
    shares = (torch.arange(NUM_QUANTILES, device=x.device) + 0.5) / NUM_QUANTILES
    index = (shares.reshape(-1, *[1] * counts.dim()) * counts).long()
    return rows.gather(0, torch.minimum(index, (counts - 1).clamp(min=0)))


def _nearest(centers: Tensor, x: Tensor) -> Tensor:
    """Return the index of the nearest of the increasing centers ``(M, *E)``, ``(N, *E)``."""
    index = torch.zeros(x.shape, dtype=torch.int16, device=x.device)
    for lower, upper in pairwise(centers):
        index += x > (lower + upper) / 2
    return index


def _fitted(centers: Tensor, points: Tensor) -> Tensor:
    """Return centers ``(M, *E)`` after steps of k-means. Empty clusters keep theirs."""
    for _ in range(NUM_STEPS):
        index, means = _nearest(centers, points), []
        for cluster, center in enumerate(centers):
            hits = index == cluster
            total = torch.where(hits, points, 0.0).sum(0)
            count = hits.sum(0)
            means.append(torch.where(count > 0, total / count.clamp(min=1), center))
        centers = torch.stack(means)
    return centers


def _squared_distance(centers: Tensor, points: Tensor) -> Tensor:
    """Return the mean squared distance of points to their centers, ``(*E)``."""
    return (points - centers.gather(0, _nearest(centers, points).long())).square().mean(0)
