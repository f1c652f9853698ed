"""Grids and rows of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tinyvae.plotting._style import (
    DPI,
    GRAY,
    INK,
    LABEL,
    SMALL,
    Array,
    Floats,
    new_figure,
    set_title,
    to_numpy,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Limits: TypeAlias = tuple[float, float]
Bools: TypeAlias = npt.NDArray[np.bool_]
FAR = 10.0  # in units of the scale


def image_grid(
    images: Array,
    *,
    columns: int | None = None,
    limits: Limits = (0.0, 1.0),
    title: str | None = None,
) -> Figure:
    """Draw a grid of images, row by row, on a fixed scale from black to white.

    Values outside the scale, such as draws of a Gaussian, are drawn black or white, and a note
    below the images names their share.

    Args:
        images: Gray or RGB images.
        columns: Images per row. The default makes the grid about square.
        limits: Values of black and white: ``(0, 255)`` for bytes. The scale never follows the data.
        title: Title above the images.

    Shape:
        images: ``(N, C, H, W)`` with ``C`` 1 or 3.

    Raises:
        ValueError: If the shape, ``columns`` or ``limits`` are invalid, a value is not finite, or
            the values have another scale than ``limits``.

    Example:
        >>> figure = image_grid(torch.rand(10, 1, 28, 28), title="Samples")
        >>> len(figure.axes[0].images)
        10
        >>> levels = torch.randint(0, 256, (10, 1, 28, 28))
        >>> figure = image_grid(levels, limits=(0, 255))
    """
    tiles, outside = _tiles("image_grid", images, limits)
    columns = math.ceil(math.sqrt(len(tiles))) if columns is None else columns
    if columns < 1:
        raise ValueError(f"image_grid expects columns >= 1, got {columns}: leave it out")
    columns = min(columns, len(tiles))
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    return _mosaic(rows, [], title, _note(outside, limits))


def image_rows(
    rows: Mapping[str, Array], *, limits: Limits = (0.0, 1.0), title: str | None = None
) -> Figure:
    """Draw labeled rows of images, such as inputs above their reconstructions.

    Args:
        rows: Images by label, as in :func:`image_grid`, from top to bottom.
        limits: Values of black and white in all rows, see :func:`image_grid`.
        title: Title above the images.

    Shape:
        rows: ``(N, C, H, W)`` each, with ``C`` 1 or 3 and the same ``N``, ``H``, ``W``.

    Raises:
        ValueError: If there is no row, or a shape or value is invalid.

    Example:
        >>> x = torch.rand(8, 1, 28, 28)
        >>> figure = image_rows({"input": x, "reconstruction": x.round()})
        >>> [label.get_text() for label in figure.axes[0].texts]
        ['input', 'reconstruction']
    """
    if not rows:
        raise ValueError("image_rows expects at least one row, got none: pass {label: images}")
    drawn = {
        label: _tiles(f"image_rows, row {label!r}", images, limits)
        for label, images in rows.items()
    }
    tiles = {label: row for label, (row, _) in drawn.items()}
    outside = np.concatenate([outside.ravel() for _, outside in drawn.values()])
    shapes = {label: (len(row), *row[0].shape[:2]) for label, row in tiles.items()}  # N, H, W
    if len(set(shapes.values())) > 1:
        raise ValueError(
            f"image_rows expects the same (N, H, W) in every row, got {shapes}: "
            "cut the rows to the same number of images of one size"
        )
    return _mosaic(list(tiles.values()), list(tiles), title, _note(outside, limits))


def _tiles(name: str, images: Array, limits: Limits) -> tuple[list[Floats], Bools]:
    """Return the images in matplotlib's layout, and which values are outside the limits.

    The layout is ``(H, W)`` for gray and ``(H, W, 3)`` for RGB images, with values in [0, 1].
    """
    array, (low, high) = to_numpy(images), limits
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"{name} expects limits (low, high) with low < high, got {limits}")
    if array.ndim != 4 or array.shape[1] not in (1, 3) or array.size == 0:
        remedies = {
            2: "reshape flat images, (-1, 1, H, W)",
            3: "unsqueeze(1) gray images (N, H, W), unsqueeze(0) one image (C, H, W)",
            4: "permute(0, 3, 1, 2) images (N, H, W, C), draw one channel of others",
        }
        remedy = remedies.get(array.ndim, "flatten(0, 1) the dimensions in front of (C, H, W)")
        raise ValueError(
            f"{name} expects images (N, C, H, W) with C 1 or 3, got {array.shape}: {remedy}"
        )
    span = f"{array.min():.4g}..{array.max():.4g}"
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} expects finite values in [{low:g}, {high:g}], got {span}: replace missing "
            "pixels, such as by nan_to_num(0.5)"
        )
    scaled = (array - low) / (high - low)
    outside = (scaled < 0) | (scaled > 1)
    # Levels, or so many values so far out that noise does not explain them.
    has_levels = "int" in str(images.dtype) or (np.abs(scaled) > FAR).mean() > 0.01
    if (low, high) == (0, 1) and has_levels and outside.any():
        raise ValueError(
            f"{name} expects values in [0, 1], got {span}: divide bytes by 255, or give the values "
            "of black and white, limits=(0, 255)"
        )
    tiles = [x[0] if len(x) == 1 else np.moveaxis(x, 0, -1) for x in np.clip(scaled, 0, 1)]
    return tiles, outside


def _note(outside: Bools, limits: Limits) -> str:
    low, high = limits
    share = f"{outside.mean():.1%}" if outside.mean() >= 0.001 else "<0.1%"
    return f"{share} of values outside [{low:g}, {high:g}]" if outside.any() else ""


def _mosaic(
    rows: Sequence[Sequence[Floats]], labels: Sequence[str], title: str | None, note: str
) -> Figure:
    """Draw rows of tiles, each pixel as a whole number of dots, so that all have equal size."""
    columns, (height, width) = len(rows[0]), rows[0][0].shape[:2]
    # All lengths are dots. Tiles have at most 0.9 inch and rows 8 inches, if scale 1 fits.
    scale = max(1, min(180 // max(height, width), 1600 // (columns * width)))
    height, width = height * scale, width * scale
    gap, pad = max(2, round(0.04 * max(height, width))), 36
    total = (columns * (width + gap) - gap, len(rows) * (height + gap) - gap)

    figure = new_figure(1, 1)
    axes: Any = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    style = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest", "origin": "upper"}
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            x, y = c * (width + gap), r * (height + gap)
            axes.imshow(tile, extent=(x, x + width, y + height, y), **style)
    axes.set(xlim=(0, total[0]), ylim=(total[1], 0), aspect="auto")
    texts = [axes.text(-pad / 2, r * (height + gap) + height / 2, t) for r, t in enumerate(labels)]
    for text in texts:
        text.set(ha="right", va="center", fontsize=LABEL, color=INK)
    heading = set_title(axes, title, pad=8).get_window_extent()

    # The figure gets the size of its content, whose text can be measured only now.
    label = max((text.get_window_extent().width + pad / 2 for text in texts), default=0)
    left = pad + math.ceil(label)
    top = pad + (math.ceil(heading.height) + 22 if title else 0)
    remark = figure.text(0, 0, note, fontsize=SMALL, color=GRAY)
    box = remark.get_window_extent()
    right = pad + max(0, math.ceil(max(heading.width, box.width)) - total[0])
    bottom = pad + (math.ceil(box.height) + 12 if note else 0)
    size = (left + total[0] + right, top + total[1] + bottom)
    figure.set_size_inches(size[0] / DPI, size[1] / DPI)
    axes.set_position((left / size[0], bottom / size[1], total[0] / size[0], total[1] / size[1]))
    remark.set_position((left / size[0], pad / size[1]))
    return figure
