import gzip
import io
import math
import struct
import sys
import tracemalloc
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers.disk import on_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvae.datasets import LabeledImages, digits, frey_faces, mnist, read_idx, split

ROOT = Path(__file__).resolve().parents[2]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _global_generator_untouched():
    state = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), state)


# --- IDX ------------------------------------------------------------------------------------------

# code: struct's letter, torch's type, values
IDX_TYPES = {
    0x08: ("B", torch.uint8, st.integers(0, 255)),
    0x09: ("b", torch.int8, st.integers(-128, 127)),
    0x0B: ("h", torch.int16, st.integers(-(2**15), 2**15 - 1)),
    0x0C: ("i", torch.int32, st.integers(-(2**31), 2**31 - 1)),
    0x0D: ("f", torch.float32, st.floats(width=32, allow_nan=False)),
    0x0E: ("d", torch.float64, st.floats(allow_nan=False)),
}


def idx_bytes(sizes, values, code=0x08) -> bytes:
    header = struct.pack(f">BBBB{len(sizes)}I", 0, 0, code, len(sizes), *sizes)
    return header + struct.pack(f">{len(values)}{IDX_TYPES[code][0]}", *values)


@st.composite
def idx_files(draw):
    code = draw(st.sampled_from(sorted(IDX_TYPES)))
    sizes = draw(st.lists(st.integers(0, 4), max_size=4))
    count = math.prod(sizes)
    values = draw(st.lists(IDX_TYPES[code][2], min_size=count, max_size=count))
    return code, sizes, values


@settings(max_examples=80, deadline=None)
@given(idx=idx_files(), compress=st.booleans())
def test_read_idx_round_trip(tmp_path_factory, idx, compress):
    code, sizes, values = idx
    data = idx_bytes(sizes, values, code)
    path = tmp_path_factory.getbasetemp() / "round-trip"
    path.write_bytes(gzip.compress(data) if compress else data)
    tensor = read_idx(path)
    expected = torch.tensor(values, dtype=IDX_TYPES[code][1]).reshape(sizes)
    assert tensor.dtype == expected.dtype
    assert tensor.shape == expected.shape
    assert torch.equal(tensor, expected)
    tensor.clone().zero_()
    tensor.zero_()  # owns writable memory


def test_read_idx_reads_the_highest_rank(tmp_path):
    path = tmp_path / "deep"
    path.write_bytes(idx_bytes((1,) * 254 + (2,), (3, 4)))
    assert read_idx(str(path)).shape == (1,) * 254 + (2,)
    assert read_idx(path).flatten().tolist() == [3, 4]


SMALL = idx_bytes((2, 3), (1, 2, 3, 4, 5, 6))


def field_at(position: int) -> str:
    """Return the field of SMALL that contains the byte at this position."""
    fields = ["magic"] * 3 + ["number of dimensions"] + ["size 0"] * 4 + ["size 1"] * 4
    return (fields + ["payload"] * 6)[position]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("length", range(len(SMALL)))
def test_read_idx_error_names_file_and_field(tmp_path, length, compress):
    path = tmp_path / "cut-short"
    path.write_bytes(gzip.compress(SMALL[:length]) if compress else SMALL[:length])
    with pytest.raises(ValueError, match=rf"cut-short: {field_at(length)}.*: expected \d+ bytes"):
        read_idx(path)


def test_read_idx_error_names_the_bytes_of_a_truncated_payload(tmp_path):
    path = tmp_path / "cut-short"
    path.write_bytes(SMALL[:-2])
    with pytest.raises(ValueError, match=r"payload of sizes \[2, 3\]: expected 6 bytes, got 4"):
        read_idx(path)


@pytest.mark.parametrize("compress", [False, True])
def test_read_idx_rejects_extra_bytes(tmp_path, compress):
    path = tmp_path / "long"
    path.write_bytes(gzip.compress(SMALL + b"\0") if compress else SMALL + b"\0")
    with pytest.raises(ValueError, match=r"long: payload.*expected 6 bytes, got more"):
        read_idx(path)


@pytest.mark.parametrize(
    "start", [b"\x00\x00\x07", b"\x00\x00\x0a", b"\x01\x00\x08", b"\x00\x01\x08", b"\x93NU"]
)
def test_read_idx_checks_the_magic(tmp_path, start):
    path = tmp_path / "other"
    path.write_bytes(start + SMALL[3:])
    with pytest.raises(ValueError, match=rf"other: magic: .* got {start.hex(' ')}"):
        read_idx(path)


def test_read_idx_rejects_every_truncated_gzip_stream(tmp_path):
    path = tmp_path / "cut.gz"
    data = gzip.compress(SMALL)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut\.gz: (magic|number|size|payload)"):
            read_idx(path)


def test_read_idx_never_returns_other_values_after_a_flipped_bit(tmp_path):
    path = tmp_path / "flipped.gz"
    data = gzip.compress(SMALL)
    refused = 0
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            tensor = read_idx(path)
        except ValueError as error:
            assert "flipped.gz: " in str(error)  # noqa: PT017
            refused += 1
        else:  # the time stamp and comments in the header do not matter
            assert tensor.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert refused > 8 * (len(data) - 10)


def test_read_idx_error_of_damaged_gzip_names_the_field(tmp_path):
    path = tmp_path / "damaged.gz"
    data = bytearray(gzip.compress(SMALL))
    data[-8] ^= 1  # the checksum, which is read after the last byte
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"damaged\.gz: payload.*expected 6 bytes, got a damaged gzip"
    ):
        read_idx(path)


def peak_of_refusal(path: Path) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="payload"):
            read_idx(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_read_idx_does_not_expand_a_gzip_bomb(tmp_path):
    path = tmp_path / "bomb.gz"
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as stream:
        stream.write(SMALL)
        for _ in range(32):
            stream.write(bytes(1 << 20))
    path.write_bytes(buffer.getvalue())
    assert peak_of_refusal(path) < 4 << 20


@pytest.mark.parametrize("compress", [False, True])
def test_read_idx_allocates_no_memory_for_a_wrong_header(tmp_path, compress):
    path = tmp_path / "boast"
    data = idx_bytes((2**32 - 1, 2**32 - 1, 64), (1, 2, 3))
    path.write_bytes(gzip.compress(data) if compress else data)
    assert peak_of_refusal(path) < 4 << 20


def test_read_idx_rejects_sizes_beyond_torch(tmp_path):
    path = tmp_path / "void"
    path.write_bytes(idx_bytes((0,) + (2**32 - 1,) * 3, ()))
    with pytest.raises(ValueError, match="void: sizes: "):
        read_idx(path)


def test_read_idx_raises_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_idx(tmp_path / "nowhere")


# --- MNIST ----------------------------------------------------------------------------------------


def write_mnist(root: Path, *, count=3, labels=(5, 0, 9), side=28, part="train", suffix="") -> None:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    pixels = [i % 251 for i in range(count * side * 28)]
    for name, data in (
        (f"{part}-images-idx3-ubyte", idx_bytes((count, side, 28), pixels)),
        (f"{part}-labels-idx1-ubyte", idx_bytes((len(labels),), labels)),
    ):
        (folder / (name + suffix)).write_bytes(gzip.compress(data) if suffix else data)


@pytest.fixture
def no_torchvision(monkeypatch):
    """Hide torchvision, and remove its modules after the test."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "torchvision":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(("train", "part"), [(True, "train"), (False, "t10k")])
@pytest.mark.parametrize("download", [False, True])
def test_mnist_loads_files_without_torchvision(
    tmp_path, no_torchvision, train, part, suffix, download
):
    write_mnist(tmp_path, part=part, suffix=suffix)
    data = mnist(str(tmp_path), train=train, download=download)
    assert data.images.shape == (3, 1, 28, 28)
    assert data.images.flatten().tolist() == [i % 251 for i in range(3 * 784)]
    assert data.labels.tolist() == [5, 0, 9]
    assert data.max_value == 255
    assert data.name == ("mnist-train" if train else "mnist-test")


@pytest.mark.parametrize("missing", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_mnist_error_names_missing_files(tmp_path, missing):
    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / missing).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{missing}.*raw, got train-.*download=True"):
        mnist(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": (1, 2)}, r"labels-idx1-ubyte: labels: .* \(3,\), .* got .*\(2,\)"),
        ({"labels": (1, 2, 3, 4)}, r"labels-idx1-ubyte: labels: .* \(3,\), .* got .*\(4,\)"),
        ({"labels": (1, 10, 3)}, r"labels-idx1-ubyte: labels: expected 0\.\.9, got 10"),
        ({"side": 27}, r"images-idx3-ubyte: images: .*\(N, 28, 28\), got .*\(3, 27, 28\)"),
    ],
)
def test_mnist_checks_contents(tmp_path, options, message):
    write_mnist(tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        mnist(tmp_path)


def test_mnist_rejects_mislabeled_files(tmp_path):
    write_mnist(tmp_path)
    folder = tmp_path / "MNIST" / "raw"
    (folder / "train-images-idx3-ubyte").write_bytes(
        (folder / "train-labels-idx1-ubyte").read_bytes()
    )
    with pytest.raises(ValueError, match=r"images-idx3-ubyte: images: .*shape \(3,\)"):
        mnist(tmp_path)


def fake_torchvision(monkeypatch, dataset) -> None:
    package, module = ModuleType("torchvision"), ModuleType("torchvision.datasets")
    package.datasets, module.MNIST = module, dataset
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)


def test_mnist_downloads_only_if_requested_and_needed(tmp_path, no_torchvision, monkeypatch):
    calls = []

    def dataset(root, *, download):
        calls.append((Path(root), download))
        write_mnist(Path(root))

    fake_torchvision(monkeypatch, dataset)
    with pytest.raises(FileNotFoundError):
        mnist(tmp_path)
    assert calls == []
    assert mnist(tmp_path, download=True).labels.tolist() == [5, 0, 9]
    assert mnist(tmp_path, download=True).labels.tolist() == [5, 0, 9]
    assert calls == [(tmp_path, True)]


def test_mnist_reports_a_failed_download(tmp_path, no_torchvision, monkeypatch):
    def dataset(root, *, download):
        raise OSError("no route to host")

    fake_torchvision(monkeypatch, dataset)
    with pytest.raises(RuntimeError, match=r"no route to host.*train-images-idx3-ubyte.*MNIST.raw"):
        mnist(tmp_path, download=True)


def test_mnist_reports_a_download_without_files(tmp_path, no_torchvision, monkeypatch):
    fake_torchvision(monkeypatch, lambda *_, **__: None)
    with pytest.raises(FileNotFoundError, match="got none of them"):
        mnist(tmp_path, download=True)


def test_mnist_error_without_torchvision_names_the_remedy(tmp_path, no_torchvision):
    message = r"ModuleNotFoundError.*pip install 'tinyvae\[examples\]'.*train-images.*MNIST.raw"
    with pytest.raises(ImportError, match=message):
        mnist(tmp_path, download=True)


def write_torchvision(folder: Path, *, ending: str) -> None:
    package = folder / "torchvision"
    package.mkdir()
    (package / "extension.py").write_text("")
    (package / "datasets.py").write_text("def MNIST(root, *, download): pass\n")
    (package / "__init__.py").write_text(
        "import warnings\n"
        "from torchvision import datasets, extension\n"
        "warnings.warn('Failed to load image Python extension')\n" + ending
    )


def torchvision_modules() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.partition(".")[0] == "torchvision"]
    return {name: sys.modules[name] for name in names}


@pytest.mark.parametrize("error", ["RuntimeError", "OSError", "AttributeError", "ImportError"])
def test_mnist_removes_a_broken_torchvision_from_modules(
    tmp_path, no_torchvision, monkeypatch, error
):
    write_torchvision(
        tmp_path, ending=f"raise {error}('operator torchvision::nms does not exist')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision")
    before, filters = dict(sys.modules), list(warnings.filters)
    for _ in range(2):  # the second attempt fails in the same way, not with half a module
        with pytest.raises(ImportError, match=rf"{error}: operator torchvision::nms .*pip install"):
            mnist(tmp_path, download=True)
        assert torchvision_modules() == {}
    assert sys.modules == before
    assert warnings.filters == filters


def test_mnist_keeps_an_imported_torchvision(tmp_path, no_torchvision, monkeypatch):
    fake_torchvision(monkeypatch, None)
    monkeypatch.delattr(sys.modules["torchvision.datasets"], "MNIST")
    before = torchvision_modules()
    with pytest.raises(ImportError, match="MNIST"):
        mnist(tmp_path, download=True)
    assert torchvision_modules() == before
    assert len(before) == 2


def test_mnist_silences_warnings_of_torchvision(tmp_path, no_torchvision, monkeypatch):
    write_torchvision(tmp_path, ending="")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision")
    try:
        with pytest.raises(FileNotFoundError):  # it was imported, and downloaded nothing
            mnist(tmp_path, download=True)
    finally:
        for name in torchvision_modules():
            del sys.modules[name]


@pytest.mark.parametrize(
    ("train", "counts"),
    [
        (True, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        (False, [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    ],
)
def test_mnist_real_files(train, counts):
    data = mnist(on_disk("MNIST/raw"), train=train)
    assert data.images.shape == (sum(counts), 1, 28, 28)
    assert data.labels.bincount().tolist() == counts


def test_mnist_real_files_have_the_known_binarization_entropy():
    # 45.534 nats per test image: no model of dynamically binarized images codes them in fewer
    images = mnist(on_disk("MNIST/raw"), train=False).images
    p = torch.arange(256, dtype=torch.float64) / 255
    entropy = -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p))
    pixels = images.flatten().bincount(minlength=256).double()
    assert float(entropy @ pixels) / len(images) == pytest.approx(45.534, abs=5e-4)


# --- Digits, Frey faces ---------------------------------------------------------------------------


def test_digits_equal_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    reference, data = load_digits(), digits()
    assert np.array_equal(data.images.squeeze(1).numpy(), reference.images)
    assert np.array_equal(data.labels.numpy(), reference.target)
    assert data.images.dtype == torch.uint8
    assert (len(data), data.max_value, int(data.images.max())) == (1797, 16, 16)


def test_digits_are_not_shared():
    digits().images.zero_()
    assert digits().images.any()


def test_notice_names_source_and_license():
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for fact in ("digits.npz", "Alpaydin", "Kaynak", "10.24432/C50P49", "CC BY 4.0"):
        assert fact in notice


FACES = np.random.default_rng(0).integers(0, 256, (1965, 560), np.uint8)


@pytest.mark.parametrize("order", ["C", "F"])
def test_frey_faces_are_rows_first(tmp_path, order):
    path = tmp_path / "faces.npy"
    np.save(path, np.asarray(FACES, order=order))
    faces = frey_faces(path)
    assert faces.shape == (1965, 1, 28, 20)
    assert faces.dtype == torch.uint8
    assert faces[7, 0, 3, 4] == FACES[7, 3 * 20 + 4]
    assert np.array_equal(faces.numpy().reshape(1965, 560), FACES)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (FACES.T, r"header: expected shape \(1965, 560\).*got shape \(560, 1965\)"),
        (FACES[:-1], r"header: .*got shape \(1964, 560\)"),
        (FACES / np.float32(255), r"header: .*dtype uint8, got .*dtype float32"),
        (np.full((1965, 560), None), r"header: .*dtype object"),  # a pickle, which is not read
    ],
)
def test_frey_faces_reject_other_arrays(tmp_path, array, message):
    path = tmp_path / "faces.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(ValueError, match=rf"faces\.npy: {message}"):
        frey_faces(path)


def test_frey_faces_reject_damaged_files(tmp_path):
    path = tmp_path / "faces.npy"
    np.save(path, FACES)
    data = path.read_bytes()
    for length in (0, 1, 6, 8, 9, 10, 64, 127):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"faces\.npy: header: "):
            frey_faces(path)
    for damaged in (data[:128], data[:-1], data + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"faces\.npy: payload: expected 1100400 bytes, got"):
            frey_faces(path)


@settings(max_examples=100, deadline=None)
@given(position=st.integers(0, 127), value=st.integers(0, 255))
def test_frey_faces_reject_or_read_a_damaged_header(tmp_path_factory, position, value):
    path = tmp_path_factory.getbasetemp() / "header.npy"
    np.save(path, FACES)
    data = bytearray(path.read_bytes())
    data[position] = value
    path.write_bytes(data)
    try:
        faces = frey_faces(path)
    except ValueError as error:
        assert "header.npy: " in str(error)  # noqa: PT017
    else:
        assert faces.shape == (1965, 1, 28, 20)


def test_frey_faces_real_file():
    faces = frey_faces(on_disk("freyfaces/freyfaces.npy") / "freyfaces" / "freyfaces.npy").double()
    assert (int(faces.min()), int(faces.max())) == (8, 238)
    mirrored = faces.flatten(0, 1).transpose(1, 2).reshape(1965, 28, 20)
    for wrong in (faces.reshape(1965, 20, 28), mirrored):  # neighbors in a face look alike
        assert faces.diff(dim=-2).abs().mean() < 0.8 * wrong.diff(dim=-2).abs().mean()


# --- Labeled images ------------------------------------------------------------------------------


def numbered(count: int) -> LabeledImages:
    """Return images and labels that contain their position."""
    positions = torch.arange(count)
    images = positions.to(torch.uint8).reshape(count, 1, 1, 1).expand(count, 1, 2, 3)
    return LabeledImages(images, positions, max_value=255, name="numbered")


def test_labeled_images_subsets_keep_labels():
    data = numbered(10)
    for index, expected in (
        (slice(2, 8, 3), [2, 5]),
        (slice(-2, None), [8, 9]),
        (slice(3, 3), []),
        (torch.tensor([7, 0, 7, -1]), [7, 0, 7, 9]),
        (data.labels % 4 == 1, [1, 5, 9]),
    ):
        part = data[index]
        assert part.labels.tolist() == expected
        assert part.images[:, 0, 0, 0].tolist() == expected
        assert part.images.shape == (len(expected), 1, 2, 3)
        assert (part.max_value, part.name, len(part)) == (255, "numbered", len(expected))


@pytest.mark.parametrize(
    "index",
    [3, torch.tensor(3), torch.zeros(10, dtype=torch.uint8), [1, 2], torch.zeros(2, 2).long()],
)
def test_labeled_images_reject_other_indices(index):
    with pytest.raises(TypeError, match="slice or a 1-d tensor of int64 or bool"):
        numbered(10)[index]


IMAGES, LABELS = torch.full((4, 1, 2, 2), 16, dtype=torch.uint8), torch.arange(4)


@pytest.mark.parametrize(
    ("images", "labels", "max_value", "error", "message"),
    [
        (IMAGES.float(), LABELS, 16, TypeError, "images of torch.uint8, got torch.float32"),
        (IMAGES, LABELS.int(), 16, TypeError, "labels of torch.int64, got torch.int32"),
        (IMAGES[:, 0], LABELS, 16, ValueError, r"\(N, C, H, W\), got \(4, 2, 2\)"),
        (IMAGES, LABELS[:3], 16, ValueError, r"labels of shape \(4,\), .* got \(3,\)"),
        (IMAGES, LABELS[:, None], 16, ValueError, r"labels of shape \(4,\), .* got \(4, 1\)"),
        (IMAGES, LABELS, 15, ValueError, r"pixels in 0\.\.15, got 16"),
        (IMAGES, LABELS, 0, ValueError, r"max_value in 1\.\.255, got 0"),
        (IMAGES, LABELS, 256, ValueError, r"max_value in 1\.\.255, got 256"),
    ],
)
def test_labeled_images_check_arguments(images, labels, max_value, error, message):
    with pytest.raises(error, match=message):
        LabeledImages(images, labels, max_value=max_value, name="bad")


# --- Splits ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    rest=st.integers(0, 20),
    seed=st.integers(0, 2**31),
)
def test_split_by_numbers_is_disjoint_and_repeatable(sizes, rest, seed):
    data = numbered(sum(sizes) + rest)
    parts = split(data, sizes, seed=seed)
    assert [len(part) for part in parts] == sizes
    drawn = torch.cat([part.labels for part in parts]).tolist()
    assert len(set(drawn)) == sum(sizes)
    for part, tensor, again in zip(
        parts, split(data.labels, sizes, seed=seed), split(data, sizes, seed=seed), strict=True
    ):
        assert isinstance(part, LabeledImages)
        assert torch.equal(part.images[:, 0, 0, 0].long(), part.labels)
        assert torch.equal(part.labels, tensor)
        assert torch.equal(part.labels, again.labels)


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.integers(1, 9), min_size=1, max_size=6), count=st.integers(200, 400))
def test_split_by_fractions_loses_nothing(weights, count):
    fractions = [weight / sum(weights) for weight in weights]
    parts = split(torch.arange(count), fractions)
    assert torch.cat(parts).sort().values.equal(torch.arange(count))
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(len(part) - fraction * count) <= 1


def test_split_leaves_a_remainder_and_accepts_numpy_integers():
    assert [len(part) for part in split(torch.arange(10), (0.5, 0.2))] == [5, 2]
    assert [len(part) for part in split(torch.arange(10), tuple(np.array([5, 2])))] == [5, 2]
    assert [len(split(torch.arange(10), one)[0]) for one in ((1,), (1.0,))] == [1, 10]


def test_split_tolerates_rounding_errors_of_the_sum():
    fractions = (0.2, 0.4, 0.3, 0.1)
    assert 0.2 + 0.4 + 0.3 + 0.1 > 1  # rounded at each addition
    assert [len(part) for part in split(torch.arange(10), fractions)] == [2, 4, 3, 1]


def test_split_is_uniform():
    draws = 2000
    hits = torch.zeros(6)
    for seed in range(draws):
        hits[split(torch.arange(6), (2,), seed=seed)[0]] += 1
    assert hits.sum() == 2 * draws
    assert (hits / draws - 1 / 3).abs().max() < 4 * math.sqrt(2 / 9 / draws)


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ((8, 3), ValueError, r"at most 10, got \(8, 3\) of 10 items"),
        ((0.7, 0.31), ValueError, r"at most 1.0, got \(0.7, 0.31\)"),
        ((), ValueError, "at least one size"),
        ((5, 0), ValueError, "at least one item in each part"),
        ((5, -1), ValueError, "at least one item in each part"),
        ((0.9, 0.01), ValueError, "at least one item in each part"),
        ((0.5, 5), TypeError, "all integers or all finite floats"),
        ((0.5, math.nan), TypeError, "all integers or all finite floats"),
        (("5",), TypeError, "all integers or all finite floats"),
    ],
)
def test_split_rejects_impossible_sizes(sizes, error, message):
    with pytest.raises(error, match=message):
        split(torch.arange(10), sizes)


@pytest.mark.parametrize("data", [(torch.arange(4), torch.arange(4)), [1, 2, 3, 4], range(4)])
def test_split_refuses_other_kinds_of_data(data):
    with pytest.raises(TypeError, match=r"got a (tuple|list|range): split positions"):
        split(data, (0.5, 0.5))


def test_labeled_images_refuse_arrays():
    with pytest.raises(TypeError, match=r"got images of type ndarray: pass torch.as_tensor"):
        LabeledImages(np.zeros((1, 1, 2, 2), np.uint8), torch.zeros(1).long(), 255, "black")
