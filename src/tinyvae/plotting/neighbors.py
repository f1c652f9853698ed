"""Samples with their nearest training images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tinyvae.plotting._style import Array, to_numpy
from tinyvae.plotting.images import Limits, image_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def nearest_neighbors(
    samples: Array,
    training: Array,
    *,
    k: int = 4,
    features: tuple[Array, Array] | None = None,
    limits: Limits = (0.0, 1.0),
    title: str | None = None,
) -> Figure:
    """Draw samples above their nearest training images, which shows copies.

    Pixels find only exact copies: a copy that moved by a pixel is far away. Features find more.

    Args:
        samples: Images of the model.
        training: Images that the model was trained on.
        k: Number of neighbors of each sample.
        features: Features of the samples and of the training images, in which the Euclidean
            distance is measured. By default the pixels.
        limits: Values of black and white, see :func:`image_grid`.
        title: Title above the images.

    Shape:
        samples: ``(N, C, H, W)``; training: ``(M, C, H, W)``, ``M >= k``; features: ``(N, ...)``
        and ``(M, ...)``.

    Raises:
        ValueError: If a shape or value is invalid.

    Example:
        >>> training = torch.rand(50, 1, 8, 8)
        >>> figure = nearest_neighbors(training[:6] + 0.001, training, limits=(0, 1.01))
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['sample', 'nearest', '2nd', '3rd', '4th']
    """
    x, y = to_numpy(samples), to_numpy(training)
    a, b = (x, y) if features is None else (to_numpy(f) for f in features)
    if not 1 <= k <= len(y) or len(a) != len(x) or len(b) != len(y):
        raise ValueError(
            f"nearest_neighbors expects 1 <= k <= number of training images, and features of all "
            f"images, got k={k}, {len(x)} samples, {len(y)} training images and features of "
            f"{len(a)} and {len(b)}"
        )
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    squared = np.stack([((row - b) ** 2).sum(axis=1) for row in a])  # (N, M)
    nearest = np.argsort(squared, axis=1, kind="stable")[:, :k]
    names = ["nearest", "2nd", "3rd", *(f"{rank}th" for rank in range(4, k + 1))]
    rows = {name: y[index] for name, index in zip(names, nearest.T, strict=False)}
    return image_rows({"sample": x, **rows}, limits=limits, title=title)
