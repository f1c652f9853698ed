"""One-dimensional clusters of data, from which the components of a mixture start."""

import torch
import torch.nn.functional as F
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
    points = _quantiles(x)  # (D, Q)
    center = points.mean(1, keepdim=True)
    points = points - center
    shares = (torch.arange(num_clusters, device=x.device) + 0.5) / num_clusters
    by_number = points[:, (shares * points.shape[1]).long()]  # (D, M)
    by_width = torch.lerp(points[:, :1], points[:, -1:], shares.to(x.dtype))
    results = [_fitted(centers, points) for centers in (by_number, by_width)]
    (first, explained), (second, also_explained) = results
    cuts = torch.where((also_explained > explained).unsqueeze(1), second, first)
    index = torch.zeros(x.shape, dtype=torch.int16, device=x.device)
    for cut in (cuts + center).T.reshape(-1, *x.shape[1:]):
        index += x > cut
    return index


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
    """Return increasing quantiles of the observed values of each dimension, ``(D, Q)``.

    They are NaN without any.
    """
    rows: Tensor = spread_rows(x, MAX_EXAMPLES).flatten(1).T.sort(1).values  # (D, n), NaN last
    counts = (~torch.isnan(rows)).sum(1, keepdim=True)
    shares = (torch.arange(NUM_QUANTILES, device=x.device) + 0.5) / NUM_QUANTILES
    return rows.gather(1, torch.minimum((shares * counts).long(), (counts - 1).clamp(min=0)))


def _fitted(centers: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cuts between clusters ``(D, M - 1)`` after steps of k-means from ``centers``.

    Clusters of increasing points are intervals, whose sums are differences of cumulated sums. Empty
    clusters keep their center. Also return the sum of squares that the clusters explain, ``(D,)``.
    """
    sums = F.pad(points.cumsum(1), (1, 0))  # (D, Q + 1)
    for _ in range(NUM_STEPS):
        cuts = (centers[:, 1:] + centers[:, :-1]) / 2
        inner = torch.searchsorted(points, cuts.contiguous(), right=True)
        bounds = F.pad(F.pad(inner, (1, 0)), (0, 1), value=points.shape[1])
        counts, totals = bounds.diff(dim=1), sums.gather(1, bounds).diff(dim=1)  # (D, M)
        centers = torch.where(counts > 0, totals / counts.clamp(min=1), centers)
    return cuts, (totals.square() / counts.clamp(min=1)).sum(1)
