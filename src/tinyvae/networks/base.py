"""What a network is: a module that knows its shapes. Checks and layers that all of them share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from tinyvae.core.configurable import Configurable

Activation: TypeAlias = Callable[[], nn.Module]

MAX_GROUPS = 8
MIN_CHANNELS_PER_GROUP = 4


class Network(Configurable, nn.Module, ABC):
    """A module that maps ``(N, *in_shape)`` to ``(N, *out_shape)``.

    Attributes:
        in_shape: Shape of one input.
        out_shape: Shape of one output.
    """

    in_shape: torch.Size
    out_shape: torch.Size

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, *in_shape)`` to ``(N, *out_shape)``."""

    def check_input(self, x: Tensor) -> None:
        """Raise unless ``x`` is ``(N, *in_shape)``."""
        if x.shape[1:] != self.in_shape:
            raise ValueError(
                f"{type(self).__name__} expects inputs of shape (N, *in_shape) with in_shape = "
                f"{tuple(self.in_shape)}, got {tuple(x.shape)}: reshape them, or build it for them"
            )

    def extra_repr(self) -> str:
        """Shapes, for ``repr``."""
        return f"{tuple(self.in_shape)} -> {tuple(self.out_shape)}"


class MapNetwork(Network):
    """Layers that take maps as they are."""

    layers: nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, *out_shape)``."""
        self.check_input(x)
        output: Tensor = self.layers(x)
        return output


class SeededNetwork(Network):
    """Layers of which the first are :func:`seed_layers`, and the last give ``(P, C, H, W)``."""

    layers: nn.Sequential

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(N, *in_shape)`` to ``(N, *out_shape)``."""
        self.check_input(z)
        takes_maps = isinstance(self.layers[0], nn.Conv2d)
        output: Tensor = self.layers(z if takes_maps else z.flatten(1))
        return output.view(-1, *self.out_shape)


# Checks of arguments ------------------------------------------------------------------------------


def positive_shape(shape: int | Sequence[int], name: str) -> torch.Size:
    """Return a shape, of one dimension where it is a number, all of whose sizes are positive."""
    size = torch.Size((shape,) if isinstance(shape, int) else shape)
    if not all(n >= 1 for n in size):
        raise ValueError(f"{name} expects sizes of at least 1, got {tuple(size)}")
    return size


def image_shape(shape: Sequence[int], name: str) -> torch.Size:
    """Return the shape of an image, ``(C, H, W)``."""
    size = positive_shape(shape, name)
    if len(size) != 3:
        raise ValueError(f"{name} expects (C, H, W), got {tuple(size)}")
    return size


def output_shape(shape: Sequence[int], name: str) -> torch.Size:
    """Return the shape of an image or of its parameters, ``(C, H, W)`` or ``(P, C, H, W)``."""
    size = positive_shape(shape, f"{name} out_shape")
    if len(size) < 3:
        raise ValueError(f"{name} expects out_shape (C, H, W) or (P, C, H, W), got {tuple(size)}")
    return size


def channel_sizes(channels: Sequence[int], name: str) -> torch.Size:
    """Return numbers of channels, of which there must be one at least."""
    if not channels:
        raise ValueError(f"{name} expects at least one number of channels, got none")
    return positive_shape(channels, f"{name} channels")


def activation_class(activation: Activation) -> Activation:
    """Return the class of an activation; an instance is refused."""
    if isinstance(activation, nn.Module) or not callable(activation):
        raise TypeError(f"expected the class of an activation, such as nn.Tanh, got {activation!r}")
    return activation


# Sizes and layers ---------------------------------------------------------------------------------


def halvings(size: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Heights and widths that ``count`` halvings (rounded up) pass through."""
    height, width = size
    sizes = [(height, width)]
    for _ in range(count):
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes.append((height, width))
    return sizes


def group_norm(channels: int, size: tuple[int, int]) -> nn.Module:
    """Normalize an example's channels in groups: at most eight, of four channels at least.

    A channel by itself would lose its mean over the image: all that a constant plane, such as a
    context's, adds to it. A single value would become zero whatever it is, so it is left alone.
    """
    if channels * size[0] * size[1] == 1:
        return nn.Identity()
    most = max(1, min(MAX_GROUPS, channels // MIN_CHANNELS_PER_GROUP))
    return nn.GroupNorm(next(n for n in range(most, 0, -1) if channels % n == 0), channels)


def layer_norm(width: int) -> nn.Module:
    """Normalize an example's features; a single one, which would become zero, is left alone."""
    return nn.Identity() if width == 1 else nn.LayerNorm(width)


def seed_layers(in_shape: torch.Size, seed_shape: tuple[int, int, int]) -> list[nn.Module]:
    """Layers from one input to the smallest map ``(C, h, w)`` of a decoder.

    A 1x1 convolution where the input is a map of that height and width, a linear layer otherwise.
    """
    if in_shape[1:] == seed_shape[1:]:
        return [nn.Conv2d(in_shape[0], seed_shape[0], 1)]
    width = torch.Size(seed_shape).numel()
    return [nn.Linear(in_shape.numel(), width), nn.Unflatten(1, seed_shape)]
