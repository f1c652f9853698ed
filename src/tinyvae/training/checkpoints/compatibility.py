"""A checkpoint is held against the run that is to go on with it, before anything is changed."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tinyvae.errors import CheckpointError
from tinyvae.training.callbacks import callback_names
from tinyvae.training.checkpoints.schema import is_generator_state, is_number
from tinyvae.training.optimization import state_after_step

if TYPE_CHECKING:
    from tinyvae.training.trainer import Trainer


def require_same_run(trainer: "Trainer", state: Mapping[str, Any]) -> None:
    """Raise if a sound checkpoint is none of this run, whose optimizers have been made.

    Raises:
        ValueError: If data or seed are others.
        CheckpointError: If model, objective, optimizers, schedulers or callbacks are.
    """
    _require_names("properties of its data", trainer.identity, state["run"])
    for name, own in trainer.identity.items():
        found = state["run"][name]
        if not (found is None or (isinstance(found, int) and is_number(found))):
            raise CheckpointError(f"'run.{name}' is no count: {found!r:.80}")
        if found != own:
            raise ValueError(
                f"the checkpoint's run had {name} = {found!r}, got {own!r}: give the same to "
                "continue it, or start anew in another folder"
            )
    for name, module in (("model", trainer.model), ("objective", trainer.objective)):
        _require_alike(name, module.state_dict(), state[name])
    optimizers = {
        name: state_after_step(optimizer) for name, optimizer in trainer.optimizers.items()
    }
    _require_names("optimizers", optimizers, state["optimizers"])
    for name, own in optimizers.items():
        _require_same_optimizer(f"optimizers.{name}", own, state["optimizers"][name])
    schedulers = {name: own.state_dict() for name, own in trainer.schedulers.items()}
    _require_alike("schedulers", schedulers, state["schedulers"])
    position, num_batches = state["position"], trainer.identity["batches per epoch"]
    if num_batches is not None and position["batch"] > num_batches:
        raise CheckpointError(f"batch {position['batch']} of {num_batches} is none")
    if num_batches is not None and state["plan"]["schedule_steps"] is None:
        raise CheckpointError("schedules without the length of the run, which its data tell")
    if state["plan"]["first_epoch"] > position["epoch"]:
        raise CheckpointError("the run is at an epoch before its first")
    if not is_generator_state(position["rng"].get("cpu")):
        raise CheckpointError("the random state is none of torch's")
    _require_callbacks(trainer, state["callbacks"])


def _require_same_optimizer(name: str, own: Mapping[str, Any], found: Any) -> None:
    if not isinstance(found, dict) or found.keys() != own.keys():
        raise CheckpointError(f"'{name}' is no state of an optimizer: {found!r:.200}")
    groups, states = found["param_groups"], found["state"]
    if not isinstance(groups, list) or len(groups) != len(own["param_groups"]):
        raise CheckpointError(f"'{name}' has other parameter groups")
    for place, (ours, theirs) in enumerate(zip(own["param_groups"], groups, strict=True)):
        where = f"{name}.param_groups.{place}"
        _require_alike(where, ours, theirs)
        fixed = [k for k, v in ours.items() if isinstance(v, bool) or k == "params"]
        if differing := [key for key in fixed if ours[key] != theirs[key]]:
            raise CheckpointError(f"'{where}' is of another optimizer: it differs in {differing}")
    if not isinstance(states, dict) or states.keys() not in (own["state"].keys(), {}.keys()):
        raise CheckpointError(f"'{name}' remembers other parameters")
    for key, theirs in states.items():
        _require_alike(f"{name}.state.{key}", own["state"][key], theirs)


def _require_callbacks(trainer: "Trainer", states: Mapping[str, Any]) -> None:
    """Ask callbacks whether the states are theirs."""
    names = callback_names(trainer.callbacks)
    for name, callback in zip(names, trainer.callbacks, strict=True):
        if name not in states:
            continue
        try:
            callback.check_state(trainer, states[name])
        except Exception as error:
            raise CheckpointError(f"{name} cannot take its state: {error!r:.200}") from error


def _require_names(what: str, own: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    if own.keys() != found.keys():
        raise CheckpointError(
            f"the checkpoint has other {what}: expected {sorted(own)}, got {sorted(found)}"
        )


def _require_alike(name: str, own: Any, found: Any) -> None:
    """Raise unless two trees have the same keys, shapes and kinds of values."""
    if isinstance(own, Tensor) and isinstance(found, Tensor):
        if (own.shape, own.dtype) != (found.shape, found.dtype):
            raise CheckpointError(
                f"'{name}' differs: expected {tuple(own.shape)} of {own.dtype}, got "
                f"{tuple(found.shape)} of {found.dtype}"
            )
    elif isinstance(own, Mapping) and isinstance(found, Mapping):
        if own.keys() != found.keys():
            differing = sorted(map(str, own.keys() ^ found.keys()))
            raise CheckpointError(
                f"the checkpoint is of another {name}: {len(differing)} names differ, first "
                f"'{differing[0]}'"
            )
        for key in own:
            _require_alike(f"{name}.{key}", own[key], found[key])
    elif isinstance(own, (list, tuple)) and isinstance(found, (list, tuple)):
        if len(own) != len(found):
            raise CheckpointError(f"'{name}' has {len(found)} entries, expected {len(own)}")
        for place, (ours, theirs) in enumerate(zip(own, found, strict=True)):
            _require_alike(f"{name}.{place}", ours, theirs)
    elif not _is_like(own, found):
        raise CheckpointError(f"'{name}' is {found!r:.80}, expected one like {own!r:.80}")


def _is_like(own: Any, found: Any) -> bool:
    """Whether a plain value may stand in another's place; None is what is not known yet."""
    numbers = is_number(own) and is_number(found)
    return own is None or numbers or type(own) is type(found)
