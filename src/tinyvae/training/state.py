"""All that a run is between two steps."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from tinyvae.core.random import rng_state
from tinyvae.core.warnings import warn
from tinyvae.training.callbacks import callback_names
from tinyvae.training.data.sources import DataSource

if TYPE_CHECKING:
    from tinyvae.training.trainer import Trainer


SETTINGS = ("initial_lr", "weight_decay")  # others may be a scheduler's to change


def capture(trainer: "Trainer") -> dict[str, Any]:
    """State of a run, of tensors, numbers, strings, lists and dictionaries; nothing is copied."""
    trainer.settle()
    history = trainer.history.state_dict()
    if trainer.interrupted:
        history["stop_reason"] = None  # which is no reason to stop again
    names = callback_names(trainer.callbacks)
    states = {n: c.state_dict() for n, c in zip(names, trainer.callbacks, strict=True)}
    return {
        "run": trainer.identity,
        "mode": _mode(trainer),
        "model": trainer.model.state_dict(),
        "objective": trainer.objective.state_dict(),
        "optimizers": {name: o.state_dict() for name, o in trainer.optimizers.items()},
        "schedulers": {name: s.state_dict() for name, s in trainer.schedulers.items()},
        "callbacks": {name: state for name, state in states.items() if state},
        "history": history,
        "position": {
            "epoch": trainer.epoch,
            "step": trainer.step,
            "batch": trainer.batch,
            "means": trainer.means.state_dict(),
            "rng": rng_state(trainer.device),
            "loader": trainer.loader_state(),
            "seconds": time.monotonic() - trainer.started,
        },
        "plan": {
            "first_epoch": trainer.plan.first_epoch,
            "begun": trainer.plan.length.begun,
            "schedule_steps": trainer.plan.schedule_steps,
        },
    }


def identity(seed: int, feed: DataSource) -> dict[str, int | None]:
    """What has to be equal for a run to be the same one."""
    return {
        "seed": seed,
        "number of examples": feed.num_examples,
        "batches per epoch": feed.num_batches,
    }


def _mode(trainer: "Trainer") -> dict[str, Any]:
    """What has to be equal for a run to go on bitwise."""
    return {
        "device": trainer.device.type,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "speed": asdict(trainer.speed),
        "route": asdict(trainer.route),
    }


def restore(trainer: "Trainer", state: Mapping[str, Any]) -> None:
    """Put a run where a checkpoint of it was; its optimizers and schedulers have been made."""
    for name, module in (("model", trainer.model), ("objective", trainer.objective)):
        module.load_state_dict(state[name])
    for name, optimizer in trainer.optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
        optimizer._opt_called = True  # type: ignore[attr-defined]  # torch's schedulers ask
    for name, scheduler in trainer.schedulers.items():
        scheduler.load_state_dict(state["schedulers"][name])
    own_reason = trainer.history.stop_reason  # of a signal in the meantime
    trainer.history.load_state_dict(state["history"])
    trainer.history.stop_reason = own_reason or trainer.history.stop_reason
    position = state["position"]
    trainer.epoch, trainer.step, trainer.batch = (position[n] for n in ("epoch", "step", "batch"))
    trainer.means.load_state_dict(position["means"], trainer.device)
    trainer.started = time.monotonic() - position["seconds"]


def warn_of_changes(trainer: "Trainer", state: Mapping[str, Any]) -> None:
    """Say what will not be as it was, or not as it is asked for now."""
    found, own = state["mode"], _mode(trainer)
    if found["speed"] == own["speed"]:
        own["route"] = found["route"]  # which is taken over
    changed = [name for name in own if found[name] != own[name]]
    if changed:
        differing = [f"{name} ({found[name]} before, now {own[name]})" for name in changed]
        warn(f"the run goes on, but not bitwise: it has another {', '.join(differing)}")
    for name, optimizer in trainer.optimizers.items():
        pairs = zip(optimizer.param_groups, state["optimizers"][name]["param_groups"], strict=True)
        for asked, kept in pairs:
            options = [k for k in SETTINGS if k in asked and asked[k] != kept[k]]
            if options:
                words = ", ".join(f"{k} = {kept[k]}, not {asked[k]}" for k in options)
                warn(f"the run goes on with the optimizer that it was begun with: {words}")
    lost = sorted(state["callbacks"].keys() - set(callback_names(trainer.callbacks)))
    if lost:
        warn(f"the checkpoint has the memory of {lost}, which are no callbacks of this run")
