"""Files that are whole or absent: one atomic writer, one tensor format, states, JSON, a lock."""

from tinyvae.files.atomic import write_atomically
from tinyvae.files.encoding import decode_state, encode_state
from tinyvae.files.errors import CheckpointError
from tinyvae.files.lock import FolderLock
from tinyvae.files.tensors import load_tensors, save_tensors
from tinyvae.files.text import null_for_non_finite, write_json

__all__ = [
    "CheckpointError",
    "FolderLock",
    "decode_state",
    "encode_state",
    "load_tensors",
    "null_for_non_finite",
    "save_tensors",
    "write_atomically",
    "write_json",
]
