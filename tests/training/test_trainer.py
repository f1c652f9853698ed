"""The Trainer: reproducible runs, validation, schedules, errors."""

import math
import random
import signal
import warnings

import numpy as np
import pytest
import torch
from helpers.training import (
    BATCH_SIZE,
    DATA,
    STEPS,
    After,
    Corner,
    LeastSquares,
    Recorder,
    Unsized,
    binary,
    flip,
    make_linear,
    make_vae,
    raises,
    rows,
    run,
    same,
)
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader

from tinyvae import (
    ELBO,
    VAE,
    Batch,
    Callback,
    Optimization,
    Trainer,
)
from tinyvae.core import ObjectiveOutput
from tinyvae.core.random import Stream, derive_seed, epoch_order
from tinyvae.errors import NonFiniteError
from tinyvae.schedules import Cosine, Cyclical, Linear

# Reproducible runs -------------------------------------------------------------------------------


def test_fit_depends_on_the_seed_alone():
    def trained(seed, disturbance):
        model = make_vae(dropout=0.2)
        torch.manual_seed(disturbance)  # the global generator does not matter
        return run(model, ELBO(), DATA, DATA, seed=seed, record_every=1)

    first, second, other = trained(5, 0), trained(5, 1), trained(6, 0)
    assert same(first.model, second.model)
    assert rows(first.history) == rows(second.history)
    assert first.history.updates == second.history.updates
    assert len(first.history.updates) == 2 * STEPS
    assert not same(first.model, other.model)
    assert first.history.updates != other.history.updates


def test_derive_seed_differs_for_every_use():
    uses = [(seed, stream, epoch) for seed in range(3) for stream in Stream for epoch in range(3)]
    assert len({derive_seed(*use) for use in uses}) == len(uses)
    # Another value would change every published run.
    assert derive_seed(0, Stream.NOISE, 0) == 15793235383387715774


@pytest.mark.parametrize("transform", [None, flip])
def test_fit_equals_a_plain_loop(transform):
    vae, objective, seed = make_vae(dropout=0.2), ELBO(num_samples=2), 3
    optimizer = Adam(vae.parameters(), lr=1e-3, fused=True)
    for epoch in range(3):
        torch.manual_seed(derive_seed(seed, Stream.NOISE, epoch))
        generator = torch.Generator()
        for batch, index in enumerate(epoch_order(len(DATA), seed, epoch).split(BATCH_SIZE)):
            generator.manual_seed(derive_seed(seed, Stream.TRANSFORM, epoch, batch))
            x = DATA[index] if transform is None else transform(DATA[index], generator)
            loss = objective(vae, Batch(x)).losses["model"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    fit = {"transform": transform}
    trainer = run(make_vae(dropout=0.2), ELBO(num_samples=2), seed=seed, epochs=3, fit=fit)
    assert same(trainer.model, vae)


@pytest.mark.parametrize(
    "validation",
    [binary(1), binary(50), DataLoader(binary(20), batch_size=3, shuffle=True)],
    ids=["one", "more than training", "shuffled loader"],
)
def test_validation_does_not_change_the_run(validation):
    alone = run(make_vae(dropout=0.5), ELBO())
    validated = run(make_vae(dropout=0.5), ELBO(), DATA, validation)
    assert same(alone.model, validated.model)
    assert rows(alone.history, "train/") == rows(validated.history, "train/")


def test_validation_has_the_same_noise_in_every_epoch_and_no_dropout():
    still = Optimization(learning_rate=0.0)
    trainer = run(make_vae(dropout=0.5), ELBO(), DATA, DATA, epochs=3, optimization=still)
    validation = rows(trainer.history, "validation/")
    assert validation[0] == validation[1] == validation[2]
    assert len(set(trainer.history["train/elbo_nats"])) == 3
    without = run(make_vae(), ELBO(), DATA, DATA, epochs=1, optimization=still)
    assert rows(without.history, "validation/")[0] == validation[0]


def test_validation_noise_has_its_own_seed():
    still = Optimization(learning_rate=0.0)
    trainer = run(make_vae(), ELBO(), DATA, DATA, epochs=1, optimization=still)
    model = make_vae().eval()
    torch.manual_seed(derive_seed(0, Stream.VALIDATION))
    with torch.no_grad():
        parts = [(ELBO()(model, Batch(x)), len(x)) for x in DATA.split(BATCH_SIZE)]
    expected = sum(output.metrics["elbo_nats"].double() * n for output, n in parts) / len(DATA)
    assert trainer.history["validation/elbo_nats"] == [pytest.approx(expected.item(), rel=1e-6)]


@pytest.mark.parametrize(
    "validation", [DATA, DataLoader(DATA, BATCH_SIZE, shuffle=True)], ids=["tensor", "shuffled"]
)
def test_validation_has_the_same_order_and_transforms_in_every_epoch(validation):
    fit = {
        "transform": lambda x, generator: (torch.rand(x.shape, generator=generator) < 0.5).float()
    }
    still = Optimization(learning_rate=0.0)
    trainer = run(make_vae(), ELBO(), DATA, validation, epochs=3, optimization=still, fit=fit)
    first, *others = rows(trainer.history, "validation/")
    assert others == [first, first]
    assert len(set(trainer.history["train/elbo_nats"])) == 3


def test_validation_does_not_change_draws_of_callbacks():
    class Draws(Callback):
        def __init__(self):
            self.seen = []

        def on_epoch_end(self, state, row):
            self.seen.append(torch.rand(3).tolist())

    alone, validated = Draws(), Draws()
    run(make_vae(), ELBO(), callbacks=[alone])
    run(make_vae(), ELBO(), DATA, DATA, callbacks=[validated])
    assert alone.seen == validated.seen


def test_fit_continues_at_a_second_call():
    trainer = run(make_vae(), ELBO(), DATA, DATA, epochs=2, record_every=3)
    trainer.fit(DATA, DATA, epochs=2, batch_size=BATCH_SIZE)
    complete = run(make_vae(), ELBO(), DATA, DATA, epochs=4, record_every=3)
    assert same(trainer.model, complete.model)
    assert rows(trainer.history) == rows(complete.history)
    assert trainer.history.updates == complete.history.updates
    assert trainer.history["epoch"] == [1, 2, 3, 4]
    times = trainer.history["time_seconds"]
    assert times == sorted(times)


def test_fit_ignores_earlier_gradients():
    model = make_vae()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert same(run(model, ELBO()).model, run(make_vae(), ELBO()).model)


def test_fit_ignores_gradients_that_an_error_left():
    def failing(parameters):
        optimizer = SGD(parameters, lr=0.1)
        hook = optimizer.register_step_pre_hook(lambda *_: raises(RuntimeError("once"))(None))
        hooks.append(hook)
        return optimizer

    hooks = []
    trainer = Trainer(
        make_linear(), LeastSquares(), Optimization(optimizer=failing), progress=False, device="cpu"
    )
    with pytest.raises(RuntimeError, match="once"):
        trainer.fit(DATA, epochs=1)
    hooks.pop().remove()
    trainer.fit(DATA, epochs=1)
    sgd = Optimization(optimizer=lambda p: SGD(p, lr=0.1))
    clean = run(make_linear(), LeastSquares(), epochs=1, optimization=sgd, fit={"batch_size": 128})
    assert same(trainer.model, clean.model)


# Global state ------------------------------------------------------------------------------------


def global_state():
    state = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": (state[0], state[1].tolist(), *state[2:]),
        "python": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "matmul": torch.get_float32_matmul_precision(),
        "grad": torch.is_grad_enabled(),
        "warnings": list(warnings.filters),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
    }


@pytest.mark.parametrize("error", [None, RuntimeError("planted"), KeyboardInterrupt()])
@pytest.mark.parametrize("loader", [False, True])
def test_fit_restores_global_state_and_ends_in_evaluation_mode(error, loader):
    model, objective = make_vae(dropout=0.2), ELBO()
    data = DataLoader(DATA, BATCH_SIZE, shuffle=True) if loader else DATA
    callbacks = [] if error is None else [After(STEPS + 2, raises(error))]
    trainer = Trainer(model, objective, callbacks=callbacks, device="cpu", progress=False)

    torch.manual_seed(11)
    before = global_state()
    if error is None:
        trainer.fit(data, DATA, epochs=2, batch_size=BATCH_SIZE, transform=flip)
    else:
        with pytest.raises(type(error)):
            trainer.fit(data, DATA, epochs=2, batch_size=BATCH_SIZE, transform=flip)
        assert trainer.step == STEPS + 2
    assert global_state() == before
    assert not any(m.training for part in (model, objective) for m in part.modules())


def test_fit_trains_in_training_mode_and_validates_in_evaluation_mode():
    class Modes(LeastSquares):
        def forward(self, model, batch):
            seen.append((model.training, self.training, torch.is_grad_enabled()))
            return super().forward(model, batch)

    seen = []
    run(make_linear().eval(), Modes().eval(), DATA, DATA[:3], epochs=2)
    epoch = [(True, True, True)] * STEPS + [(False, False, False)]
    assert seen == epoch * 2


# Schedules of the objective ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Linear(0.0, 2.0, steps=6), lambda t: 2 * min(t / 6, 1)),
        (Linear(0.0, 1.0, fraction=0.5), lambda t: min(t / 4, 1)),
        (Cosine(1.0, 0.0, steps=8), lambda t: 0.5 + 0.5 * math.cos(math.pi * min(t / 8, 1))),
        (Cyclical(0.0, 1.0, cycles=2, steps=8), lambda t: min(t % 4 / 2, 1) if t < 8 else 1.0),
    ],
    ids=["linear", "fraction", "cosine", "cyclical"],
)
def test_schedule_sets_the_weight_of_every_step(schedule, expected):
    trainer = run(make_vae(), ELBO(beta=schedule), record_every=1)
    for row in trainer.history.updates:
        assert row["beta"] == pytest.approx(expected(row["step"] - 1), abs=1e-7)
        kl = row["log_likelihood_nats"] - row["elbo_nats"]
        assert row["loss"] == pytest.approx(row["beta"] * kl - row["log_likelihood_nats"], rel=1e-5)
    assert len(trainer.history.updates) == 2 * STEPS


def test_schedule_fraction_counts_steps_of_the_first_fit():
    trainer = run(make_vae(), ELBO(beta=Linear(0.0, 1.0, fraction=1.0)), record_every=1)
    for epochs in (4, 1):
        trainer.fit(DATA, epochs=epochs, batch_size=BATCH_SIZE)
    betas = [row["beta"] for row in trainer.history.updates]
    expected = [t / 9 for t in range(10)] + [1.0] * 25
    assert betas == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("data", "callbacks", "steps"),
    [
        (DATA, [], 2 * STEPS),
        (Unsized(DATA), [], 2 * STEPS),
        (DATA, [After(3, lambda state: state.stop("enough"))], 3),
    ],
    ids=["known", "unknown length", "stopped"],
)
def test_schedule_that_does_not_end_gives_a_warning(data, callbacks, steps):
    length = 100 if not callbacks else 2 * STEPS
    objective = ELBO(beta=Linear(0.0, 1.0, steps=length))
    expected = f"beta reaches its last value after {length} steps, the run ends after {steps}"
    with pytest.warns(UserWarning, match=expected) as caught:
        run(make_vae(), objective, data, callbacks=callbacks)
    assert [w.filename for w in caught] == [run.__code__.co_filename]  # the call of fit


def test_schedule_fraction_of_an_unknown_length_is_refused():
    model = make_vae()
    with pytest.raises(ValueError, match=r"Linear\(fraction=0\.5\) needs the length .* steps="):
        run(model, ELBO(beta=Linear(0.0, 1.0, fraction=0.5)), Unsized(DATA))
    assert same(model, make_vae())


# Values that are not finite ----------------------------------------------------------------------


class Planted(LeastSquares):
    """NaN or infinity in the loss and in a metric at one step."""

    def __init__(self, step, value, term):
        super().__init__()
        self.bad_step, self.value, self.term = step, value, term

    def set_step(self, step, total_steps):
        self.current_step = step + 1

    def forward(self, model, batch):
        output = super().forward(model, batch)
        planted = self.value if self.current_step == self.bad_step else 0.0
        loss = output.losses["model"] + planted
        return ObjectiveOutput({"model": loss}, {self.term: torch.tensor(1.0 + planted)})


@pytest.mark.parametrize("step", [1, STEPS + 2])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_fit_raises_at_the_step_of_a_loss_that_is_not_finite(step, value):
    recorder = Recorder()
    trainer = Trainer(
        make_linear(),
        Planted(step, value, "kl_nats"),
        callbacks=[recorder],
        record_every=1,
        device="cpu",
        progress=False,
    )
    epoch = 1 if step == 1 else 2
    expected = rf"^step {step} \(epoch {epoch}\): loss = {value}, kl_nats = {value}\. The step"
    with pytest.raises(NonFiniteError, match=expected):
        trainer.fit(DATA, epochs=3, batch_size=BATCH_SIZE)
    healthy = Recorder()
    run(make_linear(), LeastSquares(), callbacks=[healthy])
    assert len(recorder.weights) == step  # the first copy is from the start
    assert same(trainer.model, healthy.weights[step - 1])
    assert trainer.step == step - 1
    assert len(trainer.history) == epoch - 1
    assert [row["step"] for row in trainer.history.updates] == list(range(1, step))


def test_fit_names_only_terms_that_are_not_finite():
    class OneOfTwo(Planted):
        def forward(self, model, batch):
            output = super().forward(model, batch)
            return ObjectiveOutput(output.losses, {"fine_nats": torch.tensor(1.0)})

    with pytest.raises(NonFiniteError, match=r": loss = nan\. "):
        run(make_linear(), OneOfTwo(2, math.nan, "unused"))


def test_fit_raises_where_a_large_learning_rate_overflows_the_loss():
    model, step = make_linear(), 0
    optimizer = SGD(model.parameters(), lr=1e12)
    for index in epoch_order(len(DATA), 0, 0).split(BATCH_SIZE):
        loss = LeastSquares()(model, Batch(DATA[index])).losses["model"]
        step += 1
        if not loss.isfinite():
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert 2 < step < STEPS

    exploding = Optimization(optimizer=lambda p: SGD(p, lr=1e12))
    trainer = Trainer(make_linear(), LeastSquares(), exploding, device="cpu", progress=False)
    with pytest.raises(NonFiniteError, match=rf"^step {step} \(epoch 1\).*clip_norm"):
        trainer.fit(DATA, epochs=1, batch_size=BATCH_SIZE)
    assert same(trainer.model, model)


# Arguments ---------------------------------------------------------------------------------------


def test_trainer_checks_its_arguments():
    for options, error, message in (
        ({"model": VAE}, TypeError, r"expects a model such as VAE.from_shapes\(.* got <class"),
        ({"objective": ELBO}, TypeError, r"Objective such as ELBO\(\), got <class"),
        ({"optimization": 1e-3}, TypeError, r"expects an Optimization\(.*got 0\.001"),
        ({"speed": "fast"}, TypeError, r"expects a Speed\(.*got 'fast'"),
        ({"callbacks": Callback()}, TypeError, r"sequence of callbacks, got one: write \[<tiny"),
        ({"seed": -1}, ValueError, "seed >= 0, got -1"),
        ({"seed": 0.5}, ValueError, "integer seed >= 0, got 0.5"),
        ({"record_every": 0}, ValueError, "record_every >= 1 or None, got 0"),
    ):
        with pytest.raises(error, match=message):
            Trainer(**{"model": make_vae(), "objective": ELBO(), **options})


def test_fit_checks_its_numbers():
    for name, value, message in (
        ("epochs", 0, "epochs as an integer >= 1, got 0"),
        ("epochs", 1.5, "epochs as an integer >= 1, got 1.5"),
        ("batch_size", 0, "batch_size as an integer >= 1, got 0"),
        ("workers", -1, "workers as an integer >= 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            run(make_vae(), ELBO(), fit={name: value})


def test_fit_checks_the_model_of_the_objective():
    with pytest.raises(TypeError, match="training data: ELBO expects a VAE, got a Linear"):
        run(make_linear(), ELBO())


def test_device_auto_takes_the_accelerator(monkeypatch):
    accelerator = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: accelerator)
    assert Trainer(make_linear(), LeastSquares()).device == accelerator
    assert Trainer(make_linear(), LeastSquares(), device="cpu").device == torch.device("cpu")


def test_device_auto_on_a_cpu_equals_cpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    auto = run(make_vae(), ELBO(), device="auto")
    assert same(auto.model, run(make_vae(), ELBO(), device="cpu").model)


def test_fit_converts_data_to_the_dtype_of_the_model():
    trainer = run(make_vae().double(), ELBO(beta=Linear(0.0, 0.1, steps=10)), DATA, DATA)
    converted = run(make_vae().double(), ELBO(beta=Linear(0.0, 0.1, steps=10)), DATA.double())
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float64}
    assert same(trainer.model, converted.model)


def test_fit_trains_under_no_grad():
    with torch.no_grad():
        trainer = run(make_vae(), ELBO())
        assert not torch.is_grad_enabled()
    assert same(trainer.model, run(make_vae(), ELBO()).model)


@pytest.mark.parametrize("step", [1, STEPS + 2])
def test_fit_names_a_gradient_that_is_not_finite_before_its_step(step):
    recorder, plain = Recorder(), Recorder()
    model = make_linear()
    with pytest.raises(NonFiniteError, match=rf"^step {step} .*: gradient of weight = nan\. The"):
        run(model, Corner(step), callbacks=[recorder])
    run(make_linear(), LeastSquares(), callbacks=[plain])
    assert same(model, plain.weights[step - 1])


def test_fit_accepts_gradients_whose_sum_overflows():
    class Steep(LeastSquares):
        def forward(self, model, batch):
            return ObjectiveOutput({"model": (3e38 / 32) * model.weight.tanh().sum()}, {})

    still = Optimization(optimizer=lambda p: SGD(p, lr=0.0))
    assert run(make_linear(), Steep(), optimization=still).step == 2 * STEPS


def test_fit_names_weights_that_an_update_made_infinite():
    far = Optimization(optimizer=lambda p: SGD(p, lr=3e38))
    with pytest.raises(NonFiniteError, match=r"step 1 .*group 'model' are not finite after"):
        run(make_linear(), LeastSquares(), optimization=far, fit={"batch_size": len(DATA)})


def test_fit_expects_metrics_to_be_scalar_tensors():
    class OddMetric(LeastSquares):
        def __init__(self, metric):
            super().__init__()
            self.metric = metric

        def forward(self, model, batch):
            return ObjectiveOutput(super().forward(model, batch).losses, {"odd": self.metric})

    for metric in (1.0, torch.ones(3)):
        with pytest.raises(TypeError, match=r"must be 0-d tensors, got .* for 'odd'"):
            run(make_linear(), OddMetric(metric))


def test_fit_records_an_error_as_stop_reason():
    trainer = Trainer(make_linear(), LeastSquares(), device="cpu", progress=False)
    trainer.callbacks.append(After(3, raises(RuntimeError("planted"))))
    with pytest.raises(RuntimeError, match="planted"):
        trainer.fit(DATA, epochs=2, batch_size=8)
    assert trainer.history.stop_reason == "RuntimeError: planted"
