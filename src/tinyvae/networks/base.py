"""The interface of networks, and the checks and layers that they share."""

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
        needs_out_shape: True if the network was built without an output shape. A model whose
            decoder it becomes then calls :meth:`build`.
    """

    in_shape: torch.Size
    out_shape: torch.Size
    needs_out_shape: bool = False

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, *in_shape)`` to ``(N, *out_shape)``."""

    def build(self, out_shape: Sequence[int]) -> None:
        """Create the layers that depend on the output shape.

        Their weights are drawn now, as the constructor draws them if it is given ``out_shape``.

        Raises:
            ValueError: If the network has an output shape already.
        """
        self.require_unbuilt()
        raise NotImplementedError(
            f"{type(self).__name__} must define build(out_shape), because it sets needs_out_shape"
        )

    def require_unbuilt(self) -> None:
        """Raise if the network has an output shape already."""
        if not self.needs_out_shape:
            raise ValueError(
                f"{type(self).__name__} has the output shape {tuple(self.out_shape)} already: make "
                "a new network"
            )

    def check_input(self, x: Tensor) -> None:
        """Raise unless ``x`` is ``(N, *in_shape)``."""
        if x.shape[1:] != self.in_shape:
            raise ValueError(
                f"{type(self).__name__} expects inputs of shape (N, *in_shape) with in_shape = "
                f"{tuple(self.in_shape)}, got {tuple(x.shape)}: reshape them, or build the network "
                "for them"
            )

    def extra_repr(self) -> str:
        """Return the shapes, for ``repr``."""
        return f"{tuple(self.in_shape)} -> {tuple(self.out_shape)}"


class MapNetwork(Network, ABC):
    """Base class of networks whose ``layers`` read maps."""

    layers: nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, *out_shape)``."""
        self.check_input(x)
        output: Tensor = self.layers(x)
        return output


class UpsamplingNetwork(Network, ABC):
    """Base class of networks from an input to a small map, and on to an image of any size.

    A subclass makes the layers in :meth:`make_layers`, which :meth:`build` calls.
    """

    layers: nn.Sequential

    def __init__(self, in_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.in_shape = positive_shape(in_shape, f"{type(self).__name__} in_shape")
        self._out_shape: torch.Size | None = None

    @property
    def out_shape(self) -> torch.Size:  # type: ignore[override]
        """Shape of one output, ``(C, H, W)`` or ``(P, C, H, W)``."""
        if self._out_shape is None:
            raise ValueError(
                f"{type(self).__name__} has no output shape yet: give it out_shape=, or compose a "
                "model of it, which sets the shape"
            )
        return self._out_shape

    @property
    def needs_out_shape(self) -> bool:  # type: ignore[override]
        """True if the network was built without an output shape."""
        return self._out_shape is None

    def build(self, out_shape: Sequence[int]) -> None:
        """Create all layers, for an output ``(C, H, W)`` or ``(P, C, H, W)``."""
        self.require_unbuilt()
        self._out_shape = output_shape(out_shape, type(self).__name__)
        self.layers = nn.Sequential(*self.make_layers(self._out_shape))

    @abstractmethod
    def make_layers(self, out_shape: torch.Size) -> list[nn.Module]:
        """Return the layers, from those of :func:`seed_layers` to one whose output is the image."""

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(N, *in_shape)`` to ``(N, *out_shape)``."""
        out_shape = self.out_shape
        self.check_input(z)
        takes_maps = isinstance(self.layers[0], nn.Conv2d)
        output: Tensor = self.layers(z if takes_maps else z.flatten(1))
        return output.view(-1, *out_shape)

    def extra_repr(self) -> str:
        """Return the shapes, for ``repr``."""
        if self._out_shape is None:
            return f"{tuple(self.in_shape)} -> out_shape of the model"
        return super().extra_repr()


def within_range(owner: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
    """Return the inputs of a network, clamped if ``owner`` is in evaluation mode.

    The limit is the fourth root of the largest number of their dtype, 4e9 in float32 and 1e77 in
    float64. Squares of activations, as in normalizations and densities, then stay finite, however
    far an input is from the data. Integers and float16, which has a small range, do not change.
    """
    inputs = (x,) if context is None else (x, context)
    return inputs if owner.training else tuple(map(_clamped, inputs))


def _clamped(values: Tensor) -> Tensor:
    if not values.is_floating_point() or values.dtype == torch.float16:
        return values
    limit = torch.finfo(values.dtype).max ** 0.25
    return values.clamp(-limit, limit)


# Checks of arguments ------------------------------------------------------------------------------


def positive_shape(shape: int | Sequence[int], name: str) -> torch.Size:
    """Return a shape, or raise if a size is less than 1. A number is a shape of one dimension."""
    size = torch.Size((shape,) if isinstance(shape, int) else shape)
    if not all(n >= 1 for n in size):
        raise ValueError(f"{name} expects sizes of at least 1, got {tuple(size)}")
    return size


def image_shape(shape: Sequence[int], name: str) -> torch.Size:
    """Return the shape of an image, or raise if it is not ``(C, H, W)``."""
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
    """Return numbers of channels. Raise if the list is empty or a number is below 1."""
    if not channels:
        raise ValueError(f"{name} expects at least one number of channels, got none")
    return positive_shape(channels, f"{name} channels")


def activation_class(activation: Activation) -> Activation:
    """Return the class of an activation, or raise if it is an instance."""
    if isinstance(activation, nn.Module) or not callable(activation):
        raise TypeError(f"expected the class of an activation, such as nn.Tanh, got {activation!r}")
    return activation


# Sizes and layers ---------------------------------------------------------------------------------


def halvings(size: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Return the heights and widths before and after each of ``count`` halvings (rounded up)."""
    height, width = size
    sizes = [(height, width)]
    for _ in range(count):
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes.append((height, width))
    return sizes


def group_norm(channels: int, size: tuple[int, int]) -> nn.Module:
    """Return a normalization of groups of channels: at most eight groups of at least four channels.

    A group of one channel would lose the channel's mean over the image. That mean is all that a
    constant plane, such as one of a context, changes. A map of a single value is not normalized,
    because it would always become zero.
    """
    if channels * size[0] * size[1] == 1:
        return nn.Identity()
    most = max(1, min(MAX_GROUPS, channels // MIN_CHANNELS_PER_GROUP))
    return nn.GroupNorm(next(n for n in range(most, 0, -1) if channels % n == 0), channels)


def layer_norm(width: int) -> nn.Module:
    """Return a normalization of an example's features. A single feature is not normalized."""
    return nn.Identity() if width == 1 else nn.LayerNorm(width)


def seed_layers(in_shape: torch.Size, seed_shape: tuple[int, int, int]) -> list[nn.Module]:
    """Return the layers from one input to the smallest map ``(C, h, w)`` of a decoder.

    They are a 1 x 1 convolution if the input is a map of that height and width, else a linear
    layer.
    """
    if in_shape[1:] == seed_shape[1:]:
        return [nn.Conv2d(in_shape[0], seed_shape[0], 1)]
    width = torch.Size(seed_shape).numel()
    return [nn.Linear(in_shape.numel(), width), nn.Unflatten(1, seed_shape)]
