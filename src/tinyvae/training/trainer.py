"""The Trainer: batches in, updates out. It knows objectives and no particular model."""

import os
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tinyvae.core.module_state import evaluating, preserved_modes
from tinyvae.core.objective import Batch, Objective, ObjectiveOutput
from tinyvae.core.random import Stream, derive_seed, forked_rng, rng_state, seed_rng, set_rng_state
from tinyvae.errors import NonFiniteError
from tinyvae.training.acceleration.fused_adam import make_step
from tinyvae.training.acceleration.options import (
    Differentiate,
    ResolvedSpeed,
    Speed,
    accelerate,
    matmul_route,
    resolve_speed,
)
from tinyvae.training.callbacks import Callback, callback_names
from tinyvae.training.checkpoints.checkpoint import checkpoint_first, state_to_resume
from tinyvae.training.checkpoints.compatibility import require_same_run
from tinyvae.training.data.factory import open_data
from tinyvae.training.data.loaders import reader_death
from tinyvae.training.data.sources import BatchTransform, PickBatch, Transform
from tinyvae.training.data.validated import ValidatedSource
from tinyvae.training.devices import choose_device
from tinyvae.training.groups import named_parameters, parameter_groups, same_groups
from tinyvae.training.headline import headline
from tinyvae.training.history import History, Row, RunningMean, plain
from tinyvae.training.nonfinite import NonFiniteGuard, require_finite_weights
from tinyvae.training.optimization import Optimization, clip, learning_rates
from tinyvae.training.plan import Length, Plan
from tinyvae.training.progress import Progress
from tinyvae.training.signals import defer_sigchld, graceful_stop
from tinyvae.training.state import identity, restore, warn_of_changes
from tinyvae.training.step import Gradients


class Trainer:
    """Minimizes an objective.

    Randomness is a function of the seed: from the same weights, the same seed gives bitwise the
    same run on one machine (device, torch, number of threads, fast paths; on a GPU as far as its
    kernels are deterministic). Global random state is left as it was found.

    Args:
        model: Module that the objective understands; moved to the device.
        objective: What is minimized.
        optimization: Optimizer, learning rates, scheduler, clipping.
        callbacks: Called in this order, a :class:`~tinyvae.Checkpoint` first, at the end of
            ``fit`` in reverse.
        speed: Fast paths beyond the default one: compilation, matrix products, mixed precision.
        seed: Seed of order, noise and transforms.
        device: ``"auto"`` takes cuda, else mps, else the CPU.
        record_every: Record every so many updates in ``history.updates``; None records none.
        progress: Whether to report on standard error.

    Attributes:
        history: Record of all calls of :meth:`fit`.
        epoch: Epochs done.
        step: Updates done.
        batch: Batches of the present epoch that are done.
        means: Running means of the present epoch.
        plan: Length of the current call of :meth:`fit`.
        optimizers: Optimizers by parameter group.
        schedulers: Schedulers by parameter group.
        route: What the probes of ``speed`` chose, at the first call of :meth:`fit`.
        interrupted: Whether a signal or an error ended the last call of :meth:`fit`.
        started: When the run would have begun on the monotonic clock, had it not been interrupted.
        identity: What has to be equal for a run to be the same one.

    Example:
        >>> trainer = Trainer(vae, ELBO(), Optimization(learning_rate=2e-3), progress=False)
        >>> history = trainer.fit(x, epochs=2, batch_size=4)
        >>> history["epoch"]
        [1, 2]
    """

    plan: Plan
    route: ResolvedSpeed
    identity: dict[str, Any]

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
        if not isinstance(objective, Objective):
            raise TypeError(f"expected an Objective such as ELBO(), got {objective!r:.80}")
        if optimization is not None and not isinstance(optimization, Optimization):
            raise TypeError(
                "expected an Optimization(learning_rate=..., optimizer=...), "
                f"got {optimization!r:.80}"
            )
        if speed is not None and not isinstance(speed, Speed):
            raise TypeError(f"expected a Speed(compile=..., matmul=...), got {speed!r:.80}")
        if isinstance(callbacks, Callback):
            raise TypeError(f"expected a sequence of callbacks, got one: [{callbacks!r:.80}]")
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"expected an integer seed >= 0, got {seed}")
        if record_every is not None and record_every < 1:
            raise ValueError(f"expected record_every >= 1 or None, got {record_every}")
        self.model = model
        self.objective = objective
        self.optimization = Optimization() if optimization is None else optimization
        reporting = [Progress()] if progress else []
        self.checkpoint, self.callbacks = checkpoint_first([*reporting, *callbacks])
        self.speed = Speed() if speed is None else speed
        self.seed = seed
        self.device = choose_device(device)
        self.record_every = record_every
        self.history = History()
        self.epoch = 0
        self.step = 0
        self.batch = 0
        self.means = RunningMean()
        self.started = 0.0
        self.interrupted = False
        self.route = ResolvedSpeed()
        self._schedule_steps: int | None = None
        self.groups: dict[str, list[nn.Parameter]] = {}
        self.optimizers: dict[str, Optimizer] = {}
        self.schedulers: dict[str, LRScheduler] = {}

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
        resume: str | os.PathLike[str] | None = None,
    ) -> History:
        """Train for ``epochs`` more epochs; called again, it continues.

        Weights, moments, epochs, steps and history go on, and so do scheduled weights of the
        objective, whose fractions are of the first call. Schedulers start afresh over the new
        epochs; moments do, if other parameters are trained than before.

        With ``resume`` it goes on from a checkpoint, at the very step, bitwise as if nothing had
        happened: then ``epochs`` are those of the whole run, and a run that is complete returns
        its history. Bitwise holds within one mode (device, torch, number of threads, fast paths,
        optimizer); another is warned of. Random numbers that come from other generators than
        torch's default ones are not part of a checkpoint (what items of a Dataset draw by Python's
        and numpy's is a function of the seed).

        Args:
            train: Tensor or numpy array ``(N, *E)``, a tuple of these, a Dataset or a DataLoader.
                Floating-point data are converted to the model's dtype.
            validation: The same, evaluated after every epoch on the same noise.
            epochs: Epochs to train for.
            batch_size: Examples per update; a DataLoader has its own.
            batch: Picks x, or a :class:`~tinyvae.Batch`, out of what the data yield.
            transform: Maps (x, generator) to x, for every batch of training and validation.
            workers: Processes that read a Dataset ahead.
            resume: ``"auto"`` goes on from the newest whole checkpoint in the folder of the
                :class:`Checkpoint` among the callbacks, and begins where there is none; or the path
                of a checkpoint or of a folder of them.

        Returns:
            The history, also of earlier calls; ``history.stop_reason`` tells of an early end.

        Raises:
            TypeError, ValueError: If data, model and objective do not fit, before the first step.
            NonFiniteError: If a loss or a gradient is NaN or infinite, at that step, which is not
                taken (on a GPU it is found out some steps later, none of which changes weights).
            CheckpointError: If no checkpoint can be read, or it is of another model.
            FileExistsError: If the folder of the :class:`Checkpoint` holds a run, without
                ``resume``.
            BlockingIOError: If another run is using it.
        """
        for name, count, least in (
            ("epochs", epochs, 1),
            ("batch_size", batch_size, 1),
            ("workers", workers, 0),
        ):
            if not isinstance(count, int) or count < least:
                raise ValueError(f"expected {name} as an integer >= {least}, got {count!r}")
        dtype = next((p.dtype for p in self.model.parameters()), torch.get_default_dtype())
        self.model.to(self.device)
        self.objective.to(self.device, dtype)
        preparation = BatchTransform(self.device, dtype, batch, transform)
        options = {"batch_size": batch_size, "workers": workers}
        train_feed = self._checked(train, "training", preparation, shuffle=True, **options)
        validation_feed = (
            None
            if validation is None
            else self._checked(validation, "validation", preparation, shuffle=False, **options)
        )
        self.history.stop_reason, self.interrupted = None, False
        self._feed, self.identity = train_feed.feed, identity(self.seed, train_feed.feed)
        with (
            graceful_stop(self._interrupt, announced=self.checkpoint is not None),
            nullcontext() if self.checkpoint is None else self.checkpoint.held(),
            forked_rng(self.device),
            torch.enable_grad(),
        ):
            state = state_to_resume(self, resume)
            if state is None:
                length = Length.of_new(self.epoch, epochs, in_total=resume is not None)
            else:
                length = Length.of_resumed(state, epochs)
            self._start(train_feed, validation_feed, length, state)
            with matmul_route(self.route.matmul):
                self._run(train_feed, validation_feed, state)
        return self.history

    def _checked(
        self, data: Any, role: str, preparation: BatchTransform, **options: Any
    ) -> ValidatedSource:
        try:
            feed = open_data(data, preparation, seed=self.seed, **options)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{role} data: {error}") from error
        check = partial(self.objective.check, self.model)
        return ValidatedSource(feed, role, check, seed=self.seed, device=self.device)

    def _start(
        self,
        train: ValidatedSource,
        validation: ValidatedSource | None,
        length: Length,
        state: dict[str, Any] | None,
    ) -> None:
        """Check everything, go to where the run is, and plan the rest."""
        self._make_optimizers()
        self.schedulers = self.optimization.make_schedulers(
            self.optimizers,
            epochs=length.begun,
            steps_per_epoch=train.feed.num_batches,
            has_validation=validation is not None,
        )
        if state is not None:
            require_same_run(self, state)
            warn_of_changes(self, state)
            train.feed.load_state_dict(state["position"]["loader"])
        train.begin(length.epoch, length.batch)
        if validation is not None:
            validation.begin(0)
        run_steps = length.steps(train.feed.num_batches)
        schedule_steps = self._schedule_steps if self.step else run_steps
        self.batch, self.means, self.started = 0, RunningMean(), time.monotonic()
        if self.history.epochs:
            self.started -= self.history.epochs[-1]["time_seconds"]
        self.objective.reset_schedules()
        if state is None:
            self.objective.set_step(self.step, schedule_steps)
        else:
            restore(self, state)
            schedule_steps = state["plan"]["schedule_steps"]
        self._schedule_steps = schedule_steps
        self._steps = {name: make_step(optimizer) for name, optimizer in self.optimizers.items()}
        self._finite = NonFiniteGuard(self.optimizers, self._trained())
        self._choose_paths(train, state)
        self.plan = Plan(
            length,
            run_steps=run_steps,
            total_steps=None if run_steps is None else self.step + run_steps,
            schedule_steps=schedule_steps,
            has_validation=validation is not None,
            headline=headline(self, train, length.epochs),
        )
        if state is not None and length.epochs != length.begun:
            warnings.warn(
                f"the run was begun for {length.first_epoch + length.begun} epochs, and goes on to "
                f"{self.plan.last_epoch}: schedules and schedulers keep the length they have",
                stacklevel=3,
            )
        if self.plan.total_steps is not None:
            self._warn_of_unfinished_schedules(self.plan.total_steps)

    def _make_optimizers(self) -> None:
        """Make optimizers, or go on with those of the same parameters at their first rates."""
        groups = parameter_groups(self.objective, self.model)
        if same_groups(groups, self.groups):
            for optimizer in self.optimizers.values():
                for options in optimizer.param_groups:
                    options["lr"] = options["initial_lr"]
        else:
            self.groups = groups
            named = named_parameters(self.objective, self.model)
            names = {parameter: name for name, parameter in named.items()}
            self.optimizers = self.optimization.make_optimizers(groups, names)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()  # gradients found, or left by an error, are none of this run's

    def _trained(self) -> dict[str, nn.Parameter]:
        own = {id(p) for group in self.groups.values() for p in group}
        named = named_parameters(self.objective, self.model)
        return {name: p for name, p in named.items() if id(p) in own}

    def _choose_paths(self, train: ValidatedSource, state: dict[str, Any] | None) -> None:
        """Make the pass of an update, by the fast paths that were asked for."""
        gradients = Gradients(self.model, self.objective, self.groups)
        self.differentiate: Differentiate = gradients
        if self.speed == Speed():
            return
        with preserved_modes(self.model, self.objective):
            self.model.train()
            self.objective.train()
            example = train.first(self.epoch)
            mode = {} if state is None else state["mode"]
            if mode.get("speed") == asdict(self.speed):
                self.route = ResolvedSpeed(**mode["route"])
            elif self.step == 0 or state is not None:
                self.route = resolve_speed(gradients, example, self.speed)
            self.differentiate = accelerate(gradients, example, self.speed, self.route)

    def _warn_of_unfinished_schedules(self, steps: int) -> None:
        for message in self.objective.unfinished_schedules(steps, self.plan.schedule_steps):
            # The level is that of the call of fit.
            warnings.warn(f"a schedule does not end: {message}", stacklevel=4)

    def _run(
        self,
        train: ValidatedSource,
        validation: ValidatedSource | None,
        state: dict[str, Any] | None,
    ) -> None:
        states = {} if state is None else state["callbacks"]
        with ExitStack() as stack:
            stack.enter_context(preserved_modes(self.model, self.objective))
            stack.callback(self._finite.release)
            for name, callback in zip(callback_names(self.callbacks), self.callbacks, strict=True):
                callback.on_fit_start(self)
                stack.callback(callback.on_fit_end, self)
                if name in states:
                    callback.load_state_dict(states[name])
            if state is not None:
                set_rng_state(self.device, state["position"]["rng"])
            goes_on = self.epoch < self.plan.last_epoch and self.history.stop_reason is None
            self._rest(ending=not goes_on)
            while goes_on and not self.interrupted:
                try:
                    goes_on = self._run_epoch(train, validation)
                except BaseException as error:
                    is_told, death = self.interrupted, reader_death(error, self._feed.workers)
                    self._keep_what_is_whole(error)
                    if is_told and death is not None:
                        break  # the signal was for all processes of the job
                    self.stop(f"{type(error).__name__}: {error}")
                    if death is not None:
                        raise death from error
                    raise
            is_over = self.checkpoint is None or not self.interrupted
            if is_over and (self.history.stop_reason or self.plan.total_steps is None):
                self._warn_of_unfinished_schedules(self.step)

    def stop(self, reason: str) -> None:
        """End the run after the current step; the first ``reason`` goes into the history."""
        if self.history.stop_reason is None:
            self.history.stop_reason = reason

    def _interrupt(self, reason: str) -> None:
        """Stop, where that is no decision of the run's: resumed, it goes on."""
        self.interrupted |= self.history.stop_reason is None
        self.stop(reason)

    def settle(self) -> None:
        """Wait until it is known that all steps so far were finite."""
        self._finite.settle()

    def loader_state(self) -> dict[str, Any]:
        """What the training data remember."""
        return self._feed.state_dict(self.batch)

    def _rest(self, *, ending: bool) -> None:
        self._is_whole = True
        for callback in self.callbacks:
            callback.on_safe_point(self, ending=ending)

    def _keep_what_is_whole(self, error: BaseException) -> None:
        """After an error between two steps, such as of the data, the last step need not be lost."""
        if self._is_whole and not isinstance(error, NonFiniteError):
            self.interrupted |= self.history.stop_reason is None
            with suppress(Exception), defer_sigchld():  # the first error is the one to tell
                self._rest(ending=True)

    def _run_epoch(self, train: ValidatedSource, validation: ValidatedSource | None) -> bool:
        """Train, validate, report; return whether the run goes on."""
        completed = self._train_epoch(train)
        self.settle()
        require_finite_weights(self.groups, f"step {self.step} (epoch {self.epoch + 1})")
        means = self.means.row("train")
        row = {
            "epoch": self.epoch + 1,
            "step": self.step,
            **learning_rates(self.optimizers),
            **means,
        }
        if validation is not None and completed:
            row |= self._validate(validation)
        self._is_whole = False
        row["time_seconds"] = time.monotonic() - self.started
        self.epoch, self.batch = self.epoch + 1, 0
        self.history.epochs.append(row)
        for callback in self.callbacks:
            callback.on_epoch_end(self, row)
        row.update(plain(row))
        if completed and self.optimization.scheduler_interval == "epoch":
            self.optimization.step_schedulers(self.schedulers, row)
        goes_on = self.epoch < self.plan.last_epoch and self.history.stop_reason is None
        if completed or not self.interrupted:
            self._rest(ending=not goes_on)
        return goes_on

    def _train_epoch(self, train: ValidatedSource) -> bool:
        """Use the epoch's batches; return whether these were all."""
        noise = rng_state(self.device)
        batches = train.batches(self.epoch, self.batch)
        if self.batch:
            set_rng_state(self.device, noise)
        else:
            seed_rng(self.device, derive_seed(self.seed, Stream.NOISE, self.epoch))
            self.means = RunningMean()
        self.model.train()
        self.objective.train()
        for batch in batches:
            with defer_sigchld():
                is_stopped = self._step(batch)
            if is_stopped:
                return False
        return True

    def _step(self, batch: Batch) -> bool:
        """Update, and tell of it; return whether the run is to stop."""
        self._is_whole = False
        output = self._update(batch)
        if self.record_every is not None and self.step % self.record_every == 0:
            self.history.record_update(self.step, output)
        for callback in self.callbacks:
            callback.on_step_end(self, output)
        is_stopped = self.history.stop_reason is not None
        if self.interrupted or not is_stopped:
            self._rest(ending=is_stopped)
        return is_stopped

    def _update(self, batch: Batch) -> ObjectiveOutput:
        """One update: the only place where weights change."""
        self.objective.set_step(self.step, self.plan.schedule_steps)
        output = self.differentiate(batch)
        self._finite.check(output, f"step {self.step + 1} (epoch {self.epoch + 1})")
        for name in self.optimizers:
            clip(self.groups[name], self.optimization.clip_norm)
            self._steps[name]()
            for parameter in self.groups[name]:
                parameter.grad = None
        if self.optimization.scheduler_interval == "step":
            self.optimization.step_schedulers(self.schedulers, {})
        self.means.add(output, len(batch))
        self.step, self.batch = self.step + 1, self.batch + 1
        return output

    def _validate(self, validation: ValidatedSource) -> Row:
        """Evaluate on the same noise at every call, leaving the run's noise untouched."""
        mean = RunningMean()
        with evaluating(self.model, self.objective), torch.no_grad(), forked_rng(self.device):
            batches = validation.batches(epoch=0)
            seed_rng(self.device, derive_seed(self.seed, Stream.VALIDATION))
            for batch in batches:
                mean.add(self.objective(self.model, batch), len(batch))
        return mean.row("validation")
