"""Time to fit a table of 100,000 rows and 20 columns of numbers, a tenth of them missing.

The columns are nonlinear functions of five factors, with noise. Competitors are IterativeImputer
with its defaults, and TVAE if the package ctgan is installed. TVAE gets the rows without missing
values, filled with means. Its time is proportional to its epochs: ``--tvae-epochs`` of them are
measured, and the record holds the time of its default of 300. ``cpu_seconds`` is the time of the
process on all cores, which other load on the machine affects less.
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
            start, start_cpu = time.perf_counter(), time.process_time()
            try:
                fits[method](x, seed)
            except ImportError as error:
                yield record | {"seconds": 0.0, "skipped": str(error)}
                continue
            full = TVAE_EPOCHS / args.tvae_epochs if method == "TVAE" else 1
            yield record | {
                "seconds": full * (time.perf_counter() - start),
                "cpu_seconds": full * (time.process_time() - start_cpu),
            }


def table(records: list[dict[str, Any]]) -> str:
    """Return median times, and the ratio of CPU times to that of the library."""
    lines = ["| method | seconds | CPU seconds | times the library's | seeds |", "| --- " * 5 + "|"]
    runs: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if "skipped" not in record:
            runs.setdefault(record["method"], []).append(record)
    times = {
        method: [float(np.median([r[name] for r in found])) for name in ("seconds", "cpu_seconds")]
        for method, found in runs.items()
    }
    for method, (wall, cpu) in times.items():
        ratio = cpu / times[OURS][1] if OURS in times else np.nan
        lines.append(f"| {method} | {wall:.1f} | {cpu:.1f} | {ratio:.1f} | {len(runs[method])} |")
    return "\n".join(lines) + "\n"
