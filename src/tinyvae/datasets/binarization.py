r"""From gray levels to zeros and ones, as a Bernoulli likelihood wants them.

A gray level :math:`x \in \{0, \dots, M\}` is read either as a level to compare with a threshold,
or as the probability :math:`x / M` of a one. The second is drawn without rounding, at the cost of
16 random bits a pixel:

.. math:: b = \Big[\, u = \tfrac{M}{2^{16}} \big(w + \tfrac{v}{n}\big) < x \,\Big], \quad
          w \sim \mathrm{Uniform}\{0, \dots, 2^{16} - 1\}, \quad
          v \sim \mathrm{Uniform}\{0, \dots, n - 1\} .

Every pixel has a word :math:`w` of its own; the fine digits :math:`v` are drawn once per example.
So :math:`u` is uniform on :math:`2^{16} n` equidistant numbers of :math:`[0, M)`, and
:math:`\Pr(b = 1) = x / M` exactly wherever :math:`2^{16} n x / M` is an integer: for :math:`n = M`,
at every gray level.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


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


def ones(words: Tensor, fine: Tensor, x: Tensor, max_value: int) -> Tensor:
    r"""Ones where :math:`u < x`, zeros elsewhere, for given random digits of :math:`u`.

    Args:
        words: 16 random bits per pixel, as :math:`w - 2^{15}`.
        fine: :math:`M v / (2^{16} n)`, in a type that has :math:`16 + \log_2 n` bits.
        x: Levels between 0 and :math:`M`.
        max_value: :math:`M`.
    Shape:
        words: ``(*)``, int16; fine: broadcast to ``(*)``, float32 or float64; x: ``(*)``; result:
        ``(*)``, float32.

    Example:
        >>> words = torch.tensor([-(2**15), -1, 0, 2**15 - 1], dtype=torch.int16)
        >>> ones(words, torch.zeros(1), torch.full((4,), 0.5), max_value=1)
        tensor([1., 1., 0., 0.])
    """
    u = torch.add(fine + max_value / 2, words, alpha=max_value / 2**16)
    # In place: a bool result and its conversion take as long as half of the random bits.
    return u.lt_(x).to(torch.float32)


def _random_words(x: Tensor, generator: torch.Generator) -> Tensor:
    """16 random bits per element of ``x``, int16."""
    if x.device.type != "cpu":
        low, high = -(2**15), 2**15
        return torch.randint(
            low, high, x.shape, generator=generator, dtype=torch.int16, device=x.device
        )
    # The CPU's generator works one number at a time: four pixels share one of 64 bits. Without
    # bounds, torch would leave the highest of them at zero.
    numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64)
    numbers.random_(-(2**63), None, generator=generator)
    return numbers.view(torch.int16)[: x.numel()].view(x.shape)


@dataclass(frozen=True)
class DynamicBinarization:
    r"""Binarizes a batch anew at each use; a gray level is the probability of a one.

    A transform ``(x, generator) -> zeros and ones``. Integers :math:`x \in \{0, \dots, M\}` become
    1 with probability :math:`x / M`: 0 never does, :math:`M` always. Given uniform bits, that is
    exact for :math:`M \leq 2^{37}`; what torch makes of them to draw :math:`v < M` moves it by less
    than :math:`2^{-50} M`, and for :math:`M` a power of two by nothing. Floats
    :math:`x \in [0, 1]` are the probabilities themselves, rounded up to a multiple of
    :math:`2^{-24}` (float64: :math:`2^{-53}`).

    Examples are independent of each other. Pixels of one example share :math:`v`, which leaves any
    two of them with a covariance below :math:`2^{-34}`.

    The range of ``x`` is *not* checked, as that would read every batch once more and make a GPU
    wait: values below 0 and NaN become 0, values above :math:`M` (floats: 1) become 1.
    `LabeledImages` checks it once.

    Args:
        max_value: White, :math:`M \geq 1`. Required for integers, refused for floats.
    Shape:
        x: ``(B, *E)``, uint8 or a signed integer or floating; result: ``(B, *E)``, float32.

    Raises:
        ValueError: If ``max_value < 1``; at the call, if ``x`` is of integers and ``max_value`` is
            None, or ``x`` is floating and ``max_value`` is given.

    References:
        Burda, Grosse, Salakhutdinov (2016). Importance Weighted Autoencoders. arXiv:1509.00519,
        section 5.

    Example:
        >>> binarize = DynamicBinarization(max_value=255)
        >>> x = torch.tensor([0, 128, 255], dtype=torch.uint8).expand(10_000, 3)
        >>> binarize(x, torch.Generator().manual_seed(0)).mean(0).round(decimals=1)
        tensor([0.0000, 0.5000, 1.0000])
    """

    max_value: int | None = None

    def __post_init__(self) -> None:
        if self.max_value is not None and self.max_value < 1:
            raise ValueError(
                f"DynamicBinarization expects max_value >= 1, got {self.max_value}: "
                "pass the gray level of white, such as 255"
            )

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draws one binarization of ``x`` from ``generator``, which lives on the device of ``x``.

        Torch's default generator is neither read nor moved.
        """
        steps, max_value = self._fine_steps(x), self.max_value or 1
        one_per_example = (*x.shape[:1], *[1] * (x.dim() - 1))
        fine = torch.randint(steps, one_per_example, generator=generator, device=x.device)
        fine = fine.to(torch.float32 if steps <= 2**8 else torch.float64)
        fine *= max_value / steps / 2**16
        return ones(_random_words(x, generator), fine, x, max_value)

    def _fine_steps(self, x: Tensor) -> int:
        """The number n of values that the fine digits take."""
        if not x.is_floating_point():
            if self.max_value is None:
                raise ValueError(
                    f"DynamicBinarization() expects floats in [0, 1], got {x.dtype}: "
                    "say what white is, as in DynamicBinarization(max_value=255)"
                )
            return self.max_value
        if self.max_value is not None:
            raise ValueError(
                f"DynamicBinarization(max_value={self.max_value}) expects integers in "
                f"0..{self.max_value}, got {x.dtype}: pass the integers, or scale to [0, 1] "
                "and use DynamicBinarization()"
            )
        return 2**37 if x.dtype == torch.float64 else 2**8
