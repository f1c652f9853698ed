"""Sources of batches. Tensors stay on the device and are batched by index."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tinyvae.core.data import as_tensor, spread_rows, to_dtype, warn_about_rounding
from tinyvae.core.objective import Batch
from tinyvae.core.random import Stream, epoch_order
from tinyvae.training.processes import ONE_PROCESS, Processes

PickBatch = Callable[[Any], Batch | Tensor]
Array: TypeAlias = "np.ndarray[Any, Any]"
Transform = Callable[[Tensor, torch.Generator], Tensor]

CHUNK_SIZE = 10_000  # examples that are checked at once
CHUNK_ELEMENTS = 1 << 24  # fewer examples if they are large


@dataclass(frozen=True)
class BatchTransform:
    """Conversion of an item of the data to a :class:`~tinyvae.Batch`.

    Attributes:
        device: Device of all tensors.
        dtype: Dtype of floating-point tensors. Other tensors keep their dtype.
        batch: Function that picks x, context and mask.
        transform: Function that maps (x, generator) to x.
        owner: Function that reads the data, for errors.
        processes: Processes that share the data. Each draws other numbers for ``transform``.
    """

    device: torch.device
    dtype: torch.dtype
    batch: PickBatch | None = None
    transform: Transform | None = None
    owner: str = "fit"
    processes: Processes = ONE_PROCESS

    def move(self, item: Any) -> Any:
        """Move tensors and arrays to the device, also inside tuples, dictionaries and batches."""
        return map_arrays(self._move, item)

    def _move(self, part: "Tensor | Array") -> "Tensor | Array":
        if isinstance(part, np.ndarray):
            if part.dtype.kind not in "biuf":
                return part  # such as names, which ``batch`` may leave out
            part = as_tensor(part, self.owner)
        return to_dtype(part.detach(), self.dtype).to(self.device)

    def __call__(self, item: Any, seeds: tuple[int, ...], index: Tensor | None = None) -> Batch:
        """Return the transformed batch of an item, whose tensors are on the device.

        ``seeds`` are seed, epoch and position, from which ``transform`` gets its generator.
        ``index`` holds the positions of the examples in the data, if known.
        """
        picked = item if self.batch is None else self.move(_pick(self.batch, item, self.owner))
        batch = _as_batch(picked, self.owner)
        x = self._transformed(as_tensor(batch.x, self.owner), seeds)
        index = index if batch.index is None else batch.index
        if type(batch) is Batch:  # ``replace`` costs some microseconds
            return Batch(x, batch.context, batch.mask, index, batch.weight)
        return replace(batch, x=x, index=index)

    def _transformed(self, x: Tensor, seeds: tuple[int, ...]) -> Tensor:
        if self.transform is None:
            return x
        generator = torch.Generator(self.device)
        seed, *position = seeds
        generator.manual_seed(self.processes.seed(seed, Stream.TRANSFORM, *position))
        try:
            transformed = self.transform(x, generator)
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise  # from inside the function
            raise TypeError(
                f"{self.owner} expects a transform= that maps (x, generator) to x, got an error: "
                f"{error}"
            ) from error
        if not isinstance(transformed, Tensor):
            raise TypeError(
                f"{self.owner} expects a transform= that returns a tensor, got a "
                f"{type(transformed).__name__}: return x alone"
            )
        result: Tensor = self.move(transformed)
        return result


def map_arrays(function: Callable[[Any], Any], item: Any) -> Any:
    """Apply a function to tensors and arrays, also inside tuples, dictionaries and batches."""
    match item:
        case Tensor() | np.ndarray():
            return function(item)
        case Batch():
            names = [field.name for field in fields(item) if field.init]
            return replace(item, **{n: map_arrays(function, getattr(item, n)) for n in names})
        case list() | tuple():
            parts = [map_arrays(function, part) for part in item]
            return type(item)(*parts) if hasattr(item, "_fields") else tuple(parts)
        case dict():
            mapped = copy(item)  # a subclass may have attributes
            mapped.update({name: map_arrays(function, part) for name, part in item.items()})
            return mapped
    return item


def _pick(batch: PickBatch, item: Any, owner: str) -> Any:
    try:
        return batch(item)
    except KeyError as error:
        if not isinstance(item, dict):
            raise
        raise KeyError(
            f"{owner} expects a batch= that reads what the data yield, {list(item)}, got one that "
            f"asks for {error}: pick one of these names"
        ) from error


def _as_batch(picked: Any, owner: str) -> Batch:
    if isinstance(picked, (tuple, list)) and len(picked) == 1:
        (picked,) = picked
    if isinstance(picked, Tensor):
        return Batch(picked)
    if isinstance(picked, np.ndarray):
        return Batch(as_tensor(picked, owner))
    if isinstance(picked, Batch):
        return picked
    if isinstance(picked, dict):
        raise TypeError(
            "expected data that yield a tensor x, got a dict: pick x by its name, "
            f"batch=lambda b: b[{next(iter(picked), 'x')!r}]"
        )
    got = type(picked).__name__
    if isinstance(picked, (tuple, list)):
        if len(picked) > 2 and all(isinstance(p, Tensor) and p.dim() == 1 for p in picked):
            raise TypeError(
                f"expected data that yield a tensor x, got {len(picked)} numbers of each example: "
                "give items with arrays instead of lists, for Hugging Face "
                "data.with_format('torch'), or use batch=lambda b: torch.stack(b, 1)"
            )
        if len(picked) > 0 and isinstance(picked[0], (tuple, list)):
            raise TypeError(
                "expected data that yield a tensor x, got nested lists: convert each item in the "
                "data set, torch.tensor(values), for Hugging Face data.with_format('torch')"
            )
        names = [type(part).__name__ for part in picked[:4]] + ["..."] * (len(picked) > 4)
        got = f"({', '.join(names)})"
    raise TypeError(
        f"expected data that yield a tensor x, got {got}: pick x, batch=lambda b: b[0], or for a "
        "model with context, batch=lambda b: Batch(x=b[0], context=b[1])"
    )


class DataSource(ABC):
    """Source of batches. Each batch is a function of the seed, the epoch and its position.

    With several processes it yields this one's share of each batch, and skips a batch of which it
    has no example. Sizes and counts are those of all processes.

    Attributes:
        transform: Conversion of the data to batches.
        batch_size: Examples per batch, None if a loader's batches are of the user's own.
        num_examples: Number of examples, None if the data have no length.
        num_batches: Number of batches in an epoch, None if the data have no length.
        smallest_batch: Number of examples in the smallest batch of an epoch, None if it is unknown.
        drop_last: True if an incomplete last batch is left out.
        has_exact_length: True if an epoch has exactly ``num_batches``. Otherwise this is a hint, on
            which nothing may rely.
        in_memory: True if all data can be checked before the first step.
        repeatable: True if an epoch can be opened several times.
        is_split: True if the source takes this process's share of data that all processes see.
            False if the user's loader has only that share.
        workers: Number of processes that read.
        last_epoch: Number of epochs that will be read. Those up to it may be read ahead.
    """

    transform: BatchTransform
    in_memory: bool
    repeatable: bool
    is_split: bool = True
    has_exact_length: bool = True
    drop_last: bool
    workers: int = 0
    last_epoch: int = 0
    batch_size: int | None
    num_examples: int | None
    num_batches: int | None
    smallest_batch: int | None

    @abstractmethod
    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from position ``start``."""

    def first_batch(self, epoch: int) -> Batch:
        """Return the first batch of an epoch without using it up."""
        return next(self.batches(epoch))

    def iter_all(self) -> Iterator[Batch]:
        """Yield all data in large batches if they are in memory, nothing otherwise."""
        return iter(())

    def state_dict(self, batch: int) -> dict[str, Any]:
        """Return the state at position ``batch`` of the current epoch. Empty by default."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - nothing by default
        """Restore a :meth:`state_dict`. It takes effect when the next epoch is opened."""

    def close(self) -> None:  # noqa: B027 - nothing by default
        """Release what the source holds. Nothing is read after this."""


class TensorSource(DataSource):
    """Source of tensors on the device, batched by index.

    Rows of an array that is mapped to a file (``numpy.memmap``) are read for each batch.

    Args:
        data: Tensor or array ``(N, ...)``, or a tuple or dictionary of these of one length.
        transform: Conversion of its rows to batches.
        batch_size: Examples per batch.
        seed: Seed of the source.
        shuffle: If True, every epoch has its own order.
        drop_last: True to leave out the last batch if it is incomplete.

    Raises:
        TypeError: If an array does not hold numbers.
        ValueError: If the tensors differ in length.
    """

    in_memory = True
    repeatable = True
    batch_size: int
    num_examples: int
    num_batches: int

    def __init__(
        self,
        data: Any,
        transform: BatchTransform,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool = False,
    ) -> None:
        self.transform, self.drop_last = transform, drop_last
        self._shapes: list[tuple[int, ...]] = []
        self.data = map_arrays(self._load, data)
        lengths = {shape[0] for shape in self._shapes}
        if len(lengths) != 1:
            raise ValueError(f"expected tensors of one length, got lengths {sorted(lengths)}")
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.num_examples = lengths.pop()
        self.num_batches = count_batches(self.num_examples, batch_size, drop_last)
        self.smallest_batch = smallest_batch(self.num_examples, batch_size, drop_last)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch. The last one may be shorter."""
        order = visiting_order(self.num_examples, self.seed, epoch, self.shuffle)
        order = order[: self.num_batches * self.batch_size].to(self.transform.device)
        for position, batch in enumerate(order.split(self.batch_size)[start:], start):
            index = batch[self.transform.processes.share(len(batch))]
            if len(index):
                yield self._take(index, epoch, position)

    def iter_all(self) -> Iterator[Batch]:
        """Yield all data in large batches."""
        order = torch.arange(self.num_examples, device=self.transform.device)
        largest = max(math.prod(shape[1:]) for shape in self._shapes)
        size = min(CHUNK_SIZE, max(1, CHUNK_ELEMENTS // max(1, largest)))
        for position, index in enumerate(order.split(size)):
            yield self._take(index, 0, position)

    def _load(self, part: "Tensor | Array") -> "Tensor | Array":
        """Return a tensor on the device. An array that is mapped to a file stays there."""
        is_mapped = isinstance(part, np.memmap) and part.ndim > 0
        tensor = as_tensor(spread_rows(part) if is_mapped else part, self.transform.owner)
        warn_about_rounding(tensor, self.transform.dtype)
        self._shapes.append(tuple(part.shape))
        return part if is_mapped else self.transform.move(tensor)

    def _take(self, index: Tensor, epoch: int, position: int) -> Batch:
        rows = map_arrays(partial(self._rows, index), self.data)
        return self.transform(rows, (self.seed, epoch, position), index)

    def _rows(self, index: Tensor, part: "Tensor | Array") -> Tensor:
        if isinstance(part, Tensor):
            return part.index_select(0, index)
        rows: Tensor = self.transform.move(part[index.cpu().numpy()])
        return rows


def count_batches(num_examples: int, batch_size: int, drop_last: bool) -> int:
    """Return the number of consecutive batches."""
    return num_examples // batch_size if drop_last else -(-num_examples // batch_size)


def smallest_batch(num_examples: int | None, batch_size: int, drop_last: bool) -> int | None:
    """Return the number of examples in the smallest of consecutive batches, None if unknown."""
    if drop_last:
        return batch_size
    return None if num_examples is None else num_examples % batch_size or batch_size


def visiting_order(num_examples: int, seed: int, epoch: int, shuffle: bool) -> Tensor:
    """Return the order in which an epoch visits the examples."""
    return epoch_order(num_examples, seed, epoch) if shuffle else torch.arange(num_examples)
