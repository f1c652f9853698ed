"""Profile of a training step on each workload.

    python benchmarks/profiles.py

The script prints shares of the wall-clock time by kind of operation, from torch's profiler. The
rest is Python, dispatch and autograd; it includes the cost of the profiler, so it is an upper
limit.
"""

import argparse
import time
from collections import Counter

import torch
from competitors.tinyvae_trainer import build
from torch.profiler import ProfilerActivity, profile
from workloads import WORKLOADS, Workload, images

from tinyvae import ELBO, IWAE, Trainer
from tinyvae.datasets import DynamicBinarization

KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "addmv", "mv"),
    "convolutions": ("mkldnn_convolution", "convolution_backward", "_slow_conv2d_forward"),
    "optimizer": ("_fused_adam_",),
    "activations": ("tanh", "tanh_backward", "relu", "clamp_min", "threshold_backward", "relu_"),
    "likelihood": ("softplus", "softplus_backward", "sigmoid", "mul", "sub", "sub_", "mul_"),
    "noise": ("normal_", "random_", "randint", "bernoulli_", "uniform_"),
}


def shares(workload: Workload) -> dict[str, float]:
    """Return the share of the time by kind of operation, in an epoch after the first."""
    objective = ELBO() if workload.num_samples == 1 else IWAE(workload.num_samples)
    trainer = Trainer(build(workload), objective, progress=False, device="cpu")
    data = torch.from_numpy(images(workload))
    transform = DynamicBinarization(255) if workload.gray else None
    options = {"epochs": 1, "batch_size": workload.batch_size, "transform": transform}
    trainer.fit(data, **options)
    with profile(activities=[ProfilerActivity.CPU]) as record:
        start = time.perf_counter()
        trainer.fit(data, **options)
        seconds = time.perf_counter() - start
    spent = Counter[str]()
    for event in record.key_averages():
        name = event.key.removeprefix("aten::")
        kind = next((kind for kind, names in KINDS.items() if name in names), "other operations")
        if event.key.startswith("aten::"):
            spent[kind] += event.self_cpu_time_total / 1e6 / seconds
    return dict(spent) | {"the rest": 1 - spent.total()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    columns = [*KINDS, "other operations", "the rest"]
    print(f"| | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for name, workload in WORKLOADS.items():
        spent = shares(workload)
        print(f"| {name} | {' | '.join(f'{spent.get(kind, 0):.0%}' for kind in columns)} |")


if __name__ == "__main__":
    main()
