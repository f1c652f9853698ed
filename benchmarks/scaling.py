"""Scaling with the size of the data and the number of draws, and the time of an import.

    python benchmarks/scaling.py

The script measures the time of a training step per image with 60,000 and with 600,000 images, the
time of a step of IWAE per draw with 50 and with 200 draws, and the time that ``import tinyvae``
adds to ``import torch`` in a new process. The measurements are interleaved.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from competitors.tinyvae_trainer import build
from reporting import head
from workloads import WORKLOADS, Workload, images

from tinyvae import ELBO, IWAE, Callback, Objective, Trainer
from tinyvae.core.objective import ObjectiveOutput
from tinyvae.datasets import DynamicBinarization
from tinyvae.training import TrainState, tune_malloc

STEPS = 100
CLOCK = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


class Stop(Callback):
    """Callback that measures the time per step after a warm-up, and stops the run."""

    WARM_UP = 10

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, state: TrainState, output: ObjectiveOutput) -> None:
        """Start or stop the clock."""
        if state.step == self.WARM_UP:
            self.start = time.perf_counter()
        if state.step == self.WARM_UP + self.steps:
            self.seconds = (time.perf_counter() - self.start) / self.steps
            state.stop("measured")


def step_seconds(workload: Workload, data: torch.Tensor, objective: Objective, steps: int) -> float:
    """Return the time of a training step."""
    stop = Stop(steps)
    trainer = Trainer(build(workload), objective, callbacks=[stop], progress=False, device="cpu")
    transform = DynamicBinarization(255) if workload.gray else None
    trainer.fit(data, epochs=100, batch_size=workload.batch_size, transform=transform)
    return stop.seconds


def import_seconds(module: str) -> float:
    """Return the time of an import in a new interpreter."""
    command = [sys.executable, "-c", CLOCK.format(module)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--allocator", choices=("default", "tuned"), default="default")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.allocator == "tuned":
        tune_malloc()
    wide, many = WORKLOADS["w2"], replace(WORKLOADS["w3-50"], steps=10)
    large = torch.from_numpy(np.concatenate([images(wide, 60_000)] * 10))
    some = torch.from_numpy(images(many))
    measures: dict[str, Callable[[], float]] = {
        "60,000 images": lambda: step_seconds(wide, large[:60_000], ELBO(), STEPS),
        "600,000 images": lambda: step_seconds(wide, large, ELBO(), STEPS),
        "50 draws": lambda: step_seconds(many, some, IWAE(50), 4) / 50,
        "200 draws": lambda: step_seconds(many, some, IWAE(200), 2) / 200,
        "import torch": lambda: import_seconds("torch"),
        "import torch, tinyvae": lambda: import_seconds("torch, tinyvae"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(args.rounds):
        for name, measure in measures.items():
            seconds[name].append(measure())
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    for few, more in (("60,000 images", "600,000 images"), ("50 draws", "200 draws")):
        quotient = statistics.median(np.divide(seconds[more], seconds[few]))
        print(f"{few} to {more}: {quotient:.2f} times the time ({1e3 * middle[few]:.3f} ms first)")
    extra = np.subtract(seconds["import torch, tinyvae"], seconds["import torch"])
    print(f"import tinyvae over import torch: {statistics.median(extra):.3f} s")
    args.output.mkdir(parents=True, exist_ok=True)
    record = head(args.threads) | {"allocator": args.allocator, "torch": torch.__version__}
    record |= {"seconds": seconds}
    (args.output / "scaling.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
