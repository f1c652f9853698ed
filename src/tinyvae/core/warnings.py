"""Warnings that point to the caller's code."""

import contextlib
import os
import sys
import warnings
from pathlib import Path

import torch

PACKAGE = Path(__file__).parents[1]
INTERNAL = tuple(f"{folder}{os.sep}" for folder in (PACKAGE, Path(torch.__file__).parent))
INTERNAL += (contextlib.__file__,)  # enters the library's own context managers


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the innermost line outside of this library and of torch.

    Args:
        message: What is wrong, and what happens next.
        category: Class of the warning.
    """
    frame, stacklevel = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INTERNAL):
        frame, stacklevel = frame.f_back, stacklevel + 1
    warnings.warn(message, category, stacklevel=stacklevel)
