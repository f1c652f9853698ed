"""Check that losses, gradients and changed buffers are finite."""

import cmath
import math
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.optim import ASGD, SGD, Optimizer, Rprop

from tinyvae.core.objective import Batch, ObjectiveOutput
from tinyvae.errors import NonFiniteError
from tinyvae.training.acceleration.found_inf import obeys_found_inf
from tinyvae.training.history import named_values

FINITE = sys.float_info.max
NO_BUFFERS: Mapping[str, Tensor] = MappingProxyType({})
NOT_SQUARING = (SGD, ASGD, Rprop)  # optimizers that never square a gradient


class NonFiniteGuard:
    """Check that raises at the first step with non-finite values, before its update.

    It checks losses, gradients, and buffers that the step changed. A finite gradient is refused,
    too, if its square overflows: an optimizer such as Adam would keep infinity, and never change
    that weight again.

    On a CPU every step is checked. On a GPU the check is asynchronous: ``found_inf`` makes fused
    optimizers skip every update from the first bad step on, and the host reads the flag every
    ``INTERVAL`` steps.

    Args:
        optimizers: The optimizers.
        parameters: Parameters whose gradients are checked, by name.
        find_problem: Function that describes the problem of a batch, for errors.
        clip_norm: Norm to which gradients are clipped after the check.
        waits: True to check each step at once. None decides by the device and the optimizers.
    """

    INTERVAL = 64

    def __init__(
        self,
        optimizers: Mapping[str, Optimizer],
        parameters: Mapping[str, nn.Parameter] | None = None,
        find_problem: Callable[[Batch], str | None] = lambda _: None,
        clip_norm: float | None = None,
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
        self.flag: Tensor | None = None  # 1 after a bad step that the host does not know yet
        self._limits = _gradient_limits(self.parameters, optimizers, clip_norm)
        self._smallest_limit = min(self._limits.values(), default=FINITE)
        self._limit_tensors: dict[tuple[str, ...], Tensor] = {}
        self._batch: Batch | None = None  # the last one that was checked later
        self._pending: list[tuple[str, Tensor, dict[str, Tensor]]] = []

    def check(
        self,
        output: ObjectiveOutput,
        batch: Batch,
        where: str,
        buffers: Mapping[str, Tensor] = NO_BUFFERS,
    ) -> None:
        """Raise NonFiniteError if a value of a step is not finite, at once or later.

        Args:
            output: Losses and metrics of the step.
            batch: Data of the step.
            where: Name of the step, for the error.
            buffers: Buffers that the step changed, by name. They were finite before.
        """
        losses = output.losses.values()
        gradients = [g for p in self.parameters.values() if (g := p.grad) is not None]
        tensors = [g.coalesce().values() if g.is_sparse else g for g in gradients]
        tensors += buffers.values()
        if self.waits and all(cmath.isfinite(loss.item()) for loss in losses):
            # Norms are the cheapest bound of the largest value, but they may overflow.
            norms = torch._foreach_norm(tensors) if tensors else ()
            if sum(map(Tensor.item, norms)) <= self._smallest_limit:
                return
        trained = [name for name, p in self.parameters.items() if p.grad is not None]
        limits = [self._limits[name] for name in trained] + [FINITE] * len(buffers)
        maxima = torch._foreach_norm(tensors, math.inf) if tensors else ()
        names = [*(f"gradient of {name}" for name in trained), *(f"buffer {n}" for n in buffers)]
        named = named_values(output) | dict(zip(names, maxima, strict=True))
        values = torch.stack([*(loss.detach().abs() for loss in losses), *maxima])
        bad = (~(values <= self._limits_of(names, limits, values))).any().float()  # true for NaN
        if self.waits:
            if bad.item():
                raise self._error(where, named, batch)
            return
        # The flag stays up after the first bad step, so that no later update is made.
        self.flag = bad if self.flag is None else torch.maximum(self.flag, bad)
        for optimizer in self.optimizers.values():
            optimizer.found_inf = self.flag  # type: ignore[attr-defined]
        copies = {name: torch.as_tensor(v).detach().clone() for name, v in named.items()}
        self._pending.append((where, bad, copies))
        self._batch = batch
        if len(self._pending) == self.INTERVAL:
            self.synchronize()

    def _limits_of(self, names: list[str], limits: list[float], values: Tensor) -> Tensor:
        """Return the largest allowed values. A device gets them once, because a copy waits."""
        key = (*names, str(values.dtype))
        if key not in self._limit_tensors:
            largest = torch.finfo(values.dtype).max
            padded = [FINITE] * (len(values) - len(limits)) + limits
            numbers = [min(limit, largest) for limit in padded]
            self._limit_tensors[key] = torch.tensor(
                numbers, dtype=values.dtype, device=values.device
            )
        return self._limit_tensors[key]

    def synchronize(self) -> None:
        """Wait for the device. Raise if a step since the last call was not finite."""
        pending, self._pending = self._pending, []
        batch, self._batch = self._batch, None
        flag = self.flag
        self.release()
        if flag is None or not flag.item():
            return
        for where, bad, values in pending:
            if bad.item():
                raise self._error(where, values, batch)

    def release(self) -> None:
        """Remove the flag from the optimizers."""
        self.flag = None
        for optimizer in self.optimizers.values():
            vars(optimizer).pop("found_inf", None)

    def _error(
        self, where: str, values: Mapping[str, Tensor], batch: Batch | None
    ) -> NonFiniteError:
        numbers = {name: value.item() for name, value in values.items()}
        bad = [f"{name} = {v}" for name, v in numbers.items() if not math.isfinite(v)]
        for name, limit in self._limits.items():
            if limit < numbers.get(f"gradient of {name}", 0.0) < math.inf:
                size, dtype = numbers[f"gradient of {name}"], self.parameters[name].dtype
                bad.append(f"gradient of {name} = {size:.2g}, whose square overflows {dtype}")
        # After a bad loss all gradients are bad, so one of them is enough.
        gradients = [term for term in bad if term.startswith(("gradient of", "buffer"))]
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


def _gradient_limits(
    parameters: Mapping[str, nn.Parameter],
    optimizers: Mapping[str, Optimizer],
    clip_norm: float | None,
) -> dict[str, float]:
    """Return the largest absolute value of each parameter's gradient that may be used."""
    groups = [(o, group) for o in optimizers.values() for group in o.param_groups]
    linear = {id(p) for o, g in groups if isinstance(o, NOT_SQUARING) for p in g["params"]}
    limits = {}
    for name, parameter in parameters.items():
        largest = math.sqrt(torch.finfo(parameter.dtype).max)
        is_clipped = clip_norm is not None and clip_norm <= largest
        limits[name] = FINITE if is_clipped or id(parameter) in linear else largest
    return limits
