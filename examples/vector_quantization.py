"""Images as codes: a VQ-VAE, and a prior over codes that is fitted after training.

    python examples/vector_quantization.py

An image becomes one of 64 codes at each of 2 x 2 positions (7 x 7 for MNIST). The perplexity
measures how many codes are in use. log p(x given codes) + log p(codes) is a lower bound on log
p(x), both with the uniform prior of training and with frequencies of codes that are counted after
training.
"""

import math

import torch
from charts import BLUE, INK, figure, heading
from fitting import arguments, binary, fit, images

from tinyvae import VAE, BernoulliLikelihood, ConvNet, TransposedConvNet, evaluate
from tinyvae.encoders import VectorQuantizedEncoder
from tinyvae.plotting import image_rows, save_figure
from tinyvae.priors import CodePrior

CODES, SIZE = 64, 8


def build(shape: torch.Size) -> VAE:
    """Return a convolutional VAE with one code per position."""
    network = ConvNet(shape, channels=(32, 64))
    latent = (SIZE, *network.out_shape[1:])
    decoder = TransposedConvNet(latent, shape, channels=(64, 32))
    encoder = VectorQuantizedEncoder(network, num_codes=CODES, latent_dim=latent)
    return VAE(encoder, decoder, BernoulliLikelihood(), CodePrior(CODES, latent_dim=latent))


def main() -> None:
    """Fit, count the codes, draw the figures."""
    args = arguments(__doc__, epochs=150)
    train, test = images(args.mnist)
    x, x_test = binary(train), binary(test)[:1000]
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        vae, history = fit(build(x.shape[1:]), x, epochs=args.epochs, seed=seed)
        before = evaluate(vae, x_test, elbo_samples=1, importance_samples=None)
        torch.manual_seed(seed)
        uniform = vae.sample(12, mean=True)
        codes = vae.encode(x).codes
        vae.prior.fit(codes)
        after = evaluate(vae, x_test, elbo_samples=1, importance_samples=None)
        positions = codes[0].numel()
        print(
            f"seed {seed}: perplexity {history['train/z_perplexity'][-1]:.1f} of {CODES} codes, "
            f"{positions} positions; log p(x given codes) {before.log_likelihood.mean:.2f} nats\n"
            f"        bound {before.elbo.mean:.2f} with uniform codes "
            f"({positions} log {CODES} = {positions * math.log(CODES):.2f} nats), "
            f"{after.elbo.mean:.2f} with fitted ones",
            flush=True,
        )
    torch.manual_seed(seed)
    rows = {
        "held-out image": x_test[:12],
        "reconstruction": vae.reconstruct(x_test[:12]),
        "sample,\nuniform codes": uniform,
        "sample,\nfitted codes": vae.sample(12, mean=True),
    }
    grid = image_rows(rows, title=f"Mean images from {CODES} codes")
    save_figure(grid, args.output / "gallery_codes.png")
    chart, (axes,) = figure(8, 3.4)
    counts = torch.bincount(codes.flatten(), minlength=CODES).sort(descending=True).values
    axes.bar(range(CODES), (counts / counts.sum()).numpy(), color=BLUE)
    axes.axhline(1 / CODES, color=INK, linestyle="--", linewidth=1.2)
    heading(axes, "Share of each code, largest first", "code", "share (dashed: equal)")
    save_figure(chart, args.output / "gallery_code_usage.png")


if __name__ == "__main__":
    main()
