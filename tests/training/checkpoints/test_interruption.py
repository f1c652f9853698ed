"""Signals to a run with a Checkpoint, and resources that a run must release."""

import gc
import os
import shutil
import signal
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.child import run_in_child, terminate_itself
from helpers.runs import (
    AUTO,
    END,
    assert_released,
    checkpoint_in,
    digest,
    expected_digest,
    fit,
    make_mlp_vae,
    posix,
    steps_in,
    trainer_of,
)
from helpers.training import STEPS, After, raises

from tinyvae import ELBO, Callback, Trainer
from tinyvae.errors import DataWorkerError
from tinyvae.training.callbacks import saving_after_error
from tinyvae.training.checkpoints.directory import RunDirectory
from tinyvae.training.state import TrainState

IS_SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"

# Signals -----------------------------------------------------------------------------------------


SIGNALS = [getattr(signal, n) for n in ("SIGTERM", "SIGUSR1") if hasattr(signal, n)]


@pytest.fixture(params=SIGNALS, ids=lambda s: s.name)
def user_signal(request):
    """A signal with a handler of the user, which logs its calls in ``handled``."""

    def handler(signum, frame):
        user_signal.handled.append((signum, user_signal.action()))

    user_signal = SimpleNamespace(
        signum=request.param, handler=handler, handled=[], action=lambda: None
    )
    previous = signal.signal(request.param, handler)
    yield user_signal
    signal.signal(request.param, previous)


def test_signal_handlers_are_installed_during_a_run_with_a_checkpoint(user_signal, tmp_path):
    seen = []
    look = After(2, lambda _: seen.append(signal.getsignal(user_signal.signum)))
    fit(trainer_of(tmp_path, look))
    assert len(seen) == 1
    assert seen != [user_signal.handler]
    assert signal.getsignal(user_signal.signum) is user_signal.handler
    for error in (ValueError(), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fit(trainer_of(tmp_path / "other", After(2, raises(error))), **AUTO)
        assert signal.getsignal(user_signal.signum) is user_signal.handler
    assert user_signal.handled == []


def test_signal_handlers_are_not_installed_without_a_checkpoint(user_signal):
    seen = []
    look = After(2, lambda _: seen.append(signal.getsignal(user_signal.signum)))
    send = After(3, lambda _: signal.raise_signal(user_signal.signum))
    trainer = Trainer(make_mlp_vae(), ELBO(), callbacks=[look, send], device="cpu", progress=False)
    fit(trainer)
    assert seen == [user_signal.handler]
    assert len(user_signal.handled) == 1
    assert trainer.step == END


def test_signal_handlers_are_not_installed_outside_the_main_thread(user_signal, tmp_path):
    seen, trainers = [], []
    look = After(2, lambda _: seen.append(signal.getsignal(user_signal.signum)))
    thread = threading.Thread(target=lambda: trainers.append(fit(trainer_of(tmp_path, look))))
    thread.start()
    thread.join()
    assert seen == [user_signal.handler]
    assert trainers[0].step == END
    assert steps_in(tmp_path) == [0, END]


@pytest.mark.parametrize("step", [3, STEPS, STEPS + 2])
def test_signal_reaches_the_previous_handler_after_the_last_write(user_signal, step, tmp_path):
    expected = expected_digest(tmp_path / "complete")
    folder = tmp_path / "run"

    def look():
        assert_released(folder)
        return steps_in(folder)

    user_signal.action = look
    send = After(step, lambda _: signal.raise_signal(user_signal.signum))
    trainer = fit(trainer_of(folder, send))
    assert user_signal.handled == [(user_signal.signum, [0, step])]
    assert trainer.history.stop_reason == user_signal.signum.name
    assert trainer.step == step
    assert signal.getsignal(user_signal.signum) is user_signal.handler
    assert not (folder / "model.safetensors").exists()
    again = fit(trainer_of(folder), **AUTO)
    assert digest(again) == expected
    assert again.history.stop_reason is None


class AtSafePoint(Callback):
    """Calls ``action`` at a safe point, after the Checkpoint has saved what it saves there."""

    def __init__(self, index, action):
        self.remaining, self.action = index, action

    def on_safe_point(self, state, *, last):
        if self.remaining == 0:
            self.action()
        self.remaining -= 1


@pytest.mark.parametrize("index", [0, 1, STEPS, STEPS + 1, STEPS + 2])
def test_signal_after_a_safe_point_is_saved_at_the_next_one(user_signal, index, tmp_path):
    expected = expected_digest(tmp_path / "complete")
    folder = tmp_path / "run"
    send = AtSafePoint(index, lambda: signal.raise_signal(user_signal.signum))
    trainer = fit(trainer_of(folder, send))
    assert trainer.step == {0: 0, 1: 2}.get(index, index) < END  # an epoch ends at two safe points
    assert steps_in(folder) == sorted({0, trainer.step})
    assert digest(fit(trainer_of(folder), **AUTO)) == expected


def test_signal_that_comes_after_the_death_of_a_data_worker_counts():
    def end(*, is_signaled):
        state = TrainState(make_mlp_vae(), ELBO(), torch.device("cpu"))
        signal_later = threading.Timer(0.05, lambda: state.stop("SIGTERM", resumable=True))
        with saving_after_error([], state):
            if is_signaled:
                signal_later.start()
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")

    end(is_signaled=True)
    with pytest.raises(DataWorkerError):
        end(is_signaled=False)


@posix
@pytest.mark.slow
def test_signal_without_a_handler_ends_the_process_with_a_checkpoint(tmp_path):
    expected = expected_digest(tmp_path / "complete")
    done = run_in_child(terminate_itself, tmp_path / "run")
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert steps_in(tmp_path / "run") == [0, 7]
    assert digest(fit(trainer_of(tmp_path / "run"), **AUTO)) == expected


def test_interrupt_that_does_not_wait_for_a_write_leaves_it_the_lock(tmp_path, monkeypatch):
    folder, write = tmp_path / "run", RunDirectory.write
    continues, ended = threading.Event(), threading.Event()

    def write_later(self, step, *arguments):
        if step == 3:
            interrupter.start()
            assert continues.wait(60)
        write(self, step, *arguments)

    def interrupt():
        while not ended.wait(0.1):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    monkeypatch.setattr(RunDirectory, "write", write_later)
    try:
        fit(trainer_of(folder, every_steps=1, keep=99))
    except KeyboardInterrupt:
        ended.set()
    interrupter.join()
    try:
        assert steps_in(folder) == [0, 1, 2]
        with pytest.raises(BlockingIOError):
            fit(trainer_of(folder), **AUTO)
    finally:
        continues.set()
    for thread in threading.enumerate():
        if thread.name.startswith("tinyvae-writer"):
            thread.join()
    assert steps_in(folder) == [0, 1, 2, 3]
    assert_released(folder)


# Resources ---------------------------------------------------------------------------------------


def test_checkpoint_keeps_no_reference_to_its_run(tmp_path):
    trainer = fit(trainer_of(tmp_path, every_steps=1))
    checkpoint = checkpoint_in(trainer)
    references = [weakref.ref(trainer), weakref.ref(trainer.model), weakref.ref(trainer.objective)]
    del trainer
    gc.collect()
    assert [reference() for reference in references] == [None] * 3
    assert checkpoint.folder == tmp_path


def test_failed_run_keeps_no_reference_to_its_model(tmp_path):
    trainer = trainer_of(tmp_path, After(3, raises(ValueError())), every_steps=1)
    with pytest.raises(ValueError, match=r"^$"):
        fit(trainer)
    reference = weakref.ref(trainer.model)
    del trainer
    gc.collect()
    assert reference() is None


def resident_memory():
    """Return the resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def count_open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to read memory")
def test_checkpoint_releases_files_threads_and_memory(tmp_path):
    runs, epochs = (50, 200) if IS_SOAK else (30, 2)
    files, threads, sizes = [], [], []
    for index in range(runs):
        folder = tmp_path / f"{index}"
        fit(trainer_of(folder, every_steps=STEPS), epochs=epochs)
        files.append(count_open_files())
        threads.append(threading.active_count())
        shutil.rmtree(folder)
        gc.collect()
        sizes.append(resident_memory())
    assert len(set(files)) == 1
    assert len(set(threads)) == 1
    assert sizes[-1] - sizes[runs // 3] <= 2 * 2**20
