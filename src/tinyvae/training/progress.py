"""Live progress: one bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import TYPE_CHECKING, NoReturn

from tqdm import tqdm

from tinyvae.objective import ObjectiveOutput
from tinyvae.training.callbacks import Callback
from tinyvae.training.history import Row, label, named_values

if TYPE_CHECKING:
    from tinyvae.training.trainer import Trainer

__all__ = ["Progress"]

REFRESH_SECONDS = 0.25
PLAIN_LINES = 20


class Progress(Callback):
    """Reports on standard error: what runs, live terms, the time left."""

    def on_fit_start(self, trainer: "Trainer") -> None:
        """Say what is about to run."""
        self._start = self._refreshed = time.monotonic()
        self._validation = ""
        _write(trainer.plan.headline)
        self._bar: tqdm[NoReturn] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=trainer.plan.run_steps, unit="step", dynamic_ncols=True)

    def on_step_end(self, trainer: "Trainer", output: ObjectiveOutput) -> None:
        """Move the bar; now and then read the terms, for which the device is waited for."""
        if self._bar is None:
            return
        now = time.monotonic()
        if now - self._refreshed >= REFRESH_SECONDS:
            self._refreshed = now
            terms = {name: value.item() for name, value in named_values(output).items()}
            self._bar.set_description_str(_epoch_of(trainer, trainer.epoch + 1), refresh=False)
            self._bar.set_postfix_str(_terms(terms) + self._validation, refresh=False)
        self._bar.update()

    def on_epoch_end(self, trainer: "Trainer", row: Row) -> None:
        """Print a line where there is no bar, of some 20 epochs of the run."""
        validation = _terms(_part(row, "validation"))
        self._validation = f" | validation {validation}" if validation else ""
        if self._bar is not None:
            self._bar.set_postfix_str(_terms(_part(row, "train")) + self._validation)
            return
        done, epochs = trainer.epoch - trainer.plan.first_epoch, trainer.plan.epochs
        if done % max(1, epochs // PLAIN_LINES) and done != epochs:
            return
        left = (time.monotonic() - self._start) / done * (epochs - done)
        train = _terms(_part(row, "train"))
        _write(
            f"{_epoch_of(trainer, trainer.epoch)}: train {train}{self._validation}"
            f" | {tqdm.format_interval(left)} left"
        )

    def on_fit_end(self, trainer: "Trainer") -> None:
        """Close the bar; say why a run ended early."""
        if self._bar is not None:
            self._bar.close()
        if trainer.history.stop_reason:
            _write(f"stopped after step {trainer.step:,}: {trainer.history.stop_reason}")


def _epoch_of(trainer: "Trainer", epoch: int) -> str:
    return f"epoch {epoch}/{trainer.plan.first_epoch + trainer.plan.epochs}"


def _part(row: Row, part: str) -> Row:
    return {n.removeprefix(f"{part}/"): v for n, v in row.items() if n.startswith(f"{part}/")}


def _terms(values: Row) -> str:
    """Metrics to read at a glance; the loss only where there is nothing else."""
    metrics = {name: v for name, v in values.items() if not name.startswith("loss")} or values
    return ", ".join(f"{label(name)} {value:.4g}" for name, value in metrics.items())


def _write(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
