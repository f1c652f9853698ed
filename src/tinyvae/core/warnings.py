"""Warnings that point to the caller's code."""

import contextlib
import os
import sys
import warnings
from pathlib import Path
from types import FrameType

import torch

PACKAGE = Path(__file__).parents[1]
INTERNAL = tuple(f"{folder}{os.sep}" for folder in (PACKAGE, Path(torch.__file__).parent))
INTERNAL += (contextlib.__file__,)  # enters the library's own context managers


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called the outermost frame of this library or of torch.

    Args:
        message: The problem and its consequence.
        category: Class of the warning.
    """
    frame: FrameType | None = sys._getframe()
    level = stacklevel = 1
    while frame is not None:
        level += 1
        if frame.f_code.co_filename.startswith(INTERNAL):
            stacklevel = level  # of the caller of this frame
        frame = frame.f_back
    warnings.warn(message, category, stacklevel=stacklevel)
