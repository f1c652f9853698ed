"""Batches of the items of a Dataset. Each has its own random seed, in whatever process reads it."""

import random
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any, NoReturn, TypeAlias

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from tinyvae._devices import CPU
from tinyvae.core.data import array_to_tensor
from tinyvae.core.objective import Batch
from tinyvae.core.random import Stream, derive_seed, forked_rng, seed_rng
from tinyvae.training.data.sources import Array, map_arrays

# Key of a batch: the numbers that give it its seed, and the indices of its items.
BatchKey: TypeAlias = tuple[tuple[int, ...], Sequence[Any]]


class SeededItems(Dataset[Any]):
    """Batches of items. Their random numbers depend on the seed and on the batch's key only."""

    def __init__(
        self, data: "Dataset[Any]", seed: int, collate_fn: Callable[[Sequence[Any]], Any]
    ) -> None:
        self.data, self.seed, self.collate_fn = data, seed, collate_fn

    def __getitem__(self, key: BatchKey) -> Any:
        """Return a batch. A process that reads ahead returns an error instead of raising it."""
        position, indices = key
        try:
            with seeded(derive_seed(self.seed, Stream.ITEMS, *position)):
                return self.collate_fn(self._items(indices))
        except Exception as error:
            if get_worker_info() is None:
                raise
            return CaughtError.of(error)

    def _items(self, indices: Sequence[Any]) -> Sequence[Any]:
        read: Callable[[Any], Sequence[Any]] | None = getattr(self.data, "__getitems__", None)
        return [self.data[i] for i in indices] if read is None else read(indices)


@dataclass(frozen=True)
class CaughtError:
    """Error of the user's code in a process that reads ahead, on its way to the run's process."""

    error: Exception
    report: str  # with the traceback

    @classmethod
    def of(cls, error: Exception) -> "CaughtError":
        """Return the error itself if it can be sent, else one that names its class."""
        text = "".join(traceback.format_exception(error))
        report = f"It was raised in a process that reads data:\n{text}"
        try:  # classes whose constructors have other arguments cannot be sent
            sent = ForkingPickler.loads(ForkingPickler.dumps(error))
            is_same = type(sent) is type(error) and str(sent) == str(error)
        except Exception:
            is_same = False
        return cls(error if is_same else RuntimeError(f"{type(error).__name__}: {error}"), report)

    def reraise(self) -> NoReturn:
        """Raise the error with its report."""
        self.error.add_note(self.report)
        raise self.error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, numpy and Python inside the block. Restore them after it in the main process."""
    with ExitStack() as stack:
        if get_worker_info() is None:  # a worker process draws nothing else
            stack.enter_context(forked_rng(CPU))
            stack.callback(random.setstate, random.getstate())
            stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
        seed_all(seed)
        yield


def seed_all(seed: int) -> None:
    """Seed the default generators of torch, numpy and Python."""
    seed_rng(CPU, seed)
    random.seed(seed)
    # From an integer, numpy would draw the same bits as torch, and so the same coin flips.
    words = np.random.SeedSequence(seed).generate_state(4)
    np.random.set_state(np.random.RandomState(words).get_state())  # noqa: NPY002


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
