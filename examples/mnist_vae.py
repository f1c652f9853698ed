"""The MNIST VAE: data, model, training, figures and honest numbers on one page.

    python examples/mnist_vae.py                 # MNIST where it can be had, else embedded digits
    python examples/mnist_vae.py --data mnist    # MNIST or an error
    python examples/mnist_vae.py --reference     # the published model that this one follows

The model has 196-128(tanh)-z8 and 8-128(tanh)-196 units and sees 14 x 14 binary images, after
https://github.com/williamcfrancis/Variational-Autoencoder-for-MNIST. Figures and ``results.json``
go to ``runs/mnist_vae``.
"""

import argparse
import time
from pathlib import Path

import torch
from published_reference import report_reference
from small_images import SmallImages, load_images
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    BernoulliLikelihood,
    GaussianEncoder,
    History,
    Optimization,
    Trainer,
    evaluate,
    summary,
)
from tinyvae.files import write_json
from tinyvae.plotting import curves, image_grid, image_rows, latent_scatter, save_figure


def build(data_shape: torch.Size, latent_dim: int = 8) -> VAE:
    """An encoder and a decoder with one hidden layer each."""
    encoder = GaussianEncoder(MLP(data_shape, hidden=(128,), activation=nn.Tanh), latent_dim)
    decoder = MLP(latent_dim, hidden=(128,), out_shape=data_shape, activation=nn.Tanh)
    return VAE(encoder, decoder, BernoulliLikelihood())


def train(vae: VAE, data: SmallImages, epochs: int, seed: int) -> History:
    """Maximise the ELBO; the learning rate was chosen on validation images."""
    optimization = Optimization(
        learning_rate=4e-3, scheduler=CosineAnnealingLR, scheduler_interval="step"
    )
    trainer = Trainer(vae, ELBO(), optimization, seed=seed, record_every=1)
    return trainer.fit(data.train, data.validation, epochs=epochs, batch_size=32)


def draw(vae: VAE, data: SmallImages, history: History, folder: Path) -> None:
    """Six figures."""

    def save(name: str, figure: object) -> None:
        print(save_figure(figure, folder / f"{data.name}_{name}.png"))

    updates = history.to_dict()["updates"]
    terms = {
        "E log p(x | z)": (updates["step"], updates["log_likelihood_nats"]),
        "KL(q(z | x) || p(z))": (updates["step"], updates["kl_nats"]),
    }
    save("elbo_terms", curves(
        terms, xlabel="weight update", ylabel="nats per image", title=data.title("ELBO, its terms")
    ))  # fmt: skip
    epochs = history["epoch"]
    reconstruction = {
        part: (epochs, history[f"{part}/log_likelihood_nats"]) for part in ("train", "validation")
    }
    save("reconstruction_term", curves(
        reconstruction, xlabel="epoch", ylabel="E log p(x | z) [nats per image]",
        title=data.title("Reconstruction term"),
    ))  # fmt: skip
    rows = {}
    for part, images in (("training", data.train), ("validation", data.validation)):
        images = images[:: len(images) // 12][:12]
        rows |= {part: images, f"{part}, reconstructed": vae.reconstruct(images)}
    save("reconstructions", image_rows(rows, title=data.title("Inputs and reconstructions")))
    samples = vae.sample(100, mean=True)
    save("samples", image_grid(samples, title=data.title("Samples, z from N(0, I)")))
    means = vae.encode(data.test).mean
    save("latent_means", latent_scatter(
        means, data.test_labels, title=data.title("Posterior means of test images")
    ))  # fmt: skip
    share = torch.linspace(0, 1, 11).reshape(-1, 1, 1)
    walk = torch.lerp(means[:8], means[8:16], share).transpose(0, 1)  # (8 walks, 11 steps, D)
    images = vae.decode(walk).mean.flatten(0, 1)
    save("latent_walk", image_grid(
        images, columns=11, title=data.title("Walks from one test image to another")
    ))  # fmt: skip


def main() -> None:
    """Parse arguments; train, draw, evaluate, save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", choices=("auto", "mnist", "digits"), default="auto")
    parser.add_argument("--data-root", default="data", help="folder that holds MNIST/raw")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true", help="log p(x) of all test images")
    parser.add_argument("--reference", action="store_true", help="rerun the published model")
    parser.add_argument("--output", type=Path, default=Path("runs/mnist_vae"))
    args = parser.parse_args()

    start = time.perf_counter()
    data = load_images("mnist" if args.reference else args.data, args.data_root)
    print(data.headline, flush=True)
    importance_examples = None if args.full else 1000
    torch.manual_seed(args.seed)  # initial weights come from torch's default generator
    if args.reference:
        results = report_reference(data, args.seed, importance_examples)
        write_json(args.output / "reference_results.json", results)
        return
    vae = build(data.train.shape[1:])
    print(summary(vae))
    history = train(vae, data, args.epochs, args.seed)
    with torch.no_grad():
        draw(vae, data, history, args.output)
    report = evaluate(vae, data.test, importance_examples=importance_examples, seed=args.seed)
    print(f"{len(data.test):,} test images, {data.name}", report, sep="\n")
    vae.save(args.output / f"{data.name}_vae.safetensors")
    seconds = time.perf_counter() - start
    facts = {"seed": args.seed, "epochs": args.epochs, "time_seconds": seconds}
    write_json(args.output / "results.json", data.describe() | facts | report.to_dict())
    print(f"{seconds:.1f} s; all in {args.output}")


if __name__ == "__main__":
    main()
