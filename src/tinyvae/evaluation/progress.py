"""Progress report of an evaluation: a bar on a terminal, plain lines elsewhere."""

import sys
import time

from tinyvae.core.progress import Bar

QUIET_SECONDS = 2.0  # at the start, so that short evaluations report nothing
LINE_SECONDS = 5.0  # between plain lines, at least
PLAIN_LINES = 20


class Progress:
    """Report of the draws that are done and of the time left.

    Args:
        name: Name of the evaluation.
        total: Number of draws, of all examples together.
        shown: False reports nothing.
    """

    def __init__(self, name: str, total: int, *, shown: bool) -> None:
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
            disable=not (shown and sys.stderr.isatty()),
        )

    def __enter__(self) -> "Progress":
        return self

    def add(self, draws: int) -> None:
        """Count draws that are done."""
        self._done += draws
        self._bar.update(draws)
        if self.shown and self._bar.disable:
            self._write_line()

    def _write_line(self) -> None:
        """Write a line after a few seconds, and then about 20 lines in total."""
        now = time.monotonic()
        step = self.total / PLAIN_LINES if self._done_in_line else 0  # the first line comes early
        is_due = self._done - self._done_in_line >= step
        if now - self._line < LINE_SECONDS or not is_due or self._done >= self.total:
            return
        self._line, self._done_in_line = now, self._done
        left = (now - self._start) * (self.total / self._done - 1)
        share = f"{self._done / self.total:.0%} of {self.total:,} draws"
        sys.stderr.write(f"{self.name}: {share}, {Bar.format_interval(left)} left\n")
        sys.stderr.flush()

    def __exit__(self, *_: object) -> None:
        self._bar.close()
