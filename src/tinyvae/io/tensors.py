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
from collections.abc import Mapping

import safetensors.torch
import torch
from torch import Tensor

from tinyvae._version import __version__
from tinyvae.io.atomic import write_atomically
from tinyvae.io.json import JSON, parse_json
from tinyvae.io.layout import DIGEST_KEY, DTYPES, FORMAT, FORMAT_VERSION, MAX_HEADER, ZEROS


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], info: Mapping[str, JSON]
) -> None:
    """Save named tensors and a JSON object as one safetensors file with a digest, atomically.

    The same content gives the same bytes. Tensors can be views, share memory, require gradients or
    be on another device. Each is stored separately.

    Args:
        path: File to write or to replace.
        tensors: Dense tensors of floating, integer or boolean dtype, by name.
        info: Further information as JSON. Tuples are loaded as lists.

    Raises:
        TypeError: If a value is not a tensor, or JSON cannot represent ``info``.
        ValueError: If a tensor contains NaN or infinity or is not dense, if ``info`` contains NaN
            or infinity, or if names and ``info`` together exceed 16 MiB.
        OSError: See :func:`write_atomically`.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "model.safetensors")
        ...     save_tensors(file, {"mean": torch.zeros(2)}, {"step": 7})
        ...     load_tensors(file)
        ({'mean': tensor([0., 0.])}, {'step': 7})
    """
    plain = {name: _plain(name, tensor) for name, tensor in tensors.items()}
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "version": __version__,
        "info": _info_text(info),
        "sha256": ZEROS.decode(),
    }
    data = _encode(plain, metadata)
    start = data.index(DIGEST_KEY) + len(DIGEST_KEY)
    digest = _digest(data, start).encode()
    write_atomically(path, b"".join([data[:start], digest, memoryview(data)[start + 64 :]]))


# Writing ------------------------------------------------------------------------------------------


def _plain(name: str, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"save_tensors expects a tensor for {name!r}, got {type(tensor).__name__}")
    if name == "__metadata__":
        raise ValueError("the file format reserves the name '__metadata__': rename the tensor")
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in DTYPES:
        got = f"{tensor.layout}, {tensor.dtype}, on {tensor.device}: convert it before saving"
        raise ValueError(
            f"save_tensors expects dense float, int or bool data in {name!r}, got {got}"
        )
    # safetensors rejects views and shared memory.
    copy = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    if count := _count_non_finite(copy):
        raise ValueError(
            f"save_tensors expects finite values in {name!r}, got {count} of {copy.numel()} NaN or "
            "infinite: use the last good state, or keep a constant such as a mask of -inf in a "
            "buffer with persistent=False; nothing was written"
        )
    return copy


def _count_non_finite(tensor: Tensor) -> int:
    if not tensor.is_floating_point():
        return 0
    return tensor.numel() - int(torch.isfinite(tensor).sum())


def _info_text(info: Mapping[str, JSON]) -> str:
    try:
        text = json.dumps(dict(info), allow_nan=False, separators=(",", ":"))
        parse_json(text)  # rejects what cannot be loaded, such as the keys 1 and "1"
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"save_tensors expects info that JSON can represent, got: {error}"
        ) from error
    return text


def _encode(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    # safetensors writes metadata in random order. Inserting them here gives equal bytes.
    data = safetensors.torch.save(tensors)
    end = 8 + int.from_bytes(data[:8], "little")
    header = {"__metadata__": metadata, **json.loads(data[8:end])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns tensors to 8 bytes
    if len(text) > MAX_HEADER:
        got = f"{len(text)}: store large data as tensors"
        raise ValueError(
            f"save_tensors expects names and info of at most {MAX_HEADER} bytes, got {got}"
        )
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(data)[end:]])


def _digest(data: bytes, start: int) -> str:
    sha = hashlib.sha256(data[:start])
    sha.update(ZEROS)
    sha.update(memoryview(data)[start + 64 :])
    return sha.hexdigest()
