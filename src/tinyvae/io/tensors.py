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
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tinyvae._version import __version__
from tinyvae.io.atomic import write_atomically
from tinyvae.io.encoding import count_non_finite
from tinyvae.io.json import JSON, parse_json
from tinyvae.io.layout import DIGEST_KEY, DTYPES, FORMAT, FORMAT_VERSION, MAX_HEADER, ZEROS


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
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "model.safetensors")
        ...     save_tensors(file, {"mean": torch.zeros(2)}, {"step": 7})
        ...     load_tensors(file)
        ({'mean': tensor([0., 0.])}, {'step': 7})
    """
    plain = [(name, _plain(name, tensor)) for name, tensor in tensors.items()]
    order = list(DTYPES)
    plain.sort(key=lambda item: (order.index(item[1].dtype), item[0]))
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "version": __version__,
        "info": _info_text(info),
        "sha256": ZEROS.decode(),
    }
    header = _header(plain, metadata)
    bodies = [_bytes(tensor) for _, tensor in plain]
    sha = hashlib.sha256(header)
    for body in bodies:
        sha.update(body)
    digest = DIGEST_KEY + sha.hexdigest().encode()
    data: list[bytes | memoryview] = [header.replace(DIGEST_KEY + ZEROS, digest, 1), *bodies]
    write_atomically(path, data, check=check)


# Writing ------------------------------------------------------------------------------------------


def _plain(name: str, tensor: Tensor) -> Tensor:
    if not isinstance(name, str):
        raise TypeError(f"save_tensors expects names of type str, got {name!r:.80}")
    if not isinstance(tensor, Tensor):
        raise TypeError(f"save_tensors expects a tensor for {name!r}, got {type(tensor).__name__}")
    if name == "__metadata__":
        raise ValueError("the file format reserves the name '__metadata__': rename the tensor")
    name.encode()  # raises a ValueError for half of a pair of characters
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in DTYPES:
        got = f"{tensor.layout}, {tensor.dtype}, on {tensor.device}: convert it before saving"
        raise ValueError(
            f"save_tensors expects dense float, int or bool data in {name!r}, got {got}"
        )
    plain = tensor.detach().cpu().contiguous()
    if count := count_non_finite(plain):
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
        shape, dtype = list(tensor.shape), DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns tensors to 8 bytes
    if len(text) > MAX_HEADER:
        got = f"{len(text)}: store large data as tensors"
        raise ValueError(
            f"save_tensors expects names and info of at most {MAX_HEADER} bytes, got {got}"
        )
    return len(text).to_bytes(8, "little") + text
