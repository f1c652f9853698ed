"""Reuse of freed memory on Linux.

glibc returns large buffers to the kernel when they are freed. A training step frees and allocates
the same buffers again and again. Each time the kernel provides new zeroed pages, with one page
fault per 4 KiB: thousands per step, which can take a third of its time.
"""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_NEVER = -1
_LARGEST = (1 << 30, 1 << 25)  # bytes: maximum of newer versions, and of all versions


def tune_malloc() -> bool:
    """Make the C library keep freed memory for reuse, until the process ends.

    This raises two thresholds of glibc's ``malloc``. Buffers below the first one come from the
    heap instead of the kernel: 1 GiB, or 32 MiB, the largest value that glibc 2.34 and older
    accept. The second one, at which the top of the heap is returned, is never reached.

    The cost is memory: the process never shrinks, and it grows if freed pieces are too scattered
    to be joined. Results do not change. Call this early, before the process uses much memory. A
    second call does no harm. GPUs do not gain, because torch manages their memory. tinyvae itself
    never calls this function.

    Environment variables have the same effect:
    ``MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=4294967296``, or
    ``glibc.malloc.mmap_threshold`` and ``glibc.malloc.trim_threshold`` in ``GLIBC_TUNABLES``.
    Another allocator, such as tcmalloc or jemalloc by ``LD_PRELOAD``, is an alternative. This
    function then changes nothing.

    Returns:
        True if it took effect. False without glibc (macOS, Windows, musl) or with another
        allocator.

    References:
        ``mallopt(3)`` of the Linux manual.

    Example:
        >>> import tinyvae
        >>> tinyvae.training.tune_malloc()  # doctest: +SKIP
        True
    """
    try:
        libc, process = ctypes.CDLL("libc.so.6"), ctypes.CDLL(None)
        if _address(libc.malloc) != _address(process.malloc):  # another allocator is in use
            return False
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return False
    raised = any(mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST)
    return raised and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


def _address(function: object) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
