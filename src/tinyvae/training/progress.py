"""Progress report: a bar on a terminal and in a notebook, plain lines elsewhere."""

import sys
import time
from collections.abc import Sequence

from tinyvae._version import __version__
from tinyvae.core.objective import ObjectiveOutput
from tinyvae.core.progress import Bar, in_notebook, shows_bars
from tinyvae.training.callbacks import Callback
from tinyvae.training.data.validated import ValidatedSource
from tinyvae.training.history import Row, label, named_values
from tinyvae.training.state import TrainState

REFRESH_SECONDS = 0.25
PLAIN_LINES = 20
# A narrow bar, so that the terms at the end are not cut off.
MEASURED = "{desc} {percentage:3.0f}%|{bar:8}| {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}"
COUNTED = "{desc} {n_fmt} steps {elapsed}{postfix}"


class Progress(Callback):
    """Callback that reports the run, its terms (validation in brackets) and the time left."""

    first_process_only = True

    def on_fit_start(self, state: TrainState) -> None:
        """Print the headline, and open the bar on a terminal or in a notebook."""
        self._start = self._refreshed = time.monotonic()
        self._first_epoch = state.epoch
        self._validation: Row = {}
        _write(state.plan.headline)
        self._bar: Bar | None = None
        if shows_bars():
            total = state.plan.num_steps
            bar_format = COUNTED if total is None else MEASURED
            if in_notebook():
                bar_format = bar_format.replace("{bar:8}", "{bar}")  # as wide as the page allows
            self._bar = Bar(total=total, bar_format=bar_format, dynamic_ncols=True)

    def on_step_end(self, state: TrainState, output: ObjectiveOutput) -> None:
        """Move the bar. Read the terms only a few times per second, since that waits for a GPU."""
        if self._bar is None:
            return
        now = time.monotonic()
        if now - self._refreshed >= REFRESH_SECONDS:
            self._refreshed = now
            terms = {name: value.item() for name, value in named_values(output).items()}
            self._bar.set_description_str(_epoch_of(state, state.epoch + 1), refresh=False)
            self._bar.set_postfix_str(_terms(terms, self._validation), refresh=False)
        self._bar.update()

    def on_epoch_end(self, state: TrainState, row: Row) -> None:
        """Update the bar, or print about 20 lines per run without a bar."""
        self._validation = _part(row, "validation")
        epoch = _epoch_of(state, state.epoch)
        terms = _terms(_part(row, "train"), self._validation)
        if self._bar is not None:
            self._bar.set_description_str(epoch, refresh=False)
            self._bar.set_postfix_str(terms)
            return
        plan = state.plan
        remaining, every = plan.last_epoch - state.epoch, max(1, plan.num_epochs // PLAIN_LINES)
        if (state.epoch - plan.start_epoch) % every and remaining:
            return
        # Epochs before a resumption took their time in another process.
        per_epoch = (time.monotonic() - self._start) / (state.epoch - self._first_epoch)
        _write(f"{epoch}: {terms} | {Bar.format_interval(per_epoch * remaining)} left")

    def on_fit_end(self, state: TrainState) -> None:
        """Close the bar, and print the reason if the run ended early."""
        if self._bar is not None:
            self._bar.close()
        if state.history.stop_reason:
            _write(f"stopped after step {state.step:,}: {state.history.stop_reason}")


def _epoch_of(state: TrainState, epoch: int) -> str:
    return f"epoch {epoch}/{state.plan.last_epoch}"


def _part(row: Row, part: str) -> Row:
    return {n.removeprefix(f"{part}/"): v for n, v in row.items() if n.startswith(f"{part}/")}


def _terms(train: Row, validation: Row) -> str:
    """Return the metrics of training (and validation) as text, or the loss without metrics."""
    metrics = {name: v for name, v in train.items() if not name.startswith("loss")} or train
    in_brackets = {name: f" ({value:.4g})" for name, value in validation.items()}
    terms = [f"{label(name)} {v:.4g}{in_brackets.get(name, '')}" for name, v in metrics.items()]
    return ", ".join(terms)


def _write(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def headline(
    state: TrainState,
    train: ValidatedSource,
    validation: ValidatedSource | None,
    seed: int,
    paths: Sequence[str],
) -> str:
    """Return one line about device, sizes, length, objective and fast paths."""
    size = sum(p.numel() for group in state.groups.values() for p in group)
    counts = (train.source.num_examples, train.source.num_batches)
    examples, steps = ("?" if count is None else f"{count:,}" for count in counts)
    if not train.source.has_exact_length and counts[1] is not None:
        steps = f"about {steps}"
    continued = f", continuing after step {state.step:,}" if state.step else ""
    descriptions = [train.summary]
    if validation is not None and validation.summary != train.summary:
        *_, differing = validation.summary.split(": ")  # such as "not a bound on log p(x)"
        descriptions.append(f"validation: {differing}")
    num_epochs = state.plan.num_epochs
    epochs = "1 epoch" if num_epochs == 1 else f"{num_epochs} epochs"
    processes = f", {state.processes.size} processes" if state.processes.size > 1 else ""
    return (
        f"tinyvae {__version__} on {state.device}{processes}, seed {seed}: {size:,} parameters, "
        f"{examples} examples, {epochs} of {steps} steps{continued}; "
        + "; ".join([*descriptions, *paths])
    )
