"""Models as files: weights, and the parts that they are composed of."""

import os
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tinyvae import files, parts
from tinyvae.scopes import forked_rng

__all__ = ["describe", "load", "save"]

Model = TypeVar("Model", bound=nn.Module)


def save(model: nn.Module, config: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write weights and composition of a model to one file.

    Args:
        model: The model.
        config: Arguments that build an equal one.
        path: The file.
    """
    files.save_tensors(path, model.state_dict(), describe(model, config))


def describe(model: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of a model besides its weights.

    Args:
        model: The model.
        config: Arguments that build an equal one.

    Raises:
        TypeError: If a file could not say how the parts hang together.
    """
    _check_savable(model, config)
    composition = {name: parts.describe(part) for name, part in config.items()}
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


def load(
    cls: type[Model],
    path: str | os.PathLike[str],
    own_parts: tuple[type[nn.Module], ...],
    replace: Mapping[str, nn.Module] | None,
) -> Model:
    """Read a model that :func:`save` or a checkpoint wrote, on the CPU, in evaluation mode."""
    tensors, info = files.load_tensors(path)
    if "state" in info:
        tensors = _within(tensors, "model.")
    try:
        return _from_file(cls, tensors, info, own_parts, replace).eval()
    except (files.CheckpointError, RecursionError) as error:
        raise files.CheckpointError(f"{os.fspath(path)}: {error}") from error


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
        raise files.CheckpointError(f"expected the file of a {name}, got {info.get('model')!r:.80}")

    def build() -> Model:
        built = {
            part: parts.build(description, own_parts, replace, name=part)
            for part, description in composition.items()
        }
        try:
            return cls(**built)
        except (TypeError, ValueError) as error:
            raise files.CheckpointError(f"the file's parts make no {name}: {error}") from error

    # Sizes are compared before anything is allocated: a file may claim any number of weights.
    with torch.device("meta"):
        parts.matching_state(build(), tensors)
    unused = set(replace or ()) - parts.foreign_names(composition)
    if unused:
        raise ValueError(
            f"replace names {sorted(unused)}, which are no foreign modules of this file: expected "
            f"of {sorted(parts.foreign_names(composition))}"
        )
    with forked_rng(torch.device("cpu")):
        model = build()
    floating = [t.dtype for t in tensors.values() if t.is_floating_point()]
    if floating:
        model.to(dtype=floating[0])
    model.load_state_dict(tensors, assign=True)
    return model
