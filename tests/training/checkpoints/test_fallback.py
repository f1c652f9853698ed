"""Checkpoints that cannot be used do not block the older ones, and no foreign file is deleted."""

import os

import pytest
import torch
from helpers.runs import (
    ALL,
    AUTO,
    END,
    Remembers,
    assert_released,
    checkpoint_of,
    contents,
    digest,
    expected_digest,
    fit,
    forge_checkpoint,
    interrupt_after,
    make_mlp_vae,
    posix,
    trainer_of,
)
from helpers.training import DATA, After, make_vae, raises

from tinyvae import Optimization, Trainer
from tinyvae.errors import CheckpointError
from tinyvae.training.checkpoints.directory import load_checkpoint

# Names like a checkpoint's -----------------------------------------------------------------------


def make_pipe(path):
    os.mkfifo(path)


def make_secret(path):
    path.write_bytes(b"secret")
    path.chmod(0)


ODD = {
    "dangling link": lambda path: path.symlink_to(path.with_name("absent")),
    "link to itself": lambda path: path.symlink_to(path),
    "folder": lambda path: path.mkdir(),
    "pipe": make_pipe,
    "unreadable file": make_secret,
    "text": lambda path: path.write_text("step"),
}


@posix
@pytest.mark.parametrize("kind", ODD)
def test_resume_skips_what_only_has_the_name_of_a_checkpoint(kind, tmp_path):
    expected = expected_digest(tmp_path / "complete")
    folder = tmp_path / "run"
    interrupt_after(folder, 3, every_steps=1)
    for step in (1, 4, 7, 99999999):
        ODD[kind](checkpoint_of(folder, step))
    with pytest.warns(UserWarning) as record:  # noqa: PT030 - matched below
        trainer = fit(trainer_of(folder, every_steps=1, keep=1), **AUTO)
    assert digest(trainer) == expected
    messages = [str(warning.message) for warning in record]
    assert len(messages) == 3
    for message, step in zip(messages, (99999999, 7, 4), strict=True):
        assert str(checkpoint_of(folder, step)) in message
        assert message.endswith("Continuing from step-00000003.safetensors instead")
    names = {file.name for file in folder.iterdir()}
    assert {f"step-{step:08d}.replaced" for step in (4, 7, 99999999)} <= names
    assert os.path.lexists(checkpoint_of(folder, END))
    if kind not in ("unreadable file", "text"):  # an older file of this name is the run's own
        assert checkpoint_of(folder, 1).name in names
    assert digest(fit(trainer_of(folder), **AUTO)) == expected


@pytest.mark.filterwarnings("ignore:.* Continuing from step-")
@pytest.mark.parametrize("make", ["folder", "text"])
def test_resume_archives_next_to_older_archives(make, tmp_path):
    interrupt_after(tmp_path, 3, every_steps=1)
    ODD[make](checkpoint_of(tmp_path, 7))
    older = [tmp_path / f"{name}.replaced" for name in ("step-00000007", "model", "history")]
    for folder in older:
        folder.mkdir()
        (folder / "file").touch()
    assert fit(trainer_of(tmp_path), **AUTO).step == END
    assert all((folder / "file").exists() for folder in older)
    assert (tmp_path / "step-00000007.2.replaced").exists()
    fit(trainer_of(tmp_path), resume=checkpoint_of(tmp_path, 3))
    assert (tmp_path / "model.2.replaced").is_file()


@posix
def test_new_run_starts_next_to_a_folder_with_the_name_of_its_first_checkpoint(tmp_path):
    """The checkpoint from which the run continues is in another folder."""
    complete, folder = tmp_path / "complete", tmp_path / "run"
    expected = digest(fit(trainer_of(complete, **ALL)))
    checkpoint_of(folder, 3).mkdir(parents=True)
    with pytest.raises(FileExistsError, match="holds a run"):
        fit(trainer_of(folder), resume=checkpoint_of(complete, 3))
    with pytest.raises(CheckpointError, match=r"step-00000003\.safetensors: expected a file"):
        fit(trainer_of(folder), **AUTO)
    assert_released(folder)
    checkpoint_of(folder, 3).rename(folder / "step-3.safetensors")
    with pytest.warns(
        UserWarning, match=r"step-3\.safetensors is ignored: expected the name step-"
    ):
        assert digest(fit(trainer_of(folder), **AUTO)) == expected


NAMES = ["step-8.safetensors", "step-000000008.safetensors", f"step-{9:030d}.safetensors"]


@pytest.mark.parametrize("name", NAMES)
def test_resume_ignores_a_name_with_another_number_of_digits(name, tmp_path):
    expected = expected_digest(tmp_path / "complete")
    folder = tmp_path / "run"
    interrupt_after(folder, 8, every_steps=1)
    checkpoint_of(folder, 8).rename(folder / name)
    copied = (folder / name).read_bytes()
    for _ in range(2):
        with pytest.warns(UserWarning, match=rf"{name} is ignored: expected the name step-0000000"):
            trainer = fit(trainer_of(folder, every_steps=1, keep=1), **AUTO)
        assert digest(trainer) == expected
        assert checkpoint_of(folder, END).exists()
        assert (folder / name).read_bytes() == copied


def test_resume_does_not_read_digits_of_other_scripts(tmp_path):
    interrupt_after(tmp_path, 3, every_steps=1)
    (tmp_path / "step-\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0669.safetensors").touch()
    assert fit(trainer_of(tmp_path), **AUTO).step == END


def test_prune_keeps_files_that_come_into_the_folder_during_the_run(tmp_path):
    def copy_later(state):
        data = checkpoint_of(tmp_path, 1).read_bytes()
        checkpoint_of(tmp_path, 99999999).write_bytes(data)
        checkpoint_of(tmp_path, 77777777).mkdir()

    fit(trainer_of(tmp_path, After(3, copy_later), every_steps=1, keep=2))
    assert checkpoint_of(tmp_path, END).exists()
    assert checkpoint_of(tmp_path, 99999999).exists()
    assert checkpoint_of(tmp_path, 77777777).is_dir()


def test_fit_starts_next_to_a_folder_with_the_name_of_a_temporary_file(tmp_path):
    odd = tmp_path / ".step-00000001.safetensors.0.tmp"
    odd.mkdir()
    fit(trainer_of(tmp_path))
    assert odd.is_dir()


# Checkpoints that the run refuses ----------------------------------------------------------------


def forge(folder, step, change):
    """Change the state of a checkpoint, whose file stays well-formed."""
    file = checkpoint_of(folder, step)
    state = load_checkpoint(file)
    change(state)
    forge_checkpoint(file, {"state_version": 1, **state}, file)
    return file


def set_entry(*path, value):
    def change(state):
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return change


CHANGES = {
    "batch": set_entry("position", "batch", value=9),
    "negative step": set_entry("position", "step", value=-1),
    "start": set_entry("plan", "start_epoch", value=7),
    "schedule": set_entry("plan", "scheduled_epochs", value=0),
    "fast paths": set_entry("mode", "resolved_speed", value={"warp": 9}),
    "rows": set_entry("history", "rows", value=torch.zeros(3, dtype=torch.uint8)),
    "dtype of rows": set_entry("history", "rows", value=torch.zeros(3, dtype=torch.bfloat16)),
    "means": set_entry("running_means", value={"totals": 3}),
    "random state": set_entry("rng", "cpu", value=torch.zeros(3, dtype=torch.uint8)),
    "callback": set_entry("callbacks", "Checkpoint", value={"best": 3}),
    "weights": lambda state: state["model"].popitem(),
    "moments": lambda state: state["optimizers"]["model"]["state"][0].popitem(),
    "no field": lambda state: state.pop("data"),
}


def trainer_with_schedule(folder, *callbacks, **options):
    trainer = trainer_of(folder, *callbacks, **options)
    trainer.optimization = Optimization(0.01, schedule="cosine")
    return trainer


@pytest.mark.parametrize("name", CHANGES)
def test_resume_skips_a_checkpoint_that_the_run_refuses(name, tmp_path):
    expected = digest(fit(trainer_with_schedule(tmp_path / "complete")))
    folder = tmp_path / "run"
    crash = After(9, raises(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        fit(trainer_with_schedule(folder, crash, every_steps=1, keep=4))
    files = [forge(folder, step, CHANGES[name]) for step in (8, 7)]
    resume = "auto" if name == "batch" else folder
    with pytest.warns(UserWarning) as record:  # noqa: PT030 - matched below
        trainer = fit(trainer_with_schedule(folder), resume=resume)
    assert digest(trainer) == expected
    messages = [str(warning.message) for warning in record]
    assert len(messages) == len(files)
    for message, file in zip(messages, files, strict=True):
        assert message.startswith(str(file))
        assert message.endswith("Continuing from step-00000006.safetensors instead")


@pytest.mark.parametrize("way", ["auto", "folder"])
def test_resume_of_another_run_gives_the_error_of_its_newest_checkpoint(way, tmp_path):
    interrupt_after(tmp_path, 8, every_steps=1, keep=3)
    before = contents(tmp_path)
    resume = "auto" if way == "auto" else tmp_path
    with pytest.raises(CheckpointError, match=r"^the checkpoint belongs to another model: .*"):
        fit(trainer_of(tmp_path, model=make_vae), resume=resume)
    other_seed = trainer_of(tmp_path)
    other_seed.seed = 5
    with pytest.raises(ValueError, match="had seed = 0, got 5"):
        fit(other_seed, resume=resume)
    with pytest.raises(ValueError, match="number of examples = 37, got 33"):
        fit(trainer_of(tmp_path), DATA[:33], resume=resume)
    assert contents(tmp_path) == before
    assert_released(tmp_path)


def test_resume_from_a_refused_file_raises(tmp_path):
    interrupt_after(tmp_path, 8, every_steps=1, keep=4)
    file = forge(tmp_path, 8, CHANGES["batch"])
    trainer = Trainer(make_mlp_vae(), trainer_of(tmp_path).objective, device="cpu", progress=False)
    with pytest.raises(CheckpointError, match="batch 9"):
        fit(trainer, resume=file)
    assert trainer.step == 0


def test_resume_falls_back_if_a_callback_refuses_its_state(tmp_path):
    class Strict(Remembers):
        def check_state(self, state, saved):
            if saved["steps"] > 7:
                raise ValueError("too many steps")

        def on_step_end(self, state, output):
            self.memory = {"steps": state.step}

        def load_state_dict(self, saved):
            self.memory = saved

    expected = digest(fit(trainer_of(tmp_path / "complete", Strict({"steps": 0}))))
    folder = tmp_path / "run"
    crash = After(9, raises(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        fit(trainer_of(folder, Strict({"steps": 0}), crash, every_steps=1, keep=3))
    with pytest.warns(UserWarning, match="too many steps.*Continuing from step-00000007"):
        trainer = fit(trainer_of(folder, Strict({"steps": 0})), **AUTO)
    assert digest(trainer) == expected
