r"""The columns of a fitted table, and values that training did not show.

A column with levels, or with a limited support, can meet a value that the model gives no
probability, and so can a constant. With ``n`` observed values in training, the rule of succession
gives all such values together the probability

.. math:: p(x \text{ unseen}) = \frac{1}{n + 2}, \qquad
    p(x) = \frac{n + 1}{n + 2}\, p_{\text{model}}(x) \text{ for all others}

which is normalized. The encoder reads an unseen value as missing.

A density counts in units of the standard deviation of its column. Without that, the score of a row
would depend on the units of the table wherever some values of a column have a mass, such as the
zeros of amounts, and wherever some are missing.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tinyvae.likelihoods import Likelihood, MixedLikelihood
from tinyvae.likelihoods.columns import Column
from tinyvae.likelihoods.conversion import to_tensor
from tinyvae.likelihoods.kinds import Kind
from tinyvae.likelihoods.tables import Array, as_numbers, is_present, named_columns
from tinyvae.sklearn.tables import columns_of, is_frame

PROBES = (-1e30, -1.0, 0.0, 0.5, 1e30)  # a support without all of them is limited


def infer_likelihood(
    table: Any,
    kinds: Mapping[str, Kind] | None,
    likelihood: Literal["auto"] | MixedLikelihood | Mapping[str, Likelihood],
) -> MixedLikelihood:
    """Return the likelihood of a table. It shares nothing with the argument."""
    columns = columns_of(table)
    if isinstance(likelihood, MixedLikelihood):
        expected, got = [column.name for column in likelihood.columns], list(map(str, columns))
        if expected != got:
            raise ValueError(
                f"likelihood expects the columns of the table in their order, {got}, got "
                f"{expected}: use MixedLikelihood.from_table(X)"
            )
        return deepcopy(likelihood)
    custom = {} if isinstance(likelihood, str) and likelihood == "auto" else likelihood
    if not isinstance(custom, Mapping):
        raise ValueError(
            "likelihood expects 'auto', a MixedLikelihood, or likelihoods by column name, got "
            f"{likelihood!r}"
        )
    custom = {str(name): value for name, value in custom.items()}
    return MixedLikelihood.from_table(columns, kinds=kinds, likelihoods=deepcopy(custom))


class Schema:
    """The columns of a fitted table.

    Args:
        table: The training rows, validated.
        likelihood: Likelihood of the table.

    Attributes:
        num_observed: Number of observed training values of each column, ``(C,)``.
        is_limited: True for each column that can meet an unseen value, ``(C,)``.
        is_empty: True for each column without observed training values, ``(C,)``.
        modeled: Positions of the columns that the model reads, in its order, ``(D,)``.
        log_units: Logarithm of the unit of the density of each modeled column, ``(D,)``.
        least, most: Range of the training values of each modeled column, ``(D,)``, NaN if none is
            observed.
    """

    def __init__(self, table: Any, likelihood: MixedLikelihood) -> None:
        columns, arrays = likelihood.columns, named_columns(columns_of(table))
        self.num_observed = np.array([is_present(values).sum() for values in arrays.values()])
        self.modeled = np.flatnonzero([column.is_modeled for column in columns])
        self.is_empty = self.num_observed == 0
        self.is_limited = np.array([column.kind == "constant" for column in columns])
        probes = torch.tensor(PROBES).unsqueeze(1).expand(-1, len(self.modeled))
        self.is_limited[self.modeled] = ~likelihood.in_support(probes).all(0).numpy()
        self.is_limited &= ~self.is_empty
        self.template = table.iloc[:0] if is_frame(table) else table[:0].copy()
        self.log_units = np.zeros(len(self.modeled))
        x = self.encode(table, likelihood)[0]
        self.log_units = np.log(_spreads(x.masked_fill(likelihood.has_mass(x), torch.nan)))
        self.least, self.most = np.fmin.reduce(x.numpy(), 0), np.fmax.reduce(x.numpy(), 0)

    def encode(self, table: Any, likelihood: MixedLikelihood) -> tuple[Tensor, Array]:
        """Return the rows of a table for the model, and terms to add to -log p(x) of the model.

        Returns:
            Rows ``(N, D)`` in float64, NaN for missing and unseen values. Terms of each entry, by
            the rule of succession and by the units of densities, ``(N, C)``, nats.

        Raises:
            ValueError: If a column of numbers holds text, or one of dates anything else.
        """
        columns = likelihood.columns
        arrays = list(named_columns(columns_of(table)).values())
        present = np.stack([is_present(values) for values in arrays], 1)
        x = np.full((len(table), len(self.modeled)), np.nan)
        for position, index in enumerate(self.modeled.tolist()):
            x[:, position] = _encode(columns[index], arrays[index], present[:, index])
        known = torch.from_numpy(x).nan_to_num(0.0)
        x[~likelihood.in_support(known).numpy()] = np.nan
        unseen = np.zeros(present.shape, dtype=bool)
        unseen[:, self.modeled] = present[:, self.modeled] & np.isnan(x)
        for index, value in self._constants(likelihood).items():
            observed = present[:, index]  # comparing pandas' NA is an error
            unseen[observed, index] = _differs(arrays[index][observed], value)
        n = self.num_observed
        factors = np.where(unseen, np.log(n + 2), np.log((n + 2) / (n + 1)))
        terms: Array = np.where(present & self.is_limited, factors, 0.0)
        rows = torch.from_numpy(x)
        has_density = ~(likelihood.has_mass(rows) | torch.isnan(rows)).numpy()
        terms[:, self.modeled] -= np.where(has_density, self.log_units, 0.0)
        return rows, terms

    def _constants(self, likelihood: MixedLikelihood) -> dict[int, Array]:
        """Return the value of each constant column, ``(1,)``, by position."""
        row = likelihood.to_arrays(torch.zeros(1, len(self.modeled)))
        values = {}
        for index, column in enumerate(likelihood.columns):
            if column.kind == "constant" and column.levels:
                values[index] = named_columns({column.label: row[column.label]})[column.name]
        return values

    def to_table(self, rows: Tensor, likelihood: MixedLikelihood) -> Any:
        """Return rows ``(N, D)`` as a table of the type that was fitted.

        A DataFrame has no columns of identifiers. An array has NaN there.
        """
        if is_frame(self.template):
            frame = likelihood.to_frame(rows)  # objects that are all text have become text
            return frame.astype({label: self.template[label].dtype for label in frame.columns})
        arrays = likelihood.to_arrays(rows)
        nothing = np.full(len(rows), np.nan)
        columns = [np.asarray(arrays.get(c.label, nothing)) for c in likelihood.columns]
        matrix = np.stack([column.astype(object) for column in columns], 1)
        if self.template.dtype == object:
            return matrix
        numbers = matrix.astype(np.float64)
        is_complete = self.template.dtype.kind == "f" or not np.isnan(numbers).any()
        return numbers.astype(self.template.dtype) if is_complete else numbers


def _spreads(x: Tensor) -> Array:
    """Return the standard deviation of each column of ``x`` ``(N, D)``, 1 if it has none."""
    variance = torch.nanmean((x - torch.nanmean(x, 0)).square(), 0).nan_to_num(0.0)
    spreads: Array = torch.where(variance > 0, variance.sqrt(), 1.0).numpy()
    return spreads


def _encode(column: Column, values: Array, present: Array) -> Array:
    """Return a column in float64, NaN for missing values and unknown levels."""
    if column.has_levels or column.kind == "date":
        return to_tensor({column.name: values}, [column], unknown="missing")[:, 0].double().numpy()
    numbers = np.full(len(values), np.nan)
    numbers[present] = as_numbers(column.name, values[present])
    return numbers


def _differs(values: Array, constant: Array) -> Array:
    """Return a boolean array, true for values that differ from the constant ``(1,)``."""
    if values.dtype.kind in "mM" or constant.dtype.kind in "mM":
        same_kind = values.dtype.kind == constant.dtype.kind
        return values != constant if same_kind else np.ones(len(values), dtype=bool)
    differs: Array = values.astype(object) != constant.astype(object)
    return differs
