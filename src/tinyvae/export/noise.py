r"""Random draws as functions of an input.

The functions of torch that draw random numbers are replaced while a part runs, so that they read
standard normal numbers :math:`\epsilon` from the input. Uniform and exponential ones are
:math:`\Phi(\epsilon)` and :math:`-\log \Phi(\epsilon)`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Uniform draws are inside (0, 1), as those of torch are in practice.
SMALLEST = 2.0**-24


def _uniform(noise: Tensor) -> Tensor:
    return (0.5 + 0.5 * torch.erf(noise / math.sqrt(2))).clamp(SMALLEST, 1 - SMALLEST)


def _exponential(noise: Tensor) -> Tensor:
    return -_uniform(noise).log()


# Functions that draw, and the distribution of their draws.
DRAWING: Mapping[Any, Callable[[Tensor], Tensor] | None] = {
    torch.randn: lambda noise: noise,
    torch.randn_like: lambda noise: noise,
    torch.Tensor.normal_: lambda noise: noise,
    torch.rand: _uniform,
    torch.rand_like: _uniform,
    torch.Tensor.uniform_: _uniform,
    torch.Tensor.exponential_: _exponential,
    torch.bernoulli: _uniform,
    torch.multinomial: None,
    torch.poisson: None,
    torch._standard_gamma: None,
    torch.randint: None,
    torch.randperm: None,
}


@dataclass(frozen=True)
class RandomDraw:
    """Random draw. Its ``shape`` leaves out the batch, which is its dimension ``batch_dim``."""

    shape: tuple[int, ...]
    batch_dim: int

    @property
    def size(self) -> int:
        """Number of random numbers per example."""
        return math.prod(self.shape)


class RecordedShapes(TorchFunctionMode):
    """Record the shapes of all random draws of the block."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in DRAWING:
            if DRAWING[func] is None:
                raise NotImplementedError(f"{func.__name__} cannot be computed from normal numbers")
            self.shapes.append(tuple(result.shape))
        return result


class ExplicitNoise(TorchFunctionMode):
    """Read all random draws of the block from ``noise``, ``(B, n)``, in their order."""

    def __init__(self, noise: Tensor, draws: Sequence[RandomDraw]) -> None:
        self.noise, self.draws = noise, iter(draws)
        self.used = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        transform = DRAWING.get(func)
        if transform is None:
            return func(*args, **(kwargs or {}))
        draw = next(self.draws)
        end = self.used + draw.size
        noise = self.noise[:, self.used : end].reshape(-1, *draw.shape)  # (B, *shape)
        self.used = end
        values = transform(noise.movedim(0, draw.batch_dim))
        if func is torch.bernoulli:
            return (values < args[0]).to(args[0].dtype)
        return values


def find_draws(run: Callable[[int], Any], sizes: tuple[int, int] = (3, 5)) -> list[RandomDraw]:
    """Return the draws of a function of the batch size, from two runs.

    Raises:
        NotImplementedError: If a draw cannot be computed from normal numbers, or has no batch.
    """
    shapes = []
    for size in sizes:
        with RecordedShapes() as recorded:
            run(size)
        shapes.append(recorded.shapes)
    draws = []
    for first, second in zip(*shapes, strict=True):
        pairs = zip(first, second, strict=True)
        differing = [d for d, pair in enumerate(pairs) if pair == sizes]
        if len(differing) != 1 or len(first) != len(second):
            raise NotImplementedError(
                f"a draw of shape {first} for {sizes[0]} examples has no batch dimension"
            )
        (batch_dim,) = differing
        draws.append(RandomDraw(first[:batch_dim] + first[batch_dim + 1 :], batch_dim))
    return draws
