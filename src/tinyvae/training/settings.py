"""Settings of objects as plain values by name, which another process can compare with its own.

Modules, callable objects and the library's own objects have the arguments of their constructor as
settings if they store all of them under their names. Otherwise modules and callable objects have
their public attributes. Other objects have only their class, because a user's configuration also
holds numbers of epochs and names of files. If a function reads attributes of one, these count.
Nothing depends on addresses, hash seeds, devices, dtypes, paths, or versions of libraries.
"""

import inspect
import math
import os
import sys
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dis import get_instructions
from enum import Enum
from functools import partial
from hashlib import sha256
from numbers import Integral, Real
from pathlib import PurePath
from types import CodeType, FunctionType, MethodType
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyvae.core.data import spread_rows
from tinyvae.schedules import Constant, ScheduledWeight

Scalar: TypeAlias = bool | int | float | str | None
Settings: TypeAlias = dict[str, Scalar | list[float]]

MAX_OBJECTS = 10_000  # that are described
MAX_ITEMS = 100  # longer lists are compared by length, or by a checksum of their numbers
NUM_ELEMENTS = 1 << 20  # of an array that are read
NUM_SUMS = 16
GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples modulo 1 are weights that all differ
TOLERANCE = 1e-5  # of checksums: another library or machine may round computed data differently


def settings_of(value: Any, name: str, seen: dict[int, Any] | None = None) -> Settings:
    """Return the settings of an object, and of all in it, by dotted names.

    Strings are quoted, so that they differ from the names of classes and functions. ``seen`` holds
    the objects that are already described. An object that cannot be inspected has none.

    Example:
        >>> settings_of(ELBO(beta=4.0).beta, "beta")
        {'beta': 4.0}
    """
    try:
        return _settings_of(value, name, {} if seen is None else seen)
    except Exception:  # such as a __repr__ that fails: no reason to stop a run
        return {}


def _settings_of(value: Any, name: str, seen: dict[int, Any]) -> Settings:
    match value:
        case nn.Parameter() | torch.device() | os.PathLike():
            return {}
        case None | bool():
            return {name: value}
        case np.bool_():
            return {name: bool(value)}
        case Integral():
            return {name: int(value)}
        case Real():
            return {name: float(value) if math.isfinite(value) else str(float(value))}
        case str():  # a path says where something is, and not what
            is_place = PurePath(value).is_absolute() or _is_device(value)
            return {} if is_place else {name: repr(value)}
        case type():
            return {name: value.__name__}
    if id(value) in seen or len(seen) >= MAX_OBJECTS:
        return {name: getattr(value, "__name__", type(value).__name__)}
    seen[id(value)] = value  # kept, so that no other object gets its id
    match value:
        case Tensor() | np.ndarray():
            return _array_settings(value, name)
        case ScheduledWeight():
            return settings_of(value.schedule, name, seen)
        case Constant():
            return settings_of(value.value, name, seen)
        case FunctionType():
            return {name: value.__name__} | _function_settings(value, {}, name, seen)
        case MethodType(__func__=FunctionType() as function):
            captured = {"self": value.__self__}
            return {name: value.__name__} | _function_settings(function, captured, name, seen)
        case partial():
            parts = {"function": value.func, "arguments": value.args, "keywords": value.keywords}
            return {name: "partial"} | _all_settings(parts, name, seen)
        case Enum():
            return {name: value.name}
        case Mapping() | Set() | Sequence():
            return _container_settings(value, name, seen)
    text = type(value).__name__
    if isinstance(value, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        text = f"{text} of {len(value)}"
    elif _is_plain(value):
        return {name: text}
    elif getattr(value, "__dict__", None) is None and " at 0x" not in repr(value):
        text = f"{value!r:.200}"  # such as operator.itemgetter(0), or a dtype
    return {name: text} | _all_settings(attributes(value), name, seen)


def _is_plain(value: Any) -> bool:
    """Return True for an object that only stores values, such as a user's configuration."""
    is_library = type(value).__module__.startswith(("tinyvae.", "torch"))
    return not (is_library or isinstance(value, nn.Module) or callable(value))


def _is_device(text: str) -> bool:
    try:
        torch.device(text)
    except RuntimeError:
        return False
    return True


def attributes(value: Any) -> dict[str, Any]:
    """Return the attributes of an object that are settings, by name."""
    children = dict(value.named_children()) if isinstance(value, nn.Module) else {}
    try:
        arguments = {n: getattr(value, n) for n in inspect.signature(type(value)).parameters}
    except Exception:  # no signature, another name, or a property that fails
        arguments = {}
        if isinstance(value, nn.Module) or callable(value):
            arguments = {n: v for n, v in getattr(value, "__dict__", {}).items() if n[0] != "_"}
            arguments.pop("training", None)  # mode of a module
    return arguments | children


def differences(settings: Settings, saved: Settings) -> list[str]:
    """Return the names of settings that differ.

    A name that only one of both has is a setting of another version of a class, and no difference.
    The settings in an object of another class do not count.
    """
    differing = [n for n, now in settings.items() if n in saved and not _alike(now, saved[n])]
    parents = tuple(f"{name}." for name in differing)
    return [name for name in differing if not name.startswith(parents)]


def are_settings(value: Any) -> bool:
    """Return True if a value, such as one from a file, consists of settings by name."""
    return isinstance(value, dict) and all(
        isinstance(name, str)
        and (
            isinstance(setting, Scalar)
            or (isinstance(setting, list) and all(isinstance(n, float) for n in setting))
        )
        for name, setting in value.items()
    )


def _alike(now: Scalar | list[float], before: Scalar | list[float]) -> bool:
    if isinstance(now, float) and isinstance(before, float):
        return math.isclose(now, before, rel_tol=TOLERANCE)
    if isinstance(now, list) and isinstance(before, list) and len(now) == len(before):
        bound = TOLERANCE * max(now[0], before[0])
        return all(abs(a - b) <= bound for a, b in zip(now, before, strict=True))
    return now == before


def _all_settings(values: Mapping[Any, Any], name: str, seen: dict[int, Any]) -> Settings:
    settings: Settings = {}
    for key, value in values.items():
        settings |= settings_of(value, f"{name}.{str(key).lstrip('_')}", seen)
    return settings


def _container_settings(values: Any, name: str, seen: dict[int, Any]) -> Settings:
    """Return the settings of the items, and the items themselves or their number."""
    text = f"{len(values)} items"
    if len(values) > MAX_ITEMS:
        numbers = spread_rows(values, NUM_ELEMENTS) if isinstance(values, list | range) else values
        is_numeric = isinstance(values, Sequence) and all(isinstance(n, Real) for n in numbers)
        if not is_numeric:
            return {name: text}
        shape = f"({len(values)},)"
        return {**_array_settings(np.asarray(numbers), name), f"{name}.shape": shape}
    parts = list(values.values() if isinstance(values, Mapping) else values)
    is_simple = all(value is None or isinstance(value, bool | Real | str) for value in parts)
    if isinstance(values, Mapping):
        if all(isinstance(key, str | int) for key in values):
            # The order of plain values is often that of a set, which has none.
            keys = sorted(map(str, values)) if is_simple else map(str, values)
            text = f"{{{', '.join(keys)}}}"
        return {name: text} | _all_settings(values, name, seen)
    if is_simple:
        texts = [_text(value) for value in parts]
        texts = texts if isinstance(values, Sequence) else sorted(texts)  # sets have no order
        return {name: f"({', '.join(texts)})"}
    items = dict(enumerate(parts)) if isinstance(values, Sequence) else {}
    return {name: text} | _all_settings(items, name, seen)


def _text(value: Scalar) -> str:
    if isinstance(value, Real) and not isinstance(value, Integral):
        return f"{value:.6g}"  # other digits may be those of rounding
    return str(settings_of(value, "").get(""))


# Functions ----------------------------------------------------------------------------------------


def _function_settings(
    function: FunctionType, captured: dict[str, Any], name: str, seen: dict[int, Any]
) -> Settings:
    """Return a digest of the code of a user's function, and the plain values that it refers to."""
    code, module = function.__code__, function.__module__ or ""
    if module.startswith("tinyvae.") or "-packages" in code.co_filename:
        return _all_settings(captured, name, seen)
    for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # not yet assigned
            captured[variable] = cell.cell_contents
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    captured |= {str(index): value for index, value in enumerate(defaults)}
    for variable, value in list(captured.items()):
        if _is_plain(value):
            stored = getattr(value, "__dict__", {})
            captured |= {f"{variable}.{n}": v for n, v in stored.items() if n in code.co_names}
    reads = {n: function.__globals__.get(n) for n in _names(code, "LOAD_GLOBAL")}
    captured |= {n: v for n, v in reads.items() if isinstance(v, bool | Real | str)}
    # Values that change, such as a list that collects results or a counter, are no settings.
    counters = _names(code, "STORE_GLOBAL", "STORE_DEREF")
    values = {
        n: v
        for n, v in captured.items()
        if n not in counters and not isinstance(v, list | set | dict)
    }
    version = ".".join(map(str, sys.version_info[:2]))  # another one compiles to other code
    return {
        f"{name}.code (Python {version})": _code_digest(code),
        **_all_settings(values, name, seen),
    }


def _names(code: CodeType, *operations: str) -> list[str]:
    """Return the names of variables in some operations of the code and of functions in it."""
    names = {i.argval for i in get_instructions(code) if i.opname in operations}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names.update(_names(constant, *operations))
    return sorted(names)


def _code_digest(code: CodeType) -> str:
    def text(constant: Any) -> str:
        if isinstance(constant, CodeType):
            return _code_digest(constant)
        if isinstance(constant, frozenset):  # its order depends on the hash seed
            return str(sorted(map(repr, constant)))
        return repr(constant)

    parts = [code.co_code.hex(), *code.co_names, *map(text, code.co_consts)]
    return sha256("\n".join(parts).encode()).hexdigest()[:8]


# Arrays -------------------------------------------------------------------------------------------


def _array_settings(value: Any, name: str) -> Settings:
    """Return the shape of a tensor or an array, and a checksum of its numbers."""
    if isinstance(value, Tensor):
        is_dense = value.layout == torch.strided and not value.is_nested and not value.is_meta
        is_read = is_dense and not value.is_complex() and not value.is_quantized
    else:
        is_read = value.dtype.kind in "biuf"
    if not is_read:
        return {name: type(value).__name__}
    if value.ndim == 0:
        return settings_of(value.item(), name)
    shape = str(tuple(value.shape))
    return {name: "array", f"{name}.shape": shape, f"{name}.checksum": checksum(value)}


def checksum(values: Any) -> list[float]:
    """Return a mean size and weighted means of the numbers of a tensor or an array ``(N, ...)``.

    At most about a million numbers are read, spread over the examples. Other rounding, another
    dtype or another device change the result by less than ``TOLERANCE`` times its first entry.
    """
    width = max(1, math.prod(values.shape[1:]))
    rows = spread_rows(values, max(4, NUM_ELEMENTS // width))
    if isinstance(rows, np.ma.MaskedArray):
        rows = np.ma.filled(rows.astype(np.float64), np.nan)
    if isinstance(rows, np.ndarray):
        rows = torch.from_numpy(np.asarray(rows, dtype=np.float64))
    numbers = rows.detach().cpu().double().flatten()
    numbers = numbers[:: max(1, len(numbers) // (4 * NUM_ELEMENTS))]
    # On a log scale no column of a table outweighs the others. The size of NaN is arbitrary.
    sizes = numbers.nan_to_num(nan=-0.7).asinh()
    weights = (torch.arange(1, len(sizes) + 1, dtype=torch.float64) * GOLDEN).frac()
    weighted = F.pad(sizes * weights, (0, -len(sizes) % NUM_SUMS)).view(-1, NUM_SUMS)
    return [sizes.abs().mean().item(), *weighted.mean(0).tolist()] if len(sizes) else []
