"""Plain feed-forward networks that know their shapes.

A :class:`Network` maps ``(N, *in_shape)`` to ``(N, *out_shape)``. Encoders read ``out_shape`` to
size their heads. Any other ``nn.Module`` serves as well; these save the arithmetic.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["MLP", "ConvNet", "Network", "TransposedConvNet"]

Activation = Callable[[], nn.Module]


class Network(nn.Module, ABC):
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

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Arguments that build an equal network, for a model's file."""

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


def _size(shape: int | Sequence[int], name: str) -> torch.Size:
    size = torch.Size((shape,) if isinstance(shape, int) else shape)
    if not all(n >= 1 for n in size):
        raise ValueError(f"{name} expects sizes of at least 1, got {tuple(size)}")
    return size


class MLP(Network):
    """Fully connected layers.

    Args:
        in_shape: Shape of one input; flattened first.
        hidden: Widths of the hidden layers, each followed by the activation.
        out_shape: Shape of one output, by a last linear layer without activation. Without it the
            output is the last hidden layer's: features for an encoder's head.
        activation: Class of the activation.

    Shape:
        ``(N, *in_shape)`` to ``(N, *out_shape)``.

    Example:
        >>> MLP((1, 28, 28), hidden=(400,))(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 400])
        >>> MLP(20, hidden=(400,), out_shape=(1, 28, 28))(torch.zeros(5, 20)).shape
        torch.Size([5, 1, 28, 28])
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        hidden: Sequence[int] = (400,),
        out_shape: int | Sequence[int] | None = None,
        *,
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__()
        self.in_shape = _size(in_shape, "MLP in_shape")
        self.hidden = _size(hidden, "MLP hidden")
        self.activation = _activation(activation)
        if out_shape is None and not self.hidden:
            raise ValueError("MLP without hidden layers expects an out_shape, got None")
        widths = (self.in_shape.numel(), *self.hidden)
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            layers += [nn.Linear(n_in, n_out), activation()]
        self._has_output = out_shape is not None
        self.out_shape = _size(widths[-1] if out_shape is None else out_shape, "MLP out_shape")
        if self._has_output:
            layers.append(nn.Linear(widths[-1], self.out_shape.numel()))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, *in_shape)`` to ``(N, *out_shape)``."""
        self.check_input(x)
        output: Tensor = self.layers(x.flatten(1))
        return output.view(-1, *self.out_shape)

    def config(self) -> dict[str, Any]:
        """Arguments that build an equal network."""
        return {
            "in_shape": self.in_shape,
            "hidden": self.hidden,
            "out_shape": self.out_shape if self._has_output else None,
            "activation": self.activation,
        }


class ConvNet(Network):
    """Convolutions of stride 2, each of which halves height and width (rounded up).

    Args:
        in_shape: ``(C, H, W)``, any sizes.
        channels: Output channels of the convolutions.
        kernel_size: An odd kernel size.
        activation: Class of the activation after every convolution.

    Shape:
        ``(N, C, H, W)`` to ``(N, channels[-1], h, w)``.

    Example:
        >>> ConvNet((1, 28, 20), channels=(16, 32))(torch.zeros(5, 1, 28, 20)).shape
        torch.Size([5, 32, 7, 5])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        *,
        kernel_size: int = 3,
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__()
        self.in_shape = _image_shape(in_shape, "ConvNet in_shape")
        self.channels = _channels(channels, "ConvNet")
        self.kernel_size = _odd(kernel_size, "ConvNet")
        self.activation = _activation(activation)
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise((self.in_shape[0], *self.channels)):
            convolution = nn.Conv2d(n_in, n_out, kernel_size, stride=2, padding=kernel_size // 2)
            layers += [convolution, activation()]
        self.layers = nn.Sequential(*layers)
        height, width = _halvings(self.in_shape[1:], len(self.channels))[-1]
        self.out_shape = torch.Size((self.channels[-1], height, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, *out_shape)``."""
        self.check_input(x)
        output: Tensor = self.layers(x)
        return output

    def config(self) -> dict[str, Any]:
        """Arguments that build an equal network."""
        return {
            "in_shape": self.in_shape,
            "channels": self.channels,
            "kernel_size": self.kernel_size,
            "activation": self.activation,
        }


class TransposedConvNet(Network):
    """A linear layer, then transposed convolutions of stride 2 up to an image of any size.

    The mirror image of :class:`ConvNet` with the channels in reverse: heights and widths are those
    that halving (rounded up) passes through, so odd sizes come out exactly.

    Args:
        in_shape: Shape of one input; flattened first.
        out_shape: ``(C, H, W)``, or parameters first ``(P, C, H, W)``.
        channels: Input channels of the transposed convolutions.
        kernel_size: An odd kernel size.
        activation: Class of the activation before every transposed convolution.

    Shape:
        ``(N, *in_shape)`` to ``(N, *out_shape)``.

    Example:
        >>> TransposedConvNet(8, (2, 1, 27, 20), channels=(32, 16))(torch.zeros(5, 8)).shape
        torch.Size([5, 2, 1, 27, 20])
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        *,
        kernel_size: int = 3,
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__()
        self.in_shape = _size(in_shape, "TransposedConvNet in_shape")
        self.out_shape = _size(out_shape, "TransposedConvNet out_shape")
        if len(self.out_shape) < 3:
            raise ValueError(
                "TransposedConvNet expects out_shape (C, H, W) or (P, C, H, W), "
                f"got {tuple(self.out_shape)}"
            )
        self.channels = _channels(channels, "TransposedConvNet")
        self.kernel_size = _odd(kernel_size, "TransposedConvNet")
        self.activation = _activation(activation)
        sizes = _halvings(self.out_shape[-2:], len(self.channels))[::-1]
        seed_shape = (self.channels[0], *sizes[0])
        layers: list[nn.Module] = [
            nn.Linear(self.in_shape.numel(), torch.Size(seed_shape).numel()),
            nn.Unflatten(1, seed_shape),
        ]
        channel_steps = pairwise((*self.channels, self.out_shape[:-2].numel()))
        for (n_in, n_out), ((h, w), (next_h, next_w)) in zip(
            channel_steps, pairwise(sizes), strict=True
        ):
            # Stride 2 maps n to 2 n - 1 + output_padding: the padding says which of the two sizes
            # that halve to n is meant.
            output_padding = (next_h - 2 * h + 1, next_w - 2 * w + 1)
            layers += [
                activation(),
                nn.ConvTranspose2d(
                    n_in,
                    n_out,
                    kernel_size,
                    stride=2,
                    padding=kernel_size // 2,
                    output_padding=output_padding,
                ),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(N, *in_shape)`` to ``(N, *out_shape)``."""
        self.check_input(z)
        output: Tensor = self.layers(z.flatten(1))
        return output.view(-1, *self.out_shape)

    def config(self) -> dict[str, Any]:
        """Arguments that build an equal network."""
        return {
            "in_shape": self.in_shape,
            "out_shape": self.out_shape,
            "channels": self.channels,
            "kernel_size": self.kernel_size,
            "activation": self.activation,
        }


def _activation(activation: Activation) -> Activation:
    if isinstance(activation, nn.Module) or not callable(activation):
        raise TypeError(f"expected the class of an activation, such as nn.Tanh, got {activation!r}")
    return activation


def _image_shape(shape: Sequence[int], name: str) -> torch.Size:
    size = _size(shape, name)
    if len(size) != 3:
        raise ValueError(f"{name} expects (C, H, W), got {tuple(size)}")
    return size


def _channels(channels: Sequence[int], name: str) -> torch.Size:
    if not channels:
        raise ValueError(f"{name} expects at least one number of channels, got none")
    return _size(channels, f"{name} channels")


def _odd(kernel_size: int, name: str) -> int:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"{name} expects an odd kernel_size, got {kernel_size}")
    return kernel_size


def _halvings(size: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Heights and widths that ``count`` halvings (rounded up) pass through."""
    height, width = size
    sizes = [(height, width)]
    for _ in range(count):
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes.append((height, width))
    return sizes
