"""Runs in a folder: their trainers, their digests and their files."""

import json
import os
import threading

import pytest
import torch
from helpers.training import BATCH_SIZE, DATA, STEPS, After, raises, rows
from torch.utils.data import Dataset

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    BernoulliLikelihood,
    Callback,
    Checkpoint,
    GaussianEncoder,
    Trainer,
)
from tinyvae.io import FolderLock, encode_state, load_tensors, save_tensors
from tinyvae.training.checkpoints.directory import load_checkpoint

EPOCHS = 2
END = EPOCHS * STEPS
AUTO = {"resume": "auto"}
ALL = {"every_steps": 1, "keep": 10**6}

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX limits, links and signals")

# Trainers ----------------------------------------------------------------------------------------


def make_mlp_vae():
    """Return a VAE whose parts are all of the library, so that a file describes it."""
    torch.manual_seed(0)
    encoder = GaussianEncoder(MLP(4, hidden=(8,)), latent_dim=2)
    return VAE(encoder, MLP(2, hidden=(8,), out_shape=4), BernoulliLikelihood())


def trainer_of(folder, *callbacks, model=make_mlp_vae, objective=ELBO, **options):
    """Return a Trainer with a Checkpoint, which gets ``options``."""
    checkpoint = Checkpoint(folder, **{"every_minutes": None, **options})
    return Trainer(
        model(), objective(), callbacks=[checkpoint, *callbacks], device="cpu", progress=False
    )


def fit(trainer, train=DATA, validation=None, **options):
    trainer.fit(train, validation, **{"epochs": EPOCHS, "batch_size": BATCH_SIZE, **options})
    return trainer


def interrupt_after(folder, step, **options):
    """Leave a run in the folder whose last checkpoint is that of ``step``."""
    crash = After(step + 1, raises(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        fit(trainer_of(folder, crash, **options))


class Scores(Callback):
    """Adds a column to the history: a value for each epoch."""

    def __init__(self, *values):
        self.values = values

    def on_epoch_end(self, state, row):
        row["score"] = self.values[int(row["epoch"]) - 1]


class Remembers(Callback):
    """A callback with any memory."""

    def __init__(self, memory):
        self.memory = memory

    def state_dict(self):
        return self.memory


class Breaking(Dataset):
    """Examples that can be read until ``is_broken``."""

    is_broken = False

    def __len__(self):
        return len(DATA)

    def __getitem__(self, index):
        if self.is_broken:
            raise RuntimeError("planted")
        return DATA[index]

    def break_after(self, step):
        """Return a callback that breaks the data."""
        return After(step, lambda _: setattr(self, "is_broken", True))


# Results -----------------------------------------------------------------------------------------


def digest(trainer):
    """Return everything that a run leaves, without the time."""
    states = [trainer.model.state_dict(), trainer.objective.state_dict()]
    for optimizer in trainer.state.optimizers.values():
        states += [{f"{i}.{n}": v for i, s in optimizer.state.items() for n, v in s.items()}]
    numbers = [{n: v.tolist() for n, v in state.items() if torch.is_tensor(v)} for state in states]
    schedulers = [s.state_dict()["last_epoch"] for s in trainer.state.schedulers.values()]
    history = [rows(trainer.history), trainer.history.updates, trainer.history.stop_reason]
    rates = [g["lr"] for o in trainer.state.optimizers.values() for g in o.param_groups]
    return json.dumps([numbers, schedulers, history, rates, trainer.step, trainer.epoch])


def expected_digest(folder, **options):
    """Return the digest of an uninterrupted run."""
    return digest(fit(trainer_of(folder), **options))


def checkpoint_in(run):
    """Return the Checkpoint of a Trainer, or of its state."""
    return next(c for c in run.callbacks if isinstance(c, Checkpoint))


# Files -------------------------------------------------------------------------------------------


def checkpoint_of(folder, step):
    return folder / f"step-{step:08d}.safetensors"


def steps_in(folder):
    """Return the steps of the checkpoints in a folder, the newest last."""
    return [int(file.stem.removeprefix("step-")) for file in sorted(folder.glob("step-*.safe*"))]


def load_newest(folder):
    return load_checkpoint(checkpoint_of(folder, steps_in(folder)[-1]))


def weights_in(folder, step):
    return load_checkpoint(checkpoint_of(folder, step))["model"]


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def history_lines(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def epochs_in(folder):
    return [line["epoch"] for line in history_lines(folder)]


def forge_checkpoint(file, state, target):
    """Write a checkpoint with the description of ``file`` and another state."""
    form, tensors = encode_state(state, "state")
    save_tensors(target, tensors, {**load_tensors(file)[1], "state": form})
    return target


def assert_released(folder):
    """Assert that the folder is not locked, and that nothing is being written to it."""
    FolderLock(folder).release()
    assert not [t for t in threading.enumerate() if t.name.startswith("tinyvae-writer")]
    assert not list(folder.glob("*.tmp")) + list(folder.glob(".*.tmp"))
