"""Checks that a model and an objective train on one example, or on parts of a batch."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tinyvae.core.module_state import RunningStatistics, mixes_examples, training
from tinyvae.core.objective import Objective
from tinyvae.training.data.sources import DataSource
from tinyvae.training.data.validated import ValidatedSource
from tinyvae.training.state import TrainState
from tinyvae.training.step import (
    DROP_LAST,
    NORMALIZE,
    Gradients,
    needs_two_examples,
    without_trace,
)


def require_single_examples(state: TrainState, train: ValidatedSource, epoch: int) -> None:
    """Raise if a pass in training mode needs two examples, but a batch has one.

    Batch normalization, for example, needs two. The pass leaves no trace.
    """
    source = train.source
    if source.smallest_batch != 1 or state.processes.size > 1:
        return
    gradients = Gradients(state.model, state.objective, state.groups)
    batch = train.first_batch(epoch)
    with training(state.model, state.objective), without_trace(gradients, state.device):
        try:
            gradients.losses(batch.first(1))
        except (ValueError, RuntimeError, IndexError) as error:
            if len(batch) > 1:
                gradients.losses(batch.first(2))  # raises its own error
            where = f"the last batch of {source.num_examples:,} examples"
            raise needs_two_examples(error, where, _advise_batches(source)) from error


def require_microbatches(state: TrainState, size: int, train: ValidatedSource, epoch: int) -> None:
    """Raise ValueError if the gradient of a batch is not the mean of those of its parts.

    Two examples are passed through the model. The pass leaves no trace.
    """
    objective, model = state.objective, state.model
    with training(model, objective):
        module = find_coupling(model, objective)
        reason = module and f"{type(module).__name__}, which depends on the whole batch"
        if reason is None:
            named = [*model.named_buffers(), *objective.named_buffers(prefix="objective")]
            before = [buffer.clone() for _, buffer in named]
            gradients = Gradients(model, objective, state.groups)
            with without_trace(gradients, state.device):
                gradients.losses(train.first_batch(epoch).first(2))
                pairs = zip(named, before, strict=True)
                changed = [name for (name, now), old in pairs if not torch.equal(now, old)]
            reason = f"the buffer '{changed[0]}', which each pass changes" if changed else None
    if reason is not None:
        raise ValueError(
            f"Optimization(microbatch_size={size}) expects a loss that is a mean over the examples "
            f"of a batch, got {reason}: leave microbatch_size out, and use a smaller batch_size to "
            "save memory"
        )


def require_shares(state: TrainState) -> None:
    """Raise ValueError if the gradient of a batch is not the mean of those of the processes."""
    module = find_coupling(state.model, state.objective, across_processes=True)
    if module is not None:
        advice = "train in one process, or use an objective that is a mean over examples"
        if isinstance(module, _BatchNorm):
            advice = "use nn.GroupNorm, or nn.SyncBatchNorm.convert_sync_batchnorm(model) on GPUs"
        raise ValueError(
            "fit expects a loss that is a mean over examples in several processes, got "
            f"{type(module).__name__}, which depends on the whole batch: {advice}"
        )


def find_coupling(
    model: nn.Module, objective: Objective, *, across_processes: bool = False
) -> nn.Module | None:
    """Return a module that relates the examples of a batch, None if the loss is their mean.

    With ``across_processes``, batch normalization that processes synchronize is allowed. Call in
    training mode.
    """
    # A sum that couples the batch comes before its terms, and the last one is the cause.
    for module in reversed([*objective.modules(), *model.modules()]):
        if isinstance(module, _BatchNorm):
            is_synchronized = across_processes and isinstance(module, nn.SyncBatchNorm)
            couples = mixes_examples(module) and not is_synchronized
        elif isinstance(module, RunningStatistics):
            couples = module.training
        else:
            couples = module is not model and getattr(module, "couples_batch", False)
        if couples:
            return module
    return None


def _advise_batches(source: DataSource) -> str:
    """Return how to avoid a batch of one example."""
    num_examples, size = source.num_examples, source.batch_size
    if num_examples is None or size is None:
        return DROP_LAST
    sizes = [n for n in range(2, num_examples + 1) if num_examples % n != 1]
    if not sizes:
        return f"give more examples, or {NORMALIZE}"
    other = f"use batch_size={min(sizes, key=lambda n: abs(n - size))}"
    return f"{other}, or {NORMALIZE}" if size == 1 else f"{other}. Or {DROP_LAST}"
