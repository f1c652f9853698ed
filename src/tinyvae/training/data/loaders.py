"""Source that reads a DataLoader in its own order."""

from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice, repeat
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, default_collate

from tinyvae.core.objective import Batch
from tinyvae.core.random import Stream, derive_seed
from tinyvae.core.warnings import warn
from tinyvae.errors import CheckpointError
from tinyvae.training.data.items import BatchKey, SeededItems, collate, seeded
from tinyvae.training.data.sources import BatchTransform, DataSource, smallest_batch
from tinyvae.training.data.workers import END, BatchReader, end_processes, next_batch
from tinyvae.training.processes import ONE_PROCESS
from tinyvae.training.state import Stateful


class LoaderSource(DataSource):
    """Source of a DataLoader with its own order.

    A loader with ``state_dict``, such as torchdata's StatefulDataLoader, resumes inside an epoch.
    Any other loader reads the used batches again and skips them. With ``repeats``, every epoch
    repeats the first one. The loader's length is a hint: an epoch ends with its batches.

    Random numbers of persistent workers would depend on all batches that they have read. The source
    therefore has such processes of its own, with a seed per batch. For a loader that they cannot
    replace, it starts processes in each epoch.

    Several processes that train split each batch of the loader. Those that split the data
    themselves have a DistributedSampler, or an IterableDataset.
    """

    in_memory = False
    repeatable = False
    has_exact_length = False

    def __init__(
        self,
        loader: "DataLoader[Any]",
        transform: BatchTransform,
        *,
        seed: int,
        repeats: bool = False,
    ) -> None:
        self.loader, self.transform, self.seed = loader, transform, seed
        self.workers, self.drop_last = loader.num_workers, loader.drop_last
        self.num_batches = length_of(loader) or None
        self.num_examples = length_of(loader.dataset)
        self.batch_size, self.smallest_batch = loader.batch_size, None
        # The length of a sampler of the user's own may be wrong.
        has_sampler_of_torch = type(loader.sampler).__module__.startswith("torch.utils.data.")
        if self.batch_size is not None and (self.drop_last or has_sampler_of_torch):
            self.smallest_batch = smallest_batch(
                length_of(loader.sampler), self.batch_size, self.drop_last
            )
        sampler = getattr(loader.batch_sampler, "sampler", None)
        owners = (loader, loader.sampler, loader.batch_sampler, sampler)
        generators = (getattr(owner, "generator", None) for owner in owners)
        # Loader and sampler often share one generator: dict.fromkeys keeps each once, in order.
        self._generators = list(dict.fromkeys(g for g in generators if g is not None))
        processes = transform.processes
        # A position in the data of one process is not that of another one.
        self._stateful: Stateful | None = None
        if isinstance(loader, Stateful) and processes.size == 1:
            self._stateful = loader
        self._opened: dict[str, Any] | None = None  # state at the start of the open epoch
        self._start = 0
        self._loaded: dict[str, Any] | None = None  # state from a checkpoint
        self._first = self._generator_states() if repeats else None
        self._is_stream = isinstance(loader.dataset, IterableDataset)
        is_plain = type(loader) is DataLoader and isinstance(loader.batch_sampler, Iterable)
        self._iterator: Iterator[Any] | None = None  # of the loader, in the newest epoch
        self._reader: BatchReader | None = None
        self.is_split = not self._is_stream and not isinstance(loader.sampler, DistributedSampler)
        self._reads_share = processes.size > 1 and self.is_split and is_plain
        if (loader.persistent_workers or self._reads_share) and is_plain and not self._is_stream:
            self._reader = _reader_of(loader, seed)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the loader's batches from position ``start``."""
        if self._first is not None:
            self._set_generators(self._first)
        loaded, self._loaded = self._loaded, None
        self._opened, self._start = loaded or self._state(), start
        is_restored = loaded is not None and self._stateful is not None
        first = start if is_restored else 0
        items = read_in_turn(
            self._iterate(epoch), self.seed, epoch, first, is_stream=self._is_stream
        )
        try:
            items = items if is_restored else skip(start, items)
            for batch in transformed(items, self.transform, self.seed, epoch, start):
                share = self._share(len(batch))
                if share == slice(0, len(batch)):
                    yield batch
                elif share.start < share.stop:
                    yield batch.part(share)
        except GeneratorExit:  # closed early, while after any other error a run resumes this epoch
            self._opened = None
            raise
        self._opened = None

    def first_batch(self, epoch: int) -> Batch:
        """Return the first batch of an epoch. The loader's generators do not advance."""
        states = self._generator_states()
        batch = super().first_batch(epoch)
        self._set_generators(states)
        return batch

    def state_dict(self, batch: int) -> dict[str, Any]:
        """Return the state at the epoch's start, or at ``batch`` if the loader can save it."""
        has_moved = batch > self._start and self._stateful is not None
        return self._state() if has_moved or self._opened is None else self._opened

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore generators and loader. Raise CheckpointError if the state does not fit."""
        try:
            self._set_generators(state["generators"])
            if self._stateful is not None:
                self._stateful.load_state_dict(state["loader"])
        except Exception as error:
            raise CheckpointError(
                f"the DataLoader rejects the state in the checkpoint: {error!r:.200}"
            ) from error
        if self._stateful is not None and self.workers:
            warn(
                "the DataLoader restores its position, but not the generators of its processes: if "
                "its items draw random numbers, the run continues, but not bitwise. Pass the "
                "Dataset itself, fit(dataset, workers=...)"
            )
        self._loaded = state

    def close(self) -> None:
        """End the processes of this source."""
        end_processes(self._iterator)
        if self._reader is not None:
            self._reader.close()

    def _iterate(self, epoch: int) -> Iterator[Any]:
        """Return a new iterator. A sampler may draw when it is opened."""
        sampler = getattr(self.loader.batch_sampler, "sampler", self.loader.sampler)
        for part in (self.loader.dataset, sampler, self.loader.batch_sampler):
            set_epoch(part, epoch)
        with seeded(derive_seed(self.seed, Stream.ORDER, epoch)):
            loader, attributes = self.loader, vars(self.loader)
            if self._reader is not None:
                if not loader.persistent_workers and loader.generator is not None:
                    # The loader would draw the seed of its workers first.
                    torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
                return self._reader.read(self._keys(epoch))
            # The iterator keeps these. A loader refuses to set ``persistent_workers``.
            replaced = {
                "collate_fn": _collate_fn(loader),
                "persistent_workers": False,
                "_IterableDataset_len_called": None,  # torch would warn in each step
            }
            original = {name: attributes[name] for name in replaced}
            attributes |= replaced
            try:
                self._iterator = iter(loader)
            finally:
                attributes |= original
            return self._iterator

    def _keys(self, epoch: int) -> Iterator[BatchKey]:
        batch_sampler: Any = self.loader.batch_sampler
        processes = self.transform.processes if self._reads_share else ONE_PROCESS
        rank = (processes.rank,) if processes.rank else ()  # items of other processes draw others
        for position, indices in enumerate(batch_sampler):
            share = list(indices)[processes.share(len(indices))]
            if share:
                yield (epoch, position, *rank), share

    def _share(self, num_examples: int) -> slice:
        """Return the examples of a batch that was read, of which this process uses its share."""
        reads_all = self.is_split and not self._reads_share
        return (self.transform.processes if reads_all else ONE_PROCESS).share(num_examples)

    def _state(self) -> dict[str, Any]:
        position = None if self._stateful is None else self._stateful.state_dict()
        return {"generators": self._generator_states(), "loader": position}

    def _generator_states(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators]

    def _set_generators(self, states: list[Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)


def set_epoch(part: Any, epoch: int) -> None:
    """Tell the epoch to data or to a sampler whose order depends on it."""
    tell = getattr(part, "set_epoch", None)
    if callable(tell):
        tell(epoch)


def _reader_of(loader: "DataLoader[Any]", seed: int) -> BatchReader:
    return BatchReader(
        SeededItems(loader.dataset, seed, _collate_fn(loader)),
        loader.num_workers,
        initialize=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
    )


def _collate_fn(loader: "DataLoader[Any]") -> "_Collate":
    """Return the loader's ``collate_fn``. :func:`collate` replaces torch's default one."""
    function = loader.collate_fn
    return _Collate(collate if function is default_collate else function)


class _Collate:
    """A ``collate_fn`` whose StopIteration does not end the data."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, items: Any) -> Any:
        try:
            return self.function(items)
        except StopIteration as error:
            raise RuntimeError("collate_fn raised StopIteration") from error


def read_in_turn(
    items: Iterator[Any], seed: int, epoch: int, start: int = 0, *, is_stream: bool
) -> Iterator[Any]:
    """Yield the batches of a DataLoader. Seed the generators before each is read.

    The first one uses the ORDER stream, because a DataLoader draws its shuffle seed then.
    """
    for position in count(start):
        stream = (Stream.ITEMS, epoch, position) if position else (Stream.ORDER, epoch)
        with seeded(derive_seed(seed, *stream)):
            item = next_batch(items, is_stream=is_stream)
        if item is END:
            return
        yield item


def skip(start: int, items: Iterator[Any]) -> Iterator[Any]:
    """Return the items from position ``start``. The ones before it are read, too."""
    if start == 0:
        return items
    warn(
        f"the data cannot restore their position: the {start:,} batches that this epoch has used "
        "are read again and skipped. A Dataset, or a DataLoader with state_dict, avoids that"
    )
    return islice(items, start, None)


def transformed(
    items: Iterator[Any],
    transform: BatchTransform,
    seed: int,
    epoch: int,
    start: int,
    indices: Iterable[Tensor | None] = repeat(None),
) -> Iterator[Batch]:
    """Yield the items as batches; ``indices`` are the positions of their examples in the data."""
    for position, (item, index) in enumerate(zip(items, indices, strict=False), start):
        yield transform(transform.move(item), (seed, epoch, position), index)


def length_of(sized: Any) -> int | None:
    """Return the length of data, None for data without a length."""
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None
