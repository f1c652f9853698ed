"""Plain feed-forward networks that know their shapes.

A :class:`Network` maps ``(N, *in_shape)`` to ``(N, *out_shape)``. Encoders read ``out_shape`` to
size their heads. Any other ``nn.Module`` serves as well; these save the arithmetic.

Where they normalize, it is within each example (GroupNorm, LayerNorm): they act alike in training
and in evaluation mode, and no example's output depends on the rest of its batch, without which an
example would have no likelihood of its own.
"""

from tinyvae.networks.base import Network as Network
from tinyvae.networks.context import ConcatContext as ConcatContext
from tinyvae.networks.convolutional import ConvNet as ConvNet
from tinyvae.networks.convolutional import TransposedConvNet as TransposedConvNet
from tinyvae.networks.mlp import MLP as MLP
from tinyvae.networks.residual import ResNet as ResNet
from tinyvae.networks.residual import TransposedResNet as TransposedResNet
