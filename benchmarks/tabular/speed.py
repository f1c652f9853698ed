"""Time to fit a table of 100,000 rows and 20 columns of numbers, a tenth of them missing.

The columns are nonlinear functions of five factors, with noise. Competitors are IterativeImputer
with its defaults, and TVAE if the package ctgan is installed. TVAE gets the rows without missing
values, filled with means. Its time is proportional to its epochs: ``--tvae-epochs`` of them are
measured, and ``seconds`` is the time of its default of 300.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

Matrix = np.ndarray[Any, Any]
OURS = "VAEImputer"
METHODS = (OURS, "IterativeImputer", "TVAE")
FACTORS, MISSING, NOISE = 5, 0.1, 0.3
TVAE_EPOCHS = 300  # its default


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this part."""
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--tvae-epochs", type=int, default=3)


def make_table(num_rows: int, num_columns: int, seed: int) -> Matrix:
    """Return a matrix with missing values."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((num_rows, FACTORS))
    hidden = np.tanh(factors @ rng.standard_normal((FACTORS, 4 * FACTORS)))
    x = hidden @ rng.standard_normal((4 * FACTORS, num_columns)) / np.sqrt(4 * FACTORS)
    x += NOISE * rng.standard_normal(x.shape)
    x[rng.random(x.shape) < MISSING] = np.nan
    return x


def fit_vae_imputer(x: Matrix, seed: int) -> None:
    """Fit the library's imputer."""
    from tinyvae.sklearn import VAEImputer

    VAEImputer(random_state=seed).fit(x)


def fit_iterative(x: Matrix, seed: int) -> None:
    """Fit IterativeImputer."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    IterativeImputer(random_state=seed).fit(x)


def fit_tvae(x: Matrix, seed: int, *, epochs: int) -> None:
    """Fit TVAE to filled rows."""
    import ctgan
    import pandas as pd

    filled = np.where(np.isnan(x), np.nanmean(x, 0), x)
    table = pd.DataFrame(filled, columns=[f"x{i}" for i in range(x.shape[1])])
    model = ctgan.TVAE(epochs=epochs)
    model.set_random_state(seed)
    model.fit(table)


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a record per method and seed."""
    fits: dict[str, Callable[[Matrix, int], None]] = {
        OURS: fit_vae_imputer,
        "IterativeImputer": fit_iterative,
        "TVAE": partial(fit_tvae, epochs=args.tvae_epochs),
    }
    for seed in args.seeds:
        x = make_table(args.rows, args.columns, seed)
        for method in args.methods:
            record = {"set": f"{args.rows} x {args.columns}", "method": method, "seed": seed}
            start = time.perf_counter()
            try:
                fits[method](x, seed)
            except ImportError as error:
                yield record | {"seconds": 0.0, "skipped": str(error)}
                continue
            measured = time.perf_counter() - start
            full = TVAE_EPOCHS / args.tvae_epochs if method == "TVAE" else 1
            yield record | {"seconds": measured * full, "measured_seconds": measured}


def table(records: list[dict[str, Any]]) -> str:
    """Return the median time of each method, and its ratio to that of the library."""
    lines = ["| method | seconds | times the library's | seeds |", "| --- " * 4 + "|"]
    times: dict[str, list[float]] = {}
    for record in records:
        if "skipped" not in record:
            times.setdefault(record["method"], []).append(record["seconds"])
    ours = np.median(times[OURS]) if OURS in times else np.nan
    for method, values in times.items():
        middle = np.median(values)
        lines.append(f"| {method} | {middle:.1f} | {middle / ours:.1f} | {len(values)} |")
    return "\n".join(lines) + "\n"
