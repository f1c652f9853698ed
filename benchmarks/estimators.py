"""Cost of gradient estimators: time of a step of IWAE relative to the pathwise estimator.

    python benchmarks/estimators.py

Rounds of all estimators are interleaved, so that other load on the machine affects them equally.
The script reports the median and the quartiles of the ratios within rounds.
"""

import time

import numpy as np
import torch

from tinyvae import IWAE, MLP, VAE, Batch, BernoulliLikelihood, GaussianEncoder

ROUNDS, STEPS = 60, 3
ESTIMATORS = ("pathwise", "stl", "dreg")


def seconds(objective: IWAE, vae: VAE, batch: Batch) -> float:
    """Return the time of a few forward and backward passes."""
    start = time.perf_counter()
    for _ in range(STEPS):
        objective(vae, batch).losses["model"].backward()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = GaussianEncoder(MLP(784, hidden=(200, 200)), latent_dim=50)
    vae = VAE(encoder, MLP(50, hidden=(200, 200), out_shape=784), BernoulliLikelihood())
    batch = Batch((torch.rand(20, 784) > 0.5).float())
    for draws in (1, 20):
        objectives = [IWAE(draws, estimator=estimator) for estimator in ESTIMATORS]
        rounds = np.array([[seconds(o, vae, batch) for o in objectives] for _ in range(ROUNDS)])
        ratios = rounds[5:] / rounds[5:, :1]
        print(f"{draws} draws, pathwise: {1e3 * np.median(rounds[5:, 0]) / STEPS:.1f} ms per step")
        for name, column in zip(ESTIMATORS[1:], ratios.T[1:], strict=True):
            low, middle, high = np.quantile(column, (0.25, 0.5, 0.75))
            print(f"  {name}: {middle:.2f} times (quartiles {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
