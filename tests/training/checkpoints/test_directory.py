"""The folder of a run: one run, one process, damaged files, history as lines, going back."""

import json
import math
import os
import shutil
import signal

import pytest
import torch
from helpers.child import kill_itself, resume_run, run_in_child
from helpers.runs import (
    ALL,
    AUTO,
    END,
    Scores,
    assert_released,
    checkpoint_of,
    contents,
    digest,
    epochs_in,
    expected_digest,
    fit,
    history_lines,
    interrupt_after,
    load_newest,
    make_mlp_vae,
    posix,
    steps_in,
    trainer_of,
)
from helpers.training import DATA, STEPS, After, raises

from tinyvae import ELBO, Callback, Trainer
from tinyvae.errors import CheckpointError

# One run -----------------------------------------------------------------------------------------


def test_fit_refuses_the_folder_of_another_run(tmp_path):
    fit(trainer_of(tmp_path, every_steps=1))
    before = contents(tmp_path)
    trainer = trainer_of(tmp_path)
    for _ in range(2):
        with pytest.raises(FileExistsError, match=r'holds a run that was at step 10.*resume="auto'):
            fit(trainer)
    assert trainer.step == 0
    assert contents(tmp_path) == before
    assert_released(tmp_path)


def test_fit_refuses_the_folder_after_a_refused_resume(tmp_path):
    fit(trainer_of(tmp_path))
    before = contents(tmp_path)
    trainer = trainer_of(tmp_path)
    with pytest.raises(ValueError, match="number of examples = 37, got 33"):
        fit(trainer, DATA[:33], **AUTO)
    with pytest.raises(FileExistsError, match="holds a run"):
        fit(trainer, DATA[:33])
    assert contents(tmp_path) == before


def fitted_twice():
    trainer = Trainer(make_mlp_vae(), ELBO(), device="cpu", progress=False)
    return fit(fit(trainer))


def test_fit_continues_in_its_folder(tmp_path):
    trainer = trainer_of(tmp_path, every_steps=1, keep=99)
    fit(fit(trainer))
    assert digest(trainer) == digest(fitted_twice())
    assert epochs_in(tmp_path) == [1, 2, 3, 4]
    assert steps_in(tmp_path) == list(range(2 * END + 1))
    again = fit(trainer_of(tmp_path), epochs=4, **AUTO)
    assert digest(again) == digest(trainer)


def test_resume_continues_a_second_fit_that_has_written_only_its_first_checkpoint(tmp_path):
    """The checkpoint at the start of the second fit replaces that of the end of the first."""
    trainer = fit(trainer_of(tmp_path))
    trainer.callbacks.append(After(END + 3, raises(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        fit(trainer)
    assert steps_in(tmp_path) == [0, END]
    assert digest(fit(trainer_of(tmp_path), epochs=4, **AUTO)) == digest(fitted_twice())


def test_resume_continues_the_same_trainer(tmp_path):
    expected = expected_digest(tmp_path / "complete")
    stop = After(STEPS + 2, lambda _: signal.raise_signal(signal.SIGINT))
    trainer = fit(trainer_of(tmp_path / "run", stop))
    assert trainer.step == STEPS + 2
    assert digest(fit(trainer, **AUTO)) == expected
    assert epochs_in(tmp_path / "run") == [1, 2]


def test_resume_from_an_earlier_step_archives_the_later_ones(tmp_path):
    complete = fit(trainer_of(tmp_path, **ALL))
    later = {"step-00000009.replaced": contents(tmp_path)["step-00000009.safetensors"]}
    back = trainer_of(tmp_path, After(5, raises(AssertionError)), After(8, raises(ValueError())))
    with pytest.raises(ValueError, match=r"^$"):
        fit(back, resume=checkpoint_of(tmp_path, 6))
    assert epochs_in(tmp_path) == [1]
    assert steps_in(tmp_path)[-1] <= 7
    assert later.items() <= contents(tmp_path).items()
    again = fit(trainer_of(tmp_path), **AUTO)
    assert digest(again) == digest(complete)
    assert epochs_in(tmp_path) == [1, 2]


class StopAtStart(Callback):
    """Raises a signal before the first step."""

    def on_fit_start(self, state):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("way", ["auto", "path"])
def test_resume_without_a_step_changes_nothing(way, tmp_path):
    complete = tmp_path / "complete"
    expected = digest(fit(trainer_of(complete, **ALL)))
    for step in (0, 3, STEPS, STEPS + 2):
        folder = tmp_path / f"{step}"
        folder.mkdir()
        if way == "auto":
            shutil.copy(checkpoint_of(complete, step), folder)
        torch.manual_seed(77)
        resume = "auto" if way == "auto" else checkpoint_of(complete, step)
        trainer = fit(trainer_of(folder, StopAtStart()), resume=resume)
        assert trainer.history.stop_reason == "interrupted"
        assert steps_in(folder) == [step]
        torch.manual_seed(78)
        assert digest(fit(trainer_of(folder), **AUTO)) == expected


def test_resume_into_another_folder_writes_a_checkpoint_at_once(tmp_path):
    complete, folder = tmp_path / "complete", tmp_path / "run"
    expected = digest(fit(trainer_of(complete, **ALL)))
    torch.manual_seed(77)
    crash = After(STEPS + 3, raises(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        fit(trainer_of(folder, crash), resume=checkpoint_of(complete, STEPS + 2))
    assert steps_in(folder) == [STEPS + 2]
    torch.manual_seed(78)
    assert digest(fit(trainer_of(folder), **AUTO)) == expected


# Damage ------------------------------------------------------------------------------------------


def flip_bit(data):
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


DAMAGES = {"cut": lambda data: data[: len(data) // 2], "empty": lambda _: b"", "flipped": flip_bit}


def damage(folder, step, name):
    file = checkpoint_of(folder, step)
    file.write_bytes(DAMAGES[name](file.read_bytes()))
    return file.read_bytes()


@pytest.mark.parametrize("name", DAMAGES)
def test_resume_skips_a_damaged_checkpoint_and_archives_it(name, tmp_path):
    expected = expected_digest(tmp_path / "complete")
    folder = tmp_path / "run"
    interrupt_after(folder, 8, every_steps=1, keep=2)
    assert steps_in(folder) == [7, 8]
    damaged = damage(folder, 8, name)
    with pytest.warns(UserWarning, match=r"step-00000008.*from step-00000007") as record:
        trainer = fit(trainer_of(folder, keep=2), **AUTO)
    assert [warning.filename for warning in record] == [fit.__code__.co_filename]  # the call of fit
    assert digest(trainer) == expected
    assert steps_in(folder) == [7, END]  # the damaged one is not counted as kept
    assert damaged in contents(folder).values()  # under another name


def test_resume_names_each_damaged_checkpoint(tmp_path):
    interrupt_after(tmp_path, 8, every_steps=1, keep=3)
    damage(tmp_path, 8, "cut")
    damage(tmp_path, 7, "empty")
    with pytest.warns(UserWarning) as record:  # noqa: PT030 - matched below
        fit(trainer_of(tmp_path), **AUTO)
    assert len(record) == 2
    for warning, step in zip(record, (8, 7), strict=True):
        assert f"step-0000000{step}" in str(warning.message)
        assert "from step-00000006" in str(warning.message)


def test_resume_starts_no_run_if_all_checkpoints_are_damaged(tmp_path):
    interrupt_after(tmp_path, 8, every_steps=1, keep=3)
    for step, name in zip((6, 7, 8), DAMAGES, strict=True):
        damage(tmp_path, step, name)
    before = contents(tmp_path)
    trainer = trainer_of(tmp_path)
    with pytest.raises(CheckpointError) as error:
        fit(trainer, **AUTO)
    assert all(str(checkpoint_of(tmp_path, step)) in str(error.value) for step in (6, 7, 8))
    assert "no run was started" in str(error.value)
    with pytest.raises(FileExistsError):
        fit(trainer)
    assert trainer.step == 0
    assert contents(tmp_path) == before
    assert_released(tmp_path)


def test_resume_refuses_the_file_of_a_model(tmp_path):
    file = tmp_path / "model.safetensors"
    make_mlp_vae().save(file)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected a checkpoint .*'VAE'"):
        fit(trainer_of(tmp_path / "run"), resume=file)


# The lock ----------------------------------------------------------------------------------------


def test_lock_refuses_a_second_run_at_the_same_time(tmp_path):
    expected = expected_digest(tmp_path / "complete")
    folder = tmp_path / "run"
    other = trainer_of(folder)
    refused = []

    def fit_other(state):
        for options in ({}, AUTO):
            with pytest.raises(BlockingIOError, match=r"run is in use by another run"):
                fit(other, **options)
            refused.append(options)

    trainer = fit(trainer_of(folder, After(3, fit_other), **ALL))
    assert len(refused) == 2
    assert other.step == 0
    assert digest(trainer) == expected
    assert steps_in(folder) == list(range(END + 1))
    fit(other, **AUTO)


@posix
def test_lock_follows_a_link_to_the_folder(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    other = trainer_of(tmp_path / "link")

    def fit_other(state):
        with pytest.raises(BlockingIOError):
            fit(other, **AUTO)

    fit(trainer_of(tmp_path / "run", After(3, fit_other)))
    assert other.step == 0


@pytest.mark.slow
def test_lock_refuses_another_process_and_names_the_owner(tmp_path):
    done = []
    start = After(3, lambda _: done.append(run_in_child(resume_run, tmp_path)))
    fit(trainer_of(tmp_path, start))
    assert done[0].returncode == 0, done[0].stderr
    name, message, _ = json.loads(done[0].stdout)
    assert name == "BlockingIOError"
    assert f"in use by process {os.getpid()}" in message
    assert steps_in(tmp_path) == [0, END]


@posix
@pytest.mark.slow
def test_resume_continues_a_killed_run(tmp_path):
    expected = expected_digest(tmp_path / "complete")
    folder = tmp_path / "run"
    done = run_in_child(kill_itself, folder)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert steps_in(folder)[-1] in (6, 7)  # step 7 may not have been written
    assert not (folder / "model.safetensors").exists()
    assert digest(fit(trainer_of(folder), **AUTO)) == expected
    assert epochs_in(folder) == [1, 2]


# history.jsonl -----------------------------------------------------------------------------------


def test_history_file_gets_a_line_after_each_epoch(tmp_path):
    scores = Scores(math.nan, 1.5, -math.inf)
    seen = []
    look = After(2 * STEPS + 1, lambda _: seen.append(epochs_in(tmp_path)))
    trainer = fit(trainer_of(tmp_path, scores, look), DATA, DATA, epochs=3)
    assert seen == [[1, 2]]
    expected = [dict(row) for row in trainer.history]
    expected[0]["score"] = expected[2]["score"] = None
    assert history_lines(tmp_path) == expected
    assert b"NaN" not in (tmp_path / "history.jsonl").read_bytes()


def test_history_file_has_each_epoch_once_over_resumes(tmp_path):
    for index, options in enumerate(({}, {"every_steps": 1}, {"every_steps": 3})):
        folder = tmp_path / f"{index}"
        for step in (3, STEPS + 2, STEPS + 2, 3 * STEPS, 3 * STEPS + 1):
            crash = After(step, raises(KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                fit(trainer_of(folder, crash, **options), epochs=4, **AUTO)
            expected = list(range(1, load_newest(folder)["position"]["epoch"] + 1))
            assert epochs_in(folder)[: len(expected)] == expected
        trainer = fit(trainer_of(folder, **options), epochs=4, **AUTO)
        assert epochs_in(folder) == [1, 2, 3, 4]
        assert history_lines(folder) == list(trainer.history)


def test_history_file_has_no_line_for_an_epoch_cut_short_by_a_signal(tmp_path):
    stop = After(STEPS + 2, lambda _: signal.raise_signal(signal.SIGINT))
    trainer = fit(trainer_of(tmp_path, stop))
    assert trainer.history["step"] == [STEPS, STEPS + 2]
    assert epochs_in(tmp_path) == [1]
