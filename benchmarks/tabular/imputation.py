"""Imputation of numbers: half of the values are removed completely at random.

``mse`` is the mean squared error of the removed values in standard deviations of their column,
``coverage`` the share of them within the 5 % and 95 % quantiles of 100 draws.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tabular import models

Matrix = np.ndarray[Any, Any]
DRAWS = 100
# Published by Mattei and Frellsen (2019), arXiv:1812.02633.
MIWAE = {
    "Banknote": 0.446,
    "Breast cancer": 0.280,
    "Concrete": 0.501,
    "Wine red": 0.643,
    "Wine white": 0.735,
    "Yeast": 0.964,
}


def load(name: str, folder: Path) -> Matrix:
    """Return the features of a set, ``(N, D)``."""
    if name == "Banknote":
        return np.loadtxt(folder / "uci" / "banknote.csv", delimiter=",", skiprows=1)[:, :4]
    if name == "Breast cancer":
        from sklearn.datasets import load_breast_cancer

        return load_breast_cancer().data
    if name == "Concrete":
        return np.loadtxt(folder / "uci" / "concrete.csv.gz", delimiter=",")[:, :8]
    if name == "Yeast":
        return np.load(folder / "adbench" / "47_yeast.npz", allow_pickle=False)["X"]
    wine = np.loadtxt(folder / "hivae" / "Wine" / "data.csv.gz", delimiter=",")
    return wine[wine[:, -1] == ("Wine red", "Wine white").index(name) + 1, :11]


def fill_mean(x: Matrix, _: int) -> Matrix:
    """Fill with the mean of the column."""
    return np.where(np.isnan(x), np.nanmean(x, 0), x)


def fill_neighbors(x: Matrix, _: int) -> Matrix:
    """Fill with the mean of the nearest rows."""
    from sklearn.impute import KNNImputer

    return KNNImputer().fit_transform(x)


def fill_ridge(x: Matrix, seed: int) -> Matrix:
    """Fill by IterativeImputer with BayesianRidge."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    return IterativeImputer(random_state=seed).fit_transform(x)


def fill_trees(x: Matrix, seed: int) -> Matrix:
    """Fill by IterativeImputer with extremely randomized trees."""
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    return IterativeImputer(ExtraTreesRegressor(random_state=seed)).fit_transform(x)


METHODS: dict[str, Callable[[Matrix, int], Matrix]] = {
    "mean": fill_mean,
    "KNNImputer": fill_neighbors,
    "IterativeImputer, BayesianRidge": fill_ridge,
    "IterativeImputer, ExtraTrees": fill_trees,
}
OURS = "VAEImputer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this part."""
    choices = [OURS, *METHODS]
    parser.add_argument("--methods", nargs="+", choices=choices, default=choices)


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a record per set, method and mask."""
    for name in args.sets or MIWAE:
        truth = load(name, args.data)
        truth = (truth - truth.mean(0)) / truth.std(0)
        for seed in args.seeds:
            removed = np.random.default_rng(seed).random(truth.shape) < 0.5
            observed = np.where(removed, np.nan, truth)
            for method in args.methods:
                start, record = time.perf_counter(), {"set": name, "method": method, "seed": seed}
                if method == OURS:
                    filled, draws = models.fill(observed, seed, num_imputations=DRAWS)
                    low, high = np.quantile(draws, (0.05, 0.95), axis=0)
                    inside = (low <= truth) & (truth <= high)
                    record["coverage"] = float(inside[removed].mean())
                else:
                    filled = METHODS[method](observed, seed)
                record["mse"] = float(np.square(filled - truth)[removed].mean())
                yield record | {"seconds": time.perf_counter() - start}


def table(records: list[dict[str, Any]]) -> str:
    """Return the mean error per set and method, and the coverage."""
    methods = list(dict.fromkeys(r["method"] for r in records))
    sets = list(dict.fromkeys(r["set"] for r in records))
    heads = [*methods, "MIWAE, published", "90 % intervals hold"]
    lines = [f"| set | {' | '.join(heads)} |", "| --- " * (len(heads) + 1) + "|"]
    rows = []
    for name in sets:
        errors = [_mean(records, name, method, "mse") for method in methods]
        rows.append([*errors, MIWAE[name], _mean(records, name, OURS, "coverage")])
    for name, row in [*zip(sets, rows, strict=True), ("mean", np.mean(rows, 0))]:
        cells = [f"{value:.3f}" for value in row[:-1]] + [f"{100 * row[-1]:.1f} %"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mean(records: list[dict[str, Any]], name: str, method: str, figure: str) -> float:
    values = [
        r[figure] for r in records if (r["set"], r["method"]) == (name, method) and figure in r
    ]
    return float(np.mean(values)) if values else np.nan
