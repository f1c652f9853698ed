"""Use of torch's default generators by one thread at a time: all threads of a process share them.

Two threads that draw from them at the same time get other numbers than either would alone.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tinyvae.core.warnings import warn


class GeneratorLock:
    """Lock of the default generators. The thread that holds it may take it again.

    Other threads wait for it. If it belongs to a run of ``fit``, they raise instead, because a run
    may take days, or wait for these threads in a callback.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._owner: threading.Thread | None = None
        self._depth = 0
        self._is_run = False
        self._process = os.getpid()

    def acquire(self, who: str, *, is_run: bool) -> bool:
        """Take the lock for ``who``. Return True if the thread was already in a run.

        Raises:
            RuntimeError: If another thread is in a run.
        """
        thread, was_run = threading.current_thread(), False
        with self._condition:
            while self._owner is not None and self._owner is not thread:
                self._require_no_run(who)
                self._condition.wait()
            was_run = self._is_run
            self._owner, self._is_run = thread, was_run or is_run
            self._depth += 1
        return was_run

    def release(self, *, was_run: bool) -> None:
        """Give the lock back. ``was_run`` is the result of :meth:`acquire`."""
        if self._process != os.getpid():
            return  # a forked child: it has a lock of its own
        with self._condition:
            self._depth -= 1
            self._is_run = was_run
            if self._depth == 0:
                self._owner = None
                self._condition.notify_all()

    def refuse_run_elsewhere(self, who: str) -> None:
        """Raise RuntimeError if another thread is in a run. Do not take the lock."""
        if self._owner is not None and self._owner is not threading.current_thread():
            self._require_no_run(who)

    def _require_no_run(self, who: str) -> None:
        if self._is_run and self._owner is not None:
            raise RuntimeError(
                f"{who} expects that no other thread draws from torch's default generators, got a "
                f"running fit in thread {self._owner.name!r}: call one after the other, or each in "
                "a process of its own"
            )


_LOCKS: dict[int, GeneratorLock] = {}  # by process: a forked child must not wait for its parent


def generator_lock() -> GeneratorLock:
    """Return the lock of this process."""
    lock = _LOCKS.get(os.getpid())
    return _LOCKS.setdefault(os.getpid(), GeneratorLock()) if lock is None else lock


@contextmanager
def exclusive_generators(who: str, *, is_run: bool = False) -> Iterator[None]:
    """Hold the lock of the default generators in the block. Also a decorator of a function.

    Args:
        who: Name of the function, for errors.
        is_run: True if other threads raise instead of waiting.

    Raises:
        RuntimeError: If another thread is in a run.
    """
    lock = generator_lock()
    was_run = lock.acquire(who, is_run=is_run)
    try:
        yield
    finally:
        lock.release(was_run=was_run)


def warn_about_foreign_seed(seed: int) -> None:
    """Warn if other code has seeded the CPU's default generator since it got ``seed``."""
    if torch.default_generator.initial_seed() != seed:
        warn(
            "other code, such as another thread, has seeded torch's default generator during this "
            "epoch, so its noise is not that of the run's seed: give that code a torch.Generator "
            "of its own, or another process"
        )
