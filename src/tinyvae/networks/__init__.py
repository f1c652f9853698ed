"""Feed-forward networks that know their shapes, and the interface of decoders.

A :class:`Network` maps ``(N, *in_shape)`` to ``(N, *out_shape)``. Encoders read ``out_shape`` to
size their heads, and models set it for a decoder that was built without one. Any other
``nn.Module`` works as well, with its shapes given by hand.

The normalization of these networks acts within each example (GroupNorm, LayerNorm). It does the
same in training and evaluation mode, and no output depends on other examples of the batch. Only
then is the likelihood of an example well-defined.
"""

from tinyvae.networks.base import Network as Network
from tinyvae.networks.context import ConcatContext as ConcatContext
from tinyvae.networks.convolutional import ConvNet as ConvNet
from tinyvae.networks.convolutional import TransposedConvNet as TransposedConvNet
from tinyvae.networks.decoder import Decoder as Decoder
from tinyvae.networks.mlp import MLP as MLP
from tinyvae.networks.residual import ResNet as ResNet
from tinyvae.networks.residual import TransposedResNet as TransposedResNet
