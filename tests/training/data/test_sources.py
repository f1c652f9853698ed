import collections
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.training import (
    BATCH_SIZE,
    DATA,
    STEPS,
    LeastSquares,
    Unsized,
    make_linear,
    make_vae,
    rows,
    run,
    same,
)
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from tinyvae import ELBO, VAE, Batch, BernoulliLikelihood, GaussianEncoder, Optimization, Trainer
from tinyvae.core.random import epoch_order
from tinyvae.datasets import DynamicBinarization, LabeledImages
from tinyvae.training.data.sources import CHUNK_SIZE

GRAY = (DATA * 255).to(torch.uint8)


class Rows(Dataset):
    """Map-style data set that is read item by item."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index]


class Seen(LeastSquares):
    """Objective that records the batches it trained on."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, model, batch):
        self.batches.append(batch)
        return super().forward(model, batch)

    @property
    def x(self):
        return torch.cat([batch.x for batch in self.batches])


def seen(data, *, epochs=1, **fit):
    return run(make_linear(), Seen(), data, epochs=epochs, fit=fit).objective


def read_only(x):
    array = x.numpy().copy()
    array.flags.writeable = False
    return array


# Forms of data -----------------------------------------------------------------------------------


FORMS = {
    "array": lambda x: x.numpy(),
    "float64 array": lambda x: x.double().numpy(),
    "float64 tensor": lambda x: x.double(),
    "read-only array": read_only,
    "negative strides": lambda x: x.numpy()[::-1].copy()[::-1],
    "column order": lambda x: np.asfortranarray(x.numpy()),
    "tuple": lambda x: (x,),
    "list of an array": lambda x: [x.numpy()],
    "nested lists": lambda x: x.tolist(),
    "big-endian array": lambda x: x.numpy().astype(">f8"),
    "DataFrame": lambda x: pd.DataFrame(x.numpy()),
    "TensorDataset": TensorDataset,
    "Dataset": Rows,
    "Dataset of tuples": lambda x: Rows([(row,) for row in x]),
    "tensor with gradients": lambda x: x.clone().requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_fit_gives_the_same_run_for_every_form_of_data(form):
    data, validation = form(DATA), form(DATA[:11])
    trainer = run(make_vae(), ELBO(), data, validation)
    expected = run(make_vae(), ELBO(), DATA, DATA[:11])
    assert same(trainer.model, expected.model)
    assert rows(trainer.history) == rows(expected.history)
    if isinstance(data, np.ndarray):
        assert np.array_equal(data, DATA.numpy())
    if isinstance(data, torch.Tensor):
        assert data.grad is None


def test_fit_accepts_integers_with_a_transform():
    fit = {"transform": lambda x, _generator: x.float() / 255}
    trainer = run(make_vae(), ELBO(), GRAY.numpy(), GRAY, fit=fit)
    assert same(trainer.model, run(make_vae(), ELBO()).model)


@pytest.mark.parametrize("data", [DATA, Rows(DATA)], ids=["tensor", "Dataset"])
def test_source_visits_examples_in_the_order_of_the_seed(data):
    objective = seen(data, epochs=2)
    orders = [epoch_order(len(DATA), 0, epoch) for epoch in range(2)]
    assert torch.equal(objective.x, DATA[torch.cat(orders)])
    assert [len(batch) for batch in objective.batches] == [8, 8, 8, 8, 5] * 2
    assert not torch.equal(*orders)


def test_tensor_source_batches_have_an_index():
    batches = seen(DATA).batches
    assert all(torch.equal(DATA[batch.index], batch.x) for batch in batches)


def test_source_reads_validation_in_order():
    trainer = run(make_linear(), Seen(), DATA, DATA[:20], epochs=1)
    assert torch.equal(trainer.objective.x[len(DATA) :], DATA[:20])


def test_loader_source_uses_the_loader_as_it_is():
    x = torch.arange(12.0).repeat(4, 1).T / 10
    objective = seen(DataLoader(x, 5, shuffle=True), epochs=2, batch_size=3)
    assert [len(batch) for batch in objective.batches] == [5, 5, 2] * 2
    first, second = objective.x.chunk(2)
    assert first[:, 0].sort().values.equal(x[:, 0])
    assert second[:, 0].sort().values.equal(x[:, 0])
    assert not first.equal(x)
    assert not first.equal(second)
    again = seen(DataLoader(x, 5, shuffle=True), epochs=2)
    assert objective.x.equal(again.x)  # the seed of the run determines the loader's order


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: DataLoader(d, BATCH_SIZE)])
def test_source_accepts_data_without_a_length(wrap):
    trainer = run(make_linear(), Seen(), wrap(Unsized(DATA)), wrap(Unsized(DATA[:9])))
    first = len(DATA) + 9
    assert torch.equal(trainer.objective.x[:first], torch.cat([DATA, DATA[:9]]))
    assert trainer.history["step"] == [STEPS, 2 * STEPS]
    assert trainer.state.plan.num_steps is None
    assert "? examples, 2 epochs of ? steps" in trainer.state.plan.headline


# Picking x, context and mask ---------------------------------------------------------------------


LABELS = torch.arange(len(DATA)) % 3
DICTIONARIES = Rows([{"image": x, "name": "an image"} for x in DATA])


@pytest.mark.parametrize(
    ("data", "pick"),
    [
        (DICTIONARIES, lambda b: b["image"]),
        ((DATA, LABELS), lambda b: b[0]),
        (TensorDataset(DATA, LABELS), lambda b: Batch(b[0], context=b[1])),
        (Rows(list(zip(DATA, LABELS, strict=True))), lambda b: b[0]),
        ((GRAY, DATA.double()), lambda b: b[1]),
    ],
    ids=["dictionary", "tuple", "TensorDataset", "Dataset", "two dtypes"],
)
def test_batch_option_picks_x(data, pick):
    trainer = run(make_linear(), LeastSquares(), data, data, fit={"batch": pick})
    assert same(trainer.model, run(make_linear(), LeastSquares()).model)


class Conditional(nn.Module):
    """Linear layer of the input and a label, which records both."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear = nn.Linear(inputs + 1, outputs)
        self.seen = []

    def forward(self, x, context):
        self.seen.append((x, context))
        return self.linear(torch.cat([x, context], dim=1))


def test_batch_option_passes_context_to_the_model():
    network, decoder = Conditional(4, 8), Conditional(2, 4)
    vae = VAE(GaussianEncoder(network, 2, features=8), decoder, BernoulliLikelihood())
    context = torch.arange(37.0).unsqueeze(1) / 37
    fit = {"batch": lambda b: Batch(b[0], context=b[1])}
    run(vae, ELBO(num_samples=2), (DATA, context.double()), epochs=1, fit=fit)
    order = epoch_order(len(DATA), 0, 0).split(BATCH_SIZE)
    calls = zip(order, network.seen[-STEPS:], decoder.seen[-STEPS:], strict=True)
    for index, (x, encoded), (_, decoded) in calls:
        assert torch.equal(x, DATA[index])
        assert torch.equal(encoded, context[index])
        assert torch.equal(decoded, context[index].repeat(2, 1))


def test_loader_source_accepts_batches():
    def collate(items):
        return Batch(torch.stack(items).double(), context=torch.zeros(len(items)).double())

    objective = seen(DataLoader(DATA, BATCH_SIZE, collate_fn=collate))
    assert torch.equal(objective.x, DATA)
    assert {batch.context.dtype for batch in objective.batches} == {torch.float32}


# Means of an epoch -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap", [lambda x: x, Rows, Unsized, lambda x: DataLoader(x, 8), lambda x: DataLoader(x, 16)]
)
def test_source_weights_a_short_last_batch_by_its_size(wrap):
    x = torch.cat([torch.zeros(32, 4), torch.full((5, 4), 3.0)])  # the last examples differ
    still = Optimization(learning_rate=0.0)
    trainer = run(make_linear(), LeastSquares(), wrap(x), wrap(x), epochs=1, optimization=still)
    expected = (make_linear()(x) - x).square().sum(1).mean().item()
    for column in ("train/loss", "validation/loss", "train/error_nats"):
        assert trainer.history[column] == pytest.approx([expected], rel=1e-6)


# What is refused, before the first step ----------------------------------------------------------


def with_nan(example, num_examples=37):
    x = torch.zeros(num_examples, 4)
    x[example, 2] = torch.nan
    return x


LABELED = LabeledImages(
    torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64), 255, "black"
)
PAIR = r"yield a tensor x, got \(Tensor, Tensor\): .*batch=lambda b: b\[0\]"
BAD = {
    "empty tensor": (torch.zeros(0, 4), ValueError, "the data set is empty"),
    "empty Dataset": (Rows([]), ValueError, "the data set is empty"),
    "empty loader": (DataLoader(torch.zeros(0, 4)), ValueError, "data yielded no batch"),
    "all dropped": (
        DataLoader(DATA, 64, drop_last=True),
        ValueError,
        r"data yielded no batch: .* \(one full batch if drop_last is set\)",
    ),
    "empty stream": (
        Unsized(DATA[:0]),
        ValueError,
        "data yielded no batch: they must hold an example",
    ),
    "lengths": ((DATA, DATA[:30]), ValueError, r"tensors of one length, got lengths \[30, 37\]"),
    "objects": (np.array([1.0, None]), TypeError, "array of numbers, got dtype object"),
    "text": (np.array(["a", "b"]), TypeError, "array of numbers, got dtype <U1"),
    "scalar": (torch.tensor(1.0), ValueError, r"shape \(N, \*E\), got a scalar"),
    "scalar array": (np.array(1.0), ValueError, r"shape \(N, \*E\), got a scalar"),
    "text file": ("images.npy", TypeError, r"got a str: load the file first, .*numpy.load\(path"),
    "nothing": (
        iter(()),
        TypeError,
        "got a tuple_iterator: an iterator is used up after one epoch",
    ),
    "labeled": (
        LABELED,
        TypeError,
        r"got a LabeledImages, .*: pass its tensor, such as data\.images",
    ),
    "pair": ((DATA, LABELS), TypeError, PAIR),
    "pairs": (TensorDataset(DATA, LABELS), TypeError, PAIR),
    "loader of pairs": (DataLoader(TensorDataset(DATA, LABELS), 8), TypeError, PAIR),
    "dictionaries": (
        DICTIONARIES,
        TypeError,
        r"yield a tensor x, got a dict: .*lambda b: b\['image'\]",
    ),
    "NaN": (with_nan(29), ValueError, "got NaN in 1 of 37 examples, first in example 29"),
    "infinity": (DATA / 0, ValueError, "got NaN in 37 of 37 examples, first in example 0"),
    "NaN far on": (
        with_nan(CHUNK_SIZE + 17, CHUNK_SIZE + 40),
        ValueError,
        f"data, counted from example {CHUNK_SIZE}: .* in 1 of 40 examples, first in example 17",
    ),
    "0..255": (DATA * 255, ValueError, r"expects values in \[0, 1\], got 0\.\.255"),
    "uint8": (GRAY, ValueError, r"expects values in \[0, 1\], got 0\.\.255.* transform="),
    "integers": (2 * DATA.long().numpy(), ValueError, r"in \[0, 1\], got 0\.\.2"),
    "shape": (DATA[:, :3], ValueError, r"encoder does not accept a batch of shape \(2, 3\)"),
}


@pytest.mark.parametrize("role", ["training", "validation"])
@pytest.mark.parametrize(("data", "error", "message"), BAD.values(), ids=BAD.keys())
def test_fit_rejects_bad_data_before_the_first_step(role, data, error, message):
    model = make_vae()
    trainer = Trainer(model, ELBO(), device="cpu", progress=False)
    train, validation = (data, DATA) if role == "training" else (DATA, data)
    with pytest.raises(error, match=message) as caught:
        trainer.fit(train, validation, epochs=1)
    assert role in str(caught.value) or "yield a tensor x" in message
    assert trainer.step == 0
    assert same(model, make_vae())


def test_loader_source_checks_each_batch_before_its_step():
    trainer = Trainer(make_vae(), ELBO(), device="cpu", progress=False)
    with pytest.raises(ValueError, match=r"training data, counted from example 24: .*example 5:"):
        trainer.fit(DataLoader(with_nan(29), BATCH_SIZE), epochs=1)
    assert trainer.step == 3
    with pytest.raises(ValueError, match=r"validation data, counted from example 24: .*example 5:"):
        trainer.fit(DATA, DataLoader(with_nan(29), BATCH_SIZE), epochs=1)


def test_dataset_source_trains_on_the_first_batch_of_a_stream():
    class Once(IterableDataset):
        def __init__(self):
            self.rows = iter(DATA)

        def __iter__(self):
            return self.rows

    trainer = run(make_linear(), LeastSquares(), DataLoader(Once(), BATCH_SIZE), epochs=1)
    assert trainer.step == STEPS


def test_loader_source_follows_the_generator_of_the_loader():
    def loader():
        generator = torch.Generator().manual_seed(3)
        return DataLoader(DATA, BATCH_SIZE, shuffle=True, generator=generator)

    seen = []
    run(make_linear(), LeastSquares(), loader(), fit={"batch": lambda b: seen.append(b) or b})
    same_loader = loader()
    expected = [batch for _ in range(2) for batch in same_loader]
    assert all(map(torch.equal, seen, expected))
    assert len(seen) == len(expected)


def test_batch_option_keeps_an_index():
    indices = []

    class Indexed(LeastSquares):
        def forward(self, model, batch):
            indices.append(batch.index)
            return super().forward(model, batch)

    data = DataLoader(TensorDataset(DATA, torch.arange(len(DATA))), BATCH_SIZE)
    run(make_linear(), Indexed(), data, fit={"batch": lambda b: Batch(b[0], index=b[1])}, epochs=1)
    assert torch.equal(torch.cat(indices), torch.arange(len(DATA)))


def test_transform_result_gets_the_dtype_of_the_model():
    run(make_vae().double(), ELBO(), GRAY, fit={"transform": DynamicBinarization(255)})
    with pytest.raises(
        TypeError, match=r"training data: fit expects a transform= that returns a tensor, got a"
    ):
        run(make_vae(), ELBO(), GRAY, fit={"transform": lambda x, _: x.numpy()})


def test_fit_rejects_a_stream_that_ends_for_good():
    class Once(IterableDataset):
        def __init__(self):
            self.batches = itertools.chain(DATA.split(1))

        def __iter__(self):
            return self.batches

    with pytest.raises(ValueError, match=r"yielded no batch: .* iterable again in every epoch"):
        run(make_linear(), LeastSquares(), DataLoader(Once(), None))


def test_batch_option_receives_named_tuples():
    pair = collections.namedtuple("Pair", "x y")
    data = Rows([pair(row, 0) for row in DATA])
    named = run(make_linear(), LeastSquares(), data, fit={"batch": lambda b: b.x})
    assert same(named.model, run(make_linear(), LeastSquares()).model)
