"""Reader of the IDX format, which MNIST uses.

A header of big-endian numbers is followed by the payload, with the last index running fastest::

    magic                  3 bytes   00 00 and a type code
    number of dimensions   1 byte
    size 0, size 1, ...    4 bytes each
    payload                product of the sizes, times the bytes of the type
"""

import gzip
import math
import os
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHUNK = 1 << 20


def read_exactly(
    stream: BufferedIOBase, expected: int, where: str, *, last: bool = False
) -> bytearray:
    """Read exactly ``expected`` bytes. If ``last``, the stream has to end there.

    Memory grows with the bytes that arrive, not with ``expected``, which may be wrong.

    Raises:
        ValueError: If the stream is too short, too long for ``last``, or a damaged gzip stream.
            The message starts with ``where``, the file and the field.
    """
    limit = expected + last
    data = bytearray()
    try:
        while len(data) < limit and (chunk := stream.read(min(limit - len(data), _CHUNK))):
            data += chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{where}: expected {expected} bytes, got a damaged gzip stream ({error}): "
            "download the file again"
        ) from error
    if len(data) != expected:
        got = "more" if len(data) > expected else len(data)
        raise ValueError(f"{where}: expected {expected} bytes, got {got}: download the file again")
    return data


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    r"""Read an IDX file of any type and rank, plain or compressed by gzip.

    The first bytes, not the name, decide whether it is compressed. A wrong header costs no memory:
    a gzip stream is expanded by at most one byte (and the constant buffer of the decompressor)
    beyond the size in the header.

    Args:
        path: File.

    Returns:
        Tensor with the sizes in the header, in native byte order. Its dtype is uint8, int8, int16,
        int32, float32 or float64.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not IDX, truncated, too long or damaged. The message names the
            file and the field.

    References:
        LeCun, Cortes, Burges (1998). The MNIST database of handwritten digits.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "labels-idx1-ubyte"
        ...     _ = path.write_bytes(b"\0\0\x08\x01" + b"\0\0\0\x03" + b"\x07\x02\x01")
        ...     read_idx(path)
        tensor([7, 2, 1], dtype=torch.uint8)
    """
    with Path(path).open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"  # an IDX file starts with two zeros
        file.seek(0)
        return _parse(gzip.GzipFile(fileobj=file) if compressed else file, f"{path}")


def _parse(stream: BufferedIOBase, name: str) -> Tensor:
    magic = read_exactly(stream, 3, f"{name}: magic")
    if magic[:2] != b"\0\0" or magic[2] not in _TYPES:
        codes = ", ".join(f"{code:02x}" for code in _TYPES)
        raise ValueError(
            f"{name}: magic: expected 00 00 and one of {codes}, got {magic.hex(' ')}: "
            "pass an IDX file"
        )
    dtype = np.dtype(_TYPES[magic[2]])
    (rank,) = read_exactly(stream, 1, f"{name}: number of dimensions")
    sizes = [
        int.from_bytes(read_exactly(stream, 4, f"{name}: size {i}"), "big") for i in range(rank)
    ]
    payload = read_exactly(
        stream, math.prod(sizes) * dtype.itemsize, f"{name}: payload of sizes {sizes}", last=True
    )
    array = np.frombuffer(payload, dtype).astype(dtype.newbyteorder("="), copy=False)
    try:
        return torch.from_numpy(array).reshape(sizes)
    except RuntimeError as error:  # one size is 0, so there is no payload, and others are too large
        raise ValueError(
            f"{name}: sizes: expected a shape that torch can hold, got {sizes} ({error}): "
            "download the file again"
        ) from error
