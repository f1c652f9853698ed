"""Requirements that all contract checks share."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tinyvae.errors import CheckpointError, TinyVAEError
from tinyvae.models.serialization import PARTS, build_part, describe_part

Module = TypeVar("Module", bound=nn.Module)

STEP = 1e-6  # of finite differences


class ContractError(TinyVAEError, AssertionError):
    """Broken contract: a part does not do what its interface promises."""


def require(condition: bool | Tensor, message: str) -> None:
    """Raise :class:`ContractError` unless ``condition`` holds."""
    if not bool(condition):
        raise ContractError(message)


def require_close(got: Tensor, expected: Tensor, what: str, tolerance: float = 1e-10) -> None:
    """Raise unless ``|got - expected| / (1 + |expected|)`` is at most ``tolerance``."""
    got, expected = got.detach().double(), expected.detach().double()
    error = torch.max((got - expected).abs() / (1 + expected.abs())).item()
    require(error <= tolerance, f"{what}: differs by {error:.1e}, expected at most {tolerance:g}")


def require_shape(what: str, value: Tensor, expected: Sequence[int]) -> None:
    """Raise unless a tensor has the expected shape."""
    got = tuple(value.shape)
    require(got == tuple(expected), f"{what}: expected shape {tuple(expected)}, got {got}")


def require_gradients(
    part: nn.Module, names: Sequence[str], sources: Sequence[tuple[str, Tensor]]
) -> None:
    """Raise unless every named parameter gets a gradient from one of the sources."""
    parameters = [part.get_parameter(name) for name in names]
    reached = [False] * len(names)
    for _, source in sources:
        if source.requires_grad and parameters:
            gradients = torch.autograd.grad(
                source.sum(), parameters, allow_unused=True, retain_graph=True
            )
            nonzero = [g is not None and bool((g != 0).any()) for g in gradients]
            reached = [a or b for a, b in zip(reached, nonzero, strict=True)]
    missing = [name for name, hit in zip(names, reached, strict=True) if not hit]
    all_sources = " or ".join(source for source, _ in sources)
    require(not missing, f"{all_sources}: no gradient reaches {', '.join(missing)}")


def require_slope(function: Callable[[], Tensor], tensors: Sequence[Tensor], what: str) -> None:
    """Raise unless the gradient along a random direction agrees with a finite difference."""
    value = function()
    gradients: Sequence[Tensor | None] = [None] * len(tensors)
    if value.requires_grad:
        gradients = torch.autograd.grad(value, tensors, allow_unused=True)
    directions = [torch.randn_like(tensor) for tensor in tensors]
    slope = sum(
        (g * d).sum().item() for g, d in zip(gradients, directions, strict=True) if g is not None
    )
    values = []
    with torch.no_grad():
        for step in (STEP, STEP, -3 * STEP, -STEP):  # at STEP, 2 STEP, -STEP, -2 STEP
            for tensor, direction in zip(tensors, directions, strict=True):
                tensor.add_(direction, alpha=step)
            values.append(function().item())
        for tensor, direction in zip(tensors, directions, strict=True):
            tensor.add_(direction, alpha=2 * STEP)
    # Five-point difference, whose error is of fourth order in STEP.
    expected = (8 * (values[0] - values[2]) - (values[1] - values[3])) / (12 * STEP)
    require(
        abs(slope - expected) <= 1e-4 * (1 + abs(expected)),
        f"log_prob: its gradient in {what} is {slope:.6g} along a direction, expected "
        f"{expected:.6g}, the finite difference",
    )


def require_gradcheck(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """Raise unless gradients of a log density agree with finite differences."""
    try:
        torch.autograd.gradcheck(function, tuple(inputs))
    except RuntimeError as error:
        raise ContractError(f"log_prob: gradients disagree with differences: {error}") from error


def cast(value: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return floating-point numbers in a dtype, rounded to float32 first. Integers stay."""
    return value.float().to(dtype) if value.is_floating_point() else value


@torch.no_grad()
def perturbed(part: Module, spread: float) -> Module:
    """Return a copy in float64 and evaluation mode, with noise on the trainable parameters.

    All numbers are exact in float32, so that a copy in float32 is the same function.
    """
    part = copy.deepcopy(part).float().eval()
    for parameter in part.parameters():
        if parameter.requires_grad:
            inputs = parameter[0].numel() if parameter.dim() > 1 else 1
            parameter.add_(torch.randn_like(parameter), alpha=spread / math.sqrt(inputs))
    return part.double()


def rebuilt(part: Module) -> Module:
    """Return a part that is built from the description and the state of another one.

    Modules that the description only names are copied.
    """
    try:
        description = describe_part(part)
        values = list(_walk(part, ""))
        foreign = {n: copy.deepcopy(v) for n, v in values if "foreign" in describe_part(v)}
        classes = {v if isinstance(v, type) else type(v) for n, v in values if n not in foreign}
        twin: Module = build_part(description, classes - set(PARTS), foreign)
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
        raise ContractError(
            f"config(): the rebuilt part has another state_dict: {error}"
        ) from error
    require(repr(twin) == repr(part), f"repr: {part} comes back as {twin}")
    return twin


def _walk(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield each value that a file describes or names, with its name in the file."""
    match describe_part(value):
        case {"part": str()}:
            yield name, value
            for key, argument in value.config().items():
                yield from _walk(argument, f"{name}.{key}".lstrip("."))
        case {"foreign": str()} | {"class": str()}:
            yield name, value
        case list():
            for index, item in enumerate(value):
                yield from _walk(item, f"{name}.{index}")
