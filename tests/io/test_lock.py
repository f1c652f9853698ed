"""Locks on folders within a process, across processes, after kills and in forked children."""

import errno
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

import tinyvae.io.lock
from tinyvae.io import FolderLock

posix = pytest.mark.skipif(os.name != "posix", reason="forks and signals as POSIX has them")
ROUNDS = 200

# Only this module, because importing the whole library takes seconds.
CHILD = f"""
import os, runpy, signal, sys
from pathlib import Path
FolderLock = runpy.run_path({tinyvae.io.lock.__file__!r})["FolderLock"]
folder = Path(sys.argv[1])

def attempt():
    try:
        FolderLock(folder).release()
    except BlockingIOError as error:
        return str(error)
    return "free"

def say(word):  # a complete line in one call, since two processes may write
    os.write(1, str(word).encode() + b"\\n")

def in_a_fork(action):
    pid = os.fork()
    if pid == 0:
        action()
        os._exit(0)
    return os.waitpid(pid, 0)
"""
HOLD = "lock = FolderLock(folder); say('held'); sys.stdin.readline(); lock.release(); say('done')"


@contextmanager
def another(folder, code):
    """Start another process that runs ``code``."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", CHILD + code, str(folder)]
    with subprocess.Popen(command, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def receive(process):
    return process.stdout.readline().strip()


def send(process):
    print(file=process.stdin, flush=True)


def attempt_elsewhere(folder):
    with another(folder, "say(attempt())") as process:
        return receive(process)


# Within a process ---------------------------------------------------------------------------------


def test_lock_rejects_a_second_owner_in_the_process(tmp_path, monkeypatch):
    lock = FolderLock(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    for name in (tmp_path, tmp_path / ".." / tmp_path.name, type(tmp_path)(tmp_path.name)):
        with pytest.raises(BlockingIOError, match="in use by another run of this process"):
            FolderLock(name)
    assert f"process {os.getpid()}" in attempt_elsewhere(tmp_path)  # the rejection released nothing
    lock.release()
    FolderLock(tmp_path).release()


@posix
def test_lock_follows_links(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    lock = FolderLock(tmp_path / "link")
    with pytest.raises(BlockingIOError):
        FolderLock(tmp_path / "folder")
    lock.release()


def test_lock_is_separate_for_each_folder(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    first, second = FolderLock(tmp_path / "a"), FolderLock(tmp_path / "b")
    first.release()
    with pytest.raises(BlockingIOError):
        FolderLock(tmp_path / "b")
    second.release()


def test_lock_rejects_a_second_thread(tmp_path):
    refused = []

    def attempt():
        try:
            FolderLock(tmp_path)
        except BlockingIOError as error:
            refused.append(str(error))

    lock = FolderLock(tmp_path)
    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert refused == [f"{tmp_path} is in use by another run of this process"]
    lock.release()


@pytest.fixture
def hasty_threads():
    """Make threads switch as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_lock_admits_one_of_several_threads(tmp_path):
    owners = []
    barrier = threading.Barrier(4)

    def attempt(folder):
        barrier.wait()
        try:
            owners.append(FolderLock(folder))
        except BlockingIOError:
            return

    for i in range(ROUNDS):
        (tmp_path / str(i)).mkdir()
        threads = [threading.Thread(target=attempt, args=(tmp_path / str(i),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    paths = [lock.path for lock in owners]
    for lock in owners:
        lock.release()
    assert len(paths) == len(set(paths)) == ROUNDS


def test_lock_is_free_after_a_failed_acquisition(tmp_path, monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(os, "getpid", full)
    with pytest.raises(OSError, match="No space left"):
        FolderLock(tmp_path)
    monkeypatch.undo()
    FolderLock(tmp_path).release()


@posix
def test_lock_error_of_a_system_without_locks(tmp_path, monkeypatch):
    import fcntl

    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(OSError, match="No locks available") as caught:
        FolderLock(tmp_path)
    assert not isinstance(caught.value, BlockingIOError)


def test_lock_does_not_make_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        FolderLock(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


# Lost locks ---------------------------------------------------------------------------------------


def replace_file(lock):
    lock.path.unlink()
    lock.path.touch()


def replace_folder(lock):
    lock.folder.rename(lock.folder.with_name("aside"))
    lock.folder.mkdir()
    (lock.folder.with_name("aside") / "lock").rename(lock.path)


LOSSES = {
    "the lock of a run was moved or removed": lambda lock: lock.path.unlink(),
    "the lock of a run was replaced": replace_file,
    "the folder of a run was moved or removed": lambda lock: lock.folder.rename(
        lock.folder.with_name("aside")
    ),
    "the folder of a run was replaced": replace_folder,
}


@posix
@pytest.mark.parametrize("message", LOSSES)
def test_lock_knows_that_it_was_lost(message, tmp_path):
    (tmp_path / "run").mkdir()
    lock = FolderLock(tmp_path / "run")
    lock.require()
    LOSSES[message](lock)
    with pytest.raises(OSError, match=message) as caught:
        lock.require()
    assert caught.value.errno == errno.ESTALE
    lock.release()


@posix
def test_lock_that_was_lost_does_not_take_that_of_the_next_owner(tmp_path):
    lock = FolderLock(tmp_path)
    lock.path.unlink()
    following = FolderLock(tmp_path)
    lock.release()
    following.require()
    assert lock.path.read_text() == f"process {os.getpid()}"
    with pytest.raises(BlockingIOError):
        FolderLock(tmp_path)
    following.release()


@posix
def test_lock_file_that_vanishes_before_it_is_locked_is_refused(tmp_path, monkeypatch):
    import fcntl

    flock = fcntl.flock

    def remove_and_lock(*arguments):
        (tmp_path / "lock").unlink(missing_ok=True)
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", remove_and_lock)
    with pytest.raises(OSError, match="the lock of a run was moved or removed"):
        FolderLock(tmp_path)


def test_lock_does_not_follow_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    lock = FolderLock(Path("run"))
    monkeypatch.chdir(tmp_path / "run")
    lock.require()
    lock.release()


# Across processes ---------------------------------------------------------------------------------


def test_lock_rejects_another_process_until_released(tmp_path):
    lock = FolderLock(tmp_path)
    assert attempt_elsewhere(tmp_path) == f"{tmp_path} is in use by process {os.getpid()}"
    lock.release()
    assert attempt_elsewhere(tmp_path) == "free"
    lock = FolderLock(tmp_path)  # the file that it left does not matter
    assert attempt_elsewhere(tmp_path).endswith(f"process {os.getpid()}")
    lock.release()


def test_lock_error_names_the_holder(tmp_path):
    with another(tmp_path, HOLD) as owner:
        assert receive(owner) == "held"
        for _ in range(2):  # a rejection keeps the name
            with pytest.raises(BlockingIOError, match=f"in use by process {owner.pid}$"):
                FolderLock(tmp_path)
        send(owner)
        assert receive(owner) == "done"
        FolderLock(tmp_path).release()  # while the process lives


def test_lock_overwrites_the_name_of_an_older_holder(tmp_path):
    (tmp_path / "lock").write_text("process 12345678901234567890")
    lock = FolderLock(tmp_path)
    assert (tmp_path / "lock").read_text() == f"process {os.getpid()}"
    lock.release()


@posix
def test_lock_is_free_after_its_process_was_killed(tmp_path):
    with another(tmp_path, HOLD) as owner:
        assert receive(owner) == "held"
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        assert (tmp_path / "lock").read_text() == f"process {owner.pid}"
        lock = FolderLock(tmp_path)
    assert attempt_elsewhere(tmp_path).endswith(f"process {os.getpid()}")
    lock.release()


# Forked children ----------------------------------------------------------------------------------

CHILD_TRIES = """
lock = FolderLock(folder)
in_a_fork(lambda: say(attempt()))
say(os.getpid())
sys.stdin.readline()
"""
CHILD_REQUIRES = """
lock = FolderLock(folder)
def require():
    try:
        lock.require()
    except OSError as error:
        say(error)
in_a_fork(require)
lock.require()
"""
CHILD_RELEASES = """
lock = FolderLock(folder)
in_a_fork(lock.release)
say(os.getpid())
sys.stdin.readline()
"""
CHILD_EXITS = """
lock = FolderLock(folder)
pid = os.fork()
if pid == 0:
    sys.exit()
os.waitpid(pid, 0)
say(os.getpid())
sys.stdin.readline()
"""
PARENT_RELEASES = """
lock = FolderLock(folder)
pid = os.fork()
if pid == 0:
    sys.stdin.readline()
    say(attempt())
    os._exit(0)
lock.release()
say('released')
os.waitpid(pid, 0)
"""
PARENT_DIES = """
lock = FolderLock(folder)
pid = os.fork()
if pid == 0:
    sys.stdin.readline()
    os._exit(0)
say('forked')
os.kill(os.getpid(), signal.SIGKILL)
"""


@posix
def test_lock_rejects_a_forked_child(tmp_path):
    with another(tmp_path, CHILD_TRIES) as parent:
        said, pid = receive(parent), receive(parent)
        assert said.startswith(f"{tmp_path} is in use by ")
        assert attempt_elsewhere(tmp_path).endswith(f"process {pid}")
    assert said.endswith(f"process {pid}")


@posix
def test_lock_is_not_that_of_a_forked_child(tmp_path):
    with another(tmp_path, CHILD_REQUIRES) as parent:
        assert "only the process that started a run writes to its folder" in receive(parent)
        assert parent.wait() == 0


@posix
@pytest.mark.parametrize("code", [CHILD_RELEASES, CHILD_EXITS], ids=["releases", "exits"])
def test_lock_is_not_released_by_a_forked_child(code, tmp_path):
    with another(tmp_path, code) as parent:
        pid = receive(parent)
        assert attempt_elsewhere(tmp_path) == f"{tmp_path} is in use by process {pid}"


@posix
def test_lock_is_not_held_by_a_forked_child_after_release(tmp_path):
    with another(tmp_path, PARENT_RELEASES) as parent:
        assert receive(parent) == "released"
        assert attempt_elsewhere(tmp_path) == "free"
        send(parent)
        assert receive(parent) == "free"  # also for the child


@posix
def test_lock_is_not_held_by_a_forked_child_of_a_killed_parent(tmp_path):
    with another(tmp_path, PARENT_DIES) as parent:
        assert receive(parent) == "forked"
        parent.wait()
        assert attempt_elsewhere(tmp_path) == "free"
        send(parent)
