r"""Probes: predict labels from codes, on rows that the probe was not fitted to.

Classes are scored by accuracy, real labels by :math:`R^2 = 1 - \sum_i (y_i - \hat y_i)^2 /
\sum_i (y_i - \bar y)^2`. The standard error is over the test rows, for the fitted probe.
"""

from typing import Any

import numpy as np

from tinyvae.metrics.scores import (
    Array,
    Floats,
    Indices,
    Labels,
    Score,
    as_labels,
    as_rows,
    missing_sklearn,
)


def linear_probe(
    codes: Array, labels: Labels, *, test_rows: Labels | None = None, seed: int = 0
) -> Score:
    """Predict labels from codes by a linear model.

    Classes have a logistic regression with an L2 penalty of one half of the squared weights, real
    labels a ridge regression with a penalty of the squared weights. Codes are standardized.

    Args:
        codes: Codes, such as the means of the posteriors.
        labels: Classes (whole numbers or strings), or real numbers.
        test_rows: Numbers of the rows to test on, or True for these. All others are for the fit.
            By default a random fifth, of each class if there are classes.
        seed: Seed of the random split.

    Shape:
        codes: ``(N, L)``; labels: ``(N,)``.

    Returns:
        Accuracy, or R² of real labels.

    Raises:
        ImportError: If scikit-learn is missing (extra ``sklearn``).
        ValueError: If a shape or value is invalid.

    References:
        Alain, Bengio (2016). Understanding intermediate layers using linear classifier probes.
        arXiv:1610.01644.

    Example:
        >>> codes = torch.randn(1000, 5)
        >>> linear_probe(codes, codes[:, 1] > 0).value > 0.95
        True
    """
    try:
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise missing_sklearn("linear_probe") from error
    x, y = as_rows("linear_probe", "codes", codes), as_labels("linear_probe", labels, len(codes))
    model = LogisticRegression(max_iter=10_000) if y.dtype.kind == "i" else Ridge()
    return _held_out("linear_probe", make_pipeline(StandardScaler(), model), x, y, test_rows, seed)


def knn_probe(
    codes: Array, labels: Labels, *, k: int = 10, test_rows: Labels | None = None, seed: int = 0
) -> Score:
    """Predict labels from codes by the ``k`` nearest codes.

    Distances are Euclidean, and codes are not standardized, so that dimensions that collapsed to
    the prior, whose means are all about equal, do not count.

    Args:
        codes: Codes, such as the means of the posteriors.
        labels: Classes (whole numbers or strings), or real numbers.
        k: Number of neighbors. Their most frequent class, or their mean, is the prediction.
        test_rows: See :func:`linear_probe`.
        seed: See :func:`linear_probe`.

    Shape:
        codes: ``(N, L)``; labels: ``(N,)``.

    Returns:
        Accuracy, or R² of real labels.

    Raises:
        ImportError: If scikit-learn is missing (extra ``sklearn``).
        ValueError: If a shape or value is invalid.

    Example:
        >>> codes = torch.randn(1000, 2)
        >>> knn_probe(codes, codes.norm(dim=1) > 1).value > 0.9  # not linear
        True
    """
    try:
        from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
    except ImportError as error:
        raise missing_sklearn("knn_probe") from error
    x, y = as_rows("knn_probe", "codes", codes), as_labels("knn_probe", labels, len(codes))
    make = KNeighborsClassifier if y.dtype.kind == "i" else KNeighborsRegressor
    return _held_out("knn_probe", make(n_neighbors=k), x, y, test_rows, seed)


def split_rows(
    who: str, labels: Indices | Floats, test_rows: Labels | None, seed: int
) -> tuple[Indices, Indices]:
    """Return the row numbers of the fit and of the test."""
    rows = np.arange(len(labels))
    if test_rows is not None:
        test = np.asarray(test_rows)
        test = np.intersect1d(rows, rows[test])  # from True, or from numbers
    else:
        order = np.random.default_rng(seed).permutation(rows)
        if labels.dtype.kind == "i":  # of each class the same share
            order = order[np.argsort(labels[order], kind="stable")]
        test = order[2::5]
    train = np.setdiff1d(rows, test)
    if min(len(train), len(test)) < 2:
        raise ValueError(
            f"{who} expects 2 rows or more for the fit and for the test, got {len(train)} and "
            f"{len(test)}: pass more rows"
        )
    return train, test


def prediction_score(y: Indices | Floats, predicted: Indices | Floats) -> Score:
    """Return the accuracy of classes, or the R² of real numbers."""
    if y.dtype.kind == "i":
        return Score.of((y == predicted).astype(np.float64))
    squared, total = (y - predicted) ** 2, (y - y.mean()) ** 2
    if total.sum() == 0:
        raise ValueError("R² expects test labels that vary: pass more rows")
    ratio = float(squared.sum() / total.sum())
    # Delta method for a ratio of means.
    error = float(np.std(squared - ratio * total, ddof=1) / total.mean() / np.sqrt(len(y)))
    return Score(1 - ratio, error)


def _held_out(
    who: str, model: Any, x: Floats, y: Indices | Floats, test_rows: Labels | None, seed: int
) -> Score:
    train, test = split_rows(who, y, test_rows, seed)
    predicted = model.fit(x[train], y[train]).predict(x[test])
    return prediction_score(y[test], predicted)
