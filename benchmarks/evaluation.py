"""Cost of log p(x) by importance sampling with 5000 draws per image.

    python benchmarks/evaluation.py

The script compares three tasks on one model (784-200-200-50), in interleaved rounds:
:func:`tinyvae.log_marginal`; the textbook method, which passes 100 copies of one image through the
whole model and uses probabilities and their binary cross-entropy; and the matrix products of the
decoder alone, which are a lower limit. It also reports the largest difference from float64 on the
same draws.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from competitors.tinyvae_trainer import build
from reporting import head
from torch import Tensor, nn
from workloads import WORKLOADS, images

from tinyvae import VAE, log_marginal
from tinyvae.distributions import Distribution
from tinyvae.training import tune_malloc

DRAWS, COPIES, IMAGES = 5000, 100, 4


def by_copies(vae: VAE, x: Tensor) -> Tensor:
    """Return log p(x) by the textbook method."""
    return torch.stack(
        [_log_marginal_of_copies(vae, image.expand(COPIES, *image.shape)) for image in x]
    )


@torch.no_grad()
def _log_marginal_of_copies(vae: VAE, copies: Tensor) -> Tensor:
    log_weights = []
    for _ in range(DRAWS // COPIES):
        q: Distribution = vae.encode(copies)
        z = q.sample()
        probabilities = torch.sigmoid(vae.decoder(z))
        log_px = -F.binary_cross_entropy(probabilities, copies, reduction="none").flatten(1).sum(1)
        log_pz = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
        log_weights.append(log_px + log_pz - q.log_prob(z))
    return torch.cat(log_weights).logsumexp(0) - math.log(DRAWS)


@torch.no_grad()
def products(vae: VAE, x: Tensor) -> None:
    """Compute the decoder's matrix products, in chunks of the fastest size."""
    weights = [m.weight.T for m in vae.decoder.modules() if isinstance(m, nn.Linear)]
    rows = DRAWS // 4
    buffers = [torch.empty(rows, weight.shape[1]) for weight in weights]
    latents = torch.randn(rows, vae.latent_shape.numel())
    for _ in range(4 * len(x)):
        hidden = latents
        for weight, buffer in zip(weights, buffers, strict=True):
            hidden = torch.mm(hidden, weight, out=buffer)


def error(vae: VAE, x: Tensor) -> float:
    """Return the largest difference from float64 on the same draws, nats."""
    z = torch.randn(DRAWS, len(x), *vae.latent_shape)
    with torch.no_grad():
        narrow = vae.decode(z).log_prob(x)
        wide = vae.double().decode(z.double()).log_prob(x.double())
        vae.float()
    return float((narrow.logsumexp(0) - wide.logsumexp(0)).abs().max())


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--allocator", choices=("default", "tuned"), default="default")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.allocator == "tuned":
        tune_malloc()
    torch.manual_seed(0)
    workload = WORKLOADS["w3-50"]
    vae = build(workload).eval()
    x = (torch.from_numpy(images(workload, IMAGES)) > 127).float()
    tasks: dict[str, Callable[[], object]] = {
        "log_marginal": lambda: log_marginal(vae, x, num_samples=DRAWS),
        "copies": lambda: by_copies(vae, x[:1]),
        "products": lambda: products(vae, x),
    }
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(args.rounds + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    images_per_call = {"log_marginal": IMAGES, "copies": 1, "products": IMAGES}
    times = {
        name: np.array(seconds[name][1:]) / images_per_call[name] for name in tasks
    }  # without the warm-up
    print(f"{args.threads} threads, {args.allocator} allocator, {DRAWS} draws, ms per image")
    for name, values in times.items():
        low, middle, high = 1e3 * np.quantile(values, (0.25, 0.5, 0.75))
        print(f"  {name:<14}{middle:8.1f}  (quartiles {low:.1f} to {high:.1f})")
    speedup = np.median(times["copies"] / times["log_marginal"])
    share = np.median(times["products"] / times["log_marginal"])
    print(f"{speedup:.1f} times as fast as by copies, at {share:.0%} of the products' rate")
    difference = error(vae, x)
    print(f"largest difference from float64 on the same draws: {difference:.1e} nats")
    args.output.mkdir(parents=True, exist_ok=True)
    record = head(args.threads) | {"allocator": args.allocator, "torch": torch.__version__}
    record |= {"seconds_per_image": {name: list(values) for name, values in times.items()}}
    record |= {"speedup": speedup, "share_of_products": share, "error_nats": difference}
    (args.output / "evaluation.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
