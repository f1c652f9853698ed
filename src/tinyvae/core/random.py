"""Random number generators: seeds of a run, and states that are restored."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from tinyvae._devices import accelerator_module
from tinyvae.core.generators import exclusive_generators


def seed_rng(device: torch.device, seed: int) -> None:
    """Seed the default generators of the CPU and of ``device``, but of no other device."""
    torch.default_generator.manual_seed(seed)
    if module := accelerator_module(device):
        # Apple's devices have no indices, and no function that selects one.
        with nullcontext() if device.type == "mps" else module.device(device):
            module.manual_seed(seed)


@contextmanager
def forked_rng(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Restore the default generators of the CPU and ``device`` afterwards. Set a ``seed`` first.

    Other threads wait, and a run in another thread is an error: see :class:`GeneratorLock`.
    """
    with exclusive_generators("this call"):
        state = rng_state(device)
        try:
            if seed is not None:
                seed_rng(device, seed)
            yield
        finally:
            set_rng_state(device, state)


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the default generators of the CPU and of ``device``."""
    states = {"cpu": torch.get_rng_state()}
    if module := accelerator_module(device):
        states[device.type] = module.get_rng_state(device)
    return states


def set_rng_state(device: torch.device, states: Mapping[str, Tensor]) -> None:
    """Restore the default generators from the result of :func:`rng_state`."""
    torch.set_rng_state(states["cpu"])
    if (module := accelerator_module(device)) and device.type in states:
        module.set_rng_state(states[device.type], device)


class Stream(IntEnum):
    """Independent uses of one seed."""

    NOISE = 0
    ORDER = 1
    TRANSFORM = 2
    VALIDATION = 3
    ITEMS = 4
    ELBO = 5
    IMPORTANCE = 6
    IMPUTATION = 7
    ACTIVITY = 8
    CALLBACKS = 9
    ANNEALING = 10
    PREDICTIVE = 11
    GAPS = 12


def derive_seed(seed: int, stream: Stream, epoch: int = 0, *indices: int) -> int:
    """Return the seed of a stream in an epoch, or of one index within the epoch.

    Args:
        seed: The run's seed, at least 0.
        stream: Use of the random numbers.
        epoch: Epoch, from 0.
        indices: Indices within the epoch, such as the position of a batch.

    Example:
        >>> derive_seed(0, Stream.NOISE) == derive_seed(0, Stream.ORDER)
        False
    """
    sequence = np.random.SeedSequence((seed, stream, epoch, *indices))
    return int(sequence.generate_state(1, np.uint64)[0])


def epoch_order(num_examples: int, seed: int, epoch: int) -> Tensor:
    """Return the order of the examples in an epoch, a permutation ``(num_examples,)``.

    Example:
        >>> sorted(epoch_order(5, seed=0, epoch=3).tolist())
        [0, 1, 2, 3, 4]
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, Stream.ORDER, epoch))
    return torch.randperm(num_examples, generator=generator)
