"""Signals: the first ends a run after its step, the second acts at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# By which schedulers announce that they will kill.
PREEMPTION_SIGNALS = tuple(getattr(signal, n) for n in ("SIGTERM", "SIGUSR1") if hasattr(signal, n))


@contextmanager
def graceful_stop(stop: Callable[[str], None], *, announced: bool) -> Iterator[None]:
    """Call ``stop`` with a reason at the first signal; the handler found is back for the second.

    Ctrl-C is over with the run. Other signals are handed on to the handler found when all inside
    has ended; where that would end the process, SystemExit does. Off the main thread, and where a
    signal is ignored, nothing is installed.

    Args:
        stop: What to call.
        announced: Whether SIGTERM and SIGUSR1 are heeded besides SIGINT.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found: dict[int, Any] = {}
    received: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(signum, found[signum])
        received.append(signum)
        stop("interrupted" if signum == signal.SIGINT else signal.Signals(signum).name)

    for signum in (signal.SIGINT, *(PREEMPTION_SIGNALS if announced else ())):
        handler = signal.getsignal(signum)
        if handler is not None and handler != signal.SIG_IGN:
            found[signum] = handler
            signal.signal(signum, handle)
    try:
        yield
    finally:
        for signum, handler in found.items():
            signal.signal(signum, handler)
    for signum in received:
        if signum != signal.SIGINT:
            _hand_on(signum, found[signum])


@contextmanager
def defer_sigchld() -> Iterator[None]:
    """Keep the news of a child's death until the end, where its handler may raise as it likes."""
    child: int = getattr(signal, "SIGCHLD", 0)  # Windows has none
    found = signal.getsignal(child) if child else None
    if not callable(found) or threading.current_thread() is not threading.main_thread():
        yield
        return
    news: list[tuple[int, FrameType | None]] = []
    signal.signal(child, lambda *event: news.append(event))
    try:
        yield
    finally:
        signal.signal(child, found)
    if news:
        found(*news[0])


def _hand_on(signum: int, handler: Any) -> None:
    if handler == signal.SIG_DFL:
        raise SystemExit(128 + signum)
    signal.raise_signal(signum)
