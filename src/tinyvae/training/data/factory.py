"""Choice of the source for the data that the user passes to ``fit``."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from tinyvae.core.data import as_tensor, refusal
from tinyvae.training.data.datasets import DatasetSource
from tinyvae.training.data.items import collate
from tinyvae.training.data.loaders import LoaderSource
from tinyvae.training.data.sources import BatchTransform, DataSource, TensorSource
from tinyvae.training.data.streams import StreamSource


def open_data(
    data: Any,
    transform: BatchTransform,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool,
    workers: int = 0,
    drop_last: bool = False,
) -> DataSource:
    """Return a source for a tensor, an array, several of these, a Dataset or a DataLoader.

    Tensors and arrays stay on the device. A Dataset is read in the order of a tensor of the same
    length. A DataLoader keeps its own order. Any object with integer keys and a length, such as a
    data set of Hugging Face, is read like a Dataset.

    Raises:
        TypeError: If ``data`` is something else.
        ValueError: If the data are empty, or if ``drop_last`` contradicts them.
    """
    common: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "drop_last": drop_last}
    options = {**common, "shuffle": shuffle}
    source: DataSource
    if _is_columns(data, transform):
        source = TensorSource(data, transform, **options)
    elif type(data) is TensorDataset:  # a subclass may change the items
        source = TensorSource(data.tensors, transform, **options)
    elif isinstance(data, DataLoader):
        if drop_last and not data.drop_last:
            raise ValueError(
                "fit expects drop_last=True for tensors and Datasets, got a DataLoader that keeps "
                "its last batch: use DataLoader(..., drop_last=True)"
            )
        source = LoaderSource(data, transform, seed=seed, repeats=not shuffle)
    elif isinstance(data, IterableDataset):
        source = StreamSource(data, transform, workers=workers, **common)
    elif isinstance(data, Dataset) or _has_items(data, transform.owner):
        source = DatasetSource(data, transform, workers=workers, **options)
    else:
        source = TensorSource(as_tensor(data, transform.owner), transform, **options)
    if source.has_exact_length and source.num_examples == 0:
        raise ValueError("the data set is empty: expected at least one example")
    if source.has_exact_length and source.num_batches == 0:
        raise ValueError(
            f"fit expects at least one full batch with drop_last=True, got {source.num_examples:,} "
            f"examples for batch_size={batch_size}: use a smaller batch_size"
        )
    num_processes, is_split = transform.processes.size, source.is_split
    sizes = {"batch_size": source.batch_size, "examples": source.num_examples}
    for name, size in sizes.items():
        if num_processes > 1 and is_split and size is not None and size < num_processes:
            raise ValueError(
                f"fit expects {name} >= {num_processes}, one per process, got {size}: use fewer "
                "processes"
            )
    return source


def _is_columns(data: Any, transform: BatchTransform) -> bool:
    """Return True for a tensor or an array, and for a tuple or dictionary of these."""
    match data:
        case Tensor() | np.ndarray():
            return True
        case tuple() | list():
            parts = list(data)
        case dict():
            parts = list(data.values())
        case _:
            return False
    is_columns = bool(parts) and all(isinstance(part, Tensor | np.ndarray) for part in parts)
    if is_columns and isinstance(data, list) and len(parts) > 1 and transform.batch is None:
        raise TypeError(
            f"{transform.owner} expects one tensor of all examples, got a list of {len(parts)} "
            "tensors: if each is an example, pass torch.stack(data); if each holds all examples, "
            "pass x alone, or pick it, batch=lambda b: b[0]"
        )
    return is_columns


def _has_items(data: Any, owner: str) -> bool:
    """Return True if data have integer keys and a length, such as lists of pairs.

    Raises:
        TypeError: If their items cannot be put into a batch.
    """
    is_list_of_items = isinstance(data, list) and data and isinstance(data[0], tuple | dict)
    is_other_kind = isinstance(data, list | tuple | str | bytes | Mapping) or any(
        getattr(data, name, None) is not None for name in ("to_numpy", "toarray")
    )
    is_sized = all(getattr(data, name, None) is not None for name in ("__len__", "__getitem__"))
    if not is_sized or (is_other_kind and not is_list_of_items):
        return False
    is_array = getattr(data, "__array__", None) is not None
    try:
        item = data[0] if len(data) > 0 else None
    except Exception as error:
        if is_array:
            return False
        reason = f", whose item 0 cannot be read ({error!r:.200})"
        raise refusal(data, owner, reason=reason) from error
    try:
        if item is not None:
            collate([item])
    except Exception:
        if is_array:
            return False
        raise
    return True
