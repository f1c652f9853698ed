"""Source that reads a Dataset in the run's order."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tinyvae.core.objective import Batch
from tinyvae.core.random import Stream, derive_seed
from tinyvae.training.data.items import BatchKey, SeededItems, collate, seeded
from tinyvae.training.data.loaders import length_of, read_in_turn, skip, transformed
from tinyvae.training.data.sources import (
    BatchTransform,
    DataSource,
    count_batches,
    smallest_batch,
    visiting_order,
)
from tinyvae.training.data.workers import BatchReader, end_processes
from tinyvae.training.processes import Processes


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


class StreamSource(DataSource):
    """Source of an IterableDataset, which has an order of its own.

    Its length is a hint: an epoch ends with the stream. Processes start again in each epoch, since
    a stream changes while it is read. Each of several processes that train reads the whole stream
    and keeps its share of each batch.
    """

    in_memory = False
    repeatable = False
    has_exact_length = False
    batch_size: int

    def __init__(
        self,
        data: "IterableDataset[Any]",
        transform: BatchTransform,
        *,
        batch_size: int,
        seed: int,
        workers: int,
        drop_last: bool,
    ) -> None:
        self.transform, self.seed, self.workers = transform, seed, workers
        self.data, self.batch_size, self.drop_last = data, batch_size, drop_last
        self.num_examples = length_of(data)
        self.num_batches = count_batches(self.num_examples or 0, batch_size, drop_last) or None
        self.smallest_batch = batch_size if drop_last else None
        self._iterator: Iterator[Any] | None = None  # of the newest epoch

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches from ``start``. Those before it are read and skipped."""
        with seeded(derive_seed(self.seed, Stream.ORDER, epoch)):  # a stream may draw when opened
            self._iterator = iter(self._loader())
        items = read_in_turn(self._iterator, self.seed, epoch, is_stream=True)
        return transformed(skip(start, items), self.transform, self.seed, epoch, start)

    def close(self) -> None:
        """End the processes of this source."""
        end_processes(self._iterator)

    def _loader(self) -> "DataLoader[Any]":
        data, size, processes = self.data, self.batch_size, self.transform.processes
        if processes.size > 1:
            data, size = _Share(data, size, processes), len(range(size)[processes.share(size)])
        return DataLoader(
            data,
            size,
            num_workers=self.workers,
            collate_fn=collate,
            drop_last=self.drop_last,
        )


class _Share(IterableDataset[Any]):
    """Share of one process of each batch of a stream. All processes draw the same numbers."""

    def __init__(self, data: "IterableDataset[Any]", size: int, processes: Processes) -> None:
        self.data, self.size, self.processes = data, size, processes

    def __iter__(self) -> Iterator[Any]:
        items = iter(self.data)
        while batch := list(islice(items, self.size)):
            yield from batch[self.processes.share(len(batch))]
