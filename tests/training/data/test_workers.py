"""Processes that read ahead: their life, their random numbers, and what they see of the data."""

import multiprocessing
import os
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.child import fork_and_exit, run_in_child
from helpers.runs import checkpoint_of, digest, fit, posix, trainer_of
from helpers.training import (
    BATCH_SIZE,
    DATA,
    STEPS,
    After,
    LeastSquares,
    make_linear,
    raises,
    run,
    same,
)
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, get_worker_info

from tinyvae import Callback
from tinyvae.errors import DataWorkerError

EPOCHS = 3
WORKERS = {"workers": 2}


def drawn(row):
    """Return a row after draws from each global generator."""
    draws = (torch.rand(()).item(), random.random(), np.random.rand())  # noqa: NPY002
    return torch.where(torch.tensor([*draws, 0.0]) < 0.3, 1 - row, row)


class Drawn(Dataset):
    """Rows that draw, with the process that read them."""

    def __init__(self, shift=0.0):
        self.shift = shift

    def __len__(self):
        return len(DATA)

    def __getitem__(self, index):
        return (drawn(DATA[index]) + self.shift) % 2, os.getpid()


class DrawnStream(IterableDataset):
    """The same as a stream that processes share."""

    def __iter__(self):
        info = get_worker_info()
        for row in DATA if info is None else DATA[info.id :: info.num_workers]:
            yield drawn(row), os.getpid()


class Spy:
    """Function of a batch that picks x and records the processes."""

    def __init__(self):
        self.pids = set()

    def __call__(self, batch):
        self.pids |= set(batch[1].tolist())
        return batch[0]


def is_running(pid):
    return pid in {child.pid for child in multiprocessing.active_children()}


# Their life ---------------------------------------------------------------------------------------


def test_processes_are_kept_in_all_epochs_and_end_with_fit():
    spy = Spy()
    alive = []
    look = After(2 * STEPS + 1, lambda _: alive.extend(map(is_running, spy.pids)))
    fit_options = {"batch": spy, **WORKERS}
    data = Drawn()
    run(make_linear(), LeastSquares(), data, epochs=EPOCHS, callbacks=[look], fit=fit_options)
    assert len(spy.pids) == 2
    assert alive == [True, True]
    assert not any(map(is_running, spy.pids))
    validating = Spy()
    run(make_linear(), LeastSquares(), data, data, fit={"batch": validating, **WORKERS})
    assert len(validating.pids) == 4  # the validation data have processes of their own
    assert not any(map(is_running, validating.pids))


@pytest.mark.parametrize("error", [ValueError("planted"), KeyboardInterrupt()])
@pytest.mark.parametrize("kind", ["Dataset", "stream", "loader"])
def test_processes_end_after_an_error(error, kind):
    spy = Spy()
    fail = After(2, raises(error))
    options = {"batch": spy, **({} if kind == "loader" else WORKERS)}
    data = DrawnStream() if kind == "stream" else Drawn()
    data = DataLoader(data, BATCH_SIZE, num_workers=2) if kind == "loader" else data
    with pytest.raises(type(error)) as caught:
        run(make_linear(), LeastSquares(), data, callbacks=[fail], fit=options)
    assert caught.traceback  # which holds the frames that have read
    assert len(spy.pids) == 2
    assert not any(map(is_running, spy.pids))


def test_processes_end_after_a_stop_within_an_epoch():
    spy = Spy()
    stop = After(STEPS + 2, lambda state: state.stop("enough"))
    run(make_linear(), LeastSquares(), Drawn(), callbacks=[stop], fit={"batch": spy, **WORKERS})
    assert len(spy.pids) == 2
    assert not any(map(is_running, spy.pids))


class Fatal(Drawn):
    """Rows of which one ends the process that reads it."""

    def __getitem__(self, index):
        if index == 20:
            os._exit(1)
        return super().__getitem__(index)


# torch's signal handler raises wherever the main thread is, also while a socket is being opened.
@pytest.mark.filterwarnings("ignore:.*socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("role", ["training", "validation"])
def test_death_of_a_process_is_explained_and_the_others_end(role):
    spy = Spy()
    data, validation = (Fatal(), None) if role == "training" else (Drawn(), Fatal())
    with pytest.raises(DataWorkerError, match="A process that reads data has died"):
        run(make_linear(), LeastSquares(), data, validation, fit={"batch": spy, **WORKERS})
    assert not any(map(is_running, spy.pids))


class Logged(Drawn):
    """Rows that log each reading in a file."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def __getitem__(self, index):
        with self.log.open("ab", buffering=0) as file:
            file.write(b"%d\n" % index)
        return super().__getitem__(index)


def test_processes_read_the_next_epoch_ahead_but_none_after_the_last_one(tmp_path):
    log, ahead = tmp_path / "log", []

    class Wait(Callback):
        def on_epoch_end(self, state, row):
            for _ in range(600 if state.epoch == 1 else 100):  # until they have read ahead
                num_ahead = len(log.read_text().split()) - state.epoch * len(DATA)
                if num_ahead > 0:
                    break
                torch.randn(100_000).sort()
            ahead.append(num_ahead)

    options = {"batch": Spy(), **WORKERS}
    run(make_linear(), LeastSquares(), Logged(log), callbacks=[Wait()], fit=options)
    assert ahead[0] > 0
    assert ahead[1] == 0


def test_processes_start_once_when_a_batch_of_one_is_checked_in_a_resumed_run(tmp_path):
    class Odd(Drawn):
        def __len__(self):
            return 33

    settings = {**WORKERS, "epochs": EPOCHS}
    trainer = fit(trainer_of(tmp_path, every_steps=1, keep=99), Odd(), batch=Spy(), **settings)
    spy, file = Spy(), checkpoint_of(tmp_path, 7)
    again = fit(trainer_of(tmp_path / "run"), Odd(), batch=spy, resume=file, **settings)
    assert digest(again) == digest(trainer)
    assert len(spy.pids - {os.getpid()}) == 2


@posix
@pytest.mark.slow
def test_processes_continue_if_a_forked_child_leaves_fit(tmp_path):
    done = run_in_child(fork_and_exit, tmp_path)
    assert done.stdout.split() == [str(2 * STEPS)], done.stderr


# What they see ------------------------------------------------------------------------------------


class Shift(Callback):
    """Changes an attribute of the data after each epoch."""

    def __init__(self, data):
        self.data = data

    def on_epoch_end(self, state, row):
        self.data.shift = 0.1 * state.epoch


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: Subset(data, range(24))])
def test_processes_see_attributes_that_change_between_epochs(wrap):
    models = []
    for workers in (0, 2):
        data = Drawn()
        options = {"batch": Spy(), "workers": workers}
        shift = Shift(data)
        trainer = run(
            make_linear(),
            LeastSquares(),
            wrap(data),
            epochs=EPOCHS,
            callbacks=[shift],
            fit=options,
        )
        models.append(trainer.model)
    assert same(*models)
    still = run(make_linear(), LeastSquares(), wrap(Drawn()), epochs=EPOCHS, fit={"batch": Spy()})
    assert not same(still.model, models[0])


class Nested(Drawn):
    """Rows that an object, a list and a tensor of the data shift."""

    def __init__(self):
        super().__init__()
        self.settings = SimpleNamespace(shifts=[0.0], tensor=torch.zeros(4), itself=self)

    def __getitem__(self, index):
        row, pid = super().__getitem__(index)
        return (row + sum(self.settings.shifts) + self.settings.tensor) % 2, pid


@pytest.mark.parametrize(
    "change",
    [
        lambda data: setattr(data.settings, "shifts", [0.1]),
        lambda data: data.settings.shifts.append(0.1),
        lambda data: data.settings.tensor.add_(0.1),
    ],
)
def test_processes_see_changes_inside_objects(change):
    spies = [Spy(), Spy()]
    models = []
    for workers, spy in zip((0, 2), spies, strict=True):
        data = Nested()
        shift = After(STEPS, lambda _, data=data: change(data))
        options = {"batch": spy, "workers": workers}
        models.append(
            run(
                make_linear(),
                LeastSquares(),
                data,
                epochs=EPOCHS,
                callbacks=[shift],
                fit=options,
            ).model
        )
    assert same(*models)
    assert len(spies[1].pids) == 4  # they start again once


def test_processes_show_the_user_their_dataset():
    class Own(Drawn):
        def __getitem__(self, index):
            row, pid = super().__getitem__(index)
            return row, pid, type(get_worker_info().dataset) is Own

    seen = []
    pick = lambda b: seen.append(b[2].all().item()) or b[0]  # noqa: E731
    run(make_linear(), LeastSquares(), Own(), fit={"batch": pick, **WORKERS})
    assert seen == [True] * (2 * STEPS)


class One(Dataset):
    """One item of random numbers, the same first item in every epoch."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return torch.rand(4)


def test_items_draw_other_numbers_in_each_epoch():
    draws = {0: [], 2: []}
    for workers, xs in draws.items():
        pick = lambda x, xs=xs: xs.append(x) or x  # noqa: E731
        options = {"batch": pick, "workers": workers}
        run(make_linear(), LeastSquares(), One(), epochs=EPOCHS, fit=options)
    assert torch.cat(draws[0]).unique(dim=0).shape == (EPOCHS, 4)
    assert torch.equal(torch.cat(draws[0]), torch.cat(draws[2]))


# DataLoaders with persistent workers --------------------------------------------------------------


class Loader(DataLoader):
    """DataLoader of the user's own."""


def initialize(worker):
    """Invert the data in a process."""
    get_worker_info().dataset.shift = 1.0


def persistent(data, batch_size=BATCH_SIZE, kind=DataLoader, **options):
    return lambda: kind(data, batch_size, num_workers=2, persistent_workers=True, **options)


LOADERS = {
    "plain": persistent(Drawn(), shuffle=True),
    "generator": lambda: persistent(
        Drawn(), shuffle=True, generator=torch.Generator().manual_seed(3)
    )(),
    "worker_init_fn": persistent(Drawn(), worker_init_fn=initialize),
    "subclass": persistent(Drawn(), kind=Loader),
    "batches": persistent([(DATA[:8], torch.zeros(8))] * 3, None),
    "stream": persistent(DrawnStream()),
}
KEEPING = ["plain", "generator", "worker_init_fn"]


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.filterwarnings("ignore:the data cannot restore their position")
def test_resume_of_a_loader_with_persistent_workers_is_bitwise(name, tmp_path):
    make, spy, settings = LOADERS[name], Spy(), {"epochs": EPOCHS}
    loader = make()
    trainer = fit(trainer_of(tmp_path, every_steps=1, keep=99), loader, batch=spy, **settings)
    assert not any(map(is_running, spy.pids))
    steps = trainer.step // EPOCHS
    if name != "batches":
        assert len(spy.pids) == (2 if name in KEEPING else 2 * EPOCHS)
    for step in (1, steps, steps + 2, 2 * steps):
        file = checkpoint_of(tmp_path, step)
        again = fit(trainer_of(tmp_path / f"{step}"), make(), batch=Spy(), resume=file, **settings)
        assert digest(again) == digest(trainer)
    if name != "generator":  # which has moved
        used = fit(trainer_of(tmp_path / "used"), loader, batch=Spy(), **settings)
        assert digest(used) == digest(trainer)
    assert loader.persistent_workers
    assert loader._iterator is None


def test_loader_with_persistent_workers_draws_other_numbers_in_each_epoch():
    sums = []
    pick = lambda b: sums.append(b[0].sum().item()) or b[0]  # noqa: E731
    data = Drawn()
    data.shift = torch.rand(4)
    run(make_linear(), LeastSquares(), persistent(data)(), epochs=1, fit={"batch": pick})
    first = list(sums)
    run(make_linear(), LeastSquares(), persistent(data)(), epochs=2, fit={"batch": pick})
    assert sums[len(first) : 2 * len(first)] == first
    assert sums[2 * len(first) :] != first


def test_worker_init_fn_of_a_loader_with_persistent_workers_runs():
    xs = []
    pick = lambda b: xs.append(b[0]) or b[0]  # noqa: E731
    for make in (persistent(Drawn()), persistent(Drawn(), worker_init_fn=initialize)):
        run(make_linear(), LeastSquares(), make(), epochs=1, fit={"batch": pick})
    assert all(torch.equal(x, 1 - y) for x, y in zip(xs[:STEPS], xs[STEPS:], strict=True))
