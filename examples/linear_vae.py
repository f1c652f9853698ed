"""A linear VAE reaches the likelihood of probabilistic PCA, which has a closed form.

    python examples/linear_vae.py
    python examples/linear_vae.py --frey-faces data/freyfaces/freyfaces.npy

The best log-likelihood of a linear decoder with Gaussian noise and q latent dimensions is known
(Tipping and Bishop 1999): the noise variance is the mean of the covariance's eigenvalues after the
first q. The script compares it with a VAE at these weights and with a trained VAE. It uses all
images, because it measures optimization and not generalization.
"""

import argparse
import math
from pathlib import Path

import torch
from fitting import fit
from torch import Tensor, nn

from tinyvae import MLP, VAE, GaussianEncoder, GaussianLikelihood, evaluate
from tinyvae.datasets import digits, frey_faces
from tinyvae.likelihoods import Learned


def load(path: Path | None) -> Tensor:
    """Return centered gray levels, ``(N, D)``, scaled by the largest level."""
    x = digits().images.double() / 16 if path is None else frey_faces(path).double() / 255
    x = x.flatten(1)
    return x - x.mean(0)


def principal_components(x: Tensor, latents: int) -> tuple[Tensor, float, float]:
    """Return weights, noise and log-likelihood per datum of the best linear model."""
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    noise = values[latents:].mean().item()
    weights = vectors[:, :latents] * (values[:latents] - noise).sqrt()
    dims = x.shape[1]
    log_det = values[:latents].log().sum().item() + (dims - latents) * math.log(noise)
    return weights, math.sqrt(noise), -0.5 * (dims * (math.log(2 * math.pi) + 1) + log_det)


def build(dims: int, latents: int, std: float | Learned) -> VAE:
    """Return a VAE with linear maps only."""
    encoder = GaussianEncoder(nn.Identity(), latents, features=dims)
    return VAE(encoder, MLP(latents, hidden=(), out_shape=dims), GaussianLikelihood(std))


def exact(weights: Tensor, std: float) -> VAE:
    """Return the VAE with these decoder weights and their exact posterior."""
    dims, latents = weights.shape
    vae = build(dims, latents, std).double()
    precision = 1 + weights.square().sum(0) / std**2
    gain = weights.T / (std**2 * precision[:, None])
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
        vae.decoder.layers[0].weight.copy_(weights)
        vae.encoder.head.weight[:latents] = gain
        vae.encoder.head.bias[latents:] = -0.5 * precision.log()
    return vae


def main() -> None:
    """Compare the closed form, the VAE at its weights, and a trained VAE."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frey-faces", type=Path, help="the file; see tinyvae.datasets.frey_faces")
    parser.add_argument("--updates", type=int, default=10000)
    parser.add_argument("--latents", type=int, nargs="+", default=[2, 5, 10, 20])
    args = parser.parse_args()

    x = load(args.frey_faces)
    print("latents   closed form   VAE at its weights   trained VAE (ELBO)   gap")
    for latents in args.latents:
        weights, std, best = principal_components(x, latents)
        at_weights = evaluate(exact(weights, std), x, elbo_samples=4, importance_samples=4)
        torch.manual_seed(0)
        vae = build(x.shape[1], latents, Learned(initial=0.2))
        epochs = math.ceil(args.updates / math.ceil(len(x) / 256))
        vae, _ = fit(vae, x.float(), epochs=epochs, seed=0, learning_rate=1e-2, batch_size=256)
        trained = evaluate(vae.double(), x, elbo_samples=64, importance_samples=None).elbo.mean
        print(
            f"{latents:>7} {best:13.5f} {at_weights.log_marginal.mean:20.5f} {trained:20.5f}"
            f" {best - trained:9.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
