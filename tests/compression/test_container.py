import hashlib
import json
import random
import zlib

import pytest
import torch

from tinyvae import VAE, BernoulliLikelihood
from tinyvae.compression import compress, container, decompress, read_header
from tinyvae.errors import CompressionError

START = len(container.MAGIC) + 4


@pytest.fixture
def vae():
    return VAE.from_shapes(5, latent_dim=2, likelihood=BernoulliLikelihood())


@pytest.fixture
def x():
    return torch.bernoulli(torch.full((30, 5), 0.4))


@pytest.fixture
def file(vae, x):
    return compress(vae, x)


def fields_of(file):
    end = START + int.from_bytes(file[START - 4 : START], "little")
    return json.loads(zlib.decompress(file[START:end])), file[end:-32]


def forged(file, changes, words=None):
    """Return a file with other header fields and a digest that fits them."""
    fields, original = fields_of(file)
    text = zlib.compress(json.dumps(fields | changes).encode())
    body = container.MAGIC + len(text).to_bytes(4, "little") + text
    body += original if words is None else words
    return body + hashlib.sha256(body).digest()


def test_header_describes_the_file(file, x):
    header = read_header(file)
    assert header.shape == [30, 5]
    assert header.dtype == "float32"
    assert header.num_bytes == len(file)
    assert header.bits_per_datum == 8 * len(file) / 30
    assert 0 < header.initial_bits < 8 * len(file)
    assert "torch" in header.environment


def test_forged_file_without_changes_is_read(vae, file, x):
    assert torch.equal(decompress(vae, forged(file, {})), x)


def test_damaged_files_are_refused(vae, file):
    draw = random.Random(0)
    for _ in range(700):
        damaged = bytearray(file)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(file))] ^= 1 << draw.randrange(8)
        if damaged != file:
            with pytest.raises(CompressionError):
                decompress(vae, bytes(damaged))
    for _ in range(100):
        with pytest.raises(CompressionError):
            decompress(vae, file[: draw.randrange(len(file))])


@pytest.mark.slow
def test_forged_words_are_refused(vae, file):
    draw = random.Random(0)
    words = fields_of(file)[1]
    for _ in range(100):
        damaged = bytearray(words)
        damaged[draw.randrange(len(words))] ^= 1 << draw.randrange(8)
        with pytest.raises(CompressionError):
            decompress(vae, forged(file, {}, bytes(damaged)))
    for length in (0, 4, 5, 8, len(words) // 2, len(words) - 4):
        with pytest.raises(CompressionError):
            decompress(vae, forged(file, {}, words[:length]))


@pytest.mark.parametrize(
    "value", [None, -1, 0, 2**40, 2**70, 1.5, True, "7", [], [0], [7], [2**40, 5], {}]
)
def test_forged_headers_are_refused(vae, file, x, value):
    for name, original in fields_of(file)[0].items():
        if (value == original and type(value) is type(original)) or name == "environment":
            continue
        try:
            restored = decompress(vae, forged(file, {name: value}))
        except CompressionError:
            continue
        assert torch.equal(restored, x), name  # the field plays no part here


def test_newer_versions_are_refused(vae, file):
    with pytest.raises(CompressionError, match="reads version 1, got 2: use a newer tinyvae"):
        decompress(vae, forged(file, {"version": 2}))


def test_other_bytes_are_refused(vae):
    with pytest.raises(CompressionError, match="a file of tinyvae"):
        decompress(vae, b"PK\3\4 something else")
    with pytest.raises(TypeError, match="expects bytes, got a str"):
        decompress(vae, "file.vae")
