"""Charts for examples that compare methods: dots on a line, estimates against true values."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito (2008): colors that remain distinct under color-vision deficiency.
BLUE, ORANGE, GREEN, INK, RULE = "#0072B2", "#D55E00", "#009E73", "#222222", "#E5E5E5"


def figure(width: float, height: float, columns: int = 1, **layout: Any) -> tuple[Figure, Any]:
    """Return a figure with axes side by side."""
    chart = Figure(figsize=(width, height), layout="constrained")
    axes = chart.subplots(1, columns, squeeze=False, **layout)[0]
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=12, colors=INK)
    return chart, axes


def heading(axes: Axes, title: str, xlabel: str, ylabel: str = "") -> None:
    """Set a title and labels in the sizes of :mod:`tinyvae.plotting`."""
    axes.set_title(title, loc="left", fontsize=14, color=INK, pad=10)
    axes.set_xlabel(xlabel, fontsize=13, color=INK)
    axes.set_ylabel(ylabel, fontsize=13, color=INK)


def dots(axes: Axes, rows: Mapping[str, Sequence[float]], form: str = "{:.3f}") -> None:
    """Draw one row per method, top to bottom: a dot per seed, a bar and a number at the mean."""
    for row, values in enumerate(rows.values()):
        mean = float(np.mean(values))
        axes.plot(values, [row] * len(values), "o", color=BLUE, alpha=0.6, markersize=8, mew=0)
        axes.plot([mean, mean], [row - 0.24, row + 0.24], color=ORANGE, linewidth=2.5)
        text = form.format(mean)
        number = axes.text(mean, row - 0.3, text, ha="center", va="bottom", fontsize=11)
        number.set(color=ORANGE, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.75)
    axes.margins(x=0.08)
    axes.grid(axis="x", color=RULE)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0, labelsize=12)


def compare(axes: Axes, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Draw one row per quantity, top to bottom, with one marker per method."""
    methods = list(next(iter(rows.values())))
    styles = zip(methods, (INK, ORANGE, BLUE), "s^o", (-0.2, 0, 0.2), strict=False)
    for method, color, marker, shift in styles:
        values = [row[method] for row in rows.values()]
        positions = np.arange(len(rows)) + shift  # no marker hides another
        axes.plot(values, positions, marker, color=color, markersize=8, label=method)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.grid(color=RULE)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0, labelsize=12)


def against(
    axes: Axes, true: np.ndarray, estimates: np.ndarray, limits: tuple[float, float], alpha: float
) -> None:
    """Plot estimates against true values, with a dashed diagonal; count the points outside."""
    axes.plot(limits, limits, color=INK, linewidth=1.2, linestyle="--", zorder=3)
    axes.plot(
        true, estimates, "o", color=BLUE, alpha=alpha, markersize=4 if alpha < 0.5 else 7, mew=0
    )
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    outside = np.sum(
        (np.minimum(true, estimates) < limits[0]) | (np.maximum(true, estimates) > limits[1])
    )
    if outside:
        text = f"{outside} of {len(true)} outside"
        axes.text(0.02, 0.96, text, transform=axes.transAxes, fontsize=11, color=INK, va="top")
