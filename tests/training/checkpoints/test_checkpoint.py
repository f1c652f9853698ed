"""The Checkpoint callback: when it writes, what it keeps, and the file of the model alone."""

import math
import signal
import threading
from types import SimpleNamespace

import pytest
import torch
from helpers.runs import (
    ALL,
    AUTO,
    END,
    Scores,
    assert_released,
    checkpoint_in,
    checkpoint_of,
    contents,
    digest,
    fit,
    history_lines,
    make_mlp_vae,
    steps_in,
    trainer_of,
    weights_in,
)
from helpers.training import (
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

import tinyvae.training.checkpoints.checkpoint
import tinyvae.training.state
import tinyvae.training.trainer
from tinyvae import (
    ELBO,
    VAE,
    BernoulliLikelihood,
    Callback,
    Checkpoint,
    EarlyStopping,
    GaussianEncoder,
    Trainer,
)
from tinyvae.core import ObjectiveOutput
from tinyvae.training.checkpoints.directory import RunDirectory, load_checkpoint

# Arguments ---------------------------------------------------------------------------------------


def test_checkpoint_checks_its_arguments(tmp_path):
    for options, message in (
        ({"every_steps": 0}, "every_steps .*>= 1, got 0"),
        ({"every_steps": -3}, "every_steps .*>= 1, got -3"),
        ({"every_steps": 2.5}, "every_steps as an integer .* got 2.5"),
        ({"every_minutes": -1.0}, r"every_minutes >= 0, got -1\.0"),
        ({"every_minutes": math.nan}, "every_minutes >= 0, got nan"),
        ({"keep": 0}, "keep .*>= 1, got 0"),
        ({"keep": None}, "keep as an integer .* got None"),
        ({"keep": 1.5}, "keep as an integer .* got 1.5"),
        ({"mode": "most"}, "mode 'max' or 'min', got 'most'"),
    ):
        with pytest.raises(ValueError, match=message):
            Checkpoint(tmp_path / "run", **options)


def test_checkpoint_constructor_writes_nothing(tmp_path):
    Checkpoint(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_trainer_expects_at_most_one_checkpoint(tmp_path):
    two = [Checkpoint(tmp_path / "a"), Checkpoint(tmp_path / "b")]
    with pytest.raises(ValueError, match="at most one Checkpoint, got 2"):
        Trainer(make_mlp_vae(), ELBO(), callbacks=two, progress=False)


# Times of writing --------------------------------------------------------------------------------


def test_checkpoint_writes_when_one_is_due(tmp_path):
    for index, (options, steps) in enumerate(
        [
            ({}, [0, 10]),
            ({"every_steps": 3}, [0, 3, 6, 9, 10]),
            ({"every_steps": 5}, [0, 5, 10]),
            ({"every_steps": 99}, [0, 10]),
            ({"every_minutes": 0}, list(range(11))),
            ({"every_minutes": 1e6}, [0, 10]),
        ]
    ):
        fit(trainer_of(tmp_path / f"{index}", **{"keep": 99, **options}))
        assert steps_in(tmp_path / f"{index}") == steps


def test_checkpoint_counts_minutes_since_the_last_write(tmp_path, monkeypatch):
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=0.0)

    class PassMinute(Callback):
        def on_step_end(self, state, output):
            clock.now += 60

    monkeypatch.setattr(tinyvae.training.checkpoints.checkpoint, "time", clock)
    for minutes in (3, 2.5):
        folder = tmp_path / f"{minutes}"
        fit(trainer_of(folder, PassMinute(), every_minutes=minutes, keep=99))
        assert steps_in(folder) == [0, 3, 6, 9, 10]


def test_checkpoint_at_the_end_of_an_epoch_counts_the_epoch(tmp_path):
    fit(trainer_of(tmp_path, every_steps=STEPS, keep=99))
    position = load_checkpoint(checkpoint_of(tmp_path, STEPS))["position"]
    assert [position[name] for name in ("epoch", "step", "batch")] == [1, STEPS, 0]


# Pruning -----------------------------------------------------------------------------------------


def test_prune_keeps_the_newest(tmp_path):
    class Look(Callback):
        def on_step_end(self, state, output):
            checkpoint_in(state)._writer.wait()
            seen.append(steps_in(folder))

    for keep in (1, 2, 3):
        seen, folder = [], tmp_path / f"{keep}"
        fit(trainer_of(folder, Look(), every_steps=1, keep=keep))
        assert steps_in(folder) == list(range(END + 1))[-keep:]
        assert seen == [list(range(step))[-keep:] for step in range(1, END + 1)]


SCORES = (math.nan, 3.0, 2.0, 0.0, math.nan)
BEST = [("max", 2), ("min", 4)]  # mode and epoch


@pytest.mark.parametrize(("mode", "epoch"), BEST)
@pytest.mark.parametrize("keep", [1, 2])
def test_prune_keeps_the_best(mode, epoch, keep, tmp_path):
    options = {"monitor": "score", "mode": mode, "keep": keep, "every_steps": 1}
    recorder = Recorder()
    trainer = fit(trainer_of(tmp_path, Scores(*SCORES), recorder, **options), epochs=5)
    best = epoch * STEPS
    assert steps_in(tmp_path) == sorted({best, *range(5 * STEPS + 1 - keep, 5 * STEPS + 1)})
    assert checkpoint_in(trainer).best_step == best
    assert checkpoint_in(trainer).best == SCORES[epoch - 1]
    assert same(weights_in(tmp_path, best), recorder.weights[best])


@pytest.mark.parametrize(("mode", "epoch"), BEST)
def test_checkpoint_writes_the_best_if_no_other_is_due(mode, epoch, tmp_path):
    trainer = trainer_of(tmp_path, Scores(*SCORES), monitor="score", mode=mode, keep=1)
    fit(trainer, epochs=5)
    assert steps_in(tmp_path) == [epoch * STEPS, 5 * STEPS]


@pytest.mark.parametrize(("mode", "epoch"), BEST)
@pytest.mark.parametrize("step", [STEPS + 2, 2 * STEPS + 2, 4 * STEPS + 2])
def test_prune_keeps_the_best_over_a_resume(mode, epoch, step, tmp_path):
    options = {"monitor": "score", "mode": mode, "keep": 1, "every_steps": 1}
    first = trainer_of(
        tmp_path, Scores(*SCORES), After(step, raises(OSError("planted"))), **options
    )
    with pytest.raises(OSError, match="planted"):
        fit(first, epochs=5)
    trainer = fit(trainer_of(tmp_path, Scores(*SCORES), **options), epochs=5, **AUTO)
    assert steps_in(tmp_path) == [epoch * STEPS, 5 * STEPS]
    assert checkpoint_in(trainer).best_step == epoch * STEPS


def test_prune_keeps_the_best_over_a_second_fit(tmp_path):
    trainer = trainer_of(tmp_path, Scores(3.0, 1.0, 2.0, 0.0), monitor="score", mode="max", keep=1)
    fit(trainer)
    fit(trainer)
    assert steps_in(tmp_path) == [STEPS, 4 * STEPS]


def test_checkpoint_may_monitor_a_column_from_a_resume_on(tmp_path):
    fit(trainer_of(tmp_path, Scores(*SCORES)), epochs=1)
    options = {"monitor": "score", "mode": "min", "keep": 1}
    with pytest.warns(UserWarning, match="begun for 1 epochs"):
        trainer = fit(trainer_of(tmp_path, Scores(*SCORES), **options), epochs=5, **AUTO)
    assert checkpoint_in(trainer).best_step == 4 * STEPS
    assert steps_in(tmp_path) == [4 * STEPS, 5 * STEPS]


def test_checkpoint_names_a_missing_column(tmp_path):
    trainer = trainer_of(tmp_path, monitor="score", mode="max")
    with pytest.raises(ValueError, match=r"watches 'score', expected one of \['epoch', 'step'"):
        fit(trainer)
    assert_released(tmp_path)


def test_checkpoint_accepts_a_missing_column_in_an_epoch_cut_short(tmp_path):
    options = {"monitor": "validation/elbo_nats", "every_steps": 1}
    stop = After(2, lambda state: state.stop("enough"))
    trainer = fit(trainer_of(tmp_path, stop, **options), DATA, DATA)
    assert trainer.history.stop_reason == "enough"


# The file of the model ---------------------------------------------------------------------------


def test_checkpoint_writes_the_model_at_the_end(tmp_path):
    stop = After(STEPS + 2, lambda state: state.stop("enough"))
    for name, callbacks, step in (("end", [], END), ("decided", [stop], STEPS + 2)):
        trainer = fit(trainer_of(tmp_path / name, *callbacks))
        assert trainer.step == step
        assert same(VAE.load(tmp_path / name / "model.safetensors"), trainer.model)


def test_checkpoint_writes_the_model_only_after_a_resumed_run_ends(tmp_path):
    for name, action in {
        "signal": lambda _: signal.raise_signal(signal.SIGINT),
        "error": raises(ValueError("planted")),
        "interrupt": raises(KeyboardInterrupt()),
    }.items():
        folder = tmp_path / name
        try:
            fit(trainer_of(folder, After(STEPS + 2, action), every_steps=1))
        except (ValueError, KeyboardInterrupt):
            assert name != "signal"
        assert not (folder / "model.safetensors").exists()
        fit(trainer_of(folder), **AUTO)
        assert (folder / "model.safetensors").exists()


@pytest.mark.parametrize("index", [0, 1, 2])
def test_checkpoint_writes_the_model_with_restored_weights(index, tmp_path):
    recorder = Recorder()
    callbacks = [Scores(1.0, 2.0, 0.0), EarlyStopping("score", mode="max", patience=9)]
    callbacks.insert(index, Checkpoint(tmp_path))
    trainer = Trainer(
        make_mlp_vae(), ELBO(), callbacks=[recorder, *callbacks], device="cpu", progress=False
    )
    fit(trainer, epochs=3)
    model = VAE.load(tmp_path / "model.safetensors")
    assert same(model, trainer.model)
    assert same(model, recorder.weights[2 * STEPS])
    assert same(weights_in(tmp_path, 3 * STEPS), recorder.weights[3 * STEPS])


def test_checkpoint_is_also_a_file_of_the_model(tmp_path):
    recorder = Recorder()
    fit(trainer_of(tmp_path, recorder, **ALL))
    for step in (0, 3, END):
        model = VAE.load(checkpoint_of(tmp_path, step))
        assert same(model, recorder.weights[step])
        assert not model.training


def test_checkpoint_keeps_a_model_that_no_file_describes(tmp_path):
    options = {"model": make_linear, "objective": LeastSquares}
    expected = digest(fit(trainer_of(tmp_path / "complete", **options)))
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


def test_checkpoint_keeps_shared_weights_with_a_warning(tmp_path):
    message = "no file of the model alone: 'encoder.* are one parameter"
    folder = tmp_path / "run"
    with pytest.warns(UserWarning, match=message) as record:
        expected = digest(fit(trainer_of(tmp_path / "complete", model=make_tied)))
    assert [warning.filename for warning in record] == [fit.__code__.co_filename]  # the call of fit
    crash = After(7, raises(KeyboardInterrupt()))
    with pytest.warns(UserWarning, match=message), pytest.raises(KeyboardInterrupt):
        fit(trainer_of(folder, crash, model=make_tied, every_steps=1))
    with pytest.warns(UserWarning, match=message):
        assert digest(fit(trainer_of(folder, model=make_tied), **AUTO)) == expected
    assert not (folder / "model.safetensors").exists()


def test_checkpoint_accepts_a_metric_that_is_nan(tmp_path):
    class NanMetric(LeastSquares):
        def forward(self, model, batch):
            output = super().forward(model, batch)
            return ObjectiveOutput(output.losses, {"odd": torch.tensor(math.nan)})

    fit(trainer_of(tmp_path, every_steps=1, model=make_linear, objective=NanMetric))
    assert [line["train/odd"] for line in history_lines(tmp_path)] == [None, None]
    assert steps_in(tmp_path) == [END - 1, END]


# Writing in the background -----------------------------------------------------------------------


def test_checkpoint_writes_in_the_background(tmp_path, monkeypatch):
    write, threads = RunDirectory.write, []

    def spy(self, *arguments):
        threads.append(threading.current_thread().name)
        write(self, *arguments)

    monkeypatch.setattr(RunDirectory, "write", spy)
    fit(trainer_of(tmp_path, **ALL))
    assert len(threads) >= END + 1
    assert set(threads) == {"tinyvae-writer"}
    assert_released(tmp_path)


@pytest.fixture
def _stopped_clock(monkeypatch):
    """Stop the clock, so that equal runs have equal files."""
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    for module in (
        tinyvae.training.checkpoints.checkpoint,
        tinyvae.training.state,
        tinyvae.training.trainer,
    ):
        monkeypatch.setattr(module, "time", clock)


def make_normalized():
    return nn.Sequential(make_linear(), nn.BatchNorm1d(4))


@pytest.mark.usefixtures("_stopped_clock")
@pytest.mark.parametrize(
    ("model", "objective"), [(make_mlp_vae, ELBO), (make_normalized, LeastSquares)]
)
def test_checkpoint_written_late_holds_its_own_step(model, objective, tmp_path, monkeypatch):
    options = {"every_steps": 4, "keep": 9, "model": model, "objective": objective}
    fit(trainer_of(tmp_path / "prompt", Scores(1.0, 2.0), **options))
    write, events = RunDirectory.write, {4: threading.Event(), 8: threading.Event()}

    class ReleaseWrites(Callback):
        def on_step_end(self, state, output):
            for step, event in events.items():
                if state.step == min(step + 3, END):
                    event.set()

    def write_late(self, step, tensors, info):
        assert step not in events or events[step].wait(30)
        write(self, step, tensors, info)

    monkeypatch.setattr(RunDirectory, "write", write_late)
    fit(trainer_of(tmp_path / "late", Scores(1.0, 2.0), ReleaseWrites(), **options))
    assert all(event.is_set() for event in events.values())
    assert steps_in(tmp_path / "late") == [0, 4, 8, END]
    assert contents(tmp_path / "late") == contents(tmp_path / "prompt")
