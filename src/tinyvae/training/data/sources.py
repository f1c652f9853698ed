"""Sources of batches. Tensors stay on the device and are batched by index."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyvae.core.objective import Batch
from tinyvae.core.random import Stream, derive_seed, epoch_order

PickBatch = Callable[[Any], Batch | Tensor]
Transform = Callable[[Tensor, torch.Generator], Tensor]

CHUNK_SIZE = 10_000  # examples that are checked at once


@dataclass(frozen=True)
class BatchTransform:
    """Conversion of an item of the data to a :class:`~tinyvae.Batch`.

    Attributes:
        device: Device of all tensors.
        dtype: Dtype of floating-point tensors. Other tensors keep their dtype.
        batch: Function that picks x, context and mask.
        transform: Function that maps (x, generator) to x.
    """

    device: torch.device
    dtype: torch.dtype
    batch: PickBatch | None = None
    transform: Transform | None = None

    def move(self, item: Any) -> Any:
        """Move tensors to the device, also inside tuples, lists, dictionaries and batches."""
        match item:
            case Tensor():
                dtype = self.dtype if item.is_floating_point() else item.dtype
                return item.to(self.device, dtype)
            case Batch():
                return Batch(**self.move(vars(item)))
            case list() | tuple():
                parts = [self.move(part) for part in item]
                return type(item)(*parts) if hasattr(item, "_fields") else tuple(parts)
            case dict():
                return {name: self.move(part) for name, part in item.items()}
        return item

    def __call__(self, item: Any, seeds: tuple[int, ...], index: Tensor | None = None) -> Batch:
        """Return the transformed batch of an item, whose tensors are on the device.

        ``seeds`` are seed, epoch and position, from which ``transform`` gets its generator.
        ``index`` holds the positions of the examples in the data, if known.
        """
        batch = _as_batch(item if self.batch is None else self.batch(item))
        x = self._transformed(batch.x, seeds)
        return Batch(x, batch.context, batch.mask, batch.index if index is None else index)

    def _transformed(self, x: Tensor, seeds: tuple[int, ...]) -> Tensor:
        if self.transform is None:
            return x
        generator = torch.Generator(self.device)
        seed, *position = seeds
        generator.manual_seed(derive_seed(seed, Stream.TRANSFORM, *position))
        transformed = self.transform(x, generator)
        if not isinstance(transformed, Tensor):
            raise TypeError(
                f"fit expects a transform= that returns a tensor, got a "
                f"{type(transformed).__name__}: return x alone"
            )
        result: Tensor = self.move(transformed)
        return result


def _as_batch(picked: Any) -> Batch:
    if isinstance(picked, (tuple, list)) and len(picked) == 1:
        (picked,) = picked
    if isinstance(picked, Tensor):
        return Batch(picked)
    if isinstance(picked, Batch):
        return picked
    if isinstance(picked, dict):
        raise TypeError(
            "expected data that yield a tensor x, got a dict: pick x by its name, "
            f"batch=lambda b: b[{next(iter(picked), 'x')!r}]"
        )
    got = type(picked).__name__
    if isinstance(picked, (tuple, list)):
        names = [type(part).__name__ for part in picked[:4]] + ["..."] * (len(picked) > 4)
        got = f"({', '.join(names)})"
    raise TypeError(
        f"expected data that yield a tensor x, got {got}: pick x, batch=lambda b: b[0], or for a "
        "model with context, batch=lambda b: Batch(x=b[0], context=b[1])"
    )


class DataSource(ABC):
    """Source of batches. Each batch is a function of the seed, the epoch and its position.

    Attributes:
        num_examples: Number of examples, None if the data have no length.
        num_batches: Number of batches in an epoch, None if the data have no length.
        in_memory: True if all data can be checked before the first step.
        repeatable: True if an epoch can be opened several times.
        workers: Number of processes that read.
    """

    in_memory: bool
    repeatable: bool
    workers: int = 0
    num_examples: int | None
    num_batches: int | None

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


class TensorSource(DataSource):
    """Source of a tensor or a tuple of tensors on the device, batched by index.

    Args:
        data: Tensors ``(N, ...)`` of one length.
        transform: Conversion of its rows to batches.
        batch_size: Examples per batch.
        seed: Seed of the run.
        shuffle: If True, every epoch has its own order.

    Raises:
        ValueError: If the tensors differ in length.
    """

    in_memory = True
    repeatable = True

    def __init__(
        self,
        data: Tensor | tuple[Tensor, ...],
        transform: BatchTransform,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
    ) -> None:
        self.data: Tensor | tuple[Tensor, ...] = transform.move(data)
        tensors = data if isinstance(data, tuple) else (data,)
        lengths = {len(tensor) for tensor in tensors}
        if len(lengths) != 1:
            raise ValueError(f"expected tensors of one length, got lengths {sorted(lengths)}")
        self.transform = transform
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.num_examples = lengths.pop()
        self.num_batches = -(-self.num_examples // batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch. The last one may be shorter."""
        order = visiting_order(self.num_examples or 0, self.seed, epoch, self.shuffle)
        yield from self._take(order.to(self.transform.device), self.batch_size, epoch, start)

    def iter_all(self) -> Iterator[Batch]:
        """Yield all data in large batches."""
        order = torch.arange(self.num_examples or 0, device=self.transform.device)
        yield from self._take(order, CHUNK_SIZE, epoch=0)

    def _take(self, order: Tensor, batch_size: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        for position, index in enumerate(order.split(batch_size)[start:], start):
            yield self.transform(self._rows(index), (self.seed, epoch, position), index)

    def _rows(self, index: Tensor) -> Tensor | tuple[Tensor, ...]:
        if isinstance(self.data, Tensor):
            return self.data.index_select(0, index)
        return tuple(tensor.index_select(0, index) for tensor in self.data)


def visiting_order(num_examples: int, seed: int, epoch: int, shuffle: bool) -> Tensor:
    """Return the order in which an epoch visits the examples."""
    return epoch_order(num_examples, seed, epoch) if shuffle else torch.arange(num_examples)
