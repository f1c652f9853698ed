"""The library's estimators, with the same default settings for every data set."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tinyvae.likelihoods.kinds import Kind
from tinyvae.sklearn import VAEDetector, VAEImputer

Matrix = np.ndarray[Any, Any]


def score(train: Matrix, test: Matrix, seed: int) -> Matrix:
    """Return -log p(x) of the rows of ``test`` under a model of ``train``."""
    return -VAEDetector(random_state=seed, device="cpu").fit(train).score_samples(test)


def fill(
    x: Matrix,
    seed: int,
    *,
    kinds: Mapping[str, Kind] | None = None,
    num_imputations: int = 0,
) -> tuple[Matrix, Matrix]:
    """Return a matrix with filled entries ``(N, D)``, and draws of it ``(M, N, D)``."""
    imputer = VAEImputer(kinds=kinds, random_state=seed, device="cpu").fit(x)
    draws = imputer.impute(x, num_imputations) if num_imputations else []
    return imputer.transform(x), np.array(draws)
