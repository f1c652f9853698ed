"""Source that reads a Dataset in the run's order."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from tinyvae.core.objective import Batch
from tinyvae.training.data.items import BatchKey, SeededItems, collate
from tinyvae.training.data.loaders import transformed
from tinyvae.training.data.sources import (
    BatchTransform,
    DataSource,
    count_batches,
    smallest_batch,
    visiting_order,
)
from tinyvae.training.data.workers import BatchReader


class DatasetSource(DataSource):
    """Source of a Dataset. Its items may be random: each batch has its own seed in every process.

    ``workers`` is the number of processes that read ahead, also into the next epoch. See
    :class:`TensorSource` for the other arguments.
    """

    in_memory = False
    repeatable = True
    batch_size: int
    num_examples: int
    num_batches: int

    def __init__(
        self,
        data: "Dataset[Any]",
        transform: BatchTransform,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        workers: int,
        drop_last: bool,
    ) -> None:
        self.data, self.transform, self.workers = data, transform, workers
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.num_examples, self.drop_last = len(data), drop_last  # type: ignore[arg-type]
        self.num_batches = count_batches(self.num_examples, batch_size, drop_last)
        self.smallest_batch = smallest_batch(self.num_examples, batch_size, drop_last)
        self._items = SeededItems(data, seed, collate)
        self._reader = BatchReader(self._items, workers)
        self._ahead: tuple[int, Iterator[Any]] | None = None  # the next epoch

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches from ``start``."""
        (ahead, items), self._ahead = self._ahead or (None, iter(())), None
        if ahead != epoch or start or self._reader.has_changed():
            items = self._open(epoch, start)
        indices = self._indices(epoch, start)
        return transformed(
            self._with_next(items, epoch), self.transform, self.seed, epoch, start, indices
        )

    def first_batch(self, epoch: int) -> Batch:
        """Return the first batch of an epoch, read in this process."""
        items = iter([self._items[next(self._keys(epoch, 0))]])
        indices = self._indices(epoch, 0)
        return next(transformed(items, self.transform, self.seed, epoch, 0, indices))

    def close(self) -> None:
        """End the processes that read ahead."""
        self._ahead = None
        self._reader.close()

    def _open(self, epoch: int, start: int) -> Iterator[Any]:
        return self._reader.read(self._keys(epoch, start))

    def _with_next(self, items: Iterator[Any], epoch: int) -> Iterator[Any]:
        """Yield the items of an epoch. At its end let the processes read the next one."""
        yield from items
        if self.workers and epoch + 1 < self.last_epoch:
            self._ahead = (epoch + 1, self._open(epoch + 1, 0))

    def _keys(self, epoch: int, start: int) -> Iterator[BatchKey]:
        for index in self._shares(self._order(epoch, start)):
            positions = index.tolist()
            yield (epoch, positions[0]), positions

    def _indices(self, epoch: int, start: int) -> Iterator[Tensor]:
        return self._shares(self._order(epoch, start).to(self.transform.device))

    def _shares(self, order: Tensor) -> Iterator[Tensor]:
        for index in order.split(self.batch_size):
            share = index[self.transform.processes.share(len(index))]
            if len(share):
                yield share

    def _order(self, epoch: int, start: int) -> Tensor:
        order = visiting_order(self.num_examples, self.seed, epoch, self.shuffle)
        return order[start * self.batch_size : self.num_batches * self.batch_size]
