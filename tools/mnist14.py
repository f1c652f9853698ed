"""Write the embedded 14 x 14 binary MNIST, from the files of MNIST.

    python tools/mnist14.py --data-root data     # data/MNIST/raw holds the four files

A pixel is 1 where the mean of 2 x 2 pixels of MNIST exceeds 128. The file holds the first 1,000
training images of each class for training, the next 100 of each class for validation, and all test
images. Eight pixels share a byte. ``tests/datasets/test_mnist14.py`` compares the file with MNIST.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import avg_pool2d

from tinyvae.datasets import LabeledImages, mnist

FILE = Path(__file__).parents[1] / "src" / "tinyvae" / "datasets" / "mnist14.npz"


def parts_of_mnist(root: str) -> dict[str, LabeledImages]:
    """Return the parts by name, as images ``(N, 1, 14, 14)`` of zeros and ones."""
    train, test = mnist(root), mnist(root, train=False)
    of_class = [(train.labels == label).nonzero().flatten() for label in range(10)]
    parts = {
        "train": train[torch.cat([index[:1000] for index in of_class])],
        "validation": train[torch.cat([index[1000:1100] for index in of_class])],
        "test": test,
    }
    return {
        name: LabeledImages(
            (avg_pool2d(part.images.float(), 2) > 128).to(torch.uint8), part.labels, 1, name
        )
        for name, part in parts.items()
    }


def main() -> None:
    """Read MNIST and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-root", default="data", help="folder that holds MNIST/raw")
    arrays = {}
    for name, part in parts_of_mnist(parser.parse_args().data_root).items():
        arrays[f"{name}_images"] = np.packbits(part.images.flatten(1).numpy(), axis=1)
        arrays[f"{name}_labels"] = part.labels.to(torch.uint8).numpy()
    np.savez_compressed(FILE, **arrays)
    print(f"{FILE.name}: {FILE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
