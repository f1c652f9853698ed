"""Networks that also read a context."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyvae.networks.base import Network


class ConcatContext(Network):
    """A network of an input and a context, concatenated, for a conditional encoder or decoder.

    A network of vectors ``(D + C,)`` reads the flattened input, then the context. A network of maps
    ``(c + C, H, W)`` reads the input, then one constant plane per value of the context. The context
    consists of numbers (``context_dim=C``), or of class indices (``num_classes=C``), which the
    network reads as one-hot rows.

    Args:
        network: The network, built for input and context together.
        context_dim: Number of values ``C`` of a context with a floating-point dtype.
        num_classes: Number of classes ``C`` of a context with an integer dtype.

    Shape:
        x: ``(N, *in_shape)`` with ``in_shape = (D,)`` or ``(c, H, W)``. If it is ``(D,)``, inputs
        of any shape with ``D`` values fit. context: ``(N, ...)`` of ``C`` values each, or class
        indices ``(N,)``. Output: ``(N, *network.out_shape)``.

    Raises:
        TypeError: If ``network`` is not a :class:`~tinyvae.networks.Network`, whose shapes are
            known, or if the context has the wrong kind of dtype.
        ValueError: If the context is missing or does not fit. A compiled step cannot check values:
            there, an unknown class makes its input NaN instead.

    References:
        Sohn, Lee, Yan (2015). Learning Structured Output Representation using Deep Conditional
        Generative Models. NeurIPS, section 4.

    Example:
        >>> network = ConcatContext(MLP(28 * 28 + 10, hidden=(400,)), num_classes=10)
        >>> network(torch.zeros(5, 1, 28, 28), torch.arange(5)).shape
        torch.Size([5, 400])
        >>> decoder = ConcatContext(MLP(20 + 3, out_shape=(1, 28, 28)), context_dim=3)
        >>> decoder(torch.zeros(5, 20), torch.zeros(5, 3)).shape
        torch.Size([5, 1, 28, 28])
        >>> ConcatContext(ConvNet((1 + 10, 28, 28)), num_classes=10).in_shape
        torch.Size([1, 28, 28])
    """

    def __init__(
        self, network: Network, *, context_dim: int | None = None, num_classes: int | None = None
    ) -> None:
        super().__init__()
        self.context_dim = context_dim
        self.num_classes = num_classes
        self._width = _context_width(context_dim, num_classes)
        self.in_shape = _shape_without_context(network, self._width)
        self.network = network

    @property
    def out_shape(self) -> torch.Size:  # type: ignore[override]
        """Shape of one output, the network's."""
        return self.network.out_shape

    @property
    def needs_out_shape(self) -> bool:  # type: ignore[override]
        """True if the network was built without an output shape."""
        return self.network.needs_out_shape

    def build(self, out_shape: Sequence[int]) -> None:
        """Create the layers of the network that depend on the output shape."""
        self.network.build(out_shape)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``(N, *in_shape)`` and the context of each row to ``(N, *out_shape)``."""
        self.check_input(x)
        if context is None:
            raise ValueError(
                f"ConcatContext expects a context of {self._expected()}, got none: give it as "
                "context="
            )
        if context.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"ConcatContext expects one row of context per input, got {tuple(context.shape)} "
                f"for {len(x)} inputs: repeat it, or select the rows of these inputs"
            )
        values = self._as_numbers(context) if self.num_classes is None else self._one_hot(context)
        values = values.to(x.dtype)  # (N, C)
        if len(self.in_shape) == 3:
            values = values[:, :, None, None].expand(-1, -1, *self.in_shape[1:])  # (N, C, H, W)
        else:
            x = x.reshape(x.shape[0], *self.in_shape)
        output: Tensor = self.network(torch.cat([x, values], dim=1))
        return output

    def check_input(self, x: Tensor) -> None:
        """Raise unless ``x`` fits ``in_shape``. If that is 1-d, the number of values counts."""
        if len(self.in_shape) == 3:
            super().check_input(x)
        elif x.dim() == 0 or x.shape[1:].numel() != self.in_shape.numel():
            raise ValueError(
                f"ConcatContext expects inputs of {self.in_shape.numel()} values each, which its "
                f"{type(self.network).__name__} of in_shape {tuple(self.network.in_shape)} reads "
                f"next to {self._width} of the context, got {tuple(x.shape)}: build the network "
                "for these"
            )

    def extra_repr(self) -> str:
        """Return the shapes, for ``repr``."""
        context = f"{self._width} {'values' if self.num_classes is None else 'classes'}"
        output = "out_shape of the model" if self.needs_out_shape else tuple(self.out_shape)
        return f"{tuple(self.in_shape)} and {context} -> {output}"

    def _expected(self) -> str:
        if self.num_classes is None:
            return f"floating-point numbers (N, {self._width})"
        return f"class indices (N,) of 0 to {self.num_classes - 1}"

    def _as_numbers(self, context: Tensor) -> Tensor:
        if not context.is_floating_point():
            raise TypeError(
                f"ConcatContext with context_dim = {self._width} expects {self._expected()}, got "
                f"{context.dtype}: convert numbers, context.float(); for class indices build it "
                "with num_classes= instead"
            )
        if context.shape[1:].numel() != self._width:
            raise ValueError(
                f"ConcatContext expects a context of {self._width} values per input, got "
                f"{tuple(context.shape)}: build it with "
                f"context_dim={context.shape[1:].numel()}, and its network for as many"
            )
        return context.reshape(context.shape[0], self._width)

    def _one_hot(self, context: Tensor) -> Tensor:
        if context.is_floating_point() or context.dim() != 1:
            raise TypeError(
                f"ConcatContext with num_classes = {self._width} expects {self._expected()}, got "
                f"{tuple(context.shape)} of {context.dtype}: give one integer per input; for "
                "numbers, or rows that are one-hot already, build it with context_dim= instead"
            )
        index = context.long()  # bytes cannot be compared with 300 classes
        known = (index >= 0) & (index < self._width)
        # A compiled step cannot branch on values. There, NaN marks an unknown class.
        if not torch.compiler.is_compiling() and not known.all():
            row = int((~known).nonzero()[0])
            raise ValueError(
                f"ConcatContext expects classes 0 to {self._width - 1}, got {int(index[row])} in "
                f"row {row} of the context: number them from 0, or build it with more num_classes"
            )
        one_hot = index[:, None] == torch.arange(self._width, device=index.device)  # (N, C)
        return one_hot.float().masked_fill(~known[:, None], torch.nan)


def _context_width(context_dim: int | None, num_classes: int | None) -> int:
    widths = [n for n in (context_dim, num_classes) if n is not None]
    if len(widths) != 1 or widths[0] < 1:
        raise ValueError(
            "ConcatContext expects one of context_dim >= 1 (numbers) and num_classes >= 1 (class "
            f"indices), got context_dim = {context_dim} and num_classes = {num_classes}: give the "
            "one that describes the context"
        )
    return widths[0]


def _shape_without_context(network: object, width: int) -> torch.Size:
    """Return the shape of the input that a network reads next to ``width`` values of context."""
    if not isinstance(network, Network):
        raise TypeError(
            f"ConcatContext expects a Network, got a {type(network).__name__}: the shapes of any "
            "other module are unknown; let its forward(x, context) concatenate the two itself"
        )
    if isinstance(network, ConcatContext):
        raise TypeError(
            "ConcatContext expects a network of one input, got a ConcatContext: give one of them "
            "both contexts, joined"
        )
    if len(network.in_shape) not in (1, 3):
        raise ValueError(
            f"ConcatContext expects a network of in_shape (D + {width},) or (c + {width}, H, W), "
            f"got {tuple(network.in_shape)}: build it for one of these"
        )
    first, *rest = network.in_shape
    if first <= width:
        raise ValueError(
            f"ConcatContext of a network of in_shape {tuple(network.in_shape)} has no room for an "
            f"input next to a context of {width} values: build the network for both together, "
            f"in_shape = {(f'inputs + {width}', *rest)}"
        )
    return torch.Size((first - width, *rest))
