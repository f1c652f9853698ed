"""How long a call of ``fit`` is."""

from dataclasses import dataclass

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """The length of one call of ``fit``, as it was begun: going on with it changes nothing.

    Attributes:
        first_epoch: Epochs done before it.
        epochs: Epochs of it.
        run_steps: Updates still to do, None where the data do not tell.
        total_steps: Updates done before, and those to do.
        schedule_steps: Updates of the first call, of which schedules are fractions.
        has_validation: Whether there are validation data.
        headline: What runs, in a line.
    """

    first_epoch: int
    epochs: int
    run_steps: int | None
    total_steps: int | None
    schedule_steps: int | None
    has_validation: bool
    headline: str

    @property
    def last_epoch(self) -> int:
        """Epochs done after it."""
        return self.first_epoch + self.epochs
