"""What is not finite is caught at its step, and named."""

import cmath
import math
from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tinyvae.core.objective import ObjectiveOutput
from tinyvae.errors import NonFiniteError
from tinyvae.training.history import named_values


class NonFiniteGuard:
    """Raises at the first step whose losses or gradients are not finite; its update is not made.

    A GPU is not waited for at each step, where its optimizers' kernels heed a flag on the device:
    from the bad step on they do nothing, until it is found out some steps later.

    Args:
        optimizers: The optimizers.
        parameters: Whose gradients are looked at, by name.
        waits: Whether each step is looked at by itself. None, where that costs nothing or has to
            be.
    """

    INTERVAL = 64

    def __init__(
        self,
        optimizers: Mapping[str, Optimizer],
        parameters: Mapping[str, nn.Parameter] | None = None,
        *,
        waits: bool | None = None,
    ) -> None:
        groups = [g for optimizer in optimizers.values() for g in optimizer.param_groups]
        on_cpu = all(p.device.type == "cpu" for group in groups for p in group["params"])
        heeds_flag = all(group.get("fused") for group in groups)
        self.waits = on_cpu or not heeds_flag if waits is None else waits
        self.optimizers = optimizers
        self.parameters = parameters or {}
        self._flag: Tensor | None = None
        self._seen: list[tuple[str, Tensor, dict[str, Tensor]]] = []

    def check(self, output: ObjectiveOutput, where: str) -> None:
        """Look at losses and gradients of a step, or see to it that they will be."""
        losses = output.losses.values()
        if self.waits:
            # A sum is the cheapest look at all: it may also overflow, which is no error yet.
            sums = chain(losses, (gradient.sum() for gradient in self._gradients().values()))
            if not all(cmath.isfinite(number.item()) for number in sums):
                self._raise_if_bad(output, where)
            return
        sizes = self._sizes()
        bad = (~torch.isfinite(torch.stack([*losses, *sizes.values()])).all()).float()
        self._flag = bad if self._flag is None else torch.maximum(self._flag, bad)
        for optimizer in self.optimizers.values():
            optimizer.found_inf = self._flag  # type: ignore[attr-defined]
        named = named_values(output) | sizes
        values = {name: torch.as_tensor(v).detach().clone() for name, v in named.items()}
        self._seen.append((where, bad, values))
        if len(self._seen) == self.INTERVAL:
            self.settle()

    def _raise_if_bad(self, output: ObjectiveOutput, where: str) -> None:
        sizes = self._sizes()
        if not all(torch.isfinite(number) for number in (*output.losses.values(), *sizes.values())):
            raise _error(where, named_values(output) | sizes)

    def _gradients(self) -> dict[str, Tensor]:
        return {name: p.grad for name, p in self.parameters.items() if p.grad is not None}

    def _sizes(self) -> dict[str, Tensor]:
        """Largest absolute value of each gradient, NaN where it has one."""
        dense = {
            f"gradient of {name}": g if g.layout is torch.strided else g.coalesce().values()
            for name, g in self._gradients().items()
        }
        sizes = torch._foreach_norm(list(dense.values()), math.inf) if dense else ()
        return dict(zip(dense, sizes, strict=True))

    def settle(self) -> None:
        """Wait for the device, and raise if a step since the last time was not finite."""
        seen, self._seen = self._seen, []
        flag = self._flag
        self.release()
        if flag is None or not flag.item():
            return
        for where, bad, values in seen:
            if bad.item():
                raise _error(where, values)

    def release(self) -> None:
        """Leave the optimizers without a flag."""
        self._flag = None
        for optimizer in self.optimizers.values():
            vars(optimizer).pop("found_inf", None)


def _error(where: str, values: Mapping[str, Tensor]) -> NonFiniteError:
    numbers = {name: value.item() for name, value in values.items()}
    bad = [f"{name} = {v}" for name, v in numbers.items() if not math.isfinite(v)]
    # Behind a bad loss all gradients are bad, too: the first is enough.
    gradients = [term for term in bad if term.startswith("gradient of")]
    terms = ", ".join([term for term in bad if term not in gradients] or gradients[:1])
    return NonFiniteError(
        f"{where}: {terms}. The step was not taken, the history is in trainer.history. Lower the "
        "learning rate, clip gradients by Optimization(clip_norm=1.0), or look for a function "
        "whose slope is infinite, such as sqrt at 0"
    )


def require_finite_weights(groups: Mapping[str, list[nn.Parameter]], where: str) -> None:
    """Find, once per epoch, what an update of finite size has made too large."""
    for name, group in groups.items():
        if not all(torch.isfinite(parameter).all() for parameter in group):
            raise NonFiniteError(
                f"{where}: weights of group '{name}' are not finite, after finite losses and "
                "gradients: an update was too large. Lower the learning rate"
            )
