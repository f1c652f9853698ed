"""Progress report of an evaluation: a bar on a terminal and in a notebook, else plain lines."""

import sys
import time

from tinyvae.core.progress import Bar, shows_bars

QUIET_SECONDS = 0.5  # at the start, so that short evaluations report nothing
FIRST_LINE_SECONDS = 1.0
LINE_SECONDS = 5.0  # between plain lines, at least
PLAIN_LINES = 20


class Progress:
    """Report of the draws that are done and of the time left.

    Args:
        name: Name of the evaluation.
        total: Number of draws, of all examples together. None if it is unknown.
        shown: False reports nothing.
    """

    def __init__(self, name: str, total: int | None, *, shown: bool) -> None:
        self.name, self.total, self.shown = name, total, shown
        self._done = self._done_in_line = 0
        self._start = self._line = time.monotonic()
        self._bar = Bar(
            total=total,
            desc=name,
            unit=" draws",
            unit_scale=True,
            delay=QUIET_SECONDS,
            leave=False,
            dynamic_ncols=True,
            disable=not (shown and shows_bars()),
        )

    def __enter__(self) -> "Progress":
        return self

    def extend(self, draws: int | None) -> None:
        """Add draws that are to be done to the total, None if their number is unknown."""
        self.total = None if self.total is None or draws is None else self.total + draws
        self._bar.total = self.total

    def add(self, draws: int) -> None:
        """Count draws that are done."""
        self._done += draws
        self._bar.update(draws)
        if self.shown and self._bar.disable:
            self._write_line()

    def _write_line(self) -> None:
        """Write a line after a second, and then about 20 lines in total."""
        now = time.monotonic()
        least = LINE_SECONDS if self._done_in_line else FIRST_LINE_SECONDS
        if now - self._line < least:
            return
        share = f"{self._done:,} draws"
        if self.total is not None:
            step = self.total / PLAIN_LINES if self._done_in_line else 0
            if self._done - self._done_in_line < step or self._done >= self.total:
                return
            left = (now - self._start) * (self.total / self._done - 1)
            share = f"{self._done / self.total:.0%} of {self.total:,} draws, "
            share += f"{Bar.format_interval(left)} left"
        self._line, self._done_in_line = now, self._done
        sys.stderr.write(f"{self.name}: {share}\n")
        sys.stderr.flush()

    def __exit__(self, *_: object) -> None:
        self._bar.close()
