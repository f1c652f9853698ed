"""Unsupervised classes: a discrete and a continuous latent in one model.

    python examples/discrete_latents.py

The model has a categorical latent with ten classes and a Gaussian latent. Training uses no labels.
Each class is then assigned its most frequent label, and the script reports the share of held-out
images with that label (purity). Gradients are straight-through; the bound is that of discrete
latents.
"""

import torch
from fitting import arguments, binary, fit, images
from torch import Tensor

from tinyvae import MLP, VAE, BernoulliLikelihood, GaussianEncoder, StandardNormal, evaluate
from tinyvae.encoders import CategoricalEncoder, JointEncoder
from tinyvae.plotting import image_rows, save_figure
from tinyvae.priors import CategoricalPrior, JointPrior

CLASSES, STYLES = 10, 1


def build(shape: torch.Size) -> VAE:
    """Return a VAE with two latents, each with its own KL term."""
    encoder = JointEncoder(
        {
            "kind": CategoricalEncoder(MLP(200, hidden=(100,)), CLASSES, temperature=0.3),
            "style": GaussianEncoder(MLP(200, hidden=(100,)), STYLES),
        },
        network=MLP(shape, hidden=(200,)),
    )
    prior = JointPrior({"kind": CategoricalPrior(CLASSES), "style": StandardNormal(STYLES)})
    decoder = MLP(CLASSES + STYLES, hidden=(200,), out_shape=shape)
    return VAE(encoder, decoder, BernoulliLikelihood(), prior)


def kinds(vae: VAE, x: Tensor) -> Tensor:
    """Return the most probable class of each image."""
    with torch.no_grad():
        return vae.encode(x).parts["kind"].mean.flatten(1).argmax(1)


def purity(vae: VAE, x: Tensor, labels: Tensor, x_test: Tensor, labels_test: Tensor) -> float:
    """Return the share of held-out images with the most frequent label of their class."""
    table = torch.zeros(CLASSES, CLASSES).index_put_(
        (kinds(vae, x), labels), torch.ones(len(x)), accumulate=True
    )
    return (table.argmax(1)[kinds(vae, x_test)] == labels_test).double().mean().item()


def main() -> None:
    """Fit, compare with a continuous latent alone, draw the figure."""
    args = arguments(__doc__, epochs=200)
    train, test = images(args.mnist)
    x, x_test, labels = binary(train), binary(test)[:1000], test.labels[:1000]
    shape = x.shape[1:]
    print("seed   ELBO    log p(x)   KL of kind, of style    purity")
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        vae, history = fit(build(shape), x, epochs=args.epochs, seed=seed)
        report = evaluate(vae, x_test, importance_samples=1000)
        kind, style = (history[f"train/kl_{name}_nats"][-1] for name in ("kind", "style"))
        share = purity(vae, x, train.labels, x_test, labels)
        print(
            f"{seed:>4} {report.elbo.mean:8.2f} {report.log_marginal.mean:9.2f}"
            f" {kind:9.2f} {style:12.2f} {share:15.1%}",
            flush=True,
        )
    torch.manual_seed(0)
    continuous = VAE(
        GaussianEncoder(MLP(shape, hidden=(200, 100)), STYLES),
        MLP(STYLES, hidden=(200,), out_shape=shape),
        BernoulliLikelihood(),
    )
    continuous, _ = fit(continuous, x, epochs=args.epochs, seed=0)
    report = evaluate(continuous, x_test, importance_samples=1000)
    print(f"without a class: log p(x) {report.log_marginal}")
    style = torch.linspace(-2, 2, 12).unsqueeze(1)
    rows = {}
    for kind in range(CLASSES):
        one_hot = torch.eye(CLASSES)[kind].expand(len(style), -1)
        with torch.no_grad():
            rows[f"class {kind}"] = vae.decode(torch.cat([one_hot, style], 1)).mean
    grid = image_rows(rows, title="A class per row, the style from -2 to 2; mean images")
    save_figure(grid, args.output / "gallery_discrete.png")


if __name__ == "__main__":
    main()
