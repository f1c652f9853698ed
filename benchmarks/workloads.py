"""The workloads of the benchmarks, from a small MLP to convolutions and many draws.

Images are generated and not loaded: their contents do not affect the time.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np


@dataclass(frozen=True)
class Workload:
    """One model on one kind of data.

    Attributes:
        name: Short name.
        title: Description.
        data_shape: Shape of an image.
        hidden: Widths of the encoder's hidden layers, or channels of its stride-2 convolutions
            (3 x 3, padding 1); the decoder mirrors them.
        latent_dim: Dimensions of the latent.
        activation: ``"tanh"`` or ``"relu"``.
        batch_size: Examples per step.
        num_samples: Draws per example; the objective is IWAE if there are several.
        steps: Steps of a round, which is an epoch.
        gray: True if images are gray levels 0..255, from which zeros and ones are drawn for every
            batch; False if they are zeros and ones.
        convolutional: True if ``hidden`` are channels.
    """

    name: str
    title: str
    data_shape: tuple[int, ...]
    hidden: tuple[int, ...]
    latent_dim: int
    activation: str
    batch_size: int
    num_samples: int
    steps: int
    gray: bool = False
    convolutional: bool = False

    @property
    def num_examples(self) -> int:
        """Number of examples in an epoch."""
        return self.batch_size * self.steps

    @property
    def num_pixels(self) -> int:
        """Number of pixels in an image."""
        return prod(self.data_shape)

    @property
    def num_features(self) -> int:
        """Number of features that the encoder's hidden layers return."""
        return self.hidden[-1] * (prod(halvings(self)[-1]) if self.convolutional else 1)


_REFERENCE = ((1, 14, 14), (128,), 8, "tanh")
_TWO_LAYERS = ((1, 28, 28), (200, 200), 50, "tanh", 100)

WORKLOADS = {
    w.name: w
    for w in (
        Workload("w1-32", "196-128-8, batch 32", *_REFERENCE, 32, 1, 300),
        Workload("w1-128", "196-128-8, batch 128", *_REFERENCE, 128, 1, 200),
        Workload("w2", "784-400-20, batch 128", (1, 28, 28), (400,), 20, "relu", 128, 1, 60),
        Workload("w3-1", "784-200-200-50, batch 100", *_TWO_LAYERS, 1, 80, gray=True),
        Workload("w3-50", "784-200-200-50, batch 100, 50 draws", *_TWO_LAYERS, 50, 5, gray=True),
        Workload(
            "w4",
            "three stride-2 convolutions, batch 128",
            (1, 28, 28),
            (32, 64, 128),
            32,
            "relu",
            128,
            1,
            10,
            convolutional=True,
        ),
    )
}


def halvings(workload: Workload) -> list[tuple[int, int]]:
    """Return heights and widths before and after each stride-2 convolution, rounded up."""
    sizes = [workload.data_shape[-2:]]
    for _ in workload.hidden:
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def flops(workload: Workload) -> int:
    """Return the floating-point operations of a step in matrix products and convolutions.

    A multiplication with its addition counts as two, also with the padding of a convolution. The
    backward pass needs the same number for gradients of weights, and again for gradients of inputs,
    except for the images.
    """
    hidden = _hidden_multiplications(workload)
    ends = workload.num_features * workload.latent_dim
    encoder, decoder = sum(hidden) + 2 * ends, sum(hidden) + ends
    per_example = 3 * encoder - hidden[0] + 3 * workload.num_samples * decoder
    return 2 * workload.batch_size * per_example


def _hidden_multiplications(workload: Workload) -> list[int]:
    """Return multiplications per example in the mirrored layers, for one forward pass."""
    if not workload.convolutional:
        return [n_in * n_out for n_in, n_out in pairwise((workload.num_pixels, *workload.hidden))]
    channels = pairwise((workload.data_shape[0], *workload.hidden))
    sizes = halvings(workload)[1:]
    return [9 * a * b * prod(size) for (a, b), size in zip(channels, sizes, strict=True)]


def images(workload: Workload, num_examples: int | None = None) -> np.ndarray:
    """Return images of a workload, uint8 ``(N, *data_shape)``: two blobs per image."""
    generator = np.random.default_rng(0)
    num = workload.num_examples if num_examples is None else num_examples
    height, width = workload.data_shape[-2:]
    rows, columns = np.mgrid[:height, :width]
    centers = generator.uniform(0.25, 0.75, (num, 2, 1, 1)) * height
    distance = (rows - centers[:, 0]) ** 2 + (columns - centers[:, 1]) ** 2
    brightness = np.exp(-distance / (2 * (0.15 * height) ** 2))
    gray = (255 * brightness).round().astype(np.uint8)
    pixels = (
        gray if workload.gray else (gray > generator.integers(0, 255, gray.shape)).astype(np.uint8)
    )
    return pixels.reshape(num, *workload.data_shape)
