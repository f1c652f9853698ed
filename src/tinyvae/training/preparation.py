"""Preparation of a call of ``fit``. It checks everything before the first step."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from tinyvae.core.module_state import evaluating, training
from tinyvae.core.objective import Batch, Objective
from tinyvae.core.random import Stream, derive_seed
from tinyvae.core.warnings import warn
from tinyvae.errors import CheckpointError
from tinyvae.training.acceleration.options import ResolvedSpeed, Speed, accelerate, resolve_speed
from tinyvae.training.callbacks import Callback
from tinyvae.training.checkpoints.checkpoint import Checkpoint
from tinyvae.training.checkpoints.compatibility import require_same_run
from tinyvae.training.data.factory import open_data
from tinyvae.training.data.sources import BatchTransform, PickBatch, Transform
from tinyvae.training.data.validated import ValidatedSource
from tinyvae.training.finite_state import require_finite_start
from tinyvae.training.identity import describe_run, warn_about_changes
from tinyvae.training.optimization import Optimization
from tinyvae.training.parts_of_batches import (
    require_microbatches,
    require_shares,
    require_single_examples,
)
from tinyvae.training.plan import RunPlan
from tinyvae.training.state import TrainState
from tinyvae.training.step import (
    ComputeGradients,
    Gradients,
)


def require_parts(
    model: Any, objective: Any, optimization: Any, speed: Any, callbacks: Any
) -> None:
    """Raise TypeError unless these arguments of a Trainer are of their kinds."""
    for argument, kind, expected in (
        (model, nn.Module, "a model such as VAE.from_shapes(...)"),
        (objective, Objective, "an Objective such as ELBO()"),
        (optimization, Optimization, "an Optimization(learning_rate=..., optimizer=...)"),
        (speed, Speed, "a Speed(compile=..., matmul=...)"),
    ):
        if not isinstance(argument, kind):
            raise TypeError(f"Trainer expects {expected}, got {argument!r:.80}")
    if isinstance(callbacks, Callback):
        raise TypeError(
            f"Trainer expects a sequence of callbacks, got one: write [{callbacks!r:.80}]"
        )


def require_numbers(*, seed: Any, record_every: Any) -> None:
    """Raise ValueError unless these arguments of a Trainer are in their ranges."""
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"Trainer expects an integer seed >= 0, got {seed}")
    if record_every is not None and record_every < 1:
        raise ValueError(f"Trainer expects record_every >= 1 or None, got {record_every}")


def require_counts(*, epochs: int, batch_size: int, workers: int) -> None:
    """Raise unless these arguments of ``fit`` are integers in their ranges."""
    counts = (("epochs", epochs, 1), ("batch_size", batch_size, 1), ("workers", workers, 0))
    for name, count, least in counts:
        if not isinstance(count, int) or count < least:
            raise ValueError(f"fit expects {name} as an integer >= {least}, got {count!r}")


def open_sources(
    state: TrainState,
    train: Any,
    validation: Any,
    *,
    pick: PickBatch | None,
    transform: Transform | None,
    seed: int,
    batch_size: int,
    workers: int,
    drop_last: bool,
) -> tuple[ValidatedSource, ValidatedSource | None]:
    """Move model and objective to the device, and return sources of training and validation."""
    dtype = next((p.dtype for p in state.model.parameters()), torch.get_default_dtype())
    state.model.to(state.device)
    state.objective.to(state.device, dtype)
    preparation = BatchTransform(state.device, dtype, pick, transform, processes=state.processes)
    has_warned = state.step > 0
    if state.processes.size > 1:
        with training(state.model, state.objective):
            require_shares(state)

    def check_training(batch: Batch) -> str:
        nonlocal has_warned
        description = _check(state, True, batch)
        problem = None if has_warned else state.objective.find_problem(state.model, batch)
        has_warned = True  # the first batch is enough
        if problem is not None:
            warn(f"training may diverge: {problem}")
        return description

    def open_one(data: Any, role: str, *, shuffle: bool) -> ValidatedSource:
        # Validation data have streams of their own, else batch p would get training's noise.
        source_seed = seed if role == "training" else derive_seed(seed, Stream.VALIDATION)
        try:
            source = open_data(
                data,
                preparation,
                batch_size=batch_size,
                seed=source_seed,
                shuffle=shuffle,
                workers=workers,
                drop_last=drop_last and role == "training",
            )
        except Exception as error:
            if type(error) in (TypeError, ValueError):
                raise type(error)(f"{role} data: {error}") from error
            error.add_note(f"It was raised when fit opened the {role} data.")
            raise
        check = check_training if role == "training" else partial(_check, state, False)
        return ValidatedSource(source, role, check, seed=source_seed, device=state.device)

    train_source = open_one(train, "training", shuffle=True)
    state.fingerprint = {
        "seed": seed,
        "number of examples": train_source.source.num_examples,
        "batches per epoch": (
            train_source.source.num_batches if train_source.source.has_exact_length else None
        ),
    }
    state.data_state = lambda: train_source.source.state_dict(state.batch)
    return train_source, (
        None if validation is None else open_one(validation, "validation", shuffle=False)
    )


def _check(state: TrainState, is_training: bool, batch: Batch) -> str:
    """Check a batch with model and objective in the mode in which they use it."""
    batch.check_weight()
    mode = training if is_training else evaluating
    with mode(state.model, state.objective):
        return state.objective.check(state.model, batch)


def prepare_run(
    state: TrainState,
    optimization: Optimization,
    speed: Speed,
    resolved_speed: ResolvedSpeed,
    callbacks: Sequence[Callback],
    train: ValidatedSource,
    validation: ValidatedSource | None,
    epochs: int,
    saved: Mapping[str, Any] | None,
    *,
    in_total: bool,
    record_every: int | None,
) -> None:
    """Make optimizers and schedulers, check data and checkpoint, restore it, and set ``plan``.

    Args:
        state: State of the run.
        optimization: Settings of optimizers and schedulers.
        speed: Fast paths that the run requests.
        resolved_speed: Fast paths of the trainer's previous run.
        callbacks: Callbacks, which check their states.
        train: Training data.
        validation: Validation data.
        epochs: Number of epochs.
        saved: State of the checkpoint from which the run continues, None for a new run.
        in_total: True if ``epochs`` also counts the epochs that are done.
        record_every: Number of updates between recorded ones.

    Raises:
        CheckpointError: If the run cannot continue from ``saved``. Nothing has changed, and another
            checkpoint may be tried.
    """
    state.set_mode(speed, restored_speed(speed, resolved_speed, saved))
    num_batches = train.source.num_batches  # may be a hint
    if saved is None:
        plan = RunPlan.for_new_run(state.epoch, epochs, in_total=in_total)
        epoch, batch = state.epoch, 0
    else:
        plan = RunPlan.for_resumed_run(saved, epochs)
        epoch, batch = saved["position"]["epoch"], saved["position"]["batch"]
    # Nothing that the user sees changes before the checks have passed: first the checkpoint (its
    # reference needs the optimizers), then the data, and only then is the state restored.
    state.make_optimizers(optimization)
    if saved is None:  # a checkpoint is finite
        require_finite_start(state)
    state.schedulers = optimization.make_schedulers(
        state.optimizers,
        epochs=plan.scheduled_epochs,
        steps_per_epoch=num_batches,
        has_validation=validation is not None,
        objective=state.objective,
    )
    if saved is not None or any(isinstance(callback, Checkpoint) for callback in callbacks):
        others = None if validation is None else validation.source
        state.identity = describe_run(
            state, optimization, train.source, others, record_every=record_every
        )
    if saved is not None:
        require_same_run(state, saved, callbacks)
        warn_about_changes(state, saved)
        train.source.load_state_dict(saved["data"])
    train.begin(epoch, batch, last_epoch=plan.last_epoch)
    if validation is not None:
        validation.begin(0)
    require_single_examples(state, train, epoch)
    if optimization.microbatch_size is not None:
        require_microbatches(state, optimization.microbatch_size, train, epoch)
    num_steps = plan.remaining_steps(num_batches, epoch, batch)
    state.average.begin(optimization.average)
    state.objective.reset_schedules()
    if saved is None:  # fractions in schedules refer to the first call of ``fit``
        schedule_steps = state.plan.schedule_steps if state.step else num_steps
        state.objective.set_step(state.step, schedule_steps)
        state.start()
    else:
        schedule_steps = saved["plan"]["schedule_steps"]
        state.load_state_dict(saved)
    state.plan = replace(
        plan,
        num_steps=num_steps,
        total_steps=None if num_steps is None else state.step + num_steps,
        schedule_steps=schedule_steps,
        scheduled_steps=None if num_batches is None else plan.scheduled_epochs * num_batches,
        has_validation=validation is not None,
    )
    if saved is not None and plan.num_epochs != plan.scheduled_epochs:
        warn(
            f"the run was begun for {plan.start_epoch + plan.scheduled_epochs} epochs and now "
            f"continues to {plan.last_epoch}: schedules and schedulers keep their length"
        )


def restored_speed(
    speed: Speed, resolved: ResolvedSpeed, saved: Mapping[str, Any] | None
) -> ResolvedSpeed:
    """Return the fast paths in a checkpoint if its run requested the same, else ``resolved``."""
    if not _requests_the_same(speed, saved):
        return resolved
    try:
        return ResolvedSpeed(**saved["mode"]["resolved_speed"])  # type: ignore[index]
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's fast paths are unknown: {error}") from error


def select_fast_path(
    state: TrainState,
    speed: Speed,
    resolved: ResolvedSpeed,
    source: ValidatedSource,
    saved: Mapping[str, Any] | None,
    *,
    is_new: bool,
) -> tuple[ComputeGradients, ResolvedSpeed]:
    """Return the forward and backward pass, and the fast paths that the probes chose for it.

    A new or resumed run chooses them now, unless ``saved`` is of one with the same ``speed``.
    """
    gradients = Gradients(state.model, state.objective, state.groups)
    if speed == Speed():
        return gradients, ResolvedSpeed()
    with training(state.model, state.objective):
        example = source.first_batch(state.epoch).part(slice(state.optimization.microbatch_size))
        if (is_new or saved is not None) and not _requests_the_same(speed, saved):
            resolved = _same_speed(state, resolve_speed(gradients, example, speed))
            state.set_mode(speed, resolved)
        if resolved.precision == "float16":
            gradients = replace(gradients, loss_scale=state.loss_scale)
        optimization = state.optimization
        # Gradients of parts of a batch, of several processes, or of a scaled loss change before the
        # update.
        is_whole = (
            optimization.microbatch_size is None
            and state.processes.size == 1
            and resolved.precision != "float16"
        )
        optimizers = state.optimizers if is_whole else {}
        clip_norm = optimization.clip_norm
        return accelerate(gradients, example, speed, resolved, optimizers, clip_norm), resolved


def _same_speed(state: TrainState, resolved: ResolvedSpeed) -> ResolvedSpeed:
    """Return the fast paths that the probes of all processes chose."""
    slow, full = ResolvedSpeed().matmul, ResolvedSpeed().precision
    is_slow, is_full = state.processes.any([resolved.matmul == slow, resolved.precision == full])
    return ResolvedSpeed(
        slow if is_slow else resolved.matmul, full if is_full else resolved.precision
    )


def warn_about_schedules(state: TrainState, steps: int | None) -> None:
    """Warn about each schedule that is longer than a run of ``steps``, None if it is unknown."""
    if steps is None:
        return
    for message in state.objective.unfinished_schedules(steps, state.plan.schedule_steps):
        warn(f"a schedule does not end: {message}")


def _requests_the_same(speed: Speed, saved: Mapping[str, Any] | None) -> bool:
    return saved is not None and saved["mode"]["speed"] == asdict(speed)
