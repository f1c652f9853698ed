"""An epoch's batches with their noise, and the validation after it."""

from collections.abc import Iterator, Sequence

import torch

from tinyvae.core.module_state import evaluating, set_training_mode
from tinyvae.core.objective import Batch, checked_data
from tinyvae.core.random import Stream, forked_rng, rng_state, seed_rng, set_rng_state
from tinyvae.training.callbacks import Callback, validating
from tinyvae.training.data.validated import ValidatedSource
from tinyvae.training.exchange import noise_seed, synchronized_batches, total_mean
from tinyvae.training.history import Row
from tinyvae.training.running_mean import RunningMean
from tinyvae.training.state import TrainState


def training_batches(state: TrainState, source: ValidatedSource, seed: int) -> Iterator[Batch]:
    """Open the epoch at the current batch, with its noise, in training mode.

    Args:
        state: State of the run.
        source: Training data.
        seed: Seed of the run.
    """
    noise = rng_state(state.device)
    batches = source.batches(state.epoch, state.batch)  # seeds the default generators
    if not state.batch:
        seed_rng(state.device, noise_seed(state, seed, 0))
        state.running_means = RunningMean()
    elif state.processes.size == 1:  # resumed: continue with the noise of the checkpoint
        set_rng_state(state.device, noise)
    else:
        seed_rng(state.device, noise_seed(state, seed, state.batch - 1))
    set_training_mode(state.model, state.objective)
    if state.processes.size == 1:
        return batches
    return synchronized_batches(state, batches, source, seed)


def validate(
    state: TrainState, callbacks: Sequence[Callback], source: ValidatedSource, seed: int
) -> Row:
    """Return the means over the validation data, on the same noise at every call.

    Args:
        state: State of the run.
        callbacks: Callbacks that are called before and after it.
        source: Validation data.
        seed: Seed of the run.
    """
    mean = RunningMean()
    with (
        validating(callbacks, state),
        evaluating(state.model, state.objective),
        torch.no_grad(),
        forked_rng(state.device),
    ):
        batches = source.batches(epoch=0)
        seed_rng(state.device, state.processes.seed(seed, Stream.VALIDATION))
        for batch in batches:  # x: (B, *E)
            with checked_data():
                output = state.objective(state.model, batch)
            mean.add(output, batch.total_weight)
    return total_mean(state, mean).row("validation")
