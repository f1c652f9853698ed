"""Checkpoints and errors: states that no file can hold, failed writes, failing data."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from helpers.child import (
    checkpoint_in_half_a_copy,
    checkpoint_in_one_copy,
    fill_disk,
    run_in_child,
    save_in_half_a_copy,
)
from helpers.runs import (
    ALL,
    AUTO,
    END,
    Breaking,
    Remembers,
    assert_released,
    checkpoint_of,
    contents,
    digest,
    epochs_in,
    expected_digest,
    fit,
    interrupt_after,
    load_newest,
    make_mlp_vae,
    posix,
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

import tinyvae.training.step
from tinyvae import ELBO, Callback, Checkpoint, Optimization, Trainer
from tinyvae.core import ObjectiveOutput
from tinyvae.errors import NonFiniteError
from tinyvae.io import load_tensors
from tinyvae.training.checkpoints.directory import RunDirectory
from tinyvae.training.nonfinite import NonFiniteGuard

LINEAR = {"model": make_linear, "objective": LeastSquares}

# States that no file can hold --------------------------------------------------------------------


def test_checkpoint_names_an_unwritable_state_before_the_first_step(tmp_path):
    for index, (value, kind, message) in enumerate(
        (
            (object(), TypeError, r"got <object .* as 'callbacks\.Remembers\.x'"),
            ([1, {"deep": len}], TypeError, r"callbacks\.Remembers\.x\.1\.deep"),
            (torch.eye(2).to_sparse(), (TypeError, ValueError), r"callbacks\.Remembers\.x"),
        )
    ):
        folder = tmp_path / f"{index}"
        trainer = trainer_of(folder, Remembers({"x": value}))
        with pytest.raises(kind, match=message):
            fit(trainer)
        assert trainer.step == 0
        assert steps_in(folder) == []
        assert_released(folder)


@pytest.mark.parametrize("way", ["second fit", "resume"])
def test_checkpoint_names_an_unwritable_state_before_a_run_continues(way, tmp_path):
    unwritable = Remembers({"x": object()})
    if way == "second fit":
        trainer, options = fit(trainer_of(tmp_path)), {"epochs": 4}
        trainer.callbacks.append(unwritable)
    else:
        interrupt_after(tmp_path, 7, every_steps=1)
        trainer, options = trainer_of(tmp_path, unwritable), AUTO
    with pytest.raises(TypeError, match=r"callbacks\.Remembers\.x"):
        fit(trainer, **options)
    assert trainer.step == (END if way == "second fit" else 7)


def test_checkpoint_names_an_unwritable_optimizer_state_before_the_first_step(tmp_path):
    class KeepsSet(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["seen"] = {parameter}

    trainer = Trainer(
        make_mlp_vae(),
        ELBO(),
        Optimization(optimizer=lambda p: KeepsSet(p, lr=0.1)),
        callbacks=[Checkpoint(tmp_path)],
        device="cpu",
        progress=False,
    )
    with pytest.raises(TypeError, match=r"(?s)got .* a set, as 'optimizers.model.state.0.seen': "):
        trainer.fit(DATA, epochs=1)
    assert trainer.step == 0


def test_checkpoint_keeps_a_callback_state_that_is_not_finite(tmp_path):
    best = torch.tensor([math.inf, -math.inf, 1.0])
    fit(trainer_of(tmp_path, Remembers({"best": best, "last": -math.inf})))
    saved = load_newest(tmp_path)["callbacks"]["Remembers"]
    assert torch.equal(saved["best"], best)
    assert saved["last"] == -math.inf


def test_checkpoint_names_a_buffer_that_is_not_finite_before_the_first_step(tmp_path):
    def make_infinite():
        model = make_linear()
        model.register_buffer("scale", torch.tensor([1.0, math.inf]))
        return model

    trainer = trainer_of(tmp_path, model=make_infinite, objective=LeastSquares)
    with pytest.raises(ValueError, match=r"finite values in 'model\.scale'"):
        fit(trainer)
    assert trainer.step == 0
    assert steps_in(tmp_path) == []
    assert_released(tmp_path)


@pytest.mark.parametrize("step", [3, STEPS, END])
@pytest.mark.parametrize("every_steps", [1, None])
def test_checkpoint_holds_no_weights_that_are_not_finite(step, every_steps, tmp_path):
    def poison(state):
        with torch.no_grad():
            state.model.weight[0, 0] = math.inf

    folder, recorder = tmp_path / "run", Recorder()
    poisoned = trainer_of(folder, recorder, After(step, poison), every_steps=every_steps, **LINEAR)
    with pytest.raises(NonFiniteError):
        fit(poisoned)
    assert_released(folder)
    last = steps_in(folder)[-1]
    assert last == (step - 1 if every_steps else 0)
    assert same(weights_in(folder, last), recorder.weights[last])
    assert not (folder / "model.safetensors").exists()
    expected = digest(fit(trainer_of(tmp_path / "complete", **LINEAR)))
    assert digest(fit(trainer_of(folder, **LINEAR), **AUTO)) == expected


def test_checkpoint_waits_for_a_deferred_check_of_its_step(tmp_path, monkeypatch):
    class Breaks(LeastSquares):
        calls = 0

        def forward(self, model, batch):
            self.calls += 1
            output = super().forward(model, batch)
            bad = math.nan if self.calls == 4 else 0.0
            return ObjectiveOutput({"model": output.losses["model"] + bad}, output.metrics)

    monkeypatch.setattr(
        tinyvae.training.step, "NonFiniteGuard", lambda *args: NonFiniteGuard(*args, waits=False)
    )
    trainer = trainer_of(tmp_path, model=make_linear, objective=Breaks, every_steps=2, keep=9)
    with pytest.raises(NonFiniteError, match=r"^step 4 "):
        fit(trainer)
    assert steps_in(tmp_path) == [0, 2]


# Failed writes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 3, STEPS, END])
def test_write_error_reaches_the_caller(step, tmp_path, monkeypatch):
    expected = expected_digest(tmp_path / "complete")
    write, folder = RunDirectory.write, tmp_path / "run"

    def fail(self, written_step, tensors, info):
        if written_step == step:
            raise OSError("planted")
        write(self, written_step, tensors, info)

    monkeypatch.setattr(RunDirectory, "write", fail)
    trainer = trainer_of(folder, every_steps=1)
    with pytest.raises(OSError, match="planted"):
        fit(trainer)
    assert trainer.step <= step + 1
    assert_released(folder)
    assert not (folder / "model.safetensors").exists()
    monkeypatch.undo()
    assert digest(fit(trainer_of(folder), **AUTO)) == expected


def test_write_error_does_not_hide_an_error_of_the_training(tmp_path, monkeypatch):
    def fail(self, step, tensors, info):
        if step:
            raise OSError("of the write")
        write(self, step, tensors, info)

    write = RunDirectory.write
    monkeypatch.setattr(RunDirectory, "write", fail)
    crash = After(3, raises(ValueError("of the training")))
    with pytest.raises(ValueError, match="of the training"):
        fit(trainer_of(tmp_path, crash, every_steps=2))
    assert_released(tmp_path)


@posix
@pytest.mark.slow
def test_write_error_of_a_full_disk_keeps_earlier_checkpoints(tmp_path):
    expected = expected_digest(tmp_path / "complete")
    folder = tmp_path / "run"
    done = run_in_child(fill_disk, folder)
    assert done.returncode == 0, done.stderr
    name, message, file = json.loads(done.stdout)
    assert name == "OSError"
    assert "cannot write the file: File too large" in message
    assert file == str(checkpoint_of(folder, 4))
    assert steps_in(folder) == [2, 3]
    assert_released(folder)
    again = fit(trainer_of(folder, Remembers({})), **AUTO)
    assert digest(again) == expected


limited = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")


@limited
@pytest.mark.slow
def test_lack_of_memory_names_the_checkpoint_and_keeps_earlier_ones(tmp_path):
    expected = expected_digest(tmp_path / "complete")
    folder = tmp_path / "run"
    done = run_in_child(checkpoint_in_half_a_copy, folder)
    assert done.returncode == 0, done.stderr
    name, message, _ = json.loads(done.stdout)
    assert name == "MemoryError"
    assert f"got none for {checkpoint_of(folder, END - 1)}" in message
    assert steps_in(folder) == [END - 3, END - 2]
    assert_released(folder)
    again = fit(trainer_of(folder, Remembers({})), **AUTO)
    assert digest(again) == expected


@limited
@pytest.mark.slow
def test_checkpoint_needs_memory_for_one_copy_of_the_state(tmp_path):
    done = run_in_child(checkpoint_in_one_copy, tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert steps_in(tmp_path) == [END - 1, END]
    assert load_newest(tmp_path)["callbacks"]["Remembers"]["x"].sum() == 50_000_000


@limited
@pytest.mark.slow
def test_save_tensors_copies_nothing(tmp_path):
    done = run_in_child(save_in_half_a_copy, tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert load_tensors(tmp_path / "f")[0]["x"].sum() == 50_000_000


@pytest.mark.parametrize("value", ["text", torch.ones(2), 2**70])
def test_fit_continues_after_an_error_about_a_column(value, tmp_path):
    class Column(Callback):
        def on_epoch_end(self, state, row):
            row["column"] = value if state.epoch == 1 else 0.5

    trainer = trainer_of(tmp_path, Column())
    with pytest.raises((TypeError, RuntimeError), match=r"number|Scalar"):
        fit(trainer)
    fit(trainer, epochs=1)
    assert trainer.history["column"] == [None, 0.5]
    assert epochs_in(tmp_path) == [1, 2]


def test_folder_that_is_a_file_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        trainer = trainer_of(path)
        with pytest.raises(OSError, match=str(path)):
            fit(trainer)
        assert trainer.step == 0
    assert (tmp_path / "file").read_bytes() == b"mine"


@posix
def test_folder_without_write_permission_is_refused_before_the_first_step(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere")
    trainer = trainer_of(folder)
    with pytest.raises(PermissionError, match=str(folder)):
        fit(trainer)
    assert trainer.step == 0


# Failing data ------------------------------------------------------------------------------------


@pytest.mark.parametrize("every_steps", [None, 1, 2])
def test_resume_after_an_error_of_the_data_loses_no_step(every_steps, tmp_path):
    expected = expected_digest(tmp_path / "complete", train=Breaking())
    for step in (1, 3, STEPS - 1, STEPS, STEPS + 2):
        folder, data = tmp_path / f"{step}", Breaking()
        trainer = trainer_of(folder, data.break_after(step), every_steps=every_steps)
        with pytest.raises(RuntimeError, match="planted"):
            fit(trainer, data)
        assert trainer.step == step
        assert trainer.history.stop_reason == "RuntimeError: planted"
        assert steps_in(folder)[-1] == step
        assert not (folder / "model.safetensors").exists()
        assert_released(folder)
        torch.manual_seed(77)
        again = fit(trainer_of(folder), Breaking(), **AUTO)
        assert digest(again) == expected
        assert epochs_in(folder) == [1, 2]


def test_resume_after_an_error_of_the_validation_data_loses_no_step(tmp_path):
    folder, data = tmp_path / "run", Breaking()
    expected = expected_digest(tmp_path / "complete", validation=Breaking())
    trainer = trainer_of(folder, data.break_after(STEPS + 2))
    with pytest.raises(RuntimeError, match="planted"):
        fit(trainer, DATA, data)
    assert steps_in(folder)[-1] == END
    assert epochs_in(folder) == [1]
    again = fit(trainer_of(folder), DATA, Breaking(), **AUTO)
    assert digest(again) == expected
    assert epochs_in(folder) == [1, 2]


def test_resume_with_unreadable_data_changes_nothing(tmp_path):
    fit(trainer_of(tmp_path, **ALL))
    data = Breaking()
    data.is_broken = True
    for step in (END, 3, 0):
        for later in steps_in(tmp_path):
            if later > step:
                checkpoint_of(tmp_path, later).unlink()
        before = contents(tmp_path)
        with pytest.raises(RuntimeError, match="planted"):
            fit(trainer_of(tmp_path), data, **AUTO)
        assert contents(tmp_path) == before
        assert_released(tmp_path)
