"""Base class of the estimators: parameters, the fitted model, its density, and pickling."""

from abc import ABC
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from tinyvae.likelihoods import Likelihood, MixedLikelihood
from tinyvae.likelihoods.kinds import Kind
from tinyvae.likelihoods.tables import Array
from tinyvae.models import VAE
from tinyvae.sklearn.posterior import contributions
from tinyvae.sklearn.recipe import fit_vae
from tinyvae.sklearn.schema import Schema, infer_likelihood
from tinyvae.sklearn.tables import columns_of, validate_table

Estimator = TypeVar("Estimator", bound="TableEstimator")
LARGEST_SEED = 2**31 - 1


class TableEstimator(BaseEstimator, ABC):
    """Base class of the estimators of tables, which share one kind of fitted model.

    A table is a DataFrame with columns of any dtype, or an array of numbers or objects. NaN, None
    and NA are missing. A value of :meth:`score_samples` does not depend on the other rows.

    Args:
        latent_dim: Number of latent dimensions. ``"auto"`` chooses it by the number of columns.
        hidden: Widths of the hidden layers. ``"auto"`` chooses them.
        likelihood: ``"auto"`` infers the kinds of the columns. A mapping replaces the likelihoods
            of columns, by name. A :class:`~tinyvae.likelihoods.MixedLikelihood` describes all
            columns.
        kinds: Kinds that replace the inferred ones, by column name. See :meth:`describe`.
        max_epochs: Number of epochs, with those of the warm-up. None chooses it by the number of
            rows.
        early_stopping: True to hold out rows and keep the weights that fit them best.
        validation_fraction: Share of the rows that are held out.
        random_state: Seed, generator of NumPy, or None for a different model in each call.
        device: Device of the training. The fitted model computes on the CPU.
        verbose: True to report progress.

    Attributes:
        vae_: Fitted :class:`~tinyvae.VAE`, in float64.
        history_: :class:`~tinyvae.History` of the training after the warm-up.
        columns_: Likelihood of the columns, a :class:`~tinyvae.likelihoods.MixedLikelihood`.
        n_features_in_: Number of columns.
        feature_names_in_: Names of the columns, if all of them are strings.
    """

    def __init__(
        self,
        *,
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
        self.latent_dim = latent_dim
        self.hidden = hidden
        self.likelihood = likelihood
        self.kinds = kinds
        self.max_epochs = max_epochs
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def fit(self: Estimator, X: Any, y: Any = None) -> Estimator:  # noqa: N803
        """Fit the model to a table.

        Args:
            X: Table ``(N, C)``.
            y: Ignored.

        Raises:
            TypeError, ValueError: If the table is sparse, has fewer than two rows, infinity, or
                entries that are no numbers, strings, booleans or dates. Nothing was trained.
        """
        self._fit_model(X)
        return self

    def _fit_model(self, data: Any) -> Any:
        """Fit the model, and return the validated table."""
        table = validate_table(self, data, reset=True, min_rows=2)
        likelihood = infer_likelihood(table, self.kinds, self.likelihood)
        schema = Schema(table, likelihood)
        self._seed = int(check_random_state(self.random_state).randint(LARGEST_SEED))
        vae, self.history_ = fit_vae(
            likelihood,
            likelihood.to_tensor(columns_of(table)),
            latent_dim=self.latent_dim,
            hidden=self.hidden,
            max_epochs=self.max_epochs,
            early_stopping=self.early_stopping,
            validation_fraction=self.validation_fraction,
            seed=self._seed,
            device=self.device,
            verbose=self.verbose,
        )
        self.vae_, self._schema = vae.double(), schema
        return table

    @classmethod
    def from_fitted(cls: type[Estimator], fitted: "TableEstimator") -> Estimator:
        """Return an estimator that shares the fitted model of another one. Nothing is trained.

        Args:
            fitted: Any fitted estimator of this module.
        """
        check_is_fitted(fitted)
        names = TableEstimator().get_params(deep=False)
        estimator = cls(**{name: getattr(fitted, name) for name in names})
        shared = ("vae_", "history_", "n_features_in_", "feature_names_in_")
        for name in (*shared, "_seed", "_schema"):
            if name in vars(fitted):
                setattr(estimator, name, vars(fitted)[name])
        return estimator

    @property
    def columns_(self) -> MixedLikelihood:
        """Likelihood of the columns."""
        (columns,) = (m for m in self.vae_.modules() if isinstance(m, MixedLikelihood))
        return columns

    def describe(self) -> str:
        """Return how each column is modeled: name, kind, details, and the reason for the kind.

        ``kinds={name: kind}`` corrects the choice.
        """
        check_is_fitted(self)
        return self.columns_.describe()

    def score_samples(self, X: Any) -> Array:  # noqa: N803
        """Return log p(x) of each row, ``(N,)``, nats.

        Densities count in units of the standard deviation of their column, so that the units of the
        table change no score. The estimate is by importance sampling. Missing entries are
        integrated out. With ``n`` observed training values, a level that training did not show, a
        value outside the support of its column, or another value than that of a constant has the
        probability 1 / (n + 2).
        """
        return self._scores(self._validated(X))

    def score(self, X: Any, y: Any = None) -> float:  # noqa: N803
        """Return the mean of log p(x) over the rows, nats, for the selection of models."""
        return float(self.score_samples(X).mean())

    def _validated(self, data: Any) -> Any:
        check_is_fitted(self)
        return validate_table(self, data, reset=False)

    def _scores(self, table: Any) -> Array:
        scores: Array = -self._contributions(table).sum(1)
        return scores

    def _encode(self, data: Any) -> Tensor:
        """Return a table as rows of the model, ``(N, D)``."""
        return self._schema.encode(self._validated(data), self.columns_)[0]

    def _contributions(self, table: Any) -> Array:
        """Return the terms of -log p(x): those of the columns and of the latent, ``(N, C + 1)``."""
        rows, terms = self._schema.encode(table, self.columns_)
        parts = contributions(self.vae_, rows, self._seed).numpy()
        terms[:, self._schema.modeled] += parts[:, :-1]
        return np.concatenate([terms, parts[:, -1:]], 1)

    def _to_table(self, rows: Tensor) -> Any:
        """Return rows of the model ``(N, D)`` as a table of the type that was fitted."""
        return self._schema.to_table(rows, self.columns_)

    # Pickling: the model as the bytes of its file -------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        if isinstance(vae := state.pop("vae_", None), VAE):
            with TemporaryDirectory() as folder:
                path = Path(folder, "vae.safetensors")
                vae.save(path)
                state["_vae_file"] = path.read_bytes()
            own = {type(module) for module in vae.modules()}
            packages = ("tinyvae", "torch")
            state["_vae_parts"] = [c for c in own if c.__module__.partition(".")[0] not in packages]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        file, parts = state.pop("_vae_file", None), state.pop("_vae_parts", ())
        super().__setstate__(state)
        if file is not None:
            with TemporaryDirectory() as folder:
                path = Path(folder, "vae.safetensors")
                path.write_bytes(file)
                self.vae_ = VAE.load(path, parts=parts)

    # Tags -----------------------------------------------------------------------------------------

    def __sklearn_tags__(self) -> Any:  # scikit-learn 1.6
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        return tags

    def _more_tags(self) -> dict[str, Any]:  # scikit-learn 1.5
        return {"allow_nan": True, "X_types": ["2darray", "categorical"]}
