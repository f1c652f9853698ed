"""A learned scale of the Gaussian likelihood, compared with fixed scales.

    python examples/learned_scale.py
    python examples/learned_scale.py --frey-faces data/freyfaces/freyfaces.npy

The learned scale is the RMS of the residuals. Without a file of the Frey faces, the data are the
embedded digits. Held out are the last fifth of the faces, which are frames of one film, and a
random part of the digits.
"""

import argparse
from pathlib import Path

import torch
from charts import BLUE, ORANGE, figure, heading
from torch import Tensor

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    GaussianEncoder,
    GaussianLikelihood,
    Optimization,
    Trainer,
    evaluate,
)
from tinyvae.datasets import digits, frey_faces, split
from tinyvae.likelihoods import Learned
from tinyvae.plotting import image_rows, save_figure

FIXED = (1.0, 0.5, 0.25, 0.15, 0.1, 0.05)


def load(path: Path | None) -> tuple[Tensor, Tensor]:
    """Return gray training and test images in [0, 1]."""
    if path is not None:
        faces = frey_faces(path).float() / 255
        return faces[:1572], faces[1572:]
    train, test = split(digits().images.float() / 16, (1397, 400))
    return train, test


def fit(std: float | Learned, train: Tensor, epochs: int, seed: int = 0) -> VAE:
    """Maximize the ELBO with a fixed scale, or a learned one that has its own learning rate."""
    torch.manual_seed(seed)
    shape = train.shape[1:]
    encoder = GaussianEncoder(MLP(shape, hidden=(200,)), latent_dim=8)
    vae = VAE(encoder, MLP(8, hidden=(200,), out_shape=shape), GaussianLikelihood(std))
    rates = {"likelihood": 1e-2} if isinstance(std, Learned) else {}
    trainer = Trainer(vae, ELBO(), Optimization(learning_rates=rates), seed=seed, progress=False)
    trainer.fit(train, epochs=epochs, batch_size=64)
    return vae.cpu()


def residual_rms(vae: VAE, x: Tensor) -> float:
    """Return the RMS of x - mean at draws from the posterior."""
    torch.manual_seed(0)
    with torch.no_grad():
        output = vae(x, num_samples=16)
        return (x - output.likelihood.mean).square().mean().sqrt().item()


def main() -> None:
    """Fit with learned and fixed scales, compare, draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frey-faces", type=Path, help="the file; see tinyvae.datasets.frey_faces")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path("runs/gallery"))
    args = parser.parse_args()

    train, test = load(args.frey_faces)
    name = "digits" if args.frey_faces is None else "frey_faces"
    print(f"{name}: {len(train):,} training images, {len(test)} test images")
    print("          std   residual rms (training, test)   ELBO of a test image, nats")
    elbos: dict[float, float] = {}
    rows: dict[str, Tensor] = {"test image": test[:: len(test) // 10][:10]}
    for start in (*FIXED, None):
        std = Learned() if start is None else start
        vae = fit(std, train, args.epochs)
        with torch.no_grad():
            scale = vae.likelihood.std(torch.zeros(1), 3).exp().item()
        report = evaluate(vae, test, elbo_samples=16, importance_samples=None)
        elbos[scale] = report.elbo.mean
        kind = "learned" if start is None else "fixed"
        print(
            f"{kind:>8} {scale:6.3f}   {residual_rms(vae, train):.3f}, "
            f"{residual_rms(vae, test):.3f}   {report.elbo}",
            flush=True,
        )
        if start in (1.0, None):
            label = "std 1" if start else f"std {scale:.2f}, learned"
            rows[f"{label}:\nreconstruction"] = vae.reconstruct(rows["test image"]).clamp(0, 1)
            torch.manual_seed(0)
            rows[f"{label}:\nsample"] = vae.sample(10, mean=True).clamp(0, 1)
    chart, (axes,) = figure(8, 4.2)
    fixed = {s: elbos[s] for s in sorted(elbos) if s != scale}
    axes.semilogx(fixed.keys(), fixed.values(), "o-", color=BLUE, linewidth=2, label="fixed")
    axes.plot(scale, elbos[scale], "D", color=ORANGE, markersize=11, label="learned")
    axes.set_xticks(sorted(FIXED), [f"{s:g}" for s in sorted(FIXED)])
    axes.minorticks_off()
    axes.grid(axis="y", color="#E5E5E5")
    axes.legend(fontsize=12, frameon=False)
    data_name = "held-out digits" if args.frey_faces is None else "held-out Frey faces"
    heading(axes, f"ELBO of {data_name}", "scale of the Gaussian (white is 1)", "nats per image")
    save_figure(chart, args.output / f"gallery_{name}_scale.png")
    title = "Mean images: a large scale blurs them"
    save_figure(image_rows(rows, title=title), args.output / f"gallery_{name}_images.png")


if __name__ == "__main__":
    main()
