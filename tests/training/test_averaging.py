"""Averages of weights."""

import pytest
import torch
from helpers.cases import for_each
from helpers.training import DATA, STEPS, Recorder, Unsized, make_vae, run, same, weights_of
from torch import nn
from torch.optim import SGD

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    BernoulliLikelihood,
    Callback,
    Checkpoint,
    EarlyStopping,
    GaussianEncoder,
    Optimization,
    Trainer,
)
from tinyvae.training import ExponentialMovingAverage, StochasticWeightAverage
from tinyvae.training.checkpoints.checkpoint import read_checkpoint
from tinyvae.training.checkpoints.compatibility import upgrade

EMA = ExponentialMovingAverage(0.9)
SWA = StochasticWeightAverage(0.5)


class Trace(Callback):
    """Copies of the weights at each hook, and of the averages after each step."""

    def __init__(self):
        self.steps, self.averages, self.validated, self.ends = [], [], [], []

    def on_step_end(self, state, output):
        self.steps.append(weights_of(state.model))
        self.averages.append({name: t.clone() for name, t in state.average.tensors.items()})

    def on_validation_start(self, state):
        self.validated.append(weights_of(state.model))

    def on_epoch_end(self, state, row):
        self.ends.append(weights_of(state.model))


def fit(average, model=None, callbacks=(), **options):
    optimization = Optimization(1e-2, average=average, schedule="linear")
    model = make_vae() if model is None else model
    trace = Trace()
    options = {"validation": DATA, "optimization": optimization, **options}
    return run(model, ELBO(), callbacks=[trace, *callbacks], **options), trace


def assert_mean(average, weights, shares):
    """Assert that an average holds the sum of weights times shares."""
    for name, value in average.items():
        values = torch.stack([w[name].double() for w in weights])
        shape = [len(weights)] + [1] * (values.dim() - 1)
        expected = (values * torch.tensor(shares, dtype=torch.float64).view(shape)).sum(0)
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-13)


# Closed forms -------------------------------------------------------------------------------------


def test_exponential_average_is_its_closed_form(float64):
    _, trace = fit(EMA, train=DATA.double())
    assert len(trace.steps) == 2 * STEPS
    for count in range(1, 2 * STEPS + 1):
        powers = [0.9 ** (count - k) for k in range(1, count + 1)]
        shares = [power / sum(powers) for power in powers]
        assert_mean(trace.averages[count - 1], trace.steps[:count], shares)


@for_each("decay", [0.5, 0.999, 1 - 1e-9])
def test_exponential_average_of_equal_weights_has_shares_of_sum_one(decay):
    average, total = ExponentialMovingAverage(decay), 0.0
    for count in range(1, 300):
        share = average.share(count)
        assert share == pytest.approx(1 / sum(decay**k for k in range(count)), rel=1e-6)
        total = total * (1 - share) + share
    assert total == pytest.approx(1, rel=1e-12)


@for_each("start, first", [(0.0, 0), (0.5, 5), (0.6, 6), (0.61, 7), (0.95, 10), (0.9, 9)])
def test_stochastic_average_is_the_mean_of_the_last_weights(start, first):
    if first == 2 * STEPS:
        with pytest.warns(UserWarning, match="the run ends before an update counts"):
            trainer, trace = fit(StochasticWeightAverage(start))
        assert same(trainer.model, trace.steps[-1])
        return
    _, trace = fit(StochasticWeightAverage(start))
    assert not any(trace.averages[:first])
    weights = trace.steps[first:]
    for name, value in trace.averages[-1].items():
        expected = torch.stack([w[name] for w in weights]).double().mean(0)
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-6)


def test_stochastic_average_of_a_stream_starts_with_an_epoch():
    _, trace = fit(
        SWA, train=Unsized(DATA), validation=None, optimization=Optimization(average=SWA)
    )
    assert [bool(average) for average in trace.averages] == [False] * STEPS + [True] * STEPS


def test_average_holds_the_buffers_that_training_changes():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    network.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    encoder = GaussianEncoder(network, 2, features=8)
    vae = VAE(encoder, MLP(2, (8,), out_shape=4), BernoulliLikelihood())
    _, trace = fit(StochasticWeightAverage(0.0), vae, train=DATA[:32])
    name = "encoder.network.1.running_var"
    expected = torch.stack([w[name] for w in trace.steps]).mean(0)
    torch.testing.assert_close(trace.averages[-1][name], expected)
    names = trace.averages[-1].keys()
    assert not any("mask" in name or "num_batches" in name for name in names)


# Use ----------------------------------------------------------------------------------------------


@for_each("average", [EMA, StochasticWeightAverage(0.0)])
def test_run_is_validated_with_the_average_and_trained_without(average):
    averaged, trace = fit(average)
    plain, other = fit(None)
    for left, right in zip(trace.steps, other.steps, strict=True):
        assert same(left, right)
    assert averaged.history["train/loss"] == plain.history["train/loss"]
    assert averaged.history["validation/loss"] != plain.history["validation/loss"]
    for epoch in range(2):
        expected = trace.steps[(epoch + 1) * STEPS - 1] | trace.averages[(epoch + 1) * STEPS - 1]
        assert same(trace.validated[epoch], expected)
        assert same(trace.ends[epoch], expected)
    assert same(averaged.model, trace.steps[-1] | trace.averages[-1])


def test_model_ends_with_the_average_that_was_validated_last():
    trainer, _ = fit(EMA)
    again = run(trainer.model, ELBO(), validation=DATA, optimization=Optimization(0.0), epochs=1)
    assert again.history["validation/loss"] == trainer.history["validation/loss"][-1:]


def test_second_call_of_fit_continues_from_the_weights_without_the_average():
    averaged, trace = fit(EMA)
    plain, other = fit(None)
    for trainer in (averaged, plain):
        trainer.fit(DATA, DATA, epochs=1, batch_size=8)
    for left, right in zip(trace.steps, other.steps, strict=True):
        assert same(left, right)
    assert averaged.state.average.count == 3 * STEPS
    assert same(averaged.model, trace.steps[-1] | trace.averages[-1])


def test_second_call_of_fit_starts_the_stochastic_average_again():
    trainer, trace = fit(SWA)
    trainer.fit(DATA, DATA, epochs=2, batch_size=8)
    weights = trace.steps[-STEPS:]
    for name, value in trainer.state.average.tensors.items():
        torch.testing.assert_close(value, torch.stack([w[name] for w in weights]).mean(0))


def test_second_call_of_fit_continues_from_weights_that_were_changed():
    trainer, trace = fit(EMA)
    changed = weights_of(make_vae())
    trainer.model.load_state_dict(changed)
    recorder = Recorder()
    trainer.callbacks.append(recorder)
    trainer.fit(DATA, DATA, epochs=1, batch_size=8)
    assert same(recorder.weights[0], changed)
    assert trainer.state.average.count == STEPS
    assert same(
        trace.averages[2 * STEPS], {n: trace.steps[2 * STEPS][n] for n in trace.averages[0]}
    )


def test_average_that_is_turned_off_leaves_the_weights_of_the_last_update():
    averaged, trace = fit(EMA)
    last = trace.steps[-1]
    averaged.optimization = Optimization(0.0, optimizer=SGD)
    averaged.fit(DATA, epochs=1, batch_size=8)
    assert same(averaged.model, last)


def test_early_stopping_restores_the_best_average():
    stopping = EarlyStopping("validation/loss")
    trainer, trace = fit(EMA, callbacks=[stopping], epochs=4)
    best = stopping.best_epoch
    assert same(trainer.model, trace.validated[best - 1])


def test_error_in_validation_restores_the_weights():
    class Failing(Callback):
        def on_validation_end(self, state):
            raise RuntimeError("no")

    before, after = Recorder(), Recorder()
    optimization = Optimization(average=EMA)
    trainer = Trainer(make_vae(), ELBO(), optimization, device="cpu", progress=False)
    trainer.callbacks = [before, Failing()]
    with pytest.raises(RuntimeError, match="no"):
        trainer.fit(DATA, DATA, epochs=1, batch_size=8)
    assert not same(trainer.model, before.weights[-1])  # it ends with the average
    trainer.callbacks = [after]
    trainer.fit(DATA, DATA, epochs=1)
    assert same(after.weights[0], before.weights[-1])


# Checkpoints --------------------------------------------------------------------------------------


@for_each("average", [EMA, StochasticWeightAverage(0.3)])
def test_resumed_run_has_bitwise_the_same_average(average, tmp_path):
    folder = tmp_path / average.__class__.__name__
    whole, _ = fit(average, epochs=3)

    class Kill(Callback):
        def on_step_end(self, state, output):
            if state.step == 8:
                state.stop("killed", resumable=True)

    optimization = Optimization(1e-2, average=average, schedule="linear")
    options = {"validation": DATA, "optimization": optimization, "epochs": 3}
    run(make_vae(), ELBO(), callbacks=[Checkpoint(folder), Kill()], **options)
    resumed = run(
        make_vae(), ELBO(), callbacks=[Checkpoint(folder)], fit={"resume": "auto"}, **options
    )
    assert same(resumed.model, whole.model)
    assert same(resumed.state.average.tensors, whole.state.average.tensors)
    assert resumed.history["validation/loss"] == whole.history["validation/loss"]
    replace = {"encoder.network": make_vae().encoder.network}
    assert same(VAE.load(folder / "model.safetensors", replace=replace), whole.model)
    complete = run(
        make_vae(), ELBO(), callbacks=[Checkpoint(folder)], fit={"resume": "auto"}, **options
    )
    assert same(complete.model, whole.model)


def saved_state(path, **options):
    run(make_vae(), ELBO(), callbacks=[Checkpoint(path)], **options)
    states = []
    read_checkpoint(path, states.append)
    return states[0]


def test_checkpoint_without_an_average_starts_one(tmp_path):
    state = saved_state(tmp_path, epochs=1)
    del state["average"]  # as in files of earlier versions
    assert upgrade(state)["average"] == {}
    optimization = Optimization(average=EMA)
    callbacks = [Checkpoint(tmp_path)]
    with pytest.warns(UserWarning, match="begun for 1 epochs|optimization.average = Exponential"):
        resumed = run(
            make_vae(),
            ELBO(),
            callbacks=callbacks,
            optimization=optimization,
            fit={"resume": "auto"},
        )
    assert resumed.state.average.count == STEPS


DAMAGES = {
    "count": lambda average: average.update(count=-1),
    "number": lambda average: average.update(count=0.5),
    "name": lambda average: average["tensors"].update(other=torch.zeros(2)),
    "shape": lambda average: average["tensors"].update(
        {name: t[..., None] for name, t in average["tensors"].items()}
    ),
    "dtype": lambda average: average["tensors"].update(
        {name: t.double() for name, t in average["tensors"].items()}
    ),
    "keys": lambda average: average.pop("tensors"),
}


@for_each("damage", DAMAGES.values())
def test_average_of_another_model_is_refused(damage):
    trainer, _ = fit(EMA)
    saved = trainer.state.average.state_dict()
    saved["tensors"] = dict(saved["tensors"])
    trainer.state.average.check_state(saved)
    damage(saved)
    with pytest.raises((ValueError, KeyError, AttributeError)):
        trainer.state.average.check_state(saved)


# Settings -----------------------------------------------------------------------------------------


def test_wrong_averages_are_refused():
    for decay in (0.0, 1.0, -0.5, 1.5, float("nan")):
        with pytest.raises(ValueError, match="decay between 0 and 1"):
            ExponentialMovingAverage(decay)
    for start in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="start as a share in"):
            StochasticWeightAverage(start)
    for average in (0.999, "ema", ExponentialMovingAverage):
        with pytest.raises(TypeError, match="Optimization expects average as an Exponential"):
            Optimization(average=average)
