"""Length of a call of ``fit``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunPlan:
    """Length of a call of ``fit``.

    Attributes:
        start_epoch: Epochs done before the run.
        num_epochs: Epochs of the run.
        scheduled_epochs: Epochs of the run when it was started. Schedulers span them.
        num_steps: Updates that remain, None if the data have no length.
        total_steps: Updates at the end of the run, None if the data have no length.
        schedule_steps: Number of updates to which fractions in schedules of the objective refer.
        scheduled_steps: Number of updates that a scheduler spans if it is called per step.
        has_validation: True if there are validation data.
        headline: One line about device, sizes, length, objective and fast paths.
    """

    start_epoch: int
    num_epochs: int
    scheduled_epochs: int
    num_steps: int | None = None
    total_steps: int | None = None
    schedule_steps: int | None = None
    scheduled_steps: int | None = None
    has_validation: bool = False
    headline: str = ""

    @property
    def last_epoch(self) -> int:
        """Epochs done after the run."""
        return self.start_epoch + self.num_epochs

    @classmethod
    def for_new_run(cls, epoch: int, epochs: int, *, in_total: bool) -> "RunPlan":
        """Return the plan of ``epochs`` more epochs, or of up to ``epochs`` if ``in_total``."""
        num_epochs = max(epochs - epoch, 0) if in_total else epochs
        return cls(epoch, num_epochs, max(num_epochs, 1))

    @classmethod
    def for_resumed_run(cls, saved: Mapping[str, Any], epochs: int) -> "RunPlan":
        """Return the plan of a run that continues from a checkpoint up to ``epochs``."""
        start_epoch = saved["plan"]["start_epoch"]
        num_epochs = max(epochs - start_epoch, 0)
        return cls(start_epoch, num_epochs, saved["plan"]["scheduled_epochs"])

    def progress(self, epoch: int, batch: int) -> float:
        """Return the share of the scheduled updates that is done at a batch of an epoch.

        Without a length of the data, only complete epochs count.
        """
        done = float(epoch - self.start_epoch)
        if self.scheduled_steps:
            done += batch * self.scheduled_epochs / self.scheduled_steps
        return done / self.scheduled_epochs

    def remaining_steps(self, num_batches: int | None, epoch: int, batch: int) -> int | None:
        """Return the updates that remain at a batch of an epoch, None for data without a length."""
        if num_batches is None:
            return None
        return max(num_batches * (self.last_epoch - epoch) - batch, 0)
