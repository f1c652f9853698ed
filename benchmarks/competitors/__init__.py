"""Those who train the workloads: one file each, of which only the one that runs is imported.

A competitor is a function ``run(workload, images, round_done)`` that trains one epoch after the
other with Adam at 1e-3 in float32, reshuffles every epoch, calls ``round_done()`` at the end of
each, and returns when that is False. ``images`` are bytes, ``(N, *data_shape)``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

__all__ = ["COMPETITORS", "Competitor"]


@dataclass(frozen=True)
class Competitor:
    """Where to find one, and what it needs.

    Attributes:
        title: What it is, in words.
        target: ``"module:function"``.
        requirement: What pip installs for it.
        workloads: Names of the workloads that it is made for; empty for all.
    """

    title: str
    target: str
    requirement: str = "torch"
    workloads: tuple[str, ...] = ()

    def fits(self, workload: str) -> bool:
        """Whether it is made for the workload of this name."""
        return not self.workloads or workload in self.workloads

    def load(self) -> Callable[..., Any]:
        """Import it."""
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
