"""A mean over examples with its errors, and the values of the examples."""

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """Mean over examples with its standard error.

    Attributes:
        mean: Nats per datum.
        standard_error: Standard error over the examples, nats per datum: how far the mean may be
            from that of all possible data. It contains the Monte Carlo error.
        num_examples: Number of examples.
        num_dims: Dimensions of one of these examples. With missing entries, the mean number of
            observed ones. NaN if it is unknown.
        monte_carlo_error: Standard error of the mean for these same examples, nats per datum: how
            far the mean may be from that of infinitely many draws, or another seed. NaN if it is
            unknown, as with one draw per example.
        num_samples: Draws per example, None if there is no such number.
        values: Value of each example, nats, ``(N,)``, float64 on the CPU. None if they are unknown.
    """

    mean: float
    standard_error: float
    num_examples: int
    num_dims: float = math.nan
    monte_carlo_error: float = math.nan
    num_samples: int | None = None
    values: Tensor | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        values: Tensor,
        num_dims: float = math.nan,
        *,
        errors: Tensor | None = None,
        num_samples: int | None = None,
    ) -> "Estimate":
        """Return the estimate from values and their Monte Carlo standard errors, ``(N,)``."""
        values = values.cpu().double()  # in this order: not all devices have float64
        count = len(values)
        error = values.std().item() / math.sqrt(count) if count > 1 else math.nan
        noise = math.nan
        if errors is not None and not errors.isnan().any():
            noise = errors.cpu().double().square().sum().sqrt().item() / count
        return cls(values.mean().item(), error, count, num_dims, noise, num_samples, values)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, with their units in the keys, without the values."""
        return {
            "nats": self.mean,
            "standard_error_nats": self.standard_error,
            "monte_carlo_error_nats": self.monte_carlo_error,
            "num_examples": self.num_examples,
            "num_dims": self.num_dims,
            "num_samples": self.num_samples,
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any], values: Tensor | None = None) -> "Estimate":
        """Return the estimate of :meth:`to_dict`, whose unknown numbers may be None."""

        def number(key: str) -> float:
            return math.nan if saved[key] is None else float(saved[key])

        return cls(
            number("nats"),
            number("standard_error_nats"),
            saved["num_examples"],
            number("num_dims"),
            number("monte_carlo_error_nats"),
            saved["num_samples"],
            values,
        )

    def __str__(self) -> str:
        return f"{self.mean:.2f} +- {self.standard_error:.2f} ({self.num_examples:,} examples)"
