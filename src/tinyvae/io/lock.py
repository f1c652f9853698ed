"""Lock on a folder. The operating system releases it when the process ends."""

import errno
import os
import sys
from pathlib import Path
from typing import BinaryIO

NAME = "lock"


class FolderLock:
    """Exclusive lock on a folder, within a process and across processes.

    The system locks the file ``lock`` in the folder, which stays there. The lock ends with
    :meth:`release` or with the process. Forked children do not hold it.

    Args:
        folder: Folder to lock. It must exist.

    Raises:
        BlockingIOError: If another owner holds the lock. The message names its process.
        OSError: If the folder does not exist or its file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder.resolve() / NAME
        self._file = self.path.open("a+b", buffering=0)
        # A child inherits the open file, and with it a flock. It would keep the lock after its
        # parent's death, as filelock before 3.32 does. So each child closes the file.
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._file.close)
        try:
            self._acquire(folder)
        except BaseException:
            self._file.close()
            raise

    def _acquire(self, folder: Path) -> None:
        name = f"process {os.getpid()}"
        try:
            _lock(self._file)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                reason = f"the folder cannot be locked: {error.strerror}"
                raise OSError(error.errno, reason, str(folder)) from error
            self._file.seek(0)
            owner = self._file.read(100).decode(errors="replace").strip() or "another run"
            owner = "another run of this process" if owner == name else owner
            raise BlockingIOError(f"{folder} is in use by {owner}") from error
        self._file.truncate(0)
        self._file.write(name.encode())

    def release(self) -> None:
        """Release the lock. Do nothing in a forked child or if it was released before."""
        if not self._file.closed:
            self._file.truncate(0)
            _unlock(self._file)
            self._file.close()


def _lock(file: BinaryIO) -> None:
    if sys.platform == "win32":
        import msvcrt

        file.seek(2**30)  # far beyond the text, which others read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _unlock(file: BinaryIO) -> None:
    # Closing alone would leave the lock to a child that has just been forked. On Windows, which
    # has no fork, closing is enough.
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_UN)
