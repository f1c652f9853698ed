"""Models as files: weights, and a description of the composition."""

import os
import re
from abc import ABC
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tinyvae.core.configurable import Configurable
from tinyvae.core.random import forked_rng
from tinyvae.errors import CheckpointError
from tinyvae.io import load_tensors, save_tensors
from tinyvae.models.serialization import (
    build_part,
    construct,
    describe_part,
    foreign_names,
    limited_size,
    rebuild_part,
    stored_config,
)

Model = TypeVar("Model", bound="SavableModel")


class SavableModel(Configurable, nn.Module, ABC):
    """A model of parts that a file can hold: its weights and a description of the parts."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and composition to one file (safetensors, no pickle), atomically.

        :meth:`load` reads every file that this method writes.

        Raises:
            TypeError: If a file cannot describe the composition, so that it would not load.
        """
        save_tensors(path, self.state_dict(), self.description())

    def description(self) -> dict[str, Any]:
        """Return the description of the composition that :meth:`save` writes, with its errors."""
        config = stored_config(self)
        parts = {name: describe_part(part) for name, part in config.items()}
        self._check_loadable(config)
        return {"model": type(self).__name__, "parts": parts}

    @classmethod
    def load(
        cls: type[Model],
        path: str | os.PathLike[str],
        *,
        parts: Iterable[type[nn.Module]] = (),
        replace: Mapping[str, nn.Module] | None = None,
    ) -> Model:
        """Read a model from a file or a checkpoint, on the CPU, in evaluation mode.

        Args:
            path: The file, written by :meth:`save` or by a checkpoint.
            parts: Your own classes that the file names.
            replace: Modules whose structure the file does not describe, by name:
                ``{"encoder.network": net}``. They get the file's weights.

        Raises:
            CheckpointError: If the file is damaged, hostile or does not fit.
            TypeError: If ``parts`` or ``replace`` holds anything but modules.
            ValueError: If ``replace`` names a module that the file describes.
        """
        tensors, info = load_tensors(path)
        if "state" in info:  # a checkpoint
            names = {name: name.removeprefix("model.") for name in tensors}
            tensors = {new: tensors[name] for name, new in names.items() if new != name}
        try:
            return _from_file(cls, tensors, info, tuple(parts), replace).eval()
        except (CheckpointError, RecursionError) as error:
            raise CheckpointError(f"{os.fspath(path)}: {error}") from error

    def _check_loadable(self, config: Mapping[str, Any]) -> None:
        """Raise unless the model that the file's reader builds has the same parts and tensors."""
        name = type(self).__name__
        owners: dict[nn.Parameter, str] = {}
        for key, parameter in self.named_parameters(remove_duplicate=False):
            if parameter in owners:
                raise TypeError(
                    f"'{owners[parameter]}' and '{key}' are one parameter, which a file cannot "
                    "describe: give each part its own, or save the state_dict"
                )
            owners[parameter] = key
        state, twin = self.state_dict(), self._twin(config, "meta")
        if extra := {key for key, _ in self.named_children()} - dict(twin.named_children()).keys():
            raise TypeError(
                f"a {name}'s file holds {tuple(config)}, got also {sorted(extra)}: remove it"
            )
        if _differences(twin, state):  # a constructor can depend on values, which meta has not
            twin = self._twin(config, "cpu")
        try:
            require_matching_state(twin, state)
        except CheckpointError as error:
            remedy = (
                "keep modules and parameters that the constructors do not create in parts of your "
                "own, or save the state_dict"
            )
            if any(REPARAMETRIZED.search(key) for key in state.keys() - twin.state_dict().keys()):
                remedy = (
                    "apply a parametrization such as spectral_norm in the constructor of a part of "
                    "your own, or remove it before saving, which keeps the weight, such as by "
                    "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"
                )
            raise TypeError(f"a file of this {name} would not load: {error}; {remedy}") from error
        layers, rebuilt = _layers(self), _layers(twin)
        for key in [key for key in layers | rebuilt if layers.get(key) != rebuilt.get(key)]:
            raise TypeError(
                f"a file of this {name} would load as another model: '{key}' is "
                f"{layers.get(key, 'missing')}, but the constructors make {rebuilt.get(key)}: make "
                "the change in the constructor of a part of your own, or save the state_dict"
            )

    def _twin(self, config: Mapping[str, Any], device: str) -> nn.Module:
        """Return the model that a file's reader builds."""
        with forked_rng(torch.device("cpu")):  # its error is about threads
            try:
                with torch.device(device), limited_size(len(self.state_dict())):
                    return type(self)(**{key: rebuild_part(part) for key, part in config.items()})
            except (AttributeError, RuntimeError, TypeError, ValueError) as error:
                raise TypeError(
                    f"a file of this {type(self).__name__} would not load, because its constructor "
                    f"fails for its config(): {error}"
                ) from error


def _layers(model: nn.Module) -> dict[str, str]:
    """Return the layers of torch in a model, with their settings, by name."""
    return {
        name: f"{type(layer).__name__}({layer.extra_repr()})"
        for name, layer in model.named_modules()
        if type(layer).__module__.startswith("torch.nn.modules.")
    }


# Names of the tensors of torch.nn.utils.parametrize, and of the older norms and pruning.
REPARAMETRIZED = re.compile(r"\.parametrizations\.|\.\w+_(orig|g|v)$")


def require_matching_state(
    model: nn.Module, tensors: Mapping[str, Tensor], *, allow_more: bool = False
) -> None:
    """Raise unless ``tensors`` are the state of ``model`` by name, shape and dtype.

    A tensor of floating dtype fits every floating dtype: the model gets that of the tensor.

    Args:
        model: The model.
        tensors: Tensors by name.
        allow_more: True to accept tensors that the model does not have.
    """
    differences = _differences(model, tensors)
    if allow_more:
        differences = [each for each in differences if each[1] is not None]
    if differences:
        name, expected, got = differences[0]
        raise CheckpointError(
            f"{len(differences)} tensors do not fit the model, first '{name:.200}': "
            f"expected {expected or 'none'}, got {got or 'none'}"
        )


def _differences(
    model: nn.Module, tensors: Mapping[str, Tensor]
) -> list[tuple[str, str | None, str | None]]:
    """Return names, expected and other kinds of the tensors that do not fit the model."""
    expected = {name: _kind(tensor) for name, tensor in model.state_dict().items()}
    kinds = {name: _kind(tensor) for name, tensor in tensors.items()}
    return [
        (name, expected.get(name), kinds.get(name))
        for name in sorted(expected.keys() | kinds.keys())
        if expected.get(name) != kinds.get(name)
    ]


def _kind(value: Any) -> str:
    """Return the shape of a tensor, and its dtype if it is not a floating one."""
    if not isinstance(value, Tensor):  # of get_extra_state
        return f"a {type(value).__name__}"
    if is_lazy(value):
        return "an uninitialized tensor"
    shape = str(tuple(value.shape))
    return shape if value.is_floating_point() else f"{shape} of {value.dtype}"


def _from_file(
    cls: type[Model],
    tensors: dict[str, Tensor],
    info: dict[str, Any],
    user_parts: tuple[type[nn.Module], ...],
    replace: Mapping[str, nn.Module] | None,
) -> Model:
    composition, name = info.get("parts"), cls.__name__
    if info.get("model") != name or not isinstance(composition, dict):
        raise CheckpointError(f"expected the file of a {name}, got {info.get('model')!r:.80}")

    def build() -> Model:
        with limited_size(len(tensors)):
            arguments = {
                key: build_part(description, user_parts, replace, name=key)
                for key, description in composition.items()
            }
            return construct(cls, arguments, f"the file's parts do not form a {name}")

    # A file can claim any number of weights. Sizes are compared before memory is allocated.
    with torch.device("meta"):
        require_matching_state(build(), tensors, allow_more=True)
    unused = set(replace or ()) - foreign_names(composition)
    if unused:
        raise ValueError(
            f"replace names {sorted(unused)}, whose structure the file describes: expected names "
            f"from {sorted(foreign_names(composition))}"
        )
    with forked_rng(torch.device("cpu")):
        model = build()
    require_matching_state(
        model, tensors
    )  # also tensors that constructors make only of real values
    floating = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
    if floating:
        model.to(dtype=floating[0])
    model.load_state_dict(tensors, assign=True)
    return model
