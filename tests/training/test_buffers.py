"""Buffers after a step that fails: those of the step before. Buffers that ``fit`` refuses."""

import math

import pytest
import torch
from helpers.training import DATA, STEPS, LeastSquares, Recorder, make_linear, run, same
from torch import nn

import tinyvae.training.step
from tinyvae import (
    ELBO,
    MLP,
    VAE,
    BernoulliLikelihood,
    Callback,
    Checkpoint,
    Speed,
    Trainer,
)
from tinyvae.core import ObjectiveOutput
from tinyvae.encoders import VectorQuantizedEncoder
from tinyvae.errors import NonFiniteError
from tinyvae.priors import CodePrior
from tinyvae.schedules import Linear, ScheduledWeight
from tinyvae.training.nonfinite import NonFiniteGuard


@pytest.fixture(params=[True, False], ids=["waits", "deferred"])
def guard(request, monkeypatch):
    """Check each step at once, and later as on a GPU."""

    def make_guard(*arguments):
        return NonFiniteGuard(*arguments, waits=request.param)

    monkeypatch.setattr(tinyvae.training.step, "NonFiniteGuard", make_guard)


class OddBuffers(nn.Module):
    """Buffers that are replaced, that change behind torch's back, late, or not at all."""

    def __init__(self):
        super().__init__()
        self.register_buffer("replaced", torch.zeros(4))
        self.register_buffer("hidden", torch.zeros(4))
        self.register_buffer("late", torch.zeros(4))
        self.register_buffer("missing", None)
        self.register_buffer("constant", torch.zeros(1).expand(4))
        self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, h):
        if self.training and torch.is_grad_enabled():
            mean = h.detach().mean(0)
            self.replaced = 0.9 * self.replaced + mean
            self.hidden.data.copy_(mean)
            self.calls += 1
            if self.calls >= 3:
                self.late += mean
                self.missing = mean
        return h


def make_model():
    torch.manual_seed(0)
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), OddBuffers(), spectral)


class Fails(LeastSquares):
    """A least-squares objective with buffers, which fails at one step, counted from 1."""

    def __init__(self, step=0, error=None):
        super().__init__()
        self._bad_step, self._error = step, error
        self.weight = ScheduledWeight(Linear(0.5, 1.0, steps=4))
        self.register_buffer("scale", torch.ones(()))

    def set_step(self, step, total_steps):
        super().set_step(step, total_steps)
        self._is_bad = step + 1 == self._bad_step

    def forward(self, model, batch):
        is_bad = self._is_bad and torch.is_grad_enabled()
        x = batch.x * math.nan if is_bad else batch.x
        loss = self.weight.type_as(x) * (model(x) - x).square().sum(1).mean()
        if torch.is_grad_enabled():
            self.scale.mul_(0.9).add_(loss.detach())
        if is_bad and self._error is not None:
            raise self._error
        return ObjectiveOutput({"model": loss}, {})


def tensors_of(trainer):
    """Return copies of all weights and buffers of model and objective."""
    parts = {"model": trainer.model, "objective": trainer.objective}
    return {
        f"{part}.{name}": tensor.detach().clone()
        for part, module in parts.items()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }


class Copies(Callback):
    """Copies weights and buffers before the first step, and after every step."""

    def on_fit_start(self, state):
        self.seen = [tensors_of(state)]

    def on_step_end(self, state, output):
        self.seen.append(tensors_of(state))


def assert_equal(first, second):
    assert first.keys() == second.keys()
    differing = [name for name in first if not torch.equal(first[name], second[name])]
    assert differing == []


ERRORS = (None, KeyError("planted"), KeyboardInterrupt("planted"))


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("step", [1, 2, 3, 4, STEPS + 1, STEPS + 3])
def test_failed_step_leaves_the_buffers_of_the_step_before(step, error, guard):
    copies = Copies()
    run(make_model(), Fails(), callbacks=[copies])
    trainer = Trainer(make_model(), Fails(step, error), device="cpu", progress=False)
    with pytest.raises(NonFiniteError if error is None else type(error)):
        trainer.fit(DATA, epochs=2, batch_size=8)
    assert_equal(tensors_of(trainer), copies.seen[step - 1])


def test_failed_step_keeps_what_a_callback_wrote_before_it(guard):
    class Writes(Callback):
        def on_step_end(self, state, output):
            if state.step == 3:
                state.model[1].running_mean.fill_(7.0)  # changes in every step
                state.model[2].mask.zero_()  # never changes in a step

    trainer = Trainer(make_model(), Fails(4), callbacks=[Writes()], device="cpu", progress=False)
    with pytest.raises(NonFiniteError, match=r"^step 4 "):
        trainer.fit(DATA, epochs=1, batch_size=8)
    assert trainer.model[1].running_mean.tolist() == [7.0] * 4
    assert not trainer.model[2].mask.any()


def make_quantized():
    torch.manual_seed(0)
    encoder = VectorQuantizedEncoder(MLP(4, (8,)), num_codes=4, latent_dim=2)
    prior = CodePrior(4, latent_dim=2)
    return VAE(encoder, MLP(2, (8,), out_shape=4), BernoulliLikelihood(), prior)


class NanInput(ELBO):
    """An ELBO whose encoder gets NaN in one call in training mode."""

    def __init__(self, call):
        super().__init__()
        self.bad_call, self.calls = call, 0

    def forward(self, model, batch):
        if not model.training:
            return super().forward(model, batch)
        self.calls += 1
        scale = math.nan if self.calls == self.bad_call else 1.0
        hook = model.encoder.network.register_forward_hook(lambda *call: scale * call[-1])
        try:
            return super().forward(model, batch)
        finally:
            hook.remove()


def test_codebook_survives_a_step_that_is_not_finite(guard):
    recorder = Recorder()
    run(make_quantized(), ELBO(), callbacks=[recorder])
    trainer = Trainer(make_quantized(), NanInput(4), device="cpu", progress=False)
    with pytest.raises(NonFiniteError, match=r"^step 4 "):
        trainer.fit(DATA, epochs=2, batch_size=8)
    assert same(trainer.model, recorder.weights[3])
    history = trainer.fit(DATA, DATA, epochs=1, batch_size=8)
    assert math.isfinite(history["validation/elbo_nats"][-1])


@pytest.mark.parametrize("every_steps", [1, 2])
def test_run_resumed_after_an_error_in_a_step_equals_one_without(every_steps, tmp_path):
    def fit(objective, folder):
        model = make_model()
        del model[2]  # a buffer that appears late is in no checkpoint, nor is a mask
        checkpoint = Checkpoint(tmp_path / folder, every_steps=every_steps)
        trainer = Trainer(model, objective, callbacks=[checkpoint], device="cpu", progress=False)
        trainer.fit(DATA, epochs=2, batch_size=8, resume="auto")
        return trainer

    expected = tensors_of(fit(Fails(), "complete"))
    with pytest.raises(KeyError, match="planted"):
        fit(Fails(STEPS + 2, KeyError("planted")), "run")
    assert_equal(tensors_of(fit(Fails(), "run")), expected)


def test_step_that_overflows_a_buffer_is_refused(guard):
    class Large(LeastSquares):
        def forward(self, model, batch):
            scale = 1e20 if self.training_step == 3 and model.training else 1.0
            out = model(scale * batch.x)  # its variance overflows, the normalized values do not
            return ObjectiveOutput({"model": out.square().mean()}, {})

        def set_step(self, step, total_steps):
            self.training_step = step + 1

    copies = Copies()
    model = nn.Sequential(nn.BatchNorm1d(4), make_linear())
    with pytest.raises(NonFiniteError, match=r"^step 3 .*: buffer 0\.running_var = (inf|nan)\. "):
        run(model, Large(), callbacks=[copies])
    expected = copies.seen[2]
    assert torch.equal(model[0].running_var, expected["model.0.running_var"])
    assert int(model[0].num_batches_tracked) == 2


def test_buffer_that_starts_at_infinity_may_change():
    class Minimum(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("minimum", torch.full((4,), math.inf))

        def forward(self, x):
            self.minimum[:2] = torch.minimum(self.minimum, x.detach().amin(0))[:2]
            return x

    model = nn.Sequential(Minimum(), make_linear())
    run(model, LeastSquares())
    assert model[0].minimum.isfinite().tolist() == [True, True, False, False]


# State before the first step ---------------------------------------------------------------------


def poisoned(name, value):
    """Return a Trainer whose entry ``name`` holds ``value``."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), OddBuffers())
    trainer = Trainer(model, Fails(), device="cpu", progress=False)
    tensors = {
        **dict(model.named_parameters()),
        **dict(model.named_buffers()),
        **dict(trainer.objective.named_buffers(prefix="objective")),
    }
    with torch.no_grad():
        tensors[name].flatten()[:1].fill_(value)
    return trainer


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("0.weight", math.nan),
        ("0.bias", math.inf),
        ("1.running_mean", math.nan),
        ("1.running_var", math.inf),
        ("2.hidden", math.nan),
        ("objective.scale", math.nan),
    ],
)
def test_fit_refuses_a_state_that_is_not_finite(name, value):
    trainer = poisoned(name, value)
    with pytest.raises(NonFiniteError, match=rf"^fit expects .*, got {name} = {value}: "):
        trainer.fit(DATA, epochs=1)
    assert trainer.step == 0


def test_fit_refuses_a_codebook_that_is_not_finite():
    model = make_quantized()
    model.encoder.codebook[1, 0] = math.inf
    with pytest.raises(NonFiniteError, match=r"got encoder\.codebook = inf: build"):
        run(model, ELBO())


def test_fit_refuses_an_optimizer_that_is_not_finite():
    trainer = run(make_linear(), LeastSquares())
    (optimizer,) = trainer.state.optimizers.values()
    optimizer.state[trainer.model.bias]["exp_avg_sq"][0] = math.inf
    weights = tensors_of(trainer)
    with pytest.raises(NonFiniteError, match=r"got optimizer 'model', bias: exp_avg_sq = inf: "):
        trainer.fit(DATA, epochs=1)
    assert_equal(tensors_of(trainer), weights)


def test_fit_accepts_constants_that_are_infinite():
    model = nn.Sequential(make_linear(), OddBuffers())
    model.register_parameter("limit", nn.Parameter(torch.tensor(math.inf), requires_grad=False))
    trainer = run(model, LeastSquares())
    assert trainer.step == 2 * STEPS
    assert model[1].mask.isinf().any()


# Compiled ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_failed_step_of_a_compiled_run_leaves_the_buffers_of_the_step_before():
    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))

    data = DATA[:32].clone()  # batches of one shape use the graph
    bad = data.clone()
    options = {"speed": Speed(compile=True), "callbacks": [copies := Copies()]}
    run(make(), LeastSquares(), data, epochs=2, **options)

    class Poison(Copies):
        def on_step_end(self, state, output):
            super().on_step_end(state, output)
            if state.step == 5:
                bad.fill_(math.nan)

    trainer = Trainer(
        make(), LeastSquares(), speed=Speed(compile=True), callbacks=[Poison()],
        device="cpu", progress=False,
    )  # fmt: skip
    with pytest.raises(NonFiniteError, match=r"^step 6 "):
        trainer.fit(bad, epochs=2, batch_size=8)
    assert_equal(tensors_of(trainer), copies.seen[5])
