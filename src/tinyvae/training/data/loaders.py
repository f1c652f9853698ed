"""Sources that read items: from a Dataset in the run's order, or from a DataLoader in its own."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from itertools import count, islice, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    default_collate,
    get_worker_info,
)

from tinyvae.core.data import array_to_tensor
from tinyvae.core.objective import Batch
from tinyvae.core.random import Stream, derive_seed, forked_rng, seed_rng
from tinyvae.core.warnings import warn
from tinyvae.errors import CheckpointError, DataWorkerError
from tinyvae.training.data.sources import (
    Array,
    BatchTransform,
    DataSource,
    map_arrays,
    smallest_batch,
    visiting_order,
)
from tinyvae.training.state import Stateful

CPU = torch.device("cpu")
END = object()


class DatasetSource(DataSource):
    """Source of a Dataset. Its items may be random: each batch has its own seed in every process.

    ``workers`` is the number of processes that read ahead. See :class:`TensorSource` for the other
    arguments.
    """

    in_memory = False
    batch_size: int

    def __init__(
        self,
        data: "Dataset[Any]",
        transform: BatchTransform,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        workers: int,
    ) -> None:
        self.data, self.transform = data, transform
        self.batch_size, self.seed, self.shuffle, self.workers = batch_size, seed, shuffle, workers
        self.repeatable = not isinstance(data, IterableDataset)
        self.num_examples = _length(data)
        self.num_batches = _length(self._loader(0, 0))
        self.smallest_batch = smallest_batch(self.num_examples, batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches from ``start``. An IterableDataset reads and skips those before it."""
        items: Iterator[Any] = iter(self._loader(epoch, start if self.repeatable else 0))
        if not self.repeatable:
            items = _skip(start, _seeded_items(items, self.seed, epoch))
            return _transformed(items, self.transform, self.seed, epoch, start)
        indices = self._order(epoch, start).to(self.transform.device).split(self.batch_size)
        return _transformed(items, self.transform, self.seed, epoch, start, indices)

    def _order(self, epoch: int, start: int) -> Tensor:
        order = visiting_order(self.num_examples or 0, self.seed, epoch, self.shuffle)
        return order[start * self.batch_size :]

    def _loader(self, epoch: int, start: int) -> "DataLoader[Any]":
        if isinstance(self.data, IterableDataset):
            return DataLoader(
                self.data, self.batch_size, num_workers=self.workers, collate_fn=collate
            )
        # A DataLoader without its own generator draws from the default one at every start.
        return DataLoader(
            SeededItems(self.data, self.seed, epoch),
            self.batch_size,
            sampler=self._order(epoch, start).tolist(),
            num_workers=self.workers,
            collate_fn=collate,
            generator=torch.Generator(),
        )


def collate(items: Sequence[Any]) -> Any:
    """Return a batch of items. torch's own function would drop the mask of a masked array."""
    first = items[0]
    if isinstance(first, Batch):
        names = [f.name for f in fields(first) if f.init and getattr(first, f.name) is not None]
        return replace(first, **{n: collate([getattr(item, n) for item in items]) for n in names})
    try:
        return default_collate([map_arrays(_to_tensor, item) for item in items])
    except TypeError as error:
        raise TypeError(
            f"fit expects items of tensors, arrays and numbers, got {_kinds(first)}: convert them "
            "in the data set, such as an image by numpy.array(image), or pass a DataLoader with a "
            f"collate_fn ({error})"
        ) from error


def _kinds(item: Any) -> str:
    """Return the types of an item's parts."""
    match item:
        case dict():
            parts = ", ".join(f"{name!r}: {type(part).__name__}" for name, part in item.items())
            return f"{{{parts}}}"
        case list() | tuple():
            return f"({', '.join(type(part).__name__ for part in item)})"
    return type(item).__name__


def _to_tensor(part: "Tensor | Array") -> "Tensor | Array":
    if isinstance(part, np.ndarray) and part.dtype.kind in "biuf":
        return array_to_tensor(part, "fit")
    return part


class SeededItems(Dataset[Any]):
    """Items whose random numbers depend on the seed, the epoch and the batch's first index only."""

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
    """Seed torch, numpy and Python inside the block. Restore them after it in the main process."""
    with ExitStack() as stack:
        if get_worker_info() is None:  # a worker process draws nothing else
            stack.enter_context(forked_rng(CPU))
            stack.callback(random.setstate, random.getstate())
            stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
        seed_rng(CPU, seed)
        random.seed(seed)
        # From an integer, numpy would draw the same bits as torch, and so the same coin flips.
        words = np.random.SeedSequence(seed).generate_state(4)
        np.random.set_state(np.random.RandomState(words).get_state())  # noqa: NPY002
        yield


class LoaderSource(DataSource):
    """Source of a DataLoader with its own order.

    A loader with ``state_dict``, such as torchdata's StatefulDataLoader, resumes inside an epoch.
    Any other loader reads the used batches again and skips them. With ``repeats``, every epoch
    repeats the first one.
    """

    in_memory = False
    repeatable = False

    def __init__(
        self,
        loader: "DataLoader[Any]",
        transform: BatchTransform,
        *,
        seed: int,
        repeats: bool = False,
    ) -> None:
        self.loader, self.transform, self.seed = loader, transform, seed
        self.workers = loader.num_workers
        self.num_batches = _length(loader)
        self.num_examples = _length(loader.dataset)
        self.batch_size = self.smallest_batch = loader.batch_size
        if self.batch_size is not None and not loader.drop_last:
            self.smallest_batch = smallest_batch(_length(loader.sampler), self.batch_size)
        sampler = getattr(loader.batch_sampler, "sampler", None)
        owners = (loader, loader.sampler, loader.batch_sampler, sampler)
        generators = (getattr(owner, "generator", None) for owner in owners)
        # Loader and sampler often share one generator: dict.fromkeys keeps each once, in order.
        self._generators = list(dict.fromkeys(g for g in generators if g is not None))
        self._stateful = loader if isinstance(loader, Stateful) else None
        self._opened: dict[str, Any] | None = None  # state at the start of the open epoch
        self._start = 0
        self._loaded: dict[str, Any] | None = None  # state from a checkpoint
        self._first = self._generator_states() if repeats else None

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the loader's batches from position ``start``."""
        if self._first is not None:
            self._set_generators(self._first)
        loaded, self._loaded = self._loaded, None
        self._opened, self._start = loaded or self._state(), start
        is_restored = loaded is not None and self._stateful is not None
        items = _seeded_items(self._iterate(), self.seed, epoch, start if is_restored else 0)
        try:
            items = items if is_restored else _skip(start, items)
            yield from _transformed(items, self.transform, self.seed, epoch, start)
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
        self._loaded = state

    def _iterate(self) -> Iterator[Any]:
        """Return a new iterator. torch's default ``collate_fn`` is replaced by :func:`collate`."""
        loader, original = self.loader, self.loader.collate_fn
        if original is default_collate:
            loader.collate_fn = collate  # the iterator keeps it
        try:
            return iter(loader)
        finally:
            loader.collate_fn = original

    def _state(self) -> dict[str, Any]:
        position = None if self._stateful is None else self._stateful.state_dict()
        return {"generators": self._generator_states(), "loader": position}

    def _generator_states(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators]

    def _set_generators(self, states: list[Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)


def _seeded_items(items: Iterator[Any], seed: int, epoch: int, start: int = 0) -> Iterator[Any]:
    """Seed the generators before each item is read.

    The first item uses the ORDER stream, because a DataLoader draws its shuffle seed then.
    """
    for position in count(start):
        stream = (Stream.ITEMS, epoch, position) if position else (Stream.ORDER, epoch)
        with _seeded(derive_seed(seed, *stream)):
            item = next(items, END)
        if item is END:
            return
        yield item


def _skip(start: int, items: Iterator[Any]) -> Iterator[Any]:
    """Return the items from position ``start``. The ones before it are read, too."""
    if start == 0:
        return items
    warn(
        f"the data cannot restore their position: the {start:,} batches that this epoch has used "
        "are read again and skipped. A Dataset, or a DataLoader with state_dict, avoids that"
    )
    return islice(items, start, None)


def _transformed(
    items: Iterator[Any],
    transform: BatchTransform,
    seed: int,
    epoch: int,
    start: int,
    indices: Iterable[Tensor | None] = repeat(None),
) -> Iterator[Batch]:
    for position, (item, index) in enumerate(zip(items, indices, strict=False), start):
        yield transform(transform.move(item), (seed, epoch, position), index)


def data_worker_error(error: BaseException, workers: int) -> DataWorkerError | None:
    """Return an error that explains the death of a data worker, None for any other error.

    torch reports the death by a RuntimeError, or its queue raises an error of the pipe. Errors that
    the Dataset raises in a worker start with "Caught".
    """
    message = str(error).strip()
    is_broken_pipe = isinstance(error, (ConnectionError, EOFError)) and "Caught" not in message
    if not workers or not (message.startswith("DataLoader worker (pid") or is_broken_pipe):
        return None
    return DataWorkerError(
        f"{message} A process that reads data has died, perhaps because memory ran out: use fewer "
        "workers. With callbacks=[Checkpoint(folder)] the last step is saved, and "
        'fit(..., resume="auto") continues after it'
    )


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None
