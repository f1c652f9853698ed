"""Synthetic rows of Adult: quality score, efficacy, distance to the closest record.

Models are fitted to the training file. Efficacy is the AUC on the test file of gradient-boosted
trees that are fitted to synthetic rows, next to trees that are fitted to the real rows. TVAE and
CTGAN run if the package ctgan is installed, with its defaults.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tabular.quality import closest_records, efficacy, quality, sdmetrics_quality

NUMBERS = ["age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week"]
TARGET, POSITIVE = "Y", ">50K"
OURS = "VAESynthesizer"
METHODS = ("real", "independent", OURS, "TVAE", "CTGAN")
COLUMNS = ("quality", "strict_quality", "shapes", "pairs", "auc", "near_copies", "copies")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this part."""
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rows", type=int, help="number of training rows, by default all")
    parser.add_argument("--check", action="store_true", help="also score by the package sdmetrics")


def load(folder: Path, name: str) -> Any:
    """Return a file of Adult as a DataFrame with NaN for missing values."""
    import pandas as pd

    table = pd.read_csv(folder / "adult" / name, na_values="?", skipinitialspace=True)
    table[TARGET] = table[TARGET].str.rstrip(".")
    return table


def independent(train: Any, num_rows: int, seed: int) -> Any:
    """Return a bootstrap of each column on its own."""
    rng = np.random.default_rng(seed)
    columns = {
        name: train[name].to_numpy()[rng.integers(len(train), size=num_rows)] for name in train
    }
    return type(train)(columns).astype(train.dtypes)


def synthesize(train: Any, num_rows: int, seed: int) -> Any:
    """Return rows drawn by the library with its defaults."""
    from tinyvae.sklearn import VAESynthesizer

    return VAESynthesizer(random_state=seed).fit(train).sample(num_rows)


def by_ctgan(name: str) -> Callable[[Any, int, int], Any]:
    """Return a function that draws rows by a model of the package ctgan."""

    def draw(train: Any, num_rows: int, seed: int) -> Any:
        import ctgan

        model = getattr(ctgan, name)()
        model.set_random_state(seed)
        categories = [column for column in train.columns if column not in NUMBERS]
        filled = train.copy()
        filled[categories] = filled[categories].astype(object).fillna("?")
        model.fit(filled, categories)
        drawn = model.sample(num_rows)
        drawn[categories] = drawn[categories].astype(object).replace("?", np.nan)
        return drawn

    return draw


def _by_sdmetrics(train: Any, rows: Any) -> dict[str, float | None]:
    names = ("quality", "strict_quality")
    return {
        f"sdmetrics_{name}": sdmetrics_quality(train, rows, NUMBERS, strict=name != "quality")
        for name in names
    }


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a record per method and seed."""
    train, test = load(args.data, "adult.data.gz"), load(args.data, "adult.test.gz")
    if args.rows is not None:
        train = train.sample(args.rows, random_state=0)
    draws = {"independent": independent, OURS: synthesize, "TVAE": by_ctgan("TVAE")}
    draws["CTGAN"] = by_ctgan("CTGAN")
    for method in args.methods:
        for seed in args.seeds[:1] if method == "real" else args.seeds:
            start = time.perf_counter()
            record = {"set": "Adult", "method": method, "seed": seed}
            try:
                rows = test if method == "real" else draws[method](train, len(train), seed)
            except ImportError as error:
                yield record | {"seconds": 0.0, "skipped": str(error)}
                continue
            record["seconds"] = time.perf_counter() - start
            rows = rows[list(train.columns)]
            record |= quality(train, rows, NUMBERS)
            if args.check:
                record |= _by_sdmetrics(train, rows)
            fitted = train if method == "real" else rows
            record["auc"] = efficacy(fitted, test, TARGET, POSITIVE, NUMBERS)
            yield record | closest_records(train, test, rows, NUMBERS)


def table(records: list[dict[str, Any]]) -> str:
    """Return the means over the seeds. "real" compares the test file with the training file."""
    lines = ["| method | " + " | ".join(COLUMNS) + " | seconds | seeds |", "| --- " * 10 + "|"]
    for method in dict.fromkeys(r["method"] for r in records if "skipped" not in r):
        runs = [r for r in records if r["method"] == method and "skipped" not in r]
        cells = []
        for name in COLUMNS:
            values = [r[name] for r in runs if r[name] is not None]
            cells.append(f"{np.mean(values):.4f}" if values else "-")
        cells += [f"{np.mean([r['seconds'] for r in runs]):.0f}", str(len(runs))]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
