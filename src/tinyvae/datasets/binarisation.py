r"""From grey levels to zeros and ones, as a Bernoulli likelihood wants them.

A grey level :math:`x \in \{0, \dots, M\}` is read either as a level to compare with a threshold,
or as the probability :math:`x / M` of a one. The second is drawn without rounding:

.. math:: b = [u < x], \quad u \sim \mathrm{Uniform}\{0, \dots, M - 1\}
          \quad\Rightarrow\quad \Pr(b = 1) = x / M .
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["DynamicBinarisation", "threshold"]


def threshold(images: Tensor, level: float) -> Tensor:
    """Ones where a pixel is brighter than ``level``, zeros elsewhere.

    Args:
        images: Pixels of any real dtype.
        level: Compared by ``>``; a pixel at the level itself becomes 0, and so does NaN.
    Shape:
        images: ``(*)``; result: ``(*)``, float32.

    Example:
        >>> threshold(torch.tensor([0, 127, 128, 255], dtype=torch.uint8), 127.5)
        tensor([0., 0., 1., 1.])
    """
    # An integer scalar would be cast to the images' dtype first: uint8 200 > 300 holds in torch.
    return (images > float(level)).to(torch.float32)


@dataclass(frozen=True)
class DynamicBinarisation:
    r"""Binarises a batch anew at each use; a grey level is the probability of a one.

    A transform ``(x, generator) -> zeros and ones``. Integers :math:`x \in \{0, \dots, M\}` become
    1 with probability :math:`x / M`: 0 never does, :math:`M` always. For :math:`M` a power of two
    (16, the digits) that is exact; otherwise torch reduces a random 32-bit word modulo :math:`M`,
    which moves a probability by less than :math:`M \, 2^{-34}` (2e-8 for :math:`M = 255`). Floats
    :math:`x \in [0, 1]` are the probabilities themselves, to within :math:`2^{-24}` (float64:
    :math:`2^{-53}`).

    The range of ``x`` is *not* checked, as that would read every batch once more and make a GPU
    wait: values below 0 and NaN become 0, values above :math:`M` (floats: 1) become 1.
    `LabelledImages` checks it once.

    Args:
        max_value: White, :math:`M \geq 1`. Required for integers, refused for floats.
    Shape:
        x: ``(*)``, uint8 or a signed integer or floating; result: ``(*)``, float32.

    Raises:
        ValueError: If ``max_value < 1``; at the call, if ``x`` is of integers and ``max_value`` is
            None, or ``x`` is floating and ``max_value`` is given.

    References:
        Burda, Grosse, Salakhutdinov (2016). Importance Weighted Autoencoders. arXiv:1509.00519,
        section 5.

    Example:
        >>> binarise = DynamicBinarisation(max_value=255)
        >>> x = torch.tensor([0, 128, 255], dtype=torch.uint8).expand(10_000, 3)
        >>> binarise(x, torch.Generator().manual_seed(0)).mean(0).round(decimals=1)
        tensor([0.0000, 0.5000, 1.0000])
    """

    max_value: int | None = None

    def __post_init__(self) -> None:
        if self.max_value is not None and self.max_value < 1:
            raise ValueError(
                f"DynamicBinarisation expects max_value >= 1, got {self.max_value}: "
                "pass the grey level of white, such as 255"
            )

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draws one binarisation of ``x`` from ``generator``, which lives on the device of ``x``.

        Torch's default generator is neither read nor moved.
        """
        if x.is_floating_point():
            if self.max_value is not None:
                raise ValueError(
                    f"DynamicBinarisation(max_value={self.max_value}) expects integers in "
                    f"0..{self.max_value}, got {x.dtype}: pass the integers, or scale to [0, 1] "
                    "and use DynamicBinarisation()"
                )
            # Half precision knows too few uniform numbers; float32 has 2^24 of them.
            dtype = torch.promote_types(x.dtype, torch.float32)
            noise = torch.rand(x.shape, generator=generator, dtype=dtype, device=x.device)
        else:
            if self.max_value is None:
                raise ValueError(
                    f"DynamicBinarisation() expects floats in [0, 1], got {x.dtype}: "
                    "say what white is, as in DynamicBinarisation(max_value=255)"
                )
            # 0..max_value - 1 fits in a byte up to 256: no promotion beside uint8 images.
            dtype = torch.uint8 if self.max_value <= 256 else torch.int64
            noise = torch.randint(
                self.max_value, x.shape, generator=generator, dtype=dtype, device=x.device
            )
        # Written as float32 in one pass: a bool result and its conversion take three times as long.
        ones = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        return torch.lt(noise, x, out=ones)
