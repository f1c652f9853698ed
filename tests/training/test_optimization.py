import math

import pytest
import torch
from helpers.training import (
    BATCH_SIZE,
    DATA,
    STEPS,
    Adversarial,
    LeastSquares,
    Recorder,
    Unsized,
    make_linear,
    make_vae,
    run,
    same,
)
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
)

from tinyvae import ELBO, Batch, Callback, Optimization, Trainer
from tinyvae.core.random import epoch_order


def annealing(optimizer, total):
    """Make a scheduler that needs the number of its calls."""
    return CosineAnnealingLR(optimizer, total)


def sgd(parameters):
    return SGD(parameters, lr=0.1)


def rates_of(trainer):
    """Return the learning rate of every parameter by name."""
    names = {p: name for name, p in trainer.model.named_parameters()}
    names |= {p: f"objective.{name}" for name, p in trainer.objective.named_parameters()}
    options = [o for optimizer in trainer.state.optimizers.values() for o in optimizer.param_groups]
    return {names[p]: o["lr"] for o in options for p in o["params"]}


# Optimizers --------------------------------------------------------------------------------------


def test_optimizer_defaults_to_fused_adam_per_group():
    trainer = run(make_linear(), Adversarial(), optimization=Optimization(learning_rate=0.02))
    assert list(trainer.state.optimizers) == ["model", "discriminator"]
    for optimizer in trainer.state.optimizers.values():
        assert type(optimizer) is Adam
        assert optimizer.defaults["fused"]
        assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert set(rates_of(trainer).values()) == {0.02}
    assert trainer.history["learning_rate/model"] == [0.02, 0.02]
    assert run(make_linear(), LeastSquares()).history["learning_rate"] == [1e-3, 1e-3]


def test_optimizer_mapping_keeps_default_for_other_groups():
    trainer = run(make_linear(), Adversarial(), optimization=Optimization(optimizer={"model": sgd}))
    assert [type(optimizer) for optimizer in trainer.state.optimizers.values()] == [SGD, Adam]


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({"encoder": 0.5}, {"encoder.network.0.weight": 0.5, "encoder.head.bias": 0.5}),
        ({"encoder.head": 0.5}, {"encoder.network.0.weight": 0.1, "encoder.head.bias": 0.5}),
        (
            {"encoder.head": 0.2, "encoder": 0.5, "encoder.head.bias": 0.3},
            {
                "encoder.network.0.weight": 0.5,
                "encoder.head.weight": 0.2,
                "encoder.head.bias": 0.3,
            },
        ),
    ],
    ids=["part", "nested part", "longest name wins"],
)
def test_learning_rates_apply_to_parts(rates, expected):
    optimization = Optimization(optimizer=sgd, learning_rates=rates)
    actual = rates_of(run(make_vae(), ELBO(), optimization=optimization))
    assert actual.keys() == dict(make_vae().named_parameters()).keys()
    assert {name: actual[name] for name in expected} == expected
    assert {rate for name, rate in actual.items() if name.startswith("decoder")} == {0.1}


def test_learning_rates_apply_to_objective_parameters():
    optimization = Optimization(learning_rates={"objective.critic": 0.3, "weight": 0.2})
    rates = rates_of(run(make_linear(), Adversarial(), optimization=optimization))
    assert {rate for name, rate in rates.items() if name.startswith("objective")} == {0.3}
    assert (rates["weight"], rates["bias"]) == (0.2, 1e-3)


def test_learning_rates_of_zero_keep_a_part_fixed():
    optimization = Optimization(learning_rates={"encoder": 0.0})
    trained, start = run(make_vae(), ELBO(), optimization=optimization).model, make_vae()
    assert same(trained.encoder, start.encoder)
    assert not same(trained.decoder, start.decoder)


def test_frozen_parts_stay_fixed_until_unfrozen():
    model = make_vae()
    model.encoder.requires_grad_(False)
    trainer = run(model, ELBO())
    assert same(model.encoder, make_vae().encoder)
    assert not same(model.decoder, make_vae().decoder)
    assert not any(name.startswith("encoder") for name in rates_of(trainer))
    model.encoder.requires_grad_(True)
    trainer.fit(DATA, epochs=1)
    assert not same(model.encoder, make_vae().encoder)


# Clipping ----------------------------------------------------------------------------------------


def first_gradients(model, objective):
    """Return the gradients of all groups at the first batch of a run."""
    losses = objective(model, Batch(DATA[epoch_order(len(DATA), 0, 0)[:BATCH_SIZE]])).losses
    groups = objective.parameter_groups(model)
    return {
        name: torch.autograd.grad(losses[name], groups[name], retain_graph=True) for name in groups
    }


@pytest.mark.parametrize("objective", [LeastSquares, Adversarial])
@pytest.mark.parametrize("max_norm", [1e-2, 1e6])
def test_clip_norm_clips_each_group_by_its_own_norm(objective, max_norm):
    expected_model, expected_objective = make_linear(), objective()
    gradients = first_gradients(expected_model, expected_objective)
    for name, parameters in expected_objective.parameter_groups(expected_model).items():
        norm = torch.cat([g.flatten() for g in gradients[name]]).norm()
        assert 1e-2 < norm < 1e6
        scale = min(1.0, max_norm / norm)
        with torch.no_grad():
            for p, g in zip(parameters, gradients[name], strict=True):
                p.sub_(0.1 * scale * g)

    trained_objective = objective()
    optimization = Optimization(optimizer=sgd, clip_norm=max_norm)
    model = run(
        make_linear(), trained_objective, epochs=1, optimization=optimization,
        callbacks=[StopAtOnce()],
    ).model  # fmt: skip
    for trained, expected in ((model, expected_model), (trained_objective, expected_objective)):
        for p, q in zip(trained.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-8)


class StopAtOnce(Callback):
    def on_step_end(self, trainer, output):
        trainer.stop("one step")


# Schedulers --------------------------------------------------------------------------------------


def scheduled(scheduler, *, interval="epoch", epochs=4, **options):
    optimization = Optimization(
        optimizer=sgd, scheduler=scheduler, scheduler_interval=interval, **options
    )
    return run(make_linear(), LeastSquares(), epochs=epochs, optimization=optimization)


def cosine(share):
    return 0.1 * (1 + math.cos(math.pi * share)) / 2


@pytest.mark.parametrize(
    ("scheduler", "interval", "expected"),
    [
        (lambda o: ExponentialLR(o, 0.5), "epoch", [0.1, 0.05, 0.025, 0.0125]),
        (lambda o: ExponentialLR(o, 0.5), "step", [0.1 / 2**t for t in (5, 10, 15, 20)]),
        (annealing, "epoch", [cosine(e / 4) for e in range(4)]),
        (annealing, "step", [cosine(e / 4) for e in range(1, 5)]),
        ({"model": annealing}, "epoch", [cosine(e / 4) for e in range(4)]),
    ],
    ids=["exponential", "exponential per step", "cosine", "cosine per step", "of a group"],
)
def test_scheduler_sets_the_learning_rate(scheduler, interval, expected):
    trainer = scheduled(scheduler, interval=interval)
    assert trainer.history["learning_rate"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_scheduler_cosine_ends_at_zero(interval):
    trainer = scheduled(annealing, interval=interval)
    assert max(rates_of(trainer).values()) < 1e-12


def test_scheduler_total_is_the_number_of_calls():
    totals = []

    def one_cycle(optimizer, total):
        totals.append(total)
        return OneCycleLR(optimizer, max_lr=1.0, total_steps=total + 1)

    scheduled(one_cycle, interval="step")
    assert rates_of(scheduled(one_cycle))["bias"] < 1e-4  # its last value
    assert totals == [4 * STEPS, 4]


def test_scheduler_rate_is_that_of_the_updates():
    recorder = Recorder()
    optimization = Optimization(
        optimizer=sgd, scheduler=lambda o: LambdaLR(o, lambda epoch: float(epoch < 1))
    )
    run(make_linear(), LeastSquares(), optimization=optimization, callbacks=[recorder])
    assert not same(recorder.weights[STEPS - 1], recorder.weights[STEPS])
    assert same(recorder.weights[STEPS], recorder.weights[2 * STEPS])


class Score(Callback):
    """Callback that writes a column of given values."""

    def __init__(self, values):
        self.values = values

    def on_epoch_end(self, trainer, row):
        row["score"] = self.values[trainer.epoch - 1]


def plateau(optimizer):
    return ReduceLROnPlateau(optimizer, patience=0, factor=0.5)


def test_plateau_lowers_the_rate_by_a_column():
    optimization = Optimization(optimizer=sgd, scheduler=plateau, monitor="score")
    trainer = run(
        make_linear(),
        LeastSquares(),
        epochs=5,
        optimization=optimization,
        callbacks=[Score([1.0, 1.0, 2.0, 0.5, 0.1])],
    )
    assert trainer.history["learning_rate"] == [0.1, 0.1, 0.05, 0.025, 0.025]


def test_plateau_watches_validation_loss_by_default():
    still = Optimization(optimizer=lambda p: SGD(p, lr=0.0), scheduler=plateau)
    calls = []

    class Watched(ReduceLROnPlateau):
        def step(self, metrics, epoch=None):
            calls.append(metrics)

    still = Optimization(scheduler=lambda o: Watched(o))
    trainer = run(make_linear(), LeastSquares(), DATA, DATA[:9], optimization=still)
    assert calls == trainer.history["validation/loss"]


def test_second_fit_keeps_moments_and_restarts_the_scheduler():
    trainer = scheduled(annealing, epochs=2)
    optimizer = trainer.state.optimizers["model"]
    trainer.fit(DATA, epochs=4, batch_size=BATCH_SIZE)
    assert trainer.state.optimizers["model"] is optimizer
    expected = [cosine(0), cosine(1 / 2), *(cosine(e / 4) for e in range(4))]
    assert trainer.history["learning_rate"] == pytest.approx(expected, abs=1e-12)


# Schedules ---------------------------------------------------------------------------------------


class Rates(Callback):
    """Callback that records the learning rate of every update."""

    def on_fit_start(self, trainer):
        self.rates = [trainer.optimizers["model"].param_groups[0]["lr"]]

    def on_step_end(self, trainer, output):
        self.rates.append(trainer.optimizers["model"].param_groups[0]["lr"])


def rates_with(**options):
    recorder = Rates()
    run(
        make_linear(),
        LeastSquares(),
        optimization=Optimization(optimizer=sgd, **options),
        callbacks=[recorder],
    )
    return recorder.rates


def test_schedule_cosine_is_bitwise_torch_scheduler_per_step():
    trainers = [
        run(make_vae(), ELBO(), optimization=Optimization(0.02, **options))
        for options in (
            {"schedule": "cosine"},
            {"scheduler": annealing, "scheduler_interval": "step"},
        )
    ]
    first, second = trainers
    assert same(first.model, second.model)
    assert first.history["learning_rate"] == second.history["learning_rate"]


@pytest.mark.parametrize(
    ("schedule", "decay"),
    [
        ("constant", lambda share: share**0),
        ("linear", lambda share: 1 - share),
        ("cosine", lambda share: (1 + math.cos(math.pi * share)) / 2),
    ],
)
@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_schedule_warms_up_and_decays(schedule, decay, warmup):
    total = 2 * STEPS
    rising = [(step + 1) / (warmup + 1) for step in range(warmup)]
    falling = [decay((step - warmup) / (total - warmup)) for step in range(warmup, total + 1)]
    expected = [0.1 * factor for factor in rising + falling]
    rates = rates_with(schedule=schedule, warmup_steps=warmup)
    assert rates == pytest.approx(expected, abs=1e-12)


def test_schedule_applies_to_all_groups_and_parts():
    optimization = Optimization(learning_rates={"weight": 0.2}, schedule="linear", warmup_steps=1)
    trainer = run(make_linear(), Adversarial(), optimization=optimization)
    assert list(trainer.state.schedulers) == ["model", "discriminator"]
    assert set(rates_of(trainer).values()) == {0.0}


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": -1.0}, "finite learning rate >= 0, got -1.0 for learning_rate"),
        ({"learning_rate": math.nan}, "finite learning rate >= 0, got nan"),
        ({"learning_rates": {"encoder": math.inf}}, "got inf for encoder"),
        ({"clip_norm": 0.0}, "clip_norm > 0 or None, got 0.0"),
        ({"schedule": "cosinus"}, r"schedule as one of .*'cosine'\], got 'cosinus'"),
        ({"warmup_steps": -1}, "warmup_steps as an integer >= 0, got -1"),
        ({"warmup_steps": 0.1}, "warmup_steps as an integer >= 0, got 0.1"),
        ({"schedule": "cosine", "scheduler": annealing}, "schedule or a scheduler, got .*'cosine'"),
        ({"warmup_steps": 5, "scheduler": annealing}, "schedule or a scheduler, got .*=5"),
        ({"scheduler_interval": "batch"}, "'epoch' or 'step', got 'batch'"),
    ],
)
def test_optimization_rejects_invalid_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Optimization(**settings)


def test_optimization_refuses_a_learning_rate_as_text():
    with pytest.raises(TypeError, match=r"number as learning_rate, got the text '1e-3': use float"):
        Optimization("1e-3")


@pytest.mark.parametrize(
    ("settings", "data", "message"),
    [
        ({"learning_rates": {"enc": 0.1}}, DATA, r"names 'enc', .* \['decoder', 'encoder'\]"),
        (
            {"warmup_steps": 2 * STEPS},
            DATA,
            "warmup_steps=10 expects a run of more updates, got 10",
        ),
        ({"schedule": "cosine"}, Unsized(DATA), "needs the number of steps in an epoch"),
        ({"learning_rates": {"encoder.tail": 0.1}}, DATA, "names 'encoder.tail'"),
        ({"optimizer": {"modell": sgd}}, DATA, r"optimizer names .*\['modell'\].* \['model'\]"),
        ({"scheduler": {"critic": CosineAnnealingLR}}, DATA, r"scheduler names .*\['critic'\]"),
        (
            {"scheduler": annealing, "scheduler_interval": "step"},
            Unsized(DATA),
            "needs the number of steps in an epoch, .* scheduler_interval='epoch'",
        ),
        ({"scheduler": plateau}, DATA, "'validation/loss', but fit got no validation"),
        (
            {"scheduler": plateau, "scheduler_interval": "step", "monitor": "train/loss"},
            DATA,
            "watches epochs: use scheduler_interval='epoch'",
        ),
    ],
)
def test_fit_rejects_settings_before_the_first_step(settings, data, message):
    model = make_vae()
    with pytest.raises(ValueError, match=message):
        run(model, ELBO(), data, optimization=Optimization(**settings))
    assert same(model, make_vae())


def test_plateau_error_names_the_columns():
    optimization = Optimization(scheduler=plateau, monitor="train/elbo")
    with pytest.raises(ValueError, match=r"watches 'train/elbo', expected one of \['epoch', "):
        run(make_vae(), ELBO(), optimization=optimization)


def test_fit_rejects_a_model_without_trainable_parameters():
    trainer = Trainer(make_linear().requires_grad_(False), LeastSquares(), progress=False)
    with pytest.raises(ValueError, match="group 'model' has no parameter to train: all are frozen"):
        trainer.fit(DATA, epochs=1)


def test_history_reports_the_default_learning_rate():
    trainer = run(make_vae(), ELBO(), optimization=Optimization(learning_rates={"encoder": 1e-4}))
    assert trainer.history["learning_rate"] == [1e-3, 1e-3]


def test_scheduler_error_shows_an_example_factory():
    with pytest.raises(TypeError, match=r"factory of schedulers, such as .*gamma"):
        run(make_linear(), LeastSquares(), optimization=Optimization(scheduler=ExponentialLR))


def test_optimization_rejects_an_optimizer_object():
    model = make_linear()
    with pytest.raises(TypeError, match=r"got a SGD object: pass optimizer=lambda parameters: SGD"):
        Optimization(optimizer=SGD(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match=r"expects an Optimization\(.*got SGD"):
        run(model, LeastSquares(), optimization=SGD(model.parameters(), lr=0.1))


def test_learning_rate_applies_to_any_optimizer():
    optimization = Optimization(0.05, optimizer=torch.optim.AdamW)
    trainer = run(make_linear(), LeastSquares(), optimization=optimization)
    assert trainer.history["learning_rate"] == [0.05, 0.05]


def test_second_fit_restarts_a_plateau():
    optimization = Optimization(
        0.1,
        scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, patience=0, threshold=10.0),
        monitor="train/loss",
    )
    trainer = run(make_linear(), LeastSquares(), optimization=optimization, epochs=4)
    assert trainer.history["learning_rate"][-1] < 0.05
    trainer.fit(DATA, epochs=1, batch_size=8)
    assert trainer.history["learning_rate"][-1] == 0.1
