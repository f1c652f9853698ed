"""Three models of the digits: which is better, by how much, and is the number to be trusted?

    python examples/compare_models.py

The models are VAEs with 2 latent dimensions, with 16, and with 16 and an autoregressive prior. The
script prints their reports, paired differences of log p(x) on the same held-out images, and a
check of importance sampling by annealed importance sampling.
"""

import torch
from charts import BLUE, ORANGE, dots, figure, heading
from fitting import arguments, binary, fit, images

from tinyvae import MLP, VAE, BernoulliLikelihood, GaussianEncoder, evaluate
from tinyvae.evaluation import annealed_log_marginal, compare
from tinyvae.plotting import save_figure
from tinyvae.priors import AutoregressivePrior

MODELS = {
    "2 latents": lambda: (2, None),
    "16 latents": lambda: (16, None),
    "16 latents, autoregressive prior": lambda: (16, AutoregressivePrior(16)),
}
CHECKED = 50  # images, by annealing


def build(shape: torch.Size, latent_dim: int, prior: AutoregressivePrior | None) -> VAE:
    """Return a VAE."""
    encoder = GaussianEncoder(MLP(shape, hidden=(200,)), latent_dim)
    decoder = MLP(latent_dim, hidden=(200,), out_shape=shape)
    return VAE(encoder, decoder, BernoulliLikelihood(), prior)


def main() -> None:
    """Fit, evaluate, compare and check the models, and draw the figure."""
    args = arguments(__doc__, epochs=100)
    train, test = images(args.mnist)
    x, x_test = binary(train), binary(test)[:1000]
    reports, models = {}, {}
    for name, parts in MODELS.items():
        torch.manual_seed(0)
        models[name], _ = fit(build(x.shape[1:], *parts()), x, epochs=args.epochs, seed=0)
        reports[name] = evaluate(models[name], x_test, importance_samples=1000)
        print(f"{name}\n{reports[name]}\n", flush=True)
    comparison = compare(reports)
    print(comparison)

    best = comparison.best
    annealed = annealed_log_marginal(models[best], x_test[:CHECKED], num_temperatures=200)
    sampled = reports[best].log_marginal.values[:CHECKED]
    gap = (annealed.values.double() - sampled).mean()
    print(f"\nannealing minus importance sampling, {CHECKED} images: {gap:+.3f} nats")
    print(annealed)

    chart, panels = figure(13, 4.4, columns=2)
    rows = {name: [report.log_marginal.mean] for name, report in reports.items()}
    dots(panels[0], rows, "{:.2f}")
    heading(panels[0], "log p(x) of held-out digits", "nats")
    second, first = list(comparison.estimates)[1::-1]
    x_values, y_values = (reports[name].log_marginal.values for name in (second, first))
    panels[1].plot(x_values, y_values, "o", color=BLUE, alpha=0.5, markersize=4, mew=0)
    ends = [x_values.min(), x_values.max()]
    panels[1].plot(ends, ends, color=ORANGE)
    heading(panels[1], "log p(x) of each image, nats", second, first)
    save_figure(chart, args.output / "gallery_compare.png")


if __name__ == "__main__":
    main()
