"""Images of the MNIST example, and the evaluation of its models."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyvae import VAE, evaluate
from tinyvae.datasets import DynamicBinarization, mnist, mnist14


@dataclass(frozen=True)
class MNISTImages:
    """MNIST in three parts, ``(N, 1, H, W)``.

    If there is a transform, it draws the binary pixels of the training and validation images again
    for each batch. The test images are binary, the same in every run.
    """

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor
    test_labels: Tensor
    transform: DynamicBinarization | None = None

    @property
    def headline(self) -> str:
        """Description of the data in one line."""
        size = " x ".join(str(n) for n in self.train.shape[2:])
        parts = f"{len(self.train):,} training, {len(self.validation):,} validation and "
        return f"MNIST, {size} binary pixels: {parts}{len(self.test):,} test images"

    def title(self, text: str) -> str:
        """Return the title of a figure with the name of the data."""
        return f"{text} ({self.headline.partition(':')[0]})"

    def binary(self, images: Tensor) -> Tensor:
        """Return training or validation images with binary pixels, the same in every run."""
        if self.transform is None:
            return images
        return self.transform(images, torch.Generator().manual_seed(0))

    def describe(self) -> dict[str, str | int]:
        """Return a description of the data for a report."""
        return {
            "data": self.name,
            "num_train": len(self.train),
            "num_validation": len(self.validation),
            "num_test": len(self.test),
        }


def load_images(size: int, root: str) -> MNISTImages:
    """Return the embedded images of 14 x 14 pixels, or MNIST of 28 x 28 from ``root``."""
    return mnist_in_full(root) if size == 28 else small_mnist()


def small_mnist() -> MNISTImages:
    """Return 1,000 training images of each class, the next 100 for validation, all test images."""
    train, validation, test = mnist14()
    images = [part.images.float() for part in (train, validation, test)]
    return MNISTImages("mnist14", *images, test.labels)


def mnist_in_full(root: str) -> MNISTImages:
    """Return 55,000 training images, the last 5,000 for validation, and all test images.

    The gray level of a pixel is the probability of a one.
    """
    train, test = mnist(root, download=True), mnist(root, train=False, download=True)
    binarize = DynamicBinarization(train.max_value)
    binary_test = binarize(test.images, torch.Generator().manual_seed(0))
    parts = train.images.split((55_000, 5000))
    return MNISTImages("mnist28", *parts, binary_test, test.labels, binarize)


def report_test_images(vae: VAE, data: MNISTImages, *, full: bool, seed: int) -> dict[str, Any]:
    """Report the ELBO of 1,000 and of all test images, and log p(x) of 1,000 (``full``: all)."""
    results = {}
    for count in (1000, len(data.test)):
        draws = 5000 if full or count <= 1000 else None
        report = evaluate(vae, data.test[:count], importance_samples=draws, seed=seed)
        print(f"{count:,} test images", report, sep="\n")
        results[f"test_{count}"] = report.to_dict()
    return results
