"""Identity of a run: everything that the user chose, and the warning if a resumed run differs."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, TensorDataset

from tinyvae.core.data import spread_rows
from tinyvae.core.warnings import warn
from tinyvae.training.callbacks import Callback
from tinyvae.training.data.datasets import DatasetSource
from tinyvae.training.data.items import SeededItems, collate
from tinyvae.training.data.loaders import LoaderSource
from tinyvae.training.data.sources import DataSource, TensorSource
from tinyvae.training.data.streams import StreamSource
from tinyvae.training.optimization import Optimization
from tinyvae.training.settings import Settings, attributes, differences, settings_of
from tinyvae.training.state import TrainState

NUM_ITEMS = 4  # of a Dataset that are read
MAX_LISTED = 12
# Settings of an optimizer that do not change results, or that a scheduler sets.
UNUSED = ("params", "lr", "fused", "foreach", "capturable", "differentiable")


def describe_run(
    state: TrainState,
    optimization: Optimization,
    train: DataSource,
    validation: DataSource | None,
    *,
    record_every: int | None,
) -> Settings:
    """Return the settings of a run. Call after its optimizers and schedulers are made."""
    return {
        **settings_of(state.model, "model"),
        **settings_of(state.objective, "objective"),
        **_data_settings(train, "training data"),
        **_data_settings(validation, "validation data"),
        **settings_of(train.transform.batch, "batch"),
        **settings_of(train.transform.transform, "transform"),
        **_optimization_settings(state, optimization),
        **_callback_settings(state),
        "record_every": record_every,
    }


def warn_about_changes(state: TrainState, saved: Mapping[str, Any]) -> None:
    """Warn about differences between the checkpoint's run and this one."""
    modes = [(name, saved["mode"].get(name), mode) for name, mode in state.mode.items()]
    if other := [f"{name} ({old} before, now {new})" for name, old, new in modes if old != new]:
        warn(f"the run continues, but not bitwise: these settings differ: {', '.join(other)}")
    present = {name for name, _ in state.named_callbacks()}
    if lost := sorted(saved["callbacks"].keys() - present, key=str):
        warn(f"the checkpoint has state for callbacks that this run lacks: {lost}; it is ignored")
    if state.step > 0:  # this Trainer has trained: its user made the changes since then
        return
    now, before = state.identity, saved["identity"]
    differing = differences(now, before)
    # A checkpoint holds no functions of the learning rate.
    of_state = ("optimizers.", "schedulers.")
    kept = [name for name in differing if name.startswith(of_state) and "lambda" not in name]
    if kept:
        listed = ", ".join(f"{n.rpartition('.')[2]} = {before[n]}, not {now[n]}" for n in kept)
        warn(
            f"the run keeps the settings of its optimizer and scheduler in the checkpoint: {listed}"
        )
    if new := [name for name in differing if name not in kept]:
        pairs = [f"{name} {_change(now[name], before[name])}" for name in new[:MAX_LISTED]]
        pairs += [f"{len(new) - MAX_LISTED} more"] if len(new) > MAX_LISTED else []
        warn(
            f"the run continues with settings that have changed since its checkpoint: "
            f"{'; '.join(pairs)}. To keep both runs, start the new one in another folder"
        )


def _change(now: Any, before: Any) -> str:
    """Return both values of a setting. Of a checksum, it is the number that differs most."""
    if isinstance(now, list) and isinstance(before, list) and len(now) == len(before):
        now, before = max(zip(now, before, strict=True), key=lambda pair: abs(pair[0] - pair[1]))
    return f"= {now!s:.80}, was {before!s:.80}"


# Parts --------------------------------------------------------------------------------------------


def _optimization_settings(state: TrainState, optimization: Optimization) -> Settings:
    # Optimizers and schedulers, which these make, are described below.
    factories = ("learning_rate", "learning_rates", "optimizer", "scheduler")
    settings: Settings = {}
    for field in fields(optimization):
        if field.name not in factories:
            value = getattr(optimization, field.name)
            settings |= settings_of(value, f"optimization.{field.name}")
    for name, optimizer in state.optimizers.items():
        settings[f"optimizers.{name}"] = type(optimizer).__name__
        for index, group in enumerate(optimizer.param_groups):
            options = {key: value for key, value in group.items() if key not in UNUSED}
            options["lr"] = options.pop("initial_lr", group["lr"])
            for key, value in options.items():
                settings |= settings_of(value, f"optimizers.{name}.{index}.{key}")
        scheduler = state.schedulers.get(name)
        settings[f"schedulers.{name}"] = None if scheduler is None else type(scheduler).__name__
        for key, value in getattr(scheduler, "__dict__", {}).items():
            if key == "_schedulers" or (key != "optimizer" and key[0] != "_"):
                settings |= settings_of(value, f"schedulers.{name}.{key}")
    return settings


def _callback_settings(state: TrainState) -> Settings:
    """Return the settings of callbacks with a state. Others, such as loggers, may come and go."""
    settings: Settings = {}
    for name, callback in state.named_callbacks():
        cls = type(callback)
        is_stateful = cls.state_dict is not Callback.state_dict
        if not is_stateful or not getattr(callback, "changes_results", True):
            continue
        for key, value in attributes(callback).items():
            for path, setting in settings_of(value, f"callbacks.{name}.{key}").items():
                # A text of a user's class often names a file or this process.
                if cls.__module__.startswith("tinyvae.") or not isinstance(setting, str):
                    settings[path] = setting
    return settings


# Data ---------------------------------------------------------------------------------------------


def _data_settings(source: DataSource | None, name: str) -> Settings:
    values = f"{name}.values"
    if source is None:
        return {values: None}
    settings: Settings = {
        f"{name}.batch_size": source.batch_size,
        f"{name}.drop_last": source.drop_last,
        f"{name}.order": "that of fit",
    }
    match source:
        case TensorSource():
            settings |= _content(source.data, values)
        case DatasetSource() | StreamSource():
            settings |= _dataset_settings(source.data, values, source.seed, source.workers)
        case LoaderSource():
            settings |= _loader_settings(source.loader, name)
            data = source.loader.dataset
            settings |= _dataset_settings(data, values, source.seed, source.workers)
    return settings


def _loader_settings(loader: "DataLoader[Any]", name: str) -> Settings:
    batches = loader.batch_sampler
    # torch's own sampler of batches adds only their size.
    samplers = [batches] if batches is not None and type(batches) is not BatchSampler else []
    samplers.append(getattr(batches, "sampler", loader.sampler))
    kinds = " of ".join(type(sampler).__name__ for sampler in samplers)
    settings: Settings = {
        f"{name}.batch_size": getattr(batches, "batch_size", None),
        f"{name}.drop_last": getattr(batches, "drop_last", False),
        f"{name}.order": f"that of a DataLoader with {kinds}",
    }
    for sampler in samplers:
        for key, value in attributes(sampler).items():
            if key not in ("data_source", "dataset", "generator", "sampler"):
                settings |= settings_of(value, f"{name}.sampler.{key}")
    return settings


def _dataset_settings(data: Any, name: str, seed: int, workers: int) -> Settings:
    """Return checksums of the arrays in a Dataset, or else of some of its items.

    No item is read here if other processes read the items, because processes must not share a file
    that a Dataset opens at its first item.
    """
    if type(data) is TensorDataset:
        return _content(data.tensors, name)
    if isinstance(data, Tensor | np.ndarray):
        return _content(data, name)
    # Under a name that tensors do not have: a Dataset of the same rows makes the same run.
    kind: Settings = {name.replace("values", "dataset"): type(data).__name__}
    arrays: dict[str, Any] = {}
    with suppress(Exception):  # reading an attribute of the user's class may raise
        arrays = _arrays(data)
    if arrays or workers or isinstance(data, IterableDataset):
        return kind | settings_of(arrays, f"{name}.arrays") if arrays else kind
    items: Settings = {}
    with suppress(Exception):  # the run raises it when it reads the item
        seeded, last = SeededItems(data, seed, collate), len(data) - 1
        for index in sorted({last * k // (NUM_ITEMS - 1) for k in range(NUM_ITEMS)}):
            first, second = (
                _content(seeded[(index,), [index]], f"{name}[{index}]") for _ in range(2)
            )
            if differences(first, second):  # the items draw from generators of their own
                return kind
            items |= first
    return kind | items


def _arrays(data: Any, depth: int = 3) -> dict[str, Any]:
    """Return the arrays that a Dataset holds, also in Datasets that it holds, by name."""
    arrays: dict[str, Any] = {}
    for name, value in getattr(data, "__dict__", {}).items():
        is_list = isinstance(value, tuple | list)
        first = value[0] if is_list and value else value
        if "cache" in name:  # it fills while items are read
            continue
        if isinstance(first, Tensor | np.ndarray):
            arrays[name] = spread_rows(value, NUM_ITEMS) if is_list else value
        elif name == "indices" and isinstance(value, Sequence):
            arrays[name] = value
        elif depth and isinstance(value, Dataset):
            arrays |= {f"{name}.{n}": a for n, a in _arrays(value, depth - 1).items()}
        elif depth and name == "datasets" and is_list:
            for index, part in enumerate(value):
                arrays |= {f"{index}.{n}": a for n, a in _arrays(part, depth - 1).items()}
    return arrays


def _content(data: Any, name: str) -> Settings:
    """Return checksums of arrays. One in a tuple is the same as one alone."""
    if isinstance(data, tuple | list) and len(data) == 1:
        (data,) = data
    return settings_of(data, name)
