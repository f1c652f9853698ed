"""Curves of a quantity over training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tinyvae.plotting._style import (
    DPI,
    GRAY,
    LABEL,
    SMALL,
    Floats,
    Values,
    add_axes,
    freeze_layout,
    new_figure,
    set_title,
    to_numpy,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONG = 500  # longer curves get a running mean
WINDOW = 0.02  # width of the running mean, share of the points
# Okabe and Ito (2008) without yellow, which is too light on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def curves(
    series: Mapping[str, tuple[Values, Values]],
    *,
    xlabel: str,
    ylabel: str,
    title: str | None = None,
    logx: bool = False,
) -> Figure:
    """Draw curves with labels at the right end, such as a loss over updates or epochs.

    A curve of more than 500 points is faint, and its running mean over 2% of the points is drawn
    on top. The y-axis shows all points unless that takes several times the height of 80% of the
    points of each curve and the last half of its line. A note above the axes names the running
    mean and the number of points outside.

    Args:
        series: ``(x, y)`` by label. Values of ``y`` that are not finite leave a gap.
        xlabel: Quantity on the x-axis, with its unit: ``"update"``.
        ylabel: Quantity on the y-axis, with its unit: ``"negative ELBO (nats)"``.
        title: Title above the axes.
        logx: If True, the x-axis is logarithmic.

    Shape:
        series: ``x`` and ``y`` both ``(n,)``, with any ``n >= 1`` for each curve.

    Raises:
        ValueError: If there is no curve, ``x`` and ``y`` differ in shape, a curve has no finite
            value, or ``logx`` is True and an ``x <= 0``.

    Example:
        >>> series = {"training": ([1, 2, 3], [3.0, 2.0, 1.5]), "test": ([1, 3], [3.1, 1.8])}
        >>> figure = curves(series, xlabel="epoch", ylabel="negative ELBO (nats)")
        >>> figure.axes[0].get_ylabel()
        'negative ELBO (nats)'
    """
    data = {label: _curve(label, x, y, logx) for label, (x, y) in series.items()}
    if not data:
        raise ValueError("curves expects at least one curve, got none: pass {label: (x, y)}")
    figure = new_figure(8, 4.5)
    from matplotlib.ticker import MaxNLocator

    axes = add_axes(figure, xlabel, ylabel)
    axes.margins(x=0.01)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    if logx:
        axes.set_xscale("log")
    elif all(np.array_equal(x, np.round(x)) for x, _ in data.values()):
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))

    limits, ends, texts, notes = [], [], [], []
    for i, (label, (x, y)) in enumerate(data.items()):
        color, style = COLORS[i % len(COLORS)], ("-", "--", ":")[i // len(COLORS) % 3]
        line = y
        if len(y) > LONG:
            axes.plot(x, y, color=color, alpha=0.25, linewidth=0.6, zorder=2)
            line = running_mean(y, half=round(len(y) * WINDOW / 2))
            notes = [f"Running mean over {WINDOW:.0%} of the points; single points are faint"]
        marker = "o" if len(y) <= 20 else ""
        axes.plot(x, line, style, color=color, lw=2, marker=marker, markersize=5, zorder=3)
        limits.append(_limits(y, line, logx))
        ends.append(line[np.isfinite(line)][-1])
        texts.append(axes.text(1.015, 0.5, label, color=color, fontsize=LABEL))

    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin
    axes.set_ylim(low, high)
    points = np.concatenate([y for _, y in data.values()])
    above, below = points[points > high], points[points < low]
    if len(above):
        notes.append(f"{len(above)} of {len(points)} points above the axis, up to {max(above):.3g}")
    if len(below):
        notes.append(f"{len(below)} of {len(points)} points below the axis, to {min(below):.3g}")
    texts.append(axes.text(0, 1.02, "\n".join(notes), color=GRAY, fontsize=SMALL))
    for text in texts:
        text.set_transform(axes.transAxes)
    set_title(axes, wrapped(title, figure), pad=8 + 1.35 * SMALL * len(notes))

    freeze_layout(figure)  # now the height of the axes is known
    spacing = 1.25 * LABEL / 72 * DPI / axes.bbox.height
    heights = spread_apart((np.array(ends) - low) / (high - low), spacing)
    for text, height in zip(texts, heights, strict=False):  # all except the notes
        text.set(y=height, verticalalignment="center_baseline")
    return figure


def _curve(label: str, x: Values, y: Values, logx: bool) -> tuple[Floats, Floats]:
    x, y = to_numpy(x), to_numpy(y)
    if x.ndim != 1 or x.shape != y.shape or not np.isfinite(y).any():
        raise ValueError(
            f"curves expects x and y of one shape (n,) with a finite y, got {x.shape} and "
            f"{y.shape}, {np.isfinite(y).sum()} finite, for {label!r}: fix it or leave it out"
        )
    if logx and not (x > 0).all():
        raise ValueError(f"logx expects x > 0, got {x.min():g} for {label!r}: count from 1")
    return x, y


def running_mean(y: Floats, half: int) -> Floats:
    """Return the mean of the finite values within ``min(half, i / 4)`` steps from each ``i``.

    A window without finite values gives nan. Near the start, where the curve is steep, the window
    is narrow on both sides, so that the mean follows the curve also on a logarithmic axis. At the
    end the window is cut off.
    """
    i = np.arange(len(y))
    reach = np.minimum(i // 4, half)
    # Alternating starts and stops: every second sum is that of a window. Unlike differences of
    # cumulative sums, this keeps windows next to a huge value exact.
    bounds = np.stack([i - reach, np.minimum(i + reach + 1, len(y))], axis=1).ravel()
    finite = np.append(np.isfinite(y), False)  # a stop can be n
    sums = np.add.reduceat(np.where(finite, np.append(y, 0.0), 0.0), bounds)[::2]
    counts = np.add.reduceat(finite.astype(np.float64), bounds)[::2]
    mean: Floats = np.divide(sums, counts, out=np.full(len(y), np.nan), where=counts > 0)
    return mean


def _limits(y: Floats, line: Floats, logx: bool) -> tuple[float, float]:
    """Return the range of all points, or only of the bulk and the end if that is far narrower."""
    y, line = y[np.isfinite(y)], line[np.isfinite(line)]
    # On a logarithmic axis the few first points take as much space as the many last ones.
    bulk = y[np.unique(np.geomspace(1, len(y), 200).astype(int)) - 1] if logx else y
    end = line[(len(line) - 1) // 2 :]
    low = min(np.percentile(bulk, 10, method="higher"), end.min())
    high = max(np.percentile(bulk, 90, method="lower"), end.max())
    span = high - low
    lowest = y.min() if y.min() >= low - 4 * span else low - 0.5 * span
    highest = y.max() if y.max() <= high + 4 * span else high + 0.5 * span
    return float(lowest), float(highest)


def spread_apart(heights: Floats, spacing: float) -> Floats:
    """Return heights in [0, 1] that are at least ``spacing`` apart, so that labels do not touch."""
    order = np.argsort(heights, kind="stable")
    y = heights[order]
    for i in range(1, len(y)):
        y[i] = max(y[i], y[i - 1] + spacing)
    y[-1] = min(y[-1], 1.0)
    for i in range(len(y) - 2, -1, -1):
        y[i] = min(y[i], y[i + 1] - spacing)
    spread = np.empty_like(y)
    spread[order] = y
    return spread
