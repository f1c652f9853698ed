"""The parts that a file may name, and their description in JSON.

A file describes a composition by the names of its parts and the arguments that built them. Only
the public parts of the library, and classes handed over by the reader, are ever looked up: no
import path is followed.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from numbers import Integral, Real
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import nn

from tinyvae import encoders, flows, likelihoods, networks, priors, quantization
from tinyvae.encoders import Encoder, NetworkEncoder
from tinyvae.files import CheckpointError
from tinyvae.flows import NormalizingFlow
from tinyvae.likelihoods import Distance, Likelihood, Positive
from tinyvae.networks import Network
from tinyvae.priors import Prior

__all__ = ["PARTS", "build", "describe"]

Part: TypeAlias = Distance | Encoder | Likelihood | Network | NormalizingFlow | Positive | Prior
BASES: tuple[type[nn.Module], ...] = (
    Distance,
    Encoder,
    Likelihood,
    Network,
    NetworkEncoder,
    NormalizingFlow,
    Positive,
    Prior,
)


def _public_parts(room: ModuleType) -> Iterator[type[nn.Module]]:
    """Classes that a room names in its ``__all__`` and that a model is made of."""
    for name in room.__all__:
        value = getattr(room, name)
        # By the order of resolution: issubclass of abstract classes takes 0.1 s for all of them.
        if isinstance(value, type) and value not in BASES and set(BASES) & set(value.__mro__):
            yield value


ROOMS = (encoders, flows, likelihoods, networks, priors, quantization)
PARTS: tuple[type[nn.Module], ...] = tuple(chain.from_iterable(map(_public_parts, ROOMS)))
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ELU,
    nn.GELU,
    nn.LeakyReLU,
    nn.ReLU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Tanh,
)


def describe(value: Any) -> Any:
    """Describe a part, or an argument of one, in JSON.

    Args:
        value: A part with ``config()``, any other module (described as foreign: its weights are
            saved, its structure is not), a number, string, None, or a sequence of these.

    Raises:
        TypeError: If the value has no description.

    Example:
        >>> describe(StandardNormal(8))
        {'part': 'StandardNormal', 'config': {'latent_shape': [8]}}
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):  # numpy's too
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Sequence):
        return [describe(item) for item in value]
    if isinstance(value, type) and issubclass(value, nn.Module):
        return {"class": value.__name__}
    if isinstance(value, Part):
        config = {name: describe(argument) for name, argument in _config(value).items()}
        return {"part": type(value).__name__, "config": config}
    if isinstance(value, nn.Module):
        return {"foreign": type(value).__name__}
    raise TypeError(
        f"cannot describe {value!r} in a file: expected a number, a string, a sequence of these, "
        "a module, or a class of modules such as an activation"
    )


def _config(part: Part) -> dict[str, Any]:
    config = part.config()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(type(part)).parameters
    expected = {name for name, p in parameters.items() if p.kind not in variadic}
    if set(config) != expected:
        raise TypeError(
            f"{type(part).__name__}.config() must give every argument of the constructor, "
            f"{sorted(expected)}, got {sorted(config)}: def config(self): return "
            + "{"
            + ", ".join(f'"{name}": self.{name}' for name in sorted(expected))
            + "}"
        )
    return config


def build(
    description: Any,
    parts: Iterable[type[nn.Module]] = (),
    replace: Mapping[str, nn.Module] | None = None,
    *,
    name: str = "",
) -> Any:
    """Build what :func:`describe` described.

    Args:
        description: The description.
        parts: Classes that it may name besides those of the library.
        replace: Modules to put in place of foreign ones, by their names in the model.
        name: Name in the model of what is built.

    Raises:
        CheckpointError: If the description names what is not known or cannot be built.

    Example:
        >>> build({"part": "StandardNormal", "config": {"latent_shape": [8]}})
        StandardNormal((8,))
    """
    match description:
        case {"part": str(part), "config": dict(config)}:
            cls = _look_up(part, (*PARTS, *parts), name)
            arguments = {
                key: build(value, parts, replace, name=f"{name}.{key}".lstrip("."))
                for key, value in config.items()
            }
            return _construct(cls, arguments, name)
        case {"class": str(cls_name)}:
            return _look_up(cls_name, (*ACTIVATIONS, *parts), name)
        case {"foreign": str(foreign)}:
            if replace is None or name not in replace:
                raise CheckpointError(
                    f"the file has the weights of '{name}' (a {foreign}) but not its structure: "
                    f"give a module of equal structure, replace={{'{name}': module}}"
                )
            return replace[name]
        case list(items):
            return tuple(
                build(item, parts, replace, name=f"{name}.{place}")
                for place, item in enumerate(items)
            )
        case None | bool() | int() | float() | str():
            return description
    raise CheckpointError(f"'{name}' is described by what is no part: {description!r:.200}")


def foreign_names(composition: Mapping[str, Any]) -> set[str]:
    """Names of the modules that a composition does not describe, for ``replace``."""
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
                pending += [(f"{name}.{place}", item) for place, item in enumerate(items)]
    return names


def _look_up(part: str, classes: Sequence[type[nn.Module]], name: str) -> type[nn.Module]:
    by_name = {cls.__name__: cls for cls in classes}
    if part not in by_name:
        raise CheckpointError(
            f"the file names an unknown part '{part}' as '{name}', expected one of "
            f"{sorted(by_name)}: hand your own classes over, parts=[{part}]"
        )
    return by_name[part]


def _construct(cls: type[nn.Module], arguments: dict[str, Any], name: str) -> nn.Module:
    try:
        return cls(**arguments)
    except (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{cls.__name__} ('{name}') cannot be built of what the file says: {error}"
        ) from error


def matching_state(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise unless ``tensors`` are the state of ``model`` by name and shape."""
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    differing = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"{len(differing)} tensors do not fit the model, first '{name}': "
            f"expected {expected.get(name, 'none')}, got {found.get(name, 'none')}"
        )
