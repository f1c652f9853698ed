"""The likelihood of a table: columns of different kinds side by side."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tinyvae.distributions import Distribution, TabularDistribution
from tinyvae.likelihoods.base import Likelihood, refuse
from tinyvae.likelihoods.columns import Column, Kind, infer_columns, to_arrays, to_tensor
from tinyvae.likelihoods.continuous import LogNormalLikelihood
from tinyvae.likelihoods.counts import NegativeBinomialLikelihood
from tinyvae.likelihoods.discrete import CategoricalLikelihood
from tinyvae.likelihoods.gaussian import GaussianLikelihood
from tinyvae.likelihoods.parameters import Learned
from tinyvae.likelihoods.wrappers import StandardizedLikelihood, require_separable


class MixedLikelihood(Likelihood):
    """TabularDistribution of a table with different likelihoods side by side, of one decoder.

    ============  ==================================================================================
    kind          likelihood, one learned parameter per column
    ============  ==================================================================================
    ``number``    standardized, then :class:`~tinyvae.GaussianLikelihood`
    ``positive``  :class:`~tinyvae.likelihoods.LogNormalLikelihood`, in units of the column's scale
    ``count``     :class:`~tinyvae.likelihoods.NegativeBinomialLikelihood`, with the scale as baseline
    ``binary``,   :class:`~tinyvae.CategoricalLikelihood`
    ``category``
    ============  ==================================================================================

    Data are tensors ``(N, D)`` in the units of the table, with indices of levels
    (:meth:`to_tensor`); so are draws, reconstructions and densities. The encoder is fed numbers
    standardized, positive ones by their logarithm, counts by log(1 + x), levels one-hot.

    Args:
        columns: What the columns are, as :class:`~tinyvae.likelihoods.Column` or tuples of its arguments.
        likelihoods: Another likelihood of a column, by its name.

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

    is_table = True
    instead = "wrap the likelihoods of its columns, likelihoods={name: ...}"
    takes_integers = True
    point: Tensor

    def __init__(
        self,
        columns: Sequence[Column | Sequence[Any]],
        likelihoods: Mapping[str, Likelihood] | Sequence[tuple[str, Likelihood]] = (),
    ) -> None:
        super().__init__()
        self.columns = tuple(c if isinstance(c, Column) else Column(*c) for c in columns)
        self.own = dict(likelihoods)
        names = [column.name for column in self.columns]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"expected columns of different names, got {names}")
        if unknown := self.own.keys() - set(names):
            raise ValueError(f"likelihoods names {sorted(unknown)}, expected columns of {names}")
        for name, likelihood in self.own.items():
            require_separable(likelihood, f"column {name!r}")
        groups = self._groups()
        self.blocks = nn.ModuleList(self._block(group) for group in groups)
        for position, group in enumerate(groups):
            self.register_buffer(f"at{position}", torch.tensor(group), persistent=False)
        point = torch.empty(len(names))
        for block, at in self._placed_blocks():
            point[at] = torch.as_tensor(block.inside, dtype=point.dtype).expand(len(at))
        self.register_buffer("point", point, persistent=False)

    @classmethod
    def from_table(
        cls,
        table: Any,
        kinds: Mapping[str, Kind] | None = None,
        likelihoods: Mapping[str, Likelihood] | None = None,
    ) -> "MixedLikelihood":
        """Describe a table by its columns.

        Two different values make a column binary; text or other objects a category; integers, none
        of them negative, a count; other numbers a number. None, NaN and pandas' NA are missing.

        Args:
            table: pandas DataFrame, dictionary of columns, or matrix ``(N, D)`` (columns ``x0``,
                ``x1``, ...).
            kinds: What a column is, by name, where that differs.
            likelihoods: Another likelihood of a column, by its name.

        Example:
            >>> table = {"visits": [0, 2, 7, None], "color": ["red", "blue", "red", "green"]}
            >>> likelihood = MixedLikelihood.from_table(table, kinds={"visits": "count"})
            >>> [(column.name, column.kind) for column in likelihood.columns]
            [('visits', 'count'), ('color', 'category')]
        """
        return cls(infer_columns(table, kinds), likelihoods or {})

    def to_tensor(self, table: Any) -> Tensor:
        """Turn a table into data ``(N, D)``, NaN where a value is missing.

        Raises:
            ValueError: If a column is not there, or a level is unknown.
        """
        return to_tensor(table, self.columns)

    def to_arrays(self, x: Tensor) -> dict[str, np.ndarray]:
        """Turn data ``(N, D)`` into columns by name, for ``pandas.DataFrame`` among others."""
        return to_arrays(x, self.columns)

    def _groups(self) -> list[list[int]]:
        """Positions of the columns that share a block."""

        def key(position: int) -> tuple[str, int]:
            column = self.columns[position]
            if column.name in self.own:
                return ("own", position)
            return ("category", len(column.levels)) if column.levels else (column.kind, 0)

        ordered = sorted(range(len(self.columns)), key=key)
        return [list(group) for _, group in groupby(ordered, key)]

    def _block(self, positions: list[int]) -> Likelihood:
        columns = [self.columns[p] for p in positions]
        first = columns[0]
        if first.name in self.own:
            return self.own[first.name]
        if first.levels:
            return CategoricalLikelihood(len(first.levels))
        learned, scales = Learned((len(columns),)), [column.scale for column in columns]
        if first.kind == "count":
            return NegativeBinomialLikelihood(learned, baseline=scales)
        if first.kind == "positive":
            return StandardizedLikelihood(LogNormalLikelihood(learned), std=scales)
        shifts = [column.shift for column in columns]
        return StandardizedLikelihood(GaussianLikelihood(learned), mean=shifts, std=scales)

    def _placed_blocks(self) -> Iterator[tuple[Likelihood, Tensor]]:
        """Each block with the positions of its columns."""
        for position, block in enumerate(self.blocks):
            yield cast("Likelihood", block), self.get_buffer(f"at{position}")

    def scalars(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """Turn ``(..., Q)`` into a distribution of each column, ``(..., D)``."""
        distributions, positions = [], []
        start = 0
        for block, at in self._placed_blocks():
            shape = block.param_shape((len(at),))
            part = params.narrow(-1, start, shape.numel()).unflatten(-1, shape)
            distributions.append(block.scalars(part, 1, context))
            positions.append(at)
            start += shape.numel()
        return TabularDistribution(distributions, positions)

    def param_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """What the decoder must emit for a row: ``(Q,)``."""
        self._check_shape(data_shape)
        widths = (b.param_shape((len(at),)).numel() for b, at in self._placed_blocks())
        return torch.Size((sum(widths),))

    def input_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """What the encoder is fed for a row."""
        self._check_shape(data_shape)
        widths = (b.input_shape((len(at),)).numel() for b, at in self._placed_blocks())
        return torch.Size((sum(widths),))

    def encoder_input(self, x: Tensor) -> Tensor:
        """What the columns' likelihoods feed the encoder, side by side."""
        fed = [b.encoder_input(x.index_select(1, at)) for b, at in self._placed_blocks()]
        return torch.cat([part.flatten(1) for part in fed], 1)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """What the columns' likelihoods have, side by side."""
        blocks = self._placed_blocks()
        return torch.cat([b.params_for_mean(x.index_select(1, at)).flatten() for b, at in blocks])

    @property
    def inside(self) -> Tensor:  # type: ignore[override]
        """A row in the support."""
        return self.point

    def in_support(self, x: Tensor) -> Tensor:
        """Whether each entry has a density."""
        result = torch.ones(x.shape, dtype=torch.bool, device=x.device)
        for block, at in self._placed_blocks():
            result[..., at] = block.in_support(x.index_select(-1, at))
        return result

    def check_support(self, x: Tensor) -> bool:
        """Raise, and name the column, unless the table can be fitted to."""
        self._check_shape(x.shape[1:])
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        parts = [(block, at, x.index_select(1, at)) for block, at in self._placed_blocks()]
        for block, at, part in parts:
            bad = ~block.in_support(part)
            for position, wrong, values in zip(at.tolist(), bad.T, part.T, strict=True):
                name = f"column {self.columns[position].name!r}"
                refuse(name, values[:, None], wrong[:, None], block.support, block.remedy)
        densities = [block.check_support(part) for block, _, part in parts]
        return all(densities)

    def _check_shape(self, data_shape: Sequence[int]) -> None:
        if tuple(data_shape) != (len(self.columns),):
            names = [column.name for column in self.columns]
            raise ValueError(
                f"MixedLikelihood expects rows of {len(names)} columns {names}, got data of shape "
                f"{tuple(data_shape)}: make them with to_tensor(table)"
            )

    def config(self) -> dict[str, Any]:
        """Arguments that build an equal likelihood."""
        columns = [(c.name, c.kind, c.levels, c.shift, c.scale) for c in self.columns]
        return {"columns": columns, "likelihoods": list(self.own.items())}
