"""Overdispersed counts with extra zeros, by four likelihoods.

    python examples/counts.py

The counts are synthetic: 20 columns that depend on two factors z,

    log mean = log 4 + W z,   count ~ NegativeBinomial(mean, concentration r = 2),

with and without additional zeros (each count is replaced by zero with probability 0.3). The script
fits four likelihoods to both tables, and compares log p(x) of held-out rows with that of the
process itself.
"""

import argparse
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from charts import GREEN, dots, figure, heading
from torch import Tensor

from tinyvae import ELBO, MLP, VAE, GaussianEncoder, Likelihood, Optimization, Trainer, evaluate
from tinyvae.likelihoods import (
    Learned,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    ZeroInflatedLikelihood,
)
from tinyvae.plotting import save_figure

COLUMNS, FACTORS, MEAN, CONCENTRATION, EXTRA_ZEROS = 20, 2, 4.0, 2.0, 0.3
LOADINGS = 0.5 * np.random.default_rng(0).standard_normal((COLUMNS, FACTORS))


def draw(num_rows: int, extra_zeros: float) -> Tensor:
    """Draw counts: Poisson variables with gamma-distributed factors on their means."""
    rng = np.random.default_rng(1)
    means = MEAN * np.exp(rng.standard_normal((num_rows, FACTORS)) @ LOADINGS.T)
    counts = rng.poisson(means * rng.gamma(CONCENTRATION, 1 / CONCENTRATION, means.shape))
    return torch.from_numpy(np.where(rng.random(means.shape) < extra_zeros, 0, counts)).float()


def process(likelihood: Likelihood) -> VAE:
    """Return the process as a VAE: the linear decoder is known, only the encoder is trained."""
    shape = likelihood.param_shape((COLUMNS,))
    decoder = MLP(FACTORS, hidden=(), out_shape=shape).requires_grad_(False)
    (linear,) = decoder.layers
    linear.weight.zero_()[-COLUMNS:] = torch.from_numpy(LOADINGS)
    linear.bias.zero_()
    if len(shape) == 2:  # the log odds of an extra zero are the first parameter
        linear.bias[:COLUMNS] = math.log(EXTRA_ZEROS / (1 - EXTRA_ZEROS))
    return VAE(GaussianEncoder(MLP(COLUMNS, hidden=(64,)), FACTORS), decoder, likelihood)


def build(likelihood: Likelihood) -> VAE:
    """Return a VAE of the same shape with unknown weights."""
    decoder = MLP(FACTORS, hidden=(), out_shape=likelihood.param_shape((COLUMNS,)))
    return VAE(GaussianEncoder(MLP(COLUMNS, hidden=(64,)), FACTORS), decoder, likelihood)


def fit(vae: VAE, x: Tensor, seed: int, epochs: int) -> VAE:
    """Maximize the ELBO."""
    optimization = Optimization(2e-2, schedule="cosine")
    trainer = Trainer(vae, ELBO(num_samples=2), optimization, seed=seed, progress=False)
    trainer.fit(x, epochs=epochs, batch_size=128)
    return vae.cpu()


def concentration(likelihood: Likelihood) -> Tensor:
    """Return the learned concentration of every column."""
    counts = likelihood.likelihood if isinstance(likelihood, ZeroInflatedLikelihood) else likelihood
    with torch.no_grad():
        return counts.concentration(torch.zeros(COLUMNS), 1).exp()


def main() -> None:
    """Draw counts, fit every likelihood, compare, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path("runs/gallery"))
    args = parser.parse_args()

    poisson = partial(PoissonLikelihood, baseline=MEAN)
    binomial = partial(NegativeBinomialLikelihood, baseline=MEAN)
    true = binomial(CONCENTRATION)
    tables = {0.0: process(true), EXTRA_ZEROS: process(ZeroInflatedLikelihood(true))}
    chart, panels = figure(10, 4.2, columns=2, sharey=True)
    for axes, (extra_zeros, source) in zip(panels, tables.items(), strict=True):
        title = f"{100 * extra_zeros:.0f} % more zeros" if extra_zeros else "negative binomial"
        train, test = draw(3000, extra_zeros).split((2000, 1000))
        zeros = (test == 0).double().mean()
        print(f"{title}: variance / mean {test.var() / test.mean():.1f}, {zeros:.0%} zeros")
        models = {
            "Poisson": poisson,
            "zero-inflated\nPoisson": lambda: ZeroInflatedLikelihood(poisson()),
            "negative binomial": lambda: binomial(Learned((COLUMNS,))),
            "zero-inflated\nneg. binomial": lambda: ZeroInflatedLikelihood(
                binomial(Learned((COLUMNS,)))
            ),
        }
        rows: dict[str, list[float]] = {}
        for name, make in models.items():
            for seed in range(args.seeds):
                torch.manual_seed(seed)
                vae = fit(build(make()), train, seed, args.epochs)
                report = evaluate(vae, test, elbo_samples=16, importance_samples=500)
                rows.setdefault(name, []).append(report.log_marginal.mean)
            line = f"  {name:<28}".replace("\n", " ") + "  ".join(f"{v:8.2f}" for v in rows[name])
            if "neg" in name:
                r = concentration(vae.likelihood)
                line += f"   r {r.mean():.2f} ({r.min():.2f} to {r.max():.2f})"
            print(line, flush=True)
        report = evaluate(fit(source, train, 0, args.epochs), test, importance_samples=500)
        print(f"  {'the process itself':<28}{report.log_marginal}")
        dots(axes, rows, "{:.1f}")
        line = {"color": GREEN, "linewidth": 2, "linestyle": "--", "label": "the process itself"}
        axes.axvline(report.log_marginal.mean, zorder=0, **line)
        heading(axes, title, "log p(x) of held-out rows (nats)")
    panels[0].legend(fontsize=11, frameon=False, loc="lower left")
    save_figure(chart, args.output / "gallery_counts.png")


if __name__ == "__main__":
    main()
