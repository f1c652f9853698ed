"""Copies of a part: with noise on its parameters, or built again of its description."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tinyvae.errors import CheckpointError
from tinyvae.models.serialization import PARTS, build_part, describe_part
from tinyvae.testing.contract import ContractError, require

Module = TypeVar("Module", bound=nn.Module)

STEP = 1e-6


def cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Floating-point numbers as others, rounded to float32; classes as they are."""
    return value.float().to(dtype) if value.is_floating_point() else value


@torch.no_grad()
def perturbed(part: Module, spread: float) -> Module:
    """A copy in float64 and evaluation mode, with noise on the parameters that are trained.

    Its numbers are those of float32, so that a copy in that precision is the same function.
    """
    part = copy.deepcopy(part).float().eval()
    for parameter in part.parameters():
        if parameter.requires_grad:
            inputs = parameter[0].numel() if parameter.dim() > 1 else 1
            parameter.add_(torch.randn_like(parameter), alpha=spread / math.sqrt(inputs))
    return part.double()


def require_gradients(
    part: nn.Module, names: Sequence[str], sources: Sequence[tuple[str, Tensor]]
) -> None:
    """Raise unless every parameter has a gradient of one of the sources."""
    parameters = [part.get_parameter(name) for name in names]
    reached = [False] * len(names)
    for _, source in sources:
        if source.requires_grad and parameters:
            gradients = torch.autograd.grad(
                source.sum(), parameters, allow_unused=True, retain_graph=True
            )
            found = [g is not None and bool((g != 0).any()) for g in gradients]
            reached = [a or b for a, b in zip(reached, found, strict=True)]
    missing = [name for name, hit in zip(names, reached, strict=True) if not hit]
    said = " or ".join(source for source, _ in sources)
    require(not missing, f"{said}: no gradient reaches {', '.join(missing)}")


def require_slope(function: Callable[[], Tensor], at: Sequence[Tensor], what: str) -> None:
    """Raise unless the gradient along a random direction agrees with a difference."""
    value = function()
    gradients: Sequence[Tensor | None] = [None] * len(at)
    if value.requires_grad:
        gradients = torch.autograd.grad(value, at, allow_unused=True)
    directions = [torch.randn_like(tensor) for tensor in at]
    slope = sum(
        (g * d).sum().item() for g, d in zip(gradients, directions, strict=True) if g is not None
    )
    ends = []
    with torch.no_grad():
        for step in (STEP, -2 * STEP):
            for tensor, direction in zip(at, directions, strict=True):
                tensor.add_(direction, alpha=step)
            ends.append(function().item())
        for tensor, direction in zip(at, directions, strict=True):
            tensor.add_(direction, alpha=STEP)
    expected = (ends[0] - ends[1]) / (2 * STEP)
    require(
        abs(slope - expected) <= 1e-4 * (1 + abs(expected)),
        f"log_prob: its gradient in {what} is {slope:.6g} along a direction, expected "
        f"{expected:.6g}, the difference",
    )


def twin_of(part: nn.Module) -> Any:
    """Build the part again of its description and its state.

    Modules that a description knows by name only are copied.
    """
    try:
        description = describe_part(part)
        found = list(_walk(part, ""))
        foreign = {n: copy.deepcopy(v) for n, v in found if "foreign" in describe_part(v)}
        own = {v if isinstance(v, type) else type(v) for n, v in found if n not in foreign}
        classes = own - set(PARTS)
        twin: nn.Module = build_part(description, classes, foreign)
    except (CheckpointError, TypeError) as error:
        raise ContractError(f"config(): a file cannot describe it: {error}") from error
    require(
        describe_part(twin) == description,
        f"config(): {description} comes back as {describe_part(twin)}",
    )
    twin = twin.float().double().eval()
    try:
        twin.load_state_dict(part.state_dict(), assign=True)
    except RuntimeError as error:
        raise ContractError(f"config(): what it builds has another state_dict: {error}") from error
    require(repr(twin) == repr(part), f"repr: {part} comes back as {twin}")
    return twin


def _walk(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """All that a file describes or names, by the names that it gives them."""
    match describe_part(value):
        case {"part": str()}:
            yield name, value
            for key, argument in value.config().items():
                yield from _walk(argument, f"{name}.{key}".lstrip("."))
        case {"foreign": str()} | {"class": str()}:
            yield name, value
        case list():
            for place, item in enumerate(value):
                yield from _walk(item, f"{name}.{place}")
