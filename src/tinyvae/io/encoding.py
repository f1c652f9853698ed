"""Encoding of states of optimizers, schedulers and callbacks as JSON and tensors.

A state consists of tensors, numbers, strings, None, and lists, tuples and dictionaries of these. In
JSON a tensor is its name, a dictionary is a list of pairs (keys can be numbers), and a number that
is not finite is a word.

Integer keys have at most 64 bits, because any number of larger ones can have the same hash in
Python. Each tensor is used once, so that no two values of a state share memory.
"""

import math
import reprlib
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from tinyvae.errors import CheckpointError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def encode_state(state: Any, name: str, *, finite: bool = True) -> tuple[Any, dict[str, Tensor]]:
    """Encode a state as JSON and named tensors.

    Args:
        state: State.
        name: Prefix of the tensors' names.
        finite: If True, all tensors are kept unchanged, and :func:`save_tensors` rejects non-finite
            values. If False, tensors with non-finite values are stored as the integers of their
            bits.

    Returns:
        JSON, and the tensors that it names.

    Raises:
        TypeError: If the state contains anything else. The message names its position.

    Example:
        >>> encode_state({"best": -math.inf, 0: torch.zeros(2)}, "early")
        ({'dict': [['best', {'float': '-inf'}], [0, {'tensor': 'early.0'}]]},
         {'early.0': tensor([0., 0.])})
    """
    tensors: dict[str, Tensor] = {}
    return _encoded(state, name, tensors, finite), tensors


def _encoded(value: Any, name: str, tensors: dict[str, Tensor], finite: bool) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Tensor) and value.layout is torch.strided:
        while name in tensors:  # the keys "a.b" and "a" -> "b" give the same name
            name += "'"
        if finite or value.dtype not in FLOATS or all_finite(value):
            tensors[name] = value
            return {"tensor": name}
        tensors[name] = value.contiguous().view(BITS[value.element_size()])
        return {"bits": name, "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Integral):  # also numpy's
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return number if math.isfinite(number) else {"float": str(number)}
    if isinstance(value, (list, tuple)):
        items = [_encoded(item, f"{name}.{i}", tensors, finite) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not _is_key(key)]:
            raise TypeError(
                "a saved state expects strings and integers of at most 64 bits as keys, got "
                f"{wrong[0]!r:.80} in '{name}': convert it in state_dict"
            )
        return {
            "dict": [
                [key, _encoded(item, f"{name}.{key}", tensors, finite)]
                for key, item in value.items()
            ]
        }
    raise TypeError(
        "a saved state expects dense tensors, numbers, strings, None, and lists, tuples and "
        f"dictionaries of these, got {value!r:.80}, a {type(value).__name__}, as '{name}': convert "
        "it in state_dict"
    )


def all_finite(tensor: Tensor) -> bool:
    """Return True unless a tensor contains NaN or infinity. Allocate no memory of its size."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(map(math.isfinite, (bound.item() for bound in torch.aminmax(tensor.detach()))))


def count_non_finite(tensor: Tensor) -> int:
    """Return the number of NaN and infinite values."""
    return 0 if all_finite(tensor) else tensor.numel() - int(torch.isfinite(tensor).sum())


def _is_key(key: Any) -> bool:
    is_integer = isinstance(key, int) and not isinstance(key, bool)
    return isinstance(key, str) or (is_integer and -(2**63) <= key < 2**64)


def decode_state(form: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Decode a state that :func:`encode_state` encoded.

    Args:
        form: JSON.
        tensors: Tensors by name.

    Raises:
        CheckpointError: If ``form`` is malformed, or names a tensor that is missing or was used.

    Example:
        >>> decode_state({"tuple": [0.9, {"float": "inf"}]}, {})
        (0.9, inf)
    """
    return _decoded(form, dict(tensors))


def _decoded(form: Any, tensors: dict[str, Tensor]) -> Any:
    match form:
        case None | bool() | int() | float() | str():
            return form
        case list(items):
            return [_decoded(item, tensors) for item in items]
        case {"tensor": str(name), **rest} if not rest and name in tensors:
            return tensors.pop(name)  # two names for one memory would change together
        case {"bits": str(name), "dtype": str(dtype), **rest} if not rest and name in tensors:
            return _of_bits(tensors.pop(name), dtype)
        case {"float": "inf" | "-inf" | "nan" as word, **rest} if not rest:
            return float(word)
        case {"tuple": list(items), **rest} if not rest:
            return tuple(_decoded(item, tensors) for item in items)
        case {"dict": list(pairs), **rest} if not rest and all(map(_is_pair, pairs)):
            state = {key: _decoded(item, tensors) for key, item in pairs}
            if len(state) == len(pairs):
                return state
    raise CheckpointError(f"expected a state in tinyvae's format, got {reprlib.repr(form)}")


def _of_bits(bits: Tensor, dtype: str) -> Tensor:
    dtypes = {str(d).removeprefix("torch."): d for d in FLOATS}
    if dtype not in dtypes or bits.dtype != BITS[dtypes[dtype].itemsize]:
        raise CheckpointError(f"expected the bits of '{dtype:.20}', got {bits.dtype}")
    return bits.view(dtypes[dtype])


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and _is_key(pair[0])
