"""Limits of the machine, for comparison with the times of a training step.

    python benchmarks/limits.py --threads 2

The script measures multiply-adds, the matrix products of the workloads by torch's default kernels
and by oneDNN, memory, elementwise functions, random numbers, and the smallest calls. Repetitions
are interleaved, so that other load on the machine affects all rows of a table equally. It reports
medians and quartiles. The peak is the best rate of multiply-adds, measured before and after the
rest, because other tasks may exceed a median.

It writes ``limits.json`` to the output folder, from which ``benchmarks/training.py`` reads the
peak, ``fma_gflops``.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from competitors.worker import use_cores
from reporting import head, spread
from torch import Tensor
from workloads import WORKLOADS, Workload

from tinyvae.training.acceleration.options import matmul_route

ROUNDS = 9
SHORTEST = 2e-3  # minimal duration of a repetition, seconds
FMA = Path(__file__).with_name("fma.c")
COMPILE = ("cc", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp")
ROUTES = ("default", "onednn")
SQUARE = 2048
ELEMENTS = 1 << 18  # 1 MiB of float32: cached
LARGE = 1 << 26  # 256 MiB of float32: not cached

Tasks = dict[str, Callable[[], object]]
Quartiles = dict[str, np.ndarray]


def seconds(tasks: Tasks) -> Quartiles:
    """Return quartiles of the time of a call; rounds of all tasks are interleaved."""
    repeats = {name: _repeats(task) for name, task in tasks.items()}
    rounds = [
        {name: _time(task, repeats[name]) for name, task in tasks.items()} for _ in range(ROUNDS)
    ]
    return {name: _quartiles([taken[name] for taken in rounds]) for name in tasks}


def _repeats(task: Callable[[], object]) -> int:
    task()
    return math.ceil(SHORTEST / min(_time(task, 1) for _ in range(3)))


def _time(task: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        task()
    return (time.perf_counter() - start) / repeats


def _quartiles(values: list[float]) -> np.ndarray:
    return np.quantile(values, (0.25, 0.5, 0.75))


def per(amount: float, taken: np.ndarray) -> np.ndarray:
    """Return quartiles of a rate, computed from quartiles of a time."""
    return amount / taken[::-1]


# Multiply-adds ------------------------------------------------------------------------------------


def fma_rates(threads: int) -> tuple[list[float], str]:
    """Return GFLOP/s of every repetition, and the method of measurement."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "fma"
        try:
            subprocess.run([*COMPILE, FMA, "-o", program], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return _largest_product(), f"torch.mm of {SQUARE} x {SQUARE}, without a C compiler"
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(
            [program], env=environment, check=True, capture_output=True, text=True
        )
    rates, widths = zip(*map(str.split, done.stdout.splitlines()), strict=True)
    return [float(rate) for rate in rates], f"vectors of {widths[0]} bytes"


def _largest_product() -> list[float]:
    a, out = torch.randn(SQUARE, SQUARE), torch.empty(SQUARE, SQUARE)
    tasks = [by(route, lambda: torch.mm(a, a, out=out)) for route in ROUTES]
    return [2e-9 * SQUARE**3 / _time(task, 1) for _ in range(ROUNDS) for task in tasks]


# Matrix products ----------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Product:
    """A product in a linear layer's step: ``y = x W^T``, ``dx = dy W`` or ``dW = dy^T x``."""

    kind: str
    rows: int
    n_in: int
    n_out: int

    @property
    def gflop(self) -> float:
        """10^9 operations; a multiplication with its addition counts as two."""
        return 2e-9 * self.rows * self.n_in * self.n_out

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return random factors with the memory layout of training."""
        generator = torch.Generator().manual_seed(0)
        x, y, weight = (
            torch.randn(shape, generator=generator)
            for shape in (
                (self.rows, self.n_in),
                (self.rows, self.n_out),
                (self.n_out, self.n_in),
            )
        )
        return {"y": (x, weight.T), "dx": (y, weight), "dW": (y.T, x)}[self.kind]


def products(workload: Workload) -> set[Product]:
    """Return the matrix products of a step; convolutional workloads have none."""
    hidden = () if workload.convolutional else (workload.num_pixels, *workload.hidden[:-1])
    encoder = (*hidden, workload.num_features)
    decoder = (workload.latent_dim, *encoder[::-1])
    first = (encoder[0], encoder[1]) if hidden else None
    layers = {
        *((workload.batch_size, *ends) for ends in pairwise((*encoder, 2 * workload.latent_dim))),
        *((workload.batch_size * workload.num_samples, *ends) for ends in pairwise(decoder)),
    }
    return {
        Product(kind, rows, n_in, n_out)
        for rows, n_in, n_out in layers
        for kind in ("y", "dx", "dW")
        if kind != "dx" or (n_in, n_out) != first  # images have no gradient
    }


def by(route: str, task: Callable[[], Any]) -> Callable[[], Any]:
    """Return the task of a product with the given kernels."""

    def routed() -> Any:
        with matmul_route(route):
            return task()

    return routed


def measure_products() -> list[dict[str, Any]]:
    """Measure rates and errors of the products of all workloads."""
    users: dict[Product, list[str]] = {}
    for workload in WORKLOADS.values():
        for product in products(workload):
            users.setdefault(product, []).append(workload.name)
    return [_measure_product(product) | {"workloads": users[product]} for product in sorted(users)]


def _measure_product(product: Product) -> dict[str, Any]:
    a, b = product.factors()
    exact = a.double() @ b.double()
    out = torch.empty(exact.shape)
    tasks = {route: by(route, lambda: torch.mm(a, b, out=out)) for route in ROUTES}
    errors = {
        route: float((task().double() - exact).norm() / exact.norm())
        for route, task in tasks.items()
    }
    rates = {route: per(product.gflop, taken) for route, taken in seconds(tasks).items()}
    return {
        "kind": product.kind,
        "shape": [product.rows, product.n_in, product.n_out],
        "gflops": {route: rate.tolist() for route, rate in rates.items()},
        "relative_error": errors,
    }


# Memory, functions, calls -------------------------------------------------------------------------


def bandwidth() -> Quartiles:
    """Measure GB/s; a copy counts what it reads and what it writes."""
    x, y = torch.ones(LARGE), torch.ones(LARGE)
    taken = seconds({"copy": lambda: y.copy_(x), "read": x.sum})
    volume = 4e-9 * LARGE
    return {"copy": per(2 * volume, taken["copy"]), "read": per(volume, taken["read"])}


def elementwise() -> Quartiles:
    """Measure nanoseconds per element."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ELEMENTS, generator=generator)
    y, words = torch.empty_like(x), torch.empty(ELEMENTS, dtype=torch.int64)
    taken = seconds(
        {
            "tanh": lambda: torch.tanh(x, out=y),
            "sigmoid": lambda: torch.sigmoid(x, out=y),
            "softplus": lambda: F.softplus(x, out=y),
            "exp": lambda: torch.exp(x, out=y),
            "normal": lambda: y.normal_(generator=generator),
            "uniform": lambda: y.uniform_(generator=generator),
            "64-bit word": lambda: words.random_(-(2**63), None, generator=generator),
        }
    )
    return {name: 1e9 / ELEMENTS * t for name, t in taken.items()}


def calls() -> Quartiles:
    """Measure microseconds of calls with almost no computation."""
    scalar, matrix = torch.ones(()), torch.ones(1, 1)
    weight = torch.ones((), requires_grad=True)
    taken = seconds(
        {
            "add": lambda: scalar + scalar,
            "mm": lambda: matrix @ matrix,
            "item": scalar.item,
            "mul and its gradient": lambda: torch.autograd.grad(weight * weight, weight),
        }
    )
    return {name: 1e6 * t for name, t in taken.items()}


OTHERS = {
    "bandwidth": ("GB/s", bandwidth),
    "elements": ("ns per element", elementwise),
    "calls": ("µs per call", calls),
}


# Tables -------------------------------------------------------------------------------------------


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def product_rows(measured: list[dict[str, Any]], peak: float) -> list[list[str]]:
    """Return rows of shape, workloads, and per route rate, quartiles, share of peak, error."""
    rows = []
    for product in measured:
        row = [product["kind"], " x ".join(map(str, product["shape"]))]
        row.append(", ".join(product["workloads"]))
        for route in ROUTES:
            rate = product["gflops"][route]
            row += spread(rate, "{:.0f}".format)
            row += [f"{rate[1] / peak:.0%}", f"{product['relative_error'][route]:.0e}"]
        rows.append(row)
    return rows


def spread_rows(measured: Quartiles, unit: str) -> list[list[str]]:
    """Return rows of name, median with its unit, and quartiles."""
    rows = []
    for name, quartiles in measured.items():
        middle, both = spread(quartiles, "{:.3g}".format)
        rows.append([name, f"{middle} {unit}", both])
    return rows


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="number of threads and cores")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def main() -> None:
    """Measure, print and write the results."""
    args = parse()
    use_cores(args.threads)
    torch.set_num_threads(args.threads)
    rates, how = fma_rates(args.threads)
    others = {name: measure() for name, (_, measure) in OTHERS.items()}
    measured = measure_products()
    rates += fma_rates(args.threads)[0]
    peak = max(rates)
    rows = spread_rows({f"multiply-adds, {how}": _quartiles(rates)}, "GFLOP/s")
    for name, (unit, _) in OTHERS.items():
        rows += spread_rows(others[name], unit)
    print(f"Peak, the best of {len(rates)}: {peak:.0f} GFLOP/s\n")
    print(table(["", "median", "quartiles"], rows))
    heads = ["", "rows x in x out", "workloads"]
    for route in ROUTES:
        heads += [f"{route}, GFLOP/s", "quartiles", "of peak", "error"]
    print(table(heads, product_rows(measured, peak)))
    record = {
        **head(args.threads),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "fma_gflops": peak,
        "fma": {"how": how, "quartiles": _quartiles(rates).tolist()},
        **{name: {row: q.tolist() for row, q in rows.items()} for name, rows in others.items()},
        "products": measured,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "limits.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
