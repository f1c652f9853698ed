"""Gray levels of digits: five likelihoods, compared in bits per dimension.

    python examples/gray_levels.py

The digits have seventeen levels, 0 to 16. A categorical distribution, a discretized logistic
distribution and a mixture of five give each level a mass. A Gaussian gives a density. With uniform
noise in bins of width 1/17, E log p(y) + log(1/17) per pixel is a lower bound on the log mass.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from charts import dots, figure, heading
from torch import Tensor

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    CategoricalLikelihood,
    EarlyStopping,
    GaussianEncoder,
    GaussianLikelihood,
    Likelihood,
    Optimization,
    Trainer,
    evaluate,
)
from tinyvae.datasets import Dequantization, digits, split
from tinyvae.evaluation import Report
from tinyvae.likelihoods import DiscretizedLogisticLikelihood, MixtureLikelihood
from tinyvae.plotting import image_rows, save_figure

SHAPE, LEVELS = (1, 8, 8), 17
MASSES: dict[str, Callable[[], Likelihood]] = {
    "categorical": lambda: CategoricalLikelihood(LEVELS, ordered=True),
    "discretized logistic": lambda: DiscretizedLogisticLikelihood(LEVELS),
    "mixture of 5\ndiscretized logistics": lambda: MixtureLikelihood(
        DiscretizedLogisticLikelihood(LEVELS), num_components=5
    ),
}
DENSITIES: dict[str, Callable[[], Likelihood]] = {
    "Gaussian, predicted scale\n(dequantized)": lambda: GaussianLikelihood("predicted"),
    "Gaussian, one learned scale\n(dequantized)": lambda: GaussianLikelihood("learned"),
}


def fit(
    likelihood: Likelihood, parts: tuple[Tensor, ...], transform: Dequantization | None, seed: int
) -> tuple[VAE, Report, int]:
    """Fit until the validation ELBO no longer improves; evaluate on test images."""
    torch.manual_seed(seed)
    encoder = GaussianEncoder(MLP(SHAPE, hidden=(128,)), latent_dim=12)
    decoder = MLP(12, hidden=(128,), out_shape=likelihood.param_shape(SHAPE))
    vae = VAE(encoder, decoder, likelihood)
    stop = EarlyStopping("validation/elbo_nats", patience=15)
    rates = {"likelihood": 2e-2} if list(likelihood.parameters()) else {}
    trainer = Trainer(
        vae,
        ELBO(),
        Optimization(3e-3, learning_rates=rates),
        callbacks=[stop],
        seed=seed,
        progress=False,
    )
    train, validation, test = parts
    trainer.fit(train, validation, epochs=150, batch_size=64, transform=transform)
    bin_width = None
    if transform is not None:
        test = transform(test, torch.Generator().manual_seed(0))
        bin_width = transform.bin_width
    report = evaluate(vae.cpu(), test, importance_samples=500, bin_width=bin_width)
    return vae, report, stop.best_epoch


def main() -> None:
    """Fit each likelihood with each seed, print a table, draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/gallery"))
    args = parser.parse_args()

    data = digits()
    parts = tuple(part.images for part in split(data, (1197, 200, 400)))
    print(f"levels {data.images.min()} to {data.images.max()}; bits per dimension, 400 test images")
    bits: dict[str, list[float]] = {}
    rows = {"test images": parts[2][:10] / 16.0}
    for name, make in {**MASSES, **DENSITIES}.items():
        transform = Dequantization(LEVELS) if name in DENSITIES else None
        for seed in range(args.seeds):
            vae, report, epochs = fit(make(), parts, transform, seed)
            evidence = report.log_marginal
            error = evidence.standard_error / (evidence.num_dims * math.log(2))
            bits.setdefault(name, []).append(report.bits_per_dim(evidence))
            label = name.replace("\n", " ")
            print(
                f"{label:<42} seed {seed}  {bits[name][-1]:.3f} +- {error:.3f}  "
                f"ELBO {report.bits_per_dim(report.elbo):.3f}  best epoch {epochs}",
                flush=True,
            )
        torch.manual_seed(0)
        draws = vae.sample(10)
        rows[name] = (draws / 16 if transform is None else draws).clamp(0, 1)
    chart, (axes,) = figure(9, 4.5)
    dots(axes, bits)
    heading(axes, "Held-out digits, 17 gray levels", "bits per dimension (fewer are better)")
    save_figure(chart, args.output / "gallery_gray_levels.png")
    title = "Draws of levels, not means"
    save_figure(image_rows(rows, title=title), args.output / "gallery_gray_samples.png")


if __name__ == "__main__":
    main()
