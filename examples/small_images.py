"""The example's data, the published model's own MNIST images or digits, and the test on them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from tinyvae import VAE, evaluate
from tinyvae.datasets import LabeledImages, digits, mnist, split, threshold


@dataclass(frozen=True)
class SmallImages:
    """Binary images ``(N, 1, H, W)``, and why they are not MNIST if they are not."""

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor
    test_labels: Tensor
    not_mnist: str | None = None

    @property
    def headline(self) -> str:
        """What the data are, in a line."""
        sizes = f"{len(self.train):,} training, {len(self.validation):,} validation and "
        sizes += f"{len(self.test):,} test images of {tuple(self.train.shape[2:])} binary pixels"
        if self.not_mnist is None:
            return f"MNIST: {sizes}"
        return f"NOT MNIST ({self.not_mnist}): 8 x 8 UCI digits, {sizes}"

    def title(self, text: str) -> str:
        """A figure's title that says what the data are."""
        if self.not_mnist is None:
            return f"{text} (MNIST, 14 x 14, binary)"
        return f"{text}\n8 x 8 UCI digits, NOT MNIST: {self.not_mnist}"

    def describe(self) -> dict[str, str | int | bool | None]:
        """What the data are, for a report."""
        return {
            "data": self.name,
            "is_mnist": self.not_mnist is None,
            "why_not_mnist": self.not_mnist,
            "num_train": len(self.train),
            "num_validation": len(self.validation),
            "num_test": len(self.test),
        }


def load_images(choice: str, root: str) -> SmallImages:
    """MNIST from ``root`` or by download, or the embedded digits: ``auto`` prefers MNIST."""
    if choice == "digits":
        return small_digits("digits were asked for")
    if choice == "mnist":
        return small_mnist(root)
    try:
        return small_mnist(root)
    except ImportError:
        return small_digits(f"none in {root}/MNIST/raw, and no torchvision to download it")
    except RuntimeError:
        return small_digits(f"none in {root}/MNIST/raw, and the download failed")


def small_mnist(root: str) -> SmallImages:
    """The first 1,000 training images of each class, the next 100 to validate, all test images."""
    train, test = mnist(root, download=True), mnist(root, train=False, download=True)
    of_class = [(train.labels == label).nonzero().flatten() for label in range(10)]
    first = torch.cat([index[:1000] for index in of_class])
    following = torch.cat([index[1000:1100] for index in of_class])
    return SmallImages(
        name="mnist",
        train=halved(train[first]),
        validation=halved(train[following]),
        test=halved(test),
        test_labels=test.labels,
    )


def halved(images: LabeledImages) -> Tensor:
    """14 x 14 means of 2 x 2 pixels, not rounded, 1 where above 128 of 255."""
    return threshold(avg_pool2d(images.images.float(), kernel_size=2), level=128)


def small_digits(why: str) -> SmallImages:
    """The 1,797 embedded digits, 1 where above half the scale."""
    parts = split(digits(), (1197, 200, 400), seed=0)
    train, validation, test = (threshold(part.images, level=8) for part in parts)
    return SmallImages("digits_not_mnist", train, validation, test, parts[2].labels, why)


def report_test_images(vae: VAE, data: SmallImages, *, full: bool, seed: int) -> dict[str, Any]:
    """ELBO of the first 1,000 and of all test images; log p(x) of the first 1,000, or of all."""
    results = {}
    for count in sorted({min(1000, len(data.test)), len(data.test)}):
        draws = 5000 if full or count <= 1000 else None
        report = evaluate(vae, data.test[:count], importance_samples=draws, seed=seed)
        print(f"{count:,} test images, {data.name}", report, sep="\n")
        results[f"test_{count}"] = report.to_dict()
    return results
