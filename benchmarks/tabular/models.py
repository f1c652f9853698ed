"""The library's answers: scores of rows, filled tables. No setting depends on the data set."""

import math
from typing import Any

import numpy as np
import torch

from tinyvae import impute, log_marginal
from tinyvae.likelihoods import MixedLikelihood
from tinyvae.sklearn.recipe import fit_vae

Matrix = np.ndarray[Any, Any]
SCORE_DRAWS, FILL_DRAWS = 100, 1000


def score(train: Matrix, test: Matrix, seed: int) -> Matrix:
    """Return -log p(x) of the rows of ``test`` under a model of ``train``."""
    is_constant = np.ptp(train, axis=0) == 0
    modeled = train[:, ~is_constant]
    columns = MixedLikelihood.from_table(modeled)
    vae, _ = fit_vae(columns, columns.to_tensor(modeled), seed=seed, device="cpu")
    rows = test[:, ~is_constant].astype(np.float64)
    for index, column in enumerate(columns.columns):
        if column.levels:
            rows[~np.isin(rows[:, index], column.levels), index] = np.nan
    x = torch.from_numpy(rows)
    x[~columns.in_support(x)] = torch.nan
    table = {column.name: values for column, values in zip(columns.columns, x.numpy().T)}
    x = columns.to_tensor(table)
    log_p = log_marginal(vae, x, num_samples=SCORE_DRAWS, progress=False).double().numpy()
    # A value that no training row allows has about the probability 1 / (n + 2): Laplace's rule.
    surprises = (test != train[0])[:, is_constant].sum(1) + np.isnan(rows).sum(1)
    surprises = surprises + (torch.isnan(x).numpy() & ~np.isnan(rows)).sum(1)
    return -log_p + surprises * math.log(len(train) + 2)


def fill(
    table: Any, seed: int, *, kinds: Any = None, num_imputations: int | None = None
) -> tuple[Matrix, Matrix | None]:
    """Return a table with filled entries ``(N, D)``, and draws of it ``(M, N, D)`` on request."""
    columns = MixedLikelihood.from_table(table, kinds=kinds)
    x = columns.to_tensor(table)
    vae, _ = fit_vae(columns, x, seed=seed, device="cpu")
    filled = impute(vae, x, num_samples=FILL_DRAWS, progress=False)
    draws = None
    if num_imputations is not None:
        draws = impute(
            vae, x, num_imputations=num_imputations, num_samples=FILL_DRAWS, progress=False
        ).numpy()
    return filled.numpy(), draws


def fill_table(x: Matrix, seed: int, kinds: Any) -> Matrix:
    """Return a matrix of numbers and categories with filled entries."""
    columns = MixedLikelihood.from_table(x, kinds=kinds)
    observed = columns.to_tensor(x)
    vae, _ = fit_vae(columns, observed, seed=seed, device="cpu")
    arrays = columns.to_arrays(impute(vae, observed, num_samples=FILL_DRAWS, progress=False))
    return np.stack([np.asarray(values, dtype=np.float64) for values in arrays.values()], 1)
