"""Data of the MNIST example (the published model's images, or digits), and its evaluation."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from tinyvae import VAE, evaluate
from tinyvae.datasets import LabeledImages, digits, mnist, split, threshold


@dataclass(frozen=True)
class SmallImages:
    """Binary images ``(N, 1, H, W)``; ``not_mnist`` is the reason if they are not MNIST."""

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor
    test_labels: Tensor
    not_mnist: str | None = None

    @property
    def headline(self) -> str:
        """Description of the data in one line."""
        sizes = f"{len(self.train):,} training, {len(self.validation):,} validation and "
        sizes += f"{len(self.test):,} test images of {tuple(self.train.shape[2:])} binary pixels"
        if self.not_mnist is None:
            return f"MNIST: {sizes}"
        return f"NOT MNIST ({self.not_mnist}): 8 x 8 UCI digits, {sizes}"

    def title(self, text: str) -> str:
        """Return the title of a figure with the name of the data."""
        if self.not_mnist is None:
            return f"{text} (MNIST, 14 x 14, binary)"
        return f"{text}\n8 x 8 UCI digits, NOT MNIST: {self.not_mnist}"

    def describe(self) -> dict[str, str | int | bool | None]:
        """Return a description of the data for a report."""
        return {
            "data": self.name,
            "is_mnist": self.not_mnist is None,
            "why_not_mnist": self.not_mnist,
            "num_train": len(self.train),
            "num_validation": len(self.validation),
            "num_test": len(self.test),
        }


def load_images(choice: str, root: str) -> SmallImages:
    """Return MNIST (from ``root`` or downloaded) or the embedded digits; ``auto`` prefers MNIST."""
    if choice == "digits":
        return small_digits("--data digits")
    if choice == "mnist":
        return small_mnist(root)
    try:
        return small_mnist(root)
    except ImportError:
        return small_digits(f"none in {root}/MNIST/raw, and no torchvision to download it")
    except RuntimeError:
        return small_digits(f"none in {root}/MNIST/raw, and the download failed")


def small_mnist(root: str) -> SmallImages:
    """Return 1,000 training images of each class, the next 100 for validation, all test images."""
    train, test = mnist(root, download=True), mnist(root, train=False, download=True)
    indices = [(train.labels == label).nonzero().flatten() for label in range(10)]
    first = torch.cat([index[:1000] for index in indices])
    following = torch.cat([index[1000:1100] for index in indices])
    return SmallImages(
        name="mnist",
        train=halved(train[first]),
        validation=halved(train[following]),
        test=halved(test),
        test_labels=test.labels,
    )


def halved(images: LabeledImages) -> Tensor:
    """Return 14 x 14 images: 1 where the mean of 2 x 2 pixels is above 128 of 255."""
    return threshold(avg_pool2d(images.images.float(), kernel_size=2), level=128)


def small_digits(reason: str) -> SmallImages:
    """Return the 1,797 embedded digits: 1 where the level is above half of the scale."""
    parts = split(digits(), (1197, 200, 400), seed=0)
    train, validation, test = (threshold(part.images, level=8) for part in parts)
    return SmallImages("digits_not_mnist", train, validation, test, parts[2].labels, reason)


def report_test_images(vae: VAE, data: SmallImages, *, full: bool, seed: int) -> dict[str, Any]:
    """Report the ELBO of 1,000 and of all test images, and log p(x) of 1,000 (``full``: all)."""
    results = {}
    for count in sorted({min(1000, len(data.test)), len(data.test)}):
        draws = 5000 if full or count <= 1000 else None
        report = evaluate(vae, data.test[:count], importance_samples=draws, seed=seed)
        print(f"{count:,} test images, {data.name}", report, sep="\n")
        results[f"test_{count}"] = report.to_dict()
    return results
