"""Checkpoints: what is written and when, what is kept, what is refused, and what is left behind."""

import gc
import json
import linecache
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.runs import checkpoint_of, digest
from helpers.training import (
    BATCH_SIZE,
    DATA,
    STEPS,
    After,
    LeastSquares,
    Recorder,
    make_linear,
    raises,
    same,
)
from torch import nn
from torch.utils.data import Dataset

import tinyvae.training.checkpoints.checkpoint
import tinyvae.training.state
import tinyvae.training.step
from tinyvae import (
    ELBO,
    MLP,
    VAE,
    BernoulliLikelihood,
    Callback,
    Checkpoint,
    EarlyStopping,
    GaussianEncoder,
    Optimization,
    Trainer,
)
from tinyvae.core import ObjectiveOutput
from tinyvae.errors import CheckpointError, NonFiniteError
from tinyvae.io import FolderLock
from tinyvae.training.checkpoints.directory import RunDirectory, load_checkpoint
from tinyvae.training.nonfinite import NonFiniteGuard

IS_SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
AUTO = {"resume": "auto"}
ALL = {"every_steps": 1, "keep": 10**6}
EPOCHS = 2
END = EPOCHS * STEPS
posix = pytest.mark.skipif(os.name != "posix", reason="limits, links and signals as POSIX has them")


def make_vae():
    """A model that a file describes, and that draws."""
    torch.manual_seed(0)
    encoder = GaussianEncoder(MLP(4, hidden=(8,)), latent_dim=2)
    return VAE(encoder, MLP(2, hidden=(8,), out_shape=4), BernoulliLikelihood())


def trainer_of(folder, *callbacks, model=make_vae, objective=ELBO, **keeping):
    checkpoint = Checkpoint(folder, **{"every_minutes": None, **keeping})
    return Trainer(
        model(), objective(), callbacks=[checkpoint, *callbacks], device="cpu", progress=False
    )


def fit(trainer, train=DATA, validation=None, **options):
    trainer.fit(train, validation, **{"epochs": EPOCHS, "batch_size": BATCH_SIZE, **options})
    return trainer


def checkpoint_in(trainer):
    return next(c for c in trainer.callbacks if isinstance(c, Checkpoint))


def steps_in(folder):
    return [int(file.stem.removeprefix("step-")) for file in sorted(folder.glob("step-*.safe*"))]


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def lines(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def epochs_in(folder):
    return [line["epoch"] for line in lines(folder)]


def weights_in(folder, step):
    return load_checkpoint(checkpoint_of(folder, step))["model"]


THE_CALL = "trainer.fit(train, validation, **{"


def blamed(warning):
    """The beginning of the line that a warning points to."""
    return linecache.getline(warning.filename, warning.lineno).strip()[: len(THE_CALL)]


def assert_let_go(folder):
    """Nobody holds the folder, and nothing is being written there."""
    FolderLock(folder).release()
    assert not [t for t in threading.enumerate() if t.name.startswith("tinyvae-writer")]
    assert not list(folder.glob("*.tmp")) + list(folder.glob(".*.tmp"))


def expected_digest(folder, **options):
    """What a run ends with that nobody has touched."""
    return digest(fit(trainer_of(folder), **options))


class Scores(Callback):
    """Adds a column to the history: the value of each epoch, from 1."""

    def __init__(self, *values):
        self.values = values

    def on_epoch_end(self, trainer, row):
        row["score"] = self.values[int(row["epoch"]) - 1]


class Remembers(Callback):
    """A state of its own."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state


# Arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_steps": 0}, "every_steps .*>= 1, got 0"),
        ({"every_steps": -3}, "every_steps .*>= 1, got -3"),
        ({"every_minutes": -1.0}, r"every_minutes >= 0, got -1\.0"),
        ({"every_minutes": math.nan}, "every_minutes >= 0, got nan"),
        ({"keep": 0}, "keep .*>= 1, got 0"),
    ],
)
def test_arguments_are_checked(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Checkpoint(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{"keep": None}, {"keep": 1.5}, {"every_steps": 2.5}])
def test_counts_are_whole_numbers(options, tmp_path):
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        Checkpoint(tmp_path, **options)


def test_there_is_one_checkpoint_at_most(tmp_path):
    two = [Checkpoint(tmp_path / "a"), Checkpoint(tmp_path / "b")]
    with pytest.raises(ValueError, match="at most one Checkpoint, got 2"):
        Trainer(make_vae(), ELBO(), callbacks=two, progress=False)


def test_making_one_leaves_no_trace(tmp_path):
    Checkpoint(tmp_path / "run")
    assert not (tmp_path / "run").exists()


# When one is written, and which are kept ---------------------------------------------------------


@pytest.mark.parametrize(
    ("keeping", "steps"),
    [
        ({}, [0, 10]),
        ({"every_steps": 3}, [0, 3, 6, 9, 10]),
        ({"every_steps": 5}, [0, 5, 10]),
        ({"every_steps": 99}, [0, 10]),
        ({"every_minutes": 0}, list(range(11))),
        ({"every_minutes": 1e6}, [0, 10]),
    ],
)
def test_when_one_is_written(keeping, steps, tmp_path):
    fit(trainer_of(tmp_path, **{"keep": 99, **keeping}))
    assert steps_in(tmp_path) == steps


@pytest.mark.parametrize(("minutes", "steps"), [(3, [0, 3, 6, 9, 10]), (2.5, [0, 3, 6, 9, 10])])
def test_minutes_are_of_the_clock_since_the_last_one(minutes, steps, tmp_path, monkeypatch):
    now = [0.0]

    class Minute(Callback):
        def on_step_end(self, trainer, output):
            now[0] += 60

    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(tinyvae.training.checkpoints.checkpoint, "time", clock)
    fit(trainer_of(tmp_path, Minute(), every_minutes=minutes, keep=99))
    assert steps_in(tmp_path) == steps


def test_a_checkpoint_at_the_end_of_an_epoch_knows_that_it_has_ended(tmp_path):
    fit(trainer_of(tmp_path, every_steps=STEPS, keep=99))
    state = load_checkpoint(checkpoint_of(tmp_path, STEPS))
    assert [state["position"][name] for name in ("epoch", "step", "batch")] == [1, STEPS, 0]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(keep, tmp_path):
    seen = []

    class Look(Callback):
        def on_step_end(self, trainer, output):
            checkpoint_in(trainer)._writer.wait()
            seen.append(steps_in(tmp_path))

    fit(trainer_of(tmp_path, Look(), every_steps=1, keep=keep))
    assert steps_in(tmp_path) == list(range(END + 1))[-keep:]
    assert seen == [list(range(step))[-keep:] for step in range(1, END + 1)]


SCORES = (math.nan, 3.0, 2.0, 0.0, math.nan)


@pytest.mark.parametrize(("mode", "epoch"), [("max", 2), ("min", 4)])
@pytest.mark.parametrize("keep", [1, 2])
def test_the_best_is_kept_besides(mode, epoch, keep, tmp_path):
    watched = {"monitor": "score", "mode": mode, "keep": keep, "every_steps": 1}
    recorder = Recorder()
    trainer = fit(trainer_of(tmp_path, Scores(*SCORES), recorder, **watched), epochs=5)
    best = epoch * STEPS
    assert steps_in(tmp_path) == sorted({best, *range(5 * STEPS + 1 - keep, 5 * STEPS + 1)})
    assert checkpoint_in(trainer).best_step == best
    assert checkpoint_in(trainer).best == SCORES[epoch - 1]
    assert same(weights_in(tmp_path, best), recorder.weights[best])


@pytest.mark.parametrize(("mode", "epoch"), [("max", 2), ("min", 4)])
def test_the_best_is_written_though_no_other_is_due(mode, epoch, tmp_path):
    trainer = trainer_of(tmp_path, Scores(*SCORES), monitor="score", mode=mode, keep=1)
    fit(trainer, epochs=5)
    assert steps_in(tmp_path) == [epoch * STEPS, 5 * STEPS]


@pytest.mark.parametrize(("mode", "epoch"), [("max", 2), ("min", 4)])
@pytest.mark.parametrize("step", [STEPS + 2, 2 * STEPS + 2, 4 * STEPS + 2])
def test_the_best_survives_a_resume(mode, epoch, step, tmp_path):
    watched = {"monitor": "score", "mode": mode, "keep": 1, "every_steps": 1}
    first = trainer_of(tmp_path, Scores(*SCORES), After(step, raises(OSError())), **watched)
    with pytest.raises(OSError):  # noqa: PT011 - it has no message
        fit(first, epochs=5)
    trainer = fit(trainer_of(tmp_path, Scores(*SCORES), **watched), epochs=5, **AUTO)
    assert steps_in(tmp_path) == [epoch * STEPS, 5 * STEPS]
    assert checkpoint_in(trainer).best_step == epoch * STEPS


def test_the_best_survives_a_second_fit(tmp_path):
    trainer = trainer_of(tmp_path, Scores(3.0, 1.0, 2.0, 0.0), monitor="score", keep=1)
    fit(trainer)
    fit(trainer)
    assert steps_in(tmp_path) == [STEPS, 4 * STEPS]


def test_a_column_may_be_watched_from_a_resume_on(tmp_path):
    fit(trainer_of(tmp_path, Scores(*SCORES)), epochs=1)
    with pytest.warns(UserWarning, match="begun for 1 epochs"):
        trainer = fit(
            trainer_of(tmp_path, Scores(*SCORES), monitor="score", mode="min", keep=1),
            epochs=5,
            **AUTO,
        )
    assert checkpoint_in(trainer).best_step == 4 * STEPS
    assert steps_in(tmp_path) == [4 * STEPS, 5 * STEPS]


def test_a_column_that_is_not_there_is_named(tmp_path):
    trainer = trainer_of(tmp_path, monitor="score")
    with pytest.raises(ValueError, match=r"watches 'score', expected one of \['epoch', 'step'"):
        fit(trainer)
    assert_let_go(tmp_path)


def test_an_epoch_cut_short_need_not_have_the_column(tmp_path):
    watched = {"monitor": "validation/elbo_nats", "every_steps": 1}
    stop = After(2, lambda trainer: trainer.stop("enough"))
    trainer = fit(trainer_of(tmp_path, stop, **watched), DATA, DATA)
    assert trainer.history.stop_reason == "enough"


# A folder is of one run --------------------------------------------------------------------------


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    fit(trainer_of(tmp_path, every_steps=1))
    before = content(tmp_path)
    trainer = trainer_of(tmp_path)
    for _ in range(2):
        with pytest.raises(FileExistsError, match=r'holds a run that was at step 10.*resume="auto'):
            fit(trainer)
    assert trainer.step == 0
    assert content(tmp_path) == before
    assert_let_go(tmp_path)


def test_a_resume_that_was_refused_gives_no_right_to_the_folder(tmp_path):
    fit(trainer_of(tmp_path))
    before = content(tmp_path)
    trainer = trainer_of(tmp_path)
    with pytest.raises(ValueError, match="number of examples = 37, got 33"):
        fit(trainer, DATA[:33], **AUTO)
    with pytest.raises(FileExistsError, match="holds a run"):
        fit(trainer, DATA[:33])
    assert content(tmp_path) == before


def test_a_second_fit_goes_on(tmp_path):
    trainer = trainer_of(tmp_path / "run", every_steps=1, keep=99)
    fit(fit(trainer))
    plain = Trainer(make_vae(), ELBO(), device="cpu", progress=False)
    fit(fit(plain))
    assert digest(trainer) == digest(plain)
    assert epochs_in(tmp_path / "run") == [1, 2, 3, 4]
    assert steps_in(tmp_path / "run") == list(range(2 * END + 1))
    again = fit(trainer_of(tmp_path / "run"), epochs=4, **AUTO)
    assert digest(again) == digest(trainer)


def test_a_second_fit_is_resumed_as_it_was_begun(tmp_path):
    """Its first checkpoint is of itself: not of the end of the first."""
    plain = Trainer(make_vae(), ELBO(), device="cpu", progress=False)
    fit(fit(plain))
    trainer = fit(trainer_of(tmp_path))
    trainer.callbacks.append(After(END + 3, raises(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        fit(trainer)
    assert steps_in(tmp_path) == [0, END]
    assert digest(fit(trainer_of(tmp_path), epochs=4, **AUTO)) == digest(plain)


def test_the_same_trainer_is_resumed(tmp_path):
    expected = expected_digest(tmp_path / "whole")
    stop = After(STEPS + 2, lambda _: signal.raise_signal(signal.SIGINT))
    trainer = fit(trainer_of(tmp_path / "run", stop))
    assert trainer.step == STEPS + 2
    assert digest(fit(trainer, **AUTO)) == expected
    assert epochs_in(tmp_path / "run") == [1, 2]


def test_after_going_back_the_future_is_aside(tmp_path):
    whole = fit(trainer_of(tmp_path, **ALL))
    later = {f"step-{s:08d}.replaced": content(tmp_path)[f"step-{s:08d}.safetensors"] for s in (9,)}
    back = trainer_of(tmp_path, After(5, raises(AssertionError)), After(8, raises(ValueError())))
    with pytest.raises(ValueError, match=r"^$"):
        fit(back, resume=checkpoint_of(tmp_path, 6))
    assert epochs_in(tmp_path) == [1]
    assert steps_in(tmp_path)[-1] <= 7
    assert later.items() <= content(tmp_path).items()
    again = fit(trainer_of(tmp_path), **AUTO)
    assert digest(again) == digest(whole)
    assert epochs_in(tmp_path) == [1, 2]


# Damage ------------------------------------------------------------------------------------------


def flip_a_byte(data):
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


DAMAGES = {"cut": lambda d: d[: len(d) // 2], "empty": lambda _: b"", "flipped": flip_a_byte}


def damage(folder, step, name):
    file = checkpoint_of(folder, step)
    file.write_bytes(DAMAGES[name](file.read_bytes()))
    return file.read_bytes()


def stopped_at(folder, step, **keeping):
    with pytest.raises(KeyboardInterrupt):
        fit(trainer_of(folder, After(step + 1, raises(KeyboardInterrupt())), **keeping))


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_one_is_put_aside_and_the_one_before_taken(name, tmp_path):
    expected = expected_digest(tmp_path / "whole")
    folder = tmp_path / "run"
    stopped_at(folder, 8, every_steps=1, keep=2)
    assert steps_in(folder) == [7, 8]
    damaged = damage(folder, 8, name)
    with pytest.warns(UserWarning, match=r"step-00000008.*from step-00000007") as record:
        trainer = fit(trainer_of(folder, keep=2), **AUTO)
    assert [blamed(warning) for warning in record] == [THE_CALL]
    assert digest(trainer) == expected
    # The damaged one takes no good one's place.
    assert steps_in(folder) == [7, END]
    assert damaged in content(folder).values()  # under another name


def test_several_damaged_ones_are_each_named(tmp_path):
    stopped_at(tmp_path, 8, every_steps=1, keep=3)
    damage(tmp_path, 8, "cut")
    damage(tmp_path, 7, "empty")
    with pytest.warns(UserWarning) as record:  # noqa: PT030 - looked at below
        fit(trainer_of(tmp_path), **AUTO)
    assert len(record) == 2
    for warning, step in zip(record, (8, 7), strict=True):
        assert f"step-0000000{step}" in str(warning.message)
        assert "from step-00000006" in str(warning.message)


def test_where_all_are_damaged_nothing_is_begun_anew(tmp_path):
    stopped_at(tmp_path, 8, every_steps=1, keep=3)
    for step, name in zip((6, 7, 8), DAMAGES, strict=True):
        damage(tmp_path, step, name)
    before = content(tmp_path)
    trainer = trainer_of(tmp_path)
    with pytest.raises(CheckpointError) as error:
        fit(trainer, **AUTO)
    assert all(str(checkpoint_of(tmp_path, step)) in str(error.value) for step in (6, 7, 8))
    assert "no run was started" in str(error.value)
    with pytest.raises(FileExistsError):
        fit(trainer)
    assert trainer.step == 0
    assert content(tmp_path) == before
    assert_let_go(tmp_path)


def test_a_file_of_a_model_is_no_checkpoint(tmp_path):
    file = tmp_path / "model.safetensors"
    make_vae().save(file)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected a checkpoint .*'VAE'"):
        fit(trainer_of(tmp_path / "run"), resume=file)


# One at a time -----------------------------------------------------------------------------------


def test_a_second_fit_at_the_same_time_is_refused(tmp_path):
    expected = expected_digest(tmp_path / "whole")
    folder = tmp_path / "run"
    other = trainer_of(folder)
    refused = []

    def meanwhile(trainer):
        for options in ({}, AUTO):
            with pytest.raises(BlockingIOError, match=r"run is in use by another run"):
                fit(other, **options)
            refused.append(options)

    trainer = fit(trainer_of(folder, After(3, meanwhile), **ALL))
    assert len(refused) == 2
    assert other.step == 0
    assert digest(trainer) == expected
    assert steps_in(folder) == list(range(END + 1))
    fit(other, **AUTO)


@posix
def test_a_link_to_a_folder_is_that_folder(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    other = trainer_of(tmp_path / "link")

    def meanwhile(trainer):
        with pytest.raises(BlockingIOError):
            fit(other, **AUTO)

    fit(trainer_of(tmp_path / "run", After(3, meanwhile)))
    assert other.step == 0


CHILD = """
import json, os, signal, sys
from pathlib import Path
import torch
from test_checkpoint import *

torch.set_num_threads(int(sys.argv[3]))
folder = Path(sys.argv[2])

def same_time():
    fit(trainer_of(folder), resume="auto")

def killed():
    kill = After(8, lambda _: os.kill(os.getpid(), signal.SIGKILL))
    fit(trainer_of(folder, kill, every_steps=1))

def full():
    import resource
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    large, small = {"x": torch.zeros(300_000)}, {"x": torch.zeros(1)}
    growing = Remembers(small)
    grow = After(4, lambda _: setattr(growing, "state", large))
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    fit(trainer_of(folder, growing, grow, every_steps=1))

def ended():
    fit(trainer_of(folder, After(7, lambda _: signal.raise_signal(signal.SIGTERM))))

try:
    globals()[sys.argv[1]]()
except OSError as error:
    print(json.dumps([type(error).__name__, str(error), str(error.filename)]))
"""


def child(what, folder):
    """Run what :data:`CHILD` names in a process of its own."""
    folders = [Path(__file__).parent, Path(__file__).parents[2]]
    paths = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-c", CHILD, what, str(folder), str(torch.get_num_threads())],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_another_process_is_refused_and_told_who_is_there(tmp_path):
    done = []
    fit(trainer_of(tmp_path, After(3, lambda _: done.append(child("same_time", tmp_path)))))
    assert done[0].returncode == 0, done[0].stderr
    name, message, _ = json.loads(done[0].stdout)
    assert name == "BlockingIOError"
    assert f"in use by process {os.getpid()}" in message
    assert steps_in(tmp_path) == [0, END]


@posix
def test_a_killed_run_goes_on(tmp_path):
    expected = expected_digest(tmp_path / "whole")
    done = child("killed", tmp_path / "run")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert steps_in(tmp_path / "run")[-1] in (6, 7)  # the last may not have been written
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert digest(fit(trainer_of(tmp_path / "run"), **AUTO)) == expected
    assert epochs_in(tmp_path / "run") == [1, 2]


# History and model -------------------------------------------------------------------------------


def test_the_history_has_a_line_per_epoch(tmp_path):
    odd = Scores(math.nan, 1.5, -math.inf)
    looks = []
    look = After(2 * STEPS + 1, lambda _: looks.append(epochs_in(tmp_path)))
    trainer = fit(trainer_of(tmp_path, odd, look), DATA, DATA, epochs=3)
    assert looks == [[1, 2]]  # as it happens, not at the end
    expected = [dict(row) for row in trainer.history]
    expected[0]["score"] = expected[2]["score"] = None
    assert lines(tmp_path) == expected
    assert b"NaN" not in (tmp_path / "history.jsonl").read_bytes()


@pytest.mark.parametrize("keeping", [{}, {"every_steps": 1}, {"every_steps": 3}])
def test_the_history_has_no_gap_and_no_repeat_over_resumes(keeping, tmp_path):
    for step in (3, STEPS + 2, STEPS + 2, 3 * STEPS, 3 * STEPS + 1):
        crash = After(step, raises(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            fit(trainer_of(tmp_path, crash, **keeping), epochs=4, **AUTO)
        expected = list(range(1, load_newest(tmp_path)["position"]["epoch"] + 1))
        assert epochs_in(tmp_path)[: len(expected)] == expected
    trainer = fit(trainer_of(tmp_path, **keeping), epochs=4, **AUTO)
    assert epochs_in(tmp_path) == [1, 2, 3, 4]
    assert lines(tmp_path) == list(trainer.history)


def load_newest(folder):
    return load_checkpoint(checkpoint_of(folder, steps_in(folder)[-1]))


def test_an_epoch_cut_short_by_a_signal_has_no_line(tmp_path):
    stop = After(STEPS + 2, lambda _: signal.raise_signal(signal.SIGINT))
    trainer = fit(trainer_of(tmp_path, stop))
    assert trainer.history["step"] == [STEPS, STEPS + 2]
    assert epochs_in(tmp_path) == [1]


class NotANumber(LeastSquares):
    """A metric that says nothing about some batches."""

    def forward(self, model, batch):
        output = super().forward(model, batch)
        return ObjectiveOutput(output.losses, {"odd": torch.tensor(math.nan), **output.metrics})


def test_a_metric_may_be_nan(tmp_path):
    options = {"model": make_linear, "objective": NotANumber}
    fit(trainer_of(tmp_path, every_steps=1, **options))
    assert [line["train/odd"] for line in lines(tmp_path)] == [None, None]
    assert steps_in(tmp_path) == [END - 1, END]


def test_the_model_is_there_at_the_end(tmp_path):
    trainer = fit(trainer_of(tmp_path))
    assert same(VAE.load(tmp_path / "model.safetensors"), trainer.model)


def test_the_model_is_there_if_the_run_decides_to_end(tmp_path):
    stop = After(STEPS + 2, lambda trainer: trainer.stop("enough"))
    trainer = fit(trainer_of(tmp_path, stop))
    assert trainer.step == STEPS + 2
    assert same(VAE.load(tmp_path / "model.safetensors"), trainer.model)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_model_has_the_weights_that_are_restored(place, tmp_path):
    recorder = Recorder()
    callbacks = [Scores(1.0, 2.0, 0.0), EarlyStopping("score", patience=9)]
    callbacks.insert(place, Checkpoint(tmp_path))
    trainer = Trainer(
        make_vae(), ELBO(), callbacks=[recorder, *callbacks], device="cpu", progress=False
    )
    fit(trainer, epochs=3)
    model = VAE.load(tmp_path / "model.safetensors")
    assert same(model, trainer.model)
    assert same(model, recorder.weights[2 * STEPS])
    assert same(weights_in(tmp_path, 3 * STEPS), recorder.weights[3 * STEPS])


ENDINGS = {
    "signal": lambda _: signal.raise_signal(signal.SIGINT),
    "error": raises(ValueError("planted")),
    "interrupt": raises(KeyboardInterrupt()),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_there_is_no_model_after_an_interruption(name, tmp_path):
    trainer = trainer_of(tmp_path, After(STEPS + 2, ENDINGS[name]), every_steps=1)
    try:
        fit(trainer)
    except (ValueError, KeyboardInterrupt):
        assert name != "signal"
    assert not (tmp_path / "model.safetensors").exists()
    fit(trainer_of(tmp_path), **AUTO)
    assert (tmp_path / "model.safetensors").exists()


def test_a_checkpoint_is_a_file_of_the_model(tmp_path):
    recorder = Recorder()
    fit(trainer_of(tmp_path, recorder, **ALL))
    for step in (0, 3, END):
        loaded = VAE.load(checkpoint_of(tmp_path, step))
        assert same(loaded, recorder.weights[step])
        assert not loaded.training


def test_a_model_that_no_file_describes_is_kept_all_the_same(tmp_path):
    options = {"model": make_linear, "objective": LeastSquares}
    expected = digest(fit(trainer_of(tmp_path / "whole", **options)))
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(trainer_of(folder, After(7, raises(KeyboardInterrupt())), every_steps=1, **options))
    assert digest(fit(trainer_of(folder, **options), **AUTO)) == expected
    assert not (folder / "model.safetensors").exists()


def make_tied():
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), layer, nn.ReLU())
    decoder = nn.Sequential(nn.Linear(2, 8), layer, nn.ReLU(), nn.Linear(8, 4))
    encoder = GaussianEncoder(network, latent_dim=2, features=8)
    return VAE(encoder, decoder, BernoulliLikelihood())


def test_shared_weights_are_kept_with_a_warning(tmp_path):
    message = "no file of the model alone: 'encoder.* are one parameter"
    whole, folder = tmp_path / "whole", tmp_path / "run"
    with pytest.warns(UserWarning, match=message) as record:
        expected = digest(fit(trainer_of(whole, model=make_tied)))
    assert [blamed(warning) for warning in record] == [THE_CALL]
    crash = After(7, raises(KeyboardInterrupt()))
    with pytest.warns(UserWarning, match=message), pytest.raises(KeyboardInterrupt):
        fit(trainer_of(folder, crash, model=make_tied, every_steps=1))
    with pytest.warns(UserWarning, match=message):
        assert digest(fit(trainer_of(folder, model=make_tied), **AUTO)) == expected
    assert not (folder / "model.safetensors").exists()


# What cannot be written --------------------------------------------------------------------------


UNWRITABLE = {
    "object": (lambda: object(), TypeError, r"got <object .* as 'callbacks\.Remembers\.own'"),
    "function": (lambda: [1, {"deep": len}], TypeError, r"callbacks\.Remembers\.own\.1\.deep"),
    "sparse": (
        lambda: torch.eye(2).to_sparse(),
        (TypeError, ValueError),
        r"callbacks\.Remembers\.own",
    ),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_a_state_that_no_file_can_hold_is_named_before_the_first_step(name, tmp_path):
    make, kind, message = UNWRITABLE[name]
    trainer = trainer_of(tmp_path, Remembers({"own": make()}))
    with pytest.raises(kind, match=message):
        fit(trainer)
    assert trainer.step == 0
    assert steps_in(tmp_path) == []
    assert_let_go(tmp_path)


@pytest.mark.parametrize("way", ["second fit", "resumed"])
def test_so_it_is_where_a_run_goes_on(way, tmp_path):
    trainer, options = fit(trainer_of(tmp_path)), {"epochs": 4}
    step = trainer.step
    bad = Remembers({"own": object()})
    if way == "second fit":
        trainer.callbacks.append(bad)
    else:
        stopped_at(tmp_path / "other", step := 7, every_steps=1)
        trainer, options = trainer_of(tmp_path / "other", bad), AUTO
    with pytest.raises(TypeError, match=r"callbacks\.Remembers\.own"):
        fit(trainer, **options)
    assert trainer.step == step


def test_a_callback_may_remember_what_is_not_finite(tmp_path):
    best = torch.tensor([math.inf, -math.inf, 1.0])
    fit(trainer_of(tmp_path, Remembers({"best": best, "last": -math.inf})))
    state = load_newest(tmp_path)["callbacks"]["Remembers"]
    assert torch.equal(state["best"], best)
    assert state["last"] == -math.inf


def test_a_buffer_that_is_not_finite_is_named_before_the_first_step(tmp_path):
    def make():
        model = make_linear()
        model.register_buffer("scale", torch.tensor([1.0, math.inf]))
        return model

    trainer = trainer_of(tmp_path, model=make, objective=LeastSquares)
    with pytest.raises(ValueError, match=r"finite values in 'model\.scale'"):
        fit(trainer)
    assert trainer.step == 0
    assert steps_in(tmp_path) == []
    assert_let_go(tmp_path)


@pytest.mark.parametrize("step", [3, STEPS, END])
@pytest.mark.parametrize("every", [1, None])
def test_no_file_holds_weights_that_are_not_finite(step, every, tmp_path):
    def poison(trainer):
        with torch.no_grad():
            trainer.model.weight[0, 0] = math.inf

    options = {"model": make_linear, "objective": LeastSquares}
    recorder = Recorder()
    first = trainer_of(tmp_path, recorder, After(step, poison), every_steps=every, **options)
    with pytest.raises(NonFiniteError):
        fit(first)
    assert_let_go(tmp_path)
    last = steps_in(tmp_path)[-1]
    assert last == (step - 1 if every else 0)
    assert same(weights_in(tmp_path, last), recorder.weights[last])
    assert not (tmp_path / "model.safetensors").exists()
    expected = digest(fit(trainer_of(tmp_path / "whole", **options)))
    assert digest(fit(trainer_of(tmp_path, **options), **AUTO)) == expected


def test_no_checkpoint_is_of_a_step_that_is_found_out_later(tmp_path, monkeypatch):
    class Breaks(LeastSquares):
        calls = 0

        def forward(self, model, batch):
            self.calls += 1
            output = super().forward(model, batch)
            bad = math.nan if self.calls == 4 else 0.0
            return ObjectiveOutput({"model": output.losses["model"] + bad}, output.metrics)

    monkeypatch.setattr(
        tinyvae.training.step, "NonFiniteGuard", lambda *made: NonFiniteGuard(*made, waits=False)
    )
    trainer = trainer_of(tmp_path, model=make_linear, objective=Breaks, every_steps=2, keep=9)
    with pytest.raises(NonFiniteError, match=r"^step 4 "):
        fit(trainer)
    assert steps_in(tmp_path) == [0, 2]


@posix
def test_a_full_disk_is_told_and_the_older_one_stays(tmp_path):
    expected = expected_digest(tmp_path / "whole")
    folder = tmp_path / "run"
    done = child("full", folder)
    assert done.returncode == 0, done.stderr
    name, message, file = json.loads(done.stdout)
    assert name == "OSError"
    assert "cannot write the file: File too large" in message
    assert file == str(checkpoint_of(folder, 4))
    assert steps_in(folder) == [2, 3]
    assert_let_go(folder)
    again = fit(trainer_of(folder, Remembers({})), **AUTO)
    assert digest(again) == expected


def test_a_folder_that_is_a_file_is_told_before_the_first_step(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        trainer = trainer_of(path)
        with pytest.raises(OSError, match=str(path)):
            fit(trainer)
        assert trainer.step == 0
    assert (tmp_path / "file").read_bytes() == b"mine"


@posix
def test_a_folder_that_cannot_be_written_is_told_before_the_first_step(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write anywhere")
    trainer = trainer_of(folder)
    with pytest.raises(PermissionError, match=str(folder)):
        fit(trainer)
    assert trainer.step == 0


# Errors between the steps ------------------------------------------------------------------------


class Breaking(Dataset):
    """Items that can be read until ``broken`` says otherwise."""

    broken = False

    def __len__(self):
        return len(DATA)

    def __getitem__(self, index):
        if self.broken:
            raise RuntimeError("planted")
        return DATA[index]

    def after(self, step):
        """A callback that breaks it."""
        return After(step, lambda _: setattr(self, "broken", True))


@pytest.mark.parametrize("step", [1, 3, STEPS - 1, STEPS, STEPS + 2])
@pytest.mark.parametrize("every", [None, 1, 2])
def test_after_an_error_of_the_data_no_step_is_lost(step, every, tmp_path):
    folder, data = tmp_path / "run", Breaking()
    expected = expected_digest(tmp_path / "whole", train=data)
    trainer = trainer_of(folder, data.after(step), every_steps=every)
    with pytest.raises(RuntimeError, match="planted"):
        fit(trainer, data)
    assert trainer.step == step
    assert trainer.history.stop_reason == "RuntimeError: planted"
    assert steps_in(folder)[-1] == step
    assert not (folder / "model.safetensors").exists()
    assert_let_go(folder)
    torch.manual_seed(77)
    again = fit(trainer_of(folder), Breaking(), **AUTO)
    assert digest(again) == expected
    assert epochs_in(folder) == [1, 2]


def test_after_an_error_of_the_validation_data_no_step_is_lost(tmp_path):
    folder, data = tmp_path / "run", Breaking()
    expected = expected_digest(tmp_path / "whole", validation=data)
    trainer = trainer_of(folder, data.after(STEPS + 2))
    with pytest.raises(RuntimeError, match="planted"):
        fit(trainer, DATA, data)
    assert steps_in(folder)[-1] == END
    assert epochs_in(folder) == [1]
    again = fit(trainer_of(folder), DATA, Breaking(), **AUTO)
    assert digest(again) == expected
    assert epochs_in(folder) == [1, 2]


@pytest.mark.parametrize("step", [0, 3, END])
def test_data_that_cannot_be_read_at_all_change_nothing(step, tmp_path):
    folder, data = tmp_path / "run", Breaking()
    fit(trainer_of(folder, **ALL))
    for later in range(step + 1, END + 1):
        checkpoint_of(folder, later).unlink()
    before = content(folder)
    data.broken = True
    with pytest.raises(RuntimeError, match="planted"):
        fit(trainer_of(folder), data, **AUTO)
    assert content(folder) == before
    assert_let_go(folder)


class AtStart(Callback):
    """Gets a signal before the first step."""

    def on_fit_start(self, trainer):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("step", [0, 3, STEPS, STEPS + 2])
@pytest.mark.parametrize("way", ["auto", "path"])
def test_a_resumed_run_that_makes_no_step_is_where_it_was(step, way, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    expected = digest(fit(trainer_of(whole, **ALL)))
    folder.mkdir()
    if way == "auto":
        shutil.copy(checkpoint_of(whole, step), folder)
    torch.manual_seed(77)
    resume = "auto" if way == "auto" else checkpoint_of(whole, step)
    trainer = fit(trainer_of(folder, AtStart()), resume=resume)
    assert trainer.history.stop_reason == "interrupted"
    assert steps_in(folder) == [step]
    torch.manual_seed(78)
    assert digest(fit(trainer_of(folder), **AUTO)) == expected


def test_a_run_that_is_resumed_into_another_folder_is_whole_there_at_once(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    expected = digest(fit(trainer_of(whole, **ALL)))
    torch.manual_seed(77)
    with pytest.raises(KeyboardInterrupt):
        fit(
            trainer_of(folder, After(STEPS + 3, raises(KeyboardInterrupt()))),
            resume=checkpoint_of(whole, STEPS + 2),
        )
    assert steps_in(folder) == [STEPS + 2]
    torch.manual_seed(78)
    assert digest(fit(trainer_of(folder), **AUTO)) == expected


# Beside the training -----------------------------------------------------------------------------


@pytest.fixture
def still(monkeypatch):
    """A clock that stands, so that equal runs have equal files."""
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    for module in (
        tinyvae.training.checkpoints.checkpoint,
        tinyvae.training.state,
        tinyvae.training.trainer,
    ):
        monkeypatch.setattr(module, "time", clock)


def test_files_are_written_beside_the_training(tmp_path, monkeypatch):
    write, threads = RunDirectory.write, []

    def spy(self, *arguments):
        threads.append(threading.current_thread().name)
        write(self, *arguments)

    monkeypatch.setattr(RunDirectory, "write", spy)
    fit(trainer_of(tmp_path, **ALL))
    assert len(threads) >= END + 1
    assert {name.rpartition("_")[0] for name in threads} == {"tinyvae-writer"}
    assert_let_go(tmp_path)


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize("objective", [ELBO, LeastSquares])
def test_a_late_write_is_of_its_step(objective, tmp_path, monkeypatch):
    model = make_vae if objective is ELBO else make_linear
    batch_norm = nn.BatchNorm1d(4)

    def make():
        own = model()
        return own if objective is ELBO else nn.Sequential(own, batch_norm)

    keeping = {"every_steps": 4, "keep": 9, "model": make, "objective": objective}
    batch_norm.reset_parameters()
    fit(trainer_of(tmp_path / "prompt", Scores(1.0, 2.0), **keeping))
    batch_norm.reset_parameters()
    write, ahead = RunDirectory.write, {4: threading.Event(), 8: threading.Event()}

    class Ahead(Callback):
        def on_step_end(self, trainer, output):
            for step, event in ahead.items():
                if trainer.step == min(step + 3, END):
                    event.set()

    def late(self, step, tensors, info):
        assert step not in ahead or ahead[step].wait(30)
        write(self, step, tensors, info)

    monkeypatch.setattr(RunDirectory, "write", late)
    fit(trainer_of(tmp_path / "late", Scores(1.0, 2.0), Ahead(), **keeping))
    assert all(event.is_set() for event in ahead.values())
    assert steps_in(tmp_path / "late") == [0, 4, 8, END]
    assert content(tmp_path / "late") == content(tmp_path / "prompt")


@pytest.mark.parametrize("step", [0, 3, STEPS, END])
def test_an_error_of_a_write_reaches_the_caller(step, tmp_path, monkeypatch):
    expected = expected_digest(tmp_path / "whole")
    write, folder = RunDirectory.write, tmp_path / "run"

    def failing(self, at, tensors, info):
        if at == step:
            raise OSError("planted")
        write(self, at, tensors, info)

    monkeypatch.setattr(RunDirectory, "write", failing)
    trainer = trainer_of(folder, every_steps=1)
    with pytest.raises(OSError, match="planted"):
        fit(trainer)
    assert trainer.step <= step + 1
    assert_let_go(folder)
    assert not (folder / "model.safetensors").exists()
    monkeypatch.undo()
    assert digest(fit(trainer_of(folder), **AUTO)) == expected


def test_the_error_of_the_training_is_the_one_to_tell(tmp_path, monkeypatch):
    def failing(self, at, tensors, info):
        if at:
            raise OSError("of the write")
        write(self, at, tensors, info)

    write = RunDirectory.write
    monkeypatch.setattr(RunDirectory, "write", failing)
    crash = After(3, raises(ValueError("of the training")))
    with pytest.raises(ValueError, match="of the training"):
        fit(trainer_of(tmp_path, crash, every_steps=2))
    assert_let_go(tmp_path)


# Signals -----------------------------------------------------------------------------------------


SIGNALS = [getattr(signal, n) for n in ("SIGTERM", "SIGUSR1") if hasattr(signal, n)]


@pytest.fixture(params=SIGNALS, ids=lambda s: s.name)
def announced(request):
    """A signal, which has a handler of the user's; ``handled`` has what that did."""
    handled = []

    def own(signum, frame):
        handled.append((signum, announced.action()))

    announced = SimpleNamespace(signum=request.param, own=own, handled=handled, action=lambda: None)
    found = signal.signal(request.param, own)
    yield announced
    signal.signal(request.param, found)


def test_handlers_are_there_while_a_run_with_a_checkpoint_goes_on(announced, tmp_path):
    seen = []
    look = After(2, lambda _: seen.append(signal.getsignal(announced.signum)))
    fit(trainer_of(tmp_path, look))
    assert seen != [announced.own]
    assert signal.getsignal(announced.signum) is announced.own
    for error in (ValueError(), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fit(trainer_of(tmp_path / "other", After(2, raises(error))), **AUTO)
        assert signal.getsignal(announced.signum) is announced.own
    assert announced.handled == []


def test_without_a_checkpoint_no_handler_is_touched(announced):
    seen = []
    look = After(2, lambda _: seen.append(signal.getsignal(announced.signum)))
    stop = After(3, lambda _: signal.raise_signal(announced.signum))
    trainer = Trainer(make_vae(), ELBO(), callbacks=[look, stop], device="cpu", progress=False)
    fit(trainer)
    assert seen == [announced.own]
    assert len(announced.handled) == 1
    assert trainer.step == END


@pytest.mark.parametrize("step", [3, STEPS, STEPS + 2])
def test_the_handler_found_is_called_when_all_is_saved(announced, step, tmp_path):
    expected = expected_digest(tmp_path / "whole")
    folder = tmp_path / "run"

    def look():
        assert_let_go(folder)
        return steps_in(folder)

    announced.action = look
    trainer = fit(trainer_of(folder, After(step, lambda _: signal.raise_signal(announced.signum))))
    assert announced.handled == [(announced.signum, [0, step])]
    assert trainer.history.stop_reason == announced.signum.name
    assert trainer.step == step
    assert signal.getsignal(announced.signum) is announced.own
    assert not (folder / "model.safetensors").exists()
    again = fit(trainer_of(folder), **AUTO)
    assert digest(again) == expected
    assert again.history.stop_reason is None


def test_off_the_main_thread_no_handler_is_touched(announced, tmp_path):
    seen, trainers = [], []
    look = After(2, lambda _: seen.append(signal.getsignal(announced.signum)))
    thread = threading.Thread(target=lambda: trainers.append(fit(trainer_of(tmp_path, look))))
    thread.start()
    thread.join()
    assert seen == [announced.own]
    assert trainers[0].step == END
    assert steps_in(tmp_path) == [0, END]


@posix
def test_by_default_a_signal_ends_the_process_with_a_checkpoint(tmp_path):
    expected = expected_digest(tmp_path / "whole")
    done = child("ended", tmp_path / "run")
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert steps_in(tmp_path / "run") == [0, 7]
    assert digest(fit(trainer_of(tmp_path / "run"), **AUTO)) == expected


# What a run leaves behind ------------------------------------------------------------------------


def test_a_run_is_let_go_of_though_its_checkpoint_is_kept(tmp_path):
    trainer = fit(trainer_of(tmp_path, every_steps=1))
    checkpoint = checkpoint_in(trainer)
    dead = [weakref.ref(trainer), weakref.ref(trainer.model), weakref.ref(trainer.objective)]
    del trainer
    gc.collect()
    assert [reference() for reference in dead] == [None] * 3
    assert checkpoint.folder == tmp_path


def test_a_run_that_failed_is_let_go_of(tmp_path):
    trainer = trainer_of(tmp_path, After(3, raises(ValueError())), every_steps=1)
    with pytest.raises(ValueError, match=r"^$"):
        fit(trainer)
    dead = weakref.ref(trainer.model)
    del trainer
    gc.collect()
    assert dead() is None


def memory():
    """Resident memory of this process, bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to read memory from")
def test_many_runs_leave_nothing(tmp_path):
    runs, epochs = (50, 200) if IS_SOAK else (30, 2)
    files, threads, sizes = [], [], []
    for index in range(runs):
        folder = tmp_path / f"{index}"
        fit(trainer_of(folder, every_steps=STEPS), epochs=epochs)
        files.append(open_files())
        threads.append(threading.active_count())
        shutil.rmtree(folder)
        gc.collect()
        sizes.append(memory())
    assert len(set(files)) == 1
    assert len(set(threads)) == 1
    assert sizes[-1] - sizes[runs // 3] <= 2 * 2**20


def test_an_optimizer_whose_state_no_file_can_hold_is_refused_before_the_first_step(tmp_path):
    class Hoards(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["seen"] = {parameter}

    optimization = Optimization(optimizer=lambda p: Hoards(p, lr=0.1))
    callbacks = [Checkpoint(tmp_path)]
    trainer = Trainer(
        make_vae(), ELBO(), optimization, callbacks=callbacks, device="cpu", progress=False
    )
    with pytest.raises(TypeError, match=r"(?s)got .* a set, as 'optimizers.model.state.0.seen': "):
        trainer.fit(DATA, epochs=1)
    assert trainer.step == 0
