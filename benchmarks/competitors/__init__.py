"""Competitors: training loops and libraries, one file each, imported only when they run.

A competitor is a function ``run(workload, images, round_done)`` that trains with Adam at 1e-3 in
float32, reshuffles every epoch, calls ``round_done()`` after every epoch, and returns when that is
False. ``images`` are bytes, ``(N, *data_shape)``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Competitor:
    """Location and requirements of a competitor.

    Attributes:
        title: Description.
        target: ``"module:function"``.
        requirement: Requirement for pip.
        workloads: Names of the workloads that it supports; empty for all.
    """

    title: str
    target: str
    requirement: str = "torch"
    workloads: tuple[str, ...] = ()

    def fits(self, workload: str) -> bool:
        """Return True if it supports the workload of this name."""
        return not self.workloads or workload in self.workloads

    def load(self) -> Callable[..., Any]:
        """Import its function."""
        module, function = self.target.split(":")
        return getattr(import_module(f"{__name__}.{module}"), function)


COMPETITORS = {
    "tinyvae": Competitor("tinyvae Trainer", "tinyvae_trainer:run", "tinyvae"),
    "tinyvae-compiled": Competitor(
        "tinyvae Trainer, compiled", "tinyvae_trainer:run_compiled", "tinyvae"
    ),
    "tinyvae-kept": Competitor(
        "tinyvae Trainer, memory kept", "tinyvae_trainer:run_kept", "tinyvae"
    ),
    "tinyvae-both": Competitor(
        "tinyvae Trainer, compiled, memory kept", "tinyvae_trainer:run_both", "tinyvae"
    ),
    "tuned": Competitor("tuned loop", "tuned_loop:run"),
    "tuned-compiled": Competitor("tuned loop, compiled", "tuned_loop:run_compiled"),
    "jax": Competitor("JAX, jit of a scan", "jax_scan:run", "jax==0.10.2"),
    "naive": Competitor("textbook loop", "naive:run"),
    "notebook": Competitor(
        "published notebook's style", "notebook:run", "torch", ("w1-32", "w1-128")
    ),
    "pythae": Competitor("pythae BaseTrainer", "pythae_trainer:run", "pythae==0.1.2"),
    "lightning": Competitor("Lightning Trainer", "lightning_trainer:run", "lightning==2.6.6"),
}
