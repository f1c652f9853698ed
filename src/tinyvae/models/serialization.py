"""Descriptions of the parts of a model, in JSON.

A description consists of the names of the parts and of the arguments that built them. Only the
library's public parts, and classes that the reader passes in, are looked up. No import path is
followed.
"""

import itertools
import math
import reprlib
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, TypeAlias, TypeVar, get_args

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from tinyvae import encoders, flows, likelihoods, networks, priors
from tinyvae.core.configurable import Configurable, argument_names
from tinyvae.encoders import Encoder, NetworkEncoder
from tinyvae.errors import CheckpointError
from tinyvae.flows import NormalizingFlow
from tinyvae.likelihoods import Distance, Likelihood, Mechanism, PositiveParameter
from tinyvae.networks import Decoder, Network
from tinyvae.priors import Prior

Built = TypeVar("Built", bound=nn.Module)
Part: TypeAlias = (
    Decoder
    | Distance
    | Encoder
    | Likelihood
    | Mechanism
    | Network
    | NormalizingFlow
    | PositiveParameter
    | Prior
)
BASES: tuple[type[nn.Module], ...] = (*get_args(Part), NetworkEncoder)
PARTS: tuple[type[nn.Module], ...] = tuple(
    value
    for package in (encoders, flows, likelihoods, networks, priors)
    for value in vars(package).values()
    # The method resolution order is used, because issubclass with abstract classes takes 0.1 s.
    if isinstance(value, type) and value not in BASES and set(BASES) & set(value.__mro__)
)
ACTIVATIONS = (nn.ELU, nn.GELU, nn.LeakyReLU, nn.ReLU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Tanh)


def describe_part(value: Any) -> Any:
    """Describe a part, or an argument of one, in JSON.

    Args:
        value: A part with ``config()``, any other module, a number, string, None, or a sequence of
            these. Other modules are called foreign: a file holds their weights, but not their
            structure.

    Raises:
        TypeError: If the value cannot be described.

    Example:
        >>> describe_part(StandardNormal(8))
        {'part': 'StandardNormal', 'config': {'latent_dim': 8}}
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, Integral):  # also NumPy's
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return number if math.isfinite(number) else {"float": str(number)}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [describe_part(item) for item in value]
    if isinstance(value, type) and issubclass(value, nn.Module):
        return {"class": value.__name__}
    if isinstance(value, Part):
        config = {name: describe_part(argument) for name, argument in part_config(value).items()}
        return {"part": type(value).__name__, "config": config}
    if isinstance(value, nn.Module):
        return {"foreign": type(value).__name__}
    raise TypeError(
        f"cannot describe {value!r} in a file: expected a number, a string, a sequence of these, "
        "a module, or a class of modules such as an activation"
    )


def stored_config(part: Configurable) -> dict[str, Any]:
    """Return ``config()`` of a part or a model, or raise with the remedy if it fails."""
    try:
        return part.config()
    except AttributeError as error:
        raise TypeError(
            f"a file of {type(part).__name__} needs the arguments that built it, but "
            f"{error}: store each argument under its name, self.{error.name} = {error.name}, or "
            "define config(self) that returns them by name"
        ) from error


def part_config(part: Part) -> dict[str, Any]:
    """Return the arguments that built a part, checked against its constructor's signature."""
    config = stored_config(part)
    expected = set(argument_names(type(part)))
    if set(config) != expected:
        raise TypeError(
            f"{type(part).__name__}.config() must return every argument of the constructor, "
            f"{sorted(expected)}, got {sorted(config)}"
        )
    return config


def build_part(
    description: Any,
    parts: Collection[type[nn.Module]] = (),
    replace: Mapping[str, nn.Module] | None = None,
    *,
    name: str = "",
) -> Any:
    """Build a part from its description, the inverse of :func:`describe_part`.

    Args:
        description: The description.
        parts: Classes that it may name in addition to the library's.
        replace: Modules for the foreign ones, by their names in the model.
        name: Name of the part in the model.

    Raises:
        CheckpointError: If the description names an unknown part or cannot be built.
        TypeError: If ``parts`` or ``replace`` holds anything but modules.

    Example:
        >>> build_part({"part": "StandardNormal", "config": {"latent_dim": 8}})
        StandardNormal((8,))
    """
    match description:
        case {"part": str(part), "config": dict(config)}:
            cls = _look_up(part, PARTS, parts, name)
            arguments = {
                key: build_part(value, parts, replace, name=f"{name}.{key}".lstrip("."))
                for key, value in config.items()
            }
            failure = f"{part} ('{name}') cannot be built from the file's arguments"
            return construct(cls, arguments, failure)
        case {"float": "inf" | "-inf" | "nan" as word}:
            return float(word)
        case {"class": str(cls_name)}:
            return _look_up(cls_name, ACTIVATIONS, parts, name)
        case {"foreign": str(foreign)}:
            if replace is None or name not in replace:
                raise CheckpointError(
                    f"the file has the weights of '{name}' (a {foreign}) but not its structure: "
                    f"give a module of equal structure, replace={{'{name}': module}}"
                )
            if not isinstance(replace[name], nn.Module):
                raise TypeError(f"replace expects a module for '{name}', got {replace[name]!r:.80}")
            return replace[name]
        case list(items):
            return tuple(
                build_part(item, parts, replace, name=f"{name}.{index}")
                for index, item in enumerate(items)
            )
        case None | bool() | int() | float() | str():
            return description
    raise CheckpointError(f"'{name}' has an invalid description: {reprlib.repr(description)}")


def rebuild_part(value: Any) -> Any:
    """Build a part again from its configuration, as a reader of its file does.

    Foreign modules are used as they are.
    """
    if isinstance(value, Part):
        config = {name: rebuild_part(argument) for name, argument in part_config(value).items()}
        return type(value)(**config)
    if isinstance(value, (list, tuple)):
        return tuple(rebuild_part(item) for item in value)
    return value


def foreign_names(composition: Mapping[str, Any]) -> set[str]:
    """Return the names of the foreign modules in a composition."""
    names = set()
    pending = list(composition.items())
    while pending:
        name, value = pending.pop()
        match value:
            case {"foreign": str()}:
                names.add(name)
            case {"part": str(), "config": dict(config)}:
                pending += [(f"{name}.{key}", argument) for key, argument in config.items()]
            case list(items):
                pending += [(f"{name}.{index}", item) for index, item in enumerate(items)]
    return names


def _look_up(
    part: str, known: Collection[type[nn.Module]], parts: Collection[type[nn.Module]], name: str
) -> type[nn.Module]:
    for cls in parts:  # a file calls what it names
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise TypeError(f"parts expects subclasses of torch.nn.Module, got {cls!r:.80}")
    by_name = {cls.__name__: cls for cls in (*known, *parts)}
    if part not in by_name:
        raise CheckpointError(
            f"the file names an unknown part '{part:.80}' as '{name}', expected one of "
            f"{sorted(by_name)}: pass your own classes as parts=[{part:.80}]"
        )
    return by_name[part]


def construct(cls: type[Built], arguments: Mapping[str, Any], failure: str) -> Built:
    """Call a constructor with arguments from a file. Its error becomes a CheckpointError."""
    try:
        if unknown := sorted(arguments.keys() - argument_names(cls)):
            raise TypeError(f"got unknown arguments {unknown!r:.80}")
        return cls(**arguments)
    except (CheckpointError, ImportError, RecursionError):
        raise
    except Exception as error:  # of any kind: the arguments may be anything
        raise CheckpointError(f"{failure}: {error}") from error


class _FewDimensions(TorchFunctionMode):
    """Raise CheckpointError if a tensor has more dimensions than torch's operations take.

    With thousands of dimensions, some operations run for hours before they fail.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dim() > 64:
            raise CheckpointError(f"expected tensors of at most 64 dimensions, got {result.dim()}")
        return result


@contextmanager
def limited_size(num_tensors: int) -> Iterator[None]:
    """Limit the size of the modules that this thread builds in the block.

    A description of a few bytes can name any number of layers. A model may have at most 1,000
    modules, parameters and buffers, and 10 more for each of the file's tensors, but not more than
    100,000.

    Raises:
        CheckpointError: If it has more. It is raised while the model is built.
    """
    thread, limit = threading.get_ident(), min(1_000 + 10 * num_tensors, 100_000)
    count = itertools.count(1)

    def check(*_: Any) -> None:
        if threading.get_ident() == thread and next(count) > limit:
            raise CheckpointError(
                f"the file describes a model of more than {limit:,} modules, parameters and "
                f"buffers, but holds {num_tensors:,} tensors"
            )

    handles = (
        register_module_module_registration_hook(check),
        register_module_parameter_registration_hook(check),
        register_module_buffer_registration_hook(check),
    )
    try:
        with _FewDimensions():
            yield
    finally:
        for handle in handles:
            handle.remove()
