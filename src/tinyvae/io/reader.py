"""Reader of tensor files.

The header is checked before the rest is read: its size, its JSON, and that its tensors fill the
rest of the file exactly. Then each tensor is read once, into its own memory. A tensor is returned
only if the digest of all bytes is correct.
"""

import hashlib
import math
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinyvae._version import __version__
from tinyvae.errors import CheckpointError
from tinyvae.io.encoding import count_non_finite
from tinyvae.io.json import parse_json
from tinyvae.io.layout import DIGEST_KEY, DTYPES, FORMAT, FORMAT_VERSION, MAX_HEADER, ZEROS

_DAMAGED = "the file is damaged or forged, copy it again or use an older one"
_DIGEST = re.compile(DIGEST_KEY + rb'([0-9a-f]{64})"')
_DTYPES = {word: dtype for dtype, word in DTYPES.items()}
_MAX_DIMS = 64  # torch's operations take no more


class _Entry(NamedTuple):
    """Position of a tensor in a file."""

    start: int
    end: int
    name: str
    dtype: torch.dtype
    shape: list[int]


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load a file that :func:`save_tensors` wrote, after all checks.

    Args:
        path: File to read.

    Returns:
        Tensors on the CPU, sorted by name, and ``info``.

    Raises:
        FileNotFoundError: If the file does not exist.
        CheckpointError: If the file cannot be read, is not a tensor file of this library, is
            damaged, has a newer format, or contains NaN or infinity.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "model.safetensors")
        ...     save_tensors(file, {"mean": torch.zeros(2)}, {})
        ...     write_atomically(file, file.read_bytes()[:-1] + b"!")
        ...     load_tensors(file)
        Traceback (most recent call last):
        ...
        tinyvae.errors.CheckpointError: ...: expected the digest ..., got ...
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # before opening: a pipe would block
            raise _damaged(path, "a file", "a folder or a device", "give the path of one file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = _read_header(path, file, size)
            header = _json_object(path, "header", start[8:])
            metadata = _metadata(path, header)
            entries = _entries(path, header, size - len(start))
            tensors, digest = _read_tensors(path, file, entries, start)
    except FileNotFoundError:
        raise
    except OSError as error:
        remedy = "check the path and its permissions"
        raise _damaged(path, "a readable file", error.strerror or error, remedy) from error
    if digest != metadata["sha256"]:
        raise _damaged(path, f"the digest {ascii(metadata['sha256'])[:80]}", digest)
    for name, tensor in tensors.items():
        _require_valid_values(path, name, tensor)
    return tensors, _json_object(path, "info", metadata["info"])


# Header -------------------------------------------------------------------------------------------


def _read_header(path: Path, file: BufferedReader, size: int) -> bytes:
    """Return the first bytes of a file: the length field and the JSON text."""
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= min(size - 8, MAX_HEADER):
        got = f"{size} bytes that begin with {start!r}" if size else "0 bytes"
        remedy = "pass a file that tinyvae wrote, or copy it again if it was cut off"
        if start.startswith((b"PK", b"\x80")):
            remedy = "pickles and zip archives, which torch.save writes, are never opened"
        raise _damaged(path, "a tinyvae tensor file", got, remedy)
    return start + file.read(length)


def _metadata(path: Path, header: dict[str, Any]) -> dict[str, str]:
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        remedy = "open other safetensors files with safetensors.torch.load_file"
        raise _damaged(path, f"metadata with the format {FORMAT!r}", "others or none", remedy)
    version = str(metadata.get("format_version"))
    if version != FORMAT_VERSION:
        newer = f"it is newer than tinyvae {__version__}, upgrade tinyvae"
        remedy = newer if re.fullmatch("[1-9][0-9]{0,8}", version) else _DAMAGED
        raise _damaged(path, f"format_version {FORMAT_VERSION!r}", version, remedy)
    for key in ("version", "info", "sha256"):
        if not isinstance(metadata.get(key), str):
            raise _damaged(
                path, f"text under the metadata key {key!r}", "something else or nothing"
            )
    return metadata


def _entries(path: Path, header: dict[str, Any], size: int) -> list[_Entry]:
    """Return the tensors of a header in the order of their bytes, which ``size`` bytes follow."""
    tensors = ((name, value) for name, value in header.items() if name != "__metadata__")
    entries = sorted(_entry(path, name, value) for name, value in tensors)
    ends = [0, *(entry.end for entry in entries)]
    starts = [*(entry.start for entry in entries), size]
    for entry, end, start in zip([*entries, None], ends, starts, strict=True):
        if start != end:
            where = f"before {entry.name[:80]!a}" if entry else "at the end of the file"
            got = f"{start - end} bytes too many {where}"
            raise _damaged(path, "tensors as the header describes them", got)
    return entries


def _entry(path: Path, name: str, value: Any) -> _Entry:
    match value:
        case {"dtype": str(word), "shape": list(shape), "data_offsets": [start, end], **rest} if (
            not rest and all(type(n) is int and 0 <= n < 2**63 for n in (start, end, *shape))
        ):
            if word not in _DTYPES:
                raise _damaged(path, f"float, int or bool data in {name[:80]!a}", word)
            dtype = _DTYPES[word]
            # torch computes this product, without zeros, for the strides.
            fits = len(shape) <= _MAX_DIMS and math.prod(max(n, 1) for n in shape) < 2**63
            if fits and math.prod(shape) * dtype.itemsize == end - start:
                return _Entry(start, end, name, dtype, shape)
    raise _damaged(path, "tensors as the header describes them", f"{name[:80]!a}: {value!a}")


def _json_object(path: Path, what: str, text: str | bytes) -> dict[str, Any]:
    try:
        value = parse_json(text if isinstance(text, str) else text.decode())
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"valid JSON as {what}", error) from error
    if not isinstance(value, dict):
        raise _damaged(path, f"a JSON object as {what}", type(value).__name__)
    return value


# Tensors ------------------------------------------------------------------------------------------


def _read_tensors(
    path: Path, file: BufferedReader, entries: list[_Entry], start: bytes
) -> tuple[dict[str, Tensor], str]:
    """Return the tensors, sorted by name, and the digest of all bytes."""
    digests = [match.start(1) for match in _DIGEST.finditer(start)]
    if len(digests) != 1:
        raise _damaged(path, "the digest in the header", f"{len(digests)} well-formed digests")
    sha = hashlib.sha256(start[: digests[0]] + ZEROS + start[digests[0] + 64 :])
    tensors = {}
    for entry in entries:
        size = entry.end - entry.start
        try:
            data = torch.empty(size, dtype=torch.uint8)
        except RuntimeError as error:
            raise _damaged(path, "tensors that fit in memory", f"one of {size} bytes") from error
        memory = data.numpy().data
        if file.readinto(memory) != len(memory):
            raise _damaged(path, "a file that does not change", "one that became shorter")
        sha.update(memory)
        tensors[entry.name] = data.view(entry.dtype).reshape(entry.shape)
    return dict(sorted(tensors.items())), sha.hexdigest()


def _require_valid_values(path: Path, name: str, tensor: Tensor) -> None:
    if count := count_non_finite(tensor):
        got = f"{count} of {tensor.numel()} NaN or infinite"
        raise _damaged(path, f"finite values in {name[:80]!a}", got)
    if tensor.dtype is torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
        raise _damaged(path, f"bytes 0 and 1 in the booleans of {name[:80]!a}", "others")


def _damaged(path: Path, expected: str, got: object, remedy: str = _DAMAGED) -> CheckpointError:
    return CheckpointError(f"{path}: expected {expected}, got {str(got)[:200]}: {remedy}")
