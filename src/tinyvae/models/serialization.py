"""Models as files: weights, and a description of the parts that a model is composed of.

A file describes a model by the names of its parts and the arguments that built them. Only the
library's public parts, and classes that the reader passes in, are ever looked up. No import path
is followed.
"""

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from numbers import Integral, Real
from types import ModuleType
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from tinyvae import encoders, flows, likelihoods, networks, priors
from tinyvae.core.random import forked_rng
from tinyvae.encoders import Encoder, NetworkEncoder
from tinyvae.errors import CheckpointError
from tinyvae.flows import NormalizingFlow
from tinyvae.io import load_tensors, save_tensors
from tinyvae.likelihoods import Distance, Likelihood, PositiveParameter
from tinyvae.networks import Network
from tinyvae.priors import Prior

Model = TypeVar("Model", bound=nn.Module)
Part: TypeAlias = (
    Distance | Encoder | Likelihood | Network | NormalizingFlow | PositiveParameter | Prior
)
BASES: tuple[type[nn.Module], ...] = (
    Distance,
    Encoder,
    Likelihood,
    Network,
    NetworkEncoder,
    NormalizingFlow,
    PositiveParameter,
    Prior,
)


def _public_parts(package: ModuleType) -> Iterator[type[nn.Module]]:
    """Yield the public classes of a package that a model is composed of."""
    for value in vars(package).values():
        # By the order of resolution: issubclass of abstract classes takes 0.1 s for all of them.
        if isinstance(value, type) and value not in BASES and set(BASES) & set(value.__mro__):
            yield value


PACKAGES = (encoders, flows, likelihoods, networks, priors)
PARTS: tuple[type[nn.Module], ...] = tuple(chain.from_iterable(map(_public_parts, PACKAGES)))
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


def describe_part(value: Any) -> Any:
    """Describe a part, or an argument of one, in JSON.

    Args:
        value: A part with ``config()``, any other module (described as foreign: its weights are
            saved, its structure is not), a number, string, None, or a sequence of these.

    Raises:
        TypeError: If the value has no description.

    Example:
        >>> describe_part(StandardNormal(8))
        {'part': 'StandardNormal', 'config': {'latent_dim': 8}}
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):  # numpy's too
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Sequence):
        return [describe_part(item) for item in value]
    if isinstance(value, type) and issubclass(value, nn.Module):
        return {"class": value.__name__}
    if isinstance(value, Part):
        config = {name: describe_part(argument) for name, argument in _config(value).items()}
        return {"part": type(value).__name__, "config": config}
    if isinstance(value, nn.Module):
        return {"foreign": type(value).__name__}
    raise TypeError(
        f"cannot describe {value!r} in a file: expected a number, a string, a sequence of these, "
        "a module, or a class of modules such as an activation"
    )


def _config(part: Part) -> dict[str, Any]:
    try:
        config = part.config()
    except AttributeError as error:
        raise TypeError(
            f"a file of {type(part).__name__} needs the arguments that built it, but "
            f"{error}: store each argument under its name, self.{error.name} = {error.name}, or "
            "define config(self), which returns them by name"
        ) from error
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(type(part)).parameters
    expected = {name for name, p in parameters.items() if p.kind not in variadic}
    if set(config) != expected:
        raise TypeError(
            f"{type(part).__name__}.config() must return every argument of the constructor, "
            f"{sorted(expected)}, got {sorted(config)}"
        )
    return config


def build_part(
    description: Any,
    parts: Iterable[type[nn.Module]] = (),
    replace: Mapping[str, nn.Module] | None = None,
    *,
    name: str = "",
) -> Any:
    """Build what :func:`describe_part` described.

    Args:
        description: The description.
        parts: Classes that it may name besides those of the library.
        replace: Modules to put in place of foreign ones, by their names in the model.
        name: Name in the model of what is built.

    Raises:
        CheckpointError: If the description names what is not known or cannot be built.

    Example:
        >>> build_part({"part": "StandardNormal", "config": {"latent_dim": 8}})
        StandardNormal((8,))
    """
    match description:
        case {"part": str(part), "config": dict(config)}:
            cls = _look_up(part, (*PARTS, *parts), name)
            arguments = {
                key: build_part(value, parts, replace, name=f"{name}.{key}".lstrip("."))
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
                build_part(item, parts, replace, name=f"{name}.{place}")
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


def save_model(model: nn.Module, config: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write weights and composition of a model to one file.

    Args:
        model: The model.
        config: Arguments that build an equal one.
        path: The file.
    """
    save_tensors(path, model.state_dict(), describe_model(model, config))


def describe_model(model: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of a model besides its weights.

    Args:
        model: The model.
        config: Arguments that build an equal one.

    Raises:
        TypeError: If a file could not say how the parts hang together.
    """
    _check_savable(model, config)
    composition = {name: describe_part(part) for name, part in config.items()}
    return {"model": type(model).__name__, "parts": composition}


def _check_savable(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Raise where a file could not say how the parts hang together."""
    if extra := {name for name, _ in model.named_children()} - config.keys():
        raise TypeError(
            f"a {type(model).__name__}'s file holds {tuple(config)}, got also {sorted(extra)}: "
            "remove it"
        )
    names: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter in names:
            raise TypeError(
                f"'{names[parameter]}' and '{name}' are one parameter, which a file cannot "
                "say: give each part its own, or save the state_dict"
            )
        names[parameter] = name


def load_model(
    cls: type[Model],
    path: str | os.PathLike[str],
    own_parts: tuple[type[nn.Module], ...],
    replace: Mapping[str, nn.Module] | None,
) -> Model:
    """Read a model that :func:`save_model` or a checkpoint wrote, on the CPU, in evaluation mode."""
    tensors, info = load_tensors(path)
    if "state" in info:
        tensors = _within(tensors, "model.")
    try:
        return _from_file(cls, tensors, info, own_parts, replace).eval()
    except (CheckpointError, RecursionError) as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error


def _within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _from_file(
    cls: type[Model],
    tensors: dict[str, Tensor],
    info: dict[str, Any],
    own_parts: tuple[type[nn.Module], ...],
    replace: Mapping[str, nn.Module] | None,
) -> Model:
    composition, name = info.get("parts"), cls.__name__
    if info.get("model") != name or not isinstance(composition, dict):
        raise CheckpointError(f"expected the file of a {name}, got {info.get('model')!r:.80}")

    def build() -> Model:
        built = {
            part: build_part(description, own_parts, replace, name=part)
            for part, description in composition.items()
        }
        try:
            return cls(**built)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"the file's parts make no {name}: {error}") from error

    # Sizes are compared before anything is allocated: a file may claim any number of weights.
    with torch.device("meta"):
        matching_state(build(), tensors)
    unused = set(replace or ()) - foreign_names(composition)
    if unused:
        raise ValueError(
            f"replace names {sorted(unused)}, which are no foreign modules of this file: expected "
            f"of {sorted(foreign_names(composition))}"
        )
    with forked_rng(torch.device("cpu")):
        model = build()
    floating = [t.dtype for t in tensors.values() if t.is_floating_point()]
    if floating:
        model.to(dtype=floating[0])
    model.load_state_dict(tensors, assign=True)
    return model
