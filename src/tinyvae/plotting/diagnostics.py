"""Rate and distortion, and the KL of each dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tinyvae.plotting._style import (
    GRAY,
    INK,
    LABEL,
    RULE,
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
from tinyvae.plotting.curves import COLORS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rate_distortion_curve(
    series: Mapping[str, tuple[Values, Values]],
    *,
    notes: Mapping[str, list[str]] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the distortion of models over their rate, such as models of several beta.

    A thin line through the best model joins all points of its ELBO, minus rate minus distortion.
    Points below it would be better.

    Args:
        series: Rates and distortions by label, in nats per datum.
        notes: Texts next to the points of a series, such as the values of beta.
        title: Title above the axes.

    Shape:
        series: rates and distortions, ``(n,)`` each.

    Raises:
        ValueError: If there is no series, a shape is invalid or a value is not finite.

    References:
        Alemi, Poole, Fischer, Dillon, Saurous, Murphy (2018). Fixing a Broken ELBO.
        arXiv:1711.00464, figure 1.

    Example:
        >>> points = ([2.0, 10.0, 25.0], [150.0, 100.0, 80.0])
        >>> notes = {"VAE": ["beta=4", "beta=1", "beta=0.2"]}
        >>> figure = rate_distortion_curve({"VAE": points}, notes=notes)
        >>> figure.axes[0].get_xlabel()
        'rate (nats)'
    """
    points = {}
    for label, (rate, distortion) in series.items():
        pair = np.stack([_vector("rate_distortion_curve", v) for v in (rate, distortion)], axis=1)
        points[label] = pair[np.argsort(pair[:, 0], kind="stable")]
    if not points:
        raise ValueError("rate_distortion_curve expects a series, got none: pass {label: (r, d)}")
    figure = new_figure(6.5, 5)
    axes = add_axes(figure, "rate (nats)", "distortion (nats)")
    set_title(axes, wrapped(title, figure), pad=8)
    for index, (label, pair) in enumerate(points.items()):
        color = COLORS[index % len(COLORS)]
        axes.plot(*pair.T, "o-", color=color, lw=2, markersize=6, label=label, zorder=3)
    for label, texts in (notes or {}).items():
        rate, distortion = (to_numpy(values) for values in series[label])
        for text, x, y in zip(texts, rate, distortion, strict=True):
            offset = {"xytext": (7, 4), "textcoords": "offset points"}
            axes.annotate(text, (x, y), fontsize=SMALL, color=GRAY, **offset)
    axes.margins(x=0.12, y=0.08)
    x_limits, y_limits = axes.get_xlim(), axes.get_ylim()
    best = min(pair.sum(axis=1).min() for pair in points.values())
    ends = np.array(x_limits)
    axes.plot(ends, best - ends, color=RULE, lw=1, label=f"ELBO {-best:.4g}", zorder=1)
    axes.set(xlim=x_limits, ylim=y_limits)
    axes.legend(frameon=False, fontsize=LABEL, labelcolor=INK)
    freeze_layout(figure)
    return figure


def kl_bars(kl: Values, *, threshold: float | None = None, title: str | None = None) -> Figure:
    """Draw the KL of each latent dimension as bars, in decreasing order.

    Args:
        kl: Mean KL of each dimension, in nats per datum.
        threshold: KL above which a dimension is active. The bars of others are gray, and a note
            counts the active ones.
        title: Title above the axes.

    Shape:
        kl: ``(L,)``.

    Raises:
        ValueError: If the shape is invalid or a value is not finite.

    Example:
        >>> figure = kl_bars([0.0, 2.5, 1.2], threshold=0.01)
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['1', '2', '0']
    """
    values = _vector("kl_bars", kl)
    order = np.argsort(-values, kind="stable")
    active = np.ones(len(values), dtype=bool) if threshold is None else values > threshold
    figure = new_figure(8, 4.5)
    axes = add_axes(figure, "latent dimension", "KL (nats)")
    colors = np.where(active[order], COLORS[0], RULE)
    axes.bar(np.arange(len(values)), values[order], color=colors, width=0.8)
    note = "" if threshold is None else f"{active.sum()} of {len(values)} above {threshold:g} nats"
    axes.text(
        1, 0.98, note, transform=axes.transAxes, ha="right", va="top", fontsize=LABEL, color=INK
    )
    step = -(-len(values) // 20)  # at most 20 numbers fit
    axes.set_xticks(np.arange(len(values))[::step], [str(dim) for dim in order[::step]])
    axes.margins(x=0.02)
    axes.set_ylim(bottom=min(0.0, values.min()))
    set_title(axes, wrapped(title, figure), pad=8)
    freeze_layout(figure)
    return figure


def _vector(name: str, values: Values) -> Floats:
    array = to_numpy(values)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{name} expects finite values (n,), got {array.shape}: leave out others")
    return array
