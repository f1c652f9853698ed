"""Feeds: batches of an epoch, out of whatever holds the data.

Tensors and arrays stay resident on the device and are batched by index; a map-style Dataset is read
through a DataLoader in the same order; a DataLoader is taken as it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from tinyvae.objective import Batch
from tinyvae.training.seeds import Stream, derive_seed, epoch_order

__all__ = ["Feed", "PickBatch", "Preparation", "Transform", "make_feed"]

PickBatch = Callable[[Any], Batch | Tensor]
Transform = Callable[[Tensor, torch.Generator], Tensor]

PROBE_SIZE = 10_000


@dataclass(frozen=True)
class Preparation:
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

    def prepare(self, item: Any, generator: torch.Generator, index: Tensor | None = None) -> Batch:
        """Pick and transform one placed batch."""
        batch = _as_batch(item if self.batch is None else self.batch(item))
        x = self._transformed(batch.x, generator)
        return Batch(x, batch.context, batch.mask, batch.index if index is None else index)

    def _transformed(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if self.transform is None:
            return x
        transformed = self.transform(x, generator)
        if not isinstance(transformed, Tensor):
            raise TypeError(f"transform= must return a tensor, got a {type(transformed).__name__}")
        result: Tensor = self.place(transformed)
        return result

    def generator(self, seed: int, epoch: int) -> torch.Generator:
        """Generator of an epoch's transforms."""
        generator = torch.Generator(self.device)
        return generator.manual_seed(derive_seed(seed, Stream.TRANSFORM, epoch))


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


class Feed(ABC):
    """Batches of an epoch.

    Attributes:
        num_examples: Number of examples, None where the data do not tell.
        num_batches: Number of batches in an epoch, None where the data do not tell.
        at_hand: Whether all data can be looked at before the first step.
    """

    at_hand: bool
    num_examples: int | None
    num_batches: int | None

    @abstractmethod
    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch."""

    @abstractmethod
    def probe(self) -> Iterator[Batch]:
        """Yield all data in large batches where they are at hand, to be checked; else nothing."""


class ResidentFeed(Feed):
    """A tensor or a tuple of tensors on the device, batched by index."""

    at_hand = True

    def __init__(
        self,
        data: Tensor | tuple[Tensor, ...],
        preparation: Preparation,
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

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, the last one short where sizes do not divide."""
        order = _order(self.num_examples or 0, self.seed, epoch, self.shuffle)
        yield from self._take(order.to(self.preparation.device), self.batch_size, epoch)

    def probe(self) -> Iterator[Batch]:
        """Yield all data in large batches."""
        order = torch.arange(self.num_examples or 0, device=self.preparation.device)
        yield from self._take(order, PROBE_SIZE, epoch=0)

    def _take(self, order: Tensor, batch_size: int, epoch: int) -> Iterator[Batch]:
        generator = self.preparation.generator(self.seed, epoch)
        for index in order.split(batch_size):
            yield self.preparation.prepare(self._rows(index), generator, index)

    def _rows(self, index: Tensor) -> Tensor | tuple[Tensor, ...]:
        if isinstance(self.data, Tensor):
            return self.data.index_select(0, index)
        return tuple(tensor.index_select(0, index) for tensor in self.data)


class LoaderFeed(Feed):
    """A DataLoader per epoch."""

    at_hand = False

    def __init__(
        self,
        loader: Callable[[int], "DataLoader[Any]"],
        preparation: Preparation,
        *,
        seed: int,
    ) -> None:
        self.loader = loader
        self.preparation = preparation
        self.seed = seed
        first = loader(0)
        self.num_batches = _length(first)
        self.num_examples = _length(first.dataset)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the loader's batches."""
        generator = self.preparation.generator(self.seed, epoch)
        for item in self.loader(epoch):
            yield self.preparation.prepare(self.preparation.place(item), generator)

    def probe(self) -> Iterator[Batch]:
        """Yield nothing: to look at a loader's batches is to use them up."""
        return iter(())


def _order(num_examples: int, seed: int, epoch: int, shuffle: bool) -> Tensor:
    return epoch_order(num_examples, seed, epoch) if shuffle else torch.arange(num_examples)


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None


def make_feed(
    data: Any, preparation: Preparation, *, batch_size: int, seed: int, shuffle: bool
) -> Feed:
    """Make a feed of a tensor, an array, a tuple of these, a Dataset or a DataLoader.

    Raises:
        TypeError: If ``data`` is something else.
        ValueError: If there are no data.
    """
    feed = _dispatch(data, preparation, batch_size, seed, shuffle)
    if feed.num_examples == 0 or feed.num_batches == 0:
        raise ValueError(
            "the data set is empty: expected at least one example (a whole batch, where drop_last "
            "is set)"
        )
    return feed


def _dispatch(
    data: Any, preparation: Preparation, batch_size: int, seed: int, shuffle: bool
) -> Feed:
    def resident(tensors: Tensor | tuple[Tensor, ...]) -> Feed:
        return ResidentFeed(tensors, preparation, batch_size=batch_size, seed=seed, shuffle=shuffle)

    def loader_of_epoch(epoch: int) -> "DataLoader[Any]":
        if isinstance(data, IterableDataset):
            return DataLoader(data, batch_size)
        order = _order(len(data), seed, epoch, shuffle)
        # A generator of its own: a DataLoader draws from the default one at every start.
        return DataLoader(data, batch_size, sampler=order.tolist(), generator=torch.Generator())

    match data:
        case Tensor() | np.ndarray():
            return resident(_tensor(data))
        case tuple() | list() if data and all(isinstance(p, Tensor | np.ndarray) for p in data):
            return resident(tuple(_tensor(part) for part in data))
        case TensorDataset():
            return resident(data.tensors)
        case DataLoader():
            return LoaderFeed(lambda _epoch: data, preparation, seed=seed)
        case Dataset():
            return LoaderFeed(loader_of_epoch, preparation, seed=seed)
    raise TypeError(
        "expected data as a tensor, a numpy array, a tuple of these, a Dataset or a DataLoader, "
        f"got a {type(data).__name__}: pick its tensor, such as data.images"
    )


def _tensor(data: Tensor | np.ndarray) -> Tensor:
    if isinstance(data, Tensor):
        tensor = data.detach()
    else:
        if data.dtype.kind not in "fiub":
            raise TypeError(f"expected an array of numbers, got dtype {data.dtype}")
        # Torch reads neither negative strides nor, without a warning, read-only memory.
        tensor = torch.from_numpy(np.require(data, requirements=["C", "W"]))
    if tensor.dim() == 0:
        raise ValueError("expected data of shape (N, *E), got a scalar")
    return tensor
