"""Data that are checked before they are used."""

from collections.abc import Callable, Iterator
from itertools import chain

import torch

from tinyvae.core.objective import Batch
from tinyvae.core.random import Stream, derive_seed, seed_rng
from tinyvae.training.data.sources import DataSource


class ValidatedSource:
    """A feed whose batches pass a check once: all at the start, or, of a loader, as they arrive.

    A loader's first batch is fetched at the start, and used up by nobody: it is the first of the
    first epoch.

    Args:
        feed: The feed.
        role: Name of the data, for errors.
        check: Raises, with the remedy, if a batch does not fit; returns a description.
        seed: The run's seed.
        device: The run's device.

    Attributes:
        description: What the last check returned.
    """

    def __init__(
        self,
        feed: DataSource,
        role: str,
        check: Callable[[Batch], str],
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.feed = feed
        self.role = role
        self.check = check
        self.seed = seed
        self.device = device
        self.description = ""
        self._unchecked = not feed.in_memory
        self._begun: Iterator[Batch] | None = None
        self._start = 0

    def begin(self, epoch: int, start: int = 0) -> None:
        """Check all that can be looked at before the batch ``start`` of ``epoch``."""
        self._start = start
        if self.feed.in_memory:
            for _ in self._checked(self.feed.probe()):
                pass
        else:
            self._begun = self.batches(epoch, start)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Open an epoch at a batch; default generators stay where a loader's start leaves them."""
        if self._begun is not None:
            begun, self._begun = self._begun, None
            return begun
        # A DataLoader draws its order from the default generator, at its first batch.
        seed_rng(self.device, derive_seed(self.seed, Stream.ORDER, epoch))
        batches = self.feed.batches(epoch, start)
        if self._unchecked:
            batches, self._unchecked = self._checked(batches), False
        first = next(batches, None)
        if first is None and start:
            return batches
        if first is None:
            raise ValueError(
                f"the {self.role} data yielded no batch: they must hold an example (a whole batch, "
                "where drop_last is set), and be iterable anew for every epoch"
            )
        return chain([first], batches)

    def first(self, epoch: int) -> Batch:
        """First batch of an epoch that has not been opened, to be looked at and not used up."""
        if self._begun is None or (self.feed.repeatable and self._start):
            return self.feed.peek(epoch)  # the next one may be the epoch's last, and short
        first = next(self._begun, None)
        if first is None:
            return self.feed.peek(epoch)
        self._begun = chain([first], self._begun)
        return first

    def _checked(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        start = 0
        try:
            for batch in batches:
                self.description = self.check(batch)
                start += len(batch)
                yield batch
        except (TypeError, ValueError) as error:
            where = f", counted from example {start}" if start else ""
            raise type(error)(f"{self.role} data{where}: {error}") from error
