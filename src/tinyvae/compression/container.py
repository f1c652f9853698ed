"""The file: a magic number, a header in deflated JSON, the words of the stack, and a digest."""

import hashlib
import json
import platform
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyvae.compression.stack import Array
from tinyvae.errors import CompressionError, printable
from tinyvae.models.base import DecoderModel

MAGIC = b"\x89tinyVAE"
VERSION = 1
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    )
}
_MOST = 2**48
_MOST_PER_BYTE = 2**12  # examples: a forged number does not keep the decoder busy for ever
_DIGEST = 32  # bytes
_LONGEST_HEADER = 2**24
_HEADER_ERRORS = (ValueError, TypeError, LookupError, AttributeError, RecursionError, zlib.error)


@dataclass(frozen=True)
class Header:
    """Description of a compressed file.

    Attributes:
        shape: Shape of the data ``(N, *E)``.
        dtype: Name of their dtype.
        batch_size: Number of examples that the networks computed at once.
        grids: Exponent and largest number of the bins of each latent, None for discrete ones.
        highest: Largest value of each column, or of all data.
        missing: Number of missing values of each column, or of all data.
        initial_words: Number of words of 32 bits that were on the stack before the first example.
        num_bytes: Size of the file.
        model: Digest of the model.
        data: Digest of the data.
        context: Digest of the context, None without one.
        environment: Versions of torch and constriction, and the kind of processor.
    """

    shape: list[int]
    dtype: str
    batch_size: int
    grids: dict[str, list[int] | None]
    highest: list[int]
    missing: list[int]
    initial_words: int
    model: str
    data: str
    context: str | None
    environment: str
    num_bytes: int = 0

    @property
    def initial_bits(self) -> int:
        """Number of bits on the stack before the first example, which the file contains."""
        return 32 * self.initial_words

    @property
    def bits_per_datum(self) -> float:
        """Size of the file per example, bits, with the header and the initial bits."""
        return 8 * self.num_bytes / self.shape[0]

    @property
    def nats_per_datum(self) -> float:
        """Size of the file per example, nats, which is comparable with minus the ELBO."""
        return self.bits_per_datum * float(np.log(2))


def read_header(file: bytes) -> Header:
    """Return the header of a compressed file, after a check of the digest.

    Raises:
        CompressionError: If the file is damaged, of another format or of a newer version.

    Example:
        >>> read_header(compress(vae, x)).shape
        [8, 4]
    """
    return parse(file)[0]


def assemble(header: Header, words: Array) -> bytes:
    """Return the file."""
    fields = {"version": VERSION} | asdict(header)
    del fields["num_bytes"]
    text = zlib.compress(json.dumps(fields, separators=(",", ":")).encode(), 9)
    body = MAGIC + len(text).to_bytes(4, "little") + text + words.astype("<u4").tobytes()
    return body + hashlib.sha256(body).digest()


def parse(file: bytes) -> tuple[Header, Array]:
    """Return header and words of a file, see :func:`read_header`."""
    if not isinstance(file, (bytes, bytearray, memoryview)):
        raise TypeError(
            f"decompress expects bytes, got a {type(file).__name__}: read the file first, "
            "Path(path).read_bytes()"
        )
    file = bytes(file)
    if file[: len(MAGIC)] != MAGIC:
        raise CompressionError(
            "decompress expects a file of tinyvae.compression.compress, got other bytes"
        )
    body, digest = file[:-_DIGEST], file[-_DIGEST:]
    if hashlib.sha256(body).digest() != digest:
        raise CompressionError("decompress expects the digest of the bytes, got others: damaged")
    start = len(MAGIC) + 4
    end = start + int.from_bytes(body[len(MAGIC) : start], "little")
    try:
        text = zlib.decompressobj().decompress(body[start:end], _LONGEST_HEADER)
        fields = json.loads(text)
        file_version = fields.pop("version")
        words = np.frombuffer(body[end:], "<u4").astype(np.uint32)
        header = Header(**fields, num_bytes=len(file)) if file_version == VERSION else None
    except _HEADER_ERRORS as error:
        raise _invalid("a header", error) from error
    if header is None:
        raise CompressionError(
            f"decompress reads version {VERSION}, got {printable(repr(file_version))}: "
            "use a newer tinyvae"
        )
    _require_valid(header)
    if not len(words) or not words[-1]:
        raise _invalid("words", "none")
    return header, words


def _require_valid(header: Header) -> None:
    """Raise if a field has another type or range than one that was written."""
    grids = header.grids
    checks = {
        "shape": _are_counts(header.shape) and 0 not in header.shape,
        "dtype": isinstance(header.dtype, str) and header.dtype in DTYPES,
        "batch_size": _are_counts([header.batch_size]) and header.batch_size > 0,
        "grids": isinstance(grids, dict) and all(_is_grid(grid) for grid in grids.values()),
        "highest": _are_counts(header.highest),
        "missing": _are_counts(header.missing),
        "initial_words": _are_counts([header.initial_words]),
        "model": isinstance(header.model, str),
        "data": isinstance(header.data, str),
        "context": isinstance(header.context, str | None),
        "environment": isinstance(header.environment, str),
    }
    for name, is_valid in checks.items():
        if not is_valid:
            raise _invalid(name, getattr(header, name))
    if header.shape[0] > _MOST_PER_BYTE * header.num_bytes:
        raise _invalid("shape", header.shape)
    if len(header.missing) != len(header.highest):
        raise _invalid("missing", header.missing)


def _are_counts(values: Any) -> bool:
    is_list = isinstance(values, list) and len(values) > 0
    return is_list and all(type(v) is int and 0 <= v < _MOST for v in values)


def _is_grid(grid: Any) -> bool:
    if grid is None:
        return True
    is_pair = isinstance(grid, list) and len(grid) == 2 and all(type(v) is int for v in grid)
    return is_pair and abs(grid[0]) <= 64 and 1 <= grid[1] < 2**22


def _invalid(name: str, value: object) -> CompressionError:
    return CompressionError(
        f"decompress expects a valid {name}, got {printable(repr(value))}: the file is damaged"
    )


def environment() -> str:
    """Return the versions and the kind of processor, that the results of networks depend on."""
    versions = f"torch {torch.__version__}, constriction {version('constriction')}"
    return f"{versions}, {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def digest_of_model(model: DecoderModel) -> str:
    """Return a digest of weights, buffers and composition."""
    return _digest(model.state_dict(), json.dumps(model.description(), sort_keys=True))


def digest_of_data(x: Tensor) -> str:
    """Return a digest of values, shape and dtype."""
    return _digest({"": x}, "")


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    sha = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()[:32]
