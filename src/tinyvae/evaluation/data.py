"""Data of an evaluation: any data that ``fit`` takes, in parts of a fixed size."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from tinyvae._devices import CPU
from tinyvae.core.data import as_tensor
from tinyvae.core.module_state import evaluating
from tinyvae.core.objective import Batch
from tinyvae.models.inputs import table_to_tensor
from tinyvae.models.output import LatentVariableModel, VAEOutput, require_model
from tinyvae.training.data.factory import open_data
from tinyvae.training.data.sources import BatchTransform, PickBatch, Transform

READ_SIZE, OPENED_SIZE = 1000, 100  # examples of a part, and of a batch of a Dataset
READ_ELEMENTS = 1 << 24  # fewer examples if they are large


class EvaluationData:
    """Data in parts that do not depend on the batches in which they come.

    Data in memory are checked at the start, others when they are read first. Use it as a context.

    Args:
        model: Model that the data are checked against.
        data: See :func:`~tinyvae.evaluate`, also for ``context``, ``mask``, ``batch``,
            ``transform``.
        seed: Seed of ``transform``.
        examine: Function that is called with each part and the output of the model's check of it.

    Attributes:
        num_examples: Number of examples, None for a stream that has not been read.
        is_bound: True if what was read has a lower bound on log p(x).
        output: Output of the model for two of the data, from the check of them.
    """

    def __init__(
        self,
        model: LatentVariableModel,
        data: Any,
        context: Any = None,
        mask: Any = None,
        *,
        batch: PickBatch | None = None,
        transform: Transform | None = None,
        seed: int = 0,
        examine: Callable[[Batch, VAEOutput], None] | None = None,
    ) -> None:
        if isinstance(model, nn.DataParallel | DistributedDataParallel):
            require_model("an evaluation", model)
        self.model, self.seed, self.examine = model, seed, examine
        data, batch = _joined(table_to_tensor(model, data), context, mask, batch)
        like = next((p for p in model.parameters() if p.is_floating_point()), None)
        self.device = CPU if like is None else like.device
        dtype = torch.get_default_dtype() if like is None else like.dtype
        pick = BatchTransform(self.device, dtype, batch, owner="evaluation")
        self._transform = BatchTransform(
            self.device, dtype, transform=transform, owner="evaluation"
        )
        self._source = open_data(data, pick, batch_size=OPENED_SIZE, seed=seed, shuffle=False)
        self.num_examples = self._source.num_examples if self._source.has_exact_length else None
        self._dims: list[Tensor] = []
        self._digest = hashlib.sha256()
        self._was_read = False
        with evaluating(model):
            self.is_bound = model.is_density and not model.couples_batch
        if self._source.in_memory:
            for _ in self.parts():
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    @property
    def num_dims(self) -> Tensor:
        """Number of observed dimensions of each example that was read, ``(N,)``."""
        return torch.cat(self._dims)

    @property
    def digest(self) -> str:
        """SHA-256 of the observed data in float32, in their order."""
        return self._digest.hexdigest()

    def parts(self, limit: int | None = None) -> Iterator[tuple[int, Batch]]:
        """Yield parts of at most ``READ_SIZE`` examples, with the position of their first one.

        Args:
            limit: Number of examples, None for all.
        """
        start = 0
        for index, part in enumerate(self._regrouped()):
            transformed = self._transform(part, (self.seed, 0, index))
            if not self._was_read:
                self._examine(transformed)
            rest = len(part) if limit is None else limit - start
            if rest > 0:
                yield start, transformed.first(rest) if rest < len(part) else transformed
            elif self._was_read:
                return
            start += len(part)
        if start == 0:
            raise ValueError(
                "evaluation expects data that can be read several times, got none in a later pass: "
                "pass a Dataset or a DataLoader, not an iterator"
            )
        self._was_read, self.num_examples = True, start

    def _regrouped(self) -> Iterator[Batch]:
        """Yield the batches of the source in parts of one size."""
        waiting: list[Batch] = []
        size = 0
        for batch in self._source.batches(0):
            if batch.weight is not None:
                raise ValueError(
                    "evaluation expects data without weights, got a weight: leave it out, and "
                    "take the weighted mean of the report's values, such as report.elbo.values"
                )
            size = size or max(1, min(READ_SIZE, READ_ELEMENTS // max(1, batch.x[:1].numel())))
            waiting.append(batch)
            if sum(map(len, waiting)) < size:
                continue
            joined = _concatenated(waiting)
            count = len(joined) // size * size
            for first in range(0, count, size):
                yield joined.part(slice(first, first + size))
            waiting = [joined.part(slice(count, None))] if count < len(joined) else []
        if waiting:
            yield _concatenated(waiting)

    def _examine(self, part: Batch) -> None:
        """Check a part, and note what the report says about the data."""
        x, context, mask = part.x, part.context, part.mask
        output = self.model.check(x, context, mask=mask)
        self.is_bound = self.is_bound and output.is_density
        if not self._dims:
            self.output = output
        self._dims.append(self.model.num_dims(x, mask).cpu())
        observed = x.float() if mask is None else x.float().masked_fill(~mask.bool(), torch.nan)
        observed = torch.where(observed.isnan(), torch.nan, observed)  # one pattern of bits
        self._digest.update(observed.cpu().contiguous().numpy().tobytes())
        if self.examine is not None:
            self.examine(part, output)


def read_tensors(
    model: LatentVariableModel, data: Any, context: Any, mask: Any, batch: PickBatch | None
) -> tuple[Tensor, Any, Any]:
    """Return all data with context and mask. Tensors and arrays keep their dtype and device."""
    if isinstance(data, Dataset | DataLoader) or batch is not None:
        with EvaluationData(model, data, context, mask, batch=batch) as opened:
            joined = _concatenated([part for _, part in opened.parts()])
        return joined.x, joined.context, joined.mask
    return as_tensor(table_to_tensor(model, data), "evaluation"), context, mask


def _joined(
    data: Any, context: Any, mask: Any, batch: PickBatch | None
) -> tuple[Any, PickBatch | None]:
    """Return data with context and mask as one dictionary, and the function that reads it."""
    given = {
        name: as_tensor(values, "evaluation")
        for name, values in (("context", context), ("mask", mask))
        if values is not None
    }
    if not given:
        return data, batch
    if batch is not None:
        raise ValueError(
            f"evaluation expects batch= or {' and '.join(given)}=, got both: return "
            "Batch(x, context, mask) from batch="
        )
    return {"x": as_tensor(data, "evaluation"), **given}, lambda rows: Batch(**rows)


def _concatenated(batches: list[Batch]) -> Batch:
    """Return one batch of x, context and mask."""
    if len(batches) == 1:
        return Batch(batches[0].x, batches[0].context, batches[0].mask)

    def join(parts: list[Tensor | None]) -> Tensor | None:
        tensors = [part for part in parts if part is not None]
        return torch.cat(tensors) if tensors else None

    x = torch.cat([batch.x for batch in batches])
    return Batch(x, join([b.context for b in batches]), join([b.mask for b in batches]))
