r"""Dequantization of levels, so that a density bounds their probabilities.

.. math:: y = (x + u) / L, \quad u \sim \mathrm{Uniform}[0, 1)
    \quad\Rightarrow\quad \mathbb{E}_u \log p(y) - \log L \le \log P(x)

where :math:`P(x)` is the mass of the density p in the bin of x.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tinyvae.datasets.binarization import require_range


@dataclass(frozen=True)
class Dequantization:
    """Transform that spreads levels 0 to L - 1 uniformly over their bins in [0, 1).

    Call it as ``(x, generator) -> real numbers``, or pass it to ``fit``. With
    ``bin_width=transform.bin_width``, ``evaluate`` reports bits per dimension of the levels.

    Args:
        num_levels: Number of levels L.

    Shape:
        x: ``(*)``, levels of any dtype; result: ``(*)``, float64 if x is, else float32.

    Raises:
        ValueError: If ``num_levels < 2``. When called on a CPU, if a level is out of range, or the
            first example holds fractions.

    References:
        Theis, van den Oord, Bethge (2016). A note on the evaluation of generative models.
        arXiv:1511.01844, section 3.1.

    Example:
        >>> dequantize = Dequantization(num_levels=16)
        >>> y = dequantize(torch.tensor([0, 15]), torch.Generator().manual_seed(0))
        >>> bool(y[0] < dequantize.bin_width), bool(y[1] >= 15 / 16)
        (True, True)
    """

    num_levels: int

    def __post_init__(self) -> None:
        if self.num_levels < 2:
            raise ValueError(
                f"Dequantization expects num_levels >= 2, got {self.num_levels}: "
                "pass the number of levels, such as 256"
            )

    @property
    def bin_width(self) -> float:
        """Width of a level's bin, 1 / L."""
        return 1 / self.num_levels

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one dequantization of ``x`` from ``generator``, which is on its device."""
        require_range("Dequantization", x, self.num_levels - 1)
        if x.device.type == "cpu" and x.is_floating_point() and (x[:1].frac() > 0).any():
            raise ValueError(
                f"Dequantization expects levels 0 to {self.num_levels - 1}, got fractions: pass "
                "the levels themselves, before any scaling"
            )
        dtype = torch.promote_types(x.dtype, torch.float32)
        levels = x.to(dtype)
        noise = torch.rand(x.shape, generator=generator, dtype=dtype, device=x.device)
        noise += 2**-25  # half a step of float32's uniform numbers, which include zero
        # Rounding would lift a sum such as 255 + 0.99999999 to the next level.
        last = torch.nextafter(levels + 1, levels)
        return torch.minimum(levels + noise, last) / self.num_levels
