"""Likelihood of a table with columns of different kinds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from tinyvae.distributions import Distribution, TabularDistribution
from tinyvae.likelihoods.base import Likelihood, check_values
from tinyvae.likelihoods.blocks import build_block, group_columns
from tinyvae.likelihoods.columns import Column
from tinyvae.likelihoods.conversion import fill, to_arrays, to_frame, to_tensor
from tinyvae.likelihoods.hurdle import HurdleLikelihood
from tinyvae.likelihoods.inference import infer_columns
from tinyvae.likelihoods.kinds import Kind
from tinyvae.likelihoods.wrappers import check_factorizes


class MixedLikelihood(Likelihood):
    """A likelihood per column of a table, all with parameters from one decoder.

    ==============  ================================================================================
    kind            likelihood, with one learned parameter per column
    ==============  ================================================================================
    ``number``      :class:`~tinyvae.GaussianLikelihood` of the standardized column
    ``heavy``       :class:`~tinyvae.likelihoods.StudentTLikelihood`, the same with heavy tails
    ``modes``       :class:`~tinyvae.likelihoods.MixtureLikelihood` of Gaussian components
    ``positive``    :class:`~tinyvae.likelihoods.LogNormalLikelihood`, in units of the column's
                    scale
    ``amount``      :class:`~tinyvae.likelihoods.HurdleLikelihood`: masses at zero or other points,
                    and one of the above elsewhere
    ``bounded``     :class:`~tinyvae.likelihoods.LogitNormalLikelihood`, with masses at the ends on
                    which values lie
    ``count``       :class:`~tinyvae.likelihoods.NegativeBinomialLikelihood`, baseline: the scale
    ``ordinal``     :class:`~tinyvae.likelihoods.OrdinalLikelihood`, with thresholds per column
    ``binary``,     :class:`~tinyvae.CategoricalLikelihood`
    ``category``
    ``date``        as ``number``, counted from the first date in days, hours or smaller units
    ``constant``,   not modeled, without a dimension of the tensor
    ``identifier``
    ==============  ================================================================================

    Data are tensors ``(N, D)`` of the modeled columns in the units of the table, with indices for
    levels (:meth:`to_tensor`). Draws, reconstructions and densities have the same units. The
    encoder reads standardized numbers, logarithms of positive numbers, log(1 + x) of counts,
    one-hot levels, ordered levels scaled to [-1, 1], and an indicator of each point.

    Args:
        columns: Descriptions of the columns, as :class:`~tinyvae.likelihoods.Column` or tuples of
            its arguments.
        likelihoods: Likelihoods that replace the default one of a column, by column name.

    Attributes:
        columns: All columns.
        modeled: The columns that have a dimension of the tensor, in its order.

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
        self.modeled = tuple(column for column in self.columns if column.is_modeled)
        if not self.modeled:
            raise ValueError(
                "MixedLikelihood expects a column to model, got only constants and identifiers "
                f"{names}: declare the kind of one, kinds={{{names[0]!r}: 'category'}}"
            )
        names = [column.name for column in self.modeled]
        if unknown := self.custom.keys() - set(names):
            raise ValueError(
                f"MixedLikelihood expects likelihoods of columns in {names}, got {sorted(unknown)}"
            )
        for name, likelihood in self.custom.items():
            check_factorizes(likelihood, f"column {name!r}")
        groups = group_columns(self.modeled, tuple(self.custom))
        parts = ([self.modeled[index] for index in group] for group in groups)
        self.blocks = nn.ModuleList(
            self.custom.get(part[0].name) or build_block(part) for part in parts
        )
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

        None, NaN, NaT and pandas' NA are missing. The observed values choose the kind of a column,
        the first that fits:

        - ``constant``: at most one value. It comes back, and nothing is modeled.
        - ``date``: dates, times and durations of NumPy, pandas (also with time zones) and Python.
          Draws are whole days, hours, minutes or smaller units, as the dates are.
        - ``binary``: two different values.
        - ``identifier``: text that differs in all rows, if there are more than ten, or in more than
          half of them; UUIDs; integers that number the rows from 0 or 1, or from any number if
          there are 100 rows; different integers beyond 2**53. It is left out.
        - ``ordinal``: ordered categories of pandas. ``category``: other text, objects, categories.
        - ``count``: integers >= 0 near zero (mean at most 10, or at most 100 and twice the
          standard deviation) that a negative binomial fits: not less dispersed than counts,
          without many more or fewer zeros, and, if there are few values, with their frequencies.
        - ``ordinal``: five to ten evenly spaced values whose frequencies have one peak, eight or
          more evenly spaced values, or 11 to 20 ones near each other. ``category``: other numbers
          of at most ten values. Ten rows on average have each value. Standardized integers are
          evenly spaced, too.
        - ``amount``: numbers of which one value is in 20 % of the rows, and in three times as many
          as each rarer value next to it, such as zeros. The other values are searched once more,
          up to five points.
        - ``bounded``, ``positive``, ``heavy``, ``modes``: the density that gains most over a normal
          one, at least 0.05 nats per value and 10 nats in all: a logit-normal for numbers that fill
          much of [0, 1], [0, 100] or [-1, 1]; a log-normal, if its standard deviation is about that
          of the numbers; a Student t, if they are not skewed; a mixture, if a smoothed histogram
          has several peaks of 5 % of the rows or more with deep valleys between them.
        - ``number``: all others.

        Whole numbers of a floating-point type count as integers from 20 rows, and come back as
        whole numbers of their type. Densities are compared on at most 2,000 rows, spread over the
        table. Print :meth:`describe` to see the choices and the reasons. ``kinds`` and
        ``likelihoods`` replace them: ``kinds={"id": "identifier"}`` leaves a column out. Shift,
        scale and the first value of learned parameters come from the observed values.

        Args:
            table: pandas DataFrame, dictionary of columns, or matrix ``(N, D)`` (columns ``x0``,
                ``x1``, ...).
            kinds: Kinds that replace the inferred ones, by column name.
            likelihoods: Likelihoods that replace the default one of a column, by column name.

        Raises:
            ValueError: If no column can be modeled, or one holds infinity, numbers as text that
                differs in most rows, or objects that are no text, or contradicts ``kinds``.

        Example:
            >>> table = {"visits": [0, 2, 7, None], "color": ["red", "blue", "red", "green"]}
            >>> table["height"] = [171, 186, 160, 165]
            >>> likelihood = MixedLikelihood.from_table(table, kinds={"visits": "count"})
            >>> print(likelihood.describe())
            column  kind      details                            reason
            visits  count     mean 3                             declared
            color   category  3 levels ['blue', 'green', 'red']  text
            height  number    mean 170.5, std 9.76, rounded
        """
        return cls(infer_columns(table, kinds), likelihoods=likelihoods or {})

    def describe(self) -> str:
        """Return a table of the columns: name, kind, details, and the reason for the kind."""
        rows = [("column", "kind", "details", "reason")]
        for column in self.columns:
            custom = self.custom.get(column.name)
            details = column.details() if custom is None else repr(custom)
            rows.append((column.name, column.kind, details, column.reason))
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        padded = ("  ".join(map(str.ljust, row, widths)) for row in rows)
        return "\n".join(line.rstrip() for line in padded)

    def to_tensor(self, table: Any, *, unknown: Literal["raise", "missing"] = "raise") -> Tensor:
        """Return the modeled columns of a table as data ``(N, D)``, with NaN for missing values.

        The dtype is torch's default one, or float64 if that one would round a value.
        :meth:`to_arrays` returns the table. A model converts x to its own dtype. Constants and
        identifiers may hold anything, and may be absent from a table with names.

        Args:
            table: A table with these columns, see :meth:`from_table`. A matrix has all of them, in
                their order.
            unknown: ``"missing"`` to read levels that a column does not have, and numbers outside
                the support of its likelihood, as missing. ``"raise"`` refuses such levels; ``fit``
                refuses such numbers.

        Raises:
            ValueError: If a column is absent, a level is unknown, an integer exceeds float64, or
                the default dtype rounds a number by more than 0.001 of the column's scale.
        """
        x = to_tensor(table, self.columns, unknown=unknown)
        if unknown == "raise":
            return x
        fill_values = self._fill_values.to(x)
        known = torch.where(torch.isnan(x), fill_values, x)
        return x.masked_fill(~self.in_support(known).to(x.device), torch.nan)

    def to_arrays(self, x: Tensor) -> dict[Any, Any]:
        """Return data ``(N, D)`` as columns by name, with constants, without identifiers.

        Columns have the dtypes and levels of the table. Draws and means of integers are rounded.
        Columns of a pandas dtype that NumPy lacks are arrays of pandas. A missing entry is NaN
        among floating-point numbers, NaT among dates, and otherwise None.
        """
        return to_arrays(x, self.columns)

    def to_frame(self, x: Tensor, *, index: Any = None) -> Any:
        """Return :meth:`to_arrays` as a pandas DataFrame.

        Args:
            x: Data ``(N, D)``.
            index: Index of the frame, such as that of the table.

        Raises:
            ImportError: If pandas is not installed.
        """
        return to_frame(x, self.columns, index=index)

    def fill(self, table: Any, x: Tensor) -> Any:
        """Return a copy of a table with entries of ``x`` in place of the missing ones.

        Observed entries, identifiers, other columns, names, index and the type of the table stay
        as they are. Missing entries of a constant become its value.

        Args:
            table: DataFrame, dictionary of columns, or matrix, with missing entries.
            x: Data ``(N, D)`` without NaN, such as :func:`~tinyvae.impute` returns.

        Example:
            >>> table = {"age": [31.0, None, 54.0, 47.0], "color": ["red", "blue", None, "red"]}
            >>> columns = MixedLikelihood.from_table(table)
            >>> x = torch.tensor([[31.0, 1.0], [42.0, 0.0], [54.0, 1.0], [47.0, 1.0]])
            >>> columns.fill(table, x)
            {'age': [31.0, 42.0, 54.0, 47.0], 'color': ['red', 'blue', 'red', 'red']}
        """
        return fill(table, x, self.columns)

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

    def has_mass(self, x: Tensor) -> Tensor:
        """Return true for each entry of ``x`` ``(N, D)`` that has a mass instead of a density."""
        result = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
        for block, indices in self._indexed_blocks():
            if isinstance(block, HurdleLikelihood):
                result[:, indices] = block.is_point(x.index_select(1, indices))
            else:
                result[:, indices] = block.takes_integers
        return result

    def check_support(self, x: Tensor) -> bool:
        """Raise, and name the column, unless every column is in its support."""
        self._check_shape(x.shape[1:])
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        parts = [(b, indices, x.index_select(1, indices)) for b, indices in self._indexed_blocks()]
        for block, indices, part in parts:
            bad = ~block.in_support(part)
            for index, bad_rows, values in zip(indices.tolist(), bad.T, part.T, strict=True):
                name = f"column {self.modeled[index].name!r}"
                check_values(name, values[:, None], bad_rows[:, None], block.support, block.hint)
        densities = [block.check_support(part) for block, _, part in parts]
        return all(densities)

    def _check_shape(self, data_shape: Sequence[int]) -> None:
        if tuple(data_shape) != (len(self.modeled),):
            names = [column.name for column in self.modeled]
            raise ValueError(
                f"MixedLikelihood expects rows of {len(names)} columns {names}, got data of shape "
                f"{tuple(data_shape)}: convert them with to_tensor(table)"
            )

    def config(self) -> dict[str, Any]:
        """Return the arguments that build an equal likelihood."""
        columns = [astuple(column) for column in self.columns]
        return {"columns": columns, "likelihoods": list(self.custom.items())}
