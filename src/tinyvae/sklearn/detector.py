"""Detection of anomalies in tables."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from numbers import Real
from typing import Any, Literal

import numpy as np
from sklearn.base import OutlierMixin

from tinyvae.core.data import spread_rows
from tinyvae.likelihoods import Likelihood, MixedLikelihood
from tinyvae.likelihoods.kinds import Kind
from tinyvae.likelihoods.tables import Array, is_present, named_columns
from tinyvae.sklearn.base import TableEstimator
from tinyvae.sklearn.recipe import split_rows
from tinyvae.sklearn.tables import columns_of, is_frame


class VAEDetector(OutlierMixin, TableEstimator):
    r"""Detector of rows that are improbable under the model of the table.

    The score of a row is log p(x), in nats, with densities in units of the standard deviation of
    their column. The reference scores are those of the rows that ``early_stopping`` held out of the
    training. Without it they are those of the training rows, which the model fits better than new
    ones.

    Args:
        contamination: Share of the rows passed to :meth:`fit` that are outliers, in (0, 0.5].
            ``"auto"`` takes the lower fence of Tukey's box plot of the reference scores,
            :math:`Q_1 - 1.5\,(Q_3 - Q_1)`.
        latent_dim: See :class:`~tinyvae.sklearn.TableEstimator`, also for the other arguments
            and attributes.

    Attributes:
        offset_: Score below which a row is an outlier, nats.
        reference_scores_: Sorted reference scores, at most about 10,000, nats.

    Example:
        >>> import numpy as np
        >>> table = np.random.default_rng(0).normal(size=(200, 2))
        >>> detector = VAEDetector(max_epochs=20, random_state=0).fit(table)
        >>> detector.predict([[0.0, 0.0], [9.0, 9.0]])
        array([ 1, -1])
        >>> detector.p_values([[9.0, 9.0]]).round(3)
        array([0.048])
    """

    def __init__(
        self,
        *,
        contamination: float | Literal["auto"] = "auto",
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
        self.contamination = contamination

    def fit(self, X: Any, y: Any = None) -> "VAEDetector":  # noqa: N803
        """Fit the model to a table, and set the offset.

        Args:
            X: Table ``(N, C)``.
            y: Ignored.
        """
        self._check_contamination()
        table = self._fit_model(X)
        reference = table
        if self.early_stopping:
            _, held_out = split_rows(len(table), self.validation_fraction, self._seed)
            reference = _rows(table, held_out.numpy())
        self._set_reference(reference)
        self._set_offset(table)
        return self

    @classmethod
    def from_fitted(cls, fitted: TableEstimator, X: Any) -> "VAEDetector":  # type: ignore[override]  # noqa: N803
        """Return a detector that shares the fitted model of another estimator.

        Args:
            fitted: Any fitted estimator of this module.
            X: Rows of the reference scores. Pass rows that the model was not fitted to. Against
                training rows, the p-values of new rows are too small.
        """
        detector = super().from_fitted(fitted)
        table = detector._validated(X)
        detector._set_reference(table)
        detector._set_offset(table)
        return detector

    def _check_contamination(self) -> None:
        share = self.contamination
        if share != "auto" and not (isinstance(share, Real) and 0 < share <= 0.5):
            raise ValueError(
                f"VAEDetector expects contamination in (0, 0.5] or 'auto', got {share!r}"
            )

    def _set_reference(self, table: Any) -> None:
        reference = _rows(table, spread_rows(np.arange(len(table))))
        terms, present = self._contributions(reference), self._present(reference)
        self.reference_scores_ = np.sort(-terms.sum(1))
        sums = np.where(present, terms, 0.0).sum(0)
        self._reference_contributions = sums / np.maximum(present.sum(0), 1)

    def _present(self, table: Any) -> Array:
        """Return True for observed entries and for the latent, ``(N, C + 1)``."""
        present = [is_present(values) for values in named_columns(columns_of(table)).values()]
        return np.stack([*present, np.ones(len(table), dtype=bool)], 1)

    def _set_offset(self, table: Any) -> None:
        if self.contamination == "auto":
            low, high = np.percentile(self.reference_scores_, [25, 75])
            self.offset_ = float(low - 1.5 * (high - low))
        else:
            scores = self._scores(table)
            self.offset_ = float(np.percentile(scores, 100 * self.contamination))

    def decision_function(self, X: Any) -> Array:  # noqa: N803
        """Return ``score_samples(X) - offset_``, negative for outliers, ``(N,)``, nats."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> Array:  # noqa: N803
        """Return 1 for each inlier and -1 for each outlier, ``(N,)``."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def p_values(self, X: Any) -> Array:  # noqa: N803
        r"""Return the p-value of each row against the reference scores, ``(N,)``.

        .. math:: p = \frac{1 + \#\{i : s_i \leq s\}}{1 + n}

        With ``early_stopping`` and rows that are exchangeable with the held-out ones,
        :math:`P(p \leq \alpha) \leq \alpha` up to the choice of the best epoch, whatever the model.
        It cannot be less than 1 / (1 + n). Without ``early_stopping`` it is too small.

        References:
            Bates, Candès, Lei, Romano, Sesia (2023). Testing for outliers with conformal p-values.
            arXiv:2104.08279.
        """
        below = np.searchsorted(self.reference_scores_, self.score_samples(X), side="right")
        p_values: Array = (1 + below) / (1 + len(self.reference_scores_))
        return p_values

    def explain(self, X: Any, *, relative: bool = False) -> Any:  # noqa: N803
        r"""Return how much each column contributes to the score.

        .. math:: -\log p(x) = \sum_j \mathbb{E}_{p(z \mid x)} [-\log p(x_j \mid z)] +
            \mathrm{KL}(p(z \mid x) \,\|\, p(z))

        The terms of a row sum to minus its score. The last column, ``"latent"``, is the divergence:
        the surprise of the row as a whole. A missing entry contributes zero.

        Args:
            X: Table.
            relative: True to subtract from each observed entry the mean contribution of the
                observed entries of its column in the reference rows. Large terms are unusual for
                their column. Without missing entries, the sum is the mean of the reference scores
                minus the score.

        Returns:
            A DataFrame with the index of X if X is a DataFrame, else an array ``(N, C + 1)``, nats.
        """
        table = self._validated(X)
        terms = self._contributions(table)
        if relative:
            terms = np.where(self._present(table), terms - self._reference_contributions, 0.0)
        if not is_frame(table):
            return terms
        names = [*table.columns, "latent"]
        return import_module("pandas").DataFrame(terms, index=table.index, columns=names)


def _rows(table: Any, indices: Array) -> Any:
    return table.iloc[indices] if is_frame(table) else table[indices]
