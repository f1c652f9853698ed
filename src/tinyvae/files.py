r"""Files that are whole or absent: one atomic writer, one tensor format, one JSON writer.

A tensor file is a safetensors file, which any tool opens. Its metadata also hold ``info`` (compact
JSON) and ``sha256``: the digest of all bytes of the file, header included, computed while 64 zeros
stand in the place of the digest itself,

.. math:: h = \mathrm{SHA256}\big(\text{file with } h \mapsto 0^{64}\big).

A flipped, missing or added byte is therefore found before a tensor is handed out. This is
integrity, not authenticity: whoever can write the file can also write its digest. Reading executes
nothing (there is no pickle here), so a hostile file can at worst hold wrong numbers.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import re
import secrets
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import safetensors.torch
import torch
from torch import Tensor

from tinyvae._version import __version__

__all__ = ["CheckpointError", "load_tensors", "save_tensors", "write_atomically", "write_json"]

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

_FORMAT = "tinyvae"
_FORMAT_VERSION = "1"
_MAX_HEADER = 16 * 2**20  # bytes; the header of a model of 1000 tensors takes about 0.1 MiB
_ZEROS = b"0" * 64
_DIGEST_KEY = b'"sha256":"'  # no JSON string can hold these bytes: its quotes would be escaped
_DIGEST = re.compile(_DIGEST_KEY + rb'([0-9a-f]{64})"')
_DTYPES = {torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64}
_DTYPES |= {torch.int8, torch.int16, torch.int32, torch.int64}
_DTYPES |= {torch.uint8, torch.uint16, torch.uint32, torch.uint64}
_DAMAGED = "the file is damaged or forged, copy it again or go back to an older one"


class CheckpointError(RuntimeError):
    """A file is damaged, hostile, foreign or from another version; nothing of it was used."""


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file such that a crash at any moment leaves the old file or the new one, whole.

    The data go to a temporary file in the same folder, reach the disk, and take the name in one
    step; then the folder reaches the disk. Missing folders are made, a symbolic link stays a link,
    and the mode is that of a newly opened file. Temporary files of the same target whose process
    on this computer has died are removed.

    Args:
        path: The file to write or to replace.
        data: All of its content.

    Raises:
        OSError: If the disk is full, the folder is read-only, or ``path`` is a folder or a device.
            No temporary file stays. The old file is intact, unless only the very last step, the
            folder's way to the disk, has failed: then the new file is in place.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder, "new", "a.txt"), b"all or nothing")
        ...     Path(folder, "new", "a.txt").read_text()
        'all or nothing'
    """
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():
            raise FileExistsError(errno.EEXIST, "a folder or a device has this name")
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        _write_and_rename(target, data)
        _sync_folder(target.parent)
    except OSError as error:  # os.write and os.fsync name no file
        reason = f"cannot write the file: {error.strerror or error}"
        raise OSError(error.errno, reason, os.fspath(path)) from error


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], info: Mapping[str, JSON]
) -> None:
    """Save named tensors and a JSON object as one safetensors file with a digest, atomically.

    The same content gives the same bytes. Tensors may be views, share memory, require gradients or
    lie on another device; each is stored by itself.

    Args:
        path: The file to write or to replace.
        tensors: Dense tensors of floating, integer or boolean dtype, by name.
        info: What else the file should say; tuples come back as lists.

    Raises:
        TypeError: If a tensor is none, or ``info`` holds what JSON cannot.
        ValueError: If a tensor holds NaN or infinity or has no plain dense storage, if ``info``
            holds NaN or infinity, or if names and ``info`` together exceed 16 MiB.
        OSError: See :func:`write_atomically`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "model.safetensors")
        ...     save_tensors(file, {"mean": torch.zeros(2)}, {"step": 7})
        ...     load_tensors(file)
        ({'mean': tensor([0., 0.])}, {'step': 7})
    """
    plain = {name: _plain(name, tensor) for name, tensor in tensors.items()}
    metadata = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "version": __version__,
        "info": _info_text(info),
        "sha256": _ZEROS.decode(),
    }
    data = _encode(plain, metadata)
    start = data.index(_DIGEST_KEY) + len(_DIGEST_KEY)
    digest = _digest(data, start).encode()
    write_atomically(path, b"".join([data[:start], digest, memoryview(data)[start + 64 :]]))


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load what :func:`save_tensors` saved, after every check has passed.

    Args:
        path: The file to read.

    Returns:
        The tensors on the CPU, in the order of their names, and ``info``.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file cannot be read, is no tensor file of this library, is damaged,
            comes from a newer format, or holds NaN or infinity.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "model.safetensors")
        ...     save_tensors(file, {"mean": torch.zeros(2)}, {})
        ...     write_atomically(file, file.read_bytes()[:-1] + b"!")
        ...     load_tensors(file)
        Traceback (most recent call last):
        ...
        tinyvae.files.CheckpointError: ...: expected the digest ..., got ...
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # before opening: a pipe would wait for ever
            raise _error(path, "a file", "a folder or a device", "give the path of one file")
        with path.open("rb") as file:
            header = _read_header(path, file)
            metadata = _parse_header(path, header)
            data = header + file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        remedy = "check the path and its permissions"
        raise _error(path, "a readable file", error.strerror or error, remedy) from error
    _check_digest(path, data, len(header), metadata["sha256"])
    return _decode(path, data), _json_object(path, "info", metadata["info"])


def write_json(path: str | os.PathLike[str], value: JSON) -> None:
    """Write indented JSON for people and other programs, atomically; NaN and infinity become null.

    Args:
        path: The file to write or to replace.
        value: What to write. JSON has no non-finite numbers, so that ``null`` stands for them.

    Raises:
        TypeError: If ``value`` holds what JSON cannot.
        OSError: See :func:`write_atomically`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(Path(folder, "a.json"), {"elbo": [-80.5, float("nan")]})
        ...     print(Path(folder, "a.json").read_text(), end="")
        {
          "elbo": [
            -80.5,
            null
          ]
        }
    """
    text = json.dumps(_null_for_non_finite(value), indent=2, allow_nan=False)
    write_atomically(path, text.encode() + b"\n")


# Writing ------------------------------------------------------------------------------------------


def _write_and_rename(target: Path, data: bytes) -> None:
    middle = f"{_node()}.{os.getpid()}.{secrets.token_hex(4)}"
    temporary = target.with_name(f".{target.name}.{middle}.tmp")
    binary = getattr(os, "O_BINARY", 0)  # without it Windows rewrites line ends
    # The umask applies to 0o666 as it does in open().
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | binary, 0o666)
    try:
        try:
            rest = memoryview(data)
            while rest:  # one call may write less than all, e.g. at most 2 GiB
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, target)  # noqa: PTH105 - one layer of system calls in this function
    except BaseException:  # an interrupt, too, leaves nothing behind
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Windows cannot open a folder
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the file system has no such operation
            raise
    finally:
        os.close(descriptor)


def _remove_stale(target: Path) -> None:
    if os.name != "posix":
        return  # os.kill(pid, 0) asks on POSIX, but ends the process on Windows
    pattern = rf"\.{re.escape(target.name)}\.{_node()}\.([1-9][0-9]{{0,8}})\.[0-9a-f]{{8}}\.tmp"
    with contextlib.suppress(OSError):  # tidying up never stops a write
        for file in list(target.parent.iterdir()):
            match = re.fullmatch(pattern, file.name)
            if match and not _alive(int(match[1])):
                file.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:  # EPERM: it lives, and belongs to someone else
        return error.errno != errno.ESRCH
    return True


def _node() -> str:
    # On a shared disk a process id says nothing without the computer it belongs to.
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _plain(name: str, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"expected a tensor for {name!r}, got {type(tensor).__name__}")
    if name == "__metadata__":
        raise ValueError("the name '__metadata__' belongs to the file format: rename the tensor")
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in _DTYPES:
        got = f"{tensor.layout}, {tensor.dtype}, on {tensor.device}: convert it before saving"
        raise ValueError(f"expected dense float, int or bool data in {name!r}, got {got}")
    # A copy, for safetensors refuses views and shared memory.
    copy = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    if count := _count_non_finite(copy):
        got = f"{count} of {copy.numel()} NaN or infinite: go back to the last good state"
        raise ValueError(f"expected finite values in {name!r}, got {got}; nothing was written")
    return copy


def _count_non_finite(tensor: Tensor) -> int:
    if not tensor.is_floating_point():
        return 0
    return tensor.numel() - int(torch.isfinite(tensor).sum())


def _info_text(info: Mapping[str, JSON]) -> str:
    try:
        text = json.dumps(dict(info), allow_nan=False, separators=(",", ":"))
        _parse_json(text)  # what the loader would refuse, such as the keys 1 and "1", is not saved
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected info that JSON can hold, got: {error}") from error
    return text


def _encode(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    # safetensors orders its metadata at random; put in here, equal content gives equal bytes.
    data = safetensors.torch.save(tensors)
    end = 8 + int.from_bytes(data[:8], "little")
    header = {"__metadata__": metadata, **json.loads(data[8:end])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the tensors at 8 bytes
    if len(text) > _MAX_HEADER:
        got = f"{len(text)}: store large data as tensors"
        raise ValueError(f"expected names and info of at most {_MAX_HEADER} bytes, got {got}")
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(data)[end:]])


def _null_for_non_finite(value: JSON) -> JSON:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _null_for_non_finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_null_for_non_finite(item) for item in value]
    return value


# Reading ------------------------------------------------------------------------------------------


def _error(path: Path, expected: str, got: object, remedy: str = _DAMAGED) -> CheckpointError:
    text = re.sub("[^ -~]", "?", str(got)[:200])  # foreign: kept short and off the terminal's codes
    return CheckpointError(f"{path}: expected {expected}, got {text}: {remedy}")


def _read_header(path: Path, file: BinaryIO) -> bytes:  # the length field and the JSON text
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER):
        got = f"{size} bytes that begin with {start!r}" if size else "0 bytes"
        remedy = "give a file that tinyvae has written, or copy it again if it was cut off"
        if start.startswith((b"PK", b"\x80")):
            remedy = "pickles and zip archives, which torch.save writes, are never opened"
        raise _error(path, "a tinyvae tensor file", got, remedy)
    return start + file.read(length)


def _parse_header(path: Path, header: bytes) -> dict[str, str]:
    text = header[8:].decode(errors="replace")  # safetensors refuses such bytes later
    metadata = _json_object(path, "header", text).get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != _FORMAT:
        remedy = "open files of other origin with safetensors.torch.load_file"
        raise _error(path, f"metadata with the format {_FORMAT!r}", "others or none", remedy)
    version = str(metadata.get("format_version"))
    if version != _FORMAT_VERSION:
        newer = f"it is newer than tinyvae {__version__}, upgrade tinyvae"
        remedy = newer if re.fullmatch("[1-9][0-9]{0,8}", version) else _DAMAGED
        raise _error(path, f"format_version {_FORMAT_VERSION!r}", version, remedy)
    for key in ("version", "info", "sha256"):
        if not isinstance(metadata.get(key), str):
            raise _error(path, f"text under the metadata key {key!r}", "something else or nothing")
    return metadata


def _check_digest(path: Path, data: bytes, end: int, expected: str) -> None:
    starts = [match.start(1) for match in _DIGEST.finditer(data, 0, end)]
    got = _digest(data, starts[0]) if len(starts) == 1 else f"{len(starts)} well-formed digests"
    if got != expected:
        raise _error(path, f"the digest {ascii(expected)[:80]}", got)


def _digest(data: bytes, start: int) -> str:
    sha = hashlib.sha256(data[:start])
    sha.update(_ZEROS)
    sha.update(memoryview(data)[start + 64 :])
    return sha.hexdigest()


def _decode(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # of many types: SafetensorError, KeyError, RuntimeError, ...
        raise _error(path, "tensors as the header describes them", error) from error
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise _error(path, f"float, int or bool data in {name[:80]!a}", tensor.dtype)
        if count := _count_non_finite(tensor):
            got = f"{count} of {tensor.numel()} NaN or infinite"
            raise _error(path, f"finite values in {name[:80]!a}", got)
        if tensor.dtype is torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
            raise _error(path, f"bytes 0 and 1 in the booleans of {name[:80]!a}", "others")
    return dict(sorted(tensors.items()))


def _json_object(path: Path, what: str, text: str) -> dict[str, Any]:
    try:
        value = _parse_json(text)
    except (ValueError, RecursionError) as error:
        raise _error(path, f"valid JSON as {what}", error) from error
    if not isinstance(value, dict):
        raise _error(path, f"a JSON object as {what}", type(value).__name__)
    return value


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key that stands twice in one object")
    return value


def _finite(text: str) -> float:  # NaN, Infinity, and 1e999, which Python reads as infinity
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]}, which is not finite")
    return number
