"""Four priors compared: N(0, I), a mixture of Gaussians, a flow and the VampPrior.

    python examples/vamp_prior.py

The VAEs have the same networks, with two latent dimensions (for the figure) or eight. Each prior is
trained with its VAE. The script reports log p(x) of held-out digits by importance sampling.
"""

import torch
from charts import BLUE, INK, figure
from fitting import arguments, binary, fit, images
from torch import Tensor

from tinyvae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    GaussianEncoder,
    StandardNormal,
    VampPrior,
    evaluate,
)
from tinyvae.flows import Flow
from tinyvae.plotting import save_figure
from tinyvae.priors import FlowPrior, MixturePrior

COMPONENTS = 100
NAMES = ("N(0, I)", "mixture", "flow", "VampPrior")


def build(name: str, x: Tensor, latents: int) -> VAE:
    """Return a VAE with the prior of that name."""
    shape = x.shape[1:]
    encoder = GaussianEncoder(MLP(shape, hidden=(200,)), latents)
    prior = {
        "N(0, I)": lambda: StandardNormal(latents),
        "mixture": lambda: MixturePrior(latents, num_components=COMPONENTS),
        "flow": lambda: FlowPrior(Flow(latents)),
        "VampPrior": lambda: VampPrior.from_data(encoder, x, num_components=COMPONENTS),
    }[name]()
    decoder = MLP(latents, hidden=(200,), out_shape=shape)
    return VAE(encoder, decoder, BernoulliLikelihood(), prior)


def main() -> None:
    """Fit with every prior, compare, draw the figure."""
    args = arguments(__doc__, epochs=100)
    train, test = images(args.mnist)
    x, x_test = binary(train), binary(test)[:1000]
    chart, panels = figure(13, 3.8, columns=4)
    for latents in (2, 8):
        print(f"{latents} latents: log p(x) of held-out images, nats")
        for name, panel in zip(NAMES, panels, strict=True):
            values = []
            for seed in range(args.seeds):
                torch.manual_seed(seed)
                vae, _ = fit(build(name, x, latents), x, epochs=args.epochs, seed=seed)
                report = evaluate(vae, x_test, importance_samples=500)
                values.append(report.log_marginal.mean)
            each = "  ".join(f"{value:.2f}" for value in values)
            mean = sum(values) / len(values)
            error = report.log_marginal.standard_error
            print(f"  {name:<10} {each}   mean {mean:.2f} (se over images {error:.2f})", flush=True)
            if latents == 2:
                draw(panel, name, vae, x, mean)
    save_figure(chart, args.output / "gallery_vamp.png")


def draw(panel: object, name: str, vae: VAE, x: Tensor, value: float) -> None:
    """Draw the density of the prior and posterior draws of training images."""
    reach = 7.0
    line = torch.linspace(-reach, reach, 201)
    points = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    with torch.no_grad():
        prior = vae.prior(encoder=vae.encoder)
        log_density = prior.log_prob(points.reshape(-1, 2)).reshape(201, 201)
        torch.manual_seed(0)
        z = vae.encode(x[:1000]).sample()
    panel.contourf(line, line, log_density.exp().sqrt(), levels=12, cmap="Grays")
    panel.plot(z[:, 0], z[:, 1], ".", color=BLUE, markersize=2, alpha=0.5)
    panel.set_title(f"{name}: {value:.2f} nats", loc="left", fontsize=13, color=INK, pad=10)
    panel.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[-5, 0, 5])


if __name__ == "__main__":
    main()
