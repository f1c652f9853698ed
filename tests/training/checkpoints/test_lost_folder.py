"""A run whose folder or lock is moved, removed or replaced: it ends, and writes nothing more."""

import os
import shutil
import signal
import threading

import pytest
import torch
from helpers.runs import (
    ALL,
    AUTO,
    END,
    checkpoint_of,
    contents,
    digest,
    epochs_in,
    expected_digest,
    fit,
    posix,
    steps_in,
    trainer_of,
)
from helpers.training import STEPS, After

from tinyvae import Callback
from tinyvae.training.checkpoints.directory import RunDirectory

pytestmark = [
    posix,  # Windows does not move or remove an open file
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),
]


def aside(folder):
    return folder.with_name("aside")


def copy_back(folder):
    folder.rename(aside(folder))
    shutil.copytree(aside(folder), folder)


def replace_by_new(folder):
    folder.rename(aside(folder))
    folder.mkdir()


def replace_but_lock(folder):
    replace_by_new(folder)
    (aside(folder) / "lock").rename(folder / "lock")


def replace_by_file(folder):
    folder.rename(aside(folder))
    folder.touch()


def replace_lock(folder):
    (folder / "lock").unlink()
    (folder / "lock").touch()


LOSSES = {
    "lock removed": (
        lambda folder: (folder / "lock").unlink(),
        "lock of a run was moved or removed",
    ),
    "lock replaced": (replace_lock, "lock of a run was replaced"),
    "renamed": (
        lambda folder: folder.rename(aside(folder)),
        "folder of a run was moved or removed",
    ),
    "copied back": (copy_back, "folder of a run was replaced"),
    "replaced": (replace_by_new, "folder of a run was replaced"),
    "replaced but for the lock": (replace_but_lock, "folder of a run was replaced"),
    "replaced by a file": (replace_by_file, "folder of a run was replaced"),
}


def files_at(folder):
    """Return all files below the parent of a folder, but no temporary ones and no locks."""
    files = [file for file in folder.parent.rglob("*") if file.is_file()]
    return {f: f.read_bytes() for f in files if f.name != "lock" and f.suffix != ".tmp"}


class Lose(Callback):
    """Loses the folder when the writer is idle, after a step."""

    def __init__(self, step, folder, change):
        self.step, self.folder, self.change = step, folder, change
        self.files = {}

    def on_step_end(self, state, output):
        if state.step == self.step:
            state.callbacks[0]._writer.wait()
            self.change(self.folder)
            self.files = files_at(self.folder)


@pytest.mark.parametrize("step", [3, STEPS, END])
@pytest.mark.parametrize("name", LOSSES)
def test_run_that_loses_its_folder_writes_nothing_more(name, step, tmp_path):
    change, message = LOSSES[name]
    folder = tmp_path / "run"
    for options in (ALL, {"every_steps": None}):
        lose = Lose(step, folder, change)
        trainer = trainer_of(folder, lose, **options)
        with pytest.raises(OSError, match=rf"{message} .*: leave it in place"):
            fit(trainer)
        assert trainer.step == (step if options is ALL or step == END else STEPS)
        assert files_at(folder) == lose.files
        for path in tmp_path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_run_that_loses_its_folder_while_it_writes_leaves_no_file(tmp_path, monkeypatch):
    """The folder is replaced between the check at the start of a write and its end."""
    folder, fsync = tmp_path / "run", os.fsync

    def replace_and_sync(descriptor):
        if threading.current_thread() is not threading.main_thread() and 3 in started:
            started.clear()
            replace_by_new(folder)
        fsync(descriptor)

    started, write = set(), RunDirectory.write

    def note_and_write(self, step, *arguments):
        started.add(step)
        write(self, step, *arguments)

    monkeypatch.setattr(os, "fsync", replace_and_sync)
    monkeypatch.setattr(RunDirectory, "write", note_and_write)
    with pytest.raises(OSError, match="folder of a run was replaced"):
        fit(trainer_of(folder, **ALL))
    assert list(folder.iterdir()) == []
    assert steps_in(aside(folder)) == [0, 1, 2]


def test_lock_that_was_removed_leaves_the_folder_to_the_next_run(tmp_path):
    expected = expected_digest(tmp_path / "complete")
    folder = tmp_path / "run"
    others, files = [], []

    def start_other(state):
        (folder / "lock").unlink()
        others.append(fit(trainer_of(folder), **AUTO))
        files.append(contents(folder))

    with pytest.raises(OSError, match="lock of a run was"):
        fit(trainer_of(folder, After(STEPS + 2, start_other), **ALL))
    assert [contents(folder)] == files
    assert digest(others[0]) == expected
    assert epochs_in(folder) == [1, 2]


def test_lock_survives_a_backup_of_the_folder(tmp_path):
    folder, other = tmp_path / "run", trainer_of(tmp_path / "run")

    def back_up(state):
        state.callbacks[0]._writer.wait()  # temporary files vanish while they are copied
        shutil.copytree(folder, aside(folder))
        with (folder / "lock").open("r+b"):
            pass
        with pytest.raises(BlockingIOError):
            fit(other, **AUTO)

    trainer = fit(trainer_of(folder, After(STEPS + 2, back_up), **ALL))
    assert trainer.step == END
    assert fit(trainer_of(aside(folder)), **AUTO).step == END


def test_lock_that_the_file_system_loses_ends_the_run(tmp_path, monkeypatch):
    """POSIX record locks, by which some file systems emulate flock, end with any close."""
    import fcntl

    monkeypatch.setattr(
        fcntl, "flock", lambda file, how: fcntl.lockf(file, how & ~fcntl.LOCK_UN or how)
    )
    folder = tmp_path / "run"
    holder = []

    def lose_lock(state):
        state.callbacks[0]._writer.wait()  # its check would take the lock again
        (folder / "lock").read_bytes()
        holder.append(os.fork())
        if holder[0] == 0:
            try:
                file = (folder / "lock").open("r+b")
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.write(pipe[1], b"locked")
                threading.Event().wait(60)
            finally:
                os._exit(0)
        os.close(pipe[1])
        assert os.read(pipe[0], 6) == b"locked"

    pipe = os.pipe()
    with pytest.raises(BlockingIOError, match="is in use by"):
        fit(trainer_of(folder, After(3, lose_lock), **ALL))
    os.kill(holder[0], signal.SIGKILL)
    os.waitpid(holder[0], 0)
    os.close(pipe[0])
    assert steps_in(folder) == [0, 1, 2]


def test_relative_folder_does_not_follow_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    move = After(3, lambda _: os.chdir(tmp_path / "other"))
    trainer = trainer_of("run", move, **ALL)
    assert fit(trainer).step == END
    monkeypatch.chdir(tmp_path / "other")
    fit(trainer)
    assert steps_in(tmp_path / "run")[-1] == 2 * END
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert list((tmp_path / "other").iterdir()) == []


def test_folder_behind_a_link_is_lost_if_the_link_changes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a")

    def change(folder):
        link.unlink()
        link.symlink_to(tmp_path / "b")

    with pytest.raises(OSError, match="folder of a run was replaced"):
        fit(trainer_of(link, Lose(3, link, change), **ALL))
    assert steps_in(tmp_path / "a") == [0, 1, 2]
    assert list((tmp_path / "b").iterdir()) == []


def test_next_fit_of_a_trainer_makes_its_removed_folder(tmp_path):
    torch.manual_seed(0)
    trainer = fit(trainer_of(tmp_path / "run"))
    shutil.rmtree(tmp_path / "run")
    fit(trainer)
    assert checkpoint_of(tmp_path / "run", 2 * END).exists()
