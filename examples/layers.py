"""One stochastic layer, two layers inferred bottom-up, two layers of a ladder.

    python examples/layers.py

z1 has 16 dimensions, z2 above it has 8; the single layer has 16. The weight of the KL rises from 0
to 1 in the first half of training, because otherwise the ladder's layers stay at their priors
(Sonderby et al. 2016, arXiv:1602.02282). The script reports log p(x) of held-out images by
importance sampling over all layers, and the KL of each layer during training.
"""

from functools import partial

import torch
from charts import BLUE, ORANGE, figure, heading
from fitting import arguments, binary, fit, images
from torch import nn

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    BernoulliLikelihood,
    BottomUpVAE,
    GaussianEncoder,
    LadderVAE,
    evaluate,
)
from tinyvae.models import LatentVariableModel
from tinyvae.plotting import image_rows, save_figure
from tinyvae.schedules import Linear

Z1, Z2 = 16, 8


def gaussian(inputs: int | torch.Size, latents: int) -> GaussianEncoder:
    """Return a conditional Gaussian with two hidden layers."""
    network = MLP(inputs, hidden=(200, 200), activation=nn.LeakyReLU, normalize=True)
    return GaussianEncoder(network, latents)


def build(name: str, shape: torch.Size) -> LatentVariableModel:
    """Return the model of that name."""
    decoder = MLP(Z1, hidden=(200, 200), out_shape=shape, activation=nn.LeakyReLU, normalize=True)
    if name == "one layer":
        return VAE(gaussian(shape, Z1), decoder, BernoulliLikelihood())
    generators = [gaussian(Z2, Z1)]
    if name == "two, bottom-up":
        encoders = [gaussian(shape, Z1), gaussian(Z1, Z2)]
        return BottomUpVAE(encoders, generators, decoder, BernoulliLikelihood())
    encoders = [gaussian(shape, Z1), gaussian(200, Z2)]  # reads features of the first
    return LadderVAE(encoders, generators, decoder, BernoulliLikelihood())


def main() -> None:
    """Fit every model, compare, draw the figures."""
    args = arguments(__doc__, epochs=150)
    train, test = images(args.mnist)
    x, x_test = binary(train), binary(test)[:1000]
    chart, panels = figure(10, 4.2, columns=2, sharey=True)
    rows = {}
    for name in ("one layer", "two, bottom-up", "two, ladder"):
        values = []
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            model, history = fit(
                build(name, x.shape[1:]),
                x,
                epochs=args.epochs,
                seed=seed,
                learning_rate=2e-3,
                objective=partial(ELBO, beta=Linear(0.0, 1.0, fraction=0.5)),
            )
            report = evaluate(model, x_test, importance_samples=1000)
            values.append(report.log_marginal.mean)
        each = "  ".join(f"{value:.2f}" for value in values)
        print(f"{name:<14} log p(x) {each}   mean {sum(values) / len(values):.2f} nats")
        print(f"{'':<14} last seed: ELBO {report.elbo.mean:.2f}, KL {report.kl.mean:.2f}", end="")
        if name != "one layer":
            kls = {n: history[f"train/kl_{n}_nats"] for n in ("z1", "z2")}
            print("".join(f", of {n} {kl[-1]:.2f}" for n, kl in kls.items()), end="")
            panel = panels[0 if name == "two, bottom-up" else 1]
            for (layer, kl), color in zip(kls.items(), (BLUE, ORANGE), strict=True):
                panel.plot(range(1, len(kl) + 1), kl, color=color, linewidth=2, label=layer)
            panel.grid(axis="y", color="#E5E5E5")
            heading(panel, f"{name}: KL of each layer", "epoch", "nats")
        print(flush=True)
        torch.manual_seed(0)
        rows[name] = model.sample(12, mean=True)
    panels[0].legend(fontsize=12, frameon=False)
    save_figure(chart, args.output / "gallery_layers.png")
    grid = image_rows(rows, title="Samples, mean images")
    save_figure(grid, args.output / "gallery_layers_samples.png")


if __name__ == "__main__":
    main()
