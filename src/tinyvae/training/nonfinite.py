"""Checks that losses, gradients and weights are finite."""

import cmath
import math
from collections.abc import Callable, Mapping
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tinyvae.core.objective import Batch, ObjectiveOutput
from tinyvae.errors import NonFiniteError
from tinyvae.training.acceleration.found_inf import obeys_found_inf
from tinyvae.training.history import named_values


class NonFiniteGuard:
    """Check that raises at the first step with non-finite losses or gradients, before its update.

    On a CPU every step is checked. On a GPU the check is asynchronous: ``found_inf`` makes fused
    optimizers skip every update from the first bad step on, and the host reads the flag every
    ``INTERVAL`` steps.

    Args:
        optimizers: The optimizers.
        parameters: Parameters whose gradients are checked, by name.
        find_problem: Function that describes the problem of a batch, for errors.
        waits: True to check each step at once. None decides by the device and the optimizers.
    """

    INTERVAL = 64

    def __init__(
        self,
        optimizers: Mapping[str, Optimizer],
        parameters: Mapping[str, nn.Parameter] | None = None,
        find_problem: Callable[[Batch], str | None] = lambda _: None,
        *,
        waits: bool | None = None,
    ) -> None:
        groups = [g for optimizer in optimizers.values() for g in optimizer.param_groups]
        devices = {p.device for group in groups for p in group["params"]}
        on_cpu = all(device.type == "cpu" for device in devices)
        is_fused = not on_cpu and all(group.get("fused") for group in groups)
        reads_flag = is_fused and all(map(obeys_found_inf, devices))
        self.waits = on_cpu or not reads_flag if waits is None else waits
        self.optimizers = optimizers
        self.parameters, self.find_problem = parameters or {}, find_problem
        self._batch: Batch | None = None  # the last one that was checked later
        self._flag: Tensor | None = None
        self._pending: list[tuple[str, Tensor, dict[str, Tensor]]] = []

    def check(self, output: ObjectiveOutput, batch: Batch, where: str) -> None:
        """Raise NonFiniteError if losses or gradients of a step are not finite, at once or later.

        Args:
            output: Losses and metrics of the step.
            batch: Data of the step.
            where: Name of the step, for the error.
        """
        losses = output.losses.values()
        if self.waits:
            # A sum is the cheapest check, but it may overflow although all elements are finite.
            sums = chain(losses, (gradient.sum() for gradient in self._gradients().values()))
            if all(cmath.isfinite(number.item()) for number in sums):
                return
            norms = self._norms()
            if not all(torch.isfinite(number) for number in (*losses, *norms.values())):
                raise self._error(where, named_values(output) | norms, batch)
            return
        norms = self._norms()
        bad = (~torch.isfinite(torch.stack([*losses, *norms.values()])).all()).float()
        # The flag stays up after the first bad step, so that no later update is made.
        self._flag = bad if self._flag is None else torch.maximum(self._flag, bad)
        for optimizer in self.optimizers.values():
            optimizer.found_inf = self._flag  # type: ignore[attr-defined]
        named = named_values(output) | norms
        values = {name: torch.as_tensor(v).detach().clone() for name, v in named.items()}
        self._pending.append((where, bad, values))
        self._batch = batch
        if len(self._pending) == self.INTERVAL:
            self.synchronize()

    def _gradients(self) -> dict[str, Tensor]:
        return {name: p.grad for name, p in self.parameters.items() if p.grad is not None}

    def _norms(self) -> dict[str, Tensor]:
        """Return the largest absolute value of each gradient, NaN if it has a NaN."""
        dense = {
            f"gradient of {name}": g if g.layout is torch.strided else g.coalesce().values()
            for name, g in self._gradients().items()
        }
        norms = torch._foreach_norm(list(dense.values()), math.inf) if dense else ()
        return dict(zip(dense, norms, strict=True))

    def synchronize(self) -> None:
        """Wait for the device. Raise if a step since the last call was not finite."""
        pending, self._pending = self._pending, []
        batch, self._batch = self._batch, None
        flag = self._flag
        self.release()
        if flag is None or not flag.item():
            return
        for where, bad, values in pending:
            if bad.item():
                raise self._error(where, values, batch)

    def release(self) -> None:
        """Remove the flag from the optimizers."""
        self._flag = None
        for optimizer in self.optimizers.values():
            vars(optimizer).pop("found_inf", None)

    def _error(
        self, where: str, values: Mapping[str, Tensor], batch: Batch | None
    ) -> NonFiniteError:
        numbers = {name: value.item() for name, value in values.items()}
        bad = [f"{name} = {v}" for name, v in numbers.items() if not math.isfinite(v)]
        # After a bad loss all gradients are bad, so one of them is enough.
        gradients = [term for term in bad if term.startswith("gradient of")]
        terms = [term for term in bad if term not in gradients]
        is_first = where.startswith("step 1 ")
        cause = self._likely_cause(batch, has_loss=bool(terms), is_first=is_first)
        return NonFiniteError(
            f"{where}: {', '.join(terms or gradients[:1])}. The step was not taken, and the "
            f"history is in trainer.history. {cause}"
        )

    def _likely_cause(self, batch: Batch | None, *, has_loss: bool, is_first: bool) -> str:
        """Return the likely cause of an error, with the remedy."""
        context = None if batch is None else batch.context
        if context is not None and not torch.isfinite(context).all():
            return "The context has values that are not finite: drop or impute them"
        problem = None if batch is None else self.find_problem(batch)
        if problem is not None:
            return problem
        if any(p.dtype == torch.float16 for p in self.parameters.values()):
            return (
                "The model computes in float16, which ends at 65,504: use model.float(), with "
                "Speed(precision='bfloat16') for speed"
            )
        if not has_loss:
            return (
                "The losses are finite: look for a function whose slope is infinite, such as sqrt "
                "at 0, or clip gradients by Optimization(clip_norm=1.0)"
            )
        if is_first:
            return (
                "No update was made yet, so the learning rate is not the cause: look at the range "
                "of the networks' outputs with the initial weights"
            )
        rates = [g["lr"] for o in self.optimizers.values() for g in o.param_groups]
        return (
            f"Lower the learning rate, now {float(max(rates)):g}, clip gradients by "
            "Optimization(clip_norm=1.0), or look for a function whose slope is infinite, such as "
            "sqrt at 0"
        )


def require_finite_weights(groups: Mapping[str, list[nn.Parameter]], where: str) -> None:
    """Raise NonFiniteError if a weight is not finite, since finite updates may overflow."""
    for name, group in groups.items():
        if not all(torch.isfinite(parameter).all() for parameter in group):
            raise NonFiniteError(
                f"{where}: weights of group '{name}' are not finite after finite losses and "
                "gradients: an update was too large. Lower the learning rate"
            )
