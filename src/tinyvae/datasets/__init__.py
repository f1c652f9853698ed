"""Image data sets, and transforms that make floats of pixels.

Pixels stay ``uint8`` on the scale ``0..max_value``: they need a quarter of the memory of floats,
and give exact probabilities. A transform converts each batch to floats.

Example:
    >>> import torch
    >>> from tinyvae.datasets import DynamicBinarization, digits, split
    >>> train, test = split(digits(), (0.8, 0.2), seed=0)
    >>> binarize = DynamicBinarization(train.max_value)
    >>> x = binarize(train.images[:128], torch.Generator().manual_seed(0))
    >>> x.shape, x.dtype, x.unique().tolist()
    (torch.Size([128, 1, 8, 8]), torch.float32, [0.0, 1.0])
"""

from tinyvae.datasets.binarization import DynamicBinarization as DynamicBinarization
from tinyvae.datasets.binarization import threshold as threshold
from tinyvae.datasets.dequantization import Dequantization as Dequantization
from tinyvae.datasets.idx import read_idx as read_idx
from tinyvae.datasets.images import LabeledImages as LabeledImages
from tinyvae.datasets.images import split as split
from tinyvae.datasets.sources import digits as digits
from tinyvae.datasets.sources import frey_faces as frey_faces
from tinyvae.datasets.sources import mnist as mnist
from tinyvae.datasets.sources import mnist14 as mnist14
