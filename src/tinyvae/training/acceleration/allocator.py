"""Memory that is freed and asked for again in every step.

glibc gives large buffers back to the kernel when they are freed. A training step frees and asks for
the same ones over and over, and each time the kernel hands out pages of zeros, one fault for every
4 KiB: thousands per step, which can take a third of its time.
"""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_NEVER = -1
_LARGEST = (1 << 30, 1 << 25)  # bytes: what newer versions take, and what all do


def tune_malloc() -> bool:
    """Have the C library keep the memory that this process frees, for its next use.

    Raises two thresholds of glibc's ``malloc`` until the process ends. Buffers below the first come
    from the heap and not from the kernel: 1 GiB, or 32 MiB, the largest that glibc 2.34 and older
    accept. The second, at which the top of the heap is given back, is never reached.

    The price is memory: the process stays as large as it once was, and larger where freed pieces
    lie too scattered to be joined. Nothing that is computed changes. tinyvae never calls this of
    its own accord. It is wanted early, before memory is in use, and again does no harm. GPUs, whose
    memory torch manages itself, do not gain.

    The same from outside: ``MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=4294967296``
    in the environment, or ``glibc.malloc.mmap_threshold`` and ``glibc.malloc.trim_threshold`` in
    ``GLIBC_TUNABLES``. Another allocator, such as tcmalloc or jemalloc by ``LD_PRELOAD``, is an
    alternative; glibc's is then not in use, and not touched.

    Returns:
        Whether it took effect: not without glibc (macOS, Windows, musl), nor under another
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
        if _address(libc.malloc) != _address(process.malloc):
            return False
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return False
    raised = any(mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST)
    return raised and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


def _address(function: object) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
