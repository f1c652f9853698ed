"""The make of a checkpoint: what has to be where, before anything looks any closer."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tinyvae.errors import CheckpointError

Check: TypeAlias = Callable[[Any], bool]


def is_count(value: Any) -> bool:
    """Whether a value counts something."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def is_kind(kind: type, value: Any) -> bool:
    """Whether a value is of a class."""
    return isinstance(value, kind)


def is_number(value: Any) -> bool:
    """Whether a value is a number, and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_duration(value: Any) -> bool:
    """Whether a value is a number of seconds."""
    return is_number(value) and 0 <= value < 2**62


def is_bytes(value: Any) -> bool:
    """Whether a value is a tensor of bytes."""
    return isinstance(value, Tensor) and value.dtype == torch.uint8 and value.dim() == 1


def is_optional(check: Check) -> Check:
    """None, or what another check takes."""
    return lambda value: value is None or check(value)


def is_list(check: Check) -> Check:
    """A list of what another check takes."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def is_dict(check: Check) -> Check:
    """A dictionary, by names, of what another check takes."""
    return lambda value: (
        isinstance(value, dict)
        and all(isinstance(key, str) and check(own) for key, own in value.items())
    )


def is_one_of(*words: str) -> Check:
    """One of some words."""
    return lambda value: isinstance(value, str) and value in words


def is_rows(value: Any) -> bool:
    """Whether bytes are the JSON of a history."""
    try:
        rows = json.loads(value.numpy().tobytes())
    except (AttributeError, ValueError, RecursionError):
        return False
    is_row = is_dict(is_number)
    return (
        is_bytes(value)
        and isinstance(rows, dict)
        and rows.keys() == {"epochs", "updates"}
        and all(is_list(is_row)(own) for own in rows.values())
        and all({"epoch", "step", "time_seconds"} <= row.keys() for row in rows["epochs"])
        and all("step" in row for row in rows["updates"])
    )


def is_generator_state(value: Any) -> bool:
    """Whether a value is a state of torch's generator."""
    try:
        torch.Generator().set_state(value)
    except (TypeError, RuntimeError):
        return False
    return True


IS_TEXT: Check = partial(is_kind, str)
IS_DICT = is_dict(partial(is_kind, object))
MEANS: dict[str, Any] = {"totals": is_dict(is_number), "weight": is_count}
SHAPE: dict[str, Any] = {
    "run": IS_DICT,
    "mode": {
        "device": IS_TEXT,
        "torch": IS_TEXT,
        "threads": is_count,
        "speed": IS_DICT,
        "route": {
            "matmul": is_one_of("default", "onednn"),
            "precision": is_one_of("float32", "bfloat16"),
        },
    },
    "model": IS_DICT,
    "objective": IS_DICT,
    "optimizers": IS_DICT,
    "schedulers": IS_DICT,
    "callbacks": is_dict(IS_DICT),
    "history": {"rows": is_rows, "stop_reason": is_optional(IS_TEXT)},
    "position": {
        "epoch": is_count,
        "step": is_count,
        "batch": is_count,
        "means": MEANS,
        "rng": is_dict(is_bytes),
        "loader": IS_DICT,
        "seconds": is_duration,
    },
    "plan": {
        "first_epoch": is_count,
        "begun": is_count,
        "schedule_steps": is_optional(is_count),
    },
}


def require_sound(state: Any, shape: Mapping[str, Any] = SHAPE, name: str = "") -> None:
    """Raise unless a state is made as a checkpoint of this version is.

    Raises:
        CheckpointError: The message names the part.
    """
    if not isinstance(state, dict) or state.keys() != shape.keys():
        got = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(
            f"expected '{name or 'state'}' with {sorted(shape)}, got {got!r:.200}"
        )
    for key, check in shape.items():
        place = f"{name}.{key}".lstrip(".")
        if isinstance(check, Mapping):
            require_sound(state[key], check, place)
        elif not check(state[key]):
            raise CheckpointError(f"'{place}' is none that a run has: {state[key]!r:.200}")
