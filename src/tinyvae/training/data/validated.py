"""Source that checks each batch once before it is used."""

from collections.abc import Callable, Iterator
from itertools import chain

import torch

from tinyvae.core.objective import BOUND, Batch
from tinyvae.core.random import Stream, derive_seed, seed_rng
from tinyvae.core.warnings import warn
from tinyvae.training.data.sources import DataSource
from tinyvae.training.data.workers import data_worker_error
from tinyvae.training.signals import defer_sigchld


class ValidatedSource:
    """Source whose batches are checked once: all at the start, or each when a loader yields it.

    The first batch of a loader is read and checked at the start. The first epoch then uses it.

    ``check`` raises if a batch does not fit, and returns a description. ``role`` names the data in
    errors.

    Attributes:
        description: Description of all batches so far: the first one that does not say that the
            loss is a bound, if there is one.
        num_checked: Number of examples so far.
    """

    def __init__(
        self,
        source: DataSource,
        role: str,
        check: Callable[[Batch], str],
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.source, self.role, self.check = source, role, check
        self.seed, self.device = seed, device
        self.description, self.num_checked = "", 0
        self._unchecked = not source.in_memory
        self._opened: Iterator[Batch] | None = None
        self._start = 0
        self._has_warned = False

    def begin(self, epoch: int, start: int = 0, *, last_epoch: int = 0) -> None:
        """Check all data in memory, or read and check batch ``start`` of ``epoch``.

        The epochs before ``last_epoch`` follow and may be read ahead.
        """
        self._start, self.source.last_epoch = start, last_epoch
        if self.source.in_memory:
            for _ in self._checked(self.source.iter_all()):
                pass
        else:
            self._opened = self.batches(epoch, start)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Open an epoch at a batch. This seeds the default generators.

        Raises:
            ValueError: If the epoch has no batch.
        """
        if self._opened is not None:
            opened, self._opened = self._opened, None
            return opened
        # A DataLoader draws its order from the default generator when it yields its first batch.
        seed_rng(self.device, derive_seed(self.seed, Stream.ORDER, epoch))
        batches = self.source.batches(epoch, start)
        if self._unchecked:
            batches, self._unchecked = self._checked(batches), False
        batches = self._watched(batches, epoch, start)
        first = next(batches, None)
        if first is None and start:
            return batches
        if first is None:
            raise ValueError(
                f"the {self.role} data yielded no batch: they must hold an example (one full batch "
                "if drop_last is set) and be iterable again in every epoch"
            )
        return chain([first], batches)

    def first_batch(self, epoch: int) -> Batch:
        """Return the first batch of an epoch without using it up. Call before the epoch opens."""
        # After a resumption the next batch could be the last of the epoch, which may be shorter.
        if self._opened is not None and not (self.source.repeatable and self._start):
            first = next(self._opened, None)
            if first is not None:
                self._opened = chain([first], self._opened)
                return first
        return self.source.first_batch(epoch)

    def _checked(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        try:
            for batch in batches:
                with defer_sigchld():  # the death of a data worker is no fault of the model
                    self._add(self.check(batch))
                self.num_checked += len(batch)
                yield batch
        except (TypeError, ValueError) as error:
            if type(error) not in (TypeError, ValueError):
                raise  # its constructor may have other arguments
            start = self.num_checked
            position = f", counted from example {start}" if start else ""
            raise type(error)(f"{self.role} data{position}: {error}") from error

    def _watched(self, batches: Iterator[Batch], epoch: int, start: int) -> Iterator[Batch]:
        """Yield the batches of an epoch. Errors tell the batch, and a warning another length."""
        position = start
        try:
            for batch in batches:
                yield batch
                position += 1
        except Exception as error:
            if (death := data_worker_error(error)) not in (None, error):
                raise death from error
            where = f"batch {position + 1} of epoch {epoch + 1} of the {self.role} data"
            if isinstance(error.__cause__, StopIteration):  # Python's error for one in a generator
                raise RuntimeError(
                    f"fit expects StopIteration from iterators at their end only, got one in "
                    f"{where}: raise another error there"
                ) from error.__cause__
            error.add_note(f"It was raised when fit read {where}.")
            raise
        source, processes = self.source, self.source.transform.processes
        expected = source.num_batches
        # The last of several processes has a share of every batch.
        counts_all = processes.rank == processes.size - 1 or not source.is_split
        if counts_all and expected not in (None, position) and not self._has_warned:
            self._has_warned = True
            warn(
                f"the {self.role} data have {position} batches in epoch {epoch + 1}, but their "
                f"length is {expected}: the epoch ends with the data, while the progress and "
                "schedules that are fractions of the run count on the length"
            )

    def _add(self, description: str) -> None:
        """Combine the descriptions: the loss is a bound only if it is one on all batches."""
        previous = self.description
        if previous and not previous.endswith(BOUND):
            return
        self.description = description
        if previous not in ("", description) and not self.source.in_memory:
            warn(
                f"the {self.role} data differ from their first batch, which described the run: "
                f"from example {self.num_checked} on it is {description}"
            )

    def close(self) -> None:
        """Release what the source holds, such as processes."""
        self._opened = None
        self.source.close()

    @property
    def summary(self) -> str:
        """Description of the batches so far, with their share of the examples unless it is all."""
        if self.source.in_memory or self.num_checked == self.source.num_examples:
            return self.description
        total = "?" if self.source.num_examples is None else f"{self.source.num_examples:,}"
        return f"{self.description} ({self.num_checked:,} of {total} examples checked so far)"
