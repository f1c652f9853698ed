"""Feeds that read: a Dataset in the run's own order, or a DataLoader as it is."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from tinyvae.core.objective import Batch
from tinyvae.core.random import Stream, derive_seed, forked_rng, seed_rng
from tinyvae.core.warnings import warn
from tinyvae.errors import CheckpointError, DataWorkerError
from tinyvae.training.data.sources import BatchTransform, DataSource, visiting_order

CPU = torch.device("cpu")
END = object()


class DatasetSource(DataSource):
    """A Dataset, whose items may draw: each batch has its own seed, whoever reads it.

    Args:
        data: The Dataset.
        preparation: What becomes of its batches.
        batch_size: Examples of a batch.
        seed: The run's seed.
        shuffle: Whether every epoch has an order of its own.
        workers: Processes that read ahead.
    """

    in_memory = False

    def __init__(
        self,
        data: "Dataset[Any]",
        preparation: BatchTransform,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        workers: int,
    ) -> None:
        self.data, self.preparation = data, preparation
        self.batch_size, self.seed, self.shuffle, self.workers = batch_size, seed, shuffle, workers
        self.repeatable = not isinstance(data, IterableDataset)
        self.num_examples = _length(data)
        self.num_batches = _length(self._loader(0, 0))

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch; those of a stream before ``start`` are passed over."""
        items: Iterator[Any] = iter(self._loader(epoch, start if self.repeatable else 0))
        if not self.repeatable:
            items = _from(start, _seeded_items(items, self.seed, epoch))
        return _prepared(items, self.preparation, self.seed, epoch, start)

    def probe(self) -> Iterator[Batch]:
        """Yield nothing: to look at all items is to read them all."""
        return iter(())

    def _loader(self, epoch: int, start: int) -> "DataLoader[Any]":
        if isinstance(self.data, IterableDataset):
            return DataLoader(self.data, self.batch_size, num_workers=self.workers)
        size: int = len(self.data)  # type: ignore[arg-type]
        order = visiting_order(size, self.seed, epoch, self.shuffle)[start * self.batch_size :]
        # A generator of its own: a DataLoader draws from the default one at every start.
        return DataLoader(
            SeededItems(self.data, self.seed, epoch),
            self.batch_size,
            sampler=order.tolist(),
            num_workers=self.workers,
            generator=torch.Generator(),
        )


class SeededItems(Dataset[Any]):
    """Items whose random numbers are a function of the seed, the epoch and the batch's first index.

    Args:
        data: Whose items these are.
        seed: The run's seed.
        epoch: The epoch.
    """

    def __init__(self, data: "Dataset[Any]", seed: int, epoch: int) -> None:
        self.data, self.seed, self.epoch = data, seed, epoch

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.data)  # type: ignore[arg-type]

    def __getitems__(self, indices: list[int]) -> Sequence[Any]:
        """Return the items of a batch."""
        read: Callable[[list[int]], Sequence[Any]] | None = getattr(self.data, "__getitems__", None)
        with _seeded(derive_seed(self.seed, Stream.ITEMS, self.epoch, indices[0])):
            return [self.data[i] for i in indices] if read is None else read(indices)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Generators of torch, numpy and Python seeded inside; in the main process restored after."""
    with ExitStack() as stack:
        if get_worker_info() is None:
            stack.enter_context(forked_rng(CPU))
            stack.callback(random.setstate, random.getstate())
            stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
        seed_rng(CPU, seed)
        random.seed(seed)
        np.random.set_state(np.random.RandomState(seed % 2**32).get_state())  # noqa: NPY002
        yield


class LoaderSource(DataSource):
    """A DataLoader.

    To go on amid an epoch it is asked for its ``state_dict``, as torchdata's StatefulDataLoader has
    one; of any other the batches that were used are read again and passed over.

    Args:
        loader: The DataLoader.
        preparation: What becomes of its batches.
        seed: The run's seed.
        repeats: Whether every epoch is to be the first one again.
    """

    in_memory = False
    repeatable = False

    def __init__(
        self,
        loader: "DataLoader[Any]",
        preparation: BatchTransform,
        *,
        seed: int,
        repeats: bool = False,
    ) -> None:
        self.loader, self.preparation, self.seed = loader, preparation, seed
        self.workers = loader.num_workers
        self.num_batches = _length(loader)
        self.num_examples = _length(loader.dataset)
        sampler = getattr(loader.batch_sampler, "sampler", None)
        samplers = (loader, loader.sampler, loader.batch_sampler, sampler)
        generators = (getattr(owner, "generator", None) for owner in samplers)
        self._generators = list(dict.fromkeys(g for g in generators if g is not None))
        self._is_stateful = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
        self._opened: dict[str, Any] | None = None
        self._start = 0
        self._loaded: dict[str, Any] | None = None
        self._first = self._generator_states() if repeats else None

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the loader's batches."""
        if self._first is not None:
            self._set_generators(self._first)
        loaded, self._loaded = self._loaded, None
        self._opened, self._start = loaded or self._state(), start
        is_there = loaded is not None and self._is_stateful
        items = _seeded_items(iter(self.loader), self.seed, epoch, start if is_there else 0)
        try:
            items = items if is_there else _from(start, items)
            yield from _prepared(items, self.preparation, self.seed, epoch, start)
        except GeneratorExit:  # after any other error the epoch is still to be gone on with
            self._opened = None
            raise
        self._opened = None

    def probe(self) -> Iterator[Batch]:
        """Yield nothing: to look at a loader's batches is to use them up."""
        return iter(())

    def peek(self, epoch: int) -> Batch:
        """First batch of an epoch; the loader's generators are put back."""
        states = self._generator_states()
        batch = super().peek(epoch)
        self._set_generators(states)
        return batch

    def state_dict(self, batch: int) -> dict[str, Any]:
        """Where the loader was at the epoch's start; one that can tell, where it is."""
        has_moved = batch > self._start and self._is_stateful
        return self._state() if has_moved or self._opened is None else self._opened

    def _state(self) -> dict[str, Any]:
        own = getattr(self.loader, "state_dict", lambda: None)()
        return {"generators": self._generator_states(), "loader": own}

    def _generator_states(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators]

    def _set_generators(self, states: list[Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put generators and loader where they were."""
        try:
            self._set_generators(state["generators"])
            if self._is_stateful:
                self.loader.load_state_dict(state["loader"])  # type: ignore[attr-defined]
        except Exception as error:
            raise CheckpointError(
                f"the DataLoader cannot take the checkpoint's state: {error!r:.200}"
            ) from error
        self._loaded = state


def _seeded_items(items: Iterator[Any], seed: int, epoch: int, start: int = 0) -> Iterator[Any]:
    """What is read in this process draws by its batch's seed; the first by that of the order."""
    for position in count(start):
        place = (Stream.ITEMS, epoch, position) if position else (Stream.ORDER, epoch)
        with _seeded(derive_seed(seed, *place)):
            item = next(items, END)
        if item is END:
            return
        yield item


def _from(start: int, items: Iterator[Any]) -> Iterator[Any]:
    """The items from position ``start``; those before are read, too."""
    if start == 0:
        return items
    warn(
        f"the data cannot say where they were: {start:,} batches that were used in this epoch are "
        "read again and passed over. A Dataset, or a DataLoader with state_dict, saves that"
    )
    return islice(items, start, None)


def _prepared(
    items: Iterator[Any], preparation: BatchTransform, seed: int, epoch: int, start: int
) -> Iterator[Batch]:
    for position, item in enumerate(items, start):
        yield preparation.prepare(preparation.place(item), (seed, epoch, position))


def reader_death(error: BaseException, workers: int) -> DataWorkerError | None:
    """The death of a process that reads, in plain words, if that is what an error tells."""
    is_of_item = "Caught" in str(error)  # what a Dataset has raised
    is_of_worker = str(error).startswith("DataLoader worker (pid")
    is_of_pipe = isinstance(error, (ConnectionError, EOFError))
    if not workers or is_of_item or not (is_of_worker or is_of_pipe):
        return None
    return DataWorkerError(
        f"{str(error).strip()} A process that reads data has died, for want of memory perhaps: "
        "fewer workers take less. With callbacks=[Checkpoint(folder)] the last step is kept, and "
        'fit(..., resume="auto") goes on after it'
    )


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None
