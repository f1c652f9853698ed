"""Callback that evaluates the model while it is trained."""

from typing import Any

from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.warnings import warn
from tinyvae.evaluation.estimation import evaluate
from tinyvae.evaluation.latents import advise_collapse
from tinyvae.evaluation.report import Report
from tinyvae.models.inputs import require_count
from tinyvae.training.callbacks import Callback
from tinyvae.training.data.sources import PickBatch, Transform
from tinyvae.training.history import Row
from tinyvae.training.state import TrainState


@suggest_keywords
class EvaluationMonitor(Callback):
    """Evaluate the model on validation data every ``every_epochs`` epochs.

    It calls :func:`~tinyvae.evaluate` with the same seed each time. The history gets the columns
    ``evaluation/elbo_nats``, ``evaluation/log_marginal_nats`` and, of each latent,
    ``evaluation/z_active_units`` and ``evaluation/z_mutual_information_nats``. It warns once if
    fewer than 10 % of the dimensions of a latent are active in two evaluations in a row, after
    the schedules of the objective, such as a warm-up of beta, have ended.

    Args:
        data: Validation data, see :func:`~tinyvae.evaluate`, also for the other arguments.
        every_epochs: Number of epochs between evaluations.
        batch: See :func:`~tinyvae.evaluate`.
        transform: See :func:`~tinyvae.evaluate`.
        elbo_samples: Samples per example for the ELBO.
        importance_samples: Samples per example for log p(x). None skips log p(x).
        seed: Seed of the samples.

    Attributes:
        reports: Reports by epoch, from 1, with the KL of each dimension. They are not in
            checkpoints.

    Example:
        >>> monitor = EvaluationMonitor(x, every_epochs=2)
        >>> trainer = Trainer(vae, ELBO(), callbacks=[monitor], progress=False)
        >>> history = trainer.fit(x, epochs=4)
        >>> [value is not None for value in history["evaluation/elbo_nats"]]
        [False, True, False, True]
        >>> monitor.reports[4].latents["z"].kl_per_dim.shape
        torch.Size([2])
    """

    def __init__(
        self,
        data: Any,
        *,
        every_epochs: int = 1,
        batch: PickBatch | None = None,
        transform: Transform | None = None,
        elbo_samples: int = 8,
        importance_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        require_count("EvaluationMonitor", every_epochs, "every_epochs")
        self.data, self.every_epochs = data, every_epochs
        self.batch, self.transform = batch, transform
        self.elbo_samples, self.importance_samples = elbo_samples, importance_samples
        self.seed = seed
        self.reports: dict[int, Report] = {}
        self._has_warned = False
        self._collapsed: set[str] = set()

    def on_epoch_end(self, state: TrainState, row: Row) -> None:
        """Evaluate the model, and add columns to the history."""
        epoch = int(row["epoch"])
        if epoch % self.every_epochs:
            return
        report = evaluate(
            state.model,  # type: ignore[arg-type]
            self.data,
            batch=self.batch,
            transform=self.transform,
            elbo_samples=self.elbo_samples,
            importance_samples=self.importance_samples,
            seed=self.seed,
            progress=False,
        )
        self.reports[epoch] = report
        row["evaluation/elbo_nats"] = report.elbo.mean
        if report.log_marginal is not None:
            row["evaluation/log_marginal_nats"] = report.log_marginal.mean
        for name, latent in report.latents.items():
            row[f"evaluation/{name}_active_units"] = latent.activity.count
            if latent.mutual_information is not None:
                row[f"evaluation/{name}_mutual_information_nats"] = latent.mutual_information.mean
        if not state.objective.unfinished_schedules(state.step, state.plan.schedule_steps):
            self._warn_of_collapse(epoch, report)

    def _warn_of_collapse(self, epoch: int, report: Report) -> None:
        collapsed = {name for name, latent in report.latents.items() if latent.has_collapsed}
        again, self._collapsed = sorted(collapsed & self._collapsed), collapsed
        if again and not self._has_warned:
            self._has_warned = True
            advice = advise_collapse(again[0], report.latents[again[0]])
            warn(f"after epoch {epoch}: {advice}. The run continues")
