"""Files that are whole or absent: one atomic writer."""

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file such that a crash at any moment leaves the old file or the new one, whole.

    The data go to a temporary file in the same folder, reach the disk, and take the name in one
    step; then the folder reaches the disk. Missing folders are made, a symbolic link stays a link,
    and the mode is that of a newly opened file. Temporary files of the same target whose process
    on this computer has died are removed.

    Args:
        path: The file to write or to replace.
        data: All of its content.

    Raises:
        OSError: If the disk is full, the folder is read-only, or ``path`` is a folder or a device.
            No temporary file stays. The old file is intact, unless only the very last step, the
            folder's way to the disk, has failed: then the new file is in place.

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
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        _write_and_rename(target, data)
        _sync_folder(target.parent)
    except OSError as error:  # os.write and os.fsync name no file
        reason = f"cannot write the file: {error.strerror or error}"
        raise OSError(error.errno, reason, os.fspath(path)) from error


def _write_and_rename(target: Path, data: bytes) -> None:
    middle = f"{_node()}.{os.getpid()}.{secrets.token_hex(4)}"
    temporary = target.with_name(f".{target.name}.{middle}.tmp")
    binary = getattr(os, "O_BINARY", 0)  # without it Windows rewrites line ends
    # The umask applies to 0o666 as it does in open().
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | binary, 0o666)
    try:
        try:
            rest = memoryview(data)
            while rest:  # one call may write less than all, e.g. at most 2 GiB
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, target)  # noqa: PTH105 - one layer of system calls in this function
    except BaseException:  # an interrupt, too, leaves nothing behind
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Windows cannot open a folder
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the file system has no such operation
            raise
    finally:
        os.close(descriptor)


def _remove_stale(target: Path) -> None:
    if os.name != "posix":
        return  # os.kill(pid, 0) asks on POSIX, but ends the process on Windows
    pattern = rf"\.{re.escape(target.name)}\.{_node()}\.([1-9][0-9]{{0,8}})\.[0-9a-f]{{8}}\.tmp"
    with contextlib.suppress(OSError):  # tidying up never stops a write
        for file in list(target.parent.iterdir()):
            match = re.fullmatch(pattern, file.name)
            if match and not _alive(int(match[1])):
                file.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:  # EPERM: it lives, and belongs to someone else
        return error.errno != errno.ESRCH
    return True


def _node() -> str:
    # On a shared disk a process id says nothing without the computer it belongs to.
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]
