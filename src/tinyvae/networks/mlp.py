"""Fully connected networks."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from tinyvae.networks.base import Activation, Network, activation_class, layer_norm, positive_shape


class MLP(Network):
    """Fully connected layers.

    Args:
        in_shape: Shape of one input; flattened first.
        hidden: Widths of the hidden layers, each followed by the activation.
        out_shape: Shape of one output, by a last linear layer without activation. Without it the
            output is the last hidden layer's: features for an encoder's head.
        activation: Class of the activation.
        normalize: Whether LayerNorm comes before every activation. It acts alike in training and
            evaluation mode, and on each example by itself. A layer of width 1 goes without.

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
        if out_shape is None and not self.hidden:
            raise ValueError("MLP without hidden layers expects an out_shape, got None")
        widths = (self.in_shape.numel(), *self.hidden)
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            norm = [layer_norm(n_out)] if normalize else []
            layers += [nn.Linear(n_in, n_out), *norm, activation()]
        self._has_output = out_shape is not None
        self.out_shape = positive_shape(
            widths[-1] if out_shape is None else out_shape, "MLP out_shape"
        )
        if self._has_output:
            layers.append(nn.Linear(widths[-1], self.out_shape.numel()))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, *in_shape)`` to ``(N, *out_shape)``."""
        self.check_input(x)
        output: Tensor = self.layers(x.flatten(1))
        return output if len(self.out_shape) == 1 else output.view(-1, *self.out_shape)

    def config(self) -> dict[str, Any]:
        """Arguments that build an equal network."""
        return {
            "in_shape": self.in_shape,
            "hidden": self.hidden,
            "out_shape": self.out_shape if self._has_output else None,
            "activation": self.activation,
            "normalize": self.normalize,
        }
