"""Runs in a folder: their digests and their checkpoints."""

import json

import torch
from helpers.training import rows


def digest(trainer):
    """All that a run leaves, without the time."""
    states = [trainer.model.state_dict(), trainer.objective.state_dict()]
    for optimizer in trainer.state.optimizers.values():
        states += [{f"{i}.{n}": v for i, s in optimizer.state.items() for n, v in s.items()}]
    numbers = [{n: v.tolist() for n, v in state.items() if torch.is_tensor(v)} for state in states]
    schedulers = [s.state_dict()["last_epoch"] for s in trainer.state.schedulers.values()]
    history = [rows(trainer.history), trainer.history.updates, trainer.history.stop_reason]
    rates = [g["lr"] for o in trainer.state.optimizers.values() for g in o.param_groups]
    return json.dumps([numbers, schedulers, history, rates, trainer.step, trainer.epoch])


def checkpoint_of(folder, step):
    return folder / f"step-{step:08d}.safetensors"
