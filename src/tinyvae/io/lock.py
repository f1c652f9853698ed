"""A lock on a folder, which the operating system lets go of when its process dies."""

import contextlib
import errno
import os
import sys
import threading
from pathlib import Path
from typing import BinaryIO, ClassVar

NAME = "lock"


class FolderLock:
    """Holds a folder for one owner at a time, over all processes that see it.

    The lock is one of the system's on a file ``lock``: it ends with the process, however that ends,
    no child has it, and it also ends when the process itself opens and closes that file once more.

    Args:
        folder: The folder.

    Raises:
        BlockingIOError: If somebody holds it.
    """

    # The system's lock is the process's: a second owner within it would be let in.
    _held: ClassVar[set[tuple[int, Path]]] = set()
    _guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, folder: Path) -> None:
        self.path = folder.resolve() / NAME
        self._owner = (os.getpid(), self.path)
        with self._guard:
            if self._owner in self._held:
                raise BlockingIOError(f"{folder} is in use by another run of this process")
            self._file = self.path.open("a+b")
            try:
                self._take(folder)
            except BaseException:
                self._file.close()
                raise
            self._held.add(self._owner)

    def _take(self, folder: Path) -> None:
        try:
            _lock(self._file)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                reason = f"the folder cannot be locked: {error.strerror}"
                raise OSError(error.errno, reason, str(folder)) from error
            self._file.seek(0)
            owner = self._file.read(100).decode(errors="replace").strip()
            raise BlockingIOError(f"{folder} is in use by {owner or 'another run'}") from error
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()}".encode())
        self._file.flush()

    def release(self) -> None:
        """Let go; the file stays, for others may be waiting at it. A forked child holds nothing."""
        if self._owner[0] == os.getpid():
            with contextlib.suppress(OSError):
                self._file.truncate(0)
            self._held.discard(self._owner)
        self._file.close()


def _lock(file: BinaryIO) -> None:
    if sys.platform == "win32":
        import msvcrt

        file.seek(2**30)  # far behind the text, which others read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
