"""Time of a training step in two source trees, such as before and after a change.

    git worktree add ../before main
    python benchmarks/trees.py --before ../before --after .

Each tree trains in its own process, on its own ``benchmarks/workloads.py``. Rounds are interleaved,
so that other load on the machine affects both equally, and the trees take turns in going first. The
script reports the median time of a step
per tree, and the median of the ratio of the rounds with its quartiles.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

WORKLOADS = ("w1-32", "w1-128", "w2", "w3-1", "w3-50", "w4")
CHILD = """
import sys
import torch
from scaling import step_seconds
from workloads import WORKLOADS, images
from tinyvae import ELBO, IWAE

torch.set_num_threads(int(sys.argv[1]))
for line in sys.stdin:
    workload = WORKLOADS[line.strip()]
    objective = ELBO() if workload.num_samples == 1 else IWAE(workload.num_samples)
    data = torch.from_numpy(images(workload))
    print(step_seconds(workload, data, objective, workload.steps), flush=True)
"""


class Tree:
    """A process that measures the steps of one source tree.

    Args:
        path: The tree.
        threads: Number of threads.
    """

    def __init__(self, path: Path, threads: int) -> None:
        folders = [str(path.resolve() / "src"), str(path.resolve() / "benchmarks")]
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(threads)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self, workload: str) -> float:
        """Return the seconds of a training step."""
        time.sleep(0.3)  # OpenMP's threads of the other process spin for 0.2 s
        print(workload, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--after", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workloads", nargs="+", default=WORKLOADS, choices=WORKLOADS)
    args = parser.parse_args()
    before, after = Tree(args.before, args.threads), Tree(args.after, args.threads)
    for workload in args.workloads:
        pairs = []
        for index in range(args.rounds):
            trees = (before, after) if index % 2 else (after, before)
            seconds = {tree: tree.measure(workload) for tree in trees}
            pairs.append((seconds[before], seconds[after]))
        ratios = [new / old for old, new in pairs]
        low, middle, high = statistics.quantiles(ratios, n=4)
        old, new = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
        print(
            f"{workload:7} {old:8.3f} ms before, {new:8.3f} ms after, "
            f"ratio {middle:.3f} ({low:.3f} to {high:.3f})",
            flush=True,
        )
    for tree in (before, after):
        tree.process.stdin.close()
        tree.process.wait()


if __name__ == "__main__":
    main()
