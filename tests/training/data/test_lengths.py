"""Lengths of data: exact, shorter by a last batch that is dropped, or a hint that may be wrong."""

import warnings

import pytest
import torch
from helpers.cases import for_each
from helpers.runs import AUTO, checkpoint_of, digest, fit, trainer_of
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
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    get_worker_info,
)

from tinyvae import ELBO, Callback, Optimization
from tinyvae.core.random import epoch_order
from tinyvae.schedules import Linear


class Rows(Dataset):
    """Map-style data set of rows, whose number may change."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index]


# Hints --------------------------------------------------------------------------------------------


class Sharded(IterableDataset):
    """Rows that processes share. Each has a last batch of its own, so there are more batches."""

    def __len__(self):
        return len(DATA)

    def __iter__(self):
        info = get_worker_info()
        return iter(DATA if info is None else DATA[info.id :: info.num_workers])


class Claimed(IterableDataset):
    """Rows with a wrong length."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter(DATA)


class Listed(Sampler):
    """Sampler of the user's own with a wrong length."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter(range(len(DATA)))


# Data, the number of their batches, and the number that follows from their length.
WRONG = {
    "more by sharding": (lambda: DataLoader(Sharded(), 8, num_workers=2), 6, 5),
    "more": (lambda: DataLoader(Claimed(20), 8), 5, 3),
    "fewer": (lambda: DataLoader(Claimed(60), 8), 5, 8),
    "more by a sampler": (lambda: DataLoader(Rows(DATA), 8, sampler=Listed(20)), 5, 3),
    "fewer by a sampler": (lambda: DataLoader(Rows(DATA), 8, sampler=Listed(60)), 5, 8),
    "a stream": (lambda: Claimed(20), 5, 3),
}


@pytest.mark.parametrize("name", WRONG)
def test_resume_accepts_each_checkpoint_of_data_with_a_wrong_length(name, tmp_path):
    make, steps, hint = WRONG[name]
    message = (
        f"training data have {steps} batches in epoch 1, but their length is {hint}: the epoch"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        trainer = fit(trainer_of(tmp_path, every_steps=1, keep=99), make())
    assert len(caught) == 1  # in two epochs
    assert trainer.step == 2 * steps
    assert f"2 epochs of about {hint} steps" in trainer.state.plan.headline
    for step in (steps - 1, steps, steps + 1, 2 * steps):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the (training )?data (have|cannot)")
            file = checkpoint_of(tmp_path, step)
            again = fit(trainer_of(tmp_path / f"{step}"), make(), resume=file)
        assert digest(again) == digest(trainer)


class Grow(Callback):
    """Sets the number of rows of a data set after each epoch."""

    def __init__(self, data):
        self.data = data

    def on_epoch_end(self, state, row):
        self.data.x = DATA[: 16 * (state.epoch + 1)]


def test_resume_accepts_a_length_that_changes_between_epochs(tmp_path):
    data = Rows(DATA[:16])
    with pytest.warns(UserWarning, match="have 4 batches in epoch 2, but their length is 2"):
        trainer = fit(trainer_of(tmp_path, Grow(data), every_steps=1, keep=99), DataLoader(data, 8))
    assert trainer.step == 6
    data.x = DATA[:16]
    with pytest.raises(ValueError, match="order = that of a DataLoader"):
        fit(trainer_of(tmp_path / "other"), DATA, resume=checkpoint_of(tmp_path, 5))


def test_fit_trains_on_data_that_claim_to_be_empty():
    trainer = run(make_linear(), LeastSquares(), DataLoader(Claimed(0), 8))
    assert trainer.step == 2 * STEPS
    assert trainer.state.plan.num_steps is None


def test_single_examples_are_not_expected_because_of_a_wrong_length():
    class Pairs(LeastSquares):
        def forward(self, model, batch):
            if len(batch) < 2:
                raise ValueError("a pass of one example")
            return super().forward(model, batch)

    for data in (Claimed(33), DataLoader(Rows(DATA), 8, sampler=Listed(33))):
        assert run(make_linear(), Pairs(), data, epochs=1).step == STEPS


class Rates(Callback):
    """Records the learning rate of every step."""

    def on_fit_start(self, state):
        self.rates = []

    def on_step_end(self, state, output):
        self.rates.append(state.optimizers["model"].param_groups[0]["lr"])


@pytest.mark.filterwarnings("ignore:the training data have")
@for_each(
    "optimization, keeps_last",
    [
        (Optimization(schedule="linear"), True),
        (Optimization(schedule="cosine"), True),
        (Optimization(schedule="linear", warmup_steps=2), True),
        (
            Optimization(
                scheduler=lambda o, total: OneCycleLR(o, 0.1, total), scheduler_interval="step"
            ),
            True,
        ),
        (
            Optimization(scheduler=lambda o: ExponentialLR(o, 0.9), scheduler_interval="step"),
            False,
        ),
    ],
)
def test_schedules_of_more_steps_than_the_length_keep_their_last_rate(optimization, keeps_last):
    rates = Rates()
    data = DataLoader(Claimed(20), 8)  # 3 batches; there are 5
    run(make_linear(), LeastSquares(), data, optimization=optimization, callbacks=[rates])
    assert len(rates.rates) == 10
    assert min(rates.rates) >= 0
    assert (len(set(rates.rates[6:])) == 1) == keeps_last


@for_each("length, value", [(20, 1.0), (60, 9 / 15)])
def test_schedules_in_fractions_refer_to_the_length(length, value):
    objective = ELBO(beta=Linear(0.0, 1.0, fraction=1.0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = run(make_vae(), objective, DataLoader(Claimed(length), 8))
    assert trainer.objective.beta.value == pytest.approx(value)
    unfinished = [w for w in caught if "a schedule does not end" in str(w.message)]
    assert len(unfinished) == (value < 1)


# Without the last batch ---------------------------------------------------------------------------


class Seen(LeastSquares):
    """Objective that records the batches it trained on."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, model, batch):
        if self.training:
            self.batches.append(batch.x)
        return super().forward(model, batch)


DROP = {"drop_last": True}
FORMS = {
    "tensor": (lambda: DATA, {}),
    "Dataset": (lambda: Rows(DATA), {}),
    "workers": (lambda: Rows(DATA), {"workers": 2}),
}


@pytest.mark.parametrize("name", FORMS)
def test_drop_last_leaves_out_other_examples_in_each_epoch(name):
    make, options = FORMS[name]
    trainer = run(make_linear(), Seen(), make(), DATA, fit={**DROP, **options})
    orders = [epoch_order(len(DATA), 0, epoch)[:32] for epoch in range(2)]
    assert torch.equal(torch.cat(trainer.objective.batches[-8:]), DATA[torch.cat(orders)])
    assert trainer.history["step"] == [4, 8]
    assert trainer.state.plan.total_steps == 8
    assert "37 examples, 2 epochs of 4 steps" in trainer.state.plan.headline


def test_drop_last_weights_the_examples_that_are_used_and_validates_on_all():
    still = Optimization(learning_rate=0.0)
    trainer = run(make_linear(), LeastSquares(), DATA, DATA, epochs=1, optimization=still, fit=DROP)
    errors = (make_linear()(DATA) - DATA).square().sum(1)
    used = errors[epoch_order(len(DATA), 0, 0)[:32]]
    assert trainer.history["train/loss"] == pytest.approx([used.mean().item()], rel=1e-6)
    assert trainer.history["validation/loss"] == pytest.approx([errors.mean().item()], rel=1e-6)


@pytest.mark.parametrize("name", FORMS)
def test_drop_last_resumes_bitwise(name, tmp_path):
    make, options = FORMS[name]
    settings = {**DROP, **options}
    trainer = fit(trainer_of(tmp_path, every_steps=1, keep=99), make(), **settings)
    for step in (3, 4, 5):
        file = checkpoint_of(tmp_path, step)
        again = fit(trainer_of(tmp_path / f"{step}"), make(), resume=file, **settings)
        assert digest(again) == digest(trainer)
    with pytest.raises(ValueError, match="batches per epoch = 4, got 5"):
        fit(trainer_of(tmp_path), make(), **options, **AUTO)


def test_drop_last_of_a_stream_and_of_a_loader_that_has_it():
    for data in (Unsized(DATA), DataLoader(Rows(DATA), BATCH_SIZE, drop_last=True)):
        assert run(make_linear(), LeastSquares(), data, fit=DROP).step == 8


@for_each(
    "data, message",
    [
        (DATA[:7], r"one full batch with drop_last=True, got 7 examples for batch_size=8: use a"),
        (Rows(DATA[:7]), r"got 7 examples for batch_size=8: use a smaller batch_size"),
        (Unsized(DATA[:7]), r"yielded no batch"),
        (
            DataLoader(Rows(DATA), 8),
            r"got a DataLoader that keeps its last batch: use",
        ),
    ],
)
def test_drop_last_is_refused_where_nothing_is_left_or_a_loader_keeps_its_batch(data, message):
    with pytest.raises(ValueError, match=f"^(the )?training data.*{message}"):
        run(make_linear(), LeastSquares(), data, fit=DROP)


def test_drop_last_without_a_remainder_changes_nothing():
    first = run(make_linear(), LeastSquares(), DATA[:32], fit=DROP)
    second = run(make_linear(), LeastSquares(), DATA[:32])
    assert same(first.model, second.model)
    assert rows(first.history) == rows(second.history)
