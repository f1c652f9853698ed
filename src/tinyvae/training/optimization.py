"""Optimization of a run: parameter groups, optimizers, learning rates, schedulers, clipping."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.objective import Objective
from tinyvae.core.warnings import warn
from tinyvae.training.averaging import WeightAverage
from tinyvae.training.history import Row, require_direction, require_validation, watched
from tinyvae.training.rates import (
    Schedule,
    SchedulerFactory,
    follow,
    make_scheduler,
    takes_total,
)

Groups: TypeAlias = Mapping[str, list[nn.Parameter]]
OptimizerFactory: TypeAlias = Callable[[list[dict[str, Any]]], Optimizer]

# Devices on which torch.optim.Adam has one fused kernel.
FUSED = ("cpu", "cuda", "mps", "xpu")


@suggest_keywords
@dataclass(frozen=True)
class Optimization:
    r"""Settings of the optimization.

    With warm-up over :math:`W` of :math:`T` updates, ``schedule`` multiplies the learning rate of
    update :math:`t = 0, \dots, T - 1` by

    .. math:: f_t = \begin{cases} (t + 1) / (W + 1) & t < W \\ g(\tfrac{t - W}{T - W}) & t \geq W
              \end{cases}

    where :math:`g(s)` is 1 (``"constant"``), :math:`1 - s` (``"linear"``) or
    :math:`(1 + \cos \pi s) / 2` (``"cosine"``).

    Frozen parts need no setting: call ``model.encoder.requires_grad_(False)`` before ``fit``.

    Attributes:
        learning_rate: Learning rate. None keeps the optimizer's default (1e-3 for Adam).
        optimizer: Factory ``parameters -> Optimizer``, such as ``AdamW`` or
            ``lambda p: SGD(p, lr=0.1, momentum=0.9)``, or one factory per parameter group of the
            objective, by name. The default is Adam.
        learning_rates: Learning rates of parts of the model, by the start of their parameters'
            names: ``{"encoder": 1e-4}``. Names of the objective's own parameters start with
            ``"objective"``.
        schedule: Decay of the learning rate over the updates of one call of ``fit``:
            ``"constant"``, ``"linear"`` or ``"cosine"``.
        warmup_steps: Number of updates :math:`W` over which the learning rate rises.
        scheduler: Factory of a torch scheduler instead of ``schedule``, such as
            ``lambda optimizer: StepLR(optimizer, 10)``, or one factory per parameter group, by
            name. A parameter named ``total`` receives the number of times that the scheduler will
            be called: ``lambda optimizer, total: OneCycleLR(optimizer, 0.1, total)``.
        scheduler_interval: Interval at which ``scheduler`` is called, ``"epoch"`` or ``"step"``.
            A ``schedule`` is always called per step.
        monitor: Column of the history that ``ReduceLROnPlateau`` watches. Bounds expect its
            ``mode="max"``, and columns with negative values its ``threshold_mode="abs"``.
        clip_norm: Largest norm of a group's gradient. None turns clipping off.
        microbatch_size: Number of examples that pass through the model at once. Larger batches are
            split, and the gradients of the parts are accumulated before the update, which saves
            memory. Only the noise differs from that of the whole batch. Losses that relate the
            examples of a batch are refused.
        average: Average of the weights, :class:`~tinyvae.training.ExponentialMovingAverage` or
            :class:`~tinyvae.training.StochasticWeightAverage`, with which the run is validated and
            the model ends. None for the weights of the last update.

    Example:
        >>> Optimization(2e-3, schedule="cosine", warmup_steps=100).scheduler_interval
        'step'
    """

    learning_rate: float | None = None
    _: KW_ONLY
    optimizer: OptimizerFactory | Mapping[str, OptimizerFactory] | None = None
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    scheduler: SchedulerFactory | Mapping[str, SchedulerFactory] | None = None
    scheduler_interval: Literal["epoch", "step"] = "epoch"
    monitor: str = "validation/loss"
    clip_norm: float | None = None
    microbatch_size: int | None = None
    average: WeightAverage | None = None

    def __post_init__(self) -> None:
        rates = {"learning_rate": self.learning_rate, **self.learning_rates}
        for name, rate in rates.items():
            if isinstance(rate, str):
                raise TypeError(
                    f"Optimization expects a number as {name}, got the text {rate!r}: use "
                    f"float({rate!r})"
                )
            if rate is not None and not 0 <= rate < float("inf"):
                raise ValueError(
                    f"Optimization expects a finite learning rate >= 0, got {rate} for {name}"
                )
        for name, factory in (("optimizer", self.optimizer), ("scheduler", self.scheduler)):
            if isinstance(factory, str):
                raise TypeError(
                    f"Optimization expects {name} as a factory such as torch's class, got "
                    f"{factory!r}"
                )
        if isinstance(self.optimizer, Optimizer):
            name = type(self.optimizer).__name__
            raise TypeError(
                f"Optimization expects a factory of optimizers, got a {name} object: "
                f"pass optimizer=lambda parameters: {name}(parameters, ...)"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"Optimization expects clip_norm > 0 or None, got {self.clip_norm}")
        size = self.microbatch_size
        if size is not None and (not isinstance(size, int) or size < 1):
            raise ValueError(
                f"Optimization expects microbatch_size as an integer >= 1 or None, got {size!r}"
            )
        if not isinstance(self.average, WeightAverage | None):
            raise TypeError(
                "Optimization expects average as an ExponentialMovingAverage(0.999), a "
                f"StochasticWeightAverage(0.75) or None, got {self.average!r:.80}"
            )
        if self.scheduler_interval not in ("epoch", "step"):
            raise ValueError(
                "Optimization expects scheduler_interval 'epoch' or 'step', "
                f"got {self.scheduler_interval!r}"
            )
        self._check_schedule()
        if self._has_schedule:
            object.__setattr__(self, "scheduler_interval", "step")

    def _check_schedule(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise ValueError(
                f"Optimization expects schedule as one of {list(get_args(Schedule))}, "
                f"got {self.schedule!r}: pass torch's schedulers as scheduler="
            )
        if not isinstance(self.warmup_steps, int) or self.warmup_steps < 0:
            raise ValueError(
                f"Optimization expects warmup_steps as an integer >= 0, got {self.warmup_steps!r}"
            )
        if self._has_schedule and self.scheduler is not None:
            raise ValueError(
                f"Optimization expects a schedule or a scheduler, got schedule={self.schedule!r} "
                f"with warmup_steps={self.warmup_steps} and a scheduler: leave one out"
            )

    @property
    def _has_schedule(self) -> bool:
        return self.schedule != "constant" or self.warmup_steps > 0

    def make_optimizers(
        self, groups: Groups, names: Mapping[nn.Parameter, str]
    ) -> dict[str, Optimizer]:
        """Return one optimizer per group; ``names`` holds the name of every parameter.

        Raises:
            ValueError: If a setting names an unknown part or group, or a group is empty.
        """
        for part in self.learning_rates:
            if not any(_within(name, part) for name in names.values()):
                raise ValueError(
                    f"learning_rates names '{part}', but no parameter's name starts with it: "
                    f"use one of {sorted({name.split('.')[0] for name in names.values()})}"
                )
        _check_groups("optimizer", self.optimizer, groups)
        _check_groups("scheduler", self.scheduler, groups)
        optimizers = {}
        for group, parameters in groups.items():
            if not parameters:
                raise ValueError(f"the group '{group}' has no parameter to train: all are frozen")
            factory = _of_group(self.optimizer, group) or _adam
            optimizers[group] = factory(self._by_rate(parameters, names))
            # torch's schedulers start from initial_lr, and a second call of ``fit`` restores it.
            for options in optimizers[group].param_groups:
                options.setdefault("initial_lr", options["lr"])
        return optimizers

    def _by_rate(
        self, parameters: list[nn.Parameter], names: Mapping[nn.Parameter, str]
    ) -> list[dict[str, Any]]:
        """Return torch's parameter groups, one per learning rate."""
        by_part: dict[str | None, list[nn.Parameter]] = {None: []}
        for parameter in parameters:
            matching = [p for p in self.learning_rates if _within(names[parameter], p)]
            # The longest name is the most specific one.
            by_part.setdefault(max(matching, key=len, default=None), []).append(parameter)
        rates: dict[str | None, float | None] = {None: self.learning_rate}
        rates.update(self.learning_rates)
        return [
            {"params": params} | ({} if rates[part] is None else {"lr": rates[part]})
            for part, params in by_part.items()
            if params
        ]

    def make_schedulers(
        self,
        optimizers: Mapping[str, Optimizer],
        *,
        epochs: int,
        steps_per_epoch: int | None,
        has_validation: bool,
        objective: Objective,
    ) -> dict[str, LRScheduler]:
        """Return the schedulers. Raise ValueError if one does not fit the run."""
        schedulers = {}
        for group, optimizer in optimizers.items():
            factory = _of_group(self.scheduler, group)
            if self._has_schedule:
                factory = partial(follow, schedule=self.schedule, warmup_steps=self.warmup_steps)
            if factory is None:
                continue
            total = self._num_calls(epochs, steps_per_epoch)
            scheduler = schedulers[group] = make_scheduler(factory, optimizer, total)
            if isinstance(scheduler, ReduceLROnPlateau):
                self._check_plateau(has_validation, list(optimizers))
                require_direction("ReduceLROnPlateau", self.monitor, scheduler.mode, objective)
        return schedulers

    def _num_calls(self, epochs: int, steps_per_epoch: int | None) -> int:
        if self.scheduler_interval == "epoch":
            return epochs
        if steps_per_epoch is None:
            raise ValueError(
                "a scheduler per step needs the number of steps in an epoch, which these data do "
                "not have: use scheduler= with scheduler_interval='epoch'"
            )
        return epochs * steps_per_epoch

    def _check_plateau(self, has_validation: bool, groups: list[str]) -> None:
        if self.scheduler_interval == "step":
            raise ValueError("ReduceLROnPlateau watches epochs: use scheduler_interval='epoch'")
        require_validation("ReduceLROnPlateau", self.monitor, has_validation, "train/loss")
        part, _, column = self.monitor.partition("/")
        if column == "loss" and len(groups) > 1:
            raise ValueError(
                f"ReduceLROnPlateau watches '{self.monitor}', but each group has its own loss: "
                f"pass monitor= as one of {[f'{part}/loss_{group}' for group in groups]}"
            )

    def step_schedulers(
        self, schedulers: Mapping[str, LRScheduler], row: Row, limit: int | None = None
    ) -> None:
        """Step all schedulers; ``row`` is the epoch's row of the history.

        A scheduler that was made for ``limit`` calls gets no more of them: it keeps its last rate.
        """
        for group, scheduler in schedulers.items():
            if isinstance(scheduler, ReduceLROnPlateau):
                value = watched("ReduceLROnPlateau", self.monitor, row)
                if value < 0 and scheduler.threshold_mode == "rel" and scheduler.threshold > 0:
                    warn(
                        f"ReduceLROnPlateau with threshold_mode='rel' takes worse values of "
                        f"'{self.monitor}' for better ones, because they are negative: pass "
                        "threshold_mode='abs'"
                    )
                scheduler.step(value)
                continue
            calls = getattr(scheduler, "last_epoch", 0)  # a ChainedScheduler does not count
            if limit is None or calls < limit or not self._spans_run(group):
                scheduler.step()

    def _spans_run(self, group: str) -> bool:
        """Return True if the group's scheduler was made for a number of calls."""
        return self._has_schedule or takes_total(_of_group(self.scheduler, group))


# Parameter groups ---------------------------------------------------------------------------------


def parameter_groups(objective: Objective, model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the parameters that each loss trains, by the loss's name.

    Raises:
        ValueError: If a parameter is in two groups.
    """
    groups = {name: list(group) for name, group in objective.parameter_groups(model).items()}
    parameters = [p for group in groups.values() for p in group]
    if num_repeated := len(parameters) - len(set(parameters)):
        raise ValueError(
            f"{type(objective).__name__} has parameter groups {list(groups)} that share "
            f"{num_repeated} parameters: put each parameter in one group"
        )
    return groups


def same_groups(first: Groups, second: Groups) -> bool:
    """Return True if groups have the same names and the same parameter objects."""
    return first.keys() == second.keys() and all(
        [id(p) for p in first[name]] == [id(p) for p in second[name]] for name in first
    )


def named_parameters(objective: Objective, model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of the model, and those of the objective as ``objective.*``."""
    of_objective = objective.named_parameters(prefix="objective")
    return dict(model.named_parameters()) | dict(of_objective)


# Optimizers ---------------------------------------------------------------------------------------


def state_after_step(optimizer: Optimizer) -> dict[str, Any]:
    """Return the state of a copy after one step: the reference for the layout of later states."""
    twin = copy.deepcopy(optimizer)  # without its hooks
    for group in twin.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    type(twin).step(twin)  # not twin.step, which a scheduler may have wrapped
    return twin.state_dict()


def keep_settings(before: Mapping[str, Optimizer], now: Mapping[str, Optimizer]) -> None:
    """Copy learning rates and other settings to new optimizers, from those of their parameters."""
    owners = {p: o for old in before.values() for o in old.param_groups for p in o["params"]}
    for options in (options for optimizer in now.values() for options in optimizer.param_groups):
        sources = {id(owners[p]): owners[p] for p in options["params"] if p in owners}
        if len(sources) == 1:
            (source,) = sources.values()
            options.update({k: source[k] for k in options.keys() & source.keys() - {"params"}})


def _adam(parameters: list[dict[str, Any]]) -> Optimizer:
    device = parameters[0]["params"][0].device.type
    return Adam(parameters, fused=device in FUSED)


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _check_groups(name: str, setting: Any, groups: Iterable[str]) -> None:
    unknown = set(setting) - set(groups) if isinstance(setting, Mapping) else set()
    if unknown:
        raise ValueError(
            f"{name} names the groups {sorted(unknown)}, but the objective has {list(groups)}"
        )


def _of_group(setting: Any, group: str) -> Any:
    return setting.get(group) if isinstance(setting, Mapping) else setting
