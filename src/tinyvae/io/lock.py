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
    :meth:`release` or with the process. Forked children do not hold it. Other programs may remove
    the file or move the folder, so an owner calls :meth:`require` before each write.

    Args:
        folder: Folder to lock. It must exist. A later change of the working directory has no
            effect.

    Raises:
        BlockingIOError: If another owner holds the lock. The message names its process.
        OSError: If the folder does not exist or its file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.path = self.folder / NAME
        self._status = self.folder.stat()
        self._file = self.path.open("a+b", buffering=0)
        # A child inherits the open file, and with it a flock. It would keep the lock after its
        # parent's death, as filelock before 3.32 does. So each child closes the file.
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._file.close)
        try:
            self._acquire()
            self.require()  # another process may have removed the file before it was locked
            self._file.truncate(0)
            self._file.write(_process().encode())
        except BaseException:
            self._file.close()
            raise

    def _acquire(self) -> None:
        try:
            _lock(self._file)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                reason = f"the folder cannot be locked: {error.strerror}"
                raise OSError(error.errno, reason, str(self.folder)) from error
            self._file.seek(0)
            owner = self._file.read(100).decode(errors="replace").strip() or "another run"
            owner = "another run of this process" if owner == _process() else owner
            raise BlockingIOError(f"{self.folder} is in use by {owner}") from error

    def require(self) -> None:
        """Raise unless folder and file are still those that were locked, and the lock is held.

        Raises:
            BlockingIOError: If the lock was lost to another owner.
            OSError: If folder or file were moved, removed or replaced, or in a forked child.
        """
        if self._file.closed:
            raise OSError(
                errno.EBADF,
                "only the process that started a run writes to its folder: end a forked child by "
                "os._exit",
                str(self.folder),
            )
        for path, status, name in (
            (self.folder, self._status, "the folder of a run"),
            (self.path, os.fstat(self._file.fileno()), "the lock of a run"),
        ):
            try:
                is_same = os.path.samestat(path.stat(), status)
                change = "was replaced by another one"
            except (FileNotFoundError, NotADirectoryError):
                is_same, change = False, "was moved or removed"
            if not is_same:
                raise OSError(
                    errno.ESTALE,
                    f"{name} {change} during the run, so the run writes nothing more: leave it in "
                    'place, and continue from the newest checkpoint by fit(..., resume="auto")',
                    str(path),
                )
        if sys.platform != "win32":  # Windows keeps a lock until its owner ends
            self._acquire()  # a network file system may have lost the lock

    def release(self) -> None:
        """Release the lock. Do nothing in a forked child or if it was released before."""
        if not self._file.closed:
            self._file.truncate(0)
            _unlock(self._file)
            self._file.close()


def _process() -> str:
    return f"process {os.getpid()}"


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
