"""Whole updates by one graph. The traced graph runs without a compiler."""

from functools import partial

import pytest
import torch
from helpers.training import (
    BATCH_SIZE,
    DATA,
    STEPS,
    LeastSquares,
    Recorder,
    make_linear,
    make_vae,
    run,
    same,
)
from torch import nn
from torch.optim import SGD, Adam, AdamW

from tinyvae import ELBO, Callback, Optimization, Speed
from tinyvae.core import ObjectiveOutput
from tinyvae.errors import NonFiniteError
from tinyvae.training.acceleration.compiled_step import CompiledStep

COMPILED = Speed(compile=True)


@pytest.fixture(autouse=True)
def _traced(monkeypatch):
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, *_inputs, **_options: graph)


@pytest.fixture
def updates(monkeypatch):
    """Record for each call of a graph if it made the update."""
    made, update = [], CompiledStep.update

    def spy(step, batch, updates):
        output = update(step, batch, updates)
        made.append(output is not None)
        return output

    monkeypatch.setattr(CompiledStep, "update", spy)
    return made


def both(make_model, objective=ELBO, **options):
    """Return the weights after each step of the run with whole updates, and of the plain run."""
    weights = []
    for speed in (COMPILED, Speed()):
        recorder = Recorder()
        callbacks = [recorder, *options.get("callbacks", ())]
        run(make_model(), objective(), **{**options, "speed": speed, "callbacks": callbacks})
        weights.append(recorder.weights)
    return weights


def assert_close(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for name in b:
            torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)


ADAMS = {
    "adam": partial(Adam, lr=0.02),
    "weight decay": partial(Adam, lr=0.02, weight_decay=0.1),
    "adamw": partial(AdamW, lr=0.02, weight_decay=0.1),
    "betas": partial(Adam, lr=0.02, betas=(0.5, 0.7), eps=1e-3),
    "maximize": partial(AdamW, lr=1e-3, maximize=True),
}


@pytest.mark.parametrize("name", ADAMS)
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_update_is_that_of_fused_adam(updates, name, clip_norm):
    optimization = Optimization(optimizer=partial(ADAMS[name], fused=True), clip_norm=clip_norm)
    assert_close(*both(make_vae, optimization=optimization))
    assert updates == [False, *[True] * (STEPS - 2), False, *[True] * (STEPS - 1), False]


def test_update_follows_rates_of_groups_and_of_a_scheduler(updates):
    optimization = Optimization(
        0.02, learning_rates={"decoder": 0.005}, schedule="cosine", warmup_steps=2
    )
    assert_close(*both(make_vae, optimization=optimization))
    assert any(updates)


class Changes(Callback):
    """Changes a setting of the optimizer that is a constant of the graph."""

    def on_step_end(self, state, output):
        if state.step == 3:
            state.optimizers["model"].param_groups[0]["betas"] = (0.1, 0.2)


def test_update_leaves_changed_settings_to_the_plain_path(updates):
    assert_close(*both(make_vae, callbacks=[Changes()]))
    assert not any(updates[3:])


def test_compile_computes_gradients_for_other_optimizers(updates):
    optimization = Optimization(optimizer=partial(SGD, lr=0.1))
    assert_close(*both(make_vae, optimization=optimization))
    assert updates == []


class Spoiled(LeastSquares):
    """Squared error that is not finite if a row holds 9, or whose gradient is far too large."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, model, batch):
        error = (model(batch.x) - batch.x).square().sum(1)
        factor = torch.where(batch.x[:, 0] == 9.0, self.factor, 1.0)
        loss = (factor * error).mean()
        return ObjectiveOutput({"model": loss}, {"error_nats": loss.detach()})


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e25])
def test_update_changes_nothing_if_a_value_is_not_finite(updates, factor):
    spoiled = DATA.clone()
    spoiled[:] = torch.where(torch.arange(37)[:, None] == 20, 9.0, DATA)
    results = []
    for speed in (COMPILED, Speed()):
        model = make_linear()
        with pytest.raises(NonFiniteError) as caught:
            run(model, Spoiled(factor), spoiled, speed=speed)
        results.append((model, str(caught.value)))
    (compiled, message), (plain, expected) = results
    assert message.split(" = ")[0] == expected.split(" = ")[0]
    for p, q in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert updates[-1] is False


class Counting(nn.Module):
    """Linear layer with a running mean that it does not use."""

    def __init__(self):
        super().__init__()
        self.linear = make_linear()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        with torch.no_grad():
            self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        return self.linear(x)


def test_update_keeps_running_statistics(updates):
    assert_close(*both(Counting, LeastSquares))
    assert any(updates)


def test_update_is_not_made_if_a_running_statistic_is_not_finite(updates):
    class Overflowing(Counting):
        def forward(self, x):
            with torch.no_grad():
                self.mean.add_(1e38)
            return self.linear(x)

    results = []
    for speed in (COMPILED, Speed()):
        model = Overflowing()
        with pytest.raises(NonFiniteError, match="buffer mean = inf"):
            run(model, LeastSquares(), speed=speed)
        results.append(model)
    assert updates == [False, True, True, False]
    for p, q in zip(results[0].parameters(), results[1].parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert torch.equal(results[0].mean, results[1].mean)


def test_update_draws_the_noise_of_the_plain_path():
    states = []
    for speed in (COMPILED, Speed()):
        run(make_vae(), ELBO(), speed=speed)
        trainer = run(make_vae(), ELBO(), speed=speed, epochs=1)
        states.append(trainer.history["train/kl_nats"])
    assert states[0] == pytest.approx(states[1], rel=1e-5)


def test_optimizer_state_is_that_of_torch(updates):
    trainers = [run(make_vae(), ELBO(), speed=speed) for speed in (COMPILED, Speed())]
    states = [trainer.state.optimizers["model"].state_dict() for trainer in trainers]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for index, expected in states[1]["state"].items():
        for name, value in expected.items():
            torch.testing.assert_close(states[0]["state"][index][name], value, rtol=1e-4, atol=1e-6)
    assert any(updates)


def test_example_of_the_check_changes_no_weights(monkeypatch):
    model, before = make_vae(), make_vae()
    monkeypatch.setattr(CompiledStep, "update", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(model, ELBO(), speed=COMPILED)
    assert same(model, before)
    assert len(DATA) > BATCH_SIZE
