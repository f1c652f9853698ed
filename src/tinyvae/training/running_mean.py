"""Means of losses and metrics over an epoch."""

import math
from typing import Any

import torch
from torch import Tensor

from tinyvae.core.objective import ObjectiveOutput, perplexity
from tinyvae.training.device_sum import DeviceSum
from tinyvae.training.history import Row, named_values


class RunningMean:
    """Mean of losses and metrics over an epoch, weighted by the weights of the examples.

    A perplexity is computed from the mean shares. The sums stay on the device, so that a step does
    not wait for the device.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._totals: DeviceSum | None = None  # (names,)
        self._shares: dict[str, DeviceSum] = {}  # (J,) each
        self._weight: float | Tensor = 0

    @property
    def weight(self) -> float:
        """Total weight of the examples so far, which is their number if they have none."""
        return float(self._weight)

    def add(self, output: ObjectiveOutput, weight: float | Tensor) -> None:
        """Add a batch of a total ``weight``, a number or 0-d."""
        named = named_values(output)
        if self._totals is None:
            for name, value in named.items():
                if not isinstance(value, Tensor) or value.dim() != 0:
                    is_tensor = isinstance(value, Tensor)
                    got = f"shape {tuple(value.shape)}" if is_tensor else repr(value)
                    raise TypeError(
                        f"an objective's losses and metrics must be 0-d tensors, got {got} for "
                        f"'{name}'"
                    )
            self._names = tuple(named)
            self._totals = DeviceSum([0.0] * len(named), named[self._names[0]].device)
        try:
            values = torch.stack([named[name].detach() for name in self._names])
        except KeyError:  # restored from the middle of an epoch
            raise ValueError(
                f"the checkpoint's run had means of {list(self._names)!r:.200}, got "
                f"{list(named)!r:.200}: continue it with the same objective"
            ) from None
        self._totals.add(values, weight)
        for name, shares in output.shares.items():
            if name not in self._shares:
                self._shares[name] = DeviceSum([0.0] * len(shares), shares.device)
            self._shares[name].add(shares.detach(), weight)
        self._weight = self._weight + weight

    def row(self, part: str) -> Row:
        """Return the means so far as the columns ``part/...``."""
        weight = self.weight or math.nan  # all weights may be 0
        means = {name: total / weight for name, total in self._by_name().items()}
        shares = {name: sums.value() for name, sums in self._shares.items()}
        means |= {name: perplexity(sums / sums.sum()).item() for name, sums in shares.items()}
        return {f"{part}/{name}": mean for name, mean in means.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the sum of each value over the examples, and the sum of their weights."""
        shares = {name: sums.value().tolist() for name, sums in self._shares.items()}
        weight = self._weight.item() if isinstance(self._weight, Tensor) else self._weight
        return {"totals": self._by_name(), "shares": shares, "weight": weight}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore the sums from :meth:`state_dict`, on ``device``."""
        totals: dict[str, float] = state["totals"]
        self._names, self._weight = tuple(totals), state["weight"]
        self._totals = DeviceSum(list(totals.values()), device) if totals else None
        shares: dict[str, list[float]] = state["shares"]
        self._shares = {name: DeviceSum(sums, device) for name, sums in shares.items()}

    def _by_name(self) -> dict[str, float]:
        totals = [] if self._totals is None else self._totals.value().tolist()
        return dict(zip(self._names, totals, strict=True))
