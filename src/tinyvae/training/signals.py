"""Signals. The first one ends a run after its current step, the second one acts at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Job schedulers send these before they kill a job.
PREEMPTION_SIGNALS = tuple(getattr(signal, n) for n in ("SIGTERM", "SIGUSR1") if hasattr(signal, n))


@contextmanager
def graceful_stop(stop: Callable[[str], None], *, on_preemption: bool) -> Iterator[None]:
    """Call ``stop`` with a reason at the first signal. The second one reaches the usual handler.

    After the block, SIGTERM and SIGUSR1 reach the handler that was there before. If that handler
    would end the process, SystemExit is raised instead. SIGINT (Ctrl-C) has no further effect.
    Ignored signals stay ignored. Outside the main thread nothing is installed.

    Args:
        stop: Function that gets the reason.
        on_preemption: True to handle SIGTERM and SIGUSR1, too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows handlers in the main thread only
        return
    handlers: dict[int, Any] = {}
    received: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(signum, handlers[signum])
        received.append(signum)
        stop("interrupted" if signum == signal.SIGINT else signal.Signals(signum).name)

    for signum in (signal.SIGINT, *(PREEMPTION_SIGNALS if on_preemption else ())):
        handler = signal.getsignal(signum)
        if handler is not None and handler != signal.SIG_IGN:
            handlers[signum] = handler
            signal.signal(signum, handle)
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    for signum in received:
        if signum != signal.SIGINT:
            if handlers[signum] == signal.SIG_DFL:
                raise SystemExit(128 + signum)  # unlike the signal, it runs finally blocks
            signal.raise_signal(signum)


@contextmanager
def defer_sigchld() -> Iterator[None]:
    """Defer SIGCHLD to the end of the block, so that its handler cannot raise mid-step.

    Torch's handler raises when a data worker dies. In the middle of an update that would leave
    weights and moments of different steps, and the last step could not be saved.
    """
    child: int = getattr(signal, "SIGCHLD", 0)  # Windows has none
    handler = signal.getsignal(child) if child else None
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    events: list[tuple[int, FrameType | None]] = []
    signal.signal(child, lambda *event: events.append(event))
    try:
        yield
    finally:
        signal.signal(child, handler)
    if events:  # one call is enough: torch's handler looks at all workers
        handler(*events[0])
