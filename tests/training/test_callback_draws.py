"""Random numbers that callbacks draw. The run does not depend on them."""

import random

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from helpers.training import (
    DATA,
    STEPS,
    After,
    LeastSquares,
    make_linear,
    make_vae,
    raises,
    rows,
    run,
    same,
)
from torch.utils.data import DataLoader, Dataset

from tinyvae import ELBO, Callback, Checkpoint, EarlyStopping

HOOKS = [name for name in vars(Callback) if name.startswith("on_")]


def draw():
    torch.rand(3)
    np.random.rand(3)  # noqa: NPY002
    random.random()


def drawing(hook):
    """Return a callback that draws in one hook."""

    def method(self, state, *args, **options):
        draw()

    return type("Draws", (Callback,), {hook: method})()


class Noisy(Dataset):
    """Items that draw from all default generators."""

    def __len__(self):
        return len(DATA)

    def __getitem__(self, index):
        flips = torch.rand(4) + np.random.rand() + random.random()  # noqa: NPY002
        return (DATA[index] - (flips < 0.3).float()).abs()


DATA_KINDS = {
    "tensor": lambda: DATA,
    "dataset": Noisy,
    "loader": lambda: DataLoader(Noisy(), 8, shuffle=True),
}


@for_each(("hook", "kind"), [(hook, kind) for hook in HOOKS for kind in DATA_KINDS])
def test_callbacks_that_draw_do_not_change_the_run(hook, kind):
    data = DATA_KINDS[kind]
    plain = run(make_vae(dropout=0.2), ELBO(), data(), data())
    drawn = run(make_vae(dropout=0.2), ELBO(), data(), data(), callbacks=[drawing(hook)])
    assert same(plain.model, drawn.model)
    assert rows(plain.history) == rows(drawn.history)


def test_validation_metrics_and_transforms_that_draw_do_not_change_other_parts():
    def transform(x, generator):
        draw()
        return x

    class Draws(ELBO):
        def forward(self, model, batch):
            output = super().forward(model, batch)
            if not model.training:
                draw()
            return output

    plain = run(make_vae(), ELBO(), DATA, DATA)
    assert same(plain.model, run(make_vae(), Draws(), DATA, DATA).model)
    assert same(plain.model, run(make_vae(), ELBO()).model)
    once, again = (run(make_vae(), ELBO(), fit={"transform": transform}) for _ in range(2))
    assert same(once.model, again.model)


class Keeps(Callback):
    """Keeps a number that it draws after each step."""

    def __init__(self):
        self.numbers = []

    def on_step_end(self, state, output):
        self.numbers.append(torch.rand(()).item())

    def on_epoch_end(self, state, row):
        row["draw"] = self.numbers[-1]


def test_callbacks_draw_other_numbers_after_each_step_than_the_run():
    keeps, steps = Keeps(), 2 * STEPS
    run(make_linear(), LeastSquares(), callbacks=[keeps])  # a run that draws nothing itself
    assert len(set(keeps.numbers)) == steps
    other = Keeps()
    run(make_linear(), LeastSquares(), callbacks=[other], seed=1)
    assert not set(keeps.numbers) & set(other.numbers)


def test_callbacks_draw_the_same_numbers_in_a_resumed_run(tmp_path):
    def fit(folder, *callbacks):
        checkpoint = Checkpoint(folder, every_steps=1, every_minutes=None)
        callbacks = [checkpoint, Keeps(), *callbacks, EarlyStopping("train/elbo_nats")]
        return run(make_vae(), ELBO(), callbacks=callbacks, fit={"resume": "auto"})

    complete = fit(tmp_path / "complete")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", After(STEPS + 2, raises(KeyboardInterrupt())))
    resumed = fit(tmp_path / "run")
    assert rows(resumed.history) == rows(complete.history)
    assert same(resumed.model, complete.model)


def test_callbacks_that_draw_leave_the_global_generators():
    model = make_linear()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    run(model, LeastSquares(), callbacks=[drawing(hook) for hook in HOOKS])
    assert torch.equal(torch.rand(2), expected)
