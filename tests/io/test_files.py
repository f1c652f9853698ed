import errno
import hashlib
import io
import json
import math
import os
import pickle
import random
import re
import stat
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvae._version import __version__
from tinyvae.errors import CheckpointError
from tinyvae.io import load_tensors, save_tensors, write_atomically, write_json

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DTYPES += [torch.int8, torch.int16, torch.int32, torch.int64]
DTYPES += [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool]
DEAD_PID = 999_999_999  # above every system's largest process id
posix = pytest.mark.skipif(os.name != "posix", reason="signals, modes and pipes as POSIX has them")


def same_bits(a, b):
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    dense = torch.contiguous_format
    a, b = (tensor.clone(memory_format=dense).reshape(-1).view(torch.uint8) for tensor in (a, b))
    return torch.equal(a, b)


def leftovers(folder):
    return sorted(file.name for file in folder.iterdir() if file.name.endswith(".tmp"))


# Round trips --------------------------------------------------------------------------------------

VIEWS = {
    "whole": lambda t: t,
    "transposed": lambda t: t.T if t.ndim == 2 else t,
    "every second": lambda t: t[::2] if t.ndim else t,
    "tail": lambda t: t[1:] if t.ndim else t,
    "expanded": lambda t: t.expand(3, *t.shape),
    "channels last": lambda t: (
        t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t
    ),
}


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    bits = torch.randint(0, 256, (math.prod(shape) * 8,), dtype=torch.uint8, generator=generator)
    if dtype is torch.bool:
        values = bits[: math.prod(shape)] % 2 == 1
    else:  # any bits: negative zeros, subnormal and extreme numbers
        values = bits.view(dtype)[: math.prod(shape)]
    if dtype.is_floating_point:
        values = values.nan_to_num(nan=-0.0)
    return VIEWS[draw(st.sampled_from(list(VIEWS)))](values.reshape(shape))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    # The last character is half of a pair, which UTF-8 cannot encode.
    | st.text() | st.just('"sha256":"' + "0" * 64 + '"') | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(st.text(max_size=6), tensors(), max_size=4),
    st.dictionaries(st.text(), json_values, max_size=3),
)
def test_save_tensors_round_trip_is_bitwise(named, info):
    with tempfile.TemporaryDirectory() as folder:
        save_tensors(Path(folder, "f"), named, info)
        loaded, loaded_info = load_tensors(Path(folder, "f"))
    assert list(loaded) == sorted(named)
    assert all(same_bits(loaded[name], named[name]) for name in named)
    assert loaded_info == info


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (3, 2)], ids=str)
def test_save_tensors_keeps_dtype_and_shape(tmp_path, dtype, shape):
    tensor = torch.ones(shape).to(dtype)
    save_tensors(tmp_path / "f", {"t": tensor}, {})
    loaded = load_tensors(tmp_path / "f")[0]["t"]
    assert same_bits(loaded, tensor)
    loaded.fill_(0)  # the reader owns the buffer


def test_save_tensors_stores_shared_memory_separately(tmp_path):
    weight = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
    named = {"a": weight, "tied": weight, "transposed": weight.T, "row": weight[1]}
    save_tensors(tmp_path / "f", named, {})
    loaded, _ = load_tensors(tmp_path / "f")
    assert all(same_bits(loaded[name], named[name].detach()) for name in named)
    assert not any(tensor.requires_grad for tensor in loaded.values())
    loaded["a"].zero_()
    assert loaded["tied"].sum() == weight.detach().sum() == 66


def test_save_tensors_writes_plain_safetensors(tmp_path):
    named = {"a": torch.randn(3, 2), "b": torch.tensor([True, False]), "c": torch.zeros(0)}
    named["one of three"] = torch.arange(3.0)[::3]
    save_tensors(tmp_path / "f", named, {"note": 'a "quoted" é', "pair": (1, 2)})
    plain = safetensors.torch.load_file(tmp_path / "f")
    assert plain.keys() == named.keys()
    assert all(same_bits(plain[name], named[name]) for name in named)
    with safetensors.safe_open(tmp_path / "f", "pt") as file:
        metadata = file.metadata()
    info = '{"note":"a \\"quoted\\" \\u00e9","pair":[1,2]}'
    expected = {"format": "tinyvae", "format_version": "1", "version": __version__, "info": info}
    data = (tmp_path / "f").read_bytes()
    digest = metadata["sha256"].encode()
    assert data.count(digest) == 1
    expected["sha256"] = hashlib.sha256(data.replace(digest, b"0" * 64)).hexdigest()
    assert metadata == expected
    assert (8 + int.from_bytes(data[:8], "little")) % 8 == 0  # tensors stay aligned


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=6), tensors(), max_size=4))
def test_save_tensors_writes_tensors_as_safetensors_does(named):
    with tempfile.TemporaryDirectory() as folder:
        save_tensors(Path(folder, "f"), named, {})
        data = Path(folder, "f").read_bytes()
    plain = {n: t.clone(memory_format=torch.contiguous_format) for n, t in named.items()}
    expected = safetensors.torch.save(plain)
    header, body, expected_header, expected_body = (
        part
        for file in (data, expected)
        for end in [8 + int.from_bytes(file[:8], "little")]
        for part in (json.loads(file[8:end]), file[end:])
    )
    del header["__metadata__"]
    assert (header, body) == (expected_header, expected_body)


def test_save_tensors_writes_equal_bytes_for_equal_content(tmp_path):
    files = [tmp_path / f"f{i}" for i in range(8)]
    for file in files:
        save_tensors(file, {"b": torch.ones(2), "a": torch.zeros(3)}, {"step": 1})
    assert len({file.read_bytes() for file in files}) == 1


# Unsupported values -------------------------------------------------------------------------------

REFUSED = {
    "nan": ({"w": torch.tensor([1, math.nan])}, {}, ValueError, "'w', got 1 of 2 NaN"),
    "inf": ({"w": torch.tensor(-math.inf).half()}, {}, ValueError, "'w', got 1 of 1 NaN"),
    "complex": ({"w": torch.ones(2).cfloat()}, {}, ValueError, "'w', got .*complex64"),
    "sparse": ({"w": torch.ones(2).to_sparse()}, {}, ValueError, "'w', got .*sparse_coo"),
    "meta": ({"w": torch.ones(2, device="meta")}, {}, ValueError, "'w', got .*meta"),
    "list": ({"w": [1.0]}, {}, TypeError, "'w', got list"),
    "number as name": ({1: torch.ones(1)}, {}, TypeError, "names of type str, got 1"),
    "reserved name": ({"__metadata__": torch.ones(1)}, {}, ValueError, "__metadata__"),
    "half a character": ({"\ud800": torch.ones(1)}, {}, ValueError, "surrogates"),
    "nan in info": ({}, {"a": [math.nan]}, ValueError, "expects info that JSON can represent"),
    "two equal keys in info": ({}, {"a": {1: 0, "1": 0}}, ValueError, "duplicate key"),
    "object in info": ({}, {"a": object()}, TypeError, "object is not JSON serializable"),
    "large info": ({}, {"a": "x" * 2**24}, ValueError, "at most 16777216 bytes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_save_tensors_rejects_what_cannot_be_loaded(tmp_path, case):
    named, info, error, message = REFUSED[case]
    write_atomically(tmp_path / "f", b"old")
    with pytest.raises(error, match=message):
        save_tensors(tmp_path / "f", named, info)
    assert (tmp_path / "f").read_bytes() == b"old"
    assert leftovers(tmp_path) == []


def test_save_tensors_rejects_deep_info(tmp_path):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="expects info that JSON can represent"):
        save_tensors(tmp_path / "f", {}, {"deep": deep})


# Damage -------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    named = {"w": torch.tensor([1.0, -2.0]), "on": torch.tensor([True, False])}
    save_tensors(tmp_path / "f", named, {"step": 3})
    return tmp_path / "f"


def refusals(file, versions):
    """Count the contents that load_tensors rejects with an error that names the file."""
    count = 0
    for data in versions:
        file.unlink()  # truncating makes some file systems wait for the disk
        file.write_bytes(data)
        with pytest.raises(CheckpointError, match=re.escape(str(file))):
            load_tensors(file)
        count += 1
    return count


def flipped(data, bit):
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_load_tensors_detects_each_flipped_bit(small):
    data = small.read_bytes()
    load_tensors(small)
    bits = range(len(data) * 8)  # length field, header, digest, padding, tensors
    assert refusals(small, (flipped(data, bit) for bit in bits)) == len(bits) > 2000


def test_load_tensors_detects_random_flips(tmp_path):
    save_tensors(tmp_path / "f", {"w": torch.randn(40, 40), "b": torch.randn(40)}, {"a": "b" * 99})
    data = (tmp_path / "f").read_bytes()
    bits = random.Random(0).sample(range(len(data) * 8), 1000)
    assert refusals(tmp_path / "f", (flipped(data, bit) for bit in bits)) == 1000


def test_load_tensors_detects_truncation_and_added_bytes(small):
    data = small.read_bytes()
    assert refusals(small, (data[:end] for end in range(len(data)))) == len(data)
    tails = [b"\0", b"\n", b"\0" * 4096, data]
    assert refusals(small, (data + tail for tail in tails)) == 4
    assert refusals(small, [b"\0" + data, data[1:]]) == 2


def test_load_tensors_rejects_a_digest_in_upper_case(small):
    data = small.read_bytes()
    digest = re.search(rb'"sha256":"(\w{64})"', data)[1]
    assert refusals(small, [data.replace(digest, digest.upper())]) == 1


# Hostile and foreign files ------------------------------------------------------------------------


def sealed(header, body=b""):
    """Return a file with any header text and a correct digest."""
    header += b" " * (-len(header) % 8)
    data = len(header).to_bytes(8, "little") + header + body
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)


def metadata(**changes):
    usual = {"format": "tinyvae", "format_version": "1", "version": "0.1.0", "info": "{}"}
    return {**usual, "sha256": "0" * 64, **changes}


def forged(body=b"", entries=None, **changes):
    header = {"__metadata__": metadata(**changes), **(entries or {})}
    return sealed(json.dumps(header, separators=(",", ":")).encode(), body)


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"w": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


def forged_text(old, new):
    text = json.dumps({"__metadata__": metadata(), **entry()}, separators=(",", ":"))
    assert old in text
    return sealed(text.replace(old, new).encode(), b"\0\0\0\0")


def torch_saved(legacy):
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(2)}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("w", b"data")
    return buffer.getvalue()


DEEP = "[" * 200_000 + "]" * 200_000
NAN = b"\0\0\xc0\x7f"
HOSTILE = {
    "empty": (b"", "got 0 bytes"),
    "text": (b"epoch,loss\n1,2.0\n", "epoch,lo"),
    "short text": (b"hi", "2 bytes"),
    "torch.save": (torch_saved(legacy=False), "pickles and zip archives"),
    "torch.save, legacy": (torch_saved(legacy=True), "pickles and zip archives"),
    "zip": (zipped(), "pickles and zip archives"),
    "zeros": (bytes(4096), "tinyvae tensor file"),
    "header of 100 MB, absent": ((10**8).to_bytes(8, "little") + b"{}", "tinyvae tensor file"),
    "header of 17 MiB, present": (sealed(b" " * (17 * 2**20)), "tinyvae tensor file"),
    "header of 2^64 - 1": (b"\xff" * 8 + b"{}", "tinyvae tensor file"),
    "header is no JSON": (sealed(b"{]"), "valid JSON as header"),
    "header is a list": (sealed(b"[]"), "JSON object as header"),
    "header is no UTF-8": (
        forged_text('"w"', '"w?"').replace(b"w?", b"w\xff"),
        "valid JSON as header",
    ),
    "header is deep": (sealed(DEEP.encode()), "valid JSON as header"),
    "header is deep, digest correct": (
        forged_text('"dtype":"F32"', f'"a":{DEEP},"dtype":"F32"'),
        "valid JSON as header",
    ),
    "header is 200 deep": (
        forged_text('"dtype":"F32"', f'"a":{"[" * 200 + "]" * 200},"dtype":"F32"'),
        "as the header describes",
    ),
    "long integer": (forged_text("[1]", f"[{'9' * 10_000}]"), "valid JSON as header"),
    "long number": (forged_text("[1]", "[1e999]"), "valid JSON as header"),
    "other safetensors": (safetensors.torch.save({"w": torch.ones(2)}), "with safetensors.torch"),
    "format of others": (forged(format="pt"), "open other safetensors files"),
    "metadata is a list": (sealed(b'{"__metadata__":[]}'), "open other safetensors files"),
    "no format_version": (forged(format_version=None), "format_version '1', got None"),
    "no version": (forged(version=None), "key 'version'"),
    "no info": (forged(info=None), "key 'info'"),
    "no digest": (forged(sha256=None), "key 'sha256'"),
    "digest of zeros": (forged(sha256="0" * 64 + "0"), "the digest"),
    "two digests": (forged(more={"sha256": "f" * 64}), "got 2 well-formed digests"),
    "future version": (forged(format_version="2"), "upgrade tinyvae"),
    "strange version": (forged(format_version="1.0"), "damaged or forged"),
    "terminal codes": (forged(format_version="\x1b[2J\n" + "x" * 999), r"got \?\[2J\?xxx"),
    "info is a list": (forged(info="[]"), "JSON object as info"),
    "info is deep": (forged(info=DEEP), "valid JSON as info"),
    "info with NaN": (forged(info='{"a":NaN}'), "NaN is not finite"),
    "info with infinity": (forged(info='{"a":-Infinity}'), "-Infinity is not finite"),
    "info with 1e999": (forged(info='{"a":1e999}'), "1e999 is not finite"),
    "info with equal keys": (forged(info='{"a":1,"a":2}'), "duplicate key"),
    "info is half a character": (forged(info="\ud800"), "expected"),
    "equal names": (
        forged_text('"w":', '"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"w":'),
        "duplicate key",
    ),
    "equal keys": (forged_text('"dtype"', '"dtype":"U8","dtype"'), "duplicate key"),
    "equal metadata": (forged_text('"format":', '"format":"pt","format":'), "duplicate key"),
    "shape of 10^9": (forged(bytes(4), entry(shape=[10**9])), "as the header describes"),
    "shape of 2^62 * 4": (forged(b"", entry(shape=[2**62, 4])), "as the header describes"),
    "shape of 0 * 10^36": (
        forged(b"", entry(shape=[0, 10**18, 10**18], offsets=[0, 0])),
        "as the header describes",
    ),
    "negative shape": (forged(bytes(4), entry(shape=[-1])), "as the header describes"),
    "65 dimensions": (forged(bytes(4), entry(shape=[1] * 65)), "as the header describes"),
    "shape of booleans": (forged(bytes(4), entry(shape=[True])), "as the header describes"),
    "two tensors in the same bytes": (
        forged(bytes(4), entry() | {"v": entry()["w"]}),
        "as the header describes them, got -4 bytes",
    ),
    "offsets beyond the end": (forged(bytes(4), entry(offsets=[0, 8])), "as the header describes"),
    "offsets backwards": (forged(bytes(4), entry(offsets=[4, 0])), "as the header describes"),
    "bytes of no tensor": (forged(bytes(8), entry()), "as the header describes"),
    "unknown dtype": (forged(bytes(4), entry("F33")), "float, int or bool data in 'w'"),
    "dtype of 4 bits": (
        forged(bytes(1), entry("F4", [2], [0, 1])),
        "float, int or bool data in 'w'",
    ),
    "complex": (forged(bytes(8), entry("C64", [1], [0, 8])), "float, int or bool data in 'w'"),
    "float of 8 bits": (forged(bytes(4), entry("F8_E4M3", [4])), "float, int or bool data in 'w'"),
    "NaN": (forged(NAN, entry()), "finite values in 'w', got 1 of 1 NaN"),
    "infinity": (forged(b"\x80\x7f", entry("BF16", [1], [0, 2])), "finite values in 'w'"),
    "boolean 2": (forged(b"\x02", entry("BOOL", [1], [0, 1])), "bytes 0 and 1 .* 'w'"),
}  # fmt: skip


def test_forged_files_are_otherwise_valid(tmp_path):
    for data in (forged(bytes(4), entry()), forged_text('"w"', '"v"')):
        (tmp_path / "f").write_bytes(data)
        named, info = load_tensors(tmp_path / "f")
        assert [tensor.tolist() for tensor in named.values()] == [[0.0]]
        assert info == {}


@pytest.mark.parametrize("case", HOSTILE)
def test_load_tensors_rejects_hostile_and_foreign_files(tmp_path, case):
    data, message = HOSTILE[case]
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_tensors(tmp_path / "f")
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'f'}: expected ")
    assert ", got " in text
    assert len(text) < 800 + len(str(tmp_path))
    assert text.isprintable()


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["F64", "F32", "BF16", "I64", "U8", "BOOL", "F4", "F8_E8M0", "C64", "?", 1]),
    st.lists(st.integers(-1, 3) | st.integers() | json_values, max_size=3),
    st.lists(st.integers(0, 9) | st.integers() | json_values, min_size=1, max_size=3),
    st.binary(max_size=16),
    st.dictionaries(st.sampled_from(["", "w", "v", "dtype"]), json_values, max_size=2),
)
def test_load_tensors_accepts_or_rejects_any_header(dtype, shape, offsets, body, more):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "f").write_bytes(forged(body, {**entry(dtype, shape, offsets), **more}))
        try:
            named, _ = load_tensors(Path(folder, "f"))
        except CheckpointError:
            return
    assert sum(tensor.numel() * tensor.element_size() for tensor in named.values()) == len(body)


@posix
def test_load_tensors_checks_sizes_before_it_reads_the_rest(tmp_path, monkeypatch):
    text = json.dumps({"__metadata__": metadata(), **entry()}, separators=(",", ":")).encode()
    with (tmp_path / "f").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(2**40)  # a sparse file
    monkeypatch.setattr(torch, "empty", pytest.fail)
    with pytest.raises(CheckpointError, match=r"describes them, got \d+ bytes too many at the end"):
        load_tensors(tmp_path / "f")


@posix
def test_load_tensors_refuses_more_than_the_memory(tmp_path):
    size = 2**62
    header = {"__metadata__": metadata(), **entry("U8", [size], [0, size])}
    text = json.dumps(header, separators=(",", ":")).encode()
    with (tmp_path / "f").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        try:
            file.truncate(8 + len(text) + size)
        except OSError:
            pytest.skip("the file system has no files of this size")
    with pytest.raises(CheckpointError, match="tensors that fit in memory"):
        load_tensors(tmp_path / "f")


PEAK = """
import resource, sys
from tinyvae.io import load_tensors
import torch

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.ones(1).isfinite().sum()
before = peak()
tensors, _ = load_tensors(sys.argv[1])
print(peak() - before)
"""


@posix
def test_load_tensors_needs_the_memory_of_the_tensors_once(tmp_path):
    size = 200 * 2**20
    save_tensors(tmp_path / "f", {"w": torch.zeros(size // 8), "v": torch.zeros(size // 8)}, {})
    command = [sys.executable, "-c", PEAK, str(tmp_path / "f")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert int(result.stdout) < 1.2 * size


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_load_tensors_does_not_execute_pickles(tmp_path):
    payload = pickle.dumps(Trap(tmp_path / "executed"))
    pickle.loads(payload)
    (tmp_path / "executed").unlink()  # the trap works
    info = json.dumps({"a": payload.hex()})
    for data in (payload, payload * 99, forged(payload, entry("U8", [len(payload)]), info=info)):
        (tmp_path / "f").write_bytes(data)
        with pytest.raises(CheckpointError):
            load_tensors(tmp_path / "f")
    assert not (tmp_path / "executed").exists()


def test_load_tensors_raises_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "absent")


@posix
def test_load_tensors_rejects_folders_and_devices(tmp_path):
    with pytest.raises(CheckpointError, match="got a folder or a device"):
        load_tensors(tmp_path)
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(CheckpointError, match="got Not a directory"):
        load_tensors(tmp_path / "f" / "g")


@posix
def test_load_tensors_rejects_a_pipe_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="got a folder or a device"):
        load_tensors(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="a folder or a device has this name"):
        write_atomically(tmp_path / "pipe", b"data")


# The atomic writer --------------------------------------------------------------------------------


@posix
def test_write_atomically_makes_folders_and_keeps_links(tmp_path):
    write_atomically(tmp_path / "a" / "b" / "f", b"1")
    assert (tmp_path / "a" / "b" / "f").read_bytes() == b"1"
    (tmp_path / "link").symlink_to(Path("a", "b", "f"))
    write_atomically(str(tmp_path / "link"), b"22")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a" / "b" / "f").read_bytes() == b"22"
    assert leftovers(tmp_path) == leftovers(tmp_path / "a" / "b") == []


@pytest.mark.parametrize("part", ["folder", "f/inside"])
def test_write_atomically_error_names_the_path(tmp_path, part):
    (tmp_path / "folder").mkdir()
    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(OSError, match="cannot write the file") as caught:
        write_atomically(tmp_path / part, b"new")
    assert caught.value.filename == str(tmp_path / part)
    assert (tmp_path / "f").read_bytes() == b"old"
    assert leftovers(tmp_path) == []


@posix
def test_write_atomically_orders_system_calls_safely(tmp_path, monkeypatch):
    calls, names = [], {}

    def record(name, describe):
        original = getattr(os, name)

        def wrapper(*args, **kwargs):
            result = original(*args, **kwargs)
            calls.append((name, *describe(args, result)))
            return result

        monkeypatch.setattr(os, name, wrapper)

    def opened(args, result):
        names[result] = Path(args[0]).name
        return [names[result]]

    record("open", opened)
    record("write", lambda args, _: [names[args[0]], bytes(args[1])])
    record("fsync", lambda args, _: [names[args[0]]])
    record("close", lambda args, _: [names[args[0]]])
    record("replace", lambda args, _: [Path(arg).name for arg in args])
    write_atomically(tmp_path / "f", b"data")
    monkeypatch.undo()

    temporary, folder = calls[0][1], tmp_path.name
    assert re.fullmatch(rf"\.f\.[0-9a-f]{{8}}\.{os.getpid()}\.[0-9a-f]{{8}}\.tmp", temporary)
    assert calls == [
        ("open", temporary),
        ("write", temporary, b"data"),
        ("fsync", temporary),
        ("close", temporary),
        ("replace", temporary, "f"),
        ("open", folder),
        ("fsync", folder),
        ("close", folder),
    ]


def test_write_atomically_continues_short_writes(tmp_path, monkeypatch):
    original = os.write
    monkeypatch.setattr(os, "write", lambda file, data: original(file, data[:3]))
    write_atomically(tmp_path / "f", b"0123456789")
    monkeypatch.undo()
    assert (tmp_path / "f").read_bytes() == b"0123456789"


def test_write_atomically_joins_short_chunks_and_copies_no_long_ones(tmp_path, monkeypatch):
    short, long = b"ab" * 300_000, memoryview(b"c" * 2**21)
    chunks = [b"", short, short, b"d", long, b"e", b""]
    original, written = os.write, []

    def write(file, data):
        written.append((len(data), data.obj is long.obj))
        return original(file, data)

    monkeypatch.setattr(os, "write", write)
    write_atomically(tmp_path / "f", iter(chunks))
    monkeypatch.undo()
    assert (tmp_path / "f").read_bytes() == b"".join(chunks)
    assert written == [(600_000, False), (600_001, False), (2**21, True), (1, False)]


def test_save_tensors_writes_a_small_file_in_one_call(tmp_path, monkeypatch):
    original, written = os.write, []
    monkeypatch.setattr(os, "write", lambda *args: written.append(args) or original(*args))
    save_tensors(tmp_path / "f", {f"{i}": torch.zeros(i) for i in range(50)}, {})
    assert len(written) == 1


def fail_at(monkeypatch, step, error):
    """Make a function of os fail. A write fails half-way; "folder" is the second fsync."""
    name = "fsync" if step == "folder" else step
    original, count = getattr(os, name), [0]

    def failing(*args, **kwargs):
        count[0] += 1
        if step == "folder" and count[0] == 1:
            return original(*args, **kwargs)
        if step == "write" and count[0] == 1:
            return original(args[0], args[1][:2])
        raise error

    monkeypatch.setattr(os, name, failing)


ERRORS = [
    OSError(errno.ENOSPC, "No space left"),
    PermissionError(errno.EACCES, "Denied"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_write_atomically_keeps_the_old_file_after_an_error(tmp_path, monkeypatch, step, error):
    write_atomically(tmp_path / "f", b"old")
    fail_at(monkeypatch, step, error)
    with pytest.raises(type(error)) as caught:
        write_atomically(tmp_path / "f", b"new data")
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"
    if isinstance(error, OSError):
        assert caught.value.errno == error.errno
        assert str(tmp_path / "f") in str(caught.value)
        assert error.strerror in str(caught.value)


@posix
def test_write_atomically_reports_a_failed_sync_of_the_folder(tmp_path, monkeypatch):
    write_atomically(tmp_path / "f", b"old")
    fail_at(monkeypatch, "folder", OSError(errno.EIO, "I/O error"))
    with pytest.raises(OSError, match="I/O error"):
        write_atomically(tmp_path / "f", b"new")
    monkeypatch.undo()
    assert (tmp_path / "f").read_bytes() == b"new"
    fail_at(monkeypatch, "folder", OSError(errno.EINVAL, "no such operation here"))
    write_atomically(tmp_path / "f", b"newer")
    monkeypatch.undo()
    assert (tmp_path / "f").read_bytes() == b"newer"
    assert leftovers(tmp_path) == []


def temporary_name(monkeypatch, folder, name):
    """Return the temporary name that a write of this target uses."""
    seen = []
    monkeypatch.setattr(os, "replace", lambda source, _: seen.append(Path(source).name))
    write_atomically(folder / name, b"")
    monkeypatch.undo()
    (folder / seen[0]).unlink()
    return seen[0]


@posix
@pytest.mark.parametrize("name", ["f", "a+b.[x]"])
def test_write_atomically_removes_only_stale_temporaries_of_its_target(tmp_path, monkeypatch, name):
    temporary = temporary_name(monkeypatch, tmp_path, name)
    alive, node = f".{os.getpid()}.", temporary.removeprefix(f".{name}.")[:8]
    stale = temporary.replace(alive, f".{DEAD_PID}.")
    stays = [temporary, temporary.replace(alive, ".1."), stale + "x", f".x{stale[1:]}"]
    stays += [stale.replace(node, f"{int(node, 16) ^ 1:08x}")]  # of another computer
    stays += [temporary.replace(alive, ".0."), temporary.replace(alive, f".{10**30}."), "f.tmp"]
    for file in [stale, *stays]:
        (tmp_path / file).write_bytes(b"")
    write_atomically(tmp_path / name, b"data")
    assert {file.name for file in tmp_path.iterdir()} == {name, *stays}


@posix
def test_write_atomically_ignores_temporaries_that_cannot_be_removed(tmp_path, monkeypatch):
    temporary = temporary_name(monkeypatch, tmp_path, "f")
    (tmp_path / temporary.replace(f".{os.getpid()}.", f".{DEAD_PID}.")).mkdir()
    write_atomically(tmp_path / "f", b"data")
    assert (tmp_path / "f").read_bytes() == b"data"


def test_write_atomically_shows_complete_files_to_readers(tmp_path):
    versions = [bytes([i]) * 50_000 for i in range(4)]
    write_atomically(tmp_path / "f", versions[0])

    def write(data):
        for _ in range(20):
            write_atomically(tmp_path / "f", data)

    threads = [threading.Thread(target=write, args=(data,)) for data in versions]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert (tmp_path / "f").read_bytes() in versions
    for thread in threads:
        thread.join()
    assert [file.name for file in tmp_path.iterdir()] == ["f"]


# Kills, modes and full disks, in another process -------------------------------------------------

CHILD = """
import json, os, resource, signal, stat, sys
from pathlib import Path
import torch
from tinyvae.errors import CheckpointError
from tinyvae.io import load_tensors, save_tensors, write_atomically

folder = Path(sys.argv[1])
OLD, NEW = {"w": torch.zeros(64)}, {"w": torch.ones(64)}

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def plant(step):
    when, name, number = step.split()
    original, count = getattr(os, name), [0]
    def planted(*args, **kwargs):
        count[0] += 1
        if count[0] < int(number):
            return original(*args, **kwargs)
        if when == "half":
            original(args[0], args[1][:100])
        if when == "after":
            original(*args, **kwargs)
        die()
    setattr(os, name, planted)

def content(file):
    try:
        return {0.0: "old", 1.0: "new"}[load_tensors(file)[0]["w"].mean().item()]
    except CheckpointError as error:
        return str(error)

def killed(step):
    file = folder / step.replace(" ", "-") / "f"
    save_tensors(file, OLD, {})
    pid = os.fork()
    if pid == 0:
        plant(step)
        save_tensors(file, NEW, {})
        os._exit(0)
    signaled = os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    survivor = content(file)
    stale = len(list(file.parent.iterdir())) - 1
    save_tensors(file, NEW, {})
    names = [entry.name for entry in file.parent.iterdir()]
    return signaled, survivor, stale, names == ["f"] and content(file) == "new"

def mode():
    os.umask(0o027)
    file = folder / "mode"
    modes = []
    for _ in range(2):
        write_atomically(file, b"data")
        modes.append(stat.S_IMODE(file.stat().st_mode))
        file.chmod(0o600)
    return modes

def full():
    file = folder / "full" / "f"
    save_tensors(file, OLD, {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        save_tensors(file, {"w": torch.zeros(100_000)}, {})
    except OSError as error:
        names = [entry.name for entry in file.parent.iterdir()]
        return error.errno, error.filename == str(file), content(file), names

report = {step: killed(step) for step in sys.argv[2:]}
print(json.dumps({"killed": report, "mode": mode(), "full": full()}))
"""

# Step: the content of the file after a kill, and the number of temporaries.
KILLS = {
    "before open 1": ("old", 0),
    "after open 1": ("old", 1),
    "half write 1": ("old", 1),
    "after write 1": ("old", 1),
    "after fsync 1": ("old", 1),
    "before replace 1": ("old", 1),
    "after replace 1": ("new", 0),
    "before fsync 2": ("new", 0),
    "after fsync 2": ("new", 0),
}


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    folder = tmp_path_factory.mktemp("child")
    command = [sys.executable, "-c", CHILD, str(folder), *KILLS]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@posix
@pytest.mark.parametrize("step", KILLS)
def test_write_atomically_survives_a_kill_and_the_next_write_cleans_up(child, step):
    signaled, survivor, stale, tidy = child["killed"][step]
    assert signaled
    assert (survivor, stale) == KILLS[step]
    assert tidy


@posix
def test_write_atomically_mode_follows_the_umask(child):
    assert child["mode"] == [0o640, 0o640]


@posix
def test_write_atomically_keeps_the_old_file_on_a_full_disk(child):
    assert child["full"] == [errno.EFBIG, True, "old", ["f"]]


def test_write_atomically_mode_is_that_of_open(tmp_path):
    write_atomically(tmp_path / "f", b"data")
    (tmp_path / "plain").write_bytes(b"data")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("f", "plain")}
    assert len(modes) == 1


# JSON ---------------------------------------------------------------------------------------------


def test_write_json_indents_and_writes_null_for_non_finite_numbers(tmp_path):
    value = {"b": [1, 2.5, math.nan, (math.inf, -math.inf)], "a": {"é": None, "on": True}}
    write_json(tmp_path / "f", value)
    text = (tmp_path / "f").read_text(encoding="ascii")
    expected = {"b": [1, 2.5, None, [None, None]], "a": {"é": None, "on": True}}
    assert json.loads(text) == expected
    assert text == json.dumps(expected, indent=2) + "\n"


@pytest.mark.parametrize(
    ("value", "error"), [({"a": torch.ones(1)}, TypeError), ({math.nan: 1}, ValueError)]
)
def test_write_json_keeps_the_old_file_after_an_error(tmp_path, value, error):
    write_json(tmp_path / "f", {"old": 1})
    with pytest.raises(error):
        write_json(tmp_path / "f", value)
    assert json.loads((tmp_path / "f").read_text()) == {"old": 1}
    assert leftovers(tmp_path) == []
