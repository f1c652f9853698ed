r"""The columns of a fitted table: those that the model reads, and those that do not vary.

A column with levels, or with a limited support, can meet a value that the model gives no
probability, and so can a constant. With ``n`` observed values in training, the rule of succession
gives all such values together the probability

.. math:: p(x \text{ unseen}) = \frac{1}{n + 2}, \qquad
    p(x) = \frac{n + 1}{n + 2}\, p_{\text{model}}(x) \text{ for all others}

which is normalized. The encoder reads an unseen value as missing.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tinyvae.likelihoods import Likelihood, MixedLikelihood
from tinyvae.likelihoods.kinds import Kind
from tinyvae.likelihoods.tables import as_numbers
from tinyvae.sklearn.tables import Array, columns_of, missing_entries

PROBES = (-1e30, -1.0, 0.0, 0.5, 1e30)  # a support without all of them is limited


class Schema:
    """The columns of a fitted table, by position.

    Args:
        table: A table that has been validated.
        names: Names of its columns.
        kinds: Kinds that replace the inferred ones, by name.
        likelihood: ``"auto"``, likelihoods by column name, or one of all columns that vary.

    Attributes:
        names: Names of all columns.
        modeled: Positions of the columns of the tensor, in its order.
        constants: Values of the columns with one observed value, by position.
        empty: Positions of the columns without observed values.
        num_observed: Number of observed values of each column.
        is_limited: True for each column that can meet an unseen value.
    """

    def __init__(
        self,
        table: Any,
        names: list[str],
        kinds: Mapping[str, Kind] | None,
        likelihood: Literal["auto"] | MixedLikelihood | Mapping[str, Likelihood],
    ) -> None:
        self.names = names
        columns = columns_of(table, names)
        observed = {n: np.asarray(c, object)[~missing_entries(c)] for n, c in columns.items()}
        self.num_observed = np.array([len(values) for values in observed.values()])
        distinct = [_first_two(values) for values in observed.values()]
        self.empty = [i for i, values in enumerate(distinct) if not values]
        self.constants = {i: values[0] for i, values in enumerate(distinct) if len(values) == 1}
        varying = {n: columns[n] for n, v in zip(names, distinct, strict=True) if len(v) > 1}
        if not varying:
            raise ValueError(
                f"a model expects a column with different values, got {len(names)} columns without "
                f"any in {len(table)} rows: give more rows"
            )
        fitted = _likelihood_of(varying, kinds, likelihood)
        self.modeled = [names.index(column.name) for column in fitted.columns]
        self.levels = [
            {level: index for index, level in enumerate(column.levels)} for column in fitted.columns
        ]
        self.is_limited = np.ones(len(names), dtype=bool)
        probes = torch.tensor(PROBES).unsqueeze(1).expand(-1, len(self.modeled))
        self.is_limited[self.modeled] = ~fitted.in_support(probes).all(0).numpy()
        self.is_limited[self.empty] = False
        self.likelihood = fitted

    def training_rows(self, table: Any) -> Tensor:
        """Return the table as rows ``(N, D)`` of the model, or raise if its dtype rounds them."""
        columns = columns_of(table, self.names)
        return self.likelihood.to_tensor({self.names[i]: columns[self.names[i]] for i in self.modeled})

    def encode(self, table: Any, likelihood: MixedLikelihood) -> tuple[Tensor, Array]:
        """Return rows ``(N, D)`` in float64, and a boolean array ``(N, C)`` of unseen values.

        Missing and unseen values are NaN in the rows.
        """
        columns = list(columns_of(table, self.names).values())
        unseen = np.zeros((len(table), len(columns)), dtype=bool)
        for index, value in self.constants.items():
            entries = np.asarray(columns[index], object)
            unseen[:, index] = ~missing_entries(columns[index]) & (entries != value)
        x = np.full((len(table), len(self.modeled)), np.nan)
        for position, (index, levels) in enumerate(zip(self.modeled, self.levels, strict=True)):
            present = ~missing_entries(columns[index])
            values = np.asarray(columns[index], object)[present]
            if levels:
                codes = np.array([levels.get(value, -1) for value in values.tolist()], dtype=float)
                unseen[present, index] = codes < 0
                x[present, position] = np.where(codes < 0, np.nan, codes)
            elif len(values):
                x[present, position] = as_numbers(self.names[index], np.array(values.tolist()))
        rows = torch.from_numpy(x)
        outside = ~likelihood.in_support(rows) & ~torch.isnan(rows)
        unseen[:, self.modeled] |= outside.numpy()
        return rows.masked_fill(outside, torch.nan), unseen

    def unseen_contributions(self, table: Any, unseen: Array) -> Array:
        """Return minus the logarithm of the factors of the rule of succession, ``(N, C)``, nats."""
        columns = columns_of(table, self.names).values()
        present = ~np.stack([missing_entries(column) for column in columns], 1)
        n = self.num_observed
        seen = np.where(self.is_limited, np.log((n + 2) / (n + 1)), 0.0)
        terms: Array = np.where(unseen & self.is_limited, np.log(n + 2), seen)
        return terms * present

    def values_of(self, rows: Tensor, likelihood: MixedLikelihood) -> dict[int, Any]:
        """Return the values of all columns but empty ones, by position, of rows ``(N, D)``."""
        arrays = likelihood.to_arrays(rows)
        values = {index: arrays[self.names[index]] for index in self.modeled}
        for index, value in self.constants.items():
            values[index] = np.full(len(rows), value, dtype=object)
        return values

    def describe(self, likelihood: MixedLikelihood) -> str:
        """Return how each column is modeled, one line per column."""
        lines = dict(zip(self.modeled, likelihood.describe().splitlines(), strict=True))
        width = max(map(len, self.names))
        for index, value in self.constants.items():
            lines[index] = f"{self.names[index]:<{width}}  constant, {value!r}, not modeled"
        for index in self.empty:
            lines[index] = f"{self.names[index]:<{width}}  all missing, not modeled"
        return "\n".join(lines[index] for index in sorted(lines))


def _first_two(values: Array) -> list[Any]:
    """Return the first value and the first that differs from it, if there are any."""
    if not len(values):
        return []
    first = values[0]
    return next(([first, value] for value in values if value != first), [first])


def _likelihood_of(
    columns: Mapping[str, Any],
    kinds: Mapping[str, Kind] | None,
    likelihood: Literal["auto"] | MixedLikelihood | Mapping[str, Likelihood],
) -> MixedLikelihood:
    """Return the likelihood of the columns that vary. It shares nothing with the argument."""
    if isinstance(likelihood, MixedLikelihood):
        expected = {column.name for column in likelihood.columns}
        if expected != set(columns):
            raise ValueError(
                "likelihood expects one column for each that varies, "
                f"{sorted(columns)}, got {sorted(expected)}: leave out the others"
            )
        return deepcopy(likelihood)
    if likelihood == "auto":
        likelihood = {}
    if not isinstance(likelihood, Mapping):
        raise ValueError(
            "likelihood expects 'auto', a MixedLikelihood, or likelihoods by column name, got "
            f"{likelihood!r}"
        )
    kinds = {str(name): kind for name, kind in (kinds or {}).items() if str(name) in columns}
    custom = {str(name): value for name, value in likelihood.items() if str(name) in columns}
    return MixedLikelihood.from_table(columns, kinds=kinds, likelihoods=deepcopy(custom))
