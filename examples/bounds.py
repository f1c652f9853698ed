"""What several draws are worth: bounds and gradient estimators on the digits.

    python examples/bounds.py

One VAE of 8 latents, seven objectives. Reported is log p(x) of held-out images, by importance
sampling. Then the ratio of signal to noise, |mean| / std over passes, of the gradient of IWAE in
the encoder's and in the decoder's last weights, against the number of draws K, at the end of
training by the ELBO. For large K that of the encoder falls as 1 / sqrt(K) with the pathwise
gradient (Rainforth et al. 2018, arXiv:1802.04537), and rises as sqrt(K) with the doubly
reparameterized one (Tucker et al. 2019, arXiv:1810.04152); here K is not large yet.
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
    """The VAE, whatever the objective."""
    encoder = GaussianEncoder(MLP(shape, hidden=(200,)), 8)
    return VAE(encoder, MLP(8, hidden=(200,), out_shape=shape), BernoulliLikelihood())


def signal_to_noise(vae: VAE, x: Tensor, objective: IWAE, part: nn.Module, passes: int) -> float:
    """Root mean square over the weights of their gradient's mean, over that of its std."""
    weight = next(part.parameters())
    draws = []
    for _ in range(passes):
        loss = objective(vae, Batch(x)).losses["model"]
        draws.append(torch.autograd.grad(loss, weight)[0])
    gradients = torch.stack(draws).double()
    mean, variance = gradients.mean(0), gradients.var(0)
    # Without the noise that the mean of so many passes has itself.
    signal = (mean.square() - variance / passes).mean().clamp(min=0)
    return float((signal / variance.mean()).sqrt())


def main() -> None:
    """Fit with every objective, measure, draw."""
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
