"""Callbacks: what happens between the steps."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tinyvae.core.objective import ObjectiveOutput
from tinyvae.training.history import Row, require_validation, watched

if TYPE_CHECKING:
    from tinyvae.training.trainer import Trainer


class Callback:
    """Called by the Trainer at the points that the methods name; each does nothing by default.

    ``trainer`` gives ``model``, ``objective``, ``optimizers``, ``history``, ``epoch``, ``step``,
    ``plan`` (the length of the run) and ``stop(reason)``. A callback with a memory gives it by
    ``state_dict``, so that a run that is resumed goes on with it.
    """

    def on_fit_start(self, trainer: "Trainer") -> None:
        """Run before the first step."""

    def on_step_end(self, trainer: "Trainer", output: ObjectiveOutput) -> None:
        """Run after every update."""

    def on_epoch_end(self, trainer: "Trainer", row: Row) -> None:
        """Run after every epoch; what is added to ``row`` becomes part of the history."""

    def on_safe_point(self, trainer: "Trainer", *, ending: bool) -> None:
        """Run where the run's state is whole, after all that belongs to a step or to an epoch.

        Args:
            trainer: The Trainer.
            ending: Whether nothing follows in this call of ``fit``.
        """

    def on_fit_end(self, trainer: "Trainer") -> None:
        """Run at the end of ``fit``, also after an error."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors, numbers, strings, lists, dictionaries."""
        return {}

    def check_state(self, trainer: "Trainer", state: dict[str, Any]) -> None:
        """Raise if this is no :meth:`state_dict`; called before anything is changed."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over :meth:`state_dict`; called after ``on_fit_start`` of a resumed run."""


def callback_names(callbacks: Sequence[Callback]) -> list[str]:
    """Names of callbacks, of their classes, numbered where there are several of one."""
    seen: Counter[str] = Counter()
    names = []
    for callback in callbacks:
        name = type(callback).__name__
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return names


def require_keys(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise unless a state has the keys of one's own."""
    if state.keys() != own.keys():
        raise KeyError(f"expected {sorted(own)}, got {sorted(state)}")


class EarlyStopping(Callback):
    """Stop when a column of the history no longer improves, and restore the best weights.

    Where a weight of the objective is scheduled, as in a warm-up, let patience outlast its changes.

    Args:
        monitor: The column.
        patience: Epochs without improvement before the run ends.
        maximize: Whether larger is better.
        min_delta: Smallest change that counts as improvement.
        restore_best: Whether the model gets its best weights back at the end.

    Attributes:
        best: Best value so far.
        best_epoch: Its epoch, from 1.

    Example:
        >>> trainer = Trainer(vae, ELBO(), callbacks=[EarlyStopping(patience=5)], progress=False)
        >>> len(trainer.fit(x, x, epochs=3))
        3
    """

    def __init__(
        self,
        monitor: str = "validation/elbo_nats",
        *,
        patience: int = 10,
        maximize: bool = True,
        min_delta: float = 0.0,
        restore_best: bool = True,
    ) -> None:
        if patience < 1:
            raise ValueError(f"EarlyStopping expects patience >= 1, got {patience}")
        self.monitor = monitor
        self.patience = patience
        self.maximize = maximize
        self.min_delta = min_delta
        self.restore_best = restore_best
        self._forget()

    def _forget(self) -> None:
        self.best = -math.inf if self.maximize else math.inf
        self.best_epoch: int | None = None
        self._best_weights: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: "Trainer") -> None:
        """Refuse to watch validation without validation data; start afresh."""
        require_validation(
            "EarlyStopping",
            self.monitor,
            has_validation=trainer.plan.has_validation,
            else_watch="train/elbo_nats",
        )
        self._forget()

    def on_epoch_end(self, trainer: "Trainer", row: Row) -> None:
        """Keep the best weights; stop when patience ends."""
        if self.monitor not in row and trainer.history.stop_reason is not None:
            return  # an epoch cut short has no validation
        value, epoch = watched("EarlyStopping", self.monitor, row), int(row["epoch"])
        gain = value - self.best if self.maximize else self.best - value
        if gain > self.min_delta:
            self.best, self.best_epoch = value, epoch
            if self.restore_best:
                state = trainer.model.state_dict()
                self._best_weights = {name: t.detach().clone() for name, t in state.items()}
        elif epoch - (self.best_epoch or trainer.plan.first_epoch) >= self.patience:
            trainer.stop(self._reason())

    def _reason(self) -> str:
        reason = f"{self.monitor} has not improved for {self.patience} epochs"
        if self.best_epoch is None:
            return reason
        restored = ", whose weights are restored" if self.restore_best else ""
        return f"{reason} since {self.best:.6g} at epoch {self.best_epoch}{restored}"

    def state_dict(self) -> dict[str, Any]:
        """Best value, its epoch and its weights."""
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_weights": self._best_weights,
        }

    def check_state(self, trainer: "Trainer", state: dict[str, Any]) -> None:
        """Raise if this is no :meth:`state_dict`, or has weights of another model."""
        require_keys(state, self.state_dict())
        own, weights, epoch = trainer.model.state_dict(), state["best_weights"], state["best_epoch"]
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        if weights and shapes != {name: tensor.shape for name, tensor in own.items()}:
            raise ValueError("the best weights are of another model")
        if not isinstance(state["best"], (int, float)) or not isinstance(epoch, int | None):
            raise TypeError(f"expected numbers, got {state['best']!r:.80} at epoch {epoch!r:.80}")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over :meth:`state_dict`."""
        self.best, self.best_epoch, self._best_weights = (
            state[name] for name in ("best", "best_epoch", "best_weights")
        )

    def on_fit_end(self, trainer: "Trainer") -> None:
        """Give the model its best weights back."""
        if self._best_weights:
            trainer.model.load_state_dict(self._best_weights)
            self._best_weights = {}
