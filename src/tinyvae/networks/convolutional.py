"""Convolutions of stride 2, and transposed convolutions that mirror them."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from tinyvae.core.keywords import suggest_keywords
from tinyvae.networks.base import (
    Activation,
    MapNetwork,
    UpsamplingNetwork,
    activation_class,
    channel_sizes,
    group_norm,
    halvings,
    image_shape,
    seed_layers,
)


@suggest_keywords
class ConvNet(MapNetwork):
    """Convolutions of stride 2, each of which halves height and width (rounded up).

    Args:
        in_shape: ``(C, H, W)``, any sizes.
        channels: Output channels of the convolutions.
        kernel_size: An odd kernel size.
        activation: Class of the activation after every convolution.
        normalize: True puts a GroupNorm before every activation, except for a map of one value.

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
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.in_shape = image_shape(in_shape, "ConvNet in_shape")
        self.channels = channel_sizes(channels, "ConvNet")
        self.kernel_size = _odd(kernel_size, "ConvNet")
        self.activation = activation_class(activation)
        self.normalize = normalize
        sizes = halvings(self.in_shape[1:], len(self.channels))
        channel_steps = pairwise((self.in_shape[0], *self.channels))
        layers: list[nn.Module] = []
        for (n_in, n_out), size in zip(channel_steps, sizes[1:], strict=True):
            convolution = nn.Conv2d(n_in, n_out, kernel_size, stride=2, padding=kernel_size // 2)
            norm = [group_norm(n_out, size)] if normalize else []
            layers += [convolution, *norm, activation()]
        self.layers = nn.Sequential(*layers)
        self.out_shape = torch.Size((self.channels[-1], *sizes[-1]))


@suggest_keywords
class TransposedConvNet(UpsamplingNetwork):
    """A linear layer, then transposed convolutions of stride 2 up to an image of any size.

    It mirrors :class:`ConvNet` with the channels in reverse. Heights and widths are those of the
    halvings (rounded up), so odd sizes come out exactly.

    If the input is a map ``(C, h, w)`` of the height and width after all halvings, as a spatial
    latent is, a 1 x 1 convolution replaces the linear layer.

    Args:
        in_shape: Shape of one input. It is flattened first, unless it is a map as above.
        out_shape: ``(C, H, W)``, or parameters first ``(P, C, H, W)``. By default the model whose
            decoder it becomes sets the shape, and the layers are made then.
        channels: Input channels of the transposed convolutions.
        kernel_size: An odd kernel size.
        activation: Class of the activation before every transposed convolution.
        normalize: True puts a GroupNorm before every activation, except for a map of one value.

    Shape:
        ``(N, *in_shape)`` to ``(N, *out_shape)``.

    Example:
        >>> TransposedConvNet(8, (2, 1, 27, 20), channels=(32, 16))(torch.zeros(5, 8)).shape
        torch.Size([5, 2, 1, 27, 20])
        >>> spatial = TransposedConvNet((4, 7, 5), (1, 27, 20), channels=(32, 16))
        >>> spatial.layers[0]
        Conv2d(4, 32, kernel_size=(1, 1), stride=(1, 1))
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_shape: Sequence[int] | None = None,
        channels: Sequence[int] = (64, 32),
        *,
        kernel_size: int = 3,
        activation: Activation = nn.ReLU,
        normalize: bool = False,
    ) -> None:
        super().__init__(in_shape)
        self.channels = channel_sizes(channels, "TransposedConvNet")
        self.kernel_size = _odd(kernel_size, "TransposedConvNet")
        self.activation = activation_class(activation)
        self.normalize = normalize
        if out_shape is not None:
            self.build(out_shape)

    def make_layers(self, out_shape: torch.Size) -> list[nn.Module]:
        """Return the seed layers, and a transposed convolution per doubling."""
        sizes = halvings(out_shape[-2:], len(self.channels))[::-1]
        layers = seed_layers(self.in_shape, (self.channels[0], *sizes[0]))
        channel_steps = pairwise((*self.channels, out_shape[:-2].numel()))
        for (n_in, n_out), ((h, w), (next_h, next_w)) in zip(
            channel_steps, pairwise(sizes), strict=True
        ):
            # Stride 2 maps n to 2 n - 1 + output_padding: two sizes are halved (rounded up) to n,
            # and the padding selects one of them.
            output_padding = (next_h - 2 * h + 1, next_w - 2 * w + 1)
            layers += [
                *([group_norm(n_in, (h, w))] if self.normalize else []),
                self.activation(),
                nn.ConvTranspose2d(
                    n_in,
                    n_out,
                    self.kernel_size,
                    stride=2,
                    padding=self.kernel_size // 2,
                    output_padding=output_padding,
                ),
            ]
        return layers


def _odd(kernel_size: int, name: str) -> int:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"{name} expects an odd kernel_size, got {kernel_size}")
    return kernel_size
