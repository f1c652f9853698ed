"""The embedded 14 x 14 binary MNIST."""

from pathlib import Path

import torch
from helpers.disk import on_disk

from tinyvae.datasets import mnist, mnist14

ROOT = Path(__file__).parents[2]


def test_mnist14_has_the_documented_parts():
    train, validation, test = mnist14()
    assert [len(part) for part in (train, validation, test)] == [10_000, 1000, 10_000]
    for part in (train, validation, test):
        assert part.images.shape[1:] == (1, 14, 14)
        assert part.images.unique().tolist() == [0, 1]
    assert torch.equal(train.labels, torch.arange(10).repeat_interleave(1000))
    assert torch.equal(validation.labels, torch.arange(10).repeat_interleave(100))
    # The published counts of the test labels, and the first ones.
    assert test.labels.bincount().tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


SEVEN = """
...########...
.........##...
.........#....
........#.....
........#.....
.......#......
.......#......
......#.......
.....##.......
"""


def test_mnist14_first_test_image_is_a_seven():
    image = mnist14()[2].images[0, 0]
    rows = ["".join(".#"[pixel] for pixel in row) for row in image.tolist()]
    assert rows[4:13] == SEVEN.split()
    assert image[:4].sum() == image[13].sum() == 0


def test_mnist14_equals_mnist_where_that_is_at_hand():
    root = on_disk("MNIST/raw")
    original, original_test = mnist(root), mnist(root, train=False)
    train, validation, test = mnist14()
    for label in range(10):
        of_class = original.images[original.labels == label].double()
        means = of_class[:1100, 0].reshape(-1, 14, 2, 14, 2).mean((2, 4))
        embedded = torch.cat([part.images[part.labels == label] for part in (train, validation)])
        assert torch.equal(embedded[:, 0].bool(), means > 128)
    means = original_test.images[:, 0].double().reshape(-1, 14, 2, 14, 2).mean((2, 4))
    assert torch.equal(test.images[:, 0].bool(), means > 128)
    assert torch.equal(test.labels, original_test.labels)


def test_notice_names_source_and_license_of_mnist14():
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for fact in ("mnist14.npz", "LeCun", "Cortes", "Burges", "CC BY-SA 3.0"):
        assert fact in notice
