"""Learning rates of a run: named schedules, schedulers of torch, and their start in a new call."""

import inspect
import math
from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any, Literal, TypeAlias

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from tinyvae.training.history import Row

Schedule: TypeAlias = Literal["constant", "linear", "cosine"]
SchedulerFactory: TypeAlias = Callable[..., LRScheduler]


def learning_rates(optimizers: Mapping[str, Optimizer]) -> Row:
    """Return the first learning rate of each optimizer, as columns of the history."""
    rates = {name: o.param_groups[0]["lr"] for name, o in optimizers.items()}
    if len(rates) == 1:
        return {"learning_rate": float(*rates.values())}
    return {f"learning_rate/{name}": float(rate) for name, rate in rates.items()}


def restart_rates(optimizer: Optimizer, scheduler: LRScheduler | None) -> None:
    """Set rates that the scheduler moved to their first values. Keep those that the user set."""
    moved: list[Any] = []
    if scheduler is not None and scheduler.optimizer is optimizer:
        moved = scheduler.get_last_lr()
    for options, last in zip_longest(optimizer.param_groups, moved):
        if last is not None and options["lr"] == last:
            options["lr"] = options["initial_lr"]
        else:
            options["initial_lr"] = options["lr"]


def follow(
    optimizer: Optimizer, total: int, *, schedule: Schedule, warmup_steps: int
) -> LRScheduler:
    """Return a scheduler that follows a named schedule. See :class:`Optimization`."""
    if warmup_steps >= total:
        raise ValueError(
            f"warmup_steps={warmup_steps} expects a run of more updates, got {total}: "
            "train longer or warm up for fewer steps"
        )
    if schedule == "cosine" and not warmup_steps:  # torch's own; it rounds differently
        return CosineAnnealingLR(optimizer, total)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        share = (step - warmup_steps) / (total - warmup_steps)
        decays = {"linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}
        return decays.get(schedule, 1.0)

    return LambdaLR(optimizer, factor)


def make_scheduler(factory: SchedulerFactory, optimizer: Optimizer, total: int) -> LRScheduler:
    """Call a factory of schedulers. Raise TypeError if the call fails."""
    try:
        return factory(optimizer, total=total) if takes_total(factory) else factory(optimizer)
    except TypeError as error:
        raise TypeError(
            "Optimization expects a factory of schedulers, such as lambda optimizer: "
            "StepLR(optimizer, 10) or lambda optimizer, total: OneCycleLR(optimizer, 0.1, total), "
            f"got {factory}: {error}"
        ) from error


def takes_total(factory: SchedulerFactory) -> bool:
    """Return True if a factory of schedulers wants the number of calls."""
    return "total" in inspect.signature(factory).parameters
