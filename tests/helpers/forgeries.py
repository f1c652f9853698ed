"""Forged files: any content under a correct digest."""

import copy
import hashlib
import json
import math
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

# Files ------------------------------------------------------------------------------------------


def split_file(file):
    """Return the header and the body of a file."""
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def seal(header, body):
    """Return the bytes of a file with a correct digest around any header."""
    header["__metadata__"] |= {"sha256": "0" * 64}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = len(text).to_bytes(8, "little") + text + body
    key = b'"sha256":"'
    digest = hashlib.sha256(data).hexdigest().encode()
    return data.replace(key + b"0" * 64, key + digest, 1)


class Forgery:
    """The content of a file, to be changed and sealed.

    Attributes:
        info: The JSON about the model and the state.
        tensors: Word of the dtype, shape and bytes of each tensor, by name.
    """

    def __init__(self, file):
        header, body = split_file(file)
        self.metadata = header.pop("__metadata__")
        self.info = json.loads(self.metadata["info"])
        self.tensors = {
            name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])])
            for name, entry in header.items()
        }

    def header_and_body(self):
        """Return the header, with offsets that fit, and the bytes of the tensors."""
        info = json.dumps(self.info, separators=(",", ":"))
        header, body = {"__metadata__": {**self.metadata, "info": info}}, b""
        for name, (dtype, shape, data) in self.tensors.items():
            offsets = [len(body), len(body) + len(data)]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
            body += data
        return header, body


# Mutations --------------------------------------------------------------------------------------

DEEP = json.loads("[" * 60 + "]" * 60)
SMALL = [0, 1, -1, 2, 3, 4, 7, 0.0, -0.0, 0.5, -0.5, 1.5]
EXTREME = [1000, 10**6, 2**31, 2**53, 2**62, 2**63, 2**64, 10**30, 10**400]
EXTREME += [1e-300, 1e300, {"float": "nan"}, {"float": "inf"}, {"float": "-inf"}]
TEXTS = ["", "x", "\x1b[2J\n", "x" * 2000, "\u202e", "\ud800", "os.system", "__class__", "model"]
TEXTS += ["state", "learned", "predicted", "cuda", "sum"]
FORMS = [None, True, False, [], {}, [[]], DEEP, [1, 2, 3], ["x"], {"tuple": []}, {"dict": []}]
FORMS += [{"class": "ReLU"}, {"class": "system"}, {"foreign": "Linear"}]
FORMS += [{"part": "MLP", "config": {}}, {"part": "StandardNormal", "config": {"latent_dim": 2}}]
SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4}
SIZES |= {"F32": 4, "U64": 8, "I64": 8, "F64": 8}


def places_of(value):
    """Return the containers and keys of all nodes below a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from places_of(value[key])


def mutate_json(value, source, names):
    """Change a node of a JSON value in place."""
    places = list(places_of(value))
    container, key = source.choice(places)
    node = container[key]
    if isinstance(node, (dict, list)) and source.random() < 0.7:  # leaves matter most
        leaves = [(c, k) for c, k in places if not isinstance(c[k], (dict, list))]
        container, key = source.choice(leaves)
        node = container[key]
    other_container, other_key = source.choice(places)
    other = copy.deepcopy(other_container[other_key])
    match source.randrange(12):
        case 0:
            container[key] = source.choice(SMALL)
        case 1:
            container[key] = copy.deepcopy(source.choice(EXTREME))
        case 2:
            container[key] = copy.deepcopy(source.choice(FORMS))
        case 3:
            container[key] = source.choice(TEXTS)
        case 4 | 5:
            container[key] = other
        case 6:
            del container[key]
        case 7 if isinstance(container, list):
            container.insert(key, other)
        case 7:
            container[source.choice([*TEXTS, str(other_key), f"{key}'"])] = container.pop(key)
        case 8:
            container[key] = source.choice([[node], {"tuple": [node]}, [node, node]])
        case 9:
            name = source.choice([*names, "x"])
            container[key] = source.choice(
                [{"tensor": name}, {"bits": name, "dtype": "float32"}, name]
            )
        case _ if isinstance(node, (int, float)):
            changes = [node + 1, node - 1, -node, 2 * node, float(node), str(node), not node]
            container[key] = source.choice(changes)
        case _:
            container[key] = copy.deepcopy(source.choice([*FORMS, *SMALL, *EXTREME]))


def mutate_tensor(tensors, source):
    """Change a tensor in place. Its bytes stay those of its dtype and shape."""
    name = source.choice(list(tensors))
    other = source.choice(list(tensors))
    dtype, shape, data = tensors[name]
    same_size = [word for word, size in SIZES.items() if size == SIZES[dtype]]
    match source.randrange(12):
        case 0 | 1 | 2:
            tensors[name] = (source.choice(same_size), shape, data)
        case 3:
            word = source.choice(list(SIZES))
            tensors[name] = (word, shape, bytes(math.prod(shape) * SIZES[word]))
        case 4:
            count = math.prod(shape)
            shapes = [shape[::-1], [count], [1, *shape], [*shape, 1], [1] * 70 + shape]
            tensors[name] = (dtype, source.choice(shapes), data)
        case 5:
            huge = [[0], [0, 2**40], [0, 2**62], [2**31, 0, 2**31], [0] * 65]
            tensors[name] = (dtype, source.choice(huge), b"")
        case 6:
            shape = source.choice([[], [1], [3], [8, 4], [*shape, 2], [2**16]])
            tensors[name] = (dtype, shape, bytes(math.prod(shape) * SIZES[dtype]))
        case 7:
            tensors[name], tensors[other] = tensors[other], tensors[name]
        case 8:
            new = source.choice([*TEXTS, f"{name}'", f"{name}.weight", other + "x"])
            tensors[new] = tensors.pop(name)
        case 9:
            del tensors[name]
        case 10:
            tensors[source.choice([*TEXTS, name + "x"])] = tensors[other]
        case 11 if data:
            changed = bytearray(data)
            for _ in range(source.choice([1, 1, 8])):
                digits = b'0123456789.-e,[]{}"'
                changed[source.randrange(len(data))] = source.choice(
                    [0, 1, 127, 128, 255, source.randrange(256), source.choice(digits)]
                )
            tensors[name] = (dtype, shape, bytes(changed))


def mutate_entry(header, source):
    """Change an entry of the header, so that it no longer fits the bytes."""
    entry = header[source.choice([name for name in header if name != "__metadata__"])]
    match source.randrange(4):
        case 0:
            entry["data_offsets"][source.randrange(2)] += source.choice([-8, -1, 1, 8, 2**62])
        case 1:
            entry["dtype"] = source.choice([*SIZES, "F8_E4M3", "C64", "", 1, None])
        case 2:
            entry["shape"] = source.choice([[2**62, 4], [-1], [1.0], [True], None, [[1]], "1"])
        case 3:
            mutate_json(entry, source, [])


def forge(file, source):
    """Return the bytes of a file like ``file``, with one to three changes and a correct digest."""
    forgery, count = Forgery(file), source.choice([1, 1, 1, 2, 3])
    for _ in range(count):
        if source.random() < 0.6:
            mutate_json(forgery.info, source, list(forgery.tensors))
        else:
            mutate_tensor(forgery.tensors, source)
    header, body = forgery.header_and_body()
    if source.random() < 0.05:
        mutate_entry(header, source)
    return seal(header, body)


# Bounds -----------------------------------------------------------------------------------------


@contextmanager
def bounded(megabytes, cpu_seconds):
    """Raise in the block if it takes more memory or computing time."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])

    def expire(*_):
        raise AssertionError(f"more than {cpu_seconds} seconds of computation")

    previous = signal.signal(signal.SIGVTALRM, expire)
    resource.setrlimit(
        resource.RLIMIT_AS, (pages * resource.getpagesize() + megabytes * 2**20, hard)
    )
    signal.setitimer(signal.ITIMER_VIRTUAL, cpu_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def assert_clean(message, path):
    """Assert that a message is short and has no codes for the terminal."""
    assert message.replace("\n", "").isprintable()
    assert len(message) < 1000 + len(str(path))
