"""Images to train on, and their binarisation.

Pixels stay as they are stored, ``uint8`` on the scale ``0..max_value``: four times smaller than
floats, and exact where a probability is made of them. What turns them into floats is one transform
per batch.

Example:
    >>> import torch
    >>> from tinyvae.datasets import DynamicBinarisation, digits, split
    >>> train, test = split(digits(), (0.8, 0.2), seed=0)
    >>> binarise = DynamicBinarisation(train.max_value)
    >>> x = binarise(train.images[:128], torch.Generator().manual_seed(0))
    >>> x.shape, x.dtype, x.unique().tolist()
    (torch.Size([128, 1, 8, 8]), torch.float32, [0.0, 1.0])
"""

from tinyvae.datasets.binarisation import DynamicBinarisation, threshold
from tinyvae.datasets.dequantisation import Dequantisation
from tinyvae.datasets.idx import read_idx
from tinyvae.datasets.images import LabelledImages, split
from tinyvae.datasets.sources import digits, frey_faces, mnist

__all__ = [
    "Dequantisation",
    "DynamicBinarisation",
    "LabelledImages",
    "digits",
    "frey_faces",
    "mnist",
    "read_idx",
    "split",
    "threshold",
]
