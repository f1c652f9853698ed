"""Writer of JSON files for people and other programs, and a strict parser."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from tinyvae.io.atomic import write_atomically

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"


def write_json(path: str | os.PathLike[str], value: JSON) -> None:
    """Write indented JSON atomically. NaN and infinity become null, since JSON has neither.

    Args:
        path: File to write or to replace.
        value: Value to write.

    Raises:
        TypeError: If JSON cannot represent ``value``.
        OSError: See :func:`write_atomically`.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(Path(folder, "a.json"), {"elbo": [-80.5, float("nan")]})
        ...     print(Path(folder, "a.json").read_text(), end="")
        {
          "elbo": [
            -80.5,
            null
          ]
        }
    """
    text = json.dumps(null_for_non_finite(value), indent=2, allow_nan=False)
    write_atomically(path, text.encode() + b"\n")


def null_for_non_finite(value: JSON) -> JSON:
    """Replace NaN and infinity by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: null_for_non_finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [null_for_non_finite(item) for item in value]
    return value


def parse_json(text: str) -> Any:
    """Parse JSON. Raise ValueError for duplicate keys and numbers that are not finite."""
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("duplicate key in one object")
    return value


def _finite(text: str) -> float:  # Python reads 1e999 as infinity
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is not finite")
    return number
