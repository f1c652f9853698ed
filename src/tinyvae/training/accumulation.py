"""Gradients of a batch as the mean of those of its parts, which need less memory."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from tinyvae.core.objective import Batch, ObjectiveOutput, perplexity


class AccumulatedGradients:
    r"""Gradients of a batch, computed in parts of at most ``size`` examples.

    The loss of a batch is the mean over its examples, so its gradient is that of its parts
    :math:`j` by their shares of the weights,

    .. math:: \nabla L = \sum_j \frac{W_j}{\sum_i W_i} \nabla L_j.

    Args:
        compute_gradients: Function that sets the gradients of a part.
        parameters: Parameters that get gradients.
        size: Largest number of examples in a part.
    """

    def __init__(
        self,
        compute_gradients: Callable[[Batch], ObjectiveOutput],
        parameters: Iterable[nn.Parameter],
        size: int,
    ) -> None:
        self.compute_gradients, self.size = compute_gradients, size
        self.parameters = list(parameters)

    def __call__(self, batch: Batch) -> ObjectiveOutput:
        """Return losses and metrics of the batch, and set the parameters' gradients."""
        if len(batch) <= self.size:
            return self.compute_gradients(batch)
        starts = range(0, len(batch), self.size)
        parts = [batch.part(slice(start, start + self.size)) for start in starts]
        sums: dict[nn.Parameter, Tensor] = {}
        outputs = []
        for part, share in zip(parts, _shares(batch, parts), strict=True):
            outputs.append(_times(share, self.compute_gradients(part)))
            self._add(share, sums)
        for parameter, gradient in sums.items():
            parameter.grad = gradient
        return _sum(outputs)

    def _add(self, share: float | Tensor, sums: dict[nn.Parameter, Tensor]) -> None:
        """Move the gradients of a part from the parameters to the sums."""
        trained = [p for p in self.parameters if p.grad is not None]
        parts: Any = [p.grad for p in trained], share  # torch's stubs do not know all kinds
        # New tensors, because a compiled pass may write to those that it returned before.
        gradients = torch._foreach_mul(*parts)
        added = [(sums[p], g) for p, g in zip(trained, gradients, strict=True) if p in sums]
        if added:
            torch._foreach_add_(*map(list, zip(*added, strict=True)))
        for parameter, gradient in zip(trained, gradients, strict=True):
            sums.setdefault(parameter, gradient)
            parameter.grad = None


def _shares(batch: Batch, parts: Sequence[Batch]) -> Sequence[float | Tensor]:
    """Return the shares of the parts in the weights of a batch."""
    if batch.weight is None:
        return [len(part) / len(batch) for part in parts]
    totals = torch.stack([torch.as_tensor(part.total_weight) for part in parts])
    return (totals / totals.sum().clamp(min=torch.finfo(totals.dtype).tiny)).unbind()


def _times(share: float | Tensor, output: ObjectiveOutput) -> ObjectiveOutput:
    parts = (output.losses, output.metrics, output.shares)
    return ObjectiveOutput(*({n: v.detach() * share for n, v in part.items()} for part in parts))


def _sum(outputs: Sequence[ObjectiveOutput]) -> ObjectiveOutput:
    """Return the sum of outputs. A perplexity is that of the sum of the shares."""

    def total(part: Callable[[ObjectiveOutput], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        values = [part(output) for output in outputs]
        return {name: reduce(torch.add, [value[name] for value in values]) for name in values[0]}

    shares = total(lambda output: output.shares)
    metrics = total(lambda output: output.metrics)
    metrics |= {name: perplexity(share) for name, share in shares.items()}
    return ObjectiveOutput(total(lambda output: output.losses), metrics, shares)
