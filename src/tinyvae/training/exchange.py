"""Values that the processes of a run exchange, so that all of them do the same at the same step."""

from collections.abc import Iterator
from itertools import chain, count

import torch

from tinyvae._devices import CPU
from tinyvae.core.objective import Batch, ObjectiveOutput
from tinyvae.core.random import Stream, derive_seed, seed_rng
from tinyvae.core.warnings import warn
from tinyvae.training.data.validated import ValidatedSource
from tinyvae.training.running_mean import RunningMean
from tinyvae.training.state import TrainState


def average_step(state: TrainState, output: ObjectiveOutput) -> ObjectiveOutput:
    """Average gradients, losses and metrics over the examples of all processes, and return these.

    The same exchange tells each process if one of them stops.

    Args:
        state: State of the run. Its parameters have the gradients of this process, and its
            ``weight`` is that of this process, then that of all.
        output: Losses and metrics of this process.
    """
    if state.processes.size == 1:
        return output
    parameters = [p for group in state.groups.values() for p in group]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    parts = (output.losses, output.metrics, output.shares)
    values = [value.detach() for part in parts for value in part.values()]
    means, total, flags = state.processes.mean(
        [*gradients, *values], 0.0 if state.is_idle else float(state.weight), _stop_flags(state)
    )
    state.weight, state.stop_flags = total, flags
    for parameter, mean in zip(parameters, means, strict=False):
        if parameter.grad is not None:
            parameter.grad.copy_(mean)
        elif mean.any():  # of another process
            parameter.grad = mean.clone()
    reduced = iter(means[len(parameters) :])
    losses, metrics, shares = ({n: next(reduced).clone() for n in part} for part in parts)
    return ObjectiveOutput(losses, metrics, shares)


def stops(state: TrainState, *, exchange: bool = True) -> bool:
    """Return True if the run stops. All processes give the same answer.

    Args:
        state: State of the run. A request of another process becomes one of its own.
        exchange: False for the answer of the last :func:`average_step`.
    """
    if state.processes.size == 1:
        return state.stop_request is not None
    if exchange:
        state.stop_flags = state.processes.any(_stop_flags(state))
    if not any(state.stop_flags):
        return False  # a signal may have come since
    is_resumable = not state.stop_flags[1]
    request = state.stop_request
    if request is None or request.resumable != is_resumable:
        state.stop_request = None
        state.stop("another process has stopped", resumable=is_resumable)
    return True


def is_finished(state: TrainState) -> bool:
    """Return True if no step follows in this call of ``fit``, in any process."""
    return stops(state) or state.epoch >= state.plan.last_epoch


def _stop_flags(state: TrainState) -> list[bool]:
    request = state.stop_request
    return [request is not None and request.resumable is kind for kind in (True, False)]


def synchronized_batches(
    state: TrainState, batches: Iterator[Batch], source: ValidatedSource, seed: int
) -> Iterator[Batch]:
    """Yield batches until no process has one, with noise of its own for each.

    A process without a share of a batch repeats an earlier one, which does not count.

    Args:
        state: State of the run, at the position of the first batch.
        batches: Shares of this process.
        source: Their source.
        seed: Seed of the run.
    """
    data, batch = source.source, None
    for position in count(state.batch):
        following = next(batches, None)
        state.is_idle = following is None
        if data.has_exact_length:
            is_over = position == data.num_batches
        else:
            is_over = not any(state.processes.any([not state.is_idle]))
        if is_over:
            return
        if following is not None:
            batch = following
        elif batch is None:  # resumed after its last share
            batch = data.first_batch(state.epoch)
        seed_rng(state.device, noise_seed(state, seed, position))
        yield batch


def noise_seed(state: TrainState, seed: int, batch: int) -> int:
    """Return the seed of the epoch's noise, or with several processes that of the batch.

    The random state is then a function of the position, so one checkpoint restores all processes.
    """
    if state.processes.size == 1:
        return derive_seed(seed, Stream.NOISE, state.epoch)
    return derive_seed(seed, Stream.NOISE, state.epoch, batch, state.processes.rank)


def total_mean(state: TrainState, mean: RunningMean) -> RunningMean:
    """Return the mean over the data of all processes."""
    if state.processes.size == 1:
        return mean
    saved = mean.state_dict()
    totals, shares = saved["totals"], saved["shares"]
    numbers = [saved["weight"], *totals.values(), *chain.from_iterable(shares.values())]
    weight, *sums = state.processes.total(numbers)
    remaining = iter(sums)
    total = RunningMean()
    total.load_state_dict(
        {
            "weight": weight,
            "totals": {name: next(remaining) for name in totals},
            "shares": {name: [next(remaining) for _ in part] for name, part in shares.items()},
        },
        CPU,
    )
    return total


def require_same_run_everywhere(state: TrainState, train: ValidatedSource, seed: int) -> None:
    """Raise ValueError unless all processes start the same run. Then give them the same weights.

    Warn if their loaders, which should read different data, start with the same batch.

    Raises:
        ValueError: If seed, data, model or position differ.
    """
    if state.processes.size == 1:
        return
    source, generators = train.source, state.data_state().get("generators", [])
    numbers = {
        "the same seed": seed,
        "the same number of epochs": state.plan.last_epoch,
        "the same checkpoint, in a folder that all of them see": state.step,
        "the same model": sum(p.numel() for p in state.model.parameters()),
        "the same order of the data, from generators of the same seed": float(
            sum(g.double().sum() for g in generators)
        ),
    }
    if source.is_split:
        numbers["data of the same length"] = source.num_examples or -1
        numbers["the same batch_size"] = source.batch_size or -1
    for expected, differs in zip(numbers, state.processes.differ([*numbers.values()]), strict=True):
        if differs:
            raise ValueError(
                f"fit expects {expected}, in all {state.processes.size} processes, got "
                f"{numbers[expected]:g} in process {state.processes.rank} and another value in "
                "others: run the same script in all processes"
            )
    if not source.is_split and state.batch == 0:
        (differs,) = state.processes.differ([float(train.first_batch(state.epoch).x.sum())])
        if not differs:
            warn(
                "the DataLoaders of all processes start with the same batch, so the data may be "
                "used several times: give each its own part, by a DistributedSampler or in the "
                "IterableDataset, or pass the Dataset itself to fit, which splits it"
            )
    state.processes.copy_from_first(state.model, state.objective)


def warn_about_differences(state: TrainState) -> None:
    """Warn if the weights or buffers of the processes are no longer the same."""
    if state.processes.size == 1:
        return
    sums = {
        f"{kind} of the {name}": float(sum(t.detach().double().sum() for t in tensors))
        for name, part in (("model", state.model), ("objective", state.objective))
        for kind, tensors in (("weights", part.parameters()), ("buffers", part.buffers()))
    }
    for name, differs in zip(sums, state.processes.differ([*sums.values()]), strict=True):
        if differs:
            warn(
                f"{name} differ between the processes, and those of process 0 are saved: a "
                "callback or a module changes them from the data or the noise of its process"
            )
