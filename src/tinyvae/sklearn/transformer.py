"""Embedding of tables."""

from typing import Any

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted

from tinyvae.likelihoods.tables import Array
from tinyvae.sklearn.base import TableEstimator


class VAETransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, TableEstimator):
    """Embedding of the rows of a table: the means of the posterior q(z given x).

    Columns of any kind become ``latent_dim`` numbers, and missing values are allowed.
    ``set_output(transform="pandas")`` returns DataFrames.

    Args:
        latent_dim, hidden, likelihood, kinds, max_epochs, early_stopping, validation_fraction, \
        random_state, device, verbose: See :class:`~tinyvae.sklearn.TableEstimator`, also for
            the attributes.

    Example:
        >>> table = np.random.default_rng(0).normal(size=(50, 5))
        >>> transformer = VAETransformer(latent_dim=2, max_epochs=2, random_state=0).fit(table)
        >>> z = transformer.transform(table)
        >>> z.shape, transformer.inverse_transform(z).shape
        ((50, 2), (50, 5))
        >>> transformer.get_feature_names_out()
        array(['vaetransformer0', 'vaetransformer1'], dtype=object)
    """

    def transform(self, X: Any) -> Array:  # noqa: N803
        """Return the posterior means of the rows, ``(N, latent_dim)``."""
        rows = self._encode(X)
        with torch.no_grad():
            means = [self.vae_.encode(part).mean for part in rows.split(10_000)]
        embedding: Array = torch.cat(means).numpy()
        return embedding

    def inverse_transform(self, X: Any) -> Any:  # noqa: N803
        """Return the table of the centers of p(x given z), of the type that was fitted.

        The center is the mean of a number and the most probable level.

        Args:
            X: Embeddings ``(N, latent_dim)``.
        """
        check_is_fitted(self)
        z = check_array(X, dtype=np.float64, input_name="X")
        if z.shape[1] != self._n_features_out:
            raise ValueError(
                f"inverse_transform expects embeddings of {self._n_features_out} dimensions, got "
                f"{z.shape[1]}"
            )
        with torch.no_grad():
            rows = self.vae_.decode(torch.from_numpy(z)).point_estimate()
        return self._to_table(rows)

    @property
    def _n_features_out(self) -> int:
        return self.vae_.latent_shape.numel()
