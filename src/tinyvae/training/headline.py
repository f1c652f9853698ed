"""What runs, in a line."""

from typing import TYPE_CHECKING

from tinyvae._version import __version__
from tinyvae.training.data.validated import ValidatedSource
from tinyvae.training.step import Gradients

if TYPE_CHECKING:
    from tinyvae.training.trainer import Trainer


def headline(trainer: "Trainer", train: ValidatedSource, epochs: int) -> str:
    """Say what is about to run, for so many epochs."""
    size = sum(p.numel() for group in trainer.groups.values() for p in group)
    counts = (train.source.num_examples, train.source.num_batches)
    examples, steps = ("?" if count is None else f"{count:,}" for count in counts)
    going_on = f", going on after step {trainer.step:,}" if trainer.step else ""
    return (
        f"tinyvae {__version__} on {trainer.device}, seed {trainer.seed}: {size:,} parameters, "
        f"{examples} examples, {epochs} epochs of {steps} steps{going_on}; {train.description}"
        + "".join(f"; {word}" for word in _path_words(trainer))
    )


def _path_words(trainer: "Trainer") -> list[str]:
    """What came of the fast paths that were asked for."""
    words, speed, route = [], trainer.speed, trainer.route
    if speed.compile:
        is_compiled = not isinstance(trainer.differentiate, Gradients)
        words.append("compiled" if is_compiled else "not compiled")
    if speed.matmul != "default":
        words.append(f"matrix products by {route.matmul_words}")
    if speed.precision != "float32":
        words.append(f"networks in {route.precision}")
    return words
