"""A set of labeled images, and disjoint parts of a set."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from numbers import Integral
from typing import TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class LabeledImages:
    """Images on the scale ``0..max_value``, with one label each.

    Args:
        images: The pixels, uint8.
        labels: One class per image, int64.
        max_value: White: the value that stands for full intensity, in 1..255.
        name: What the set is called, for reports.
    Shape:
        images: ``(N, C, H, W)``; labels: ``(N,)``.

    Raises:
        TypeError: If a dtype is another.
        ValueError: If a shape is another, or a pixel exceeds ``max_value``.

    Example:
        >>> images = torch.zeros(5, 1, 2, 2, dtype=torch.uint8)
        >>> data = LabeledImages(images, torch.arange(5), max_value=255, name="black")
        >>> data
        LabeledImages('black', images=(5, 1, 2, 2), max_value=255)
        >>> data[1:3].labels, data[data.labels == 4].labels
        (tensor([1, 2]), tensor([4]))
    """

    images: Tensor
    labels: Tensor
    max_value: int
    name: str

    def __post_init__(self) -> None:
        for field, tensor, dtype in (
            ("images", self.images, torch.uint8),
            ("labels", self.labels, torch.int64),
        ):
            if tensor.dtype != dtype:
                raise TypeError(
                    f"LabeledImages expects {field} of {dtype}, got {tensor.dtype}: "
                    f"convert by .to({dtype}), after a look at the scale"
                )
        if self.images.ndim != 4:
            raise ValueError(
                f"LabeledImages expects images of shape (N, C, H, W), got "
                f"{tuple(self.images.shape)}: gray images have C = 1, as by .unsqueeze(1)"
            )
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"LabeledImages expects labels of shape ({len(self.images)},), one per image, got "
                f"{tuple(self.labels.shape)}: check that both come from the same file"
            )
        if not 1 <= self.max_value <= 255:
            raise ValueError(
                f"LabeledImages expects max_value in 1..255, got {self.max_value}: "
                "pass the value of a white pixel"
            )
        brightest = int(self.images.max()) if self.images.numel() else 0
        if brightest > self.max_value:
            raise ValueError(
                f"LabeledImages expects pixels in 0..{self.max_value}, got {brightest}: "
                "pass the max_value of the scale that the pixels are on"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> "LabeledImages":
        """Returns the images at a slice, at positions or where a mask holds, as another such set.

        Args:
            index: A slice (no copy), or a 1-d tensor: int64 positions or a boolean mask.

        Raises:
            TypeError: If the index is anything else, such as one number.
        """
        if not isinstance(index, slice) and not (
            isinstance(index, Tensor)
            and index.ndim == 1
            and index.dtype in (torch.int64, torch.bool)
        ):
            raise TypeError(
                "LabeledImages expects a slice or a 1-d tensor of int64 or bool as an index, got "
                f"{index!r}: one image is .images[i]"
            )
        return LabeledImages(self.images[index], self.labels[index], self.max_value, self.name)

    def __repr__(self) -> str:
        shape = tuple(self.images.shape)
        return f"LabeledImages({self.name!r}, images={shape}, max_value={self.max_value})"


Data = TypeVar("Data", Tensor, LabeledImages)


def split(data: Data, sizes: Sequence[float], *, seed: int = 0) -> tuple[Data, ...]:
    """Random disjoint parts, the same for the same seed, number of items and sizes.

    The items are permute_dims by a generator of its own and cut in order; torch's default generator is
    left alone. Sizes that do not add up to everything leave the rest out.

    Args:
        data: Items along the first dimension, or a set of images.
        sizes: All integers (numbers of items) or all floats (fractions of them). The cuts between
            fractions are rounded, not the parts: ``(0.8, 0.1, 0.1)`` loses no item. So ``(1,)`` is
            one item and ``(1.0,)`` all of them.
        seed: Of the permutation.
    Shape:
        data: ``(N, *)``; part i: ``(sizes[i], *)``, a copy.

    Raises:
        TypeError: If the sizes are neither all integers nor all floats.
        ValueError: If there are none, a part would be empty, or they exceed the whole.

    Example:
        >>> train, test = split(torch.arange(10), (7, 3))
        >>> len(train), len(test), torch.cat([train, test]).sort().values.equal(torch.arange(10))
        (7, 3, True)
    """
    cuts = _cuts(sizes, len(data))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return tuple(data[order[start:stop]] for start, stop in pairwise(cuts))


def _cuts(sizes: Sequence[float], total: int) -> list[int]:
    """Where the parts begin and end: ``[0, ..., at most total]``."""
    whole: float
    if all(isinstance(size, Integral) for size in sizes):
        whole, scale = total, 1
    elif all(isinstance(size, float) and math.isfinite(size) for size in sizes):
        whole, scale = 1.0, total
    else:
        raise TypeError(
            f"split expects sizes that are all integers or all finite floats, got {tuple(sizes)}: "
            "write numbers of items, or fractions"
        )
    sums = list(accumulate(sizes))
    cuts = [0, *(round(scale * end) for end in sums)]
    if not sums or any(start >= stop for start, stop in pairwise(cuts)):
        raise ValueError(
            f"split expects at least one size and at least one item in each part, got sizes "
            f"{tuple(sizes)} of {total} items: leave the empty part out"
        )
    if sums[-1] > whole + 1e-9:  # fractions add up with rounding errors
        raise ValueError(
            f"split expects sizes that add up to at most {whole}, got {tuple(sizes)} of {total} "
            "items: make a part smaller"
        )
    return cuts
