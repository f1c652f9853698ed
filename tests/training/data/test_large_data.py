"""Data of other libraries that stay on the disk: same results, order, resumption, memory."""

import gc
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.runs import digest, fit, trainer_of
from helpers.training import (
    DATA,
    STEPS,
    After,
    LeastSquares,
    make_linear,
    raises,
    run,
    same,
    weights_of,
)

from tinyvae.training.data.factory import open_data
from tinyvae.training.data.sources import BatchTransform

ROWS = DATA.numpy()


def in_memmap(folder):
    np.save(folder / "x.npy", ROWS)
    return np.load(folder / "x.npy", mmap_mode="r")


def in_hdf5(folder):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("x", data=ROWS, chunks=(5, 4), compression="gzip")
    return h5py.File(folder / "x.h5")["x"]


def in_zarr(folder):
    zarr = pytest.importorskip("zarr")
    array = zarr.open(folder / "x.zarr", mode="w", shape=ROWS.shape, chunks=(5, 4), dtype="float32")
    array[:] = ROWS
    return zarr.open(folder / "x.zarr", mode="r")


def in_hugging_face(folder):
    pytest.importorskip("datasets.arrow_dataset")  # tests/datasets is a namespace of that name
    import datasets

    table = datasets.Dataset.from_dict({"x": ROWS.tolist(), "position": list(range(len(ROWS)))})
    table.save_to_disk(folder / "table")
    return datasets.load_from_disk(folder / "table").with_format("torch")


def stream_of_hugging_face(folder):
    stream = in_hugging_face(folder).to_iterable_dataset(num_shards=3)
    return stream.shuffle(seed=0, buffer_size=10)


def in_archives(folder):
    webdataset = pytest.importorskip("webdataset")
    for k in range(3):
        with webdataset.TarWriter(str(folder / f"x-{k}.tar")) as archive:
            for i in range(k, len(ROWS), 3):
                parts = {"x.npy": ROWS[i], "position.cls": i}
                archive.write({"__key__": f"{i}", **parts})
    archives = webdataset.WebDataset(f"{folder}/x-{{0..2}}.tar", shardshuffle=False)
    return archives.decode().shuffle(10, rng=random)


def pick(item):
    """Return x of a batch of any of these data."""
    return item.get("x", item.get("x.npy")) if isinstance(item, dict) else item


STORED = [in_memmap, in_hdf5, in_zarr, in_hugging_face]
STREAMS = [stream_of_hugging_face, in_archives]
# Archives are closed when they are collected, and h5py and zarr warn about versions of NumPy.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _collect():
    """Close archives while their warnings are ignored."""
    yield
    gc.collect()


@pytest.mark.parametrize("stored", STORED)
def test_fit_on_stored_data_is_bitwise_that_on_a_tensor(stored, tmp_path):
    expected, model = make_linear(), make_linear()
    run(expected, LeastSquares(), DATA)
    run(model, LeastSquares(), stored(tmp_path), fit={"batch": pick})
    assert same(weights_of(model), weights_of(expected))


def positions(data, workers, epoch):
    """Return the positions of the rows in the order in which an epoch yields them."""
    transform = BatchTransform(
        torch.device("cpu"), torch.float32, lambda b: b.get("position", b.get("position.cls"))
    )
    source = open_data(data, transform, batch_size=4, seed=0, shuffle=True, workers=workers)
    try:
        return torch.cat([batch.x for batch in source.batches(epoch)]).tolist()
    finally:
        source.close()


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("workers", [0, 2])
def test_streams_yield_each_row_once_in_another_order_in_each_epoch(stream, workers, tmp_path):
    orders = [positions(stream(tmp_path), workers, epoch) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order) == list(range(len(ROWS)))
    assert orders[0] != orders[1]


@pytest.mark.filterwarnings("ignore:the data cannot restore their position")
@pytest.mark.parametrize("stream", STREAMS)
def test_resumed_run_continues_the_order_of_a_stream(stream, tmp_path):
    options = {"batch": pick, "epochs": 2}
    expected = digest(fit(trainer_of(tmp_path / "complete"), stream(tmp_path), **options))
    crash = After(STEPS + 3, raises(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        fit(trainer_of(tmp_path / "run", crash), stream(tmp_path), **options)
    resumed = fit(trainer_of(tmp_path / "run"), stream(tmp_path), resume="auto", **options)
    assert digest(resumed) == expected


MEMORY = """
import sys, threading, time
import numpy as np
from tinyvae import ELBO, VAE, BernoulliLikelihood, Trainer

peak = 0
def watch():
    global peak
    while True:
        with open("/proc/self/status") as file:
            (line,) = (line for line in file if line.startswith("RssAnon"))
        peak = max(peak, int(line.split()[1]))
        time.sleep(0.01)

x = np.memmap("x", np.float32, "w+", shape=(int(sys.argv[1]), 1024))  # a file of holes
vae = VAE.from_shapes(1024, latent_dim=2, likelihood=BernoulliLikelihood())
threading.Thread(target=watch, daemon=True).start()
Trainer(vae, ELBO(), progress=False).fit(x, epochs=1, batch_size=4096)
print(peak // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_depend_on_the_size_of_a_mapped_file(tmp_path):
    command = [sys.executable, "-c", MEMORY]
    peaks = [
        int(subprocess.check_output([*command, str(2**n)], cwd=tmp_path)) for n in (16, 18)
    ]  # MiB; files of 256 MiB and 1 GiB
    assert peaks[1] < peaks[0] + 64
