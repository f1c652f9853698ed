"""Encoding and decoding of states, with the type of each value."""

import hashlib
import json
import math
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import tinyvae.training.checkpoints.directory
from tinyvae.errors import CheckpointError
from tinyvae.io import decode_state, encode_state, load_tensors, save_tensors
from tinyvae.training.checkpoints.directory import RunDirectory, load_checkpoint

T = torch.arange(3.0)
U = torch.tensor([[1, 2]])


def same(a, b):
    """Return True if two states are equal, including types, order of keys and bits of numbers."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return a.hex() == b.hex()  # nan, and the sign of zero
    return a == b


def through_json(state, name="s"):
    form, tensors = encode_state(state, name)
    return decode_state(json.loads(json.dumps(form, allow_nan=False)), tensors)


# Round trips --------------------------------------------------------------------------------------


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8]))
    start = draw(st.integers(0, 100))
    return torch.arange(start, start + math.prod(shape)).to(dtype).reshape(shape)


# Few letters, so that names of nested keys collide, and what the format itself uses.
names = st.text("ab.'0", max_size=4) | st.sampled_from(["tensor", "tuple", "dict", "float", "nan"])
keys = names | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
keys |= st.integers(-(2**63), 2**64 - 1)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | tensors()
states = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


@given(states)
@example({"a.b": T, "a": {"b": U}})
@example({"a": {"b": T}, "a.b": U, "a.b'": T + 1, "a'": {"b": U + 1}})
@example({"0": T, 0: U, "x": [T, U], "x.0": U, "x.1": T})
@example({"tensor": "s.x", "x": T})
@example([{"tensor": T}, {"float": "inf"}, {"tuple": [1]}, {"dict": [["a", 1]]}, {"list": 1}])
@example([0.0, -0.0, 5e-324, 1e308, math.inf, -math.inf, math.nan, 2**70, -(2**70), "inf", "nan"])
@example([True, 1, 1.0, False, 0, None, "", (), [], {}, ((),), [()], {"": {}}])
@example([T, T, (T,)])
def test_encode_state_round_trip(state):
    assert same(through_json(state), state)


@given(states)
@example({"a.b": T, "a": {"b": U}})
@example([True, 1, 1.0, math.inf, -math.inf, math.nan, (T, [U])])
def test_encode_state_round_trip_through_a_file(state):
    form, named = encode_state(state, "state")
    assert all(name.startswith("state") for name in named)
    with tempfile.TemporaryDirectory() as folder:
        save_tensors(Path(folder, "f"), named, {"state": form})
        loaded, info = load_tensors(Path(folder, "f"))
    assert same(decode_state(info["state"], loaded), state)


def test_oracle_distinguishes_types_and_values():
    pairs = [(1, True), (1, 1.0), (0, False), (0.0, -0.0), ((1,), [1]), ({0: 1}, {"0": 1})]
    pairs += [
        (T, T.double()),
        (T, T + 1),
        (T, T[None]),
        ({1: 1, 2: 2}, {2: 2, 1: 1}),
        (math.nan, 0.0),
    ]
    assert not any(same(a, b) or same([a], [b]) for a, b in pairs)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint64])
def test_encode_state_converts_numpy_integers(dtype):
    assert same(through_json([dtype(7), {"a": dtype(100)}]), [7, {"a": 100}])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_encode_state_converts_numpy_floats(dtype):
    values = [0.5, math.inf, -math.inf, math.nan]
    assert same(through_json([dtype(value) for value in values]), values)


def test_encode_state_converts_subclasses_of_lists_and_dictionaries():
    class Pair(dict):
        pass

    assert same(
        through_json({"a": torch.Size([2, 3]), "b": Pair(c=1)}), {"a": (2, 3), "b": {"c": 1}}
    )


def test_encode_state_copies_and_changes_nothing():
    state = {"a": [T, {"b": (U, 1.5)}]}
    form, named = encode_state(state, "s")
    assert [id(t) for t in named.values()] == [id(T), id(U)]
    assert list(named) == ["s.a.0", "s.a.1.b.0"]
    decode_state(form, named)
    assert same(state, {"a": [T, {"b": (U, 1.5)}]})


# Unsupported values -------------------------------------------------------------------------------

UNHELD = {
    "set": ({1}, "set"),
    "object": (object(), "object"),
    "lambda": (lambda: None, "function"),
    "bytes": (b"a", "bytes"),
    "bytearray": (bytearray(b"a"), "bytearray"),
    "array": (np.zeros(2), "ndarray"),
    "boolean of numpy": (np.bool_(True), "bool"),
    "complex": (1j, "complex"),
    "generator": ((i for i in ()), "generator"),
    "class": (torch.nn.ReLU, "type"),
    "device": (torch.device("cpu"), "device"),
    "dtype": (torch.float32, "dtype"),
}


@pytest.mark.parametrize("case", UNHELD)
def test_encode_state_error_names_the_position_of_a_value(case):
    value, kind = UNHELD[case]
    for state, position in [
        (value, "s"),
        ({"a": T, "b": [1, (2, value)]}, "s.b.1.1"),
        ({0: {"c": value}}, "s.0.c"),
    ]:
        with pytest.raises(
            TypeError, match=rf"got .*a {kind}.*, as '{re.escape(position)}': "
        ) as caught:
            encode_state(state, "s")
        assert len(str(caught.value)) < 400


KEYS = [True, False, 0.5, math.nan, None, b"a", (1, 2), np.int64(1), T, 2**64, -(2**63) - 1]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: type(key).__name__)
def test_encode_state_error_names_the_position_of_a_key(key):
    with pytest.raises(
        TypeError, match=r"strings and integers of at most 64 bits as keys, got .* in 's\.a\.1': "
    ):
        encode_state({"a": [0, {"fine": 1, key: 1}]}, "s")


# Malformed forms ----------------------------------------------------------------------------------

MALFORMED = {
    "empty object": {},
    "unknown key": {"object": "os.system"},
    "two keys": {"tensor": "t", "tuple": []},
    "tensor and more": {"tensor": "t", "dtype": "float64"},
    "missing tensor": {"tensor": "u"},
    "tensor by number": {"tensor": 0},
    "tensor by list": {"tensor": ["t"]},
    "tensor by null": {"tensor": None},
    "float of another word": {"float": "infinity"},
    "float of a number": {"float": 1.0},
    "float of hexadecimals": {"float": "0x1p0"},
    "float and more": {"float": "nan", "x": 0},
    "tuple of a word": {"tuple": "ab"},
    "tuple of an object": {"tuple": {"dict": []}},
    "tuple and more": {"tuple": [], "x": 0},
    "dict of an object": {"dict": {"a": 1}},
    "dict of words": {"dict": ["ab"]},
    "dict of a single": {"dict": [["a"]]},
    "dict of three": {"dict": [["a", 1, 2]]},
    "dict of null": {"dict": [None]},
    "key null": {"dict": [[None, 1]]},
    "key list": {"dict": [[["a"], 1]]},
    "key number": {"dict": [[0.5, 1]]},
    "key boolean": {"dict": [[True, 1]]},
    "key twice": {"dict": [["a", 1], ["a", 2]]},
    "dict and more": {"dict": [], "x": 0},
}


@pytest.mark.parametrize("case", MALFORMED)
def test_decode_state_rejects_malformed_forms(case):
    bad = MALFORMED[case]
    assert decode_state({"dict": [["fine", {"tensor": "t"}]]}, {"t": T})["fine"] is T
    for form in (bad, [bad], {"tuple": [1, bad]}, {"dict": [["a", bad]]}):
        with pytest.raises(CheckpointError) as caught:
            decode_state(form, {"t": T})
        assert len(str(caught.value)) < 300


def test_decode_state_rejects_integer_keys_that_share_a_hash():
    modulus = sys.hash_info.modulus
    keys = [modulus * n for n in range(1, 100)]
    assert len(set(map(hash, keys))) == 1
    with pytest.raises(CheckpointError, match="a state in tinyvae's format"):
        decode_state({"dict": [[key, 0] for key in keys]}, {})
    for bound in (-(2**63), 2**64 - 1):  # at most ten keys of 64 bits share a hash
        assert decode_state({"dict": [[bound, 0]]}, {}) == {bound: 0}
    assert (2**64 - 1) // modulus + 1 < 10


def test_decode_state_rejects_a_tensor_that_is_used_twice():
    tensor = {"tensor": "t"}
    for second in (tensor, {"bits": "t", "dtype": "float32"}):
        with pytest.raises(CheckpointError, match="a state in tinyvae's format"):
            decode_state([tensor, second], {"t": T})


def test_load_checkpoint_error_names_the_file(tmp_path):
    save_tensors(tmp_path / "f", {}, {"state": {"object": "os.system"}})
    with pytest.raises(CheckpointError, match="a state in tinyvae's format") as caught:
        load_checkpoint(tmp_path / "f")
    assert str(tmp_path / "f") in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["t", "nan", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(st.sampled_from("ab"), inner).map(list)
        | st.dictionaries(st.sampled_from(["tensor", "tuple", "dict", "float"]), inner, max_size=2)
    ),
    max_leaves=10,
)


@given(json_values)
def test_decode_state_decodes_or_rejects_any_json(form):
    try:
        state = decode_state(form, {"t": T})
    except CheckpointError:
        return
    again, named = encode_state(state, "s")
    assert same(decode_state(again, named), state)


def test_load_checkpoint_rejects_a_state_other_than_a_dictionary(tmp_path):
    for state in ([], {"tuple": []}, "state", 3, None, {"tensor": "t"}):
        save_tensors(tmp_path / "f", {"t": T}, {"state": state})
        with pytest.raises(CheckpointError, match="expected "):
            load_checkpoint(tmp_path / "f")
    save_tensors(tmp_path / "f", {"t": T}, {})
    with pytest.raises(CheckpointError, match="expected a checkpoint of a run"):
        load_checkpoint(tmp_path / "f")


# Depth --------------------------------------------------------------------------------------------


@pytest.fixture
def any_state(monkeypatch):
    """Accept any dictionary as the state of a run."""
    directory = tinyvae.training.checkpoints.directory
    monkeypatch.setattr(directory, "upgrade", lambda state: state)
    monkeypatch.setattr(directory, "with_earlier_rows", lambda state, _: state)


LEVELS = {"list": ("[", "]"), "tuple": ('{"tuple":[', "]}"), "dict": ('{"dict":[["a",', "]]}")}
DEPTHS = [150, 240, 320, 400, 480, 900, 3000]


def save_deep(file, level, depth):
    """Write a checkpoint whose state has so many levels, with a correct digest."""
    opening, closing = LEVELS[level]
    text = '{"dict":[["a",' + opening * depth + "0" + closing * depth + "]]}"
    save_tensors(file, {}, {"state": "@"})
    reseal(file, '"@"', text)


def reseal(file, old, new):
    """Replace text of the info, and update the digest."""
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    metadata = header["__metadata__"]
    assert metadata["info"].count(old) == 1
    metadata |= {"info": metadata["info"].replace(old, new), "sha256": "0" * 64}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    forged = len(text).to_bytes(8, "little") + text + data[end:]
    digest = hashlib.sha256(forged).hexdigest().encode()
    file.write_bytes(forged.replace(b'"sha256":"' + b"0" * 64, b'"sha256":"' + digest))


@pytest.mark.usefixtures("any_state")
@pytest.mark.parametrize("level", LEVELS)
def test_load_checkpoint_reads_nested_states(level, tmp_path):
    save_deep(tmp_path / "f", level, 20)
    assert list(load_checkpoint(tmp_path / "f")) == ["a"]


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.usefixtures("any_state")
@pytest.mark.parametrize("level", LEVELS)
def test_checkpoint_too_deep_is_skipped_for_the_previous_one(level, depth, tmp_path):
    files = RunDirectory(tmp_path)
    files.write(1, {}, {"state": {"dict": [["a", 1]]}})
    save_deep(files.checkpoint(2), level, depth)
    try:
        assert list(load_checkpoint(files.checkpoint(2))) == ["a"]
    except CheckpointError as error:
        assert str(files.checkpoint(2)) in str(error)  # noqa: PT017 - only if it is raised
        with pytest.warns(UserWarning, match=r"step-00000002.* Continuing from step-00000001"):
            assert files.latest() == {"a": 1}


def test_load_checkpoint_rejects_a_million_levels(tmp_path):
    save_deep(tmp_path / "f", "list", 10**6)
    with pytest.raises(CheckpointError, match="valid JSON"):
        load_checkpoint(tmp_path / "f")
