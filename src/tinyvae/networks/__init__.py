"""Plain feed-forward networks that know their shapes.

A :class:`Network` maps ``(N, *in_shape)`` to ``(N, *out_shape)``. Encoders read ``out_shape`` to
size their heads. Any other ``nn.Module`` serves as well; these save the arithmetic.

Where they normalise, it is within each example (GroupNorm, LayerNorm): they act alike in training
and in evaluation mode, and no example's output depends on the rest of its batch, without which an
example would have no likelihood of its own.
"""

from tinyvae.networks.base import Network
from tinyvae.networks.context import ConcatContext
from tinyvae.networks.convolutional import ConvNet, TransposedConvNet
from tinyvae.networks.mlp import MLP
from tinyvae.networks.residual import ResNet, TransposedResNet

__all__ = [
    "MLP",
    "ConcatContext",
    "ConvNet",
    "Network",
    "ResNet",
    "TransposedConvNet",
    "TransposedResNet",
]
