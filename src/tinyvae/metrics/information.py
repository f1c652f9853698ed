r"""Disentanglement from the mutual information of each code dimension with each factor.

Mutual information is that of the joint histogram, in nats:

.. math:: m_{ik} = \sum_{a, b} \frac{n_{ab}}{N} \log \frac{N\, n_{ab}}{n_a\, n_b}.

Code dimensions, and factors that are no whole numbers, are binned into equal widths from their
least to their greatest value (20 bins, Locatello et al. 2019). The histogram overestimates the
information by about (bins - 1)(classes - 1) / (2 N) nats.
"""

import numpy as np

from tinyvae.metrics.scores import (
    Array,
    Floats,
    Indices,
    Score,
    as_factors,
    as_rows,
    jackknife,
)


def mutual_information(codes: Array, factors: Array, *, bins: int = 20) -> Floats:
    """Return the mutual information of each code dimension with each factor, in nats.

    Args:
        codes: Codes, such as the means of the posteriors.
        factors: Known factors. A column of whole numbers is a factor of classes.
        bins: Number of bins of equal width.

    Shape:
        codes: ``(N, L)``; factors: ``(N, K)`` or ``(N,)``; information: ``(L, K)``.

    Raises:
        ValueError: If a shape or value is invalid.

    Example:
        >>> factors = torch.arange(100).unsqueeze(1) // torch.tensor([1, 10]) % 10
        >>> mutual_information(factors.float(), factors).round(2)  # log 10 = 2.30
        array([[2.3, 0. ], [0. , 2.3]])
    """
    binned = _binned("mutual_information", codes, factors, bins)
    return _information(*binned)


def mutual_information_gap(codes: Array, factors: Array, *, bins: int = 20) -> Score:
    r"""Return the mutual information gap (MIG).

    .. math:: \frac1K \sum_k \frac{m_{i_k k} - \max_{i \ne i_k} m_{ik}}{H(v_k)}, \qquad
        i_k = \arg\max_i m_{ik}

    It is 1 if each factor is known from one code dimension and from no other, and 0 if two
    dimensions know it equally well. Chen et al. use draws of the encoder; this estimate uses the
    given codes, as Locatello et al. do. The standard error is by the jackknife over rows.

    Args:
        codes: Codes, such as the means of the posteriors.
        factors: Known factors. A column of whole numbers is a factor of classes.
        bins: Number of bins of equal width.

    Shape:
        codes: ``(N, L)``, ``L >= 2``; factors: ``(N, K)`` or ``(N,)``.

    Raises:
        ValueError: If a shape or value is invalid.

    References:
        Chen, Li, Grosse, Duvenaud (2018). Isolating Sources of Disentanglement in Variational
        Autoencoders. arXiv:1802.04942, eq. 6.
        Locatello et al. (2019). Challenging Common Assumptions in the Unsupervised Learning of
        Disentangled Representations. arXiv:1811.12359, appendix C.

    Example:
        >>> factors = torch.arange(100).unsqueeze(1) // torch.tensor([1, 10]) % 10
        >>> round(mutual_information_gap(factors.float(), factors).value, 6)
        1.0
    """
    x, y = _binned("mutual_information_gap", codes, factors, bins)
    if x.shape[1] < 2:
        raise ValueError("mutual_information_gap expects 2 code dimensions or more, got 1")

    def gap(rows: Indices) -> float:
        information = np.sort(_information(x[rows], y[rows]), axis=0)  # (L, K)
        entropy = np.array([_entropy(np.bincount(column)) for column in y[rows].T])
        return float(((information[-1] - information[-2]) / entropy).mean())

    return jackknife(gap, len(x))


def modularity(codes: Array, factors: Array, *, bins: int = 20) -> Score:
    r"""Return the modularity: does each code dimension know of one factor only?

    .. math:: \frac1L \sum_i \Big(1 - \frac{\sum_{k \ne k_i} m_{ik}^2}{(K - 1)\, m_{i k_i}^2}\Big),
        \qquad k_i = \arg\max_k m_{ik}

    A factor may have several dimensions. A constant dimension counts 0, as in the code of Locatello
    et al. The histogram gives noise a little information, more about factors of more classes, so
    that noise has any value between 0 and 1: leave out inactive dimensions.

    Args:
        codes: Codes, such as the means of the posteriors.
        factors: Known factors. A column of whole numbers is a factor of classes.
        bins: Number of bins of equal width.

    Shape:
        codes: ``(N, L)``; factors: ``(N, K)``, ``K >= 2``.

    Raises:
        ValueError: If a shape or value is invalid.

    References:
        Ridgeway, Mozer (2018). Learning Deep Disentangled Embeddings With the F-Statistic Loss.
        arXiv:1802.05312, section 3.

    Example:
        >>> factors = torch.arange(100).unsqueeze(1) // torch.tensor([1, 10]) % 10
        >>> round(modularity(factors.float(), factors).value, 6)
        1.0
    """
    x, y = _binned("modularity", codes, factors, bins)
    if y.shape[1] < 2:
        raise ValueError("modularity expects 2 factors or more, got 1")

    def mean_modularity(rows: Indices) -> float:
        squared = np.sort(_information(x[rows], y[rows]) ** 2, axis=1)  # (L, K)
        best, others = squared[:, -1], squared[:, :-1].mean(axis=1)
        deviation = np.divide(others, best, out=np.ones_like(best), where=best > 1e-12)
        return float(1 - deviation.mean())

    return jackknife(mean_modularity, len(x))


def equal_width_bins(values: Floats | Indices, bins: int) -> Indices:
    """Return the bin ``0..bins-1`` of each value of a column."""
    low, width = values.min(), np.ptp(values)
    if width == 0:
        return np.zeros(len(values), dtype=np.intp)
    index: Indices = ((values - low) / width * bins).astype(np.intp)
    return np.minimum(index, bins - 1)


def _binned(who: str, codes: Array, factors: Array, bins: int) -> tuple[Indices, Indices]:
    """Return codes ``(N, L)`` and factors ``(N, K)`` as class numbers."""
    if bins < 2:
        raise ValueError(f"{who} expects bins >= 2, got {bins}")
    x = as_rows(who, "codes", codes)
    columns = as_factors(who, factors, len(x))
    y = [c if c.dtype.kind == "i" else equal_width_bins(c, bins) for c in columns]
    return np.stack([equal_width_bins(c, bins) for c in x.T], 1), np.stack(y, 1)


def _information(x: Indices, y: Indices) -> Floats:
    """Return the mutual information of all pairs of columns, ``(L, K)``."""
    return np.array([[_pair_information(a, b) for b in y.T] for a in x.T])


def _pair_information(a: Indices, b: Indices) -> float:
    width = int(b.max()) + 1
    joint = np.bincount(a * width + b)
    return max(0.0, _entropy(np.bincount(a)) + _entropy(np.bincount(b)) - _entropy(joint))


def _entropy(counts: Indices) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())
