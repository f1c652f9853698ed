"""States as JSON and tensors: what optimisers, schedulers and callbacks remember.

A state is made of tensors, numbers, strings, None, and lists, tuples and dictionaries of these. In
JSON a tensor is its name, a dictionary a list of its pairs (keys may be numbers), and what is not
finite a word.
"""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from tinyvae.files.errors import CheckpointError

__all__ = ["decode_state", "encode_state"]


def encode_state(state: Any, name: str) -> tuple[Any, dict[str, Tensor]]:
    """Take a state apart.

    Args:
        state: The state.
        name: Its name, which the names of its tensors begin with.

    Returns:
        JSON, and the tensors that it names.

    Raises:
        TypeError: If the state holds anything else; the message says where.

    Example:
        >>> encode_state({"best": -math.inf, 0: torch.zeros(2)}, "early")
        ({'dict': [['best', {'float': '-inf'}], [0, {'tensor': 'early.0'}]]},
         {'early.0': tensor([0., 0.])})
    """
    tensors: dict[str, Tensor] = {}
    return _encoded(state, name, tensors), tensors


def _encoded(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Tensor):
        while name in tensors:  # the keys "a.b" of a, and "b" of a's "a"
            name += "'"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Integral):  # numpy's too
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return number if math.isfinite(number) else {"float": str(number)}
    if isinstance(value, (list, tuple)):
        items = [_encoded(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping):
        if wrong := [key for key in value if isinstance(key, bool) or not _is_key(key)]:
            raise TypeError(
                f"'{name}' has the key {wrong[0]!r:.80}, expected strings and whole numbers: a "
                "file can hold no other"
            )
        pairs = [[key, _encoded(own, f"{name}.{key}", tensors)] for key, own in value.items()]
        return {"dict": pairs}
    raise TypeError(
        f"'{name}' is {value!r:.80}, a {type(value).__name__}: expected tensors, numbers, strings, "
        "None, and lists, tuples and dictionaries of these, which is what a file can hold"
    )


def _is_key(key: Any) -> bool:
    return isinstance(key, (str, int))


def decode_state(form: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put a state together again.

    Args:
        form: What :func:`encode_state` returned, read back from JSON.
        tensors: The tensors.

    Raises:
        CheckpointError: If ``form`` is not of that make, or names a tensor that is not there.

    Example:
        >>> decode_state({"tuple": [0.9, {"float": "inf"}]}, {})
        (0.9, inf)
    """
    match form:
        case None | bool() | int() | float() | str():
            return form
        case list(items):
            return [decode_state(item, tensors) for item in items]
        case {"tensor": str(name), **rest} if not rest and name in tensors:
            return tensors[name]
        case {"float": "inf" | "-inf" | "nan" as word, **rest} if not rest:
            return float(word)
        case {"tuple": list(items), **rest} if not rest:
            return tuple(decode_state(item, tensors) for item in items)
        case {"dict": list(pairs), **rest} if not rest and all(map(_is_pair, pairs)):
            return {key: decode_state(own, tensors) for key, own in pairs}
    raise CheckpointError(f"expected a state as tinyvae writes it, got {form!r:.80}")


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and _is_key(pair[0])
