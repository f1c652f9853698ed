"""Synthesis of tables."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from tinyvae.core.random import forked_rng
from tinyvae.evaluation import impute
from tinyvae.models.inputs import require_count
from tinyvae.sklearn.base import LARGEST_SEED, TableEstimator

NUM_LATENTS = 10_000  # from which conditional draws are resampled


class VAESynthesizer(TableEstimator):
    """Synthesizer of rows, freely or given values of some columns.

    Args:
        latent_dim, hidden, likelihood, kinds, max_epochs, early_stopping, validation_fraction, \
        random_state, device, verbose: See :class:`~tinyvae.sklearn.base.TableEstimator`, also for
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

    def sample(
        self,
        n_samples: int = 1,
        *,
        given: Mapping[Any, Any] | None = None,
        random_state: Any = None,
    ) -> Any:
        """Return rows that are drawn from the model, in a table of the type that was fitted.

        Constant columns have their value. Columns without observed values stay missing.

        Args:
            n_samples: Number of rows.
            given: Values of some columns, by name. The rows are then drawn from the conditional
                distribution, by sampling importance resampling.
            random_state: Seed or generator of NumPy. None takes that of the estimator, so that an
                integer gives the same rows in each call.

        Raises:
            ValueError: If a column or a level of ``given`` is unknown.
        """
        check_is_fitted(self)
        require_count("sample", n_samples, "n_samples")
        state = self.random_state if random_state is None else random_state
        seed = int(check_random_state(state).randint(LARGEST_SEED))
        if given:
            rows = self._drawn_given(given, n_samples, seed)
        else:
            with forked_rng(torch.device("cpu"), seed):
                rows = self.vae_.sample(n_samples)
        return self._table_of(rows.double())

    def _drawn_given(self, given: Mapping[Any, Any], n_samples: int, seed: int) -> Tensor:
        """Return conditional draws ``(n, D)``."""
        schema = self._schema
        values = {str(name): value for name, value in given.items()}
        if unknown := values.keys() - set(schema.names):
            raise ValueError(f"given expects columns in {schema.names}, got {sorted(unknown)}")
        row = np.full((1, len(schema.names)), None, dtype=object)
        for name, value in values.items():
            row[0, schema.names.index(name)] = value
        x, unseen = schema.encode(row, self.columns_)
        for index in np.flatnonzero(unseen[0]):
            name = schema.names[index]
            raise ValueError(
                f"given expects a value of column {name!r} that the model can draw, got "
                f"{values[name]!r}: see describe()"
            )
        draws = impute(
            self.vae_,
            x,
            num_imputations=n_samples,
            num_samples=max(NUM_LATENTS, n_samples),
            seed=seed,
            progress=self.verbose,
        )
        return draws[:, 0]
