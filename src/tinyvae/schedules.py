"""Schedules: weights that change with the step.

A schedule is a pure function of the step, so that resuming needs nothing but the step. Its length
is in steps, or a fraction of the run.
"""

import math
from abc import ABC, abstractmethod


class Schedule(ABC):
    """A weight as a function of the step.

    Args:
        steps: Length in optimizer steps.
        fraction: Length as a fraction of the run's steps, in (0, 1].
    """

    def __init__(self, *, steps: int | None, fraction: float | None) -> None:
        name = type(self).__name__
        if (steps is None) == (fraction is None):
            raise ValueError(f"{name} expects either steps or fraction, got {steps=}, {fraction=}")
        if steps is not None and steps < 1:
            raise ValueError(f"{name} expects steps >= 1, got {steps}")
        if fraction is not None and not 0 < fraction <= 1:
            raise ValueError(f"{name} expects 0 < fraction <= 1, got {fraction}")
        self.steps = steps
        self.fraction = fraction

    @property
    def extent(self) -> tuple[float, float]:
        """Least and largest value, as far as they are known."""
        return -math.inf, math.inf

    @abstractmethod
    def shape(self, step: int, length: int) -> float:
        """Value at ``step`` in 0..length of a schedule that ends at ``length``."""

    def length(self, total_steps: int | None) -> int:
        """Steps until the last value, in a run of ``total_steps`` (None: not known)."""
        if self.steps is not None:
            return self.steps
        if total_steps is None or self.fraction is None:
            raise ValueError(
                f"{type(self).__name__}(fraction={self.fraction}) needs the length of the run, "
                "which these data do not tell: give steps= instead"
            )
        # Of a run's updates, 0 to total_steps - 1, so that fraction=1 ends with the last of them.
        return max(1, round(self.fraction * (total_steps - 1)))

    def __call__(self, step: int, total_steps: int | None = None) -> float:
        """Value at ``step`` (from 0) of a run of ``total_steps``."""
        length = self.length(total_steps)
        return self.shape(min(step, length), length)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"expected a finite weight, got {value}")
    return float(value)


class Constant(Schedule):
    """The same value at every step.

    Args:
        value: The value.

    Example:
        >>> Constant(4.0)(step=100)
        4.0
    """

    def __init__(self, value: float) -> None:
        super().__init__(steps=1, fraction=None)
        self.value = _finite(value)

    @property
    def extent(self) -> tuple[float, float]:
        """The value, twice."""
        return self.value, self.value

    def shape(self, step: int, length: int) -> float:
        """Value at any step."""
        return self.value

    def length(self, total_steps: int | None) -> int:
        """No steps: the first value is the last."""
        return 0


class Ramp(Schedule):
    """A schedule between two values.

    Args:
        start: First value.
        end: Last value.
        steps: Length in optimizer steps.
        fraction: Length as a fraction of the run.
    """

    def __init__(
        self, start: float, end: float, *, steps: int | None = None, fraction: float | None = None
    ) -> None:
        super().__init__(steps=steps, fraction=fraction)
        self.start, self.end = _finite(start), _finite(end)

    def __repr__(self) -> str:
        length = f"steps={self.steps}" if self.fraction is None else f"fraction={self.fraction:.3g}"
        return f"{type(self).__name__}({self.start:g}, {self.end:g}, {length})"

    @property
    def extent(self) -> tuple[float, float]:
        """The smaller and the larger of start and end."""
        return min(self.start, self.end), max(self.start, self.end)

    def between(self, share: float) -> float:
        """Value at ``share`` in [0, 1] of the way from start to end."""
        return self.end if share == 1.0 else self.start + (self.end - self.start) * share


class Linear(Ramp):
    """A straight line from ``start`` to ``end``, then ``end``.

    Args:
        start: First value.
        end: Last value.
        steps: Length in optimizer steps.
        fraction: Length as a fraction of the run.

    Example:
        >>> warm_up = Linear(0.0, 1.0, steps=10)
        >>> [warm_up(step) for step in (0, 5, 10, 20)]
        [0.0, 0.5, 1.0, 1.0]
    """

    def shape(self, step: int, length: int) -> float:
        """Value at ``step`` of the line."""
        return self.between(step / length)


class Cosine(Ramp):
    """Half a cosine wave from ``start`` to ``end``, then ``end``.

    Args:
        start: First value.
        end: Last value.
        steps: Length in optimizer steps.
        fraction: Length as a fraction of the run.

    Example:
        >>> round(Cosine(0.0, 1.0, steps=10)(5), 12)
        0.5
    """

    def shape(self, step: int, length: int) -> float:
        """Value at ``step`` of the wave."""
        return self.between(0.5 - 0.5 * math.cos(math.pi * step / length))


class Cyclical(Ramp):
    """Repeated climbs from ``start`` to ``end``, each followed by a rest at ``end``.

    Args:
        start: First value of every cycle.
        end: Value at rest, and after the last cycle.
        cycles: Number of cycles.
        ramp: Share of a cycle that climbs.
        steps: Length of all cycles in optimizer steps.
        fraction: Length of all cycles as a fraction of the run.

    References:
        Fu, Li, Liu, Gao, Celikyilmaz, Carin (2019). Cyclical Annealing Schedule. arXiv:1903.10145.

    Example:
        >>> cycle = Cyclical(0.0, 1.0, cycles=2, steps=8)
        >>> [cycle(step) for step in range(9)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        start: float,
        end: float,
        *,
        cycles: int = 4,
        ramp: float = 0.5,
        steps: int | None = None,
        fraction: float | None = None,
    ) -> None:
        super().__init__(start, end, steps=steps, fraction=fraction)
        if cycles < 1 or not 0 < ramp <= 1:
            raise ValueError(
                f"Cyclical expects cycles >= 1 and 0 < ramp <= 1, got {cycles=}, {ramp=}"
            )
        self.cycles, self.ramp = cycles, ramp

    def shape(self, step: int, length: int) -> float:
        """Value at ``step`` of all cycles."""
        if step == length:
            return self.end
        within = (step * self.cycles % length) / length  # in integers, so that no seam is rounded
        return self.between(min(within / self.ramp, 1.0))
