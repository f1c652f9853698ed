"""Source that reads a stream (IterableDataset), and the split of a stream over processes."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch.utils.data._utils.worker as torch_worker
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tinyvae.core.objective import Batch
from tinyvae.core.random import Stream, derive_seed
from tinyvae.training.data.items import collate, seed_all, seeded
from tinyvae.training.data.loaders import length_of, read_in_turn, set_epoch, skip, transformed
from tinyvae.training.data.sources import BatchTransform, DataSource, count_batches
from tinyvae.training.data.workers import end_processes
from tinyvae.training.processes import Processes


class StreamSource(DataSource):
    """Source of an IterableDataset, which has an order of its own.

    Its length is a hint: an epoch ends with the stream. Processes start again in each epoch, since
    a stream changes while it is read. A stream with ``set_epoch`` is told the epoch. Each of
    several processes that train reads the whole stream and keeps its share of each batch.
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
        set_epoch(self.data, epoch)
        with seeded(derive_seed(self.seed, Stream.ORDER, epoch)):  # a stream may draw when opened
            self._iterator = iter(self._loader())
        items = read_in_turn(self._iterator, self.seed, epoch, is_stream=True)
        return transformed(skip(start, items), self.transform, self.seed, epoch, start)

    def close(self) -> None:
        """End the processes of this source."""
        end_processes(self._iterator)

    def _loader(self) -> "DataLoader[Any]":
        processes = self.transform.processes
        return DataLoader(
            SplitStream(self.data, self.batch_size, processes),
            len(range(self.batch_size)[processes.share(self.batch_size)]),
            num_workers=self.workers,
            collate_fn=collate,
            drop_last=self.drop_last,
        )


class SplitStream(IterableDataset[Any]):
    """Stream of which each process that reads yields its share, so that no item comes twice.

    Every process has a copy of the stream. Those that train keep their shares of each batch. Those
    that read for one of these split this share: a stream that asks ``get_worker_info`` for their
    number splits itself, and then draws random numbers of its own. Any other one draws the same
    ones in each of n processes, and process i yields the items i, i + n, i + 2n, ...

    Args:
        data: The stream.
        size: Items of a batch of all processes that train.
        processes: The processes that train.
    """

    def __init__(self, data: "IterableDataset[Any]", size: int, processes: Processes) -> None:
        self.data, self.size, self.processes = data, size, processes

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        if info is None:
            yield from self._share()
            return
        watched = _WatchedInfo(info, self.data)
        torch_worker._worker_info = watched  # type: ignore[assignment]
        seed_all(info.seed - info.id)  # torch adds the number of the process
        for position, item in enumerate(self._share()):
            if watched.was_asked or position % info.num_workers == info.id:
                yield item

    def _share(self) -> Iterator[Any]:
        items = iter(self.data)
        while batch := list(islice(items, self.size)):
            yield from batch[self.processes.share(len(batch))]


class _WatchedInfo:
    """Information about a process that reads, which notes if the number of processes is read."""

    def __init__(self, info: Any, data: Any) -> None:
        self._info, self.dataset, self.was_asked = info, data, False

    def __getattr__(self, name: str) -> Any:
        if name == "num_workers" and not self.was_asked:
            self.was_asked = True
            seed_all(self._info.seed)
        return getattr(self._info, name)
