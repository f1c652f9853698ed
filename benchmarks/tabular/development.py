"""The tasks that the recipe of the estimators was chosen by. None is a task of another part.

``anomalies``: AUROC, in percent. Models are trained on half of the rows of a set, and tested on the
other half and on anomalies: rows of other classes (digits, wines), or rows that are made from
normal ones (Han et al. 2022, arXiv:2206.09426): ``global`` ones are uniform over the range of each
column, ``dependency`` ones take each column from another row, ``local`` ones have five times the
covariance of a mixture of three Gaussians. Labels of ADBench are used to leave its anomalies out.

``imputation``: mean squared error in standard deviations, half of the entries removed, of sets that
the part ``imputation`` does not have.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tabular import imputation, models
from tabular.anomalies import neighbor_distance, standardize

Matrix = np.ndarray[Any, Any]
Task = tuple[str, Matrix, Matrix, dict[str, Matrix]]  # name, training and test rows, anomalies
SETS = "annthyroid Ionosphere cardio Pima WDBC glass magic vertebral breastw satimage-2 yeast"
INCOMPLETE = "cardio Pima annthyroid magic Ionosphere breastw vertebral diabetes pendigits"
ROWS = 2000  # of a set at most
OURS = "tinyvae"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this part."""
    tasks = ("anomalies", "imputation")
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=list(tasks))


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a record per task, set, method and seed."""
    for seed in args.seeds:
        if "anomalies" in args.tasks:
            for task in anomaly_tasks(args.data, seed):
                if args.sets is None or task[0] in args.sets:
                    yield from detect(task, seed)
        if "imputation" in args.tasks:
            for name in INCOMPLETE.split():
                if args.sets is not None and name not in args.sets:
                    continue
                yield from impute(name, load(args.data, name, seed)[0], seed)


def load(folder: Path, name: str, seed: int) -> tuple[Matrix, Matrix]:
    """Return random rows of a set without constant columns, and their labels."""
    if name == "diabetes":
        from sklearn.datasets import load_diabetes

        x = load_diabetes().data
        y = np.zeros(len(x))
    else:
        (path,) = (folder / "adbench").glob(f"*_{name}*.npz")
        data = np.load(path, allow_pickle=False)
        x, y = data["X"].astype(float), data["y"]
    rows = np.random.default_rng(seed).permutation(len(x))[:ROWS]
    return x[rows][:, x.std(0) > 1e-9], y[rows]


def anomaly_tasks(folder: Path, seed: int) -> Iterator[Task]:
    """Yield tasks."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(seed)
    x, y = load_digits(return_X_y=True)
    for digit in (1, 4, 8):
        others = x[y != digit]
        yield f"digit {digit}", *halves(x[y == digit], rng), {"real": others[rng.permutation(200)]}
    yield "not digit 3", *halves(x[y != 3], rng), {"real": x[y == 3]}
    wine = np.loadtxt(folder / "hivae" / "Wine" / "data.csv.gz", delimiter=",")
    white, red = wine[wine[:, -1] == 2, :-1], wine[wine[:, -1] == 1, :-1]
    yield "wine", *halves(white[rng.permutation(len(white))[:1500]], rng), {"real": red[:300]}
    for name in SETS.split():
        rows, labels = load(folder, name, seed)
        train, test = halves(rows[labels == 0], rng)
        yield name, train, test, made_anomalies(test, min(500, len(test)), rng)


def halves(x: Matrix, rng: np.random.Generator) -> tuple[Matrix, Matrix]:
    """Return two random halves of rows."""
    x = x[rng.permutation(len(x))]
    return x[: len(x) // 2], x[len(x) // 2 :]


def made_anomalies(x: Matrix, size: int, rng: np.random.Generator) -> dict[str, Matrix]:
    """Return anomalies of three kinds that are made from normal rows."""
    from sklearn.mixture import GaussianMixture

    low, width = x.min(0), np.ptp(x, axis=0)
    mixture = GaussianMixture(3, reg_covar=1e-4 * x.var(0).mean(), random_state=0).fit(x)
    local = [
        rng.multivariate_normal(mixture.means_[k], 5 * mixture.covariances_[k], method="eigh")
        for k in rng.choice(3, size, p=mixture.weights_)
    ]
    return {
        "global": rng.uniform(low - 0.1 * width, low + 1.1 * width, (size, x.shape[1])),
        "dependency": np.stack([rng.choice(column, size) for column in x.T], 1),
        "local": np.stack(local),
    }


def detect(task: Task, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the AUROC of each kind of anomalies."""
    from sklearn.metrics import roc_auc_score

    name, train, test, anomalies = task
    rows = np.concatenate([test, *anomalies.values()])
    ends = np.cumsum([len(test), *map(len, anomalies.values())])
    for method, score in ((OURS, models.score), ("kNN distance", neighbor_distance)):
        start = time.perf_counter()
        normal, *others = np.split(score(*standardize(train, rows), seed), ends[:-1])
        seconds = time.perf_counter() - start
        for kind, scores in zip(anomalies, others, strict=True):
            labels = np.r_[np.zeros(len(normal)), np.ones(len(scores))]
            auroc = 100 * float(roc_auc_score(labels, np.r_[normal, scores]))
            record = {"task": kind, "set": name, "method": method, "seed": seed}
            yield record | {"value": auroc, "seconds": seconds}


def impute(name: str, x: Matrix, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the mean squared error of each method."""
    truth = (x - x.mean(0)) / x.std(0)
    removed = np.random.default_rng(seed).random(truth.shape) < 0.5
    observed = np.where(removed, np.nan, truth)
    methods = {
        OURS: lambda x, seed: models.fill(x, seed)[0],
        "IterativeImputer, BayesianRidge": imputation.fill_ridge,
    }
    for method, fill in methods.items():
        start = time.perf_counter()
        error = float(np.square(fill(observed, seed) - truth)[removed].mean())
        record = {"task": "imputation", "set": name, "method": method, "seed": seed}
        yield record | {"value": error, "seconds": time.perf_counter() - start}


def table(records: list[dict[str, Any]]) -> str:
    """Return the mean over sets and seeds, per task and method."""
    lines = ["| task | method | mean |", "| --- " * 3 + "|"]
    for task, method in dict.fromkeys((r["task"], r["method"]) for r in records):
        values = [r["value"] for r in records if (r["task"], r["method"]) == (task, method)]
        form = ".3f" if task == "imputation" else ".1f"
        lines.append(f"| {task} | {method} | {np.mean(values):{form}} |")
    return "\n".join(lines) + "\n"
