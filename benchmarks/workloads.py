"""The workloads that everybody is timed on, from a small MLP to convolutions and many draws.

Images are drawn, not loaded: what is in them costs no time, and nothing has to be at hand.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np

__all__ = ["WORKLOADS", "Workload", "flops", "halvings", "images"]


@dataclass(frozen=True)
class Workload:
    """One model on one kind of data.

    Attributes:
        name: Short name.
        title: What it is, in words.
        data_shape: Shape of an image.
        hidden: Widths of the encoder's hidden layers, or channels of its stride-2 convolutions
            (3 x 3, padding 1); the decoder mirrors them.
        latent_dim: Dimensions of the latent.
        activation: ``"tanh"`` or ``"relu"``.
        batch_size: Examples per step.
        num_samples: Draws per example; the objective is IWAE where there are several.
        steps: Steps of a round, which is an epoch.
        gray: Whether images are gray levels 0..255, drawn as zeros and ones anew at every use;
            otherwise they are zeros and ones.
        convolutional: Whether ``hidden`` are channels.
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
        """Examples of an epoch."""
        return self.batch_size * self.steps

    @property
    def num_pixels(self) -> int:
        """Numbers in an image."""
        return prod(self.data_shape)

    @property
    def num_features(self) -> int:
        """Numbers that the encoder's hidden layers end in."""
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
    """Heights and widths that the stride-2 convolutions pass through, halves rounded up."""
    sizes = [workload.data_shape[-2:]]
    for _ in workload.hidden:
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def flops(workload: Workload) -> int:
    """Floating-point operations of a step in matrix products and convolutions.

    A multiplication with its addition counts as two; of a convolution, those with its padding
    count too. The backward pass takes as many again for the gradients of weights and as many for
    those of inputs, except for the images, which have none.
    """
    hidden = _hidden_multiplications(workload)
    ends = workload.num_features * workload.latent_dim
    encoder, decoder = sum(hidden) + 2 * ends, sum(hidden) + ends
    per_example = 3 * encoder - hidden[0] + 3 * workload.num_samples * decoder
    return 2 * workload.batch_size * per_example


def _hidden_multiplications(workload: Workload) -> list[int]:
    """Multiplications per example in the layers that the decoder mirrors, one pass forwards."""
    if not workload.convolutional:
        return [n_in * n_out for n_in, n_out in pairwise((workload.num_pixels, *workload.hidden))]
    channels = pairwise((workload.data_shape[0], *workload.hidden))
    sizes = halvings(workload)[1:]
    return [9 * a * b * prod(size) for (a, b), size in zip(channels, sizes, strict=True)]


def images(workload: Workload, num_examples: int | None = None) -> np.ndarray:
    """Images of a workload, uint8 ``(N, *data_shape)``: blobs, zeros and ones or gray levels."""
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
