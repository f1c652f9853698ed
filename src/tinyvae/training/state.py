"""All that a run is between two steps."""

import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tinyvae.files import CheckpointError
from tinyvae.scopes import rng_state
from tinyvae.training.callbacks import Callback
from tinyvae.training.speed import Route

if TYPE_CHECKING:
    from tinyvae.training.trainer import Trainer

__all__ = ["callback_names", "capture", "check_same_run", "restore"]


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


def callback_names(callbacks: Sequence[Callback]) -> list[str]:
    """Names of callbacks, of their classes, numbered where there are several of one."""
    seen: Counter[str] = Counter()
    names = []
    for callback in callbacks:
        name = type(callback).__name__
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return names


def _mode(trainer: "Trainer") -> dict[str, Any]:
    """What has to be equal for a run to go on bitwise."""
    return {
        "device": trainer.device.type,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "compile": trainer.speed.compile,
        "route": asdict(trainer.route),
        "optimizers": {name: type(o).__name__ for name, o in trainer.optimizers.items()},
    }


def check_same_run(trainer: "Trainer", state: Mapping[str, Any]) -> None:
    """Raise, before anything is changed, if a checkpoint is none of this run.

    Raises:
        ValueError: If data, batch size or seed are others.
        CheckpointError: If model or objective are.
    """
    for name, own in trainer.identity.items():
        found = state["run"].get(name)
        if found != own:
            raise ValueError(
                f"the checkpoint's run had {name} = {found!r}, got {own!r}: give the same to "
                "continue it, or start anew in another folder"
            )
    for name, module in (("model", trainer.model), ("objective", trainer.objective)):
        _check_fits(name, module.state_dict(), state[name])


def _check_fits(name: str, own: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    differing = [
        key for key in sorted(own.keys() | found.keys()) if _shape(own, key) != _shape(found, key)
    ]
    if differing:
        key = differing[0]
        raise CheckpointError(
            f"the checkpoint is of another {name}: {len(differing)} of its tensors differ, first "
            f"'{key}', expected {_shape(own, key)}, got {_shape(found, key)}"
        )


def _shape(state: Mapping[str, Any], key: str) -> tuple[int, ...] | str:
    value = state.get(key, "none")
    return tuple(value.shape) if isinstance(value, Tensor) else "none" if value == "none" else "set"


def restore(trainer: "Trainer", state: Mapping[str, Any]) -> None:
    """Put a run where a checkpoint was; its optimisers and schedulers have been made."""
    trainer.route = Route(**state["mode"]["route"])
    for name, module in (("model", trainer.model), ("objective", trainer.objective)):
        module.load_state_dict(state[name])
    for name, optimizer in trainer.optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
        optimizer._opt_called = True  # type: ignore[attr-defined]  # torch's schedulers ask
    for name, scheduler in trainer.schedulers.items():
        scheduler.load_state_dict(state["schedulers"][name])
    trainer.history.load_state_dict(state["history"])
    position = state["position"]
    trainer.epoch, trainer.step, trainer.batch = (position[n] for n in ("epoch", "step", "batch"))
    trainer.means.load_state_dict(position["means"], trainer.device)
    trainer.started = time.monotonic() - position["seconds"]
    _warn_of_another_mode(state["mode"], _mode(trainer))


def _warn_of_another_mode(found: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    changed = (name for name in own if found.get(name) != own[name])
    differing = [f"{name} ({found.get(name)} before, now {own[name]})" for name in changed]
    if differing:
        warnings.warn(
            f"the run goes on, but not bitwise: it has another {', '.join(differing)}",
            stacklevel=5,
        )
