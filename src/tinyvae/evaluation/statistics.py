"""Statistics of data sets that show what a model misses, by the kind of their values."""

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tinyvae.likelihoods import Likelihood, MaskedLikelihood, MixedLikelihood

# A function of data (N, *E), float64 on the CPU, NaN where they are missing, to one number.
Statistic: TypeAlias = Callable[[Tensor], Tensor | float]
Values: TypeAlias = Literal["numbers", "counts", "binary", "categories"]

MAX_LEVELS = 10  # whose shares are checked, of each variable


def default_statistics(
    likelihood: Likelihood, x: Tensor, *, is_discrete: bool | None
) -> dict[str, Statistic]:
    """Return statistics by name: of each column of a table, of all entries together otherwise.

    Args:
        likelihood: Likelihood of the model.
        x: Data ``(N, *E)``, NaN where they are missing.
        is_discrete: True if the likelihood is a mass.
    """
    if isinstance(likelihood, MaskedLikelihood):
        likelihood = likelihood.likelihood
    if not isinstance(likelihood, MixedLikelihood):
        statistics = statistics_of(values_of(likelihood, x, is_discrete=is_discrete), x)
        if x[0].numel() > 1 and not likelihood.centers_are_integers:
            statistics["std of sums"] = _std_of_sums
        return statistics
    statistics = {}
    for index, column in enumerate(likelihood.modeled):
        values: Values = "numbers"
        if column.has_levels:
            values = "binary" if len(column.levels) == 2 else "categories"
        elif column.kind == "count":
            values = "counts"
        for name, statistic in statistics_of(values, x[:, index], column.levels).items():
            statistics[f"{column.name}: {name}"] = partial(_of_column, statistic, index)
    return statistics


def values_of(likelihood: Likelihood, x: Tensor, *, is_discrete: bool | None) -> Values:
    """Return the kind of values of data whose dimensions have one likelihood."""
    observed = x[~torch.isnan(x)]
    if not is_discrete:
        return "numbers"
    if ((observed == 0) | (observed == 1)).all():
        return "binary"
    return "categories" if likelihood.centers_are_integers else "counts"


def statistics_of(
    values: Values, x: Tensor, levels: tuple[object, ...] = ()
) -> dict[str, Statistic]:
    """Return statistics by name, for values of a kind."""
    if values == "numbers":
        quantiles = {
            f"{share:.0%} quantile": partial(_quantile, share) for share in (0.05, 0.5, 0.95)
        }
        return {"mean": torch.nanmean, "std": _std, **quantiles}
    if values == "counts":
        return {
            "mean": torch.nanmean,
            "variance / mean": _dispersion,
            "share of zeros": partial(_share, 0),
            "max": _max,
        }
    if values == "binary":
        name = f"share of {levels[1]}" if levels else "mean"
        return {name: torch.nanmean}
    codes, sizes = x[~torch.isnan(x)].unique(return_counts=True)
    frequent = codes[sizes.argsort(descending=True)[:MAX_LEVELS]].sort().values
    names = (levels[int(code)] if levels else int(code) for code in frequent)
    return {
        f"share of {n}": partial(_share, c) for n, c in zip(names, frequent.tolist(), strict=True)
    }


def compute(name: str, statistic: Statistic, x: Tensor) -> float:
    """Return a statistic of data, or raise if it is not one number."""
    value = torch.as_tensor(statistic(x))
    if value.numel() != 1:
        raise ValueError(
            f"predictive_check expects statistics that return one number, got shape "
            f"{tuple(value.shape)} of {name!r}: give one function per number"
        )
    return float(value)


def _of_column(statistic: Statistic, index: int, x: Tensor) -> Tensor | float:
    return statistic(x[:, index])


def _std(x: Tensor) -> Tensor:
    return x[~torch.isnan(x)].std()


def _quantile(share: float, x: Tensor) -> float:
    return float(np.nanquantile(x.numpy(), share))  # torch's takes 16 million values at most


def _dispersion(x: Tensor) -> Tensor:
    return x[~torch.isnan(x)].var() / torch.nanmean(x)


def _share(level: float, x: Tensor) -> Tensor:
    return (x == level).sum() / (~torch.isnan(x)).sum()


def _max(x: Tensor) -> Tensor:
    return x[~torch.isnan(x)].max()


def _std_of_sums(x: Tensor) -> Tensor:
    """Return the standard deviation of the sum of each example: it depends on correlations."""
    return x.flatten(1).nansum(1).std()
