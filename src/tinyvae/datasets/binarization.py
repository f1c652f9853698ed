r"""Binarization of gray levels, for a Bernoulli likelihood.

A gray level :math:`x \in \{0, \dots, M\}` is compared with a threshold, or it is the probability
:math:`x / M` of a one. The draw of a one is

.. math:: b = \Big[\, u = \tfrac{M}{2^{16}} \big(w + \tfrac{v}{n}\big) < x \,\Big], \quad
          w \sim \mathrm{Uniform}\{0, \dots, 2^{16} - 1\}, \quad
          v \sim \mathrm{Uniform}\{0, \dots, n - 1\} .

Every pixel has its own word :math:`w`; all pixels of an example share the fine digits :math:`v`.
So :math:`u` is uniform on :math:`2^{16} n` equidistant numbers in :math:`[0, M)`, and
:math:`\Pr(b = 1) = x / M` exactly if :math:`2^{16} n x / M` is an integer. With :math:`n = M` this
holds for every gray level. A pixel costs 16 random bits: on a CPU, a batch takes less than half of
the time of ``torch.rand(x.shape) * M < x``, which is exact only to :math:`2^{-24}`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def threshold(images: Tensor, level: float) -> Tensor:
    """Return ones for pixels brighter than ``level``, zeros for all others.

    Args:
        images: Pixels of any real dtype.
        level: Threshold. A pixel equal to it becomes 0. NaN, a missing pixel, stays NaN.
    Shape:
        images: ``(*)``; result: ``(*)``, float32.

    Example:
        >>> threshold(torch.tensor([0, 127, 128, 255], dtype=torch.uint8), 127.5)
        tensor([0., 0., 1., 1.])
    """
    if not isinstance(images, Tensor):
        raise TypeError(
            f"threshold expects a tensor, got a {type(images).__name__}: pass torch.from_numpy(x), "
            "of a masked array torch.from_numpy(x.astype(float).filled(numpy.nan))"
        )
    # torch casts an integer scalar to the images' dtype first: uint8 200 > 300 is true.
    return _keep_nan((images > float(level)).to(torch.float32), images)


def ones(words: Tensor, fine: Tensor, x: Tensor, max_value: int) -> Tensor:
    r"""Return ones where :math:`u < x`, zeros elsewhere, for given random digits of :math:`u`.

    Args:
        words: 16 random bits per pixel, as :math:`w - 2^{15}`, ``(*)``, int16.
        fine: :math:`M v / (2^{16} n)`, broadcast to ``(*)``, in a dtype with at least
            :math:`16 + \log_2 n` bits. An int64 is :math:`v`, for integers ``x`` and :math:`n = M`.
        x: Levels between 0 and :math:`M`, ``(*)``.
        max_value: :math:`M`.

    Example:
        >>> words = torch.tensor([-(2**15), -1, 0, 2**15 - 1], dtype=torch.int16)
        >>> ones(words, torch.zeros(1), torch.full((4,), 0.5), max_value=1)
        tensor([1., 1., 0., 0.])
    """
    if fine.dtype == torch.int64:  # exact on devices without float64
        u = torch.add(fine + max_value * 2**15, words, alpha=max_value)  # in units of 2^-16
        return u.sub_(x, alpha=2**16).lt_(0).to(torch.float32)
    u = torch.add(fine + max_value / 2, words, alpha=max_value / 2**16)
    # In place: a bool result and its conversion take half as long as the random bits.
    return u.lt_(x).to(torch.float32)


def _keep_nan(binary: Tensor, x: Tensor) -> Tensor:
    """Return zeros and ones with NaN where x is NaN."""
    return binary.masked_fill_(x.isnan(), torch.nan) if x.is_floating_point() else binary


def _random_words(x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw 16 random bits per element of ``x``, int16."""
    if x.device.type != "cpu":
        low, high = -(2**15), 2**15
        return torch.randint(
            low, high, x.shape, generator=generator, dtype=torch.int16, device=x.device
        )
    # The CPU generator draws one number at a time, so four pixels share 64 bits. Without bounds,
    # torch would leave the highest bit at zero.
    numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64)
    numbers.random_(-(2**63), None, generator=generator)
    return numbers.view(torch.int16)[: x.numel()].view(x.shape)


def require_range(owner: str, x: Tensor, max_value: int) -> None:
    """Raise unless levels on a CPU are in 0..max_value. NaN is missing."""
    if x.device.type != "cpu" or x.numel() == 0 or x.dtype == torch.bool:
        return
    low, high = (bound.item() for bound in torch.aminmax(x))
    if low < 0 or high > max_value:
        raise ValueError(
            f"{owner} expects levels in 0..{max_value}, got {low:g}..{high:g}: scale the data, or "
            "pass the number of their levels"
        )


@dataclass(frozen=True)
class DynamicBinarization:
    r"""Transform that binarizes a batch at random. A gray level is the probability of a one.

    Call it as ``(x, generator) -> zeros and ones``. Integers :math:`x \in \{0, \dots, M\}` become
    1 with probability :math:`x / M`: 0 never does, :math:`M` always does. With uniform bits this
    is exact for :math:`M \leq 2^{37}`. The way in which torch draws :math:`v < M` changes it by
    less than :math:`2^{-50} M`, and not at all if :math:`M` is a power of two. Floats
    :math:`x \in [0, 1]` are the probabilities themselves, rounded up to a multiple of
    :math:`2^{-24}` (float64: :math:`2^{-53}`).

    Examples are independent of each other. Pixels of one example share :math:`v`: any two of them
    have a covariance below :math:`2^{-34}`.

    NaN, a missing pixel, stays NaN. The range of ``x`` is checked on a CPU only, because a check
    would wait for a GPU. There values below 0 become 0, values above :math:`M` (floats: 1) become
    1. :class:`LabeledImages` checks the range once.

    Args:
        max_value: Gray level of white, :math:`M \geq 1`. Required for integers, None for floats.
    Shape:
        x: ``(B, *E)``, uint8, a signed integer dtype or floating; result: ``(B, *E)``, float32.

    Raises:
        ValueError: If ``max_value < 1``. When called, if ``x`` holds integers and ``max_value`` is
            None, or ``x`` is floating and ``max_value`` is not None, or a value is out of range.

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
        """Draw one binarization of ``x`` from ``generator``, which is on the device of ``x``.

        Torch's default generator is not used.
        """
        steps, max_value = self._num_fine_steps(x), self.max_value or 1
        require_range("DynamicBinarization", x, max_value)
        one_per_example = (*x.shape[:1], *[1] * (x.dim() - 1))
        fine = torch.randint(steps, one_per_example, generator=generator, device=x.device)
        if steps <= 2**8 or x.is_floating_point():
            dtype = torch.float32 if steps <= 2**8 else torch.float64
            fine = fine.to(dtype) * (max_value / steps / 2**16)
        return _keep_nan(ones(_random_words(x, generator), fine, x, max_value), x)

    def _num_fine_steps(self, x: Tensor) -> int:
        """Return the number n of values that the fine digits take."""
        if x.is_floating_point() == (self.max_value is None):
            return self.max_value or (2**37 if x.dtype == torch.float64 else 2**8)
        if self.max_value is None:
            raise ValueError(
                f"DynamicBinarization() expects floats in [0, 1], got {x.dtype}: "
                "pass the gray level of white, as in DynamicBinarization(max_value=255)"
            )
        raise ValueError(
            f"DynamicBinarization(max_value={self.max_value}) expects integers in "
            f"0..{self.max_value}, got {x.dtype}: pass the integers, or scale to [0, 1] and use "
            "DynamicBinarization()"
        )
