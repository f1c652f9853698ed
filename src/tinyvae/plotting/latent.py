"""Scatter plots of latent means."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tinyvae.plotting._style import (
    INK,
    LABEL,
    Array,
    Floats,
    add_axes,
    freeze_layout,
    new_figure,
    set_title,
    to_numpy,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Petroff (2021), arXiv:2107.02270: ten colors that differ under color-vision deficiency.
CLASS_COLORS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)


def latent_scatter(means: Array, labels: Array, *, title: str | None = None) -> Figure:
    """Draw points in latent space, colored by class, with each class number at its median.

    A number moves up if it would hide another one. More than two dimensions are projected onto
    the first two principal components, and the axes name the share of the variance that each
    explains. More than ten classes repeat the colors.

    Args:
        means: Points, such as the means of the posteriors.
        labels: Class of each point.
        title: Title above the axes.

    Shape:
        means: ``(N, D)`` with ``D >= 2``; labels: ``(N,)``, integers.

    Raises:
        ValueError: If a shape or a dtype is invalid, or a mean is not finite.

    Example:
        >>> figure = latent_scatter(torch.randn(50, 2), torch.arange(50) % 5)
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['0', '1', '2', '3', '4']
    """
    points, classes = to_numpy(means), to_numpy(labels)
    if points.ndim != 2 or points.shape[1] < 2 or len(points) < 2:
        remedy = "for one latent dimension draw a histogram instead"
        if points.ndim > 2:
            remedy = "flatten(1) spatial latents, or pick one of several draws, z[0]"
        raise ValueError(
            f"latent_scatter expects means (N, D) with N >= 2 and D >= 2, got {points.shape}: "
            f"{remedy}"
        )
    if classes.shape != points.shape[:1] or not np.array_equal(classes, np.round(classes)):
        raise ValueError(
            f"latent_scatter expects labels ({len(points)},) of integers, got {classes.shape} "
            f"{getattr(labels, 'dtype', '')}: pass the class number of each mean"
        )
    if not np.isfinite(points).all():
        raise ValueError("latent_scatter expects finite means, got nan or inf: leave them out")
    names = ["latent dimension 1", "latent dimension 2"]
    if points.shape[1] > 2:
        points, shares = principal_components(points)
        names = [f"component {k} ({s:.0%} of the variance)" for k, s in enumerate(shares, start=1)]

    figure = new_figure(6.5, 6.5)
    axes = add_axes(figure, *names)
    axes.set_aspect("equal", adjustable="datalim")
    set_title(axes, wrapped(title, figure), pad=8)
    unique, index = np.unique(classes, return_inverse=True)
    # Multiples of the golden ratio shuffle without random numbers, so that no class is on top.
    order = np.argsort(np.arange(len(points)) * 0.5 * (math.sqrt(5) - 1) % 1)
    colors = [CLASS_COLORS[i % len(CLASS_COLORS)] for i in range(len(unique))]
    size = min(30.0, max(3.0, 20000 / len(points)))
    shade = np.array(colors)[index[order]]
    axes.scatter(*points[order].T, s=size, c=shade, alpha=0.75, linewidths=0)
    # Positions are in units of about the height of a badge, which moves up until it hides no other.
    origin, unit = points.min(axis=0), 0.065 * np.ptp([axes.get_xlim(), axes.get_ylim()], 1).max()
    badges: list[tuple[float, float]] = []
    for label in unique:
        x, y = (np.median(points[classes == label], axis=0) - origin) / unit
        while any(abs(x - a) < 1 and abs(y - b) < 1 for a, b in badges):
            y += 0.25
        badges.append((x, y))
    positions = origin + unit * np.array(badges)
    axes.scatter(*positions.T, s=480, c="white", edgecolors=colors, linewidths=2.5, zorder=2.5)
    for label, (x, y) in zip(unique, positions, strict=True):
        text = axes.text(x, y, f"{label:.0f}", ha="center", va="center_baseline")
        text.set(fontsize=LABEL, color=INK)
    freeze_layout(figure)
    return figure


def principal_components(points: Floats) -> tuple[Floats, Floats]:
    """Return two principal components ``(N, 2)`` and their shares of the variance ``(2,)``."""
    centered = points - points.mean(axis=0)
    _, scale, axes = np.linalg.svd(centered, full_matrices=False)
    # The sign of an axis is arbitrary: make its largest entry positive.
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    axes = axes * np.sign(largest)
    share = scale**2 / max(np.sum(scale**2), np.finfo(np.float64).tiny)
    return centered @ axes[:2].T, share[:2]
