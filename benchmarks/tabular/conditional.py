"""Conditional draws: columns given other columns.

``Adult``: conditions are 1 to 4 random columns of random rows of the test file, missing values
included. A failure is an error, a value that is not in the support, or an observed entry that
changed. Rejection draws rows from the model and keeps those that agree with the condition in all
of its columns: it fails where none of them does.

``enumerable``: a model of few categories and two latents, whose conditional probabilities are sums
over all tables of levels and quadrature nodes. ``z`` is the error of the frequency of a level in
units of its standard error, that of the draws and of the weighted candidates behind them.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tabular import synthesis
from tinyvae import ELBO, MLP, VAE, GaussianEncoder, Trainer
from tinyvae.likelihoods import Column, MaskedLikelihood, MixedLikelihood

MAX_GIVEN, DRAWS = 4, 200
SETS = ("enumerable", "Adult")
LEVELS = (2, 3, 4, 3, 2)
NODES = 40  # per latent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this part."""
    parser.add_argument("--conditions", type=int, default=1000)
    parser.add_argument("--rows", type=int, help="number of training rows, by default all")
    parser.add_argument("--rejections", type=int, default=200_000, help="rows that rejection draws")


def conditions_of(rows: Tensor, seed: int) -> Tensor:
    """Return rows of which 1 to 4 random columns are given, and NaN elsewhere."""
    rng = np.random.default_rng(seed)
    keys = rng.random(rows.shape)
    ranks = keys.argsort(1).argsort(1)
    is_given = torch.from_numpy(ranks < rng.integers(1, MAX_GIVEN + 1, (len(rows), 1)))
    return torch.where(is_given, rows, torch.nan)


# A model whose conditionals are known -------------------------------------------------------------


def enumerable_model(seed: int) -> tuple[VAE, Tensor]:
    """Return a model of a few categories, and rows drawn from it that its encoder has seen."""
    torch.manual_seed(seed)
    columns = [Column(f"x{i}", "category", levels=tuple(range(n))) for i, n in enumerate(LEVELS)]
    likelihood = MaskedLikelihood(MixedLikelihood(columns), show_mask=True)
    shape = (len(LEVELS),)
    encoder = GaussianEncoder(MLP(likelihood.input_shape(shape), hidden=(64,)), 2)
    vae = VAE(encoder, MLP(2, hidden=(16,), activation=torch.nn.Tanh), likelihood, data_shape=shape)
    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            parameter.mul_(2.0)
    rows = vae.sample(5000).to(torch.get_default_dtype())
    vae.decoder.requires_grad_(False)
    hidden = torch.where(torch.rand(rows.shape) < 0.5, torch.nan, rows)
    Trainer(vae, ELBO(), seed=seed, progress=False).fit(hidden, epochs=20)
    return vae, rows


@torch.no_grad()
def exact_marginals(vae: VAE, given: Tensor) -> list[Tensor]:
    """Return p(level given the row's observed levels) of each column, ``(N, levels)``."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    z = torch.from_numpy(np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)).float()
    log_weights = torch.from_numpy(np.log(np.outer(weights, weights)).reshape(-1))
    params = vae.decoder(z)
    tables = []  # log p(level | node) of each column, (nodes, levels)
    for index, size in enumerate(LEVELS):
        levels = torch.full((size, 1, len(LEVELS)), torch.nan)
        levels[:, 0, index] = torch.arange(size)
        tables.append(vae.likelihood(params, 1).log_prob(levels).double().T)
    log_joint = log_weights.expand(len(given), -1).clone()
    for index, log_masses in enumerate(tables):
        is_given = ~torch.isnan(given[:, index])
        log_joint[is_given] += log_masses[:, given[is_given, index].long()].T
    posterior = log_joint.softmax(1)  # (N, nodes)
    return [posterior @ log_masses.exp() for log_masses in tables]


def measure_enumerable(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Compare draws with exact conditional probabilities."""
    from tinyvae.evaluation import conditional_draws

    vae, rows = enumerable_model(seed)
    given = conditions_of(rows[: args.conditions], seed)
    start = time.perf_counter()
    draws = conditional_draws(vae, given, num_draws=DRAWS, seed=seed)
    seconds = time.perf_counter() - start
    sizes = draws.effective_sample_size.double()[:, None]
    squares = []
    for index, p in enumerate(exact_marginals(vae, given)):
        levels = torch.arange(p.shape[1])
        shares = (draws.values[:, :, index, None] == levels).double().mean(0)
        error = (p * (1 - p) * (1 / DRAWS + 1 / sizes)).sqrt()
        is_drawn = torch.isnan(given[:, index])
        squares.append(((shares - p) / error).square()[is_drawn].flatten())
    z2 = torch.cat(squares)
    return {
        "failures": failures(vae, given, draws.values),
        "mean_square_z": float(z2.mean()),
        "largest_z": float(z2.max().sqrt()),
        "num_z": len(z2),
        "seconds": seconds,
        **sizes_of(draws),
    }


# Adult --------------------------------------------------------------------------------------------


def failures(vae: VAE, given: Tensor, values: Tensor) -> int:
    """Return the number of conditions with a draw outside the support or a changed entry."""
    is_given = ~torch.isnan(given)
    kept = ((values == given) | ~is_given).all(0).all(1)
    is_valid = vae.likelihood.in_support(values.flatten(0, 1)).view(values.shape).all(0).all(1)
    return int((~(kept & is_valid)).sum())


def sizes_of(draws: Any) -> dict[str, float]:
    """Return quantiles of the effective sample size."""
    quantiles = torch.tensor([0.0, 0.05, 0.5], dtype=torch.float64)
    low, part, middle = draws.effective_sample_size.double().quantile(quantiles).tolist()
    return {"least_ess": low, "ess_5_percent": part, "median_ess": middle}


def measure_adult(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Draw rows of Adult given random columns, next to rejection sampling."""
    from tinyvae.evaluation import conditional_draws
    from tinyvae.sklearn import VAESynthesizer

    train, test = (synthesis.load(args.data, f"adult.{part}.gz") for part in ("data", "test"))
    if args.rows is not None:
        train = train.sample(args.rows, random_state=0)
    model = VAESynthesizer(random_state=seed).fit(train)
    vae, columns = model.vae_, model.columns_
    rows = columns.to_tensor(test.sample(args.conditions, random_state=seed), unknown="missing")
    given = conditions_of(rows, seed)
    start = time.perf_counter()
    draws = conditional_draws(vae, given, num_draws=DRAWS, seed=seed)
    seconds = time.perf_counter() - start
    torch.manual_seed(seed)
    start = time.perf_counter()
    accepted = rejection_counts(vae, given, args.rejections)
    return {
        "failures": failures(vae, given, draws.values),
        "seconds": seconds,
        **sizes_of(draws),
        "rejection_failures": int((accepted == 0).sum()),
        "rejection_seconds": time.perf_counter() - start,
    }


def rejection_counts(vae: VAE, given: Tensor, num_rows: int, chunk: int = 20_000) -> Tensor:
    """Return the number of rows from the model that agree with each condition."""
    is_free = torch.isnan(given)
    counts = torch.zeros(len(given), dtype=torch.int64)
    for _ in range(num_rows // chunk):
        rows = vae.sample(chunk)
        for index, (row, free) in enumerate(zip(given, is_free, strict=True)):
            counts[index] += (rows[:, ~free] == row[~free]).all(1).sum()
    return counts


# Records ------------------------------------------------------------------------------------------


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a record per set and seed."""
    measures = {"enumerable": measure_enumerable, "Adult": measure_adult}
    for name in args.sets or SETS:
        for seed in args.seeds:
            record = {"set": name, "method": "conditional_draws", "seed": seed}
            yield record | {"conditions": args.conditions} | measures[name](args, seed)


def table(records: list[dict[str, Any]]) -> str:
    """Return sums of failures and means of the other figures over the seeds."""
    heads = ("conditions", "failures", "median_ess", "ess_5_percent", "least_ess", "mean_square_z")
    heads += ("largest_z", "rejection_failures", "seconds", "rejection_seconds")
    lines = ["| set | " + " | ".join(heads) + " |", "| --- " * (len(heads) + 1) + "|"]
    for name in dict.fromkeys(record["set"] for record in records):
        runs = [record for record in records if record["set"] == name]
        cells = []
        for head in heads:
            values = [run[head] for run in runs if head in run]
            if head in ("conditions", "failures", "rejection_failures") and values:
                cells.append(str(sum(values)))
            else:
                cells.append(f"{np.mean(values):.4g}" if values else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
