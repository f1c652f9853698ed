r"""Averages of the weights :math:`\theta_1, \dots, \theta_t` after the updates of a run.

.. math:: \bar\theta_t = \bar\theta_{t - 1} + s_t (\theta_t - \bar\theta_{t - 1})
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tinyvae.core.warnings import warn


class WeightAverage(ABC):
    """Rule by which the weights of a run are averaged. See ``average`` of :class:`Optimization`.

    Attributes:
        continues: True if the average continues in a second call of ``fit``.
    """

    continues: ClassVar[bool] = True

    @abstractmethod
    def share(self, count: int) -> float:
        """Return the share :math:`s` of the newest of ``count`` weights in their average."""

    def includes(self, progress: float) -> bool:
        """Return True if an update counts. ``progress`` is the share of the run before it."""
        return True


@dataclass(frozen=True)
class ExponentialMovingAverage(WeightAverage):
    r"""Exponential moving average (EMA) of the weights, without a bias towards the first ones.

    .. math:: \bar\theta_t = \frac{1 - d}{1 - d^t} \sum_{k=1}^{t} d^{t - k} \theta_k

    It is nearly the mean of all weights until about :math:`1 / (1 - d)` updates are made, and then
    that of about so many last ones. The initial weights do not count.

    Args:
        decay: Decay :math:`d` in (0, 1) per update.

    References:
        Kingma, Ba (2015). Adam. arXiv:1412.6980, section 7.2.

    Example:
        >>> optimization = Optimization(average=ExponentialMovingAverage(0.99))
        >>> trainer = Trainer(vae, ELBO(), optimization, progress=False)
        >>> history = trainer.fit(x, x, epochs=2)  # validated with the average, which vae has now
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ValueError(
                f"ExponentialMovingAverage expects a decay between 0 and 1, got {self.decay}"
            )

    def share(self, count: int) -> float:
        """Return the share of the newest of ``count`` weights."""
        return (1 - self.decay) / -math.expm1(count * math.log(self.decay))


@dataclass(frozen=True)
class StochasticWeightAverage(WeightAverage):
    """Stochastic weight average (SWA): the mean of the weights in the last part of a run.

    All updates after the share ``start`` of the updates of a call of ``fit`` count equally. Before
    them, and in a run that ends before them, there is no average.

    Args:
        start: Share of the run in [0, 1) before the first weights that count.

    References:
        Izmailov, Podoprikhin, Garipov, Vetrov, Wilson (2018). Averaging Weights Leads to Wider
        Optima and Better Generalization. arXiv:1803.05407.

    Example:
        >>> optimization = Optimization(average=StochasticWeightAverage(start=0.5))
        >>> trainer = Trainer(vae, ELBO(), optimization, progress=False)
        >>> history = trainer.fit(x, epochs=2)
    """

    continues: ClassVar[bool] = False

    start: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1:
            raise ValueError(
                f"StochasticWeightAverage expects start as a share in [0, 1), got {self.start}"
            )

    def share(self, count: int) -> float:
        """Return the share of the newest of ``count`` weights."""
        return 1 / count

    def includes(self, progress: float) -> bool:
        """Return True for updates after the start."""
        return progress >= self.start


class AveragedWeights:
    """Average of the weights of a model, and of the buffers that its training changes.

    Args:
        model: The model.

    Attributes:
        rule: Rule of the average, None for no average.
        count: Number of updates that count.
        tensors: Averages by name. Empty if no update has counted.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.rule: WeightAverage | None = None
        self.count = 0
        self.tensors: dict[str, Tensor] = {}
        self._trained: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}  # weights of the last update while the model has others

    def begin(self, rule: WeightAverage | None) -> None:
        """Start a call of ``fit``, from the weights of the last update of an earlier one.

        If the weights were changed since then, the changed ones count, and the average starts
        again.
        """
        current = self._current()
        has_changed = any(not _same(current[n], average) for n, average in self.tensors.items())
        if self._last and not has_changed:
            self._write(self._last)
        keeps = rule == self.rule and rule is not None and rule.continues
        if not keeps or (self._last and has_changed):
            self.count, self.tensors = 0, {}
        self.rule, self._last = rule, {}
        parameters = self.model.named_parameters()
        self._trained = {name: p for name, p in parameters if p.requires_grad}

    @torch.no_grad()
    def update(self, buffers: Mapping[str, Tensor], progress: float) -> None:
        """Add the weights after an update, and the buffers that it may have changed."""
        if self.rule is None or not self.rule.includes(progress):
            return
        self.count += 1
        values = self._trained
        if buffers:
            own = dict(self.model.named_buffers())
            values = values | {n: b for n, b in buffers.items() if own.get(n) is b}
        if not values.keys() <= self.tensors.keys():
            self.tensors = {n: v.detach().clone() for n, v in values.items()} | self.tensors
        averages = [self.tensors[name] for name in values]
        torch._foreach_lerp_(averages, list(values.values()), self.rule.share(self.count))

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Give the model its average in the block, and its own weights afterwards."""
        if not self.tensors or self._last:
            yield
            return
        before = self._copies()
        self._write(self.tensors)
        try:
            yield
        finally:
            self._write(before)

    def finish(self) -> None:
        """Give the model its average. The next :meth:`begin` undoes it."""
        if self.tensors:
            self._last = self._copies()
            self._write(self.tensors)
        elif self.rule is not None:
            warn(
                f"the run ends before an update counts for {self.rule}: the model keeps the "
                "weights of its last update"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of updates that count."""
        return {"count": self.count, "tensors": self.tensors} if self.tensors else {}

    def check_state(self, saved: Mapping[str, Any]) -> None:
        """Raise unless ``saved`` is empty or a :meth:`state_dict` of the same model."""
        if not saved:
            return
        count, tensors, current = saved["count"], saved["tensors"], self._current()
        if type(count) is not int or not 0 < count < 2**62:
            raise ValueError(f"expected a number of updates, got {count!r:.80}")
        for name, tensor in tensors.items():
            own = current[name]
            if (tensor.shape, tensor.dtype) != (own.shape, own.dtype):
                raise ValueError(f"the average of {name!r} belongs to another model")

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore a :meth:`state_dict`, if the run has an average."""
        self.count, self.tensors = 0, {}
        if saved and self.rule is not None:
            current = self._current()
            self.count = saved["count"]
            self.tensors = {
                name: tensor.to(current[name].device, copy=True)
                for name, tensor in saved["tensors"].items()
            }

    def _current(self) -> dict[str, Tensor]:
        return {n: p.detach() for n, p in self.model.named_parameters()} | dict(
            self.model.named_buffers()
        )

    def _copies(self) -> dict[str, Tensor]:
        current = self._current()
        return {name: current[name].clone() for name in self.tensors}

    @torch.no_grad()
    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        current = self._current()
        torch._foreach_copy_([current[name] for name in tensors], list(tensors.values()))


def _same(tensor: Tensor, other: Tensor) -> bool:
    return tensor.dtype == other.dtype and torch.equal(tensor, other)
