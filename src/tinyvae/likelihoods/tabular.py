"""Likelihood of a table with columns of different kinds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn

from tinyvae.distributions import Distribution, TabularDistribution
from tinyvae.likelihoods.base import Likelihood, check_values
from tinyvae.likelihoods.columns import Column, infer_columns, to_arrays, to_tensor
from tinyvae.likelihoods.continuous import LogNormalLikelihood
from tinyvae.likelihoods.counts import NegativeBinomialLikelihood
from tinyvae.likelihoods.discrete import CategoricalLikelihood
from tinyvae.likelihoods.gaussian import GaussianLikelihood
from tinyvae.likelihoods.kinds import Kind
from tinyvae.likelihoods.parameters import Learned
from tinyvae.likelihoods.wrappers import StandardizedLikelihood, check_factorizes


class MixedLikelihood(Likelihood):
    """A likelihood per column of a table, all with parameters from one decoder.

    ============  ==================================================================================
    kind          likelihood, with one learned parameter per column
    ============  ==================================================================================
    ``number``    :class:`~tinyvae.GaussianLikelihood` of the standardized column
    ``positive``  :class:`~tinyvae.likelihoods.LogNormalLikelihood`, in units of the column's scale
    ``count``     :class:`~tinyvae.likelihoods.NegativeBinomialLikelihood`, baseline: the scale
    ``binary``,   :class:`~tinyvae.CategoricalLikelihood`
    ``category``
    ============  ==================================================================================

    Data are tensors ``(N, D)`` in the units of the table, with indices for levels
    (:meth:`to_tensor`). Draws, reconstructions and densities have the same units. The encoder reads
    standardized numbers, logarithms of positive numbers, log(1 + x) of counts and one-hot levels.

    Args:
        columns: Descriptions of the columns, as :class:`~tinyvae.likelihoods.Column` or tuples of
            its arguments.
        likelihoods: Likelihoods that replace the default one of a column, by column name.

    Shape:
        params: ``(..., Q)`` with ``Q`` of :meth:`param_shape`; x: ``(..., D)``.

    References:
        Nazabal, Olmos, Ghahramani, Valera (2020). Handling incomplete heterogeneous data using
        VAEs. arXiv:1807.03653.

    Example:
        >>> age, smokes = Column("age", "number", shift=40.0, scale=12.0), ("no", "yes")
        >>> table = MixedLikelihood([age, Column("smokes", "binary", levels=smokes)])
        >>> table.param_shape((2,)), table.input_shape((2,))
        (torch.Size([3]), torch.Size([3]))
        >>> x = table.to_tensor({"age": [35, None], "smokes": ["yes", "no"]})
        >>> x
        tensor([[35.,  1.],
                [nan,  0.]])
    """

    is_tabular = True
    alternative = "wrap the likelihoods of its columns, likelihoods={name: ...}"
    takes_integers = True
    _fill_values: Tensor

    def __init__(
        self,
        columns: Sequence[Column | Sequence[Any]],
        *,
        likelihoods: Mapping[str, Likelihood] | Sequence[tuple[str, Likelihood]] = (),
    ) -> None:
        super().__init__()
        self.columns = tuple(c if isinstance(c, Column) else Column(*c) for c in columns)
        self.custom = dict(likelihoods)
        names = [column.name for column in self.columns]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"MixedLikelihood expects columns with different names, got {names}")
        if unknown := self.custom.keys() - set(names):
            raise ValueError(
                f"MixedLikelihood expects likelihoods of columns in {names}, got {sorted(unknown)}"
            )
        for name, likelihood in self.custom.items():
            check_factorizes(likelihood, f"column {name!r}")
        groups = self._groups()
        self.blocks = nn.ModuleList(self._block(group) for group in groups)
        for index, group in enumerate(groups):
            self.register_buffer(f"columns{index}", torch.tensor(group), persistent=False)
        fill_values = torch.empty(len(names))
        for block, indices in self._indexed_blocks():
            value = torch.as_tensor(block.fill_value, dtype=fill_values.dtype)
            fill_values[indices] = value.expand(len(indices))
        self.register_buffer("_fill_values", fill_values, persistent=False)

    @classmethod
    def from_table(
        cls,
        table: Any,
        *,
        kinds: Mapping[str, Kind] | None = None,
        likelihoods: Mapping[str, Likelihood] | None = None,
    ) -> "MixedLikelihood":
        """Return a likelihood whose columns are inferred from a table.

        None, NaN and pandas' NA are missing. The observed values choose the kind of a column:

        - ``binary``: two different values.
        - ``category``: text, other objects and pandas' categorical dtype. Integers of at most ten
          values, each of which ten rows have on average, unless they are counts.
        - ``count``: integers >= 0 near zero (mean at most 10, or at most 100 and twice the
          standard deviation) that a negative binomial fits: not less dispersed than counts,
          without many more or fewer zeros, and, if there are few values, with their frequencies.
        - ``positive``: numbers > 0 that a log-normal density fits clearly better than a normal one,
          also in its standard deviation.
        - ``number``: all other numbers, such as heights, years, shares, and amounts with zeros.

        Print :meth:`describe` to see the choice. ``kinds`` and ``likelihoods`` replace it. Shift,
        scale and the first value of learned parameters come from the observed values.

        Args:
            table: pandas DataFrame, dictionary of columns, or matrix ``(N, D)`` (columns ``x0``,
                ``x1``, ...).
            kinds: Kinds that replace the inferred ones, by column name.
            likelihoods: Likelihoods that replace the default one of a column, by column name.

        Raises:
            ValueError: If a column is empty or constant, holds text that differs in most rows,
                dates or infinity, or contradicts ``kinds``.

        Example:
            >>> table = {"visits": [0, 2, 7, None], "color": ["red", "blue", "red", "green"]}
            >>> table["height"] = [171, 186, 160, 165]
            >>> likelihood = MixedLikelihood.from_table(table, kinds={"visits": "count"})
            >>> print(likelihood.describe())
            visits  count, mean 3
            color   category, 3 levels ['blue', 'green', 'red']
            height  number, mean 170.5, std 9.76, rounded
        """
        return cls(infer_columns(table, kinds), likelihoods=likelihoods or {})

    def describe(self) -> str:
        """Return how each column is modeled, one line per column."""
        width = max(len(column.name) for column in self.columns)
        lines = []
        for column in self.columns:
            custom = self.custom.get(column.name)
            text = column.describe() if custom is None else f"{column.kind}, {custom}"
            lines.append(f"{column.name:<{width}}  {text}")
        return "\n".join(lines)

    def to_tensor(self, table: Any) -> Tensor:
        """Return a table as data ``(N, D)``, with NaN for missing values.

        The dtype is torch's default one, or float64 if that one would round a value.
        :meth:`to_arrays` returns the table. A model converts x to its own dtype.

        Raises:
            ValueError: If a column is missing, a level is unknown, an integer exceeds float64, or
                the default dtype rounds a number by more than 0.001 of the column's scale.
        """
        return to_tensor(table, self.columns)

    def to_arrays(self, x: Tensor) -> dict[str, Any]:
        """Return data ``(N, D)`` as columns by name, for example for ``pandas.DataFrame``.

        Columns have the dtypes and levels of the table. Draws and means of integers are rounded.
        Columns of a pandas dtype that NumPy lacks are arrays of pandas. A missing entry is NaN
        among floating-point numbers and otherwise None.
        """
        return to_arrays(x, self.columns)

    def _groups(self) -> list[list[int]]:
        """Return the indices of the columns of each block."""

        def key(index: int) -> tuple[str, int]:
            column = self.columns[index]
            if column.name in self.custom:
                return ("own", index)
            return ("category", len(column.levels)) if column.levels else (column.kind, 0)

        ordered = sorted(range(len(self.columns)), key=key)
        return [list(group) for _, group in groupby(ordered, key)]

    def _block(self, indices: list[int]) -> Likelihood:
        """Return the likelihood that columns of one kind share."""
        columns = [self.columns[index] for index in indices]
        first = columns[0]
        if first.name in self.custom:
            return self.custom[first.name]
        if first.levels:
            return CategoricalLikelihood(len(first.levels))
        learned = Learned((len(columns),), initial=[column.initial for column in columns])
        scales = [column.scale for column in columns]
        if first.kind == "count":
            return NegativeBinomialLikelihood(learned, baseline=scales)
        if first.kind == "positive":
            return StandardizedLikelihood(LogNormalLikelihood(learned), std=scales)
        shifts = [column.shift for column in columns]
        return StandardizedLikelihood(GaussianLikelihood(learned), mean=shifts, std=scales)

    def _indexed_blocks(self) -> Iterator[tuple[Likelihood, Tensor]]:
        """Yield each block with the indices of its columns."""
        for index, block in enumerate(self.blocks):
            yield cast("Likelihood", block), self.get_buffer(f"columns{index}")

    def factors(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """Return the distributions of the columns, ``(..., D)``, from parameters ``(..., Q)``."""
        distributions, positions, start = [], [], 0
        for block, indices in self._indexed_blocks():
            shape = block.param_shape((len(indices),))
            part = params.narrow(-1, start, shape.numel()).unflatten(-1, shape)
            distributions.append(block.factors(part, 1, context))
            positions.append(indices)
            start += shape.numel()
        return TabularDistribution(distributions, positions)

    def param_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """Return the decoder's output shape for a row, ``(Q,)``."""
        self._check_shape(data_shape)
        widths = (b.param_shape((len(i),)).numel() for b, i in self._indexed_blocks())
        return torch.Size((sum(widths),))

    def input_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """Return the shape of the encoder's input for a row."""
        self._check_shape(data_shape)
        widths = (b.input_shape((len(i),)).numel() for b, i in self._indexed_blocks())
        return torch.Size((sum(widths),))

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return the encoder inputs of the columns' likelihoods, concatenated."""
        inputs = [b.encoder_input(x.index_select(1, i)) for b, i in self._indexed_blocks()]
        return torch.cat([part.flatten(1) for part in inputs], 1)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Return the parameters of the columns' likelihoods, concatenated."""
        blocks = self._indexed_blocks()
        return torch.cat([b.params_for_mean(x.index_select(1, i)).flatten() for b, i in blocks])

    @property
    def fill_value(self) -> Tensor:  # type: ignore[override]
        """A row in the support."""
        return self._fill_values

    def in_support(self, x: Tensor) -> Tensor:
        """Return true for each entry in the support of its column."""
        result = torch.ones(x.shape, dtype=torch.bool, device=x.device)
        for block, indices in self._indexed_blocks():
            result[..., indices] = block.in_support(x.index_select(-1, indices))
        return result

    def check_support(self, x: Tensor) -> bool:
        """Raise, and name the column, unless every column is in its support."""
        self._check_shape(x.shape[1:])
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        parts = [(b, indices, x.index_select(1, indices)) for b, indices in self._indexed_blocks()]
        for block, indices, part in parts:
            bad = ~block.in_support(part)
            for index, bad_rows, values in zip(indices.tolist(), bad.T, part.T, strict=True):
                name = f"column {self.columns[index].name!r}"
                check_values(name, values[:, None], bad_rows[:, None], block.support, block.hint)
        densities = [block.check_support(part) for block, _, part in parts]
        return all(densities)

    def _check_shape(self, data_shape: Sequence[int]) -> None:
        if tuple(data_shape) != (len(self.columns),):
            names = [column.name for column in self.columns]
            raise ValueError(
                f"MixedLikelihood expects rows of {len(names)} columns {names}, got data of shape "
                f"{tuple(data_shape)}: convert them with to_tensor(table)"
            )

    def config(self) -> dict[str, Any]:
        """Return the arguments that build an equal likelihood."""
        columns = [astuple(column) for column in self.columns]
        return {"columns": columns, "likelihoods": list(self.custom.items())}
