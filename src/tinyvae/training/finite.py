"""What is not finite is caught at its step, and named."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from tinyvae.objective import ObjectiveOutput
from tinyvae.training.history import named_values

__all__ = ["NonFiniteError", "require_finite_losses", "require_finite_weights"]


class NonFiniteError(ArithmeticError):
    """A loss was NaN or infinite, and its step not taken; or weights had become so."""


def require_finite_losses(output: ObjectiveOutput, where: str) -> None:
    """Raise, with every value that is not finite, unless all losses are."""
    if all(math.isfinite(loss.item()) for loss in output.losses.values()):
        return
    values = {name: value.item() for name, value in named_values(output).items()}
    bad = ", ".join(f"{name} = {v}" for name, v in values.items() if not math.isfinite(v))
    raise NonFiniteError(
        f"{where}: {bad}. The step was not taken, the history is in trainer.history. Lower the "
        "learning rate, or clip gradients: Optimization(clip_norm=1.0)"
    )


def require_finite_weights(groups: Mapping[str, list[nn.Parameter]], where: str) -> None:
    """Find, once per epoch, what a finite loss with a gradient that is not has left behind."""
    for name, group in groups.items():
        if not all(torch.isfinite(parameter).all() for parameter in group):
            raise NonFiniteError(
                f"{where}: weights of group '{name}' are not finite after a finite loss: its "
                "gradient was not. Clip gradients, or look for a function whose slope is infinite, "
                "such as sqrt at 0"
            )
