"""Imputation of tables."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from tinyvae.evaluation import impute
from tinyvae.likelihoods import Likelihood, MixedLikelihood
from tinyvae.likelihoods.kinds import Kind
from tinyvae.likelihoods.tables import Array
from tinyvae.sklearn.base import LARGEST_SEED, TableEstimator
from tinyvae.sklearn.tables import is_frame

NUM_SAMPLES = 256  # of z per row; a power of two balances the Sobol sequence


class VAEImputer(TransformerMixin, TableEstimator):
    """Imputer of missing values, given the observed values of their row.

    :meth:`transform` fills numbers with their conditional mean, which minimizes the squared error,
    and levels with the most probable one. Integers are rounded. Observed entries, dtypes, names and
    index do not change: a DataFrame gives a DataFrame, an array gives an array.

    Args:
        sample_posterior: True to fill with one draw from the conditional distribution instead.
            :meth:`impute` returns several.
        keep_empty_features: True to keep columns without observed values in training, as they are.
            False drops them, as scikit-learn's imputers do.
        latent_dim, hidden, likelihood, kinds, max_epochs, early_stopping, validation_fraction, \
        random_state, device, verbose: See :class:`~tinyvae.sklearn.TableEstimator`, also for
            the attributes.

    References:
        Mattei, Frellsen (2019). MIWAE: Deep Generative Modeling and Imputation of Incomplete Data
        Sets. arXiv:1812.02633. Rubin (1987). Multiple Imputation for Nonresponse in Surveys.

    Example:
        >>> import numpy as np
        >>> table = np.random.default_rng(0).normal(size=(50, 3))
        >>> table[0, 1] = np.nan
        >>> imputer = VAEImputer(max_epochs=2, random_state=0).fit(table)
        >>> filled = imputer.transform(table)
        >>> bool(np.isnan(filled).any()), np.array_equal(filled[1:], table[1:])
        (False, True)
        >>> len(imputer.impute(table, num_imputations=5))
        5
    """

    def __init__(
        self,
        *,
        sample_posterior: bool = False,
        keep_empty_features: bool = False,
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
        self.sample_posterior = sample_posterior
        self.keep_empty_features = keep_empty_features

    def transform(self, X: Any) -> Any:  # noqa: N803
        """Return the table with filled entries.

        Values do not depend on the other rows, except for draws (``sample_posterior``), which
        repeat if the table does.
        """
        table = self._validated(X)
        return self._filled(table, 1 if self.sample_posterior else None, self._seed)[0]

    def impute(
        self,
        X: Any,  # noqa: N803
        num_imputations: int = 10,
        *,
        random_state: Any = None,
    ) -> list[Any]:
        """Return completed tables whose missing entries are draws from the model.

        Their spread shows the uncertainty: analyze each table, and pool the results.

        Args:
            X: Table.
            num_imputations: Number of tables ``M``.
            random_state: Seed or generator of NumPy. None repeats the draws of each call.
        """
        table, seed = self._validated(X), self._seed
        if random_state is not None:
            seed = int(check_random_state(random_state).randint(LARGEST_SEED))
        return self._filled(table, num_imputations, seed)

    def _filled(self, table: Any, num_imputations: int | None, seed: int) -> list[Any]:
        """Return copies of a table with values of the model at its missing entries."""
        rows, _ = self._schema.encode(table, self.columns_)
        incomplete = torch.isnan(rows).any(1)
        filled = rows.unsqueeze(0).repeat(num_imputations or 1, 1, 1)
        if incomplete.any():
            filled[:, incomplete] = impute(
                self.vae_,
                rows[incomplete],
                num_imputations=num_imputations,
                num_samples=NUM_SAMPLES,
                seed=seed,
                noise="shared" if num_imputations is None else "independent",
                progress=self.verbose,
            )
        kept = self._kept()
        tables = [self.columns_.fill(table, x) for x in filled]
        return [each.iloc[:, kept] if is_frame(each) else each[:, kept] for each in tables]

    def _kept(self) -> Array:
        """Return the positions of the columns of the output."""
        return np.flatnonzero(~self._schema.is_empty | self.keep_empty_features)

    @property
    def _n_features_out(self) -> int:
        return len(self._kept())

    def get_feature_names_out(self, input_features: Any = None) -> Array:
        """Return the names of the columns of the output, those of the input that are kept.

        Args:
            input_features: Names of the columns, by default those that were fitted.
        """
        check_is_fitted(self)
        names = vars(self).get("feature_names_in_")
        if input_features is not None:
            given = np.asarray(input_features, dtype=object)
            if names is not None and not np.array_equal(names, given):
                raise ValueError("input_features is not equal to feature_names_in_")
            if len(given) != self.n_features_in_:
                raise ValueError(
                    "input_features should have length equal to number of features "
                    f"({self.n_features_in_}), got {len(given)}"
                )
            names = given
        if names is None:
            names = np.asarray([f"x{index}" for index in range(self.n_features_in_)], dtype=object)
        kept: Array = np.asarray(names, dtype=object)[self._kept()]
        return kept

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _more_tags(self) -> dict[str, Any]:
        return {"preserves_dtype": [np.float64, np.float32]}
