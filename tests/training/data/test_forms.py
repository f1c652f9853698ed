"""Data that keep their meaning on the way from the user to the objective."""

import collections
import dataclasses
import random

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from helpers.training import BATCH_SIZE, DATA, LeastSquares, Unsized, flip, make_linear, run, same
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from tinyvae import ELBO, VAE, Batch, BernoulliLikelihood
from tinyvae.core.random import epoch_order
from tinyvae.likelihoods import MaskedLikelihood
from tinyvae.training.data.factory import open_data
from tinyvae.training.data.sources import BatchTransform

LABELS = torch.arange(len(DATA))
MASK = np.arange(DATA.numel()).reshape(DATA.shape) % 7 == 0
MISSING = DATA.masked_fill(torch.from_numpy(MASK), torch.nan)


class Items(Dataset):
    """Map-style data set of given items."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Foreign:
    """The same without torch's base class, as a data set of Hugging Face."""

    __len__, __getitem__ = Items.__len__, Items.__getitem__

    def __init__(self, items):
        self.items = items


class Seen(LeastSquares):
    """Objective that keeps the batches of training and those of validation."""

    def __init__(self):
        super().__init__()
        self.trained, self.validated = [], []

    def forward(self, model, batch):
        (self.trained if self.training else self.validated).append(batch)
        return super().forward(model, batch)


def source_of(data, **options):
    transform = BatchTransform(torch.device("cpu"), torch.float32)
    return open_data(data, transform, **{"batch_size": 8, "seed": 0, "shuffle": False, **options})


def joined(batches, field="x"):
    return torch.cat([getattr(batch, field) for batch in batches])


# Streams of random numbers ------------------------------------------------------------------------


class Noisy(Dataset):
    """Items that are drawn from torch's default generator."""

    def __len__(self):
        return len(DATA)

    def __getitem__(self, index):
        return torch.rand(4)


class NoisyStream(Unsized):
    """Stream of items that are drawn from torch's default generator."""

    def __iter__(self):
        return (torch.rand(4) for _ in DATA)


def noise(x, generator):
    """Replace x by noise."""
    return torch.rand(x.shape, generator=generator)


@pytest.mark.parametrize(
    ("data", "fit"),
    [
        (torch.zeros(37, 4), {"transform": noise}),
        (Items(torch.zeros(37, 4)), {"transform": noise}),
        (DataLoader(torch.zeros(37, 4), 8), {"transform": noise}),
        (Noisy(), {"batch_size": 1}),
        (Noisy(), {"batch_size": 1, "workers": 1}),
        (NoisyStream(DATA), {}),
        (DataLoader(Noisy(), 8), {}),
    ],
    ids=[
        "transform",
        "transform of items",
        "transform of a loader",
        "items",
        "items of a worker",
        "stream",
        "items of a loader",
    ],
)
def test_validation_draws_other_noise_than_training(data, fit):
    objective = run(make_linear(), Seen(), data, data, epochs=1, fit=fit).objective
    drawn = torch.cat([joined(objective.trained), joined(objective.validated)])
    assert len(drawn.unique(dim=0)) == 2 * len(DATA)


def test_validation_loader_has_another_order_than_training():
    loader = DataLoader(LABELS.repeat(4, 1).T / 64, 8, shuffle=True)
    objective = run(make_linear(), Seen(), loader, loader, epochs=1).objective
    assert not joined(objective.trained).equal(joined(objective.validated))


class CoinFlips(Noisy):
    """Items of coin flips by the generators of torch, numpy and Python."""

    def __getitem__(self, index):
        flips = [torch.randint(2, ()), np.random.randint(2), random.randrange(2)]  # noqa: NPY002
        return torch.tensor([*flips, 0.0])


def test_items_draw_independent_numbers_from_torch_numpy_and_python():
    flips = joined(run(make_linear(), Seen(), CoinFlips()).objective.trained)[:, :3]
    correlations = torch.corrcoef(flips.T)[[0, 0, 1], [1, 2, 2]]
    assert correlations.abs().max() < 4 / len(flips) ** 0.5


def test_validation_repeats_its_noise_and_leaves_that_of_training():
    fit = {"transform": flip}
    with_validation = run(make_linear(), Seen(), DATA, DATA, fit=fit).objective
    first, second = joined(with_validation.validated).chunk(2)
    assert torch.equal(first, second)
    alone = run(make_linear(), Seen(), DATA, fit=fit).objective
    assert torch.equal(joined(alone.trained), joined(with_validation.trained))


# Missing values, files, containers ----------------------------------------------------------------


@for_each(
    "data",
    [
        np.ma.masked_array(DATA.numpy(), MASK),
        np.ma.masked_array(DATA.numpy().astype(np.uint8), MASK),
        Items(list(np.ma.masked_array(DATA.numpy(), MASK))),
        DataLoader(np.ma.masked_array(DATA.numpy(), MASK), 8, collate_fn=np.ma.stack),
        DataLoader(np.ma.masked_array(DATA.numpy(), MASK), 8),
        (np.ma.masked_array(DATA.numpy(), MASK),),
    ],
)
def test_fit_takes_masked_values_as_missing(data):
    def make(likelihood):
        torch.manual_seed(0)
        return VAE.from_shapes(4, latent_dim=2, likelihood=likelihood)

    masked = MaskedLikelihood(BernoulliLikelihood())
    expected = DataLoader(MISSING, 8) if isinstance(data, DataLoader) else MISSING
    trainer = run(make(masked), ELBO(), data, epochs=1)
    assert not isinstance(data, DataLoader) or data.collate_fn in (np.ma.stack, default_collate)
    assert same(trainer.model, run(make(masked), ELBO(), expected, epochs=1).model)
    with pytest.raises(ValueError, match=r"got NaN in .*MaskedLikelihood\(likelihood\)"):
        run(make(BernoulliLikelihood()), ELBO(), data)


@for_each("dtype", ["f4", "f8", ">f4", "u1", "<u2"])
@for_each("mode", ["r", "c"])
def test_tensor_source_reads_a_mapped_file_batch_by_batch(tmp_path_factory, mode, dtype):
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, DATA.numpy().astype(dtype))
    mapped = np.load(path, mmap_mode=mode)
    source = source_of((mapped, LABELS), shuffle=True)
    assert source.data[0] is mapped
    source.transform = dataclasses.replace(source.transform, batch=lambda b: b[0])
    assert torch.equal(joined(source.batches(0)).float(), DATA[epoch_order(len(DATA), 0, 0)])
    if dtype in ("f4", "f8", ">f4"):
        trainer = run(make_linear(), LeastSquares(), mapped, mapped[::-1])
        assert same(trainer.model, run(make_linear(), LeastSquares()).model)


def test_tensor_source_checks_large_examples_in_small_chunks(monkeypatch):
    monkeypatch.setattr("tinyvae.training.data.sources.CHUNK_ELEMENTS", 40)
    assert [len(batch) for batch in source_of(DATA).iter_all()] == [10, 10, 10, 7]


def test_tensor_source_warns_about_rounded_data():
    x = 1.7e9 + torch.arange(40, dtype=torch.float64).reshape(10, 4)
    with pytest.warns(UserWarning, match=r"float32 rounds a dimension .* Subtract an origin"):
        source_of(x)


def test_source_keeps_named_tuples_and_dictionaries():
    pair = collections.namedtuple("Pair", "x y")
    for data, pick in (
        (pair(DATA, LABELS), lambda b: b.x),
        ({"image": DATA, "label": LABELS}, lambda b: b["image"]),
        (collections.OrderedDict(image=DATA), lambda b: (b.move_to_end("image"), b["image"])[1]),
    ):
        trainer = run(make_linear(), LeastSquares(), data, data, fit={"batch": pick})
        assert same(trainer.model, run(make_linear(), LeastSquares()).model)


def test_source_calls_a_subclass_of_tensor_dataset():
    class Negated(TensorDataset):
        def __getitem__(self, index):
            return (-super().__getitem__(index)[0],)

    trainer = run(make_linear(), LeastSquares(), Negated(DATA))
    assert same(trainer.model, run(make_linear(), LeastSquares(), -DATA).model)


@for_each("items", [list(DATA), [{"image": x, "label": 1} for x in DATA], list(DATA.numpy())])
def test_fit_reads_a_foreign_data_set(items):
    fit = {"batch": lambda b: b["image"] if isinstance(b, dict) else b}
    trainer = run(make_linear(), LeastSquares(), Foreign(items), Foreign(items), fit=fit)
    assert same(trainer.model, run(make_linear(), LeastSquares()).model)


def test_fit_reads_a_list_of_pairs():
    data = list(zip(DATA, LABELS, strict=True))
    trainer = run(make_linear(), LeastSquares(), data, fit={"batch": lambda b: b[0]})
    assert same(trainer.model, run(make_linear(), LeastSquares()).model)


@for_each(
    "data, message",
    [
        (list(DATA), r"a list of 37 tensors: if each is an example, pass torch.stack\(data\)"),
        ([DATA, LABELS], r"a list of 2 tensors: .* pick it, batch=lambda b: b\[0\]"),
        (Foreign([{"image": DATA[0]}]), r"got a dict: pick x by its name, .*b\['image'\]"),
        (Foreign([DATA[0].tolist()]), r"got 4 numbers of each example: .*with_format\('torch'\)"),
        (Foreign([DATA[:3].tolist()]), r"got nested lists: .*with_format\('torch'\)"),
        (Foreign([object()]), "items of tensors, arrays and numbers, got object: .*numpy.array"),
        (
            Foreign([{"image": object(), "label": 1}]),
            "numbers, got {'image': object, 'label': int}: convert them",
        ),
        (Items([object()]), "fit expects items of tensors, arrays and numbers, got object"),
        (DataLoader(DATA, 8, collate_fn=lambda _: np.array(["a"])), "got dtype <U1: encode it"),
    ],
)
def test_fit_refuses_items_with_the_remedy(data, message):
    with pytest.raises(TypeError, match=message):
        run(make_linear(), LeastSquares(), data)


def test_fit_names_the_arguments_of_a_transform():
    with pytest.raises(TypeError, match=r"maps \(x, generator\) to x, got an error: .* takes 1"):
        run(make_linear(), LeastSquares(), fit={"transform": lambda x: x})


def test_fit_names_the_keys_that_batch_may_read():
    with pytest.raises(KeyError, match=r"\['image'\], got one that asks for 'img'"):
        run(make_linear(), LeastSquares(), {"image": DATA}, fit={"batch": lambda b: b["img"]})


def test_source_detaches_items():
    items = [row.clone().requires_grad_() for row in DATA]
    for data in (Items(items), DataLoader(items, 8)):
        run(make_linear(), LeastSquares(), data, epochs=1)
        assert all(row.grad is None for row in items)


def test_batch_option_may_return_any_dtype():
    fit = {"batch": lambda b: b.double()}
    trainer = run(make_linear(), LeastSquares(), fit=fit)
    assert same(trainer.model, run(make_linear(), LeastSquares()).model)


# Fields of a batch --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LabeledBatch(Batch):
    """Batch with fields of the user's own."""

    labels: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    source: str = ""


def labeled(pair):
    x, labels = pair
    return LabeledBatch(x, labels=labels, weights=labels.double(), source="here")


class Weighted(Seen):
    """Objective that reads the fields of the user's own."""

    def forward(self, model, batch):
        assert batch.weights.dtype == torch.float32
        assert torch.equal(batch.labels.float(), batch.weights)
        return super().forward(model, batch)

    def check(self, model, batch):
        assert isinstance(batch.first(2), LabeledBatch)
        return super().check(model, batch)


def collate_labeled(items):
    return labeled(default_collate(items))


PAIRS = TensorDataset(DATA, LABELS)


@pytest.mark.parametrize(
    ("data", "fit"),
    [
        ((DATA, LABELS), {"batch": labeled}),
        (Subset(PAIRS, range(len(PAIRS))), {"batch": labeled}),
        (DataLoader(PAIRS, BATCH_SIZE), {"batch": labeled}),
        (DataLoader(PAIRS, BATCH_SIZE, collate_fn=collate_labeled), {}),
        (Items([labeled(pair) for pair in PAIRS]), {}),
    ],
    ids=["tensors", "Dataset", "DataLoader", "collated", "items"],
)
def test_source_keeps_fields_of_a_subclass_of_batch(data, fit):
    fit = {**fit, "transform": flip}
    objective = run(make_linear(), Weighted(), data, data, epochs=1, fit=fit).objective
    for batches in (objective.trained, objective.validated):
        assert joined(batches, "labels").sort().values.equal(LABELS)
        for batch in batches:
            assert isinstance(batch, LabeledBatch)
            assert set(batch.source) in ({"here"}, set("here"))  # of a batch, of each item


def test_batch_index_counts_in_the_data_of_each_role():
    for data in (DATA, Items(DATA), Subset(Items(DATA), range(37))):
        objective = run(make_linear(), Seen(), data, Items(DATA[:11]), epochs=1).objective
        assert joined(objective.trained, "index").equal(epoch_order(37, 0, 0))
        assert joined(objective.validated, "index").equal(torch.arange(11))
    for data in (DataLoader(DATA, 8), Unsized(DATA)):
        objective = run(make_linear(), Seen(), data, epochs=1).objective
        assert {batch.index for batch in objective.trained} == {None}


def test_batch_index_of_a_resumed_epoch():
    batches = [*source_of(Items(DATA), shuffle=True).batches(epoch=2, start=3)]
    assert joined(batches, "index").equal(epoch_order(37, 0, 2)[24:])
    assert joined(batches).equal(DATA[epoch_order(37, 0, 2)[24:]])


def test_batch_option_sets_the_index():
    fit = {"batch": lambda b: Batch(b[0], index=b[1] + 100)}
    objective = run(make_linear(), Seen(), (DATA, LABELS), epochs=1, fit=fit).objective
    assert joined(objective.trained, "index").equal(epoch_order(37, 0, 0) + 100)
