"""Sums that stay on a device, so that a step does not wait for it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyvae._devices import widest_float


class DeviceSum:
    r"""Sum of vectors, with the digits of float64 that matter for a mean.

    A device without float64 holds two float32 numbers per sum, whose sum is the result. The second
    collects what the first rounds off. With :math:`s = \mathrm{fl}(a + b)`, the rounding error

    .. math:: e = (a - (s - t)) + (b - t), \qquad t = s - a

    is exact in the same arithmetic.

    Args:
        start: Numbers to which the vectors are added.
        device: Device of the vectors.

    References:
        Knuth (1998). The Art of Computer Programming, volume 2, section 4.2.2, theorem B.

    Example:
        >>> total = DeviceSum([0.0, 1.0], torch.device("cpu"))
        >>> total.add(torch.tensor([0.5, 1.0]), weight=2)
        >>> total.value()
        tensor([1., 3.], dtype=torch.float64)
    """

    def __init__(self, start: Sequence[float], device: torch.device) -> None:
        exact = torch.tensor(start, dtype=torch.float64)
        rounded = exact.to(widest_float(device))
        self._sum = rounded.to(device)
        self._rounded_off = (exact - rounded).to(self._sum)

    def add(self, values: Tensor, weight: float | Tensor) -> None:
        """Add a vector ``weight`` times, a number or 0-d."""
        if self._sum.dtype == torch.float64:
            if isinstance(weight, Tensor):
                self._sum.addcmul_(values.to(self._sum.dtype), weight)
            else:
                self._sum.add_(values, alpha=weight)
            return
        before, added = self._sum, values.to(self._sum.dtype) * weight
        self._sum = before + added
        part = self._sum - before
        error = (before - (self._sum - part)) + (added - part)
        self._rounded_off += error.nan_to_num(0.0, 0.0, 0.0)  # of an infinite sum

    def value(self) -> Tensor:
        """Return the sum, in float64 on the CPU."""
        return self._sum.cpu().double() + self._rounded_off.cpu().double()
