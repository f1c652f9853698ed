"""Whatever holds data becomes a feed.

Tensors and arrays stay resident on the device; a Dataset is read through a DataLoader in the same
order; a DataLoader is taken as it is.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tinyvae.training.data.loaders import DatasetSource, LoaderSource
from tinyvae.training.data.sources import BatchTransform, DataSource, TensorSource


def open_data(
    data: Any,
    preparation: BatchTransform,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool,
    workers: int = 0,
) -> DataSource:
    """Make a feed of a tensor, an array, a tuple of these, a Dataset or a DataLoader.

    Raises:
        TypeError: If ``data`` is something else.
        ValueError: If there are no data.
    """
    options = {"batch_size": batch_size, "seed": seed, "shuffle": shuffle}
    feed = _dispatch(data, preparation, options, workers)
    if feed.num_examples == 0 or feed.num_batches == 0:
        raise ValueError(
            "the data set is empty: expected at least one example (a whole batch, where drop_last "
            "is set)"
        )
    return feed


def _dispatch(
    data: Any, preparation: BatchTransform, options: dict[str, Any], workers: int
) -> DataSource:
    match data:
        case Tensor() | np.ndarray():
            return TensorSource(_tensor(data), preparation, **options)
        case tuple() | list() if data and all(isinstance(p, Tensor | np.ndarray) for p in data):
            return TensorSource(tuple(map(_tensor, data)), preparation, **options)
        case TensorDataset():
            return TensorSource(data.tensors, preparation, **options)
        case DataLoader():
            return LoaderSource(
                data, preparation, seed=options["seed"], repeats=not options["shuffle"]
            )
        case Dataset():
            return DatasetSource(data, preparation, workers=workers, **options)
    raise TypeError(
        "expected data as a tensor, a numpy array, a tuple of these, a Dataset or a DataLoader, "
        f"got a {type(data).__name__}: pick its tensor, such as data.images"
    )


def _tensor(data: Tensor | np.ndarray) -> Tensor:
    if isinstance(data, Tensor):
        tensor = data.detach()
    else:
        if data.dtype.kind not in "fiub":
            raise TypeError(f"expected an array of numbers, got dtype {data.dtype}")
        # Torch reads neither negative strides nor, without a warning, read-only memory.
        tensor = torch.from_numpy(np.require(data, requirements=["C", "W"]))
    if tensor.dim() == 0:
        raise ValueError("expected data of shape (N, *E), got a scalar")
    return tensor
