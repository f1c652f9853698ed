"""Measures of synthetic rows: the quality score of SDMetrics, efficacy, distance to real rows.

``quality`` follows the published definition of SDMetrics' QualityReport. It is the mean of two
means: the similarity of the distribution of each column, and of the trend of each pair of columns.

- Column of numbers: 1 - the Kolmogorov-Smirnov statistic. Categories: 1 - the total variation.
- Pair of numbers: 1 - half the difference of their correlations. Other pairs: 1 - the total
  variation of their joint frequencies, with numbers in ten bins between their own extremes.

Tables of independent columns score high, because most pairs of columns are nearly independent.
``strict_quality``, the default of sdmetrics 0.32, leaves pairs out whose correlation or
association in the real table is small. ``efficacy`` needs the joint distribution of all columns.
"""

from itertools import combinations
from typing import Any

import numpy as np

Frame = Any  # pandas.DataFrame; pandas is imported where it is used
Matrix = np.ndarray[Any, Any]
LEAST_CORRELATION, LEAST_ASSOCIATION = 0.5, 0.3  # of dependent pairs, by sdmetrics
NEAR = 0.05  # quantile of held-out rows' distances below which a row counts as a near-copy


def quality(real: Frame, synthetic: Frame, numbers: list[str]) -> dict[str, float]:
    """Return the quality score, its two parts, and the score over the dependent pairs only."""
    columns = list(real.columns)
    codes = {name: _codes(real[name], synthetic[name], name in numbers) for name in columns}
    shapes = [_shape(real[name], synthetic[name], name in numbers) for name in columns]
    pairs, dependent = [], []
    for a, b in combinations(columns, 2):
        if a in numbers and b in numbers:
            strength, score = _correlation_similarity(real[[a, b]], synthetic[[a, b]])
            is_dependent = strength > LEAST_CORRELATION
        else:
            strength, score = _contingency_similarity(codes[a], codes[b])
            is_dependent = strength > LEAST_ASSOCIATION
        pairs.append(score)
        if is_dependent:
            dependent.append(score)
    shape, pair = float(np.mean(shapes)), float(np.mean(pairs))
    strict = float(np.mean(dependent)) if dependent else np.nan
    return {
        "quality": (shape + pair) / 2,
        "shapes": shape,
        "pairs": pair,
        "dependent_pairs": strict,
        "strict_quality": (shape + strict) / 2,
    }


def sdmetrics_quality(
    real: Frame, synthetic: Frame, numbers: list[str], *, strict: bool
) -> float | None:
    """Return ``quality`` or ``strict_quality`` by the package sdmetrics; None if not installed."""
    try:
        from sdmetrics.reports.single_table import QualityReport
    except ImportError:
        return None
    kinds = {c: "numerical" if c in numbers else "categorical" for c in real.columns}
    metadata = {"columns": {name: {"sdtype": kind} for name, kind in kinds.items()}}
    report = QualityReport()
    if not strict:
        report.real_correlation_threshold = report.real_association_threshold = 0
    report.generate(real, synthetic, metadata, verbose=False)
    return float(report.get_score())


def _shape(real: Any, synthetic: Any, is_number: bool) -> float:
    from scipy.stats import ks_2samp

    real, synthetic = real.dropna(), synthetic.dropna()
    if is_number:
        return 1 - float(ks_2samp(real, synthetic).statistic)
    first, second = (column.value_counts(normalize=True) for column in (real, synthetic))
    return 1 - float(first.sub(second, fill_value=0).abs().sum()) / 2


def _codes(real: Any, synthetic: Any, is_number: bool) -> tuple[Matrix, Matrix]:
    """Return the bins or levels of a column of both tables; a missing value is a level."""
    import pandas as pd

    if is_number:
        return tuple(
            np.digitize(column, np.histogram_bin_edges(column.dropna()))
            for column in (real, synthetic)
        )
    codes, _ = pd.factorize(pd.concat([real, synthetic]), use_na_sentinel=False)
    return codes[: len(real)], codes[len(real) :]


def _correlation_similarity(real: Frame, synthetic: Frame) -> tuple[float, float]:
    """Return the size of the real correlation, and the similarity."""
    r, s = (table.dropna().corr().to_numpy()[0, 1] for table in (real, synthetic))
    return abs(r), 1 - abs(r - s) / 2


def _contingency_similarity(
    first: tuple[Matrix, Matrix], second: tuple[Matrix, Matrix]
) -> tuple[float, float]:
    """Return the strength of the real association, Cramer's V, and the similarity."""
    from scipy.stats.contingency import association

    height, width = (1 + max(part.max() for part in parts) for parts in (first, second))
    counts = [
        np.bincount(a * width + b, minlength=height * width)
        for a, b in zip(first, second, strict=True)
    ]
    real = counts[0].reshape(height, width)
    real = real[real.any(1)][:, real.any(0)]
    strength = float(association(real)) if min(real.shape) > 1 else 0.0
    p, q = (count / count.sum() for count in counts)
    return strength, 1 - float(np.abs(p - q).sum()) / 2


def efficacy(train: Frame, test: Frame, target: str, positive: Any, numbers: list[str]) -> float:
    """Return the AUC on ``test`` of gradient-boosted trees that are fitted to ``train``."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import OrdinalEncoder

    features = [name for name in train.columns if name != target]
    categories = [name for name in features if name not in numbers]
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    encoder.fit(train[categories].astype(object))

    def matrix(table: Frame) -> Matrix:
        coded = encoder.transform(table[categories].astype(object))
        return np.concatenate([table[[c for c in features if c in numbers]], coded], 1)

    labels = train[target] == positive
    if labels.all() or not labels.any():
        return 0.5
    first = len(features) - len(categories)
    model = HistGradientBoostingClassifier(
        categorical_features=list(range(first, len(features))), random_state=0
    )
    scores = model.fit(matrix(train), labels).predict_proba(matrix(test))[:, 1]
    return float(roc_auc_score(test[target] == positive, scores))


def closest_records(
    train: Frame, held_out: Frame, synthetic: Frame, numbers: list[str], num_rows: int = 5000
) -> dict[str, float]:
    """Compare the distances of synthetic and of held-out rows to their closest training row.

    The squared distance of two rows is the number of categories that differ, plus the squared
    differences of the numbers' ranks, as shares of the rows. ``near_copies`` is the share of
    synthetic rows that are closer than 5 % of the held-out rows are: about 0.05 if the model does
    not copy. ``copies`` and ``held_out_copies`` are shares of rows that equal a training row.
    """
    tables = [train, held_out.head(num_rows), synthetic.head(num_rows)]
    points = _points(tables, numbers)
    held, drawn = (_distances(part, points[0]) for part in points[1:])
    return {
        "near_copies": float((drawn < np.quantile(held, NEAR)).mean()),
        "copies": float((drawn < 1e-6).mean()),
        "held_out_copies": float((held < 1e-6).mean()),
        "median_distance": float(np.median(drawn)),
        "held_out_median_distance": float(np.median(held)),
    }


def _points(tables: list[Frame], numbers: list[str]) -> list[Matrix]:
    """Return rows as points whose squared Euclidean distance is that of the rows."""
    import pandas as pd

    parts: list[list[Matrix]] = [[] for _ in tables]
    for name in tables[0].columns:
        if name in numbers:
            ordered = np.sort(tables[0][name].dropna())
            for part, table in zip(parts, tables, strict=True):
                low, high = (
                    np.searchsorted(ordered, table[name], side=s) for s in ("left", "right")
                )
                part.append((low + high)[:, None] / (2 * len(ordered)))
            continue
        codes, levels = pd.factorize(pd.concat([t[name] for t in tables]), use_na_sentinel=False)
        one_hot = np.eye(len(levels))[codes] / np.sqrt(2)
        for part, rows in zip(
            parts, np.split(one_hot, np.cumsum([len(t) for t in tables])[:-1]), strict=True
        ):
            part.append(rows)
    return [np.concatenate(part, 1) for part in parts]


def _distances(points: Matrix, references: Matrix, chunk: int = 500) -> Matrix:
    """Return the distance of each point to the closest reference."""
    squares = np.square(references).sum(1)
    nearest = []
    for start in range(0, len(points), chunk):
        rows = points[start : start + chunk]
        squared = np.square(rows).sum(1)[:, None] + squares - 2 * rows @ references.T
        nearest.append(np.sqrt(np.maximum(squared.min(1), 0)))
    return np.concatenate(nearest)
