"""The MNIST VAE: data, model, training, evaluation and figures on one page.

    python examples/mnist_vae.py                 # 14 x 14 binary images, which come with tinyvae
    python examples/mnist_vae.py --reference     # the published model
    python examples/mnist_vae.py --size 28       # MNIST in full, from data/MNIST/raw or downloaded

The encoder has 196-128(tanh)-z8 units, the decoder 8-128(tanh)-196, after
https://github.com/williamcfrancis/Variational-Autoencoder-for-MNIST. Images of 28 x 28 pixels get
convolutions, 16 latent dimensions and dynamic binarization. Figures and ``results.json`` go to
``runs/mnist_vae``.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from mnist_images import MNISTImages, load_images, report_test_images
from published_reference import report_reference
from torch import nn
from torch.optim import AdamW

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    BernoulliLikelihood,
    ConvNet,
    GaussianEncoder,
    History,
    Optimization,
    Trainer,
    TransposedConvNet,
)
from tinyvae.io import write_json
from tinyvae.models import summary
from tinyvae.plotting import (
    curves,
    image_grid,
    image_rows,
    latent_page,
    latent_scatter,
    save_figure,
)
from tinyvae.training import tune_malloc

# Chosen on the validation images.
DEFAULTS = {
    14: {"epochs": 200, "batch_size": 128, "learning_rate": 1e-2},
    28: {"epochs": 20, "batch_size": 128, "learning_rate": 2e-3},
}


def build(data_shape: torch.Size) -> VAE:
    """Return a VAE with one hidden layer for 14 x 14 pixels, with convolutions for 28 x 28."""
    if data_shape[-1] == 28:
        encoder = GaussianEncoder(ConvNet(data_shape, channels=(32, 64)), latent_dim=16)
        return VAE(encoder, TransposedConvNet(16, channels=(64, 32)), BernoulliLikelihood())
    encoder = GaussianEncoder(MLP(data_shape, hidden=(128,), activation=nn.Tanh), latent_dim=8)
    decoder = MLP(8, hidden=(128,), activation=nn.Tanh)
    return VAE(encoder, decoder, BernoulliLikelihood())


def train(vae: VAE, data: MNISTImages, args: argparse.Namespace) -> History:
    """Maximize the ELBO."""
    optimization = Optimization(
        args.learning_rate,
        optimizer=partial(AdamW, fused=True),
        schedule="cosine",
    )
    trainer = Trainer(vae, ELBO(), optimization, seed=args.seed, record_every=1)
    return trainer.fit(
        data.train,
        data.validation,
        epochs=args.epochs,
        batch_size=args.batch_size,
        transform=data.transform,
    )


def figures(vae: VAE, data: MNISTImages, history: History) -> dict[str, Figure]:
    """Return the figures of a run by name."""
    updates = history.to_dict()["updates"]
    terms = {
        "E log p(x | z)": (updates["step"], updates["log_likelihood_nats"]),
        "KL(q(z | x) || p(z))": (updates["step"], updates["kl_nats"]),
    }
    rows = {}
    for part, images in (("training", data.train), ("validation", data.validation)):
        shown = data.binary(images[:: len(images) // 12][:12])
        rows |= {part: shown, f"{part}, reconstructed": vae.reconstruct(shown)}
    means = vae.encode(data.test).mean
    position = torch.linspace(0, 1, 11).reshape(-1, 1, 1)
    walks = torch.lerp(means[:8], means[8:16], position).transpose(0, 1)  # (8 walks, 11 steps, D)
    walked = vae.decode(walks).mean.flatten(0, 1)
    samples = vae.sample(100, mean=True)
    title = data.title
    return {
        "elbo_terms": curves(
            terms, xlabel="weight update", ylabel="nats per image", title=title("The ELBO's terms")
        ),
        "reconstruction_term": history.plot(
            "log_likelihood_nats", title=title("Reconstruction term E log p(x | z)")
        ),
        "reconstructions": image_rows(rows, title=title("Images and reconstructions")),
        "samples": image_grid(samples, title=title("Samples, z from N(0, I)")),
        "latent_means": latent_scatter(means, data.test_labels, title=title("Posterior means")),
        "latent_walk": image_grid(walked, columns=11, title=title("Interpolations")),
    }


def main() -> None:
    """Train, evaluate and save figures, the model and the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, choices=(14, 28), default=14, help="pixels per side")
    parser.add_argument("--data-root", default="data", help="folder of MNIST/raw, for --size 28")
    parser.add_argument("--epochs", type=int, help="default: 200, or 20 with --size 28")
    parser.add_argument("--batch-size", type=int, help="default: 128")
    parser.add_argument("--learning-rate", type=float, help="default: 1e-2, or 2e-3 with --size 28")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true", help="log p(x) of all test images")
    parser.add_argument("--reference", action="store_true", help="rerun the published model")
    parser.add_argument("--output", type=Path, default=Path("runs/mnist_vae"))
    args = parser.parse_args()
    if args.reference and args.size != 14:
        parser.error("--reference needs --size 14: the published model has 14 x 14 pixels")
    for name, default in DEFAULTS[args.size].items():
        if getattr(args, name) is None:
            setattr(args, name, default)

    start = time.perf_counter()
    tune_malloc()
    data = load_images(args.size, args.data_root)
    print(data.headline, flush=True)
    torch.manual_seed(args.seed)  # initial weights come from torch's default generator
    if args.reference:
        results = report_reference(data, full=args.full, seed=args.seed)
        write_json(args.output / "reference_results.json", data.describe() | results)
        return
    vae = build(data.train.shape[1:])
    print(summary(vae))
    history = train(vae, data, args)
    vae.cpu()  # the Trainer moves it to a GPU if there is one
    with torch.no_grad():
        for name, figure in figures(vae, data, history).items():
            save_figure(figure, args.output / f"{data.name}_{name}.png")
    if args.size == 14:  # a decoder without convolutions runs in a browser
        page, images = args.output / f"{data.name}_latent_page.html", data.test[:1000]
        latent_page(vae, page, images, data.test_labels[:1000], title=data.title("Latent space"))
    vae.save(args.output / f"{data.name}_vae.safetensors")
    results = data.describe() | report_test_images(vae, data, full=args.full, seed=args.seed)
    settings = ("seed", "epochs", "batch_size", "learning_rate")
    results |= {name: getattr(args, name) for name in settings}
    results |= {"updates": history["step"][-1], "time_seconds": time.perf_counter() - start}
    write_json(args.output / "results.json", results)
    print(f"{results['time_seconds']:.1f} s; figures, model and results.json in {args.output}")


if __name__ == "__main__":
    main()
