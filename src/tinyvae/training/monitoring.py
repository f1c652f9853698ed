"""Callbacks that watch a column of the history."""

import math
from typing import Any

from torch import Tensor

from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.objective import Direction
from tinyvae.training.callbacks import Callback, require_keys
from tinyvae.training.history import Row, require_direction, require_validation, watched
from tinyvae.training.state import TrainState


class Monitor:
    """Best value so far, ``best``, of a column. See :class:`EarlyStopping` for the arguments."""

    def __init__(self, column: str, mode: Direction | None, min_delta: float = 0.0) -> None:
        if not isinstance(column, str):
            raise TypeError(
                f"expected the name of a column, such as 'validation/elbo_nats', got {column!r}: "
                "pass other settings by their names"
            )
        if mode not in ("max", "min", None):
            raise ValueError(f"a monitor expects mode 'max' or 'min', got {mode!r}: name one")
        if not min_delta >= 0:
            raise ValueError(
                f"EarlyStopping expects min_delta >= 0, got {min_delta}: give the size of the "
                "smallest improvement, whatever its direction"
            )
        self.column, self.mode, self.min_delta = column, mode, min_delta
        self.direction = mode
        self.reset()

    def prepare(self, who: str, state: TrainState) -> None:
        """Set the direction. Raise ValueError if it is not known or validation data are missing."""
        require_validation(who, self.column, state.plan.has_validation, "train/elbo_nats")
        self.direction = require_direction(who, self.column, self.mode, state.objective)

    def reset(self) -> None:
        """Start again without a best value."""
        self.best = math.nan

    def improves(self, value: float) -> bool:
        """Return True and keep the value if it is finite and better than the best one so far."""
        gain = value - self.best if self.direction == "max" else self.best - value
        if math.isfinite(value) and not gain <= self.min_delta:  # the first gain is NaN
            self.best = value
            return True
        return False


@suggest_keywords
class EarlyStopping(Callback):
    """Stop when a column of the history no longer improves, and restore the best weights.

    Bounds such as ``"validation/elbo_nats"`` are always those with beta = 1. A loss contains the
    objective's weights: if one of them is scheduled, as in a warm-up, losses of different epochs
    are not comparable, and a warning says so. In that case also choose a patience that is longer
    than the schedule. Values that are not finite never improve.

    Args:
        monitor: Column of the history.
        patience: Epochs without improvement before the run ends.
        mode: ``"max"`` if larger is better, ``"min"`` if smaller is. None for bounds, which are to
            rise, and for the model's loss, which is to fall.
        min_delta: Smallest change that counts as an improvement.
        restore_best: True to give the model its best weights at the end.

    Attributes:
        best_epoch: Epoch of the best value, from 1; None before the first.

    Raises:
        ValueError: If an argument is out of range. In ``fit``, if the column needs validation data
            that are not given, if ``mode`` is missing for a column of unknown direction, or if it
            contradicts the known direction.

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
        mode: Direction | None = None,
        min_delta: float = 0.0,
        restore_best: bool = True,
    ) -> None:
        if patience < 1:
            raise ValueError(f"EarlyStopping expects patience >= 1, got {patience}")
        self.monitor = Monitor(monitor, mode, min_delta)
        self.patience, self.mode, self.min_delta = patience, mode, min_delta
        self.restore_best = restore_best
        self._reset()

    def _reset(self) -> None:
        self.monitor.reset()
        self.best_epoch: int | None = None
        self._best_weights: dict[str, Tensor] = {}

    @property
    def best(self) -> float:
        """Best value so far, NaN before the first."""
        return self.monitor.best

    def on_fit_start(self, state: TrainState) -> None:
        """Reset the callback. Raise if the column cannot be watched."""
        self.monitor.prepare("EarlyStopping", state)
        self._reset()

    def on_epoch_end(self, state: TrainState, row: Row) -> None:
        """Keep the best weights. Stop when the patience is used up."""
        if self.monitor.column not in row and state.stop_request is not None:
            return  # an epoch that was cut short has no validation
        value, epoch = watched("EarlyStopping", self.monitor.column, row), int(row["epoch"])
        if self.monitor.improves(value):
            self.best_epoch = epoch
            if self.restore_best:
                weights = state.model.state_dict()
                self._best_weights = {name: t.detach().clone() for name, t in weights.items()}
        elif epoch - (self.best_epoch or state.plan.start_epoch) >= self.patience:
            reason = f"{self.monitor.column} has not improved for {self.patience} epochs"
            if self.best_epoch is not None:
                restored = ", whose weights are restored" if self.restore_best else ""
                reason += f" since {self.best:.6g} at epoch {self.best_epoch}{restored}"
            else:
                reason += ": none of its values was finite"
            state.stop(reason)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, its epoch and its weights, and the column."""
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_weights": self._best_weights,
            "monitored": [self.monitor.column, self.monitor.direction],
        }

    def check_state(self, state: TrainState, saved: dict[str, Any]) -> None:
        """Raise if ``saved`` is not a :meth:`state_dict`, or has weights of another model."""
        require_keys(saved, self.state_dict())
        weights, epoch = saved["best_weights"], saved["best_epoch"]
        kinds = {name: (t.shape, t.dtype) for name, t in weights.items()}
        expected = {name: (t.shape, t.dtype) for name, t in state.model.state_dict().items()}
        if weights and kinds != expected:
            raise ValueError("the best weights belong to another model")
        if not isinstance(saved["best"], (int, float)) or not isinstance(epoch, int | None):
            raise TypeError(f"expected numbers, got {saved['best']!r:.80} at epoch {epoch!r:.80}")

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the best value, its epoch and its weights, if the column is the same."""
        if saved["monitored"] != [self.monitor.column, self.monitor.direction]:
            return
        self.monitor.best, self.best_epoch = saved["best"], saved["best_epoch"]
        self._best_weights = saved["best_weights"]

    def on_fit_end(self, state: TrainState) -> None:
        """Give the model its best weights."""
        if self._best_weights:
            state.model.load_state_dict(self._best_weights)
            self._best_weights = {}
