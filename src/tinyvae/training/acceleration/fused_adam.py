"""The step of a fused Adam on a CPU: torch's kernel, without the calls that torch makes around it.

On small models ``Adam.step`` spends more time on its way to the kernel than in it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim import optimizer as hooks


@dataclass(frozen=True)
class FusedAdamArguments:
    """What the kernel takes, of one of torch's parameter groups.

    Attributes:
        options: The group's settings, which schedulers change.
        parameters: Its parameters.
        moments: Their first moments.
        squares: Their second moments.
        counts: Their numbers of steps, 0-d views of ``count``.
        count: All of them, to be counted up at once.
    """

    options: dict[str, Any]
    parameters: list[nn.Parameter]
    moments: list[Tensor]
    squares: list[Tensor]
    counts: list[Tensor]
    count: Tensor


def make_step(optimizer: Optimizer) -> Callable[[], object]:
    """``optimizer.step``, or a shorter way to the same numbers."""
    groups = optimizer.param_groups
    is_lean = type(optimizer) in (Adam, AdamW) and all(
        group["fused"]
        and not (group["amsgrad"] or group["capturable"] or group["differentiable"])
        and {p.device.type for p in group["params"]} == {"cpu"}
        and len({p.dtype for p in group["params"]}) == 1
        for group in groups
    )
    return DirectFusedAdam(optimizer) if is_lean else optimizer.step


class DirectFusedAdam:
    """Calls the kernel on operands that are looked up once, wherever nothing else is to be done.

    Args:
        optimizer: An Adam or AdamW, whose state it keeps as torch does.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._operands: list[FusedAdamArguments] = []

    def __call__(self) -> None:
        """Make a step."""
        every = [p for own in self._operands for p in own.parameters]
        if not self._is_plain() or any(p.grad is None for p in every):
            self.optimizer.step()
            self._operands = self._look_up()
            return
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # torch's schedulers ask
        for own in self._operands:
            options = own.options
            beta1, beta2 = options["betas"]
            own.count.add_(1)
            decoupled = options.get("decoupled_weight_decay", type(self.optimizer) is AdamW)
            kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_
            kernel(
                cast("list[Tensor]", own.parameters),
                [cast("Tensor", p.grad) for p in own.parameters],
                own.moments,
                own.squares,
                [],
                own.counts,
                amsgrad=False,
                lr=options["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=options["weight_decay"],
                eps=options["eps"],
                maximize=options["maximize"],
            )

    def _is_plain(self) -> bool:
        """Whether the operands are the optimizer's, and nobody wants to know of its steps."""
        optimizer, state = self.optimizer, self.optimizer.state
        own_step = vars(optimizer).get("step")  # schedulers of torch put a counter there
        return (
            len(self._operands) == len(optimizer.param_groups)
            and all(
                own.options is group
                and len(own.parameters) == len(group["params"])
                and state[own.parameters[0]].get("exp_avg") is own.moments[0]
                for own, group in zip(self._operands, optimizer.param_groups, strict=True)
            )
            and (own_step is None or hasattr(own_step, "_wrapped_by_lr_sched"))
            and vars(optimizer).get("found_inf") is None
            and not optimizer._optimizer_step_pre_hooks
            and not optimizer._optimizer_step_post_hooks
            and not hooks._global_optimizer_pre_hooks
            and not hooks._global_optimizer_post_hooks
        )

    def _look_up(self) -> list[FusedAdamArguments]:
        """FusedAdamArguments, where every parameter has a state; none otherwise."""
        state, operands = self.optimizer.state, []
        for group in self.optimizer.param_groups:
            parameters = list(group["params"])
            if any("exp_avg" not in state[p] for p in parameters):
                return []
            count = torch.stack([state[p]["step"] for p in parameters])
            for parameter, own in zip(parameters, count.unbind(), strict=True):
                state[parameter]["step"] = own
            moments, squares, counts = (
                [state[p][name] for p in parameters] for name in ("exp_avg", "exp_avg_sq", "step")
            )
            operands.append(FusedAdamArguments(group, parameters, moments, squares, counts, count))
        return operands
