"""Size, time and memory of checkpoints, in one or two source trees.

    git worktree add ../before main
    python benchmarks/checkpoints.py --before ../before --after .

The first table has runs that have recorded a number of updates: the bytes written per checkpoint,
the shortest time that the training waits for one, and the processor time and memory of a resume.
The second table has models by their size with Adam's moments: the time of a checkpoint, and the
memory beyond that of the run, in bytes and as a multiple of the size. Each row is measured in a
process of its own. Linux only.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

UPDATES = (0, 10_000, 100_000, 1_000_000)
MEGABYTES = (1, 687)
CHECKPOINTS = 9


def main() -> None:
    """Measure and print, or measure one row if ``--row`` names one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", type=Path)
    parser.add_argument("--after", type=Path, default=Path())
    parser.add_argument("--updates", type=int, nargs="*", default=UPDATES)
    parser.add_argument("--megabytes", type=int, nargs="*", default=MEGABYTES)
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        kind, number = args.row
        print(json.dumps({"updates": of_history, "megabytes": of_model}[kind](int(number))))
        return
    for kind, numbers in (("updates", args.updates), ("megabytes", args.megabytes)):
        for number in numbers:
            for name in ("before", "after"):
                if tree := getattr(args, name):
                    values = run_row(tree, kind, number)
                    texts = [f"{key} {value:,.6g}" for key, value in values.items()]
                    print(f"{number:>9,} {kind} {name:6}  {', '.join(texts)}", flush=True)


def run_row(tree: Path, kind: str, number: int) -> dict[str, float]:
    """Return a row, measured in a new process with the source of ``tree``."""
    command = [sys.executable, __file__, "--row", kind, str(number)]
    env = {**os.environ, "PYTHONPATH": str(tree.resolve() / "src")}
    env["MALLOC_MMAP_THRESHOLD_"] = "1000000"  # freed tensors go back to the system
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


# In the process of a row --------------------------------------------------------------------------


def memory(key: str) -> float:
    """Return the memory of the process in MB, "VmRSS" now or "VmHWM" at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1000


def reset_peak() -> None:
    """Start the measurement of the peak at the present memory."""
    Path("/proc/self/clear_refs").write_text("5")


def written_bytes() -> int:
    """Return the number of bytes that the process has written."""
    return int(Path("/proc/self/io").read_text().split("wchar:")[1].split()[0])


def make_trainer(folder: str, width: int, layers: int, every_steps: int | None = 1):
    """Return a Trainer whose Checkpoint measures how long the training waits for it."""
    import torch

    from tinyvae import ELBO, MLP, VAE, BernoulliLikelihood, Checkpoint, GaussianEncoder, Trainer

    class TimedCheckpoint(Checkpoint):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.seconds, self.written = [], []

        def on_safe_point(self, state, *, last):
            begin = time.perf_counter()
            super().on_safe_point(state, last=last)
            self.seconds.append(time.perf_counter() - begin)
            self._writer.wait()
            self.written.append(written_bytes())

    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = GaussianEncoder(MLP(8, (width,) * layers), latent_dim=2)
    vae = VAE(encoder, MLP(2, (width,), 8), BernoulliLikelihood())
    checkpoint = TimedCheckpoint(folder, every_steps=every_steps, every_minutes=None)
    return checkpoint, Trainer(
        vae, ELBO(), callbacks=[checkpoint], record_every=1, device="cpu", progress=False
    )


def of_history(num_updates: int) -> dict[str, float]:
    """Measure checkpoints of a run that has recorded ``num_updates`` updates."""
    import torch

    x = torch.zeros(CHECKPOINTS, 8)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, trainer = make_trainer(folder, width=64, layers=1)
        trainer.fit(x, epochs=1, batch_size=1)
        names = list(trainer.history.updates[0])
        values = torch.randn(num_updates, len(names) - 1, dtype=torch.float64).tolist()
        rows = (dict(zip(names, [i, *row], strict=True)) for i, row in enumerate(values))
        trainer.history.updates[:0] = rows
        del values
        checkpoint.seconds.clear(), checkpoint.written.clear()
        trainer.fit(x, epochs=1, batch_size=1)
        seconds = min(checkpoint.seconds[1:])  # other load adds to it
        written = (checkpoint.written[-1] - checkpoint.written[0]) / (len(checkpoint.written) - 1)
        resumed = make_trainer(folder, width=64, layers=1)[1]
        before = memory("VmRSS")
        reset_peak()
        begin = time.process_time()
        resumed.fit(x, epochs=2, batch_size=1, resume="auto")
        resume = time.process_time() - begin
        assert resumed.history.updates == trainer.history.updates
        return {
            "written [kB]": written / 1000,
            "waited [ms]": seconds * 1000,
            "resume [s]": resume,
            "memory at resume [MB]": memory("VmHWM") - before,
        }


def of_model(megabytes: int) -> dict[str, float]:
    """Measure checkpoints of a model whose state with moments has a size."""
    import torch

    width = 1000 if megabytes > 100 else 64
    layers = 1 + round(megabytes * 1e6 / 12 / width**2)
    x = torch.zeros(4, 8)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        checkpoint, trainer = make_trainer(folder, width, layers, every_steps=1)
        trainer.fit(x, epochs=1, batch_size=1)
        size = sum(f.stat().st_size for f in Path(folder).glob("step-*4.safetensors")) / 1e6
        trainer.callbacks[-1:] = []
        trainer.fit(x, epochs=1, batch_size=1)
        reset_peak()
        before = memory("VmRSS")
        trainer.fit(x, epochs=1, batch_size=1)
        run = memory("VmHWM") - before
        trainer.callbacks.append(checkpoint)
        checkpoint.seconds.clear()
        reset_peak()
        begin = time.perf_counter()
        trainer.fit(x, epochs=1, batch_size=1)
        seconds = (time.perf_counter() - begin) / len(checkpoint.seconds)
        extra = memory("VmHWM") - before - run
        waited = min(checkpoint.seconds[1:])
        reset_peak()
        before = memory("VmRSS")
        trainer.model.save(Path(folder, "model"))
        saving = memory("VmHWM") - before
        return {
            "size [MB]": size,
            "a step with its checkpoint [s]": seconds,
            "waited [s]": waited,
            "memory [MB]": extra,
            "copies": extra / size,
            "memory of model.save [MB]": saving,
        }


if __name__ == "__main__":
    main()
