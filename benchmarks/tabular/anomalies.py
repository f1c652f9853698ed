"""Anomaly detection: AUROC on sets of ADBench, by the protocol of Livernoche et al. (2024).

Semi-supervised: sets of fewer than 1,000 rows are resampled with replacement to 1,000; training is
on the first half of the normal rows, the test on the others and on all anomalies. Copies of one row
then stand in training and test. ``distinct`` is the same without resampling: the rows are permuted.
Unsupervised: training is on a bootstrap of all rows, the test on all rows.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tabular import models

Matrix = np.ndarray[Any, Any]
SETTINGS = ("semi-supervised", "unsupervised", "distinct")
SMALL = 1000  # rows


def isolation_forest(train: Matrix, test: Matrix, seed: int) -> Matrix:
    """Score by scikit-learn's isolation forest."""
    from sklearn.ensemble import IsolationForest

    return -IsolationForest(random_state=seed).fit(train).score_samples(test)


def local_outlier_factor(train: Matrix, test: Matrix, _: int) -> Matrix:
    """Score by the local outlier factor of 20 neighbors."""
    from sklearn.neighbors import LocalOutlierFactor

    return -LocalOutlierFactor(novelty=True).fit(train).score_samples(test)


def neighbor_distance(train: Matrix, test: Matrix, _: int) -> Matrix:
    """Score by the distance to the fifth nearest neighbor."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=5).fit(train).kneighbors(test)[0][:, -1]


def one_class_svm(train: Matrix, test: Matrix, _: int) -> Matrix:
    """Score by the one-class support vector machine."""
    from sklearn.svm import OneClassSVM

    return -OneClassSVM().fit(train).score_samples(test)


METHODS: dict[str, Callable[[Matrix, Matrix, int], Matrix]] = {
    "VAEDetector": models.score,
    "IsolationForest": isolation_forest,
    "LocalOutlierFactor": local_outlier_factor,
    "kNN distance": neighbor_distance,
    "OneClassSVM": one_class_svm,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this part."""
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))


def split(x: Matrix, y: Matrix, setting: str, seed: int) -> tuple[Matrix, Matrix, Matrix]:
    """Return training rows, test rows and the labels of the test rows."""
    rng = np.random.RandomState(seed)  # the generator of the published protocol
    if setting == "unsupervised":
        return x[rng.choice(len(x), len(x))], x, y
    if setting == "distinct":
        order = rng.permutation(len(x))
        x, y = x[order], y[order]
    elif len(x) < SMALL:
        rows = rng.choice(len(x), SMALL)
        x, y = x[rows], y[rows]
    normal, anomalies = x[y == 0], x[y == 1]
    half = len(normal) // 2
    labels = np.r_[np.zeros(len(normal) - half), np.ones(len(anomalies))]
    return normal[:half], np.r_[normal[half:], anomalies], labels


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a record per setting, set, method and seed."""
    from sklearn.metrics import roc_auc_score

    paths = sorted((args.data / "adbench").glob("*.npz"))
    for path in (p for p in paths if args.sets is None or p.stem in args.sets):
        data = np.load(path, allow_pickle=False)
        for setting in args.settings:
            for seed in args.seeds:
                train, test, y = split(data["X"], data["y"], setting, seed)
                for method in args.methods:
                    start = time.perf_counter()
                    a, b = (train, test) if method == "VAEDetector" else standardize(train, test)
                    scores = METHODS[method](a, b, seed)
                    yield {
                        "set": path.stem,
                        "setting": setting,
                        "method": method,
                        "seed": seed,
                        "auroc": 100 * float(roc_auc_score(y, scores)),
                        "seconds": time.perf_counter() - start,
                    }


def standardize(train: Matrix, test: Matrix) -> tuple[Matrix, Matrix]:
    """Standardize rows by the mean and the standard deviation of the training rows."""
    mean, std = train.mean(0), train.std(0)
    std = np.where(std == 0, 1.0, std)
    return (train - mean) / std, (test - mean) / std


def table(records: list[dict[str, Any]]) -> str:
    """Return the mean AUROC per set and method."""
    lines = []
    for setting in dict.fromkeys(r["setting"] for r in records):
        chosen = [r for r in records if r["setting"] == setting]
        methods = list(dict.fromkeys(r["method"] for r in chosen))
        sets = list(dict.fromkeys(r["set"] for r in chosen))
        lines += [f"**{setting}**", "", f"| set | {' | '.join(methods)} |"]
        lines.append("| --- " * (len(methods) + 1) + "|")
        means = np.array([[_mean(chosen, s, m) for m in methods] for s in sets])
        for name, row in [*zip(sets, means, strict=True), ("mean", means.mean(0))]:
            lines.append(f"| {name} | {' | '.join(f'{v:.1f}' for v in row)} |")
        lines.append("")
    return "\n".join(lines)


def _mean(records: list[dict[str, Any]], name: str, method: str) -> float:
    values = [r["auroc"] for r in records if (r["set"], r["method"]) == (name, method)]
    return float(np.mean(values)) if values else np.nan
