"""Grids and rows of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyvae.plotting._style import DPI, INK, LABEL, Array, Floats, new_figure, set_title, to_numpy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def image_grid(images: Array, *, columns: int | None = None, title: str | None = None) -> Figure:
    """Draw a grid of images, row by row, on the fixed scale 0 (black) to 1 (white).

    Args:
        images: Gray or RGB images with values in [0, 1]. They are never rescaled.
        columns: Images per row. The default makes the grid about square.
        title: Title above the images.

    Shape:
        images: ``(N, C, H, W)`` with ``C`` 1 or 3.

    Raises:
        ValueError: If the shape, the values or ``columns`` are invalid.

    Example:
        >>> figure = image_grid(torch.rand(10, 1, 28, 28), title="Samples")
        >>> len(figure.axes[0].images)
        10
    """
    tiles = _tiles("image_grid", images)
    columns = math.ceil(math.sqrt(len(tiles))) if columns is None else columns
    if columns < 1:
        raise ValueError(f"image_grid expects columns >= 1, got {columns}: leave it out")
    columns = min(columns, len(tiles))
    return _mosaic([tiles[i : i + columns] for i in range(0, len(tiles), columns)], [], title)


def image_rows(rows: Mapping[str, Array], *, title: str | None = None) -> Figure:
    """Draw labeled rows of images, such as inputs above their reconstructions.

    Args:
        rows: Images by label, as in :func:`image_grid`, from top to bottom.
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
    tiles = {label: _tiles(f"image_rows, row {label!r}", images) for label, images in rows.items()}
    shapes = {label: (len(row), *row[0].shape[:2]) for label, row in tiles.items()}  # N, H, W
    if len(set(shapes.values())) > 1:
        raise ValueError(
            f"image_rows expects the same (N, H, W) in every row, got {shapes}: "
            "cut the rows to the same number of images of one size"
        )
    return _mosaic(list(tiles.values()), list(tiles), title)


def _tiles(name: str, images: Array) -> list[Floats]:
    """Return the images in matplotlib's layout: ``(H, W)`` gray or ``(H, W, 3)`` RGB."""
    array = to_numpy(images)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or array.size == 0:
        raise ValueError(
            f"{name} expects images (N, C, H, W) with C 1 or 3, got {array.shape}: "
            "unsqueeze(1) gray images (N, H, W), permute(0, 3, 1, 2) images (N, H, W, C)"
        )
    if not (array.min() >= 0 and array.max() <= 1):  # nan fails, too
        raise ValueError(
            f"{name} expects values in [0, 1], got {array.min():.4g}..{array.max():.4g}: "
            "divide bytes by 255, clamp(0, 1) unbounded means"
        )
    return [x[0] if len(x) == 1 else np.moveaxis(x, 0, -1) for x in array]


def _mosaic(rows: Sequence[Sequence[Floats]], labels: Sequence[str], title: str | None) -> Figure:
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
    right = pad + max(0, math.ceil(heading.width) - total[0])
    size = (left + total[0] + right, top + total[1] + pad)
    figure.set_size_inches(size[0] / DPI, size[1] / DPI)
    axes.set_position((left / size[0], pad / size[1], total[0] / size[0], total[1] / size[1]))
    return figure
