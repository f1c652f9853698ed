"""Image data sets, from the package or from files."""

import os
import sys
import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyvae.datasets.idx import read_exactly, read_idx
from tinyvae.datasets.images import LabeledImages


def digits() -> LabeledImages:
    """Load 1,797 handwritten digits of 8 by 8 pixels, which come with this package.

    Each pixel counts the ink in a block of 4 by 4 bits, so white is 16. The order is the original
    one, with the images of each writer together: use :func:`split` for a test set. The file NOTICE
    names the source and the license (CC BY 4.0).

    Returns:
        Images ``(1797, 1, 8, 8)`` in 0..16, labels 0..9.

    References:
        Alpaydin, Kaynak (1998). Optical Recognition of Handwritten Digits. UCI Machine Learning
        Repository, doi:10.24432/C50P49.

    Example:
        >>> digits()
        LabeledImages('digits', images=(1797, 1, 8, 8), max_value=16)
        >>> digits().labels[:5]
        tensor([0, 1, 2, 3, 4])
    """
    arrays = _embedded("digits.npz")
    images = torch.from_numpy(arrays["images"]).unsqueeze(1)  # (1797, 1, 8, 8)
    labels = torch.from_numpy(arrays["labels"]).to(torch.int64)
    return LabeledImages(images, labels, max_value=16, name="digits")


def mnist14() -> tuple[LabeledImages, LabeledImages, LabeledImages]:
    """Load MNIST as binary images of 14 by 14 pixels, which come with this package.

    A pixel is 1 where the mean of 2 by 2 pixels of MNIST exceeds 128 of 255. The training part has
    the first 1,000 training images of each class, in order of the classes, as in a published MNIST
    VAE. The validation part has the next 100 of each class. The test part has all test images in
    their order. The file NOTICE names the source and the license (CC BY-SA 3.0).

    Returns:
        Training, validation and test part, with images ``(10000, 1, 14, 14)``,
        ``(1000, 1, 14, 14)`` and ``(10000, 1, 14, 14)`` of zeros and ones, and labels 0..9.

    References:
        LeCun, Cortes, Burges (1998). The MNIST database of handwritten digits.
        https://github.com/williamcfrancis/Variational-Autoencoder-for-MNIST

    Example:
        >>> train, validation, test = mnist14()
        >>> train
        LabeledImages('mnist14-train', images=(10000, 1, 14, 14), max_value=1)
        >>> x = train.images.float()  # for BernoulliLikelihood
    """
    arrays = _embedded("mnist14.npz")
    train, validation, test = (
        LabeledImages(
            # Eight pixels share a byte; the last byte of an image has four.
            torch.from_numpy(np.unpackbits(arrays[f"{part}_images"], axis=1, count=196)).reshape(
                -1, 1, 14, 14
            ),
            torch.from_numpy(arrays[f"{part}_labels"]).to(torch.int64),
            max_value=1,
            name=f"mnist14-{part}",
        )
        for part in ("train", "validation", "test")
    )
    return train, validation, test


def mnist(
    root: str | os.PathLike[str] = "data", *, train: bool = True, download: bool = False
) -> LabeledImages:
    """Load MNIST from the files in ``root/MNIST/raw``, which is torchvision's layout.

    The files are ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same with
    ``t10k``, plain or with ``.gz``. torchvision is needed only to download missing files.

    Args:
        root: Folder that contains ``MNIST/raw``.
        train: True for the 60,000 training images, False for the 10,000 test images.
        download: If True, torchvision downloads missing files.

    Returns:
        Images ``(N, 1, 28, 28)`` in 0..255, labels 0..9.

    Raises:
        FileNotFoundError: If the files are missing and ``download`` is False.
        ImportError: If torchvision is needed, and missing or broken.
        RuntimeError: If torchvision cannot download the files.
        ValueError: If a file is damaged or does not match its name.

    References:
        LeCun, Bottou, Bengio, Haffner (1998). Gradient-based learning applied to document
        recognition. Proceedings of the IEEE 86(11).

    Example:
        >>> mnist("no/such/folder")
        Traceback (most recent call last):
        ...
        FileNotFoundError: mnist expects the files train-images-idx3-ubyte and ...
    """
    folder = Path(root).expanduser() / "MNIST" / "raw"
    part = "train" if train else "t10k"
    names = (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte")
    layout = f"the files {names[0]} and {names[1]}, plain or with .gz, in {folder}"
    paths = _find(folder, names)
    if len(paths) < len(names) and download:
        _download_mnist(Path(root).expanduser(), layout)
        paths = _find(folder, names)
    if len(paths) < len(names):
        got = ", ".join(path.name for path in paths) or "none of them"
        raise FileNotFoundError(
            f"mnist expects {layout}, got {got}: put them there, or pass download=True "
            "(which needs pip install 'tinyvae[examples]')"
        )
    images, labels = (read_idx(path) for path in paths)
    if images.dtype != torch.uint8 or images.shape[1:] != (28, 28):
        raise ValueError(
            f"{paths[0]}: images: expected torch.uint8 of shape (N, 28, 28), got {images.dtype} of "
            f"shape {tuple(images.shape)}: put the file of that name from MNIST there"
        )
    if labels.dtype != torch.uint8 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{paths[1]}: labels: expected torch.uint8 of shape ({len(images)},), one per image, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}: put images and labels of the same "
            "part there"
        )
    if (labels > 9).any():
        raise ValueError(
            f"{paths[1]}: labels: expected 0..9, got {int(labels.max())}: "
            "put the file of that name from MNIST there"
        )
    name = f"mnist-{'train' if train else 'test'}"
    return LabeledImages(images.unsqueeze(1), labels.to(torch.int64), max_value=255, name=name)


def frey_faces(path: str | os.PathLike[str]) -> Tensor:
    """Load the 1,965 Frey faces, frames of one film, from a ``.npy`` file.

    Args:
        path: File with a uint8 array ``(1965, 560)``, one flattened image per row. The original
            ``frey_rawface.mat`` contains the transpose. Convert it by
            ``numpy.save(path, scipy.io.loadmat("frey_rawface.mat")["ff"].T)``.

    Returns:
        Images ``(1965, 1, 28, 20)``, uint8.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file contains something else or is damaged.

    References:
        Roweis, Saul, Hinton (2002). Global coordination of local linear models. NeurIPS 14.
        Kingma, Welling (2014). Auto-Encoding Variational Bayes. arXiv:1312.6114, section 5.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "freyfaces.npy"
        ...     np.save(path, np.zeros((1965, 560), np.uint8))
        ...     frey_faces(path).shape
        torch.Size([1965, 1, 28, 20])
    """
    remedy = "write the file as the docstring of frey_faces says"
    with Path(path).open("rb") as file:
        # numpy.load would allocate the size in the header before it reads the payload.
        try:
            form = np.lib.format
            is_first = form.read_magic(file) == (1, 0)
            read_header = form.read_array_header_1_0 if is_first else form.read_array_header_2_0
            shape, columns_first, dtype = read_header(file)
        except Exception as error:  # TokenError and others, not only ValueError
            raise ValueError(
                f"{path}: header: expected that of a .npy file, got none ({error}): {remedy}"
            ) from error
        if shape != (1965, 560) or dtype != np.uint8:
            raise ValueError(
                f"{path}: header: expected shape (1965, 560) and dtype uint8, got shape {shape} "
                f"and dtype {dtype}: {remedy}"
            )
        payload = read_exactly(file, 1965 * 560, f"{path}: payload", last=True)
    rows = np.frombuffer(payload, np.uint8).reshape(shape, order="F" if columns_first else "C")
    return torch.from_numpy(np.ascontiguousarray(rows)).reshape(1965, 1, 28, 20)


def _embedded(name: str) -> dict[str, Any]:
    """Return the arrays of a file of this package, by name."""
    with (
        files("tinyvae.datasets").joinpath(name).open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        return dict(arrays)


def _find(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Return the paths of the named files that exist, plain files before compressed ones."""
    candidates = ((folder / name, folder / f"{name}.gz") for name in names)
    return [path for pair in candidates for path in [p for p in pair if p.is_file()][:1]]


def _download_mnist(root: Path, layout: str) -> None:
    dataset = _import_torchvision_mnist(layout)
    try:
        dataset(root, download=True)
    except Exception as error:  # any error of the network or the disk
        raise RuntimeError(
            f"torchvision could not download MNIST ({type(error).__name__}: {error}): "
            f"try again later, or put {layout}"
        ) from error


def _import_torchvision_mnist(layout: str) -> Any:
    """Import torchvision. After a failure, restore ``sys.modules``."""
    before = set(sys.modules)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about image codecs, which are not needed here
            from torchvision.datasets import MNIST
    except Exception as error:  # RuntimeError or OSError if torchvision is built for another torch
        # Python removes the failed package, but not the submodules that it imported.
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "torchvision":
                del sys.modules[name]
        raise ImportError(
            "mnist(download=True) expects a torchvision that can be imported, got "
            f"{type(error).__name__}: {error}; pip install 'tinyvae[examples]', both torch and "
            f"torchvision from the same index, or put {layout}"
        ) from error
    return MNIST
