"""Safe files: an atomic writer, a tensor format, states, JSON, and a lock on a folder."""

from tinyvae.io.atomic import write_atomically as write_atomically
from tinyvae.io.encoding import decode_state as decode_state
from tinyvae.io.encoding import encode_state as encode_state
from tinyvae.io.json import null_for_non_finite as null_for_non_finite
from tinyvae.io.json import write_json as write_json
from tinyvae.io.lock import FolderLock as FolderLock
from tinyvae.io.reader import load_tensors as load_tensors
from tinyvae.io.tensors import save_tensors as save_tensors
