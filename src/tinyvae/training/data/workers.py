"""Processes that read batches ahead, and the errors that they report."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from traceback import walk_tb
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tinyvae.errors import DataWorkerError
from tinyvae.training.data.items import BatchKey, CaughtError, SeededItems
from tinyvae.training.signals import defer_sigchld

END = object()
MAX_OBJECTS = 10_000  # in a Dataset that are watched
MAX_ITEMS = 100  # longer lists are watched by their length


class BatchReader:
    """Reads batches of items, in this process or ahead in ``workers`` processes.

    The processes start at the first call of :meth:`read` and live until :meth:`close`. They have a
    copy of the Dataset. If it has changed since, in an attribute, in an object or a list that it
    holds, or in a tensor of these, they start again.

    Args:
        items: The batches.
        workers: Number of processes.
        initialize: ``worker_init_fn`` of a DataLoader.
        options: Other options of a DataLoader.
    """

    def __init__(
        self,
        items: SeededItems,
        workers: int,
        *,
        initialize: Callable[[int], None] | None = None,
        **options: Any,
    ) -> None:
        self.items, self.workers = items, workers
        self.options = {"worker_init_fn": _Initialize(initialize), **options}
        self._keys = _Keys()
        self._loader: DataLoader[Any] | None = None
        self._attributes: list[Any] = []  # of the Dataset when the processes started
        self._starter = os.getpid()  # process that started them

    def read(self, keys: Iterable[BatchKey]) -> Iterator[Any]:
        """Yield the batches of some keys. Processes read ahead from now on."""
        if not self.workers:
            return (self.items[key] for key in keys)
        if self._loader is None or self.has_changed():
            self.close()
            self._attributes, self._starter = _attributes(self.items.data), os.getpid()
            self._loader = DataLoader(
                self.items,
                batch_size=None,
                sampler=self._keys,
                num_workers=self.workers,
                collate_fn=_unchanged,
                persistent_workers=True,
                # A DataLoader without its own generator draws from the default one at its start.
                generator=torch.Generator(),
                **self.options,
            )
        self._keys.keys = keys
        return _received(iter(self._loader))

    def has_changed(self) -> bool:
        """Return True if the Dataset is not the one that the processes have."""
        before, now = self._attributes, _attributes(self.items.data)
        return len(before) != len(now) or any(
            a is not b and not (isinstance(a, int) and a == b)
            for a, b in zip(before, now, strict=True)
        )

    def close(self) -> None:
        """End the processes, unless this is a forked child of the process that started them."""
        if self._loader is None or self._starter != os.getpid():
            return
        iterator, self._loader = self._loader._iterator, None
        end_processes(iterator)


def end_processes(iterator: Any) -> None:
    """End the processes of a DataLoader's iterator, if there are any that this process started.

    A traceback may still hold the iterator, which would keep them alive. The garbage collector
    would wait for seconds.
    """
    if not isinstance(iterator, _MultiProcessingDataLoaderIter):
        return
    processes: list[Any] = iterator._workers
    if all(process._parent_pid == os.getpid() for process in processes):
        with suppress(RuntimeError), defer_sigchld():  # torch may report the death of one
            iterator._shutdown_workers()


class _Keys:
    """Sampler of the keys that are read at the moment."""

    keys: Iterable[BatchKey] = ()

    def __iter__(self) -> Iterator[BatchKey]:
        return iter(self.keys)


class _Initialize:
    """``worker_init_fn`` that shows the user's Dataset in ``get_worker_info``."""

    def __init__(self, function: Callable[[int], None] | None) -> None:
        self.function = function

    def __call__(self, worker: int) -> None:
        info: Any = get_worker_info()
        object.__setattr__(info, "dataset", info.dataset.data)  # torch's class refuses a change
        if self.function is not None:
            self.function(worker)


def _unchanged(batch: Any) -> Any:
    return batch


def _received(batches: Iterator[Any]) -> Iterator[Any]:
    while (batch := next_batch(batches)) is not END:
        if isinstance(batch, CaughtError):
            batch.reraise()
        yield batch


def _attributes(data: Any) -> list[Any]:
    """Return the attributes of a Dataset, and the contents of the objects that it holds."""
    values, parts, known = [], [data], {id(data)}
    for part in parts:  # grows
        contents: list[Any] = []
        with suppress(Exception):  # an object that cannot be inspected has none
            contents = _contents(part)
        values += contents
        new = {id(value): value for value in contents if id(value) not in known}
        if len(parts) + len(new) <= MAX_OBJECTS:
            known.update(new)
            parts += new.values()
    return values


def _contents(part: Any) -> list[Any]:
    match part:
        case list() | tuple() | dict() | set() if len(part) > MAX_ITEMS:
            return [len(part)]
        case list() | tuple() | set():
            return [*part]
        case dict():
            return [*part, *part.values()]
        case Tensor():
            return [part._version]
        case type() | ModuleType() | FunctionType():
            return []
    return [*getattr(part, "__dict__", {}).values()]


# Errors -------------------------------------------------------------------------------------------


def next_batch(batches: Iterator[Any], *, is_stream: bool = False) -> Any:
    """Return the next batch of a DataLoader, or END.

    Errors of the user's code keep their class, message and traceback. ``is_stream`` is True for the
    items of an IterableDataset, whose iterator raises StopIteration at its end.

    Raises:
        StopIteration: If an item or a ``collate_fn`` raised it, which is not the end.
        DataWorkerError: If the connection to a process that reads data is broken.
    """
    try:
        return next(batches)
    except Exception as error:
        caught = _caught_by_torch(error)
        modules = [f.f_globals.get("__name__", "") for f, _ in walk_tb(error.__traceback__)]
        if isinstance(error, StopIteration):
            is_of_item = not is_stream and "torch.utils.data._utils.fetch" in modules
            if caught is None and not is_of_item:
                return END
        elif caught is not None and caught not in str(error):
            # torch calls the constructor of the error's class, which may drop or refuse its text.
            raise RuntimeError(caught) from error
        elif isinstance(error, (ConnectionError, EOFError)) and any(
            module.startswith("multiprocessing.") for module in modules
        ):
            raise _explained(error) from error
        raise


def _caught_by_torch(error: Exception) -> str | None:
    """Return torch's report of an error in a process that reads data, None for other errors."""
    for frame, _ in walk_tb(error.__traceback__):
        wrapper = frame.f_locals.get("self")
        if isinstance(wrapper, ExceptionWrapper):
            kind = getattr(wrapper.exc_type, "__name__", "an error")
            return f"Caught {kind} {wrapper.where}.\nOriginal {wrapper.exc_msg}"
    return None


def data_worker_error(error: BaseException) -> DataWorkerError | None:
    """Return an error that explains the death of a data worker, None for any other error."""
    if isinstance(error, DataWorkerError):
        return error
    is_death = isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")
    return _explained(error) if is_death else None


def _explained(error: BaseException) -> DataWorkerError:
    return DataWorkerError(
        f"{str(error).strip()} A process that reads data has died, perhaps because memory ran out: "
        "use fewer workers. With callbacks=[Checkpoint(folder)] the last step is saved, and "
        'fit(..., resume="auto") continues after it'
    )
