"""Style of all figures, and their files."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array: TypeAlias = torch.Tensor | npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float64]
Values: TypeAlias = Array | Sequence[float]
DPI = 200  # an 8 x 4.5 inch figure fills a slide of 1600 x 900 dots
TITLE, LABEL, SMALL = 16, 14, 11  # points
INK, GRAY, RULE = "#222222", "#666666", "#BBBBBB"


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG. The same figure gives the same bytes.

    Args:
        figure: Figure.
        path: Path that ends in ``.png``. A missing folder is made.

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
    # By default matplotlib writes its name and version into the file.
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})
    return path


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of ``width`` by ``height`` inches."""
    try:
        from tinyvae.plotting._figure import NotebookFigure
    except ImportError as error:
        raise ImportError(
            "tinyvae.plotting needs matplotlib: pip install 'tinyvae[examples]'"
        ) from error
    figure = NotebookFigure(figsize=(width, height), dpi=DPI)
    figure.set_layout_engine("none")  # overrides the user's settings
    return figure


def to_numpy(values: Values) -> Floats:
    """Return the values as a float64 array. Entries of masked arrays, and None, are NaN."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()  # numpy has no bfloat16
    if isinstance(values, np.ma.MaskedArray):
        values = np.ma.filled(values.astype(np.float64), np.nan)
    if isinstance(values, Sequence):
        values = [v.item() if isinstance(v, torch.Tensor) else v for v in values]  # losses
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"a figure expects numbers, got {values!r:.80}: pass a tensor or an array of numbers, "
            "such as the mean of a distribution"
        ) from error


def add_axes(figure: Figure, xlabel: str, ylabel: str) -> Any:
    """Add axes with labels to an empty figure."""
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel, fontsize=LABEL, color=INK)
    axes.set_ylabel(ylabel, fontsize=LABEL, color=INK)
    axes.tick_params(which="both", labelsize=12, color=RULE, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    return axes


def freeze_layout(figure: Figure) -> None:
    """Fix the layout. Otherwise each drawing would move the axes a little."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def set_title(axes: Any, title: str | None, pad: float) -> Any:
    """Set the title, ``pad`` points above the axes, and return its text."""
    return axes.set_title(title or "", loc="left", fontsize=TITLE, color=INK, pad=pad)


def wrapped(title: str | None, figure: Figure) -> str | None:
    """Return the title, broken into lines that fit the figure."""
    room = figure.get_figwidth() - 0.9  # inches, without the left margin
    columns = int(room * 72 / (0.57 * TITLE))  # a character is about 0.57 of its height wide
    return title and "\n".join(textwrap.fill(line, columns) for line in title.splitlines())
