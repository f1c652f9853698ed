"""How long a call of ``fit`` is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Length:
    """Epochs of a run.

    Attributes:
        first_epoch: Epochs done before the call of ``fit`` that began it.
        epochs: Epochs of it.
        begun: Epochs that it was begun for, which schedules and schedulers keep to.
        epoch: Epochs done.
        batch: Batches of the present one that are done.
    """

    first_epoch: int
    epochs: int
    begun: int
    epoch: int
    batch: int

    @classmethod
    def of_new(cls, epoch: int, epochs: int, *, in_total: bool) -> "Length":
        """A call of ``fit`` that begins after ``epoch`` epochs, for more, or up to, ``epochs``."""
        own = max(epochs - epoch, 0) if in_total else epochs
        return cls(epoch, own, max(own, 1), epoch, 0)

    @classmethod
    def of_resumed(cls, state: Mapping[str, Any], epochs: int) -> "Length":
        """A call that goes on from a checkpoint, up to ``epochs``."""
        plan, position = state["plan"], state["position"]
        first_epoch = plan["first_epoch"]
        own = max(epochs - first_epoch, 0)
        return cls(first_epoch, own, plan["begun"], position["epoch"], position["batch"])

    def steps(self, num_batches: int | None) -> int | None:
        """Updates still to do, None where the data do not tell."""
        if num_batches is None:
            return None
        to_do = self.first_epoch + self.epochs - self.epoch
        return max(num_batches * to_do - self.batch, 0)


@dataclass(frozen=True)
class Plan:
    """What a call of ``fit`` is to do.

    Attributes:
        length: Its epochs.
        run_steps: Updates still to do, None where the data do not tell.
        total_steps: Updates done before, and those to do.
        schedule_steps: Updates of the first call, of which schedules are fractions.
        has_validation: Whether there are validation data.
        headline: What runs, in a line.
    """

    length: Length
    run_steps: int | None
    total_steps: int | None
    schedule_steps: int | None
    has_validation: bool
    headline: str

    @property
    def first_epoch(self) -> int:
        """Epochs done before it."""
        return self.length.first_epoch

    @property
    def epochs(self) -> int:
        """Epochs of it."""
        return self.length.epochs

    @property
    def last_epoch(self) -> int:
        """Epochs done after it."""
        return self.first_epoch + self.epochs
