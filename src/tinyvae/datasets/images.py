"""Labeled images, and random splits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from numbers import Integral
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class LabeledImages:
    """Images on the scale ``0..max_value``, with one label each.

    Args:
        images: Pixels, uint8.
        labels: Class of each image, int64.
        max_value: Value of a white pixel, in 1..255.
        name: Name of the data set, for reports.
    Shape:
        images: ``(N, C, H, W)``; labels: ``(N,)``.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape is wrong, or a pixel exceeds ``max_value``.

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
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    f"LabeledImages expects tensors, got {field} of type "
                    f"{type(tensor).__name__}: pass torch.as_tensor({field})"
                )
            if tensor.dtype != dtype:
                raise TypeError(
                    f"LabeledImages expects {field} of {dtype}, got {tensor.dtype}: "
                    f"check the scale, then convert by .to({dtype})"
                )
        if self.images.ndim != 4:
            raise ValueError(
                f"LabeledImages expects images of shape (N, C, H, W), got "
                f"{tuple(self.images.shape)}: use .unsqueeze(1) for gray images"
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
                "pass the max_value of the scale of the pixels"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> "LabeledImages":
        """Return the images at a slice, at positions or in a mask, with their labels.

        Args:
            index: Slice (no copy), or 1-d tensor of int64 positions or of booleans.

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
                f"{index!r}: use .images[i] for one image"
            )
        return LabeledImages(self.images[index], self.labels[index], self.max_value, self.name)

    def __repr__(self) -> str:
        shape = tuple(self.images.shape)
        return f"LabeledImages({self.name!r}, images={shape}, max_value={self.max_value})"


Data = TypeVar("Data", Tensor, "np.ndarray[Any, Any]", LabeledImages)


def split(data: Data, sizes: Sequence[float], *, seed: int = 0) -> tuple[Data, ...]:
    """Split data into random disjoint parts that depend on the seed and the sizes only.

    A permutation of the items is cut into parts. torch's default generator is not used. If the
    sizes add up to less than all items, the remaining items are left out.

    Args:
        data: Items along the first dimension, or labeled images.
        sizes: All integers (numbers of items) or all floats (fractions). The cuts are rounded, not
            the sizes, so that ``(0.8, 0.1, 0.1)`` loses no item. Note that ``(1,)`` is one item
            and ``(1.0,)`` is all items.
        seed: Seed of the permutation.
    Shape:
        data: ``(N, *)``; part i: ``(sizes[i], *)``, a copy.

    Raises:
        TypeError: If the sizes are neither all integers nor all floats, or ``data`` are of another
            kind, such as a tuple.
        ValueError: If there is no size, a part would be empty, or the sizes exceed the total.

    Example:
        >>> train, test = split(torch.arange(10), (7, 3))
        >>> len(train), len(test), torch.cat([train, test]).sort().values.equal(torch.arange(10))
        (7, 3, True)
    """
    if not isinstance(data, Tensor | np.ndarray | LabeledImages):
        raise TypeError(
            f"split expects a tensor, an array or LabeledImages, got a {type(data).__name__}: "
            "split positions, split(torch.arange(num_examples), sizes), and index your data"
        )
    cuts = _cuts(sizes, len(data))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return tuple(data[order[start:stop]] for start, stop in pairwise(cuts))


def _cuts(sizes: Sequence[float], total: int) -> list[int]:
    """Return the ends of the parts, after a leading 0."""
    limit: float
    if all(isinstance(size, Integral) for size in sizes):
        limit, scale = total, 1
    elif all(isinstance(size, float) and math.isfinite(size) for size in sizes):
        limit, scale = 1.0, total
    else:
        raise TypeError(
            f"split expects sizes that are all integers or all finite floats, got {tuple(sizes)}: "
            "pass numbers of items, or fractions"
        )
    sums = list(accumulate(sizes))
    cuts = [0, *(round(scale * end) for end in sums)]
    if not sums or any(start >= stop for start, stop in pairwise(cuts)):
        raise ValueError(
            f"split expects at least one size and at least one item in each part, got sizes "
            f"{tuple(sizes)} of {total} items: leave the empty part out"
        )
    if sums[-1] > limit + 1e-9:  # sums of fractions have rounding errors
        raise ValueError(
            f"split expects sizes that add up to at most {limit}, got {tuple(sizes)} of {total} "
            "items: make a part smaller"
        )
    return cuts
