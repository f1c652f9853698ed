"""Progress bar that the library shows on a terminal and in a notebook."""

import sys

from tqdm.auto import tqdm


class Bar(tqdm):  # type: ignore[type-arg]
    """Progress bar without tqdm's monitor thread."""

    monitor_interval = 0


def in_notebook() -> bool:
    """Return True if a notebook runs the program."""
    return "ipykernel" in sys.modules


def shows_bars() -> bool:
    """Return True on a terminal and in a notebook, where a bar can be redrawn."""
    return sys.stderr.isatty() or in_notebook()
