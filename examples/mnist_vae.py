"""The MNIST VAE: data, model, training, evaluation and figures on one page.

    python examples/mnist_vae.py                 # MNIST if available, else embedded digits
    python examples/mnist_vae.py --data mnist    # MNIST or an error
    python examples/mnist_vae.py --reference     # the published model

The encoder has 196-128(tanh)-z8 units, the decoder 8-128(tanh)-196, for 14 x 14 binary images,
after https://github.com/williamcfrancis/Variational-Autoencoder-for-MNIST. Figures and
``results.json`` go to ``runs/mnist_vae``.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from published_reference import report_reference
from small_images import SmallImages, load_images, report_test_images
from torch import nn
from torch.optim import AdamW

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    BernoulliLikelihood,
    GaussianEncoder,
    History,
    Optimization,
    Trainer,
)
from tinyvae.io import write_json
from tinyvae.models import summary
from tinyvae.plotting import curves, image_grid, image_rows, latent_scatter, save_figure
from tinyvae.training import tune_malloc


def build(data_shape: torch.Size, latent_dim: int = 8) -> VAE:
    """Return a VAE with one hidden layer in the encoder and in the decoder."""
    encoder = GaussianEncoder(MLP(data_shape, hidden=(128,), activation=nn.Tanh), latent_dim)
    decoder = MLP(latent_dim, hidden=(128,), out_shape=data_shape, activation=nn.Tanh)
    return VAE(encoder, decoder, BernoulliLikelihood())


def train(vae: VAE, data: SmallImages, args: argparse.Namespace) -> History:
    """Maximize the ELBO. The defaults were chosen on the validation images of MNIST."""
    optimization = Optimization(
        args.learning_rate,
        optimizer=partial(AdamW, fused=True),
        schedule="cosine",
    )
    trainer = Trainer(vae, ELBO(), optimization, seed=args.seed, record_every=1)
    return trainer.fit(data.train, data.validation, epochs=args.epochs, batch_size=args.batch_size)


def figures(vae: VAE, data: SmallImages, history: History) -> dict[str, Figure]:
    """Return the figures of a run by name."""
    updates = history.to_dict()["updates"]
    terms = {
        "E log p(x | z)": (updates["step"], updates["log_likelihood_nats"]),
        "KL(q(z | x) || p(z))": (updates["step"], updates["kl_nats"]),
    }
    rows = {}
    for part, images in (("training", data.train), ("validation", data.validation)):
        shown = images[:: len(images) // 12][:12]
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
    parser.add_argument("--data", choices=("auto", "mnist", "digits"), default="auto")
    parser.add_argument("--data-root", default="data", help="folder that holds MNIST/raw")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true", help="log p(x) of all test images")
    parser.add_argument("--reference", action="store_true", help="rerun the published model")
    parser.add_argument("--output", type=Path, default=Path("runs/mnist_vae"))
    args = parser.parse_args()

    start = time.perf_counter()
    tune_malloc()
    data = load_images("mnist" if args.reference else args.data, args.data_root)
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
    vae.save(args.output / f"{data.name}_vae.safetensors")
    results = data.describe() | report_test_images(vae, data, full=args.full, seed=args.seed)
    settings = ("seed", "epochs", "batch_size", "learning_rate")
    results |= {name: getattr(args, name) for name in settings}
    results |= {"updates": history["step"][-1], "time_seconds": time.perf_counter() - start}
    write_json(args.output / "results.json", results)
    print(f"{results['time_seconds']:.1f} s; figures, model and results.json in {args.output}")


if __name__ == "__main__":
    main()
