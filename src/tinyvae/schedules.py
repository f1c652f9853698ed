"""Schedules of weights that change with the step.

A schedule is a pure function of the step, so a resumed run only needs the step. Its length is a
number of steps or a fraction of the run. A :class:`ScheduledWeight` holds the current value.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, Self

import torch

from tinyvae._devices import widest_float


class Schedule(ABC):
    """Weight as a function of the step.

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
    def value_range(self) -> tuple[float, float]:
        """Smallest and largest value, infinite if they are unknown."""
        return -math.inf, math.inf

    @abstractmethod
    def value_at(self, step: int, length: int) -> float:
        """Return the value at ``step``, which is between 0 and the last step ``length``."""

    def length(self, total_steps: int | None) -> int:
        """Return the step of the last value in a run of ``total_steps`` (None: unknown)."""
        if self.steps is not None:
            return self.steps
        if total_steps is None or self.fraction is None:
            raise ValueError(
                f"{type(self).__name__}(fraction={self.fraction}) needs the length of the run, "
                "got data of unknown length: use steps= instead of fraction="
            )
        # Updates count from 0 to total_steps - 1, so that fraction=1 ends with the last one.
        return max(1, round(self.fraction * (total_steps - 1)))

    def __call__(self, step: int, total_steps: int | None = None) -> float:
        """Return the value at ``step`` (from 0) of a run of ``total_steps``."""
        length = self.length(total_steps)
        return self.value_at(min(step, length), length)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"expected a finite weight, got {value}")
    return float(value)


class Constant(Schedule):
    """Constant value.

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
    def value_range(self) -> tuple[float, float]:
        """The value, twice."""
        return self.value, self.value

    def value_at(self, step: int, length: int) -> float:
        """Return the value."""
        return self.value

    def length(self, total_steps: int | None) -> int:
        """Return 0, since the first value is the last one."""
        return 0


class Ramp(Schedule):
    """Base class of schedules between two values.

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
    def value_range(self) -> tuple[float, float]:
        """The smaller and the larger of start and end."""
        return min(self.start, self.end), max(self.start, self.end)

    def interpolate(self, share: float) -> float:
        """Return the value at ``share`` in [0, 1] of the way from start to end."""
        return self.end if share == 1.0 else self.start + (self.end - self.start) * share


class Linear(Ramp):
    """Linear ramp from ``start`` to ``end``, then ``end``. See :class:`Ramp` for the arguments.

    Example:
        >>> warm_up = Linear(0.0, 1.0, steps=10)
        >>> [warm_up(step) for step in (0, 5, 10, 20)]
        [0.0, 0.5, 1.0, 1.0]
    """

    def value_at(self, step: int, length: int) -> float:
        """Return the value of the line at ``step``."""
        return self.interpolate(step / length)


class Cosine(Ramp):
    """Half a cosine wave from ``start`` to ``end``, then ``end``. See :class:`Ramp`.

    Example:
        >>> round(Cosine(0.0, 1.0, steps=10)(5), 12)
        0.5
    """

    def value_at(self, step: int, length: int) -> float:
        """Return the value of the wave at ``step``."""
        return self.interpolate(0.5 - 0.5 * math.cos(math.pi * step / length))


class Cyclical(Ramp):
    """Cycles: a linear ramp from ``start`` to ``end``, then a plateau at ``end``.

    Args:
        start: First value of every cycle.
        end: Value of the plateaus, and after the last cycle.
        cycles: Number of cycles.
        ramp: Fraction of each cycle that the ramp takes.
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

    def value_at(self, step: int, length: int) -> float:
        """Return the value at ``step`` of all cycles."""
        if step == length:
            return self.end
        # The remainder of integers is exact, so that every cycle starts exactly at ``start``.
        share = (step * self.cycles % length) / length
        return self.interpolate(min(share / self.ramp, 1.0))


class LossWeight(torch.nn.Module, ABC):
    """Base class of the weights of a loss, which hold their current value.

    Attributes:
        value: Current value, ``()``.
    """

    value: torch.Tensor

    @property
    @abstractmethod
    def changes(self) -> bool:
        """True if the value changes during training."""

    def is_constant(self, value: float) -> bool:
        """Return True if the weight is the constant ``value``."""
        return False

    def type_as(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the value in the dtype of ``tensor``."""
        # A 0-d float64 factor would promote another 0-d tensor, such as a loss.
        return self.value.to(tensor.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        device = fn(torch.zeros((), dtype=torch.float32)).device
        if widest_float(device) == torch.float32:
            self.value = self.value.float()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class ScheduledWeight(LossWeight):
    """Current value of a weight that follows a schedule.

    Assign it to an attribute of an objective or a regularizer. The objective then sets it at every
    step. The value is a 0-d buffer, so a new value never recompiles a graph. A weight that changes
    is part of the ``state_dict``, a constant one is not.

    Args:
        schedule: A number or a :class:`Schedule`.
        name: Name of the weight in errors, such as ``"CIWAE's elbo_weight"``.
        least: Smallest allowed value.
        most: Largest allowed value.

    Attributes:
        value: Current value, ``()``, float64 unless the module is converted, or moved to a device
            that may lack it.

    Raises:
        ValueError: If a value is known to be outside [``least``, ``most``].

    Example:
        >>> weight = ScheduledWeight(Linear(0.0, 1.0, steps=10))
        >>> weight.set_step(4, total_steps=None)
        >>> weight.value
        tensor(0.4000, dtype=torch.float64)
    """

    def __init__(
        self,
        schedule: float | Schedule,
        *,
        name: str = "ScheduledWeight",
        least: float = -math.inf,
        most: float = math.inf,
    ) -> None:
        super().__init__()
        self.schedule = schedule if isinstance(schedule, Schedule) else Constant(schedule)
        low, high = self.value_range
        is_known = (low, high) != (-math.inf, math.inf)
        if is_known and not (least <= low and high <= most):
            allowed = f"in [{least:g}, {most:g}]" if most < math.inf else f">= {least:g}"
            raise ValueError(f"{name} expects a value {allowed}, got {schedule!r}")
        # float64 keeps weights such as 0.1 exact enough for float64 models.
        start = torch.tensor(self.schedule.value_at(0, 1), dtype=torch.float64)
        self.register_buffer("value", start, persistent=self.changes)

    @property
    def changes(self) -> bool:
        """True unless the schedule is a :class:`Constant`."""
        return not isinstance(self.schedule, Constant)

    @property
    def value_range(self) -> tuple[float, float]:
        """Smallest and largest value, infinite if they are unknown."""
        return self.schedule.value_range

    def is_constant(self, value: float) -> bool:
        """Return True if the weight is the constant ``value``."""
        return isinstance(self.schedule, Constant) and self.schedule.value == value

    def set_step(self, step: int, total_steps: int | None) -> None:
        """Set the value to that of ``step`` of ``total_steps`` (None: unknown)."""
        self.value.fill_(self.schedule(step, total_steps))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if isinstance(self.schedule, Constant):  # undo the rounding of earlier dtypes
            self.value.fill_(self.schedule.value)
        return self

    def __repr__(self) -> str:
        schedule = self.schedule
        return f"{schedule.value:g}" if isinstance(schedule, Constant) else repr(schedule)


def scheduled_values(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the weights of ``module`` itself that change, by attribute name."""
    return {
        name: weight.value.clone()
        for name, weight in module.named_children()
        if isinstance(weight, LossWeight) and weight.changes
    }
