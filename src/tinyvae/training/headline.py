"""The line that says what runs."""

from collections.abc import Sequence

from tinyvae._version import __version__
from tinyvae.training.data.validated import ValidatedSource
from tinyvae.training.state import TrainState


def headline(state: TrainState, train: ValidatedSource, seed: int, paths: Sequence[str]) -> str:
    """Return one line about device, sizes, length, objective and fast paths."""
    size = sum(p.numel() for group in state.groups.values() for p in group)
    counts = (train.source.num_examples, train.source.num_batches)
    examples, steps = ("?" if count is None else f"{count:,}" for count in counts)
    continued = f", continuing after step {state.step:,}" if state.step else ""
    return (
        f"tinyvae {__version__} on {state.device}, seed {seed}: {size:,} parameters, "
        f"{examples} examples, {state.plan.num_epochs} epochs of {steps} steps{continued}; "
        + "; ".join([train.description, *paths])
    )
