"""Feeds: batches of an epoch. Tensors stay resident on the device, and are batched by index."""

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

PROBE_SIZE = 10_000


@dataclass(frozen=True)
class BatchTransform:
    """The way from what the data yield to a :class:`~tinyvae.Batch`.

    Attributes:
        device: Where tensors go.
        dtype: What floating-point tensors become; others keep their dtype.
        batch: Picks x, context and mask.
        transform: Maps (x, generator) to x.
    """

    device: torch.device
    dtype: torch.dtype
    batch: PickBatch | None = None
    transform: Transform | None = None

    def place(self, item: Any) -> Any:
        """Move tensors, in tuples, lists, dictionaries and batches too."""
        match item:
            case Tensor():
                dtype = self.dtype if item.is_floating_point() else item.dtype
                return item.to(self.device, dtype)
            case Batch():
                return Batch(**self.place(vars(item)))
            case list() | tuple():
                parts = [self.place(part) for part in item]
                return type(item)(*parts) if hasattr(item, "_fields") else tuple(parts)
            case dict():
                return {name: self.place(part) for name, part in item.items()}
        return item

    def prepare(self, item: Any, seeds: tuple[int, ...], index: Tensor | None = None) -> Batch:
        """Pick and transform one placed batch; ``seeds`` are of its transform."""
        batch = _as_batch(item if self.batch is None else self.batch(item))
        x = self._transformed(batch.x, seeds)
        return Batch(x, batch.context, batch.mask, batch.index if index is None else index)

    def _transformed(self, x: Tensor, seeds: tuple[int, ...]) -> Tensor:
        if self.transform is None:
            return x
        generator = torch.Generator(self.device)
        seed, *place = seeds
        generator.manual_seed(derive_seed(seed, Stream.TRANSFORM, *place))
        transformed = self.transform(x, generator)
        if not isinstance(transformed, Tensor):
            raise TypeError(f"transform= must return a tensor, got a {type(transformed).__name__}")
        result: Tensor = self.place(transformed)
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
            f"the data yield a dict where a tensor x is expected: pick it by its name, "
            f"batch=lambda b: b[{next(iter(picked), 'x')!r}]"
        )
    got = type(picked).__name__
    if isinstance(picked, (tuple, list)):
        names = [type(part).__name__ for part in picked[:4]] + ["..."] * (len(picked) > 4)
        got = f"({', '.join(names)})"
    raise TypeError(
        f"the data yield {got} where a tensor x is expected: pick it, batch=lambda b: b[0], or "
        "for a model with context, batch=lambda b: Batch(x=b[0], context=b[1])"
    )


class DataSource(ABC):
    """Batches of an epoch, each a function of the seed, the epoch and its position.

    Attributes:
        num_examples: Number of examples, None where the data do not tell.
        num_batches: Number of batches in an epoch, None where the data do not tell.
        in_memory: Whether all data can be looked at before the first step.
        repeatable: Whether to open an epoch uses nothing up.
        workers: Processes that read.
    """

    in_memory: bool
    repeatable: bool
    workers: int = 0
    num_examples: int | None
    num_batches: int | None

    @abstractmethod
    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from position ``start``."""

    def peek(self, epoch: int) -> Batch:
        """First batch of an epoch, to be looked at and not used up."""
        return next(self.batches(epoch))

    def state_dict(self, batch: int) -> dict[str, Any]:
        """What has to be known, besides the position ``batch``, to go on; nothing by default."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - nothing by default
        """Take over :meth:`state_dict`, to be heeded when the next epoch is opened."""

    @abstractmethod
    def probe(self) -> Iterator[Batch]:
        """Yield all data in large batches where they are at hand, to be checked; else nothing."""


class TensorSource(DataSource):
    """A tensor or a tuple of tensors on the device, batched by index."""

    in_memory = True
    repeatable = True

    def __init__(
        self,
        data: Tensor | tuple[Tensor, ...],
        preparation: BatchTransform,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
    ) -> None:
        self.data: Tensor | tuple[Tensor, ...] = preparation.place(data)
        tensors = data if isinstance(data, tuple) else (data,)
        lengths = {len(tensor) for tensor in tensors}
        if len(lengths) != 1:
            raise ValueError(f"expected tensors of one length, got lengths {sorted(lengths)}")
        self.preparation = preparation
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.num_examples = lengths.pop()
        self.num_batches = -(-self.num_examples // batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, the last one short where sizes do not divide."""
        order = visiting_order(self.num_examples or 0, self.seed, epoch, self.shuffle)
        yield from self._take(order.to(self.preparation.device), self.batch_size, epoch, start)

    def probe(self) -> Iterator[Batch]:
        """Yield all data in large batches."""
        order = torch.arange(self.num_examples or 0, device=self.preparation.device)
        yield from self._take(order, PROBE_SIZE, epoch=0)

    def _take(self, order: Tensor, batch_size: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        for position, index in enumerate(order.split(batch_size)[start:], start):
            seeds = (self.seed, epoch, position)
            yield self.preparation.prepare(self._rows(index), seeds, index)

    def _rows(self, index: Tensor) -> Tensor | tuple[Tensor, ...]:
        if isinstance(self.data, Tensor):
            return self.data.index_select(0, index)
        return tuple(tensor.index_select(0, index) for tensor in self.data)


def visiting_order(num_examples: int, seed: int, epoch: int, shuffle: bool) -> Tensor:
    """Order in which an epoch visits the examples."""
    return epoch_order(num_examples, seed, epoch) if shuffle else torch.arange(num_examples)
