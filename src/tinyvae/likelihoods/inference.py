"""Columns that are inferred from a table."""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import numpy as np

from tinyvae.core.data import spread_rows
from tinyvae.likelihoods.columns import ORDERED, PANDAS, Column, check_kind
from tinyvae.likelihoods.dates import as_dates, natural_step, ticks, to_steps
from tinyvae.likelihoods.kinds import (
    FEW_LEVELS,
    LARGEST_INTEGER,
    MANY_ROWS,
    MAX_ROWS,
    MIN_ROWS,
    WITH_LEVELS,
    Guess,
    Kind,
    find_points,
    guess_density,
    guess_number,
    guess_text,
    initial_value,
    plain_bounds,
)
from tinyvae.likelihoods.marginals import find_modes, mixture_fit, student_fit
from tinyvae.likelihoods.tables import (
    Array,
    as_numbers,
    check_finite,
    column_keys,
    is_present,
    named_columns,
    pandas_dtype,
    raw_columns,
)

DECLARED = "declared"


def infer_columns(table: Any, kinds: Mapping[Any, Kind] | None = None) -> list[Column]:
    """Return descriptions of the columns of a table, see ``MixedLikelihood.from_table``."""
    columns, raw, keys = named_columns(table), raw_columns(table), column_keys(table)
    kinds = {str(name): kind for name, kind in (kinds or {}).items()}
    if unknown := kinds.keys() - columns.keys():
        raise ValueError(f"kinds expects columns in {list(columns)}, got {sorted(unknown)}")
    for name, kind in kinds.items():
        check_kind(name, kind)
    return [
        _Inference(name, values, raw[name], keys.get(name)).column(kinds.get(name))
        for name, values in columns.items()
    ]


class _Inference:
    """The values of one column, and the description that they lead to.

    Args:
        name: Name of the column.
        values: Its values as an array of NumPy.
        raw: Its values as they are in the table.
        key: Its name in the table if that is not a string.
    """

    def __init__(self, name: str, values: Array, raw: Any, key: Any) -> None:
        self.name, self.values, self.raw, self.key = name, values, raw, key
        self.foreign = pandas_dtype(raw)
        if str(self.foreign).startswith("Sparse"):
            raise ValueError(
                f"column {name!r} expects dense values, got {self.foreign}: convert it with "
                ".sparse.to_dense()"
            )
        self.observed = values[is_present(values)]
        self.distinct = _distinct(name, self.observed)
        self.plain_dtype = values.dtype  # of the observed values without missing ones
        if values.dtype == object:
            self.plain_dtype = np.array(self.observed.tolist()).dtype

    def column(self, kind: Kind | None) -> Column:
        """Return the description of the column, of the declared kind if there is one."""
        if kind == "identifier":
            return self._column("identifier", reason=DECLARED)
        declared = getattr(self.foreign, "categories", None)  # also those that no row has
        if declared is not None and kind in (None, "constant", *WITH_LEVELS):
            return self._categorical(kind, declared.tolist())
        if len(self.distinct) < 2 and kind in (None, "constant"):
            return self._constant(self.distinct)
        if len(self.distinct) < 2 or kind == "constant":
            expected = "one value" if kind == "constant" else "at least two different values"
            raise ValueError(
                f"column {self.name!r} of kind {kind} expects {expected}, got "
                f"{len(self.distinct)}: leave its kind to the data"
            )
        if self._holds_dates():
            return self._dates(kind)
        if kind == "date":
            raise ValueError(
                f"column {self.name!r} of kind date expects dates or durations, got "
                f"{self.distinct[0]!r:.80}: convert it with pandas.to_datetime"
            )
        guess = self._guess() if kind is None else Guess(kind, DECLARED)
        if guess.kind == "identifier":
            return self._column("identifier", reason=guess.reason)
        if guess.kind in WITH_LEVELS:
            return self._levels(guess, self.distinct, _dtype_name(self))
        numbers = self._numbers()
        return self._column(
            guess.kind,
            dtype=self._number_dtype(),
            is_whole=self.plain_dtype.kind == "f" and _are_whole(numbers),
            reason=guess.reason,
            **_parameters(self.name, guess.kind, numbers),
        )

    def _column(self, kind: Kind, **fields: Any) -> Column:
        return Column(self.name, kind, key=self.key, **fields)

    def _holds_dates(self) -> bool:
        return self.values.dtype.kind in "mM" or (
            self.values.dtype == object
            and any(isinstance(value, (date, timedelta)) for value in self.distinct)
        )

    def _is_numeric(self) -> bool:
        if self.values.dtype != object:
            return self.plain_dtype.kind in "iuf"
        has_bool = any(isinstance(value, bool) for value in self.distinct)
        return self.plain_dtype.kind in "iuf" and not has_bool

    def _number_dtype(self) -> str:
        return _dtype_name(self) if self._is_numeric() else ""

    def _numbers(self) -> Array:
        """Return the observed values as float64, or raise if they are no finite numbers."""
        values = self.observed
        if values.dtype.kind not in "biuf":
            values = np.array(values.tolist(), dtype=object)
        numbers = as_numbers(self.name, values)
        check_finite(self.name, numbers)
        return numbers

    def _guess(self) -> Guess:
        if len(self.distinct) == 2:
            return Guess("binary", "two values")
        if not self._is_numeric():
            return guess_text(self.name, len(self.observed), self.distinct)
        is_integer = self.plain_dtype.kind in "iu"
        is_large = is_integer and max(-self.distinct[0], self.distinct[-1]) > LARGEST_INTEGER
        if is_large and len(self.distinct) == len(self.observed) > FEW_LEVELS:
            return Guess("identifier", "every row has a different integer, beyond 2**53")
        return guess_number(self._numbers(), np.array(self.distinct, dtype=float), is_integer)

    def _constant(self, values: list[Any]) -> Column:
        dtype, reason = _dtype_name(self), "one value" if values else ""
        if values and self._holds_dates():
            dates, dtype = self._as_dates()
            values = [int(ticks(dates)[0])]
        elif isinstance(values[0] if values else None, float):
            check_finite(self.name, np.array(values))
        return self._column("constant", levels=tuple(values), dtype=dtype, reason=reason)

    def _categorical(self, kind: Kind | None, levels: list[Any]) -> Column:
        """Return the description of a categorical column of pandas."""
        dtype = ORDERED if self.foreign.ordered else f"{PANDAS}category"
        dtype += f" of {self.foreign.categories.dtype}"
        if kind == "constant" or len(levels) < 2:
            return self._column("constant", levels=tuple(levels), dtype=dtype)
        if kind is None and not self.foreign.ordered and isinstance(levels[0], str):
            guess = guess_text(self.name, len(self.observed), self.distinct or levels)
            if guess.kind == "identifier":
                return self._column("identifier", reason=guess.reason)
        if kind is None:
            is_ordinal = self.foreign.ordered and len(levels) > 2
            kind = "ordinal" if is_ordinal else "binary" if len(levels) == 2 else "category"
            reason = "ordered categories" if self.foreign.ordered else "categories"
        else:
            reason = DECLARED
        return self._levels(Guess(kind, reason), levels, dtype)

    def _levels(self, guess: Guess, levels: list[Any], dtype: str) -> Column:
        frequencies: tuple[float, ...] = ()
        if guess.kind == "ordinal":
            if guess.reason == DECLARED and isinstance(levels[0], str) and self.foreign is None:
                raise ValueError(
                    f"column {self.name!r} of kind ordinal expects numbers or an ordered "
                    f"categorical, got text such as {levels[0]!r:.80}: give the order, "
                    "pandas.Categorical(values, categories=[...], ordered=True)"
                )
            index = {level: position for position, level in enumerate(levels)}
            counts = np.bincount(
                [index[value] for value in self.observed.tolist()], minlength=len(levels)
            )
            shares = (counts + 0.5) / (counts.sum() + 0.5 * len(levels))
            frequencies = tuple(shares.round(6).tolist())
        return self._column(
            guess.kind,
            levels=tuple(levels),
            dtype=dtype,
            frequencies=frequencies,
            reason=guess.reason,
        )

    def _as_dates(self) -> tuple[Array, str]:
        dates, dtype = as_dates(self.name, self.observed)
        is_zoned = getattr(self.foreign, "tz", None) is not None
        return dates, f"{PANDAS}{self.foreign}" if is_zoned else dtype

    def _dates(self, kind: Kind | None) -> Column:
        if kind not in (None, "date"):
            raise ValueError(
                f"column {self.name!r} of kind {kind} expects numbers or text, got dates or "
                "durations: leave it a date, or convert it, for example to the month"
            )
        dates, dtype = self._as_dates()
        integers = ticks(dates)
        origin, step = natural_step(self.name, integers, dtype)
        steps = to_steps(self.name, integers, origin, step)
        shift, scale = float(steps.mean()), float(steps.std())
        reason = "durations" if "timedelta" in dtype else "dates"
        return self._column(
            "date",
            shift=shift,
            scale=scale,
            dtype=dtype,
            origin=origin,
            step=step,
            reason=reason,
        )


def _distinct(name: str, observed: Array) -> list[Any]:
    """Return the distinct values of a column, sorted, in types of Python."""
    if observed.dtype.kind in "biufmM":
        levels: list[Any] = np.unique(observed).tolist()
        return levels
    values = [value.item() if isinstance(value, np.generic) else value for value in observed]
    try:
        distinct = set(values)
    except TypeError:
        raise ValueError(
            f"column {name!r} expects numbers or text, got values such as {values[0]!r:.80}: "
            "convert them, or leave the column out"
        ) from None
    try:
        return sorted(distinct)
    except TypeError:  # values of several types
        return sorted(distinct, key=str)


def _dtype_name(column: _Inference) -> str:
    """Return the ``dtype`` of a column."""
    foreign, values = column.foreign, column.values
    if foreign is not None and str(foreign) not in ("category", "str"):
        return f"{PANDAS}{foreign}"  # pandas itself reads text as str
    is_object = getattr(column.raw, "dtype", None) == np.dtype(object)
    if values.dtype == object and not len(column.observed):
        return "object" if foreign is None else f"{PANDAS}{foreign}"
    dtype = column.plain_dtype
    if dtype.kind in "iuf" and (values.dtype != object or column._is_numeric()):
        return str(dtype.name)
    if dtype.kind in "mM":
        return str(dtype)
    return "object" if is_object else ""


def _are_whole(numbers: Array) -> bool:
    """Return True if there are enough numbers to tell, and all of them are whole."""
    return len(numbers) >= MIN_ROWS and bool((numbers == np.round(numbers)).all())


def _parameters(name: str, kind: Kind, numbers: Array) -> dict[str, Any]:
    """Return the fields of a column of numbers that its kind reads."""
    rows = spread_rows(numbers, MAX_ROWS)
    place = {"shift": float(numbers.mean()), "scale": float(numbers.std())}
    if kind == "positive" and numbers.min() <= 0:
        raise ValueError(
            f"column {name!r} expects positive numbers, got {numbers.min():g}: declare it an "
            "amount or a number"
        )
    if kind == "count" and (numbers.min() < 0 or (numbers != np.round(numbers)).any()):
        raise ValueError(
            f"column {name!r} expects counts, integers >= 0, got "
            f"{numbers.min():g}..{numbers.max():g}: declare it a number"
        )
    if kind in ("positive", "count"):
        scale = float(np.exp(np.log(numbers).mean()) if kind == "positive" else numbers.mean())
        return {"scale": scale, "initial": initial_value(kind, numbers)}
    if kind == "heavy":
        _, shift, scale = student_fit(rows)
        return {"shift": shift, "scale": scale}
    if kind == "modes":
        modes = find_modes(rows)
        modes = modes if len(modes) > 1 else np.quantile(rows, (0.25, 0.75))
        width = mixture_fit(rows, modes)[1] / rows.std()
        return place | {"num_components": len(modes), "initial": float(np.clip(width, 0.01, 1))}
    if kind == "bounded":
        return _bounds(name, numbers)
    return _amount(name, numbers) if kind == "amount" else place


def _bounds(name: str, numbers: Array) -> dict[str, Any]:
    low, high = plain_bounds(numbers) or (float(numbers.min()), float(numbers.max()))
    inside = numbers[(numbers > low) & (numbers < high)]
    if not len(inside):
        raise ValueError(
            f"column {name!r} of kind bounded expects numbers between {low:g} and {high:g}, got "
            "none: declare it a category"
        )
    share = (inside - low) / (high - low)
    spread = float(np.clip((np.log(share) - np.log1p(-share)).std(), 0.01, 10))
    ends = tuple(end for end in (low, high) if (numbers == end).any())
    return {"bounds": (low, high), "points": ends, "initial": spread}


def _amount(name: str, numbers: Array) -> dict[str, Any]:
    points = find_points(spread_rows(numbers, MANY_ROWS)) or (
        (0.0,) if (numbers == 0).any() else ()
    )
    others = numbers[~np.isin(numbers, points)]
    if not points or not len(others):
        raise ValueError(
            f"column {name!r} of kind amount expects zeros or another value that repeats, and "
            "other values: declare it positive or a number"
        )
    rest = guess_density(others, allow_points=False).kind
    fields = _parameters(name, rest, others)
    if not fields["scale"] > 0:
        fields["scale"] = abs(fields["shift"]) or 1.0
    return {"points": points, "rest": rest} | fields
