"""Checks of a checkpoint against the run that continues from it, before anything changes.

The run's own state is the reference, not a schema. A loaded state must have the same keys, tensors
of the same shapes and dtypes, and plain values of the same kinds.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from tinyvae.core.warnings import warn
from tinyvae.errors import CheckpointError
from tinyvae.training.acceleration.loss_scale import LossScale
from tinyvae.training.callbacks import Callback
from tinyvae.training.history import History
from tinyvae.training.optimization import state_after_step
from tinyvae.training.running_mean import RunningMean
from tinyvae.training.settings import are_settings
from tinyvae.training.state import MIGRATIONS, STATE_VERSION, TrainState

# Fields of a state, and the types of the entries that every run has. A field with such entries has
# no others, except for "rng", which may also have the state of a GPU.
FIELDS: dict[str, dict[str, Any]] = {
    "fingerprint": {},
    "identity": {},
    "mode": {
        "device": str,
        "torch": str,
        "threads": int,
        "processes": int,
        "speed": dict,
        "resolved_speed": dict,
    },
    "plan": {"start_epoch": int, "scheduled_epochs": int, "schedule_steps": int | None},
    "position": {"epoch": int, "step": int, "batch": int, "seconds": Real},
    "model": {},
    "objective": {},
    "average": {},
    "loss_scale": {},
    "optimizers": {},
    "schedulers": {},
    "callbacks": {},
    "history": {"rows": Tensor, "stop_reason": str | None},
    "running_means": {},
    "rng": {"cpu": Tensor},
    "data": {},
}
ADDED = ("identity", "average", "loss_scale")  # fields that earlier files of a version lack


def upgrade(state: Any) -> dict[str, Any]:
    """Return a loaded state, migrated to the current version, without unknown fields and entries.

    Raises:
        CheckpointError: If the version is newer, or a field is missing.
    """
    if not isinstance(state, dict):
        raise CheckpointError(f"expected a dictionary as state, got a {type(state).__name__}")
    version = state.get("state_version")
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(f"expected state_version as an integer >= 1, got {version!r:.80}")
    if version > STATE_VERSION:
        raise CheckpointError(
            f"its state has version {version}, this tinyvae knows versions up to {STATE_VERSION}: "
            "upgrade tinyvae"
        )
    for old_version in range(version, STATE_VERSION):
        state = MIGRATIONS[old_version](state)
    # These were added later, and without effect on how a run continues.
    state = {**{name: {} for name in ADDED}, **state}
    if isinstance(state.get("mode"), dict):
        state["mode"] = {"processes": 1, **state["mode"]}
    unknown = [name for name in state if name not in {*FIELDS, "state_version"}]
    known = {name: part for name, part in state.items() if name not in unknown}
    for name, entries in FIELDS.items():
        part = known.get(name)
        if not isinstance(part, dict) or not entries.keys() <= part.keys():
            got = sorted(map(str, part)) if isinstance(part, dict) else part
            raise CheckpointError(f"expected '{name}' with {list(entries)}, got {got!r:.200}")
        for key, kind in entries.items():
            if not isinstance(part[key], kind):
                raise CheckpointError(
                    f"checkpoint field '{name}.{key}' has an invalid value: {part[key]!r:.80}"
                )
        if entries and name != "rng":
            unknown += [f"{name}.{key}" for key in part if key not in entries]
            known[name] = {key: part[key] for key in entries}
    if known["plan"]["scheduled_epochs"] < 1:  # schedulers are made first
        raise CheckpointError(f"expected scheduled_epochs >= 1, got {known['plan']!r:.200}")
    if unknown:
        names = f"{sorted(map(str, unknown))!r:.200}"
        warn(f"the checkpoint has unknown fields {names}: they are ignored")
    return known


def require_same_run(
    state: TrainState, saved: Mapping[str, Any], callbacks: Sequence[Callback]
) -> None:
    """Raise unless a checkpoint belongs to this run. Call after the optimizers exist.

    Raises:
        ValueError: If seed or data differ.
        CheckpointError: If model, objective, optimizers, schedulers or callbacks differ, or if a
            value makes no sense.
    """
    _require_same_batches(state, saved)
    _require_keys("fingerprint", state.fingerprint, saved["fingerprint"])
    for name, value in state.fingerprint.items():
        previous = saved["fingerprint"][name]
        if type(previous) is not type(value) or previous != value:
            raise ValueError(
                f"the checkpoint's run had {name} = {previous!r:.80}, got {value!r}: "
                "give the same to continue it, or start a run in another folder"
            )
    _require_alike("model", state.model.state_dict(), saved["model"])
    _require_alike("objective", state.objective.state_dict(), saved["objective"])
    _require_keys("optimizers", state.optimizers, saved["optimizers"])
    for name, optimizer in state.optimizers.items():
        reference = state_after_step(optimizer)
        _require_same_optimizer(f"optimizers.{name}", reference, saved["optimizers"][name])
    _require_keys("schedulers", state.schedulers, saved["schedulers"])
    for name, scheduler in state.schedulers.items():
        # Texts of torch's schedulers are settings, and None is a function that has no state.
        is_of_torch = type(scheduler).__module__.startswith("torch.")
        _require_alike(
            f"schedulers.{name}",
            scheduler.state_dict(),
            saved["schedulers"][name],
            same_texts=is_of_torch,
        )
    _require_position(saved["position"], saved["plan"], state.fingerprint["batches per epoch"])
    _require_loadable(state, saved, callbacks)


def _require_same_batches(state: TrainState, saved: Mapping[str, Any]) -> None:
    """Raise if a run would skip or repeat examples of the epoch in which it continues."""
    if not are_settings(saved["identity"]):
        raise CheckpointError("the checkpoint's 'identity' has values that are no settings")
    if not saved["position"]["batch"]:
        return
    for name in ("batch_size", "order"):
        key = f"training data.{name}"
        now, before = state.identity[key], saved["identity"].get(key, state.identity[key])
        if now != before:
            raise ValueError(
                f"the checkpoint's run had {key} = {before!s:.80} in the epoch in which it "
                f"stopped, got {now}: give the same to continue it, or start a run in another "
                "folder"
            )


def _require_position(
    position: Mapping[str, Any], plan: Mapping[str, Any], num_batches: int | None
) -> None:
    if plan["schedule_steps"] is None and num_batches is not None:
        raise CheckpointError("the length of schedules is missing, but the data have a length")
    numbers = {name: position[name] for name in ("epoch", "step", "batch", "seconds")}
    numbers |= {name: value for name, value in plan.items() if value is not None}
    for name, value in numbers.items():
        is_number = type(value) is int or name == "seconds"
        if not is_number or not 0 <= value < 2**62:
            kind = "a number" if name == "seconds" else "an integer"
            raise CheckpointError(f"expected '{name}' as {kind} >= 0, got {value!r:.80}")
    if num_batches is not None and position["batch"] > num_batches:
        raise CheckpointError(
            f"the checkpoint is at batch {position['batch']}, but an epoch has only {num_batches} "
            "batches"
        )
    if plan["start_epoch"] > position["epoch"]:
        raise CheckpointError(
            f"the checkpoint is at epoch {position['epoch']}, but its run started after epoch "
            f"{plan['start_epoch']}"
        )


def _require_loadable(
    state: TrainState, saved: Mapping[str, Any], callbacks: Sequence[Callback]
) -> None:
    """Raise unless history, means, random numbers and states of callbacks can be loaded."""
    with _naming("history"):
        History().load_state_dict(saved["history"])
    with _naming("running means"):
        means = RunningMean()
        means.load_state_dict(saved["running_means"], torch.device("cpu"))
        means.row("train")
    with _naming("average of weights"):
        state.average.check_state(saved["average"])
    with _naming("scale of the loss"):
        LossScale().load_state_dict(saved["loss_scale"])
    with _naming("CPU RNG state"):
        torch.Generator().set_state(saved["rng"]["cpu"])
    for callback, (name, _) in zip(callbacks, state.named_callbacks(), strict=True):
        if name in saved["callbacks"]:
            with _naming(f"state of {name}"):
                callback.check_state(state, saved["callbacks"][name])


@contextmanager
def _naming(part: str) -> Iterator[None]:
    """Replace any error in the block by a CheckpointError that names the part."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"the checkpoint's {part} is not valid: {error!r:.200}") from error


def _require_same_optimizer(name: str, reference: Mapping[str, Any], saved: Any) -> None:
    if not isinstance(saved, dict) or saved.keys() != reference.keys():
        raise CheckpointError(f"'{name}' is not the state of an optimizer: {saved!r:.200}")
    groups, states = saved["param_groups"], saved["state"]
    _require_alike(f"{name}.param_groups", reference["param_groups"], groups)
    # Schedulers change numbers such as the learning rate, but never flags such as amsgrad.
    for index, (expected, group) in enumerate(zip(reference["param_groups"], groups, strict=True)):
        fixed = [k for k, v in expected.items() if isinstance(v, bool | None) or k == "params"]
        if differing := [key for key in fixed if expected[key] != group[key]]:
            raise CheckpointError(
                f"'{name}.param_groups.{index}' belongs to another optimizer: {differing} differ"
            )
    # Without a step there are no moments yet.
    if not isinstance(states, dict) or states.keys() not in (reference["state"].keys(), {}.keys()):
        raise CheckpointError(f"'{name}' has moments of other parameters")
    for key, value in states.items():
        _require_alike(f"{name}.state.{key}", reference["state"][key], value)


def _require_keys(name: str, reference: Mapping[Any, Any], saved: Mapping[Any, Any]) -> None:
    if differing := sorted(map(str, reference.keys() ^ saved.keys())):
        raise CheckpointError(
            f"the checkpoint belongs to another {name}: {len(differing)} names differ, first "
            f"'{differing[0]}'"
        )


def _require_alike(name: str, reference: Any, saved: Any, *, same_texts: bool = False) -> None:
    """Raise unless two trees have the same keys, shapes, dtypes and kinds of values.

    With ``same_texts``, strings and None must also be equal.
    """
    if isinstance(reference, Tensor) and isinstance(saved, Tensor):
        if (reference.shape, reference.dtype) != (saved.shape, saved.dtype):
            raise CheckpointError(
                f"'{name}' differs: expected {tuple(reference.shape)} of {reference.dtype}, got "
                f"{tuple(saved.shape)} of {saved.dtype}"
            )
    elif isinstance(reference, Mapping) and isinstance(saved, Mapping):
        _require_keys(name, reference, saved)
        for key in reference:
            _require_alike(f"{name}.{key}", reference[key], saved[key], same_texts=same_texts)
    elif isinstance(reference, (list, tuple)) and isinstance(saved, (list, tuple)):
        if len(reference) != len(saved):
            raise CheckpointError(f"'{name}' has {len(saved)} entries, expected {len(reference)}")
        for index, (expected, value) in enumerate(zip(reference, saved, strict=True)):
            _require_alike(f"{name}.{index}", expected, value, same_texts=same_texts)
    elif (same_texts and isinstance(reference, str | None) and reference != saved) or not (
        reference is None  # not known yet
        or (_is_number(reference) and _is_number(saved))
        or type(reference) is type(saved) is not int  # a number, but too large
    ):
        raise CheckpointError(f"'{name}' is {saved!r:.80}, expected one like {reference!r:.80}")


def _is_number(value: Any) -> bool:
    # torch and NumPy cannot hold larger integers.
    is_small = not isinstance(value, int) or -(2**63) <= value < 2**63
    return isinstance(value, Real) and not isinstance(value, bool) and is_small
