"""Training in float16 with a scale of the loss."""

import pytest
import torch
from helpers.cases import for_each
from helpers.training import (
    DATA,
    STEPS,
    LeastSquares,
    Recorder,
    make_linear,
    make_vae,
    run,
    same,
    weights_of,
)

import tinyvae.training.acceleration.options as module
from tinyvae import ELBO, Callback, Checkpoint, Optimization, Speed
from tinyvae.core import ObjectiveOutput
from tinyvae.errors import NonFiniteError
from tinyvae.training import ExponentialMovingAverage
from tinyvae.training.acceleration.loss_scale import LossScale

HALF = Speed(precision="float16")
SKIPPED, SCALE = "train/batch_skipped_updates", "train/batch_loss_scale"


@pytest.fixture(autouse=True)
def _halves(monkeypatch):
    monkeypatch.setattr(module, "half_is_faster", lambda _device, _dtype: True)


def test_loss_scale_is_halved_by_an_overflow_and_doubled_after_an_interval(monkeypatch):
    monkeypatch.setattr(LossScale, "INTERVAL", 3)
    scale, values = LossScale(), []
    for overflows in (True, True, False, False, False, False, False, True, False):
        scale.update(overflows=overflows)
        values.append(scale.value / LossScale.START)
    assert values == [0.5, 0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 0.25, 0.25]
    scale.value = LossScale.LARGEST
    for _ in range(6):
        scale.update(overflows=False)
    assert scale.value == LossScale.LARGEST


def test_float16_learns_as_well_as_float32(monkeypatch):
    monkeypatch.setattr(LossScale, "START", 2.0**8)

    def history(speed):
        options = {"epochs": 12, "optimization": Optimization(0.02), "speed": speed}
        return run(make_vae(), ELBO(), DATA, DATA, **options).history

    half, full = history(HALF), history(None)
    assert half["train/loss"] != full["train/loss"]
    assert half["train/loss"][-1] < 0.97 * half["train/loss"][0]
    for part in ("train/loss", "validation/loss"):
        assert half[part] == pytest.approx(full[part], rel=0.01)
    assert half[SKIPPED] == [0.0] * 12
    assert half[SCALE] == [LossScale.START] * 12


class Scaled(LeastSquares):
    """Squared error times a factor, in the dtype of the network."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, model, batch):
        output = super().forward(model, batch)
        return ObjectiveOutput({"model": self.factor * output.losses["model"]}, {})


def gradients(factor, speed, start, monkeypatch):
    """Return the gradients of the first step."""
    monkeypatch.setattr(LossScale, "START", start)
    seen = []

    class Reader(Callback):
        def on_fit_start(self, state):
            (optimizer,) = state.optimizers.values()
            group = state.groups["model"]
            optimizer.register_step_pre_hook(
                lambda *_: seen.append([p.grad.clone() for p in group])
            )

    run(make_linear(), Scaled(factor), callbacks=[Reader()], speed=speed, epochs=1)
    return seen[0]


def test_loss_scale_saves_gradients_from_underflow(monkeypatch):
    exact = gradients(1e-7, None, 1.0, monkeypatch)
    scaled = gradients(1e-7, HALF, 2.0**16, monkeypatch)
    for value, expected in zip(scaled, exact, strict=True):
        torch.testing.assert_close(value, expected, rtol=0.05, atol=1e-9)
    lost = gradients(1e-7, HALF, 1.0, monkeypatch)
    assert any((a - b).norm() > 0.2 * b.norm() for a, b in zip(lost, exact, strict=True))


@for_each("average", [None, ExponentialMovingAverage(0.9)])
def test_overflow_skips_the_update_and_halves_the_scale(average, monkeypatch):
    monkeypatch.setattr(LossScale, "START", 2.0**20)
    recorder = Recorder()
    optimization = Optimization(1e-2, average=average, clip_norm=1.0)
    trainer = run(
        make_linear(),
        Scaled(10.0),
        callbacks=[recorder],
        optimization=optimization,
        speed=HALF,
        record_every=1,
        epochs=3,
    )
    updates = trainer.history.updates
    skipped = [row["batch_skipped_updates"] == 1 for row in updates]
    num = sum(skipped)
    assert 1 < num < len(updates)
    assert skipped == [True] * num + [False] * (len(updates) - num)
    scales = [row["batch_loss_scale"] for row in updates]
    assert scales == [2.0 ** (20 - min(index, num)) for index in range(len(updates))]
    pairs = zip(recorder.weights, recorder.weights[1:], strict=False)
    assert [same(before, after) for before, after in pairs] == skipped
    assert trainer.history[SKIPPED][0] > 0
    assert trainer.state.average.count == (0 if average is None else len(updates) - num)
    steps = {int(s["step"]) for s in trainer.optimizers["model"].state.values()}
    assert steps == {len(updates) - num}


def test_infinite_gradient_that_no_scale_helps_is_an_error(monkeypatch):
    class Corner(LeastSquares):
        def forward(self, model, batch):
            output = super().forward(model, batch)
            error = output.losses["model"]
            return ObjectiveOutput({"model": error + (error - error.detach()).sqrt()}, {})

    monkeypatch.setattr(LossScale, "START", 4.0)
    model = make_linear()
    before = weights_of(model)
    with pytest.raises(NonFiniteError, match=r"step 3 .* gradient of .* compute in float16"):
        run(model, Corner(), speed=HALF)
    assert same(model, before)


def test_infinite_loss_is_an_error_at_once():
    class Infinite(LeastSquares):
        def forward(self, model, batch):
            output = super().forward(model, batch)
            return ObjectiveOutput({"model": output.losses["model"] / 0}, {})

    with pytest.raises(NonFiniteError, match=r"step 1 .* loss = inf"):
        run(make_linear(), Infinite(), speed=HALF)


def test_resumed_run_in_float16_is_bitwise_that_without_interruption(tmp_path, monkeypatch):
    monkeypatch.setattr(LossScale, "START", 2.0**20)
    monkeypatch.setattr(LossScale, "INTERVAL", 3)

    class Stop(Callback):
        def on_step_end(self, state, output):
            if state.step == STEPS + 2:
                state.stop("killed", resumable=True)

    options = {"speed": HALF, "epochs": 3, "record_every": 1}
    whole = run(make_linear(), Scaled(10.0), **options)
    run(make_linear(), Scaled(10.0), callbacks=[Checkpoint(tmp_path), Stop()], **options)
    resumed = run(
        make_linear(),
        Scaled(10.0),
        callbacks=[Checkpoint(tmp_path)],
        fit={"resume": "auto"},
        **options,
    )
    assert same(resumed.model, whole.model)
    assert resumed.history.updates == whole.history.updates
    assert len({row["batch_loss_scale"] for row in whole.history.updates}) > 3
    assert resumed.state.loss_scale.state_dict() == whole.state.loss_scale.state_dict()


def test_parts_of_a_batch_in_float16_equal_those_in_float32(monkeypatch):
    monkeypatch.setattr(LossScale, "START", 2.0**8)
    half, full = (
        run(
            make_linear(), LeastSquares(), speed=speed, optimization=Optimization(microbatch_size=3)
        )
        for speed in (HALF, None)
    )
    assert half.history["train/loss"] == pytest.approx(full.history["train/loss"], rel=0.01)
    assert half.history[SKIPPED] == [0.0, 0.0]


@for_each(
    "saved",
    [
        {"value": 0.5, "num_updates": 0},
        {"value": float("nan"), "num_updates": 0},
        {"value": "1", "num_updates": 0},
        {"value": 2.0, "num_updates": -1},
        {"value": 2.0, "num_updates": 2000},
        {"value": 2.0, "num_updates": 1.0},
    ],
)
def test_loss_scale_that_makes_no_sense_is_refused(saved):
    scale = LossScale()
    with pytest.raises(ValueError, match="expected a"):
        scale.load_state_dict(saved)
    assert scale.state_dict() == LossScale().state_dict()


def test_speed_refuses_a_compiled_run_in_float16():
    with pytest.raises(ValueError, match="compile=False with precision='float16'"):
        Speed(compile=True, precision="float16")
