r"""Figures for talks and papers: images, training curves and latent space.

Long curves are drawn with the mean over the neighbours on both sides, fewer near the borders,

.. math:: \bar y_i = \frac{1}{|W_i|} \sum_{j \in W_i} y_j, \qquad
          W_i = \{j < n : |j - i| \leq \min(h, i / 4),\ y_j \text{ finite}\},

and latent means of more than two dimensions by their first two principal components, with the
share :math:`\lambda_k / \sum_j \lambda_j` of the variance that each explains.

Every function returns a :class:`matplotlib.figure.Figure` that belongs to the caller. Neither
``pyplot`` nor the global settings of matplotlib nor any random numbers are involved. matplotlib
is optional (``pip install 'tinyvae[examples]'``) and imported when the first figure is made.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["curves", "image_grid", "image_rows", "latent_scatter", "save_figure"]

_Array: TypeAlias = torch.Tensor | npt.NDArray[Any]
_Floats: TypeAlias = npt.NDArray[np.float64]
_Values: TypeAlias = _Array | Sequence[float]

_DPI = 200  # an 8 x 4.5 inch figure fills a slide of 1600 x 900 dots
_TITLE, _LABEL, _SMALL = 16, 14, 11  # points
_INK, _GRAY, _RULE = "#222222", "#666666", "#BBBBBB"
_LONG = 500  # points from which on a curve is noise to the eye and gets a running mean
_WINDOW = 0.02  # width of the running mean as a share of the points

# Okabe and Ito (2008) without its yellow, too light for lines and text on white.
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Petroff (2021), arXiv:2107.02270: ten colours that stay apart under colour-vision deficiency.
_CLASSES = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)


def image_grid(images: _Array, *, columns: int | None = None, title: str | None = None) -> Figure:
    """Images side by side, row by row, on the fixed scale 0 (black) to 1 (white).

    Args:
        images: Gray or RGB images with values in [0, 1], drawn as they are, never rescaled.
        columns: Images in a row; about as many as rows if not given.
        title: Written above the images.

    Shape:
        images: ``(N, C, H, W)`` with ``C`` 1 or 3.

    Raises:
        ValueError: If the shape, the values or ``columns`` are not as above.

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


def image_rows(rows: Mapping[str, _Array], *, title: str | None = None) -> Figure:
    """Labelled rows of images, such as inputs above their reconstructions.

    Args:
        rows: Label to images, as in :func:`image_grid`, from top to bottom.
        title: Written above the images.

    Shape:
        rows: Each ``(N, C, H, W)`` with ``C`` 1 or 3, and the same ``N``, ``H``, ``W``.

    Raises:
        ValueError: If there is no row, or a shape or value is not as above.

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


def curves(
    series: Mapping[str, tuple[_Values, _Values]],
    *,
    xlabel: str,
    ylabel: str,
    title: str | None = None,
    logx: bool = False,
) -> Figure:
    """Curves with their labels at the right end, such as a loss over updates or epochs.

    A curve of more than 500 points is drawn faintly, below its running mean over 2% of the
    points. The y-axis holds 80% of the points of each curve and the last half of its line, and
    every point unless that takes several times the height. A note above the axes says that there
    is a running mean, and how many points are left out.

    Args:
        series: Label to ``(x, y)``; values of ``y`` that are not finite leave a gap.
        xlabel: Quantity on the x-axis, with its unit: ``"update"``.
        ylabel: Quantity on the y-axis, with its unit: ``"negative ELBO (nats)"``.
        title: Written above the axes.
        logx: Whether the x-axis is logarithmic.

    Shape:
        series: ``x`` and ``y`` both ``(n,)``, with any ``n >= 1`` for each curve.

    Raises:
        ValueError: If there is no curve, ``x`` and ``y`` differ in shape, a curve has no finite
            value, or ``logx`` meets ``x <= 0``.

    Example:
        >>> series = {"training": ([1, 2, 3], [3.0, 2.0, 1.5]), "test": ([1, 3], [3.1, 1.8])}
        >>> figure = curves(series, xlabel="epoch", ylabel="negative ELBO (nats)")
        >>> figure.axes[0].get_ylabel()
        'negative ELBO (nats)'
    """
    data = {label: _curve(label, x, y, logx) for label, (x, y) in series.items()}
    if not data:
        raise ValueError("curves expects at least one curve, got none: pass {label: (x, y)}")
    figure = _figure(8, 4.5)
    from matplotlib.ticker import MaxNLocator

    axes = _axes(figure, xlabel, ylabel)
    axes.margins(x=0.01)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    if logx:
        axes.set_xscale("log")
    elif all(np.array_equal(x, np.round(x)) for x, _ in data.values()):
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))

    limits, ends, texts, notes = [], [], [], []
    for i, (label, (x, y)) in enumerate(data.items()):
        color, style = _LINES[i % len(_LINES)], ("-", "--", ":")[i // len(_LINES) % 3]
        line = y
        if len(y) > _LONG:
            axes.plot(x, y, color=color, alpha=0.25, linewidth=0.6, zorder=2)
            line = _running_mean(y, half=round(len(y) * _WINDOW / 2))
            notes = [f"Running mean over {_WINDOW:.0%} of the points; single points in faint"]
        marker = "o" if len(y) <= 20 else ""
        axes.plot(x, line, style, color=color, lw=2, marker=marker, markersize=5, zorder=3)
        limits.append(_limits(y, line, logx))
        ends.append(line[np.isfinite(line)][-1])
        texts.append(axes.text(1.015, 0.5, label, color=color, fontsize=_LABEL))

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
    texts.append(axes.text(0, 1.02, "\n".join(notes), color=_GRAY, fontsize=_SMALL))
    for text in texts:
        text.set_transform(axes.transAxes)
    _title(axes, _wrapped(title, figure), pad=8 + 1.35 * _SMALL * len(notes))

    _lay_out(figure)  # so that the height of the axes is known
    spacing = 1.25 * _LABEL / 72 * _DPI / axes.bbox.height
    heights = _spread((np.array(ends) - low) / (high - low), spacing)
    for text, height in zip(texts, heights, strict=False):  # all but the notes
        text.set(y=height, verticalalignment="center_baseline")
    return figure


def latent_scatter(means: _Array, labels: _Array, *, title: str | None = None) -> Figure:
    """Points in latent space, coloured by class, with the class number at its median.

    A number whose place is taken stands just above it. More than two dimensions are projected on
    the first two principal components, and the axes name the share of the variance that each
    explains. More than ten classes repeat the colours.

    Args:
        means: Points, such as the means of the posteriors.
        labels: Class of each point.
        title: Written above the axes.

    Shape:
        means: ``(N, D)`` with ``D >= 2``; labels: ``(N,)``, integers.

    Raises:
        ValueError: If a shape or a type is not as above, or a mean is not finite.

    Example:
        >>> figure = latent_scatter(torch.randn(50, 2), torch.arange(50) % 5)
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['0', '1', '2', '3', '4']
    """
    points, classes = _values(means), _values(labels)
    if points.ndim != 2 or points.shape[1] < 2 or len(points) < 2:
        raise ValueError(
            f"latent_scatter expects means (N, D) with N >= 2 and D >= 2, got {points.shape}: "
            "for one latent dimension draw a histogram instead"
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
        points, shares = _principal_components(points)
        names = [f"component {k} ({s:.0%} of the variance)" for k, s in enumerate(shares, start=1)]

    figure = _figure(6.5, 6.5)
    axes = _axes(figure, *names)
    axes.set_aspect("equal", adjustable="datalim")
    _title(axes, _wrapped(title, figure), pad=8)
    unique, index = np.unique(classes, return_inverse=True)
    # Multiples of the golden ratio shuffle without random numbers: no class lies on top.
    order = np.argsort(np.arange(len(points)) * 0.5 * (math.sqrt(5) - 1) % 1)
    colors = [_CLASSES[i % len(_CLASSES)] for i in range(len(unique))]
    size = min(30.0, max(3.0, 20000 / len(points)))
    shade = np.array(colors)[index[order]]
    axes.scatter(*points[order].T, s=size, c=shade, alpha=0.75, linewidths=0)
    # In units of about the height of a badge, which moves up until it hides no other.
    origin, unit = points.min(axis=0), 0.065 * np.ptp([axes.get_xlim(), axes.get_ylim()], 1).max()
    taken: list[tuple[float, float]] = []
    for label in unique:
        x, y = (np.median(points[classes == label], axis=0) - origin) / unit
        while any(abs(x - a) < 1 and abs(y - b) < 1 for a, b in taken):
            y += 0.25
        taken.append((x, y))
    places = origin + unit * np.array(taken)
    axes.scatter(*places.T, s=480, c="white", edgecolors=colors, linewidths=2.5, zorder=2.5)
    for label, (x, y) in zip(unique, places, strict=True):
        text = axes.text(x, y, f"{label:.0f}", ha="center", va="center_baseline")
        text.set(fontsize=_LABEL, color=_INK)
    _lay_out(figure)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG; the same figure gives the same bytes.

    Args:
        figure: Any figure of this module.
        path: File that ends in ``.png``; its folder is made if absent.

    Returns:
        The path.

    Raises:
        ValueError: If the path does not end in ``.png``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_figure(image_grid(torch.rand(4, 3, 8, 8)), f"{folder}/new/grid.png")
        ...     path.read_bytes()[1:4]
        b'PNG'
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"save_figure expects a path that ends in .png, got {path}: rename it")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without its name and version, which matplotlib writes unless told not to.
    figure.savefig(path, format="png", dpi=_DPI, metadata={"Software": None})
    return path


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "tinyvae.plotting needs matplotlib: pip install 'tinyvae[examples]'"
        ) from error
    figure = Figure(figsize=(width, height), dpi=_DPI)
    figure.set_layout_engine("none")  # whatever the user's settings say
    return figure


def _values(values: _Values) -> _Floats:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()  # numpy knows no bfloat16
    return np.asarray(values, dtype=np.float64)


def _tiles(name: str, images: _Array) -> list[_Floats]:
    """The images as matplotlib takes them: ``(H, W)`` gray or ``(H, W, 3)`` RGB."""
    array = _values(images)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or array.size == 0:
        raise ValueError(
            f"{name} expects images (N, C, H, W) with C 1 or 3, got {array.shape}: "
            "unsqueeze(1) gray images (N, H, W), permute(0, 3, 1, 2) images (N, H, W, C)"
        )
    if not (array.min() >= 0 and array.max() <= 1):  # so that nan fails, too
        raise ValueError(
            f"{name} expects values in [0, 1], got {array.min():.4g}..{array.max():.4g}: "
            "divide bytes by 255, clamp(0, 1) unbounded means"
        )
    return [x[0] if len(x) == 1 else np.moveaxis(x, 0, -1) for x in array]


def _mosaic(rows: Sequence[Sequence[_Floats]], labels: Sequence[str], title: str | None) -> Figure:
    """Rows of tiles at whole multiples of their pixels, so that all pixels and gaps are even."""
    columns, (height, width) = len(rows[0]), rows[0][0].shape[:2]
    # All lengths are dots: tiles of at most 0.9 inch and a width of 8 inches, where scale 1 fits.
    scale = max(1, min(180 // max(height, width), 1600 // (columns * width)))
    height, width = height * scale, width * scale
    gap, pad = max(2, round(0.04 * max(height, width))), 36
    total = (columns * (width + gap) - gap, len(rows) * (height + gap) - gap)

    figure = _figure(1, 1)
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
        text.set(ha="right", va="center", fontsize=_LABEL, color=_INK)
    heading = _title(axes, title, pad=8).get_window_extent()

    # The figure is as large as its content, whose text is measured only now.
    label = max((text.get_window_extent().width + pad / 2 for text in texts), default=0)
    left = pad + math.ceil(label)
    top = pad + (math.ceil(heading.height) + 22 if title else 0)
    right = pad + max(0, math.ceil(heading.width) - total[0])
    size = (left + total[0] + right, top + total[1] + pad)
    figure.set_size_inches(size[0] / _DPI, size[1] / _DPI)
    axes.set_position((left / size[0], pad / size[1], total[0] / size[0], total[1] / size[1]))
    return figure


def _axes(figure: Figure, xlabel: str, ylabel: str) -> Any:
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel, fontsize=_LABEL, color=_INK)
    axes.set_ylabel(ylabel, fontsize=_LABEL, color=_INK)
    axes.tick_params(which="both", labelsize=12, color=_RULE, labelcolor=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_RULE)
    return axes


def _lay_out(figure: Figure) -> None:
    """Lay out once and for all, or each drawing would move the axes a little."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def _title(axes: Any, title: str | None, pad: float) -> Any:
    return axes.set_title(title or "", loc="left", fontsize=_TITLE, color=_INK, pad=pad)


def _wrapped(title: str | None, figure: Figure) -> str | None:
    """A title broken into lines that end within the figure."""
    room = figure.get_figwidth() - 0.9  # inches, without the margin left of the axes
    columns = int(room * 72 / (0.57 * _TITLE))  # a character is some 0.57 of its height wide
    return title and "\n".join(textwrap.fill(line, columns) for line in title.splitlines())


def _curve(label: str, x: _Values, y: _Values, logx: bool) -> tuple[_Floats, _Floats]:
    x, y = _values(x), _values(y)
    if x.ndim != 1 or x.shape != y.shape or not np.isfinite(y).any():
        raise ValueError(
            f"curves expects x and y of one shape (n,) with a finite y, got {x.shape} and "
            f"{y.shape}, {np.isfinite(y).sum()} finite, for {label!r}: leave out or mend the curve"
        )
    if logx and not (x > 0).all():
        raise ValueError(f"logx expects x > 0, got {x.min():g} for {label!r}: count from 1")
    return x, y


def _running_mean(y: _Floats, half: int) -> _Floats:
    """Mean of the finite values at most ``min(half, i / 4)`` steps from ``i``; nan where none is.

    Near the start, where the curve is steep, the window is narrow on both sides, so that the mean
    starts at the first point and follows, on a logarithmic axis, too. The end only cuts it off.
    """
    i = np.arange(len(y))
    reach = np.minimum(i // 4, half)
    # [start, stop) one after the other: every second sum is a window. Unlike differences of one
    # cumulative sum, a huge value leaves the windows without it exact.
    bounds = np.stack([i - reach, np.minimum(i + reach + 1, len(y))], axis=1).ravel()
    finite = np.append(np.isfinite(y), False)  # since a stop may be n
    sums = np.add.reduceat(np.where(finite, np.append(y, 0.0), 0.0), bounds)[::2]
    counts = np.add.reduceat(finite.astype(np.float64), bounds)[::2]
    mean: _Floats = np.divide(sums, counts, out=np.full(len(y), np.nan), where=counts > 0)
    return mean


def _limits(y: _Floats, line: _Floats, logx: bool) -> tuple[float, float]:
    """Range of the bulk and of the end, and of all points unless that is far wider."""
    y, line = y[np.isfinite(y)], line[np.isfinite(line)]
    # On a logarithmic axis the few first points take as much room as the many last.
    bulk = y[np.unique(np.geomspace(1, len(y), 200).astype(int)) - 1] if logx else y
    end = line[(len(line) - 1) // 2 :]
    low = min(np.percentile(bulk, 10, method="higher"), end.min())
    high = max(np.percentile(bulk, 90, method="lower"), end.max())
    span = high - low
    lowest = y.min() if y.min() >= low - 4 * span else low - 0.5 * span
    highest = y.max() if y.max() <= high + 4 * span else high + 0.5 * span
    return float(lowest), float(highest)


def _spread(heights: _Floats, spacing: float) -> _Floats:
    """Move heights in [0, 1] apart, so that labels of this spacing do not touch."""
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


def _principal_components(points: _Floats) -> tuple[_Floats, _Floats]:
    """First two principal components ``(N, 2)`` and their shares of the variance ``(2,)``."""
    centred = points - points.mean(axis=0)
    _, scale, axes = np.linalg.svd(centred, full_matrices=False)
    # The sign of an axis is arbitrary: its largest entry is made positive.
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    axes = axes * np.sign(largest)
    share = scale**2 / max(np.sum(scale**2), np.finfo(np.float64).tiny)
    return centred @ axes[:2].T, share[:2]
