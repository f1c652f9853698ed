"""Synthesis of tables."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Literal

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from tinyvae.core.random import forked_rng
from tinyvae.likelihoods import Likelihood, MixedLikelihood
from tinyvae.likelihoods.kinds import Kind
from tinyvae.likelihoods.tables import is_present
from tinyvae.models.inputs import require_count
from tinyvae.sklearn.base import LARGEST_SEED, TableEstimator
from tinyvae.sklearn.tables import is_frame


class VAESynthesizer(TableEstimator):
    """Synthesizer of rows, freely or given values of some columns.

    Args:
        clip: True to limit drawn numbers to the range of the training rows, which tails of the
            densities exceed.
        latent_dim, hidden, likelihood, kinds, max_epochs, early_stopping, validation_fraction, \
        random_state, device, verbose: See :class:`~tinyvae.sklearn.TableEstimator`, also for
            the attributes.

    Example:
        >>> import numpy as np
        >>> table = np.random.default_rng(0).normal(size=(50, 3))
        >>> synthesizer = VAESynthesizer(max_epochs=2, random_state=0).fit(table)
        >>> synthesizer.sample(4).shape
        (4, 3)
        >>> synthesizer.sample(4, given={"x1": 0.5})[:, 1]
        array([0.5, 0.5, 0.5, 0.5])
    """

    def __init__(
        self,
        *,
        clip: bool = True,
        latent_dim: int | Literal["auto"] = "auto",
        hidden: Sequence[int] | Literal["auto"] = "auto",
        likelihood: Literal["auto"] | MixedLikelihood | Mapping[str, Likelihood] = "auto",
        kinds: Mapping[str, Kind] | None = None,
        max_epochs: int | None = None,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        random_state: Any = None,
        device: str = "auto",
        verbose: bool = False,
    ) -> None:
        super().__init__(
            latent_dim=latent_dim,
            hidden=hidden,
            likelihood=likelihood,
            kinds=kinds,
            max_epochs=max_epochs,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            random_state=random_state,
            device=device,
            verbose=verbose,
        )
        self.clip = clip

    def sample(
        self,
        n_samples: int = 1,
        *,
        given: Mapping[Any, Any] | None = None,
        random_state: Any = None,
    ) -> Any:
        """Return rows that are drawn from the model, in a table of the type that was fitted.

        Constants are included, identifiers are not.

        Args:
            n_samples: Number of rows.
            given: Values of some columns, by name. The rows are then drawn from the conditional
                distribution, see :meth:`tinyvae.VAE.sample`.
            random_state: Seed or generator of NumPy. None takes that of the estimator, so that an
                integer gives the same rows in each call.

        Raises:
            TypeError: If ``given`` is no mapping, such as a DataFrame.
            ValueError: If a column or a level of ``given`` is unknown, or if the model gives the
                values no density.
        """
        check_is_fitted(self)
        require_count("sample", n_samples, "n_samples")
        if not (given is None or isinstance(given, Mapping)):
            raise TypeError(
                "sample expects given as values by column name, {'age': 40}, got a "
                f"{type(given).__name__}: pass row.to_dict() of each row, one call per row"
            )
        state = self.random_state if random_state is None else random_state
        seed = int(check_random_state(state).randint(LARGEST_SEED))
        row = None if not given else self._row_of(given)
        with forked_rng(torch.device("cpu"), seed):
            rows = self.vae_.sample(n_samples, given=row).double()
        if self.clip:
            least, most = map(torch.from_numpy, (self._schema.least, self._schema.most))
            limited = rows.clamp(least, most)
            rows = limited if row is None else torch.where(torch.isnan(row), limited, rows)
        return self._to_table(rows)

    def _row_of(self, given: Mapping[Any, Any]) -> Tensor:
        """Return a row of the model, ``(D,)``, NaN for what is to be drawn."""
        columns, values = self.columns_.columns, {str(name): v for name, v in given.items()}
        names = [column.name for column in columns]
        if unknown := values.keys() - set(names):
            raise ValueError(f"given expects columns in {names}, got {sorted(unknown)}")
        for column in columns:
            if column.name in values and not column.is_modeled:
                raise ValueError(
                    f"given expects columns that the model draws, got {column.name!r}, which is "
                    f"{column.describe()}: leave it out"
                )
            value = values.get(column.name)
            is_given = is_present(np.array([value], dtype=object))[0]
            if column.has_levels and is_given and value not in column.levels:
                raise ValueError(
                    f"given expects a level of column {column.name!r} in {list(column.levels)}, "
                    f"got {value!r}"
                )
        modeled = self.columns_.modeled
        cells: dict[str, Any] = {column.name: [values.get(column.name)] for column in modeled}
        for column in modeled:
            if column.kind == "date" and is_frame(template := self._schema.template):
                cell = import_module("pandas").Series(cells[column.name])
                cells[column.name] = cell.astype(template[column.label].dtype)
        row: Tensor = self.columns_.to_tensor(cells).double()[0]
        if (outside := ~self.columns_.in_support(row.nan_to_num(0.0)) & ~torch.isnan(row)).any():
            name = modeled[int(outside.nonzero()[0])].name
            raise ValueError(
                f"given expects values that the model can draw, got {values[name]!r} in column "
                f"{name!r}: see describe()"
            )
        return row
