r"""Residual networks of convolutions.

.. math:: x \mapsto x + f(x)

f is GroupNorm, activation and convolution, twice (the "pre-activation" order of He et al., 2016).
The last convolution of f starts at zero. A block therefore starts as the identity, and a deep
network is as easy to train as a shallow one.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

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

# Blocks after each halving. A model file cannot make its reader build more.
MAX_BLOCKS = 100


class ResidualBlock(nn.Module):
    """``x + f(x)`` for maps of one shape, the identity until it is trained.

    Args:
        channels: Channels of the map.
        size: Height and width of the map.
        activation: Class of the activation.

    Shape:
        ``(N, channels, *size)`` to the same.

    References:
        He, Zhang, Ren, Sun (2016). Identity Mappings in Deep Residual Networks. arXiv:1603.05027.
        Zhang, Dauphin, Ma (2019). Fixup Initialization. arXiv:1901.09321, section 3 (zeros).
    """

    def __init__(self, channels: int, size: tuple[int, int], activation: Activation) -> None:
        super().__init__()
        last = _convolution(channels, channels)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.layers = nn.Sequential(
            group_norm(channels, size),
            activation(),
            _convolution(channels, channels),
            group_norm(channels, size),
            activation(),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add f(x) to ``x``."""
        change: Tensor = self.layers(x)
        return x + change


@suggest_keywords
class ResNet(MapNetwork):
    """Convolutions of stride 2, each followed by residual blocks, for encoders.

    Each convolution halves height and width (rounded up), as in :class:`ConvNet`. The last layers
    are a GroupNorm and an activation.

    Args:
        in_shape: ``(C, H, W)``, any sizes.
        channels: Channels after each halving.
        blocks: Residual blocks after each halving.
        activation: Class of the activation.

    Shape:
        ``(N, C, H, W)`` to ``(N, channels[-1], h, w)``.

    References:
        He, Zhang, Ren, Sun (2016). Identity Mappings in Deep Residual Networks. arXiv:1603.05027.
        Wu, He (2018). Group Normalization. arXiv:1803.08494.

    Example:
        >>> ResNet((3, 28, 20), channels=(16, 32), blocks=2)(torch.zeros(5, 3, 28, 20)).shape
        torch.Size([5, 32, 7, 5])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        *,
        blocks: int = 1,
        activation: Activation = nn.SiLU,
    ) -> None:
        super().__init__()
        self.in_shape = image_shape(in_shape, "ResNet in_shape")
        self.channels = channel_sizes(channels, "ResNet")
        self.blocks = _check_blocks(blocks, "ResNet", "ConvNet")
        self.activation = activation_class(activation)
        sizes = halvings(self.in_shape[1:], len(self.channels))
        channel_steps = pairwise((self.in_shape[0], *self.channels))
        layers: list[nn.Module] = []
        for (n_in, n_out), size in zip(channel_steps, sizes[1:], strict=True):
            layers.append(_convolution(n_in, n_out, stride=2))
            layers += [ResidualBlock(n_out, size, activation) for _ in range(blocks)]
        layers += [group_norm(self.channels[-1], sizes[-1]), activation()]
        self.layers = nn.Sequential(*layers)
        self.out_shape = torch.Size((self.channels[-1], *sizes[-1]))


@suggest_keywords
class TransposedResNet(UpsamplingNetwork):
    """Residual blocks, each step followed by a doubling, up to an image of any size.

    It mirrors :class:`ResNet` with the channels in reverse. Heights and widths are those of the
    halvings (rounded up), so odd sizes come out exactly. A doubling repeats pixels (nearest
    neighbor) and convolves them, which avoids checkerboard artifacts.

    The first layer is linear, or a 1 x 1 convolution if the input is a map ``(C, h, w)`` of the
    height and width after all halvings, as a spatial latent is. The last layer, ``layers[-1]``, is
    a convolution with a bias.

    Args:
        in_shape: Shape of one input. It is flattened first, unless it is a map as above.
        out_shape: ``(C, H, W)``, or parameters first ``(P, C, H, W)``. By default the model whose
            decoder it becomes sets the shape, and the layers are made then.
        channels: Channels before each doubling. The last number is kept up to the last layer.
        blocks: Residual blocks before each doubling.
        activation: Class of the activation.

    Shape:
        ``(N, *in_shape)`` to ``(N, *out_shape)``.

    References:
        He, Zhang, Ren, Sun (2016). Identity Mappings in Deep Residual Networks. arXiv:1603.05027.
        Odena, Dumoulin, Olah (2016). Deconvolution and Checkerboard Artifacts. Distill.

    Example:
        >>> TransposedResNet(8, (2, 1, 27, 20), channels=(32, 16))(torch.zeros(5, 8)).shape
        torch.Size([5, 2, 1, 27, 20])
        >>> TransposedResNet((4, 7, 5), (1, 27, 20), channels=(32, 16)).layers[0]
        Conv2d(4, 32, kernel_size=(1, 1), stride=(1, 1))
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_shape: Sequence[int] | None = None,
        channels: Sequence[int] = (64, 32),
        *,
        blocks: int = 1,
        activation: Activation = nn.SiLU,
    ) -> None:
        super().__init__(in_shape)
        self.channels = channel_sizes(channels, "TransposedResNet")
        self.blocks = _check_blocks(blocks, "TransposedResNet", "TransposedConvNet")
        self.activation = activation_class(activation)
        if out_shape is not None:
            self.build(out_shape)

    def make_layers(self, out_shape: torch.Size) -> list[nn.Module]:
        """Return the seed layers, residual blocks and a doubling per step, and the last layers."""
        activation = self.activation
        sizes = halvings(out_shape[-2:], len(self.channels))[::-1]
        layers = seed_layers(self.in_shape, (self.channels[0], *sizes[0]))
        channel_steps = pairwise((*self.channels, self.channels[-1]))
        for (n_in, n_out), (size, next_size) in zip(channel_steps, pairwise(sizes), strict=True):
            layers += [ResidualBlock(n_in, size, activation) for _ in range(self.blocks)]
            layers += [nn.Upsample(next_size), _convolution(n_in, n_out)]
        return [
            *layers,
            group_norm(self.channels[-1], sizes[-1]),
            activation(),
            _convolution(self.channels[-1], out_shape[:-2].numel()),
        ]


def _convolution(n_in: int, n_out: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1)


def _check_blocks(blocks: int, name: str, plain: str) -> int:
    if not 1 <= blocks <= MAX_BLOCKS:
        raise ValueError(f"{name} expects 1 to {MAX_BLOCKS} blocks, got {blocks}: {plain} has none")
    return blocks
