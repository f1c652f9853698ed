"""Imputation of tables with numbers and categories, on the masks of Nazabal et al. (2020).

The error of a column is that of HI-VAE: the root mean squared error over the range of the column,
the share of wrong categories, or the mean displacement of an ordinal over its number of levels.
``error`` is the mean over the columns. The competitor fills numbers and ordinals by
IterativeImputer, and categories by their most frequent level.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tabular import models

Matrix = np.ndarray[Any, Any]
SETS = ("Adult", "Wine", "defaultCredit")
OURS, ITERATIVE = "VAEImputer", "IterativeImputer + mode"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this part."""
    parser.add_argument("--rates", type=int, nargs="+", choices=(20, 50), default=[20, 50])
    parser.add_argument(
        "--masks", type=int, nargs="+", choices=range(1, 6), default=[1, 2, 3, 4, 5]
    )
    parser.add_argument("--rows", type=int, help="number of first rows, by default all")


def load(folder: Path) -> tuple[Matrix, list[str]]:
    """Return a table ``(N, D)`` and the type of each column."""
    lines = np.genfromtxt(folder / "data_types.csv.gz", delimiter=",", dtype=str, skip_header=1)
    return np.genfromtxt(folder / "data.csv.gz", delimiter=","), lines[:, 0].tolist()


def fill_iterative(x: Matrix, types: list[str], seed: int) -> Matrix:
    """Fill numbers by IterativeImputer and categories by their mode."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer, SimpleImputer

    is_category = np.array(types) == "cat"
    filled = x.copy()
    filled[:, ~is_category] = IterativeImputer(random_state=seed).fit_transform(x[:, ~is_category])
    if is_category.any():
        mode = SimpleImputer(strategy="most_frequent")
        filled[:, is_category] = mode.fit_transform(x[:, is_category])
    return filled


def fill_vae(x: Matrix, types: list[str], seed: int) -> Matrix:
    """Fill by the library. Categories are declared, all other kinds are inferred."""
    kinds = {f"x{i}": "category" for i, kind in enumerate(types) if kind == "cat"}
    return models.fill(x, seed, kinds=kinds)[0]


def column_errors(filled: Matrix, truth: Matrix, removed: Matrix, types: list[str]) -> list[float]:
    """Return the error of the removed entries of each column."""
    errors = []
    for kind, a, b, gone in zip(types, filled.T, truth.T, removed.T, strict=True):
        wrong = (a - b)[gone]
        span = np.ptp(b)
        if kind == "cat":
            errors.append(float((wrong != 0).mean()))
        elif kind == "ordinal":
            errors.append(float(np.abs(wrong).mean() / (span + 1)))
        else:
            errors.append(float(np.sqrt(np.square(wrong).mean()) / span))
    return errors


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a record per set, rate, mask and method."""
    methods = {OURS: fill_vae, ITERATIVE: fill_iterative}
    for name in args.sets or SETS:
        folder = args.data / "hivae" / name
        truth, types = load(folder)
        for rate in args.rates:
            for mask in args.masks:
                places = np.genfromtxt(
                    folder / f"Missing{rate}_{mask}.csv.gz", delimiter=",", dtype=int
                )
                removed = np.zeros(truth.shape, dtype=bool)
                removed[places[:, 0] - 1, places[:, 1] - 1] = True
                rows = slice(args.rows)
                observed = np.where(removed, np.nan, truth)[rows]
                for method, fill in methods.items():
                    start = time.perf_counter()
                    filled = fill(observed, types, mask)
                    errors = column_errors(filled, truth[rows], removed[rows], types)
                    yield {
                        "set": name,
                        "rate": rate,
                        "seed": mask,
                        "method": method,
                        "error": float(np.mean(errors)),
                        "columns": errors,
                        "seconds": time.perf_counter() - start,
                    }


def table(records: list[dict[str, Any]]) -> str:
    """Return errors by set and rate, and the number of masks on which the library is better."""
    lines = [f"| set | removed | {OURS} | {ITERATIVE} | better on |", "| --- " * 5 + "|"]
    for name, rate in dict.fromkeys((r["set"], r["rate"]) for r in records):
        ours, theirs = (
            {
                r["seed"]: r["error"]
                for r in records
                if (r["set"], r["rate"], r["method"]) == (name, rate, method)
            }
            for method in (OURS, ITERATIVE)
        )
        masks = ours.keys() & theirs.keys()
        wins = sum(ours[mask] < theirs[mask] for mask in masks)
        a, b = (np.mean(list(errors.values())) for errors in (ours, theirs))
        lines.append(f"| {name} | {rate} % | {a:.4f} | {b:.4f} | {wins} of {len(masks)} masks |")
    return "\n".join(lines) + "\n"
