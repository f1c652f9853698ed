"""Atomic writing of files."""

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_JOINED = 2**20  # bytes; shorter chunks are written together


def write_atomically(
    path: str | os.PathLike[str],
    data: bytes | Iterable[bytes | memoryview],
    *,
    check: Callable[[], None] | None = None,
) -> None:
    """Write a file so that a crash at any time leaves either the old or the new file intact.

    The function writes the data to a temporary file in the same folder, syncs it to the disk,
    renames it, and syncs the folder. It makes missing folders, keeps a symbolic link, and sets the
    mode of a newly opened file. It removes temporary files of the same target whose process on
    this computer has died.

    Args:
        path: File to write or to replace.
        data: Complete content, as bytes or as chunks of bytes, which are not copied if they are
            large.
        check: Function that raises if the folder must not be written to. It is called before the
            temporary file is made, and again before it is renamed. With it, no folder is made.

    Raises:
        OSError: If the disk is full, the folder is read-only, or ``path`` is a folder or a device.
            No temporary file stays. The old file is intact, unless only the last step, the sync of
            the folder, has failed. Then the new file is in place.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder, "new", "a.txt"), b"all or nothing")
        ...     Path(folder, "new", "a.txt").read_text()
        'all or nothing'
    """
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():
            raise FileExistsError(errno.EEXIST, "a folder or a device has this name")
        if check is None:
            target.parent.mkdir(parents=True, exist_ok=True)
        else:
            check()
        _remove_stale(target)
        _write_and_rename(target, [data] if isinstance(data, bytes) else data, check)
        _sync_folder(target.parent)
    except OSError as error:  # os.write and os.fsync do not name the file
        reason = f"cannot write the file: {error.strerror or error}"
        raise OSError(error.errno, reason, os.fspath(path)) from error


def _write_and_rename(
    target: Path, chunks: Iterable[bytes | memoryview], check: Callable[[], None] | None
) -> None:
    unique = f"{_node()}.{os.getpid()}.{secrets.token_hex(4)}"
    temporary = target.with_name(f".{target.name}.{unique}.tmp")
    binary = getattr(os, "O_BINARY", 0)  # without it Windows converts line ends
    # The umask applies to 0o666 as it does in open().
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | binary, 0o666)
    try:
        try:
            for chunk in _join_short(chunks):
                remaining = memoryview(chunk)
                while remaining:  # one call may write only a part, e.g. at most 2 GiB
                    remaining = remaining[os.write(descriptor, remaining) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if check is not None:
            check()
        os.replace(temporary, target)  # noqa: PTH105 - system calls only
    except BaseException:  # also after an interrupt
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _join_short(chunks: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Join short chunks, so that a system call writes many of them."""
    short: list[bytes | memoryview] = []
    num_bytes = 0
    for chunk in chunks:
        if num_bytes + len(chunk) > _JOINED:
            yield b"".join(short)
            short, num_bytes = [], 0
        if len(chunk) > _JOINED:
            yield chunk
        else:
            short.append(chunk)
            num_bytes += len(chunk)
    yield b"".join(short)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Windows cannot open a folder
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the file system does not support it
            raise
    finally:
        os.close(descriptor)


def _remove_stale(target: Path) -> None:
    if os.name != "posix":
        return  # os.kill(pid, 0) ends the process on Windows
    pattern = rf"\.{re.escape(target.name)}\.{_node()}\.([1-9][0-9]{{0,8}})\.[0-9a-f]{{8}}\.tmp"
    with contextlib.suppress(OSError):  # a failed cleanup must not stop a write
        for file in list(target.parent.iterdir()):
            match = re.fullmatch(pattern, file.name)
            if match and not _alive(int(match[1])):
                file.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:  # EPERM: alive, but owned by another user
        return error.errno != errno.ESRCH
    return True


def _node() -> str:
    # On a shared disk a process id is unique only together with its computer.
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]
