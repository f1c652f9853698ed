"""Forked children and threads of a run, while its writer writes: no hang, and nothing is lost."""

import multiprocessing
import os
import signal
import sys
import threading

import pytest
from helpers.child import run_in_child, train_in_thread
from helpers.runs import (
    AUTO,
    END,
    assert_released,
    digest,
    expected_digest,
    fit,
    posix,
    steps_in,
    trainer_of,
)
from helpers.training import DATA, After, raises
from torch.utils.data import TensorDataset

from tinyvae.training.checkpoints.directory import RunDirectory

pytestmark = [posix, pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")]
LIMIT = 60  # seconds after which SIGALRM ends a child that hangs


@pytest.fixture
def forks(monkeypatch):
    """Event that the writer waits for at step 3, so that it writes while the process is forked."""
    forks, write = threading.Event(), RunDirectory.write

    def write_later(self, step, *arguments):
        if step == 3:
            assert forks.wait(LIMIT)
        write(self, step, *arguments)

    monkeypatch.setattr(RunDirectory, "write", write_later)
    return forks


def exit_code_of_child(trainer, forks, leave, *data, **options):
    """Fork after step 4, let the child ``leave(state)`` or continue, and return its exit code."""
    parent, codes = os.getpid(), []

    def fork(state):
        pid = os.fork()
        if pid == 0:
            signal.alarm(LIMIT)
            leave(state)
        else:
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            forks.set()

    trainer.callbacks.append(After(4, fork))
    try:
        fit(trainer, *data, **options)
    except SystemExit as error:
        os._exit(error.code)
    except OSError as error:
        if os.getpid() != parent:
            os._exit(7 if "only the process that started a run writes" in str(error) else 8)
        raise
    finally:
        if os.getpid() != parent:
            os._exit(9)
    return codes[0]


LEAVE = {
    "exit": (lambda _: sys.exit(5), 5),
    "error": (raises(ValueError()), 9),
    "exit at once": (lambda _: os._exit(6), 6),
    "no exit": (lambda _: None, 7),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("way", LEAVE)
def test_forked_child_leaves_the_run_to_its_parent(way, workers, forks, tmp_path):
    leave, code = LEAVE[way]
    data = TensorDataset(DATA) if workers else DATA
    expected = expected_digest(tmp_path / "complete", train=data)
    folder = tmp_path / "run"
    trainer = trainer_of(folder, every_steps=1, keep=99)
    assert exit_code_of_child(trainer, forks, leave, data, workers=workers) == code
    assert digest(trainer) == expected
    assert steps_in(folder) == list(range(END + 1))
    assert_released(folder)


def test_process_of_multiprocessing_ends_while_the_writer_writes(forks, tmp_path):
    codes = []

    def start(state):
        process = multiprocessing.get_context("fork").Process(target=signal.alarm, args=(LIMIT,))
        process.start()
        process.join(LIMIT)
        codes.append(process.exitcode)
        forks.set()

    fit(trainer_of(tmp_path, After(4, start), every_steps=1, keep=99))
    assert codes == [0]
    assert steps_in(tmp_path) == list(range(END + 1))


@pytest.mark.slow
def test_run_in_a_thread_outlives_the_main_thread(tmp_path):
    expected = expected_digest(tmp_path / "complete")
    folder = tmp_path / "run"
    done = run_in_child(train_in_thread, folder)
    assert done.returncode == 0
    assert done.stderr == ""
    assert steps_in(folder) == list(range(END + 1))
    assert (folder / "model.safetensors").exists()
    assert digest(fit(trainer_of(folder), **AUTO)) == expected
