"""Training loop. It knows objectives and batches, but no particular model."""

import os
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tinyvae._devices import choose_device
from tinyvae.core.generators import exclusive_generators, warn_about_foreign_seed
from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.module_state import evaluating_afterwards
from tinyvae.core.objective import Objective
from tinyvae.core.random import forked_rng
from tinyvae.training.acceleration.options import ResolvedSpeed, Speed, matmul_route
from tinyvae.training.callbacks import (
    Callback,
    StepHooks,
    notify_safe_point,
    running,
    saving_after_error,
)
from tinyvae.training.checkpoints.checkpoint import load_resume_state, order_callbacks
from tinyvae.training.data.sources import PickBatch, Transform
from tinyvae.training.data.validated import ValidatedSource
from tinyvae.training.epochs import training_batches, validate
from tinyvae.training.exchange import (
    is_finished,
    noise_seed,
    require_same_run_everywhere,
    warn_about_differences,
)
from tinyvae.training.history import History, Row, adding_columns
from tinyvae.training.optimization import Optimization
from tinyvae.training.preparation import (
    open_sources,
    prepare_run,
    require_counts,
    require_numbers,
    require_parts,
    restored_speed,
    select_fast_path,
    warn_about_schedules,
)
from tinyvae.training.processes import joined_processes
from tinyvae.training.progress import Progress, headline
from tinyvae.training.rates import learning_rates
from tinyvae.training.signals import defer_sigchld, graceful_stop
from tinyvae.training.state import TrainState
from tinyvae.training.step import Gradients, TrainStep


@suggest_keywords
class Trainer:
    """Training loop that minimizes an objective.

    The same weights and the same seed give bitwise the same run on one machine (on a GPU only if
    its kernels are deterministic). The global random state does not change. In processes that
    torchrun has started, :meth:`fit` trains in all of them together: see :doc:`/several_processes`.

    Args:
        model: Module that the objective understands. It is moved to the device.
        objective: Objective to minimize.
        optimization: Optimizer, learning rates, scheduler, clipping.
        callbacks: Callbacks, called in this order, except that a :class:`~tinyvae.Checkpoint` comes
            first. At the end of ``fit`` they are called in reverse order.
        speed: Optional fast paths: compilation, matrix products, mixed precision.
        seed: Seed of order, noise and transforms.
        device: Device. ``"auto"`` takes this computer's accelerator, else the CPU. A model in
            float64 gets the CPU if the accelerator, such as Apple's, may lack that dtype. Each
            process of torchrun takes an accelerator of its own.
        record_every: Number of updates between rows of ``history.updates``; None records none.
        progress: True to report progress on standard error.

    ``optimization``, ``callbacks``, ``speed``, ``seed`` and ``record_every`` may be set between two
    calls of :meth:`fit`. Model, objective and device may not.

    Attributes:
        state: State of the run: epoch, step, optimizers, schedulers, history.
        resolved_speed: Fast paths that the first call of :meth:`fit` chose.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind or out of range.

    Example:
        >>> trainer = Trainer(vae, ELBO(), Optimization(learning_rate=2e-3), progress=False)
        >>> history = trainer.fit(x, epochs=2, batch_size=4)
        >>> history["epoch"]
        [1, 2]
    """

    _train_step: TrainStep
    _after_step: StepHooks
    _called: list[Callback]

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimization: Optimization | None = None,
        *,
        callbacks: Sequence[Callback] = (),
        speed: Speed | None = None,
        seed: int = 0,
        device: str | torch.device = "auto",
        record_every: int | None = None,
        progress: bool = True,
    ) -> None:
        optimization = Optimization() if optimization is None else optimization
        speed = Speed() if speed is None else speed
        require_parts(model, objective, optimization, speed, callbacks)
        require_numbers(seed=seed, record_every=record_every)
        self.optimization = optimization
        reporting = [Progress()] if progress else []
        self.checkpoint, self.callbacks = order_callbacks([*reporting, *callbacks])
        self.speed, self.resolved_speed = speed, ResolvedSpeed()
        self.seed, self.record_every = seed, record_every
        self.state = TrainState(model, objective, choose_device(device, model), self.callbacks)

    @property
    def model(self) -> nn.Module:
        """Model. Another one needs another Trainer."""
        return self.state.model

    @property
    def objective(self) -> Objective:
        """Objective. Another one needs another Trainer."""
        return self.state.objective

    @property
    def device(self) -> torch.device:
        """Device of model and data."""
        return self.state.device

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """Optimizers by parameter group. Changed settings, such as a learning rate, stay."""
        return self.state.optimizers

    @property
    def history(self) -> History:
        """History of all calls of :meth:`fit`."""
        return self.state.history

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.state.epoch

    @property
    def step(self) -> int:
        """Updates done."""
        return self.state.step

    @suggest_keywords
    @exclusive_generators("fit", is_run=True)
    @torch.inference_mode(False)
    def fit(
        self,
        train: Any,
        validation: Any = None,
        *,
        epochs: int,
        batch_size: int = 128,
        batch: PickBatch | None = None,
        transform: Transform | None = None,
        workers: int = 0,
        drop_last: bool = False,
        resume: str | os.PathLike[str] | None = None,
    ) -> History:
        """Train for ``epochs`` more epochs, and end in evaluation mode. A second call continues.

        A second call keeps weights, moments, epochs, steps and history. Scheduled weights of the
        objective continue: their fractions refer to the first call. Schedulers start again, from
        the learning rate that you set in :attr:`optimizers`, and span the new epochs. Moments start
        again if trained parameters, optimizer or rates of ``optimization`` have changed.

        With ``resume`` the run continues from a checkpoint, at the same step. Then ``epochs``
        counts the epochs of the whole run, and a run that is complete returns its history. The
        results are bitwise those of a run without interruption if device, torch version, number of
        threads, fast paths and optimizer are the same. Otherwise a warning names the difference.
        Items of a Dataset may draw from the default generators of torch, numpy and Python.

        Args:
            train: Tensor or array ``(N, *E)``, a tuple or dictionary of these, a Dataset or a
                DataLoader. Floating-point data are converted to the model's dtype.
            validation: Data of the same kinds, evaluated after each epoch on the same noise.
            epochs: Number of epochs.
            batch_size: Examples per update, of all processes together. A DataLoader uses its own
                batch size.
            batch: Function that returns x, or a :class:`~tinyvae.Batch`, of a batch of the data.
            transform: Function (x, generator) -> x, applied to each batch.
            workers: Number of processes that read a Dataset ahead, as long as ``fit`` runs.
            drop_last: True to leave out an incomplete last batch. Each epoch leaves out other
                examples.
            resume: ``"auto"`` for the newest valid checkpoint in the :class:`Checkpoint`'s folder,
                if there is one; or the path of a checkpoint or of a folder of checkpoints.

        Returns:
            The history, also of earlier calls. ``history.stop_reason`` explains an early end.

        Raises:
            TypeError, ValueError: If data, model and objective do not fit, before the first step.
            NonFiniteError: If weights or buffers are not finite at the start, or if a loss, a
                gradient or its square is not. The update of that step is not made. (On a GPU the
                error comes some steps later, but no later update was made.)
            CheckpointError: If no checkpoint can be read, or it is of another model.
            FileExistsError: If the folder of the :class:`Checkpoint` holds a run, and ``resume``
                is not given.
            BlockingIOError: If another run uses that folder.
            RuntimeError: If ``fit`` runs in another thread (a callback may fit another model), or
                if another process that trains has died.
            OSError: If that folder or its lock is moved, removed or replaced during the run.
        """
        require_counts(epochs=epochs, batch_size=batch_size, workers=workers)
        state = self.state
        state.processes = joined_processes(self.device)
        source, validation_source = open_sources(
            state,
            train,
            validation,
            pick=batch,
            transform=transform,
            seed=self.seed,
            batch_size=batch_size,
            workers=workers,
            drop_last=drop_last,
        )
        state.stop_request = state.history.stop_reason = None
        self.checkpoint, callbacks = order_callbacks(self.callbacks)
        state.callbacks = self.callbacks = callbacks
        is_first = state.processes.rank == 0
        self._called = called = [c for c in callbacks if is_first or not c.first_process_only]
        interrupt = partial(state.stop, resumable=True)
        with (
            graceful_stop(interrupt, on_preemption=self.checkpoint is not None),
            state.processes.leaving_together(),  # after the first one has written its files
            self.checkpoint.locked() if self.checkpoint in called else nullcontext(),
            closing(source),
            nullcontext() if validation_source is None else closing(validation_source),
            forked_rng(self.device),
            torch.enable_grad(),
        ):
            is_new = state.step == 0 or state.mode.get("speed") != asdict(self.speed)
            prepare = partial(
                prepare_run,
                state,
                self.optimization,
                self.speed,
                self.resolved_speed,
                callbacks,
                source,
                validation_source,
                epochs,
                in_total=resume is not None,
                record_every=self.record_every,
            )
            saved = load_resume_state(self.checkpoint, state, resume, prepare)
            require_same_run_everywhere(state, source, self.seed)
            self.resolved_speed = restored_speed(self.speed, self.resolved_speed, saved)
            compute_gradients, self.resolved_speed = select_fast_path(
                state, self.speed, self.resolved_speed, source, saved, is_new=is_new
            )
            self._train_step = TrainStep(state, self.optimization, compute_gradients)
            self._after_step = StepHooks(called, state, self.seed)
            is_compiled = not isinstance(compute_gradients, Gradients)
            paths = self.speed.describe(self.resolved_speed, is_compiled=is_compiled)
            line = headline(state, source, validation_source, self.seed, paths)
            state.plan = replace(state.plan, headline=line)
            warn_about_schedules(state, state.plan.total_steps)
            with (
                matmul_route(self.resolved_speed.matmul),
                closing(self._train_step),
                running(called, state, saved),
                evaluating_afterwards(self.model, self.objective),
                saving_after_error(called, state),
            ):
                notify_safe_point(called, state, last=is_finished(state))
                is_last = is_finished(state)  # this first safe point is always saved
                while not is_last:
                    is_complete = self._train_epoch(source)
                    data = validation_source if is_complete else None
                    is_last = self._finish_epoch(data, is_complete)
            will_resume = state.is_interrupted and self.checkpoint is not None
            if state.step != state.plan.total_steps and not will_resume:
                warn_about_schedules(state, state.step)
        return state.history

    # The loop -------------------------------------------------------------------------------------

    def _train_epoch(self, source: ValidatedSource) -> bool:
        """Make an update per batch. Return True if all batches of the epoch were used."""
        # The name keeps the iterator open after an error, so that a loader's position is saved.
        state, batches = self.state, training_batches(self.state, source, self.seed)
        for batch in batches:  # x: (B, *E)
            with defer_sigchld():
                state.is_consistent = False  # until the callbacks have seen the update
                output = self._train_step(batch)
                state.advance(output, state.weight)
                if self.record_every is not None and state.step % self.record_every == 0:
                    state.history.record_update(state.step, output)
                is_last = self._after_step(output)
            if is_last:
                return False
        return True

    def _finish_epoch(self, validation: ValidatedSource | None, is_complete: bool) -> bool:
        """Validate, add a row to the history, move schedulers. Return True if the run ends."""
        state = self.state
        state.synchronize()
        warn_about_foreign_seed(noise_seed(state, self.seed, state.batch - 1))
        warn_about_differences(state)
        row: Row = {
            "epoch": state.epoch + 1,
            "step": state.step,
            **learning_rates(state.optimizers),
            **state.running_means.row("train"),
        }
        if validation is not None:
            row |= validate(state, self._called, validation, self.seed)
        with defer_sigchld():
            state.is_consistent = False
            row["time_seconds"] = time.monotonic() - state.start_time
            state.finish_epoch(row)
            with adding_columns(row), state.average.swapped():  # the history holds this row
                for callback in self._called:
                    callback.on_epoch_end(state, row)
            if is_complete and self.optimization.scheduler_interval == "epoch":
                self.optimization.step_schedulers(state.schedulers, row)
            if not is_complete and state.is_interrupted:
                return True  # saved at its last step
            is_last = is_finished(state)  # a later signal counts at the next safe point
            notify_safe_point(self._called, state, last=is_last)
        return is_last
