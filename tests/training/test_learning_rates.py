"""Learning rates that are changed between two calls of ``fit``."""

import pytest
from helpers.cases import for_each
from helpers.training import DATA, STEPS, Adversarial, LeastSquares, make_linear, run, same
from torch.optim import SGD
from torch.optim.lr_scheduler import ConstantLR, ReduceLROnPlateau, StepLR

from tinyvae import Callback, Optimization, Trainer


class Rates(Callback):
    """Learning rates with which the updates were made."""

    def __init__(self):
        self.used = []

    def on_fit_start(self, state):
        self.hooks = [
            optimizer.register_step_pre_hook(
                lambda optimizer, *_: self.used.append(optimizer.param_groups[0]["lr"])
            )
            for optimizer in state.optimizers.values()
        ]

    def on_fit_end(self, state):
        for hook in self.hooks:
            hook.remove()


def first_call(**settings):
    """Return a Trainer after a call of ``fit``, and the rates of later updates."""
    trainer = run(make_linear(), LeastSquares(), optimization=Optimization(**settings), epochs=1)
    rates = Rates()
    trainer.callbacks = [rates]
    return trainer, rates.used


def set_rate(trainer, rate):
    for group in trainer.optimizers["model"].param_groups:
        group["lr"] = rate


def fit_again(trainer):
    trainer.fit(DATA, epochs=1, batch_size=8)


def test_optimizers_are_those_of_the_run():
    trainer = Trainer(make_linear(), Adversarial(), device="cpu", progress=False)
    assert trainer.optimizers == {}
    trainer.fit(DATA, epochs=1, batch_size=8)
    assert list(trainer.optimizers) == ["model", "discriminator"]
    before = dict(trainer.optimizers)
    trainer.fit(DATA, epochs=1, batch_size=8)
    assert all(trainer.optimizers[name] is optimizer for name, optimizer in before.items())


@for_each(
    "settings",
    [
        {},
        {"optimizer": SGD},
        {"scheduler": lambda o: StepLR(o, 10)},
        {"scheduler": lambda o: ReduceLROnPlateau(o), "monitor": "train/loss"},
        {"scheduler": lambda o: ConstantLR(o, 1.0)},
    ],
)
def test_changed_rate_is_used_in_the_next_call(settings):
    trainer, used = first_call(learning_rate=1e-2, **settings)
    set_rate(trainer, 3e-3)
    fit_again(trainer)
    assert used == [3e-3] * STEPS
    assert trainer.history["learning_rate"] == [1e-2, 3e-3]
    fit_again(trainer)
    assert used == [3e-3] * 2 * STEPS


def test_schedule_starts_from_the_changed_rate():
    trainer, used = first_call(learning_rate=1e-2, schedule="linear")
    assert trainer.optimizers["model"].param_groups[0]["lr"] == pytest.approx(0)
    set_rate(trainer, 5e-3)
    fit_again(trainer)
    expected = [5e-3 * (1 - step / STEPS) for step in range(STEPS)]
    assert used == pytest.approx(expected)
    fit_again(trainer)  # the changed rate is the first one of all later calls
    assert used == pytest.approx(2 * expected)


def test_schedule_of_a_replaced_optimization_starts_from_the_changed_rate():
    trainer, used = first_call(learning_rate=1e-2)
    moments = trainer.optimizers["model"].state
    set_rate(trainer, 5e-3)
    trainer.optimization = Optimization(1e-2, schedule="linear", clip_norm=1.0)
    fit_again(trainer)
    assert used == pytest.approx([5e-3 * (1 - step / STEPS) for step in range(STEPS)])
    assert trainer.optimizers["model"].state is moments


def test_rate_of_a_replaced_optimization_replaces_the_changed_one():
    trainer, used = first_call(learning_rate=1e-2)
    set_rate(trainer, 5e-3)
    trainer.optimization = Optimization(2e-3)
    fit_again(trainer)
    assert used == [2e-3] * STEPS


def test_changed_rate_of_zero_keeps_the_weights():
    trainer, _ = first_call(learning_rate=1e-2)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    set_rate(trainer, 0.0)
    fit_again(trainer)
    assert same(trainer.model, before)
