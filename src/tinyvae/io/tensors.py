r"""Tensor files with a digest.

A tensor file is a safetensors file that any tool can open. Its metadata also contain ``info``
(compact JSON) and ``sha256``, the digest of all bytes of the file, including the header, with 64
zeros in place of the digest itself:

.. math:: h = \mathrm{SHA256}\big(\text{file with } h \mapsto 0^{64}\big).

So a flipped, missing or added byte is found before a tensor is returned. This protects integrity,
not authenticity: whoever can write the file can also write its digest. Reading executes no code
(there is no pickle), so a hostile file can at worst contain wrong numbers.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from tinyvae._version import __version__
from tinyvae.errors import CheckpointError
from tinyvae.io.atomic import write_atomically
from tinyvae.io.encoding import all_finite
from tinyvae.io.json import JSON, parse_json

_FORMAT = "tinyvae"
_FORMAT_VERSION = "1"
_MAX_HEADER = 16 * 2**20  # bytes; a model with 1000 tensors has about 0.1 MiB
_ZEROS = b"0" * 64
_DIGEST_KEY = b'"sha256":"'  # JSON strings escape quotes, so they cannot contain it
_DIGEST = re.compile(_DIGEST_KEY + rb'([0-9a-f]{64})"')
# Names of safetensors, in the order in which it stores tensors: each is aligned to its elements.
_DTYPES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    info: Mapping[str, JSON],
    *,
    check: Callable[[], None] | None = None,
) -> None:
    """Save named tensors and a JSON object as one safetensors file with a digest, atomically.

    The same content gives the same bytes. Tensors can be views, share memory, require gradients or
    be on another device. Each is stored separately. Only tensors that are not contiguous in memory
    or are on another device are copied.

    Args:
        path: File to write or to replace.
        tensors: Dense tensors of floating, integer or boolean dtype, by name.
        info: Further information as JSON. Tuples are loaded as lists.
        check: See :func:`write_atomically`.

    Raises:
        TypeError: If a value is not a tensor, or JSON cannot represent ``info``.
        ValueError: If a tensor contains NaN or infinity or is not dense, if ``info`` contains NaN
            or infinity, or if names and ``info`` together exceed 16 MiB.
        OSError: See :func:`write_atomically`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "model.safetensors")
        ...     save_tensors(file, {"mean": torch.zeros(2)}, {"step": 7})
        ...     load_tensors(file)
        ({'mean': tensor([0., 0.])}, {'step': 7})
    """
    plain = [(name, _plain(name, tensor)) for name, tensor in tensors.items()]
    order = list(_DTYPES)
    plain.sort(key=lambda item: (order.index(item[1].dtype), item[0]))
    metadata = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "version": __version__,
        "info": _info_text(info),
        "sha256": _ZEROS.decode(),
    }
    header = _header(plain, metadata)
    bodies = [_bytes(tensor) for _, tensor in plain]
    sha = hashlib.sha256(header)
    for body in bodies:
        sha.update(body)
    digest = _DIGEST_KEY + sha.hexdigest().encode()
    data = [header.replace(_DIGEST_KEY + _ZEROS, digest, 1), *bodies]
    write_atomically(path, data, check=check)


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
            header = _read_header(path, file)
            metadata = _parse_header(path, header)
            data = header + file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        remedy = "check the path and its permissions"
        raise _damaged(path, "a readable file", error.strerror or error, remedy) from error
    _check_digest(path, data, len(header), metadata["sha256"])
    return _decode(path, data), _json_object(path, "info", metadata["info"])


_DAMAGED = "the file is damaged or forged, copy it again or use an older one"


# Writing ------------------------------------------------------------------------------------------


def _plain(name: str, tensor: Tensor) -> Tensor:
    if not isinstance(name, str):
        raise TypeError(f"save_tensors expects names of type str, got {name!r:.80}")
    if not isinstance(tensor, Tensor):
        raise TypeError(f"save_tensors expects a tensor for {name!r}, got {type(tensor).__name__}")
    if name == "__metadata__":
        raise ValueError("the file format reserves the name '__metadata__': rename the tensor")
    name.encode()  # raises a ValueError for half of a pair of characters
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in _DTYPES:
        got = f"{tensor.layout}, {tensor.dtype}, on {tensor.device}: convert it before saving"
        raise ValueError(
            f"save_tensors expects dense float, int or bool data in {name!r}, got {got}"
        )
    plain = tensor.detach().cpu().contiguous()
    if count := _count_non_finite(plain):
        raise ValueError(
            f"save_tensors expects finite values in {name!r}, got {count} of {plain.numel()} NaN "
            "or infinite: use the last good state, or keep a constant such as a mask of -inf in a "
            "buffer with persistent=False; nothing was written"
        )
    return plain


def _bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor."""
    # The stride of a single element may be any number, also after reshape(-1).
    flat = tensor.as_strided((tensor.numel(),), (1,))
    return flat.view(torch.uint8).numpy().data


def _count_non_finite(tensor: Tensor) -> int:
    return 0 if all_finite(tensor) else tensor.numel() - int(torch.isfinite(tensor).sum())


def _info_text(info: Mapping[str, JSON]) -> str:
    try:
        text = json.dumps(dict(info), allow_nan=False, separators=(",", ":"))
        parse_json(text)  # rejects what cannot be loaded, such as the keys 1 and "1"
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"save_tensors expects info that JSON can represent, got: {error}"
        ) from error
    return text


def _header(tensors: Iterable[tuple[str, Tensor]], metadata: dict[str, str]) -> bytes:
    """Return the length field and the JSON text, with zeros in place of the digest."""
    header: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for name, tensor in tensors:
        end = start + tensor.nbytes
        shape, dtype = list(tensor.shape), _DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns tensors to 8 bytes
    if len(text) > _MAX_HEADER:
        got = f"{len(text)}: store large data as tensors"
        raise ValueError(
            f"save_tensors expects names and info of at most {_MAX_HEADER} bytes, got {got}"
        )
    return len(text).to_bytes(8, "little") + text


# Reading ------------------------------------------------------------------------------------------


def _read_header(path: Path, file: BinaryIO) -> bytes:  # the length field and the JSON text
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER):
        got = f"{size} bytes that begin with {start!r}" if size else "0 bytes"
        remedy = "pass a file that tinyvae wrote, or copy it again if it was cut off"
        if start.startswith((b"PK", b"\x80")):
            remedy = "pickles and zip archives, which torch.save writes, are never opened"
        raise _damaged(path, "a tinyvae tensor file", got, remedy)
    return start + file.read(length)


def _parse_header(path: Path, header: bytes) -> dict[str, str]:
    text = header[8:].decode(errors="replace")  # safetensors rejects such bytes later
    metadata = _json_object(path, "header", text).get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != _FORMAT:
        remedy = "open other safetensors files with safetensors.torch.load_file"
        raise _damaged(path, f"metadata with the format {_FORMAT!r}", "others or none", remedy)
    version = str(metadata.get("format_version"))
    if version != _FORMAT_VERSION:
        newer = f"it is newer than tinyvae {__version__}, upgrade tinyvae"
        remedy = newer if re.fullmatch("[1-9][0-9]{0,8}", version) else _DAMAGED
        raise _damaged(path, f"format_version {_FORMAT_VERSION!r}", version, remedy)
    for key in ("version", "info", "sha256"):
        if not isinstance(metadata.get(key), str):
            raise _damaged(
                path, f"text under the metadata key {key!r}", "something else or nothing"
            )
    return metadata


def _check_digest(path: Path, data: bytes, end: int, expected: str) -> None:
    starts = [match.start(1) for match in _DIGEST.finditer(data, 0, end)]
    got = _digest(data, starts[0]) if len(starts) == 1 else f"{len(starts)} well-formed digests"
    if got != expected:
        raise _damaged(path, f"the digest {ascii(expected)[:80]}", got)


def _digest(data: bytes, start: int) -> str:
    sha = hashlib.sha256(data[:start])
    sha.update(_ZEROS)
    sha.update(memoryview(data)[start + 64 :])
    return sha.hexdigest()


def _decode(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # SafetensorError, KeyError, RuntimeError, ...
        raise _damaged(path, "tensors as the header describes them", error) from error
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise _damaged(path, f"float, int or bool data in {name[:80]!a}", tensor.dtype)
        if count := _count_non_finite(tensor):
            got = f"{count} of {tensor.numel()} NaN or infinite"
            raise _damaged(path, f"finite values in {name[:80]!a}", got)
        if tensor.dtype is torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
            raise _damaged(path, f"bytes 0 and 1 in the booleans of {name[:80]!a}", "others")
    return dict(sorted(tensors.items()))


def _json_object(path: Path, what: str, text: str) -> dict[str, Any]:
    try:
        value = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"valid JSON as {what}", error) from error
    if not isinstance(value, dict):
        raise _damaged(path, f"a JSON object as {what}", type(value).__name__)
    return value


def _damaged(path: Path, expected: str, got: object, remedy: str = _DAMAGED) -> CheckpointError:
    text = re.sub("[^ -~]", "?", str(got)[:200])  # no control codes for the terminal
    return CheckpointError(f"{path}: expected {expected}, got {text}: {remedy}")
