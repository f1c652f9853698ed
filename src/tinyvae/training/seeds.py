"""Every random number of a run as a function of (seed, stream, epoch)."""

from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

__all__ = ["Stream", "derive_seed", "epoch_order"]


class Stream(IntEnum):
    """Independent uses of one seed."""

    NOISE = 0
    ORDER = 1
    TRANSFORM = 2
    VALIDATION = 3
    ITEMS = 4


def derive_seed(seed: int, stream: Stream, epoch: int = 0, *place: int) -> int:
    """Seed of a stream in an epoch, or of one place within it.

    Args:
        seed: The run's seed, at least 0.
        stream: What the random numbers are for.
        epoch: Epoch, from 0.
        place: Such as the position of a batch.

    Example:
        >>> derive_seed(0, Stream.NOISE) == derive_seed(0, Stream.ORDER)
        False
    """
    sequence = np.random.SeedSequence((seed, stream, epoch, *place))
    return int(sequence.generate_state(1, np.uint64)[0])


def epoch_order(num_examples: int, seed: int, epoch: int) -> Tensor:
    """Order in which an epoch visits the examples, ``(num_examples,)``.

    Example:
        >>> sorted(epoch_order(5, seed=0, epoch=3).tolist())
        [0, 1, 2, 3, 4]
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, Stream.ORDER, epoch))
    return torch.randperm(num_examples, generator=generator)
