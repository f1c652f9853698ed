"""Bounds of several draws and gradient estimators, compared on the digits.

    python examples/bounds.py

The script fits a VAE with 8 latent dimensions by seven objectives and reports log p(x) of held-out
images by importance sampling. Then it measures the signal-to-noise ratio of the gradient of IWAE,
|mean| / std over passes, in the last weights of the encoder and of the decoder of a model that was
trained by the ELBO, for several numbers of draws K. For large K, the ratio of the encoder falls as
1 / sqrt(K) with the pathwise gradient (Rainforth et al. 2018, arXiv:1802.04537) and rises as
sqrt(K) with the doubly reparameterized one (Tucker et al. 2019, arXiv:1810.04152). Here K is not
yet large.
"""

import torch
from charts import BLUE, GREEN, INK, ORANGE, dots, figure, heading
from fitting import arguments, binary, fit, images
from torch import Tensor, nn

from tinyvae import ELBO, IWAE, MLP, VAE, Batch, BernoulliLikelihood, GaussianEncoder, evaluate
from tinyvae.objectives import TVO, MultiplyIWAE, RenyiBound
from tinyvae.plotting import save_figure

OBJECTIVES = {
    "ELBO": lambda: ELBO(),
    "ELBO, STL": lambda: ELBO(estimator="stl"),
    "IWAE, K = 20": lambda: IWAE(20),
    "IWAE, K = 20, DReG": lambda: IWAE(20, estimator="dreg"),
    "multiply IWAE, 4 x 5": lambda: MultiplyIWAE(5, num_bounds=4),
    "Renyi 1/2, K = 20": lambda: RenyiBound(20, alpha=0.5),
    "TVO, K = 20": lambda: TVO(20, num_partitions=5, smallest=0.03),
}
SIZES = (4, 16, 64, 256)


def build(shape: torch.Size) -> VAE:
    """Return the VAE, which is the same for all objectives."""
    encoder = GaussianEncoder(MLP(shape, hidden=(200,)), 8)
    return VAE(encoder, MLP(8, hidden=(200,), out_shape=shape), BernoulliLikelihood())


def signal_to_noise(vae: VAE, x: Tensor, objective: IWAE, part: nn.Module, passes: int) -> float:
    """Return the RMS over weights of the gradient's mean, divided by that of its std."""
    weight = next(part.parameters())
    draws = []
    for _ in range(passes):
        loss = objective(vae, Batch(x)).losses["model"]
        draws.append(torch.autograd.grad(loss, weight)[0])
    gradients = torch.stack(draws).double()
    mean, variance = gradients.mean(0), gradients.var(0)
    # The mean over passes is itself noisy: subtract the variance of that noise.
    signal = (mean.square() - variance / passes).mean().clamp(min=0)
    return float((signal / variance.mean()).sqrt())


def main() -> None:
    """Fit with every objective, measure the gradients, draw the figure."""
    args = arguments(__doc__, epochs=100)
    train, test = images(args.mnist)
    x, x_test = binary(train), binary(test)[:1000]
    rows = {}
    for name, objective in OBJECTIVES.items():
        rows[name] = []
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            vae, _ = fit(build(x.shape[1:]), x, epochs=args.epochs, seed=seed, objective=objective)
            report = evaluate(vae, x_test, importance_samples=2000)
            rows[name].append(report.log_marginal.mean)
            if name == "ELBO" and seed == 0:
                trained = vae
        each = " / ".join(f"{value:.2f}" for value in rows[name])
        print(f"{name:<21} log p(x) {each}, mean {sum(rows[name]) / args.seeds:.2f}", flush=True)
    chart, panels = figure(13, 4.4, columns=2)
    dots(panels[0], rows, "{:.2f}")
    heading(panels[0], "log p(x) of held-out digits", "nats")
    curves = {
        "encoder, pathwise": ("pathwise", trained.encoder.head, ORANGE),
        "encoder, DReG": ("dreg", trained.encoder.head, BLUE),
        "decoder": ("pathwise", trained.decoder.layers[-1], GREEN),
    }
    torch.manual_seed(0)
    for label, (estimator, part, color) in curves.items():
        ratios = [
            signal_to_noise(trained, x[:16], IWAE(k, estimator=estimator), part, args.epochs * 4)
            for k in SIZES
        ]
        print(f"{label:<18} signal to noise", "  ".join(f"{r:.3f}" for r in ratios), flush=True)
        panels[1].plot(SIZES, ratios, "o-", color=color, label=label)
    panels[1].set(xscale="log", yscale="log", ylim=(0.15, 9))
    panels[1].minorticks_off()
    panels[1].set_xticks(SIZES, SIZES)
    panels[1].set_yticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
    panels[1].legend(frameon=False, fontsize=12, labelcolor=INK)
    heading(panels[1], "Signal to noise of the gradient", "draws K")
    save_figure(chart, args.output / "gallery_bounds.png")


if __name__ == "__main__":
    main()
