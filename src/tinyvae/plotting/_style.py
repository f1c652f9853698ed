"""Style that all figures share."""

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

_Array: TypeAlias = torch.Tensor | npt.NDArray[Any]
_Floats: TypeAlias = npt.NDArray[np.float64]
_Values: TypeAlias = _Array | Sequence[float]
_DPI = 200  # an 8 x 4.5 inch figure fills a slide of 1600 x 900 dots
_TITLE, _LABEL, _SMALL = 16, 14, 11  # points
_INK, _GRAY, _RULE = "#222222", "#666666", "#BBBBBB"


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
