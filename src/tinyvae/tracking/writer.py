"""Interface of a writer, which sends a run to a tracker."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Pixels: TypeAlias = npt.NDArray[np.uint8]
Setting: TypeAlias = bool | int | float | str


class Writer(ABC):
    """Destination of a run's numbers, images and texts, which a :class:`Log` calls.

    A writer of your own implements these five methods. Its constructor raises ImportError if a
    package is missing. Errors of the methods end the log, but not the run.
    """

    @abstractmethod
    def open(
        self, run_id: str, settings: Mapping[str, Setting], step: int, *, resume: bool
    ) -> Mapping[str, int]:
        """Start a run, or continue it.

        Args:
            run_id: Identifier of the run, the same after a resumption.
            settings: Hyper-parameters of the run by name.
            step: Updates done.
            resume: True to continue the run. Then remove values of later steps than ``step``, if
                the tracker can remove values.

        Returns:
            The last step of each name that the run already holds. Values up to this step are not
            written again.

        Raises:
            FileExistsError: If another run is at its place. This error ends the call of ``fit``.
        """

    @abstractmethod
    def write(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers of a step. NaN is possible. Steps never decrease."""

    @abstractmethod
    def write_image(self, name: str, pixels: Pixels, step: int) -> None:
        """Write an image ``(H, W, 3)``."""

    @abstractmethod
    def write_text(self, name: str, text: str) -> None:
        """Write a text, such as the summary of the model. A later one of this name replaces it."""

    @abstractmethod
    def close(self) -> None:
        """Finish the run, so that nothing is lost. :meth:`open` may follow."""


def import_tracker(package: str, owner: str) -> Any:
    """Return the module of a tracker, or raise ImportError with the remedy."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        package = "tensorboard" if package == "torch.utils.tensorboard" else package
        raise ImportError(
            f"{owner} needs {package}: install it, pip install {package}, or use CSVWriter"
        ) from error


def figure_pixels(figure: Any) -> Pixels:
    """Return the image of a matplotlib figure, ``(H, W, 3)``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
