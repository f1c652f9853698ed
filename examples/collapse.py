"""Posterior collapse: a large weight beta causes it, and free bits prevent it.

    python examples/collapse.py

The script fits a VAE with 16 latent dimensions by three objectives: the ELBO, the ELBO with beta =
10, and the latter with 0.5 free nats per dimension. It reports log p(x) and the number of active
dimensions, whose posterior means vary over held-out images (Burda et al. 2016, arXiv:1509.00519,
section 5.2).
"""

import torch
from charts import BLUE, INK, ORANGE, figure, heading
from fitting import arguments, binary, fit, images

from tinyvae import ELBO, MLP, VAE, BernoulliLikelihood, GaussianEncoder, evaluate
from tinyvae.evaluation import active_units
from tinyvae.plotting import image_rows, save_figure

LATENTS = 16
OBJECTIVES = {
    "ELBO": lambda: ELBO(),
    "beta = 10": lambda: ELBO(beta=10.0),
    "beta = 10, free bits": lambda: ELBO(beta=10.0, free_bits=0.5),
}


def build(shape: torch.Size) -> VAE:
    """Return the VAE, which is the same for all objectives."""
    encoder = GaussianEncoder(MLP(shape, hidden=(200,)), LATENTS)
    return VAE(encoder, MLP(LATENTS, hidden=(200,), out_shape=shape), BernoulliLikelihood())


def main() -> None:
    """Fit with every objective, count active dimensions, draw the figures."""
    args = arguments(__doc__, epochs=150)
    train, test = images(args.mnist)
    x, x_test = binary(train), binary(test)[:1000]
    chart, panels = figure(13, 3.8, columns=3, sharey=True)
    shown = {"data": x_test[:16]}
    for panel, (name, objective) in zip(panels, OBJECTIVES.items(), strict=True):
        counts, values, kls = [], [], []
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            vae, _ = fit(build(x.shape[1:]), x, epochs=args.epochs, seed=seed, objective=objective)
            activity = active_units(vae, x_test)["z"]
            report = evaluate(vae, x_test, importance_samples=500)
            counts.append(activity.count)
            values.append(report.log_marginal.mean)
            kls.append(report.kl.mean)
        each = " / ".join(f"{value:.2f}" for value in values)
        mean, kl = sum(values) / len(values), sum(kls) / len(kls)
        active = " / ".join(map(str, counts))
        print(f"{name:<21} active {active} of {LATENTS}; KL {kl:.2f}; log p(x) {each}", end=", ")
        print(f"mean {mean:.2f} nats", flush=True)
        variance = activity.variance.sort(descending=True).values.clamp(min=1e-6).numpy()
        colors = [BLUE if value > activity.threshold else ORANGE for value in variance]
        panel.bar(range(1, LATENTS + 1), variance, color=colors)
        panel.axhline(activity.threshold, color=INK, linewidth=1, linestyle="--")
        panel.set(yscale="log", ylim=(1e-6, 3), xticks=[1, 4, 8, 12, 16])
        heading(panel, f"{name}: {activity.count} active", "dimension, sorted")
        shown[name] = vae.reconstruct(x_test[:16])
    panels[0].set_ylabel("variance of the posterior mean", fontsize=13, color=INK)
    save_figure(chart, args.output / "gallery_collapse.png")
    save_figure(image_rows(shown), args.output / "gallery_collapse_images.png")


if __name__ == "__main__":
    main()
