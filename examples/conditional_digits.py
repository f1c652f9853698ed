"""A conditional VAE, p(x given c), that draws digits of a requested class.

    python examples/conditional_digits.py

Encoder, decoder and prior read the class. Two numbers measure how well the model uses it: the share
of drawn images that a classifier of real images assigns to the requested class, and the share of
real images whose class has the largest log p(x given c) (Bayes' rule).
"""

import torch
import torch.nn.functional as F
from fitting import arguments, binary, fit, images
from sklearn.svm import SVC
from torch import Tensor

from tinyvae import MLP, VAE, BernoulliLikelihood, GaussianEncoder, evaluate, log_marginal
from tinyvae.networks import ConcatContext
from tinyvae.plotting import image_rows, save_figure
from tinyvae.priors import ConditionalPrior

CLASSES, LATENTS = 10, 8


def plain(shape: torch.Size) -> VAE:
    """Return a VAE without classes."""
    encoder = GaussianEncoder(MLP(shape, hidden=(200,)), LATENTS)
    return VAE(encoder, MLP(LATENTS, hidden=(200,), out_shape=shape), BernoulliLikelihood())


def conditional(shape: torch.Size) -> VAE:
    """Return a VAE whose encoder, decoder and prior read the class."""
    network = MLP(shape.numel() + CLASSES, hidden=(200,))
    decoder = MLP(LATENTS + CLASSES, hidden=(200,), out_shape=shape)
    return VAE(
        GaussianEncoder(ConcatContext(network, context_dim=CLASSES), LATENTS),
        ConcatContext(decoder, context_dim=CLASSES),
        BernoulliLikelihood(),
        ConditionalPrior(GaussianEncoder(MLP(CLASSES, hidden=(64,)), LATENTS)),
    )


def classify(vae: VAE, x: Tensor) -> Tensor:
    """Return the class with the largest log p(x given c) for each image."""
    scores = [
        log_marginal(vae, x, one_hot.expand(len(x), -1), num_samples=200)
        for one_hot in torch.eye(CLASSES)
    ]
    return torch.stack(scores).argmax(0)


def main() -> None:
    """Fit with and without the class, compare, draw the figure."""
    args = arguments(__doc__, epochs=150, seeds=1)
    train, test = images(args.mnist)
    x, context = binary(train), F.one_hot(train.labels, CLASSES).float()
    x_test, labels = binary(test)[:1000], test.labels[:1000]
    classifier = SVC(C=10).fit(x.flatten(1)[:10000], train.labels[:10000])
    accuracy = classifier.score(x_test.flatten(1), labels)
    print(f"accuracy of the classifier: {accuracy:.1%} of {len(x_test)} held-out images")
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        without, _ = fit(plain(x.shape[1:]), x, epochs=args.epochs, seed=seed)
        torch.manual_seed(seed)
        vae, _ = fit(conditional(x.shape[1:]), x, context, epochs=args.epochs, seed=seed)
        report = evaluate(without, x_test, importance_samples=1000)
        print(f"seed {seed}: log p(x)         {report.log_marginal} nats")
        one_hot = F.one_hot(labels, CLASSES).float()
        report = evaluate(vae, x_test, one_hot, importance_samples=1000)
        print(f"        log p(x given c) {report.log_marginal} nats")
        torch.manual_seed(seed)
        drawn = vae.sample(100, context=torch.eye(CLASSES), mean=True)  # (100, 10, 1, H, W)
        predicted = classifier.predict((drawn > 0.5).float().flatten(0, 1).flatten(1))
        agrees = torch.from_numpy(predicted).reshape(100, CLASSES) == torch.arange(CLASSES)
        print(
            f"        {agrees.double().mean():.1%} of 1,000 drawn digits have the requested class"
        )
        correct = (classify(vae, x_test) == labels).float().mean()
        print(
            f"        {correct:.1%} of held-out images are classified by Bayes' rule",
            flush=True,
        )
    rows = {str(c): drawn[:12, c] for c in range(CLASSES)}
    save_figure(
        image_rows(rows, title="Drawn for each class; mean images"),
        args.output / "gallery_conditional.png",
    )


if __name__ == "__main__":
    main()
