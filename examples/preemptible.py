"""A run that may be killed at any time and continues when it is started again.

    python examples/preemptible.py

trains on the embedded digits, in the folder ``runs/preemptible``. Kill it in any way (Ctrl-C,
``kill``, ``kill -9``) and start it again with the same command. It continues after the step of its
last checkpoint, and its final model file has the same bytes as that of an uninterrupted run.

    python examples/preemptible.py --show

demonstrates this with a figure: one run is uninterrupted, another is killed ``--kills`` times at
random times, by SIGKILL and SIGTERM in turn, and started again each time.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from charts import BLUE, INK, ORANGE, figure, heading
from matplotlib.figure import Figure

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    BernoulliLikelihood,
    Callback,
    Checkpoint,
    EarlyStopping,
    GaussianEncoder,
    Trainer,
)
from tinyvae.core import ObjectiveOutput
from tinyvae.datasets import DynamicBinarization, digits
from tinyvae.plotting import save_figure
from tinyvae.schedules import Linear
from tinyvae.training import TrainState

EVERY = 200  # steps between checkpoints
SIGNALS = {signal.SIGKILL: ORANGE, signal.SIGTERM: INK}


class Log(Callback):
    """Append the process id and the step to a file after every step, for the figure."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step_end(self, state: TrainState, output: ObjectiveOutput) -> None:
        """Append a line."""
        with self.path.open("a") as file:
            file.write(f"{os.getpid()} {state.step}\n")


def train(folder: Path, epochs: int) -> None:
    """Train from the last checkpoint of the folder, or from the start."""
    data = digits()
    torch.manual_seed(0)
    vae = VAE(
        GaussianEncoder(MLP((1, 8, 8), hidden=(128,)), latent_dim=8),
        MLP(8, hidden=(128,), out_shape=(1, 8, 8)),
        BernoulliLikelihood(),
    )
    callbacks = [
        Checkpoint(folder, every_steps=EVERY),
        EarlyStopping(patience=epochs),
        Log(folder.with_suffix(".steps")),
    ]
    trainer = Trainer(vae, ELBO(beta=Linear(0.0, 1.0, fraction=0.5)), callbacks=callbacks)
    history = trainer.fit(
        data.images[:1400],
        data.images[1400:],
        epochs=epochs,
        batch_size=32,
        transform=DynamicBinarization(data.max_value),
        resume="auto",
    )
    best = max(history["validation/elbo_nats"])
    print(f"{trainer.step} steps, best validation ELBO {best:.2f} nats")


def steps_of(log: Path) -> dict[str, list[int]]:
    """Return the steps of each process, in the order of the processes."""
    steps_by_process: dict[str, list[int]] = {}
    for line in log.read_text().splitlines():
        pid, step = line.split()
        steps_by_process.setdefault(pid, []).append(int(step))
    return steps_by_process


def run_process(folder: Path, epochs: int, signum: int | None, steps: int) -> None:
    """Run one process; send it ``signum`` after ``steps`` steps, unless ``signum`` is None."""
    log = folder.with_suffix(".steps")
    log.touch()
    before = len(log.read_text().splitlines())
    command = [sys.executable, __file__, "--output", folder, "--epochs", str(epochs)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while signum is not None and process.poll() is None:
        if len(log.read_text().splitlines()) >= before + steps:
            process.send_signal(signum)
            break
        time.sleep(0.001)
    process.wait()


def show(output: Path, epochs: int, kills: int) -> None:
    """Run an uninterrupted and a killed run, compare their models and draw the figure."""
    uninterrupted, killed = output / "uninterrupted", output / "killed"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    run_process(uninterrupted, epochs, None, 0)
    generator = random.Random(0)
    sent = [list(SIGNALS)[index % len(SIGNALS)] for index in range(kills)]
    for signum in (*sent, None):
        run_process(killed, epochs, signum, generator.randrange(50, 500))
    models = [(folder / "model.safetensors").read_bytes() for folder in (uninterrupted, killed)]
    verdict = "the same bytes" if models[0] == models[1] else "NOT THE SAME BYTES"
    print(f"killed {kills} times: {verdict} in model.safetensors")
    chart = draw(list(steps_of(killed.with_suffix(".steps")).values()), sent)
    save_figure(chart, output / "gallery_preemptible.png")


def draw(processes: list[list[int]], sent: list[int]) -> Figure:
    """Plot steps of the run against computed steps, with the signal that ended each process."""
    chart, (axes,) = figure(10, 4.5)
    computed = 0
    for index, steps in enumerate(processes):
        axes.plot(range(computed, computed + len(steps)), steps, color=BLUE, linewidth=2.5)
        computed += len(steps)
        if index < len(sent):
            axes.plot(
                computed - 1, steps[-1], "X", color=SIGNALS[sent[index]], markersize=11, zorder=3
            )
    for signum, color in SIGNALS.items():
        axes.plot([], [], "X", color=color, markersize=11, label=signal.Signals(signum).name)
    axes.legend(frameon=False, fontsize=12, loc="upper left")
    lost = computed - processes[-1][-1]
    title = f"{len(processes)} processes, one run: {lost} steps were computed twice"
    heading(axes, title, "steps computed", "step of the run")
    return chart


def main() -> None:
    """Train, or demonstrate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/preemptible"))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--show", action="store_true", help="kill a run and draw a figure")
    parser.add_argument("--kills", type=int, default=8)
    args = parser.parse_args()
    if args.show:
        show(args.output, args.epochs, args.kills)
    else:
        train(args.output, args.epochs)


if __name__ == "__main__":
    main()
