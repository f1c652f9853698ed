"""Settings that the user changes between two calls of ``fit`` are kept, used or refused."""

import pytest
import torch
from helpers.cases import for_each
from helpers.training import DATA, Recorder, make_linear, make_vae, run, same
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR

from tinyvae import ELBO, Callback, Checkpoint, Optimization, Speed, Trainer
from tinyvae.training.acceleration.options import ResolvedSpeed


def options_of(trainer):
    return trainer.state.optimizers["model"].param_groups[0]


def fit_again(trainer, epochs=1):
    trainer.fit(DATA, epochs=epochs, batch_size=8)
    return trainer


def exponential(optimizer):
    return ExponentialLR(optimizer, 0.5)


@for_each(
    ("optimization", "rates"),
    [
        (Optimization(), [1e-5, 1e-5]),
        (Optimization(scheduler=exponential), [1e-5, 5e-6]),
        (Optimization(schedule="linear"), [5e-6, 0.0]),
    ],
)
def test_second_fit_keeps_a_rate_that_the_user_set(optimization, rates):
    trainer = run(make_vae(), ELBO(), optimization=optimization)
    options_of(trainer)["lr"] = 1e-5
    fit_again(trainer, 2)
    assert trainer.history["learning_rate"][2:] == pytest.approx(rates, abs=1e-12)


@for_each(
    ("optimization", "rates"),
    [
        (Optimization(scheduler=exponential), [1e-3, 5e-4]),
        (Optimization(schedule="cosine"), [5e-4, 0.0]),
        (
            Optimization(
                scheduler=lambda o, total: OneCycleLR(o, 0.01, total), scheduler_interval="step"
            ),
            None,
        ),
    ],
)
def test_second_fit_starts_a_scheduler_again(optimization, rates):
    trainer = fit_again(run(make_vae(), ELBO(), optimization=optimization), 2)
    first, second = trainer.history["learning_rate"][:2], trainer.history["learning_rate"][2:]
    assert second == pytest.approx(first, abs=1e-12)
    assert rates is None or second == pytest.approx(rates, abs=1e-12)


def test_second_fit_keeps_a_rate_that_a_callback_set():
    class Decay(Callback):
        def on_epoch_end(self, state, row):
            state.optimizers["model"].param_groups[0]["lr"] *= 0.5

    trainer = run(make_vae(), ELBO(), callbacks=[Decay()])
    assert fit_again(trainer).history["learning_rate"] == [1e-3, 5e-4, 2.5e-4]


def test_second_fit_keeps_settings_if_a_part_is_frozen():
    trainer = run(make_vae(), ELBO(), optimization=Optimization(optimizer=AdamW))
    options_of(trainer).update(lr=1e-5, betas=(0.5, 0.9), weight_decay=0.3)
    trainer.model.encoder.requires_grad_(False)
    fit_again(trainer)
    kept = {name: options_of(trainer)[name] for name in ("lr", "betas", "weight_decay")}
    assert kept == {"lr": 1e-5, "betas": (0.5, 0.9), "weight_decay": 0.3}
    assert len(options_of(trainer)["params"]) == len(list(trainer.model.decoder.parameters()))


def test_second_fit_keeps_an_optimizer_that_the_user_put_in():
    trainer = run(make_vae(), ELBO())
    own = SGD(trainer.model.parameters(), lr=0.5)
    trainer.state.optimizers["model"] = own
    assert fit_again(trainer).state.optimizers["model"] is own
    assert trainer.history["learning_rate"] == [1e-3, 1e-3, 0.5]


def test_second_fit_uses_another_optimization():
    trainer = run(make_vae(), ELBO())
    before = trainer.state.optimizers["model"]
    trainer.optimization = Optimization(clip_norm=1.0)  # the optimizer is the same
    assert fit_again(trainer).state.optimizers["model"] is before
    trainer.optimization = Optimization(1e-5)
    assert fit_again(trainer).history["learning_rate"] == [1e-3, 1e-3, 1e-3, 1e-5]


def test_second_fit_uses_other_callbacks(tmp_path):
    trainer = run(make_vae(), ELBO())
    trainer.callbacks = [recorder := Recorder(), Checkpoint(tmp_path)]
    fit_again(trainer)
    assert len(recorder.weights) == 6
    assert (tmp_path / "step-00000015.safetensors").exists()
    assert dict(trainer.state.named_callbacks()).keys() == {"Checkpoint", "Recorder"}


def test_second_fit_uses_another_speed(monkeypatch):
    chosen = ResolvedSpeed(matmul="onednn")
    monkeypatch.setattr("tinyvae.training.preparation.resolve_speed", lambda *_: chosen)
    trainer = run(make_vae(), ELBO())
    trainer.speed = Speed(matmul="fast")
    assert fit_again(trainer).resolved_speed == chosen
    trainer.speed = Speed()
    assert fit_again(trainer).resolved_speed == ResolvedSpeed()


@for_each(
    ("name", "value"),
    [("model", make_linear()), ("objective", ELBO(beta=4.0)), ("device", torch.device("cpu"))],
)
def test_trainer_refuses_another_model_objective_or_device(name, value):
    trainer = Trainer(make_vae(), ELBO(), device="cpu", progress=False)
    with pytest.raises(AttributeError, match=f"property '{name}'"):
        setattr(trainer, name, value)


def test_fit_trains_inside_inference_mode():
    model = make_vae()
    with torch.inference_mode():
        trained = run(model, ELBO()).model
    assert same(trained, run(make_vae(), ELBO()).model)


def test_resume_warns_of_other_settings_of_the_optimizer(tmp_path):
    def fit(epochs, **settings):
        return run(
            make_vae(), ELBO(), epochs=epochs, fit={"resume": "auto"},
            callbacks=[Checkpoint(tmp_path)],
            optimization=Optimization(optimizer=lambda p: AdamW(p, **settings)),
        )  # fmt: skip

    fit(1, eps=1e-8)
    listed = r"betas = \(0.9, 0.999\), not \(0.5, 0.9\), eps = 1e-08, not 1e-06"
    with (
        pytest.warns(UserWarning, match=listed),
        pytest.warns(UserWarning, match="begun for 1 epochs"),
    ):
        trainer = fit(2, eps=1e-6, betas=(0.5, 0.9))
    assert options_of(trainer)["eps"] == 1e-8
