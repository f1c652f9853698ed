"""Fully connected networks."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from tinyvae.core.keywords import suggest_keywords
from tinyvae.networks.base import Activation, Network, activation_class, layer_norm, positive_shape


@suggest_keywords
class MLP(Network):
    """Fully connected layers.

    Args:
        in_shape: Shape of one input, which is flattened first.
        hidden: Widths of the hidden layers, each followed by the activation.
        out_shape: Shape of one output. A last linear layer without activation returns it. By
            default the network has no such layer, and returns the last hidden layer: the features
            for an encoder's head. A model adds the layer to its decoder.
        activation: Class of the activation.
        normalize: True puts a LayerNorm before every activation, except in layers of width 1.

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
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.in_shape = positive_shape(in_shape, "MLP in_shape")
        self.hidden = positive_shape(hidden, "MLP hidden")
        self.activation = activation_class(activation)
        self.normalize = normalize
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise((self.in_shape.numel(), *self.hidden)):
            norm = [layer_norm(n_out)] if normalize else []
            layers += [nn.Linear(n_in, n_out), *norm, activation()]
        self.layers = nn.Sequential(*layers)
        self.out_shape = torch.Size((self._features,))
        self.needs_out_shape = True
        if out_shape is not None:
            self.build(out_shape)

    @property
    def _features(self) -> int:
        return self.hidden[-1] if self.hidden else self.in_shape.numel()

    def build(self, out_shape: int | Sequence[int]) -> None:
        """Add the last linear layer, to outputs of ``out_shape``."""
        self.require_unbuilt()
        self.out_shape = positive_shape(out_shape, "MLP out_shape")
        like = next(self.parameters(), torch.empty(0))
        width = self.out_shape.numel()
        self.layers.append(nn.Linear(self._features, width, device=like.device, dtype=like.dtype))
        self.needs_out_shape = False

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, *in_shape)`` to ``(N, *out_shape)``."""
        self.check_input(x)
        output: Tensor = self.layers(x.flatten(1))
        return output if len(self.out_shape) == 1 else output.view(-1, *self.out_shape)

    def config(self) -> dict[str, Any]:
        """Return the arguments that build an equal network."""
        return super().config() | ({"out_shape": None} if self.needs_out_shape else {})
