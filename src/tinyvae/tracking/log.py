"""Callback that sends a run to a tracker."""

import secrets
import time
from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tinyvae import plotting
from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.random import forked_rng
from tinyvae.core.warnings import warn
from tinyvae.evaluation import Report
from tinyvae.models.inputs import require_count
from tinyvae.models.summary import describe
from tinyvae.tracking.writer import Setting, Writer, figure_pixels
from tinyvae.training.callbacks import Callback, require_keys
from tinyvae.training.checkpoints.checkpoint import Checkpoint
from tinyvae.training.history import Row
from tinyvae.training.progress import Progress
from tinyvae.training.settings import settings_of
from tinyvae.training.state import TrainState

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    FigureFunction = Callable[[Any], Figure]


@suggest_keywords
class Log(Callback):
    """Send the run to a tracker: files, TensorBoard, Weights & Biases, MLflow or trackio.

    The log holds the history: each row of ``history.epochs``, with the objective's terms, its
    scheduled weights, the learning rates and the columns of other callbacks; and each row of
    ``history.updates`` as ``update/...``, see ``record_every`` of :class:`~tinyvae.Trainer`. This
    callback adds the column ``examples_per_second``, of training without validation. The settings
    of the run are its hyper-parameters, and the model's summary is a text.

    A run that is resumed from a checkpoint continues in the log. No row is missing or repeated.
    A tracker that fails never ends the run: a warning names the error, and the rest of this call
    of ``fit`` is not logged.

    Args:
        writer: Destination, such as ``TensorBoardWriter("runs/a")``.
        figures: Functions that draw a figure of the model, by name, such as
            :func:`image_figures`. They are called at the start, every ``figure_epochs`` epochs and
            at the end, each time with the same random numbers.
        figure_epochs: Number of epochs between figures.
        report: Function that evaluates the model, such as ``lambda model: evaluate(model, test)``.
            It is called when the run is complete. The log gets the numbers as ``report/...``, and
            the table as a text.
        settings: Further hyper-parameters by name.

    Attributes:
        run_id: Identifier of the run, None before the first call of ``fit``.

    Raises:
        ValueError: If ``figure_epochs < 1``. In ``fit``, if a callback that acts at the end, such
            as :class:`~tinyvae.EarlyStopping`, is listed before a log with ``report``, which would
            evaluate weights that are replaced afterwards.
        FileExistsError: In ``fit``, if another run is at the writer's place.

    Example:
        >>> from tinyvae.tracking import CSVWriter, Log
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = Log(CSVWriter(folder), report=lambda model: evaluate(model, x))
        ...     trainer = Trainer(vae, ELBO(), callbacks=[log], progress=False)
        ...     _ = trainer.fit(x, epochs=2)
        ...     print(*sorted(path.name for path in Path(folder).iterdir()))
        metrics.csv model.txt report.txt settings.json
    """

    first_process_only = True
    changes_results = False

    def __init__(
        self,
        writer: Writer,
        *,
        figures: "Mapping[str, FigureFunction] | None" = None,
        figure_epochs: int = 10,
        report: Callable[[Any], Report] | None = None,
        settings: Mapping[str, Setting] | None = None,
    ) -> None:
        if not isinstance(writer, Writer):
            raise TypeError(
                f"Log expects a Writer, got {writer!r:.80}: pass one, such as CSVWriter(folder)"
            )
        require_count("Log", figure_epochs, "figure_epochs")
        self.writer, self.figures, self.figure_epochs = writer, dict(figures or {}), figure_epochs
        self.report, self.settings = report, dict(settings or {})
        self.run_id: str | None = None

    def on_fit_start(self, state: TrainState) -> None:
        """Prepare the log. It is opened at the first safe point, when a run is restored."""
        self._check_order(state)
        if self.run_id is None or state.step == 0:
            self.run_id, self._is_new = secrets.token_hex(4), True
        self._is_open = self._is_complete = False
        self._has_failed = False
        self._last: Mapping[str, int] = {}
        self._num_epochs = self._num_updates = 0
        self._epoch_start: float | None = None
        self._train_end: float | None = None

    def on_validation_start(self, state: TrainState) -> None:
        """Note the time at which training of the epoch ended."""
        self._train_end = time.monotonic()

    def on_epoch_end(self, state: TrainState, row: Row) -> None:
        """Add the examples per second to the history."""
        end = time.monotonic() if self._train_end is None else self._train_end
        if self._epoch_start is not None and end > self._epoch_start:
            num_examples = state.running_means.weight - self._start_examples
            row["examples_per_second"] = num_examples / (end - self._epoch_start)

    def on_safe_point(self, state: TrainState, *, last: bool) -> None:
        """Write new rows of the history, and figures."""
        history, is_first = state.history, self._epoch_start is None
        if is_first:
            self._open(state)
        is_epoch = len(history.epochs) > self._num_epochs
        if is_epoch or len(history.updates) > self._num_updates:
            self._write_rows(state)
        is_between_epochs = (is_first or is_epoch) and state.batch == 0
        if is_between_epochs and (last or state.epoch % self.figure_epochs == 0):
            self._write_figures(state)
        if is_first or is_epoch:
            self._start_epoch(state)
        self._is_complete = last and not state.is_interrupted

    def on_fit_end(self, state: TrainState) -> None:
        """Write the report if the run is complete, and close the log."""
        if self._is_complete and self.report is not None and not self._has_failed:
            report = self.report(state.model)
            named = report.estimates().items()
            values = {f"report/{name}_nats": estimate.mean for name, estimate in named}
            self._attempt(self.writer.write, values, state.step)
            self._attempt(self.writer.write_text, "report", str(report))
        if self._is_open:
            self._attempt(self.writer.close)

    def state_dict(self) -> dict[str, Any]:
        """Return the identifier of the run."""
        return {"run_id": self.run_id}

    def check_state(self, state: TrainState, saved: dict[str, Any]) -> None:
        """Raise if ``saved`` is not a :meth:`state_dict`."""
        require_keys(saved, self.state_dict())
        if not isinstance(saved["run_id"], str):
            raise TypeError(f"expected the identifier of a run, got {saved['run_id']!r:.80}")

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue the saved run."""
        self.run_id, self._is_new = saved["run_id"], False

    # Writing --------------------------------------------------------------------------------------

    def _check_order(self, state: TrainState) -> None:
        """Raise if the report would come before the end of another callback."""
        earlier = takewhile(lambda callback: callback is not self, state.callbacks)
        acting = [
            type(callback).__name__
            for callback in earlier
            if isinstance(callback, Callback)
            and type(callback).on_fit_end is not Callback.on_fit_end
            and not isinstance(callback, (Log, Progress, Checkpoint))
        ]
        if acting and self.report is not None:
            raise ValueError(
                f"Log expects to be listed before {', '.join(acting)}, because callbacks end in "
                "reverse order and the report needs the final weights, got it after them: use "
                f"callbacks=[Log(...), {acting[0]}(...)]"
            )

    def _open(self, state: TrainState) -> None:
        settings = {**_settings_of(state), **self.settings}
        opened = (self.run_id, settings, state.step)
        self._last = self._attempt(self.writer.open, *opened, resume=not self._is_new) or {}
        self._is_open = not self._has_failed
        if self._is_open and self._is_new:
            self._attempt(self.writer.write_text, "model", describe(state.model))
        self._is_new = False

    def _start_epoch(self, state: TrainState) -> None:
        """Start to count examples and seconds: of an epoch, or of the rest of a resumed one."""
        self._epoch_start, self._train_end = time.monotonic(), None
        self._start_examples = state.running_means.weight if state.batch else 0

    def _write_rows(self, state: TrainState) -> None:
        history = state.history
        rows = [
            *({_updates_name(n): v for n, v in row.items()}
              for row in history.updates[self._num_updates :]),
            *history.epochs[self._num_epochs :],
        ]  # fmt: skip
        self._num_updates, self._num_epochs = len(history.updates), len(history.epochs)
        for row in sorted(rows, key=lambda row: row["step"]):
            step = int(row["step"])
            new = {n: v for n, v in row.items() if n != "step" and self._is_after(n, step)}
            if new:
                self._attempt(self.writer.write, new, step)

    def _write_figures(self, state: TrainState) -> None:
        for name, draw in self.figures.items():
            if not self._has_failed and self._is_after(name, state.step):
                with forked_rng(state.device, 0):
                    pixels = figure_pixels(draw(state.model))
                self._attempt(self.writer.write_image, name, pixels, state.step)

    def _is_after(self, name: str, step: int) -> bool:
        return step > self._last.get(name, -1)

    def _attempt(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call the writer, unless it has failed. Its first error becomes a warning."""
        if self._has_failed:
            return None
        try:
            return call(*args, **options)
        except FileExistsError:
            raise
        except Exception as error:  # of any kind: a tracker may raise its own
            self._has_failed = True
            warn(
                f"{type(self.writer).__name__} failed: {type(error).__name__}: {error!s:.300}. The "
                "run continues without this log"
            )
        return None


def _updates_name(column: str) -> str:
    return column if column == "step" else f"update/{column}"


def _settings_of(state: TrainState) -> dict[str, Setting]:
    """Return the settings of a run as numbers and texts, without those of single layers."""
    settings: dict[str, Any] = {f"run.{name}": v for name, v in state.fingerprint.items()}
    for name, optimizer in state.optimizers.items():
        settings[f"optimizers.{name}"] = type(optimizer).__name__
        for key, value in optimizer.defaults.items():
            settings[f"optimizers.{name}.{key}"] = value
    settings |= settings_of(state.objective, "objective") | settings_of(state.model, "model")
    return {
        name: value if isinstance(value, Setting) else str(value)
        for name, value in settings.items()
        if value is not None and ".layers" not in name
    }


def image_figures(
    images: Tensor, *, limits: tuple[float, float] = (0.0, 1.0)
) -> "dict[str, FigureFunction]":
    """Return functions that draw reconstructions and samples, for :class:`Log`.

    Args:
        images: Images ``(n, C, H, W)`` with ``C`` 1 or 3.
        limits: Values of black and white.

    Returns:
        ``"reconstructions"``, of ``images``, and ``"samples"``, the centers of ``n`` draws.

    Example:
        >>> sorted(image_figures(torch.rand(8, 1, 4, 4)))
        ['reconstructions', 'samples']
    """

    def reconstructions(model: Any) -> "Figure":
        rows = {"data": images, "reconstruction": model.reconstruct(images)}
        return plotting.image_rows(rows, limits=limits)

    def samples(model: Any) -> "Figure":
        return plotting.image_grid(model.sample(len(images), mean=True), limits=limits)

    return {"reconstructions": reconstructions, "samples": samples}
