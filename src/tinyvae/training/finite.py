"""What is not finite is caught at its step, and named."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tinyvae.objective import ObjectiveOutput
from tinyvae.training.history import named_values

__all__ = ["FiniteLosses", "NonFiniteError", "require_finite_weights"]


class NonFiniteError(ArithmeticError):
    """A loss was NaN or infinite, and its step not taken; or weights had become so."""


class FiniteLosses:
    """Raises at the first step with a loss that is NaN or infinite; its update is not made.

    A GPU is not waited for at each step, where its optimisers' kernels heed a flag on the device:
    from the bad step on they do nothing, until it is found out some steps later.

    Args:
        optimizers: The optimisers.
        waits: Whether the losses are looked at in every step. None, where that costs nothing or
            has to be.
    """

    INTERVAL = 64

    def __init__(self, optimizers: Mapping[str, Optimizer], *, waits: bool | None = None) -> None:
        groups = [g for optimizer in optimizers.values() for g in optimizer.param_groups]
        on_cpu = all(p.device.type == "cpu" for group in groups for p in group["params"])
        heeds_flag = all(group.get("fused") for group in groups)
        self.waits = on_cpu or not heeds_flag if waits is None else waits
        self.optimizers = optimizers
        self._flag: Tensor | None = None
        self._seen: list[tuple[str, Tensor, dict[str, Tensor]]] = []

    def check(self, output: ObjectiveOutput, where: str) -> None:
        """Look at the losses of a step, or see to it that they will be."""
        if self.waits:
            if not all(math.isfinite(loss.item()) for loss in output.losses.values()):
                raise _error(where, named_values(output))
            return
        values = {name: torch.as_tensor(v).detach() for name, v in named_values(output).items()}
        bad = (~torch.isfinite(torch.stack(list(output.losses.values()))).all()).float()
        self._flag = bad if self._flag is None else torch.maximum(self._flag, bad)
        for optimizer in self.optimizers.values():
            optimizer.found_inf = self._flag  # type: ignore[attr-defined]
        self._seen.append((where, bad, {name: value.clone() for name, value in values.items()}))
        if len(self._seen) == self.INTERVAL:
            self.settle()

    def settle(self) -> None:
        """Wait for the device, and raise if a loss since the last time was not finite."""
        seen, self._seen = self._seen, []
        flag = self._flag
        self.release()
        if flag is None or not flag.item():
            return
        for where, bad, values in seen:
            if bad.item():
                raise _error(where, values)

    def release(self) -> None:
        """Leave the optimisers without a flag."""
        self._flag = None
        for optimizer in self.optimizers.values():
            vars(optimizer).pop("found_inf", None)


def _error(where: str, values: Mapping[str, Tensor]) -> NonFiniteError:
    numbers = {name: value.item() for name, value in values.items()}
    bad = ", ".join(f"{name} = {v}" for name, v in numbers.items() if not math.isfinite(v))
    return NonFiniteError(
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
