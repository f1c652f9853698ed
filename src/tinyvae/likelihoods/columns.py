"""Descriptions of the columns of a table."""

import reprlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyvae.likelihoods.dates import describe_date, describe_step, is_date_dtype
from tinyvae.likelihoods.kinds import KINDS, NOT_MODELED, WITH_LEVELS, Kind
from tinyvae.likelihoods.tables import is_storable, is_storable_key

PANDAS = "pandas."  # begins the names of pandas' own dtypes
ORDERED = "pandas.category[ordered]"
REST = ("number", "heavy", "positive")  # kinds of the values of an amount that are at no point


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: Name of the column.
        kind: One of the kinds of :class:`~tinyvae.likelihoods.MixedLikelihood`.
        levels: Values of a binary, categorical or ordinal column, in the order of their indices.
            The value of a constant, empty if all values are missing.
        shift: Number to subtract from a number to standardize it.
        scale: Divisor of a number (after the shift) or positive number, or baseline of a count.
        dtype: Type of the values in the table: ``"int64"`` or another name of NumPy, ``"object"``,
            ``"pandas.Int64"``, ``"pandas.category[ordered] of int8"`` and the like, or
            ``"date"``, ``"datetime"`` and ``"timedelta"`` for objects of Python. ``""`` is the type
            of the levels, int64 for counts, float64 for other numbers.
        is_whole: True for numbers of a floating-point type that were all whole, such as integers
            with missing values. They are rounded on the way back to a table, as those of an integer
            type are.
        initial: Initial value of the learned parameter: concentration of a count, standard
            deviation of a standardized number or of the logarithm or logit of a number.
        points: Values with a mass of their own: of an amount, or the ends of a bounded number.
        rest: Kind of the other values of an amount: ``"number"``, ``"heavy"`` or ``"positive"``.
        bounds: Ends of the interval of a bounded number.
        num_components: Number of components of a column with several modes.
        frequencies: Shares of the levels of an ordinal column, from which training starts.
        origin: First date, as a number of units of ``dtype`` since 1970, or shortest duration.
        step: Number of these units that makes one unit of the tensor.
        key: Name of the column in the table if it is not a string: a number, or a tuple.
        reason: Why the kind was chosen.
    """

    name: str
    kind: Kind
    levels: tuple[Any, ...] = ()
    shift: float = 0.0
    scale: float = 1.0
    dtype: str = ""
    is_whole: bool = False
    initial: float = 1.0
    points: tuple[float, ...] = ()
    rest: str = ""
    bounds: tuple[float, ...] = ()
    num_components: int = 1
    frequencies: tuple[float, ...] = ()
    origin: int = 0
    step: int = 1
    key: Any = None
    reason: str = ""

    def __post_init__(self) -> None:
        check_kind(self.name, self.kind)
        self._check_levels()
        self._check_details()
        if not (np.isfinite(self.shift) and np.isfinite(self.scale) and self.scale > 0):
            raise ValueError(
                f"column {self.name!r} expects a finite shift and a finite scale > 0, got "
                f"{self.shift} and {self.scale}"
            )
        if not is_storable_key(self.key):
            raise ValueError(
                f"column {self.name!r} expects a string, a number or a tuple of these as name, got "
                f"{self.key!r:.80}: rename it"
            )
        is_date = is_date_dtype(self.dtype) and self.kind in ("date", "constant")
        is_named = self.dtype in ("", "object") or self.dtype.startswith(PANDAS)
        if not (is_named or is_date or self.numeric_dtype is not None):
            raise ValueError(
                f"column {self.name!r} expects the name of a dtype, such as 'int64' or "
                f"'pandas.Int64', got {self.dtype!r}"
            )

    def _check_levels(self) -> None:
        storable = isinstance(self.levels, (tuple, list)) and all(map(is_storable, self.levels))
        if not storable or len(set(self.levels)) < len(self.levels):
            raise ValueError(
                f"column {self.name!r} expects a tuple of different levels, strings or finite "
                f"numbers, got {reprlib.repr(self.levels)}: convert other types with str(level)"
            )
        fewest = 2 if self.kind in WITH_LEVELS else 0
        most = {"binary": 2, "constant": 1}.get(self.kind, None if fewest else 0)
        if len(self.levels) < fewest or (most is not None and len(self.levels) > most):
            expected = "two or more" if most is None else f"{most or 'no'}"
            raise ValueError(
                f"column {self.name!r} of kind {self.kind} expects {expected} levels, "
                f"got {len(self.levels)}"
            )

    def _check_details(self) -> None:
        """Raise unless the fields that a kind reads have values that it can use."""
        expected = {
            "amount": (
                bool(self.points) and self.rest in REST,
                "points and a rest in " + str(REST),
            ),
            "bounded": (
                len(self.bounds) == 2
                and self.bounds[0] < self.bounds[1]
                and set(self.points) <= set(self.bounds),
                "bounds (low, high), and no points but these",
            ),
            "modes": (self.num_components > 1, "num_components >= 2"),
            "ordinal": (len(self.frequencies) in (0, len(self.levels)), "one frequency per level"),
            "date": (self.step > 0, "step > 0"),
        }
        holds, what = expected.get(self.kind, (True, ""))
        if not holds:
            raise ValueError(f"column {self.name!r} of kind {self.kind} expects {what}")

    @property
    def is_modeled(self) -> bool:
        """True if the column has a dimension of the tensor, as constants and identifiers do not."""
        return self.kind not in NOT_MODELED

    @property
    def has_levels(self) -> bool:
        """True if the tensor holds indices of levels."""
        return self.kind in WITH_LEVELS

    @property
    def label(self) -> Any:
        """Name of the column in the table."""
        return self.name if self.key is None else self.key

    @property
    def numeric_dtype(self) -> "np.dtype[Any] | None":
        """Dtype of NumPy for the values, or None if ``dtype`` is not one of numbers."""
        name = self.dtype or ("int64" if self.kind == "count" else "float64")
        try:  # pandas' Int64 and int64[pyarrow] are int64
            dtype = np.dtype(name.removeprefix(PANDAS).lower().partition("[")[0])
        except TypeError:
            return None
        return dtype if dtype.kind in "iuf" else None

    @property
    def is_rounded(self) -> bool:
        """True if numbers become whole on the way back to a table."""
        is_integer = self.numeric_dtype is not None and self.numeric_dtype.kind in "iu"
        return is_integer or self.is_whole

    def describe(self) -> str:
        """Return how the column is modeled, one line without its name.

        Example:
            >>> Column("height", "number", shift=170.0, scale=9.0, dtype="int64").describe()
            'number, mean 170, std 9, rounded'
        """
        return ", ".join(part for part in (self.kind, self.details(), self.reason) if part)

    def details(self) -> str:
        """Return the numbers or levels that describe the column."""
        if self.kind == "identifier":
            return "left out"
        if self.kind == "constant":
            value = reprlib.repr(self.levels[0]) if self.levels else "all missing"
            if self.levels and is_date_dtype(self.dtype):
                value = describe_date(self.levels[0], self.dtype)
            return f"{value}, not modeled"
        if self.levels:
            return f"{len(self.levels)} levels {reprlib.repr(list(self.levels))}"
        if self.kind == "date":
            middle = describe_date(self.origin + round(self.shift) * self.step, self.dtype)
            return f"mean {middle}, std {self.scale:.4g} {describe_step(self.step, self.dtype)}"
        place = f"mean {self.shift:.4g}, std {self.scale:.4g}"
        heavy = f"center {self.shift:.4g}, scale {self.scale:.4g}"
        rest = {"positive": f"geometric mean {self.scale:.4g}", "heavy": heavy}.get(
            self.rest, place
        )
        points = ", ".join(f"{point:g}" for point in self.points)
        text = {
            "number": place,
            "heavy": heavy,
            "modes": f"{self.num_components} components, {place}",
            "positive": f"geometric mean {self.scale:.4g}",
            "amount": f"at {points}; elsewhere {self.rest}, {rest}",
            "bounded": f"in {list(self.bounds)}",
            "count": f"mean {self.scale:.4g}",
        }[self.kind]
        return f"{text}, rounded" if self.is_rounded and self.kind != "count" else text


def check_kind(name: str, kind: str) -> None:
    """Raise unless ``kind`` is one that a column may have."""
    if kind not in KINDS:
        raise ValueError(f"column {name!r} expects a kind in {KINDS}, got {kind!r}")
