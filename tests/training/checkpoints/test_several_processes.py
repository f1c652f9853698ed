"""Checkpoints of several processes: the first one writes, and all of them resume."""

import os
import signal

import pytest
import torch.distributed as dist
from helpers.processes import in_processes, summary, train
from helpers.training import After, make_vae

from tinyvae import Checkpoint
from tinyvae.training.checkpoints.directory import load_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")

STEPS, EPOCHS = 5, 3


def make_model():
    return make_vae(dropout=0.2)


def run(folder, stop_after=None, resume="auto"):
    """Train, or stop by a signal to the last process. Return what the run leaves."""

    def interrupt(state):
        if state.processes.rank == state.processes.size - 1:
            signal.raise_signal(signal.SIGINT)

    callbacks = [Checkpoint(folder, every_steps=None)]
    callbacks += [] if stop_after is None else [After(stop_after, interrupt)]
    return summary(train(make_model, callbacks=callbacks, epochs=EPOCHS, resume=resume))


def test_resume_in_several_processes_is_bitwise(tmp_path):
    complete = in_processes(run, tmp_path / "complete")
    assert complete[0] == complete[1]
    for step in (STEPS, STEPS + 3):
        folder = tmp_path / f"{step}"
        stopped = in_processes(run, folder, step)
        assert [result["step"] for result in stopped] == [step, step]
        assert in_processes(run, folder) == complete


def test_resume_in_another_number_of_processes_continues_with_a_warning(tmp_path):
    in_processes(run, tmp_path, STEPS + 2)
    with pytest.warns(UserWarning, match=r"not bitwise: .*processes \(2 before, now 1\)"):
        result = run(tmp_path)
    assert result["step"] == EPOCHS * STEPS
    assert [row["epoch"] for row in result["rows"]] == [1, 2, 3]


def test_checkpoint_is_written_by_the_first_process_alone(tmp_path):
    results = in_processes(run, tmp_path)
    file = tmp_path / f"step-{EPOCHS * STEPS:08d}.safetensors"
    assert load_checkpoint(file)["mode"]["processes"] == 2
    assert {path.name for path in tmp_path.iterdir()} >= {"history.jsonl", "model.safetensors"}
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert len(lines) == len(results[0]["rows"]) == EPOCHS


def terminate_one(folder):
    def terminate(state):
        if state.processes.rank == 1:
            signal.raise_signal(signal.SIGTERM)

    callbacks = [Checkpoint(folder), After(4, terminate)]
    try:
        return train(make_model, callbacks=callbacks).step
    except SystemExit as error:
        return f"exit {error.code}"


def test_preemption_of_one_process_ends_all_with_a_checkpoint(tmp_path):
    assert in_processes(terminate_one, tmp_path) == [4, f"exit {128 + signal.SIGTERM}"]
    assert (tmp_path / "step-00000004.safetensors").exists()


def refused(folder):
    with pytest.raises((FileExistsError, RuntimeError)) as error:
        run(folder, resume=None)
    return type(error.value).__name__


def test_fit_raises_in_all_processes_if_the_folder_holds_a_run(tmp_path):
    in_processes(run, tmp_path)
    assert in_processes(refused, tmp_path) == ["FileExistsError", "RuntimeError"]


def resume_elsewhere(folder):
    with pytest.raises(ValueError, match="the same checkpoint, in a folder that all of them see"):
        run(folder / f"{dist.get_rank()}")


def test_resume_refuses_processes_that_see_other_files(tmp_path):
    in_processes(run, tmp_path / "0", 4)
    in_processes(resume_elsewhere, tmp_path)
