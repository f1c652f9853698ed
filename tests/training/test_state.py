"""The state of a run: its form in a checkpoint, its length, and requests to stop."""

import copy
from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import pytest
import torch
from helpers.training import BATCH_SIZE, DATA, STEPS, After, LeastSquares, make_linear, make_vae

import tinyvae.training.state
from tinyvae import ELBO, Callback, EarlyStopping, Optimization, Trainer
from tinyvae.schedules import Linear
from tinyvae.training.exchange import stops
from tinyvae.training.state import STATE_VERSION, RunPlan, StopRequest, TrainState


def make_state(*callbacks):
    return TrainState(make_linear(), LeastSquares(), torch.device("cpu"), callbacks)


def stopped_trainer(steps, seed):
    """Return a Trainer of a run with every kind of state, stopped after some steps."""
    stop = After(steps, lambda state: state.stop("planted", resumable=True))
    trainer = Trainer(
        make_vae(dropout=0.2),
        ELBO(beta=Linear(0.0, 1.0, fraction=0.8)),
        Optimization(0.02, schedule="cosine"),
        callbacks=[stop, EarlyStopping("train/elbo_nats", patience=9)],
        record_every=2,
        seed=seed,
        device="cpu",
        progress=False,
    )
    trainer.fit(DATA, epochs=3, batch_size=BATCH_SIZE)
    return trainer


def leaves(tree, name=""):
    """Return the values of a nested state by their paths, tensors as lists."""
    if isinstance(tree, dict):
        tree = tree.items()
    elif isinstance(tree, (list, tuple)):
        tree = enumerate(tree)
    else:
        return {name: tree.tolist() if isinstance(tree, torch.Tensor) else repr(tree)}
    return {k: v for key, value in tree for k, v in leaves(value, f"{name}.{key}").items()}


# Saving and loading ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:a schedule does not end")
def test_train_state_load_state_dict_restores_every_part(monkeypatch):
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=0.0)
    first, second = stopped_trainer(2 * STEPS + 2, seed=0), stopped_trainer(STEPS + 4, seed=1)
    monkeypatch.setattr(tinyvae.training.state, "time", clock)
    clock.now = first.state.start_time + 50.0
    torch.manual_seed(3)
    saved = copy.deepcopy(first.state.state_dict())
    assert saved["state_version"] == STATE_VERSION
    assert saved["position"]["seconds"] == pytest.approx(50.0)

    clock.now += 1000.0
    torch.manual_seed(4)
    before = second.state.state_dict()
    restored = ["position", "model", "objective", "optimizers", "schedulers", "history"]
    restored += ["running_means", "callbacks", "rng"]
    assert [name for name in restored if leaves(before[name]) == leaves(saved[name])] == []
    # EarlyStopping forgets its best weights at the end of a run.
    saved["callbacks"]["EarlyStopping"]["best_weights"] = saved["model"]
    second.state.stop_request = None
    second.state.load_state_dict(copy.deepcopy(saved))
    second.state.load_late_state(copy.deepcopy(saved))
    after = second.state.state_dict()
    assert after["position"].pop("seconds") == pytest.approx(saved["position"].pop("seconds"))
    for name in restored:
        assert leaves(after[name]) == leaves(saved[name]), name
    assert second.state.stop_request is None


def test_train_state_state_dict_keeps_a_final_stop_and_drops_a_resumable_one():
    for resumable, expected in ((False, "planted"), (True, None)):
        state = make_state()
        state.plan = RunPlan(0, 1, 1)
        state.stop("planted", resumable=resumable)
        saved = state.state_dict()
        assert saved["history"]["stop_reason"] == expected
        other = make_state()
        other.load_state_dict(saved)
        assert other.stop_request == (None if expected is None else StopRequest(expected))


def test_train_state_load_state_dict_keeps_a_stop_that_came_first():
    state = make_state()
    state.plan = RunPlan(0, 1, 1)
    saved = state.state_dict()
    state.stop("SIGTERM", resumable=True)
    state.load_state_dict(saved)
    assert state.stop_request == StopRequest("SIGTERM", resumable=True)
    assert state.history.stop_reason == "SIGTERM"


def test_train_state_named_callbacks_numbers_equal_classes():
    callbacks = [Callback(), EarlyStopping(), Callback()]
    named = make_state(*callbacks).named_callbacks()
    assert named == list(zip(("Callback", "EarlyStopping", "Callback 2"), callbacks, strict=True))


# Requests to stop --------------------------------------------------------------------------------


def test_stop_request_is_final_by_default_and_cannot_change():
    request = StopRequest("enough")
    assert not request.resumable
    with pytest.raises(FrozenInstanceError):
        request.resumable = True


def test_train_state_stop_keeps_the_first_request():
    for resumable in (True, False):
        state = make_state()
        assert state.stop_request is None
        assert not state.is_interrupted
        state.stop("first", resumable=resumable)
        state.stop("second", resumable=not resumable)
        assert state.stop_request == StopRequest("first", resumable)
        assert state.history.stop_reason == "first"
        assert state.is_interrupted is resumable
        assert stops(state)


def test_train_state_stop_ends_the_run_of_its_trainer():
    trainer = Trainer(make_linear(), LeastSquares(), device="cpu", progress=False)
    trainer.callbacks.append(After(3, lambda _: trainer.state.stop("enough")))
    trainer.fit(DATA, epochs=2, batch_size=BATCH_SIZE)
    assert (trainer.step, trainer.history.stop_reason) == (3, "enough")
    trainer.fit(DATA, epochs=1, batch_size=BATCH_SIZE)  # a new call forgets the request
    assert (trainer.step, trainer.history.stop_reason) == (3 + STEPS, None)


# Length ------------------------------------------------------------------------------------------


def test_run_plan_for_new_run_counts_more_epochs_or_all():
    for epoch, epochs, in_total, num_epochs, last_epoch in (
        (0, 3, False, 3, 3),
        (2, 3, False, 3, 5),
        (2, 3, True, 1, 3),
        (4, 3, True, 0, 4),
    ):
        plan = RunPlan.for_new_run(epoch, epochs, in_total=in_total)
        assert (plan.start_epoch, plan.num_epochs, plan.last_epoch) == (
            epoch,
            num_epochs,
            last_epoch,
        )
        assert plan.scheduled_epochs == max(num_epochs, 1)


def test_run_plan_for_resumed_run_keeps_the_length_of_schedules():
    saved = {"plan": {"start_epoch": 2, "scheduled_epochs": 3}}
    for epochs, num_epochs in ((5, 3), (9, 7), (1, 0)):
        plan = RunPlan.for_resumed_run(saved, epochs)
        assert (plan.start_epoch, plan.num_epochs, plan.scheduled_epochs) == (2, num_epochs, 3)


def test_run_plan_remaining_steps_counts_from_a_batch():
    plan = RunPlan(start_epoch=1, num_epochs=2, scheduled_epochs=2)
    for position, expected in (((5, 1, 0), 10), ((5, 2, 3), 2), ((5, 3, 0), 0), ((5, 9, 0), 0)):
        assert plan.remaining_steps(*position) == expected
    assert plan.remaining_steps(None, 1, 0) is None
