"""Scaling with the number of processes that train together, and its limit by communication.

    python benchmarks/processes.py --processes 1 2

torchrun starts each job on this computer, with one thread per process and gloo. Strong scaling
splits one batch among the processes, weak scaling gives each process such a batch. The script
measures the time of a step, and that of the exchange alone: the mean of all gradients. For more
machines than there are here it computes the time of a ring all-reduce,

    2 (n - 1) / n * bytes / bandwidth + 2 (n - 1) * latency,

and the efficiency of weak scaling, which is the share of the time that is not exchange.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from reporting import head

from tinyvae import ELBO, MLP, VAE, BernoulliLikelihood, GaussianEncoder, Trainer
from tinyvae.training import tune_malloc

SIZES = {"small": (256,), "large": (1024, 1024)}  # hidden layers
WIDTH, BATCH_SIZE, STEPS, EPOCHS = 784, 512, 20, 6
# Name, bytes per second and seconds of latency of links between processes.
LINKS = (("10 Gbit Ethernet", 1.25e9, 50e-6), ("100 Gbit", 12.5e9, 10e-6), ("NVLink", 3e11, 5e-6))
MACHINES = (2, 8, 64)


def work(size: str, batch_size: int) -> None:
    """Train in this process of a job. The first one prints the times of step and exchange."""
    tune_malloc()
    torch.manual_seed(0)
    x = (torch.rand(STEPS * batch_size, WIDTH) < 0.3).float()
    hidden = SIZES[size]
    encoder = GaussianEncoder(MLP(WIDTH, hidden), latent_dim=16)
    vae = VAE(encoder, MLP(16, hidden, out_shape=WIDTH), BernoulliLikelihood())
    trainer = Trainer(vae, ELBO(), progress=False, device="cpu")
    history = trainer.fit(x, epochs=EPOCHS, batch_size=batch_size)
    ends = [row["time_seconds"] for row in history]
    # The first epoch warms up.
    steps = [(end - start) / STEPS for start, end in pairwise(ends)]
    gradients = [torch.zeros_like(p) for p in vae.parameters()]
    processes, exchanges = trainer.state.processes, []
    for _ in range(50 if processes.size > 1 else 0):
        start = time.perf_counter()
        processes.mean(gradients, 1, [False, False])
        exchanges.append(time.perf_counter() - start)
    if processes.rank == 0:
        result = {
            "step_ms": 1e3 * statistics.median(steps),
            "exchange_ms": 1e3 * statistics.median(exchanges or [0.0]),
            "megabytes": sum(g.numel() for g in gradients) * 4 / 1e6,
        }
        sys.stdout.write(json.dumps(result))


def measure(size: str, batch_size: int, processes: int) -> dict[str, Any]:
    """Return the times of a job."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", __file__]
    command += ["--size", size, "--batch-size", str(batch_size)]
    job = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(job.stdout)
    return result


def efficiency(step: float, size: float, machines: int, bandwidth: float, latency: float) -> float:
    """Return the efficiency of weak scaling of a step in seconds with gradients of some bytes."""
    exchange = 2 * (machines - 1) * (size / machines / bandwidth + latency)
    return step / (step + exchange)


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--size", choices=SIZES, help="of a job's process, as for --batch-size")
    parser.add_argument("--batch-size", type=int)
    args = parser.parse_args()
    if args.size is not None:
        work(args.size, args.batch_size)
        return
    kinds = [
        (size, kind, n) for size in SIZES for kind in ("strong", "weak") for n in args.processes
    ]
    rounds: dict[tuple[str, str, int], list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for _ in range(args.rounds):  # interleaved, so that other load affects all alike
        for (size, kind, n), results in rounds.items():
            batch_size = BATCH_SIZE * (n if kind == "weak" else 1)
            results.append(measure(size, batch_size, n))
    rows = []
    for (size, kind, n), results in rounds.items():
        times = {name: statistics.median(r[name] for r in results) for name in results[0]}
        one = statistics.median(r["step_ms"] for r in rounds[size, kind, args.processes[0]])
        speedup = one / times["step_ms"] * (n / args.processes[0] if kind == "weak" else 1)
        rows.append({"size": size, "scaling": kind, "processes": n, "speedup": speedup, **times})
        print(
            f"{size:6} {kind:7} {n:2} processes: step {times['step_ms']:7.2f} ms, exchange "
            f"{times['exchange_ms']:6.2f} ms of {times['megabytes']:.1f} MB, speedup {speedup:.2f}"
        )
    predictions = []
    for size in SIZES:
        row = next(r for r in rows if r["size"] == size and r["processes"] == args.processes[0])
        for link, bandwidth, latency in LINKS:
            step, num_bytes = row["step_ms"] / 1e3, row["megabytes"] * 1e6
            shares = {n: efficiency(step, num_bytes, n, bandwidth, latency) for n in MACHINES}
            predictions.append({"size": size, "link": link, "efficiency": shares})
            cells = ", ".join(f"{n} machines {share:.0%}" for n, share in shares.items())
            print(f"{size:6} over {link:16}: {cells}")
    args.output.mkdir(parents=True, exist_ok=True)
    report = {**head(1), "rows": rows, "predictions": predictions}
    (args.output / "processes.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
