"""How losses become updates: optimizers, learning rates, schedulers, clipping."""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from tinyvae.training.history import Row
from tinyvae.training.watching import require_validation, watched

OptimizerFactory: TypeAlias = Callable[[list[dict[str, Any]]], Optimizer]
SchedulerFactory: TypeAlias = Callable[..., LRScheduler]

# Devices on which torch.optim.Adam has one fused kernel.
FUSED = ("cpu", "cuda", "mps", "xpu")


@dataclass(frozen=True)
class Optimization:
    """Settings of the optimization.

    Frozen parts need no setting: ``model.encoder.requires_grad_(False)`` before ``fit``.

    Attributes:
        learning_rate: Learning rate; None leaves the optimizer its own (1e-3 for Adam).
        optimizer: Factory ``parameters -> Optimizer`` in the place of Adam, such as ``AdamW`` or
            ``lambda p: SGD(p, lr=0.1, momentum=0.9)``; or one per parameter group of the
            objective, by name.
        learning_rates: Learning rates of parts, by the beginning of their parameters' names:
            ``{"encoder": 1e-4}``. The objective's own begin with ``"objective"``.
        scheduler: Factory of one of torch's schedulers, such as
            ``lambda optimizer: StepLR(optimizer, 10)``. One with a parameter named ``total`` is
            told how often the scheduler will be called:
            ``lambda optimizer, total: CosineAnnealingLR(optimizer, total)``. Or one per group.
        scheduler_interval: Whether it is called after every ``"epoch"`` or every ``"step"``.
        monitor: Column of the history that ``ReduceLROnPlateau`` is given.
        clip_norm: Largest norm of a group's gradient, None for no clipping.
    """

    learning_rate: float | None = None
    optimizer: OptimizerFactory | Mapping[str, OptimizerFactory] | None = None
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    scheduler: SchedulerFactory | Mapping[str, SchedulerFactory] | None = None
    scheduler_interval: Literal["epoch", "step"] = "epoch"
    monitor: str = "validation/loss"
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        rates = {"learning_rate": self.learning_rate, **self.learning_rates}
        for name, rate in rates.items():
            if rate is not None and not 0 <= rate < float("inf"):
                raise ValueError(f"expected a finite learning rate >= 0, got {rate} for {name}")
        for name, setting in (("optimizer", self.optimizer), ("scheduler", self.scheduler)):
            if isinstance(setting, str):
                raise TypeError(
                    f"expected {name} as a factory such as torch's class, got {setting!r}"
                )
        if isinstance(self.optimizer, Optimizer):
            raise TypeError(
                f"expected a factory of optimizers, got a {type(self.optimizer).__name__} object: "
                f"optimizer=lambda parameters: {type(self.optimizer).__name__}(parameters, ...)"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"expected clip_norm > 0 or None, got {self.clip_norm}")
        if self.scheduler_interval not in ("epoch", "step"):
            raise ValueError(
                f"expected scheduler_interval 'epoch' or 'step', got {self.scheduler_interval!r}"
            )

    def make_optimizers(
        self, groups: Mapping[str, list[nn.Parameter]], names: Mapping[nn.Parameter, str]
    ) -> dict[str, Optimizer]:
        """Make an optimizer per group; ``names`` are the parameters' names."""
        for part in self.learning_rates:
            if not any(_within(name, part) for name in names.values()):
                raise ValueError(
                    f"learning_rates names '{part}', which no parameter's name begins with: "
                    f"expected one of {sorted({name.split('.')[0] for name in names.values()})}"
                )
        _check_groups("optimizer", self.optimizer, groups)
        _check_groups("scheduler", self.scheduler, groups)
        optimizers = {}
        for group, parameters in groups.items():
            if not parameters:
                raise ValueError(f"the group '{group}' has no parameter to train: all are frozen")
            factory = _of_group(self.optimizer, group) or self._adam
            optimizers[group] = factory(self._by_rate(parameters, names))
            for options in optimizers[group].param_groups:
                options.setdefault("initial_lr", options["lr"])
        return optimizers

    def make_schedulers(
        self,
        optimizers: Mapping[str, Optimizer],
        *,
        epochs: int,
        steps_per_epoch: int | None,
        has_validation: bool,
    ) -> dict[str, LRScheduler]:
        """Make a scheduler per optimizer that has one."""
        schedulers = {}
        per_step = self.scheduler_interval == "step"
        for group, optimizer in optimizers.items():
            factory = _of_group(self.scheduler, group)
            if factory is None:
                continue
            if per_step and steps_per_epoch is None:
                raise ValueError(
                    "a scheduler per step needs the number of steps in an epoch, which these data "
                    "do not tell: use scheduler_interval='epoch'"
                )
            total = epochs * (steps_per_epoch or 1) if per_step else epochs
            schedulers[group] = _make_scheduler(factory, optimizer, total)
            if isinstance(schedulers[group], ReduceLROnPlateau):
                self._check_plateau(has_validation, list(optimizers))
        return schedulers

    def step_schedulers(self, schedulers: Mapping[str, LRScheduler], row: Row) -> None:
        """Let schedulers make their step; ``row`` is the epoch's of the history."""
        for scheduler in schedulers.values():
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(watched("ReduceLROnPlateau", self.monitor, row))
            else:
                scheduler.step()

    def _check_plateau(self, has_validation: bool, groups: list[str]) -> None:
        if self.scheduler_interval == "step":
            raise ValueError("ReduceLROnPlateau watches epochs: use scheduler_interval='epoch'")
        require_validation(
            "ReduceLROnPlateau",
            self.monitor,
            has_validation=has_validation,
            else_watch="train/loss",
        )
        part, _, column = self.monitor.partition("/")
        if column == "loss" and len(groups) > 1:
            raise ValueError(
                f"ReduceLROnPlateau watches '{self.monitor}', but there is a loss of each group: "
                f"give monitor=, of {[f'{part}/loss_{group}' for group in groups]}"
            )

    def _adam(self, parameters: list[dict[str, Any]]) -> Optimizer:
        device = parameters[0]["params"][0].device.type
        return Adam(parameters, fused=device in FUSED)

    def _by_rate(
        self, parameters: list[nn.Parameter], names: Mapping[nn.Parameter, str]
    ) -> list[dict[str, Any]]:
        """Torch's parameter groups, one per learning rate."""
        by_part: dict[str | None, list[nn.Parameter]] = {None: []}
        for parameter in parameters:
            matching = [p for p in self.learning_rates if _within(names[parameter], p)]
            by_part.setdefault(max(matching, key=len, default=None), []).append(parameter)
        rates: dict[str | None, float | None] = {None: self.learning_rate}
        rates.update(self.learning_rates)
        return [
            {"params": params} | ({} if rates[part] is None else {"lr": rates[part]})
            for part, params in by_part.items()
            if params
        ]


def state_after_step(optimizer: Optimizer) -> dict[str, Any]:
    """Return the state dict after one dummy step: the reference for loaded states."""
    twin = copy.deepcopy(optimizer)  # without its hooks
    for group in twin.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    type(twin).step(twin)
    return twin.state_dict()


def learning_rates(optimizers: Mapping[str, Optimizer]) -> Row:
    """First learning rate of each optimizer, as a row of the history has it."""
    rates = {name: o.param_groups[0]["lr"] for name, o in optimizers.items()}
    if len(rates) == 1:
        return {"learning_rate": float(*rates.values())}
    return {f"learning_rate/{name}": float(rate) for name, rate in rates.items()}


def _make_scheduler(factory: SchedulerFactory, optimizer: Optimizer, total: int) -> LRScheduler:
    takes_total = "total" in inspect.signature(factory).parameters
    try:
        return factory(optimizer, total=total) if takes_total else factory(optimizer)
    except TypeError as error:
        raise TypeError(
            "expected a factory of schedulers, such as lambda optimizer: StepLR(optimizer, 10) or "
            f"lambda optimizer, total: CosineAnnealingLR(optimizer, total), got {factory}: {error}"
        ) from error


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _check_groups(name: str, setting: Any, groups: Iterable[str]) -> None:
    unknown = set(setting) - set(groups) if isinstance(setting, Mapping) else set()
    if unknown:
        raise ValueError(f"{name} names the groups {sorted(unknown)}, expected of {list(groups)}")


def _of_group(setting: Any, group: str) -> Any:
    return setting.get(group) if isinstance(setting, Mapping) else setting


def clip(parameters: list[nn.Parameter], max_norm: float | None) -> None:
    """Scale gradients down to ``max_norm``; None changes nothing."""
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
