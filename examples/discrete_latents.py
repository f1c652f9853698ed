"""A class beside a style: discrete and continuous latents in one model, without labels.

    python examples/discrete_latents.py

One categorical latent of ten classes and one Gaussian one. The labels are never shown; afterwards
each class of the model is named after the label that is most frequent in it, and the share of
held-out images whose label that is (purity) is reported. Trained by straight-through gradients, the
bound is that of truly discrete latents.
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
    """A VAE with two latents, of which each has its own KL."""
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
    """Most probable class of each image."""
    with torch.no_grad():
        return vae.encode(x).parts["kind"].mean.flatten(1).argmax(1)


def purity(vae: VAE, x: Tensor, labels: Tensor, x_test: Tensor, labels_test: Tensor) -> float:
    """Share of held-out images with the label that is most frequent in their class."""
    table = torch.zeros(CLASSES, CLASSES).index_put_(
        (kinds(vae, x), labels), torch.ones(len(x)), accumulate=True
    )
    return (table.argmax(1)[kinds(vae, x_test)] == labels_test).double().mean().item()


def main() -> None:
    """Fit, compare with continuous latents alone, draw."""
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
    print(f"the style alone, without a class: log p(x) {report.log_marginal}")
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
