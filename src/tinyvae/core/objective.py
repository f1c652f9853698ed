"""Interface between the Trainer and an objective, which maps batches to losses and metrics.

An :class:`Objective` computes one loss per group of parameters. The Trainer differentiates each
loss with respect to its own group only, so several optimizers (a model against a discriminator)
never mix. Weights may follow :mod:`schedules <tinyvae.schedules>`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from tinyvae._devices import widest_float
from tinyvae.schedules import LossWeight, ScheduledWeight

Direction = Literal["max", "min"]

# End of the description of an objective that is a bound on the data that it was checked on.
BOUND = "a lower bound on log p(x)"


@dataclass(frozen=True)
class Batch:
    """Data of one step.

    A subclass may add fields, such as labels for an objective of your own. They are moved and
    converted like the others.

    Attributes:
        x: Data, ``(B, *E)``.
        context: Input of a conditional model, ``(B, ...)``.
        mask: True for the observed entries of x, ``(B, *E)``.
        index: Positions of the examples in the data that ``fit`` was given, ``(B,)``: in
            ``train`` during training, in ``validation`` during validation. None for a DataLoader
            or a stream, which do not tell positions. An index from ``batch=`` has priority.
        weight: Weights of the examples in every mean over data, ``(B,)``, at least 0. An example of
            weight 2 counts as two equal examples. None gives each the weight 1.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class LabeledBatch(Batch):
        ...     labels: torch.Tensor | None = None
        >>> LabeledBatch(x, labels=torch.arange(8)).first(2).labels
        tensor([0, 1])
        >>> Batch(x[:2], weight=torch.tensor([1.0, 3.0])).mean(torch.tensor([0.0, 4.0]))
        tensor(3.)
    """

    x: Tensor
    context: Tensor | None = None
    mask: Tensor | None = None
    index: Tensor | None = None
    weight: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of examples ``B``."""
        return len(self.x)

    @property
    def total_weight(self) -> int | Tensor:
        """Sum of the weights. Without weights, the number of examples."""
        if self.weight is None:
            return len(self)
        return self.weight.sum(dtype=widest_float(self.weight.device))

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean, 0-d, of values ``(..., B)``, weighted over the examples."""
        return self.weighted(values).mean()

    def weighted(self, values: Tensor, dim: int = -1) -> Tensor:
        """Return values times the examples' weights, of mean 1, so that means are weighted.

        Args:
            values: Values of the examples, ``(..., B, ...)``.
            dim: Dimension of the examples.
        """
        if self.weight is None:
            return values
        weight = self.weight.to(values.dtype)
        # If all weights are 0, so are all terms.
        mean_one = weight / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny) * len(self)
        return values * mean_one.view(-1, *[1] * (-1 - dim))

    def check_weight(self) -> None:
        """Raise ValueError unless the weights are finite, at least 0, and one per example."""
        weight = self.weight
        if weight is None:
            return
        if weight.shape != (len(self),):
            raise ValueError(
                f"Batch expects weight of shape ({len(self)},), one per example, got "
                f"{tuple(weight.shape)}"
            )
        if not (torch.isfinite(weight) & (weight >= 0)).all():
            low, high = weight.aminmax()
            raise ValueError(
                f"Batch expects finite weights >= 0, got values from {low:g} to {high:g}: drop the "
                "examples that are not to count, or give them weight 0"
            )

    def first(self, num: int) -> Self:
        """Return the first ``num`` examples."""
        return self.part(slice(num))

    def part(self, examples: slice) -> Self:
        """Return some of the examples. Fields without one entry per example stay."""
        size = len(self)

        def cut(value: Any) -> Any:
            is_tensor = isinstance(value, Tensor) and value.dim() > 0
            has_entries = is_tensor or isinstance(value, (list, tuple))
            return value[examples] if has_entries and len(value) == size else value

        parts = ((field.name, getattr(self, field.name)) for field in fields(self) if field.init)
        return replace(self, **{name: cut(value) for name, value in parts})


_DATA_ARE_CHECKED = ContextVar("_DATA_ARE_CHECKED", default=False)


@contextmanager
def checked_data() -> Iterator[None]:
    """Tell models that the data of the block have been checked, so that they skip their checks."""
    token = _DATA_ARE_CHECKED.set(True)
    try:
        yield
    finally:
        _DATA_ARE_CHECKED.reset(token)


def data_are_checked() -> bool:
    """Return True inside :func:`checked_data`, and in a graph, which cannot check values."""
    return torch.compiler.is_compiling() or _DATA_ARE_CHECKED.get()


@dataclass(frozen=True)
class ObjectiveOutput:
    """Losses and metrics of one pass.

    Attributes:
        losses: One scalar to minimize per parameter group: means over the batch.
        metrics: Detached scalars to report, on the device: means over the examples of the batch. A
            name ends with the unit, if there is one. The name of a metric that is no such mean
            starts with "batch".
        shares: Shares of classes in the batch, ``(J,)``, by the name of the metric that is their
            perplexity. The history reports the perplexity of the shares in the data.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]
    shares: dict[str, Tensor] = field(default_factory=dict)


def perplexity(shares: Tensor) -> Tensor:
    """Return the exponential of the entropy of shares ``(J,)``, 0-d: the number of used classes.

    Example:
        >>> perplexity(torch.tensor([0.5, 0.5, 0.0]))
        tensor(2.)
    """
    entropy: Tensor = -torch.special.xlogy(shares, shares).sum()
    return entropy.exp()


class Objective(nn.Module, ABC):
    """Function of model and batch that the Trainer minimizes.

    Weights that are :class:`~tinyvae.schedules.ScheduledWeight` attributes, of the objective or of
    any module in it, follow their schedules.

    Attributes:
        couples_batch: True if the loss is not a mean over examples and changes when a batch is
            split.
    """

    couples_batch: bool = False

    def __init__(self) -> None:
        super().__init__()
        self._changing_weights: list[ScheduledWeight] | None = None

    @abstractmethod
    def forward(self, model: Any, batch: Any) -> ObjectiveOutput:
        """Compute losses and metrics of a batch, in the modes that model and objective are in.

        A subclass may name the types that it needs, such as its own :class:`Batch`.
        """

    def parameter_groups(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Return the trainable parameters of each loss, by the name of the loss."""
        return {"model": [p for p in model.parameters() if p.requires_grad]}

    def check(self, model: nn.Module, batch: Batch) -> str:
        """Raise if model and batch do not fit. Return a short description of what is optimized.

        The Trainer calls it before the first step for all data in memory, in large batches, and for
        each batch of other data when it is read first. Model and objective are in training mode for
        training data, and in evaluation mode for validation data. It reports the first description
        that does not end with "a lower bound on log p(x)", because a loss is a bound only if it is
        one on all data.
        """
        return type(self).__name__

    def find_problem(self, model: nn.Module, batch: Batch) -> str | None:
        """Return why training on a batch is likely to fail and what to do, None if it is not.

        The Trainer warns of it before the first step, and names it if losses are not finite.
        """
        return None

    def is_bound(self, model: nn.Module) -> bool:
        """Return True if the expectation of minus the loss is a lower bound on log p(x).

        It holds for the mode, training or evaluation, that the model is in.
        """
        return False

    def direction(self, metric: str) -> Direction | None:
        """Return ``"max"`` or ``"min"`` if larger or smaller values of a metric are better.

        None if that is not known. What watches a metric, such as early stopping, then asks for it.
        """
        return "max" if metric in ("elbo_nats", "log_likelihood_nats") else None

    def set_step(self, step: int, total_steps: int | None) -> None:
        """Set every weight to its value at ``step`` of ``total_steps`` (None: unknown)."""
        weights = self._changing_weights
        if weights is None:  # the first call also sets constant weights
            weights = [weight for _, weight in self._scheduled_weights()]
            self._changing_weights = [weight for weight in weights if weight.changes]
        for weight in weights:
            weight.set_step(step, total_steps)

    def reset_schedules(self) -> None:
        """Make the next :meth:`set_step` search for weights again and set constant weights, too."""
        self._changing_weights = None

    def unfinished_schedules(self, steps: int, total_steps: int | None) -> list[str]:
        """Return a message for each weight whose schedule is longer than a run of ``steps``."""
        lengths = [(n, w.schedule.length(total_steps)) for n, w in self._scheduled_weights()]
        return [
            f"{name} reaches its last value after {length} steps, the run ends after {steps}"
            for name, length in lengths
            if length > steps
        ]

    def changing_weights(self) -> list[str]:
        """Return the names of the weights that change during training."""
        return [name for name, weight in self._weights() if weight.changes]

    def _scheduled_weights(self) -> Iterator[tuple[str, ScheduledWeight]]:
        for name, weight in self._weights():
            if isinstance(weight, ScheduledWeight):
                yield name, weight

    def _weights(self) -> Iterator[tuple[str, LossWeight]]:
        """Yield the weights of this module and of those in it, with names for messages."""
        for module in self.modules():
            owner = "" if module is self else f"{type(module).__name__}'s "
            for name, child in module.named_children():
                if isinstance(child, LossWeight):
                    yield owner + name, child
