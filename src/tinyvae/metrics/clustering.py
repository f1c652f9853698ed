r"""Agreement of clusters with classes.

With the contingency table :math:`n_{ab}` of clusters a and classes b, accuracy is that of the best
one-to-one map of clusters to classes,

.. math:: \max_\pi \tfrac1N \textstyle\sum_a n_{a \pi(a)}, \qquad
    \mathrm{NMI} = \frac{2\, I(a; b)}{H(a) + H(b)},

and ARI is the Rand index, adjusted to mean 0 for random clusters (Hubert and Arabie 1985).
"""

from dataclasses import dataclass

import numpy as np

from tinyvae.metrics.scores import (
    Array,
    Labels,
    Score,
    as_labels,
    as_rows,
    jackknife,
    missing_sklearn,
)


@dataclass(frozen=True)
class ClusteringScores:
    """Agreement of clusters with classes, 1 if they are the same.

    Attributes:
        accuracy: Accuracy of the best one-to-one map of clusters to classes.
        normalized_mutual_information: Mutual information over the mean of the two entropies.
        adjusted_rand_index: Rand index, adjusted for chance.
    """

    accuracy: Score
    normalized_mutual_information: Score
    adjusted_rand_index: Score


def clustering(clusters: Labels, labels: Labels) -> ClusteringScores:
    """Compare clusters with classes.

    The standard errors are over the rows, for the given clusters. The numbers of clusters and
    classes may differ; the accuracy then leaves clusters or classes without partner.

    Args:
        clusters: Cluster of each row, such as the component of a mixture prior or the result of
            :func:`k_means`.
        labels: Class of each row.

    Shape:
        clusters, labels: ``(N,)``.

    Raises:
        ImportError: If scikit-learn is missing (extra ``sklearn``).
        ValueError: If a shape is invalid, or labels are no classes.

    References:
        Xie, Girshick, Farhadi (2016). Unsupervised Deep Embedding for Clustering Analysis.
        arXiv:1511.06335, eq. 10.
        Hubert, Arabie (1985). Comparing partitions. Journal of Classification 2.

    Example:
        >>> scores = clustering([1, 1, 0, 0, 2, 2], ["a", "a", "b", "b", "c", "a"])
        >>> round(scores.accuracy.value, 3)
        0.833
    """
    try:
        from scipy.optimize import linear_sum_assignment
        from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    except ImportError as error:
        raise missing_sklearn("clustering") from error
    size = len(labels)
    a, b = as_labels("clustering", clusters, size), as_labels("clustering", labels, size)
    if a.dtype.kind != "i" or b.dtype.kind != "i":
        raise ValueError(
            "clustering expects classes, got real numbers: pass the cluster and the class of each "
            "row, or k_means(codes, num_clusters)"
        )
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a.astype(np.intp), b.astype(np.intp)), 1)
    map_to_class = np.full(len(table), -1)
    cluster, partner = linear_sum_assignment(-table)
    map_to_class[cluster] = partner
    return ClusteringScores(
        Score.of((map_to_class[a] == b).astype(np.float64)),
        jackknife(lambda rows: float(normalized_mutual_info_score(b[rows], a[rows])), size),
        jackknife(lambda rows: float(adjusted_rand_score(b[rows], a[rows])), size),
    )


def k_means(codes: Array, num_clusters: int, *, seed: int = 0) -> np.ndarray:
    """Return the cluster of each code by k-means, the best of ten starts.

    Args:
        codes: Codes, such as the means of the posteriors.
        num_clusters: Number of clusters.
        seed: Seed of the starts.

    Shape:
        codes: ``(N, L)``; clusters: ``(N,)``.

    Raises:
        ImportError: If scikit-learn is missing (extra ``sklearn``).
        ValueError: If a shape or value is invalid.

    Example:
        >>> labels = torch.arange(90) % 3
        >>> codes = 10.0 * labels.unsqueeze(1) + torch.randn(90, 1)
        >>> clustering(k_means(codes, 3), labels).accuracy.value
        1.0
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise missing_sklearn("k_means") from error
    means = KMeans(num_clusters, n_init=10, random_state=seed)
    clusters: np.ndarray = means.fit_predict(as_rows("k_means", "codes", codes))
    return clusters
