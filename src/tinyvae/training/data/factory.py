"""Choice of the source for the data that the user passes to ``fit``."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tinyvae.training.data.loaders import DatasetSource, LoaderSource
from tinyvae.training.data.sources import BatchTransform, DataSource, TensorSource


def open_data(
    data: Any,
    transform: BatchTransform,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool,
    workers: int = 0,
) -> DataSource:
    """Return a source for a tensor, an array, a tuple of these, a Dataset or a DataLoader.

    Tensors and arrays stay on the device. A Dataset is read in the order of a tensor of the same
    length. A DataLoader keeps its own order.

    Raises:
        TypeError: If ``data`` is something else.
        ValueError: If the data are empty.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "shuffle": shuffle}
    source: DataSource
    match data:
        case Tensor() | np.ndarray():
            source = TensorSource(_tensor(data), transform, **options)
        case tuple() | list() if data and all(isinstance(p, Tensor | np.ndarray) for p in data):
            source = TensorSource(tuple(map(_tensor, data)), transform, **options)
        case TensorDataset():
            source = TensorSource(data.tensors, transform, **options)
        case DataLoader():
            source = LoaderSource(data, transform, seed=seed, repeats=not shuffle)
        case Dataset():
            source = DatasetSource(data, transform, workers=workers, **options)
        case _:
            raise TypeError(
                "expected data as a tensor, a numpy array, a tuple of these, a Dataset or a "
                f"DataLoader, got a {type(data).__name__}: pass its tensor, such as data.images"
            )
    if source.num_examples == 0 or source.num_batches == 0:
        raise ValueError(
            "the data set is empty: expected at least one example (one full batch if drop_last is "
            "set)"
        )
    return source


def _tensor(data: Tensor | np.ndarray) -> Tensor:
    if isinstance(data, Tensor):
        tensor = data.detach()
    else:
        if data.dtype.kind not in "fiub":
            raise TypeError(f"expected an array of numbers, got dtype {data.dtype}")
        # torch rejects negative strides and warns about read-only memory.
        tensor = torch.from_numpy(np.require(data, requirements=["C", "W"]))
    if tensor.dim() == 0:
        raise ValueError("expected data of shape (N, *E), got a scalar")
    return tensor
