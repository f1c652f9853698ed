"""Callbacks: their order, their hooks, stopping a run, and EarlyStopping."""

import math

import pytest
import torch
from helpers.training import (
    DATA,
    STEPS,
    After,
    LeastSquares,
    Recorder,
    make_linear,
    make_vae,
    raises,
    rows,
    run,
    same,
    weights_of,
)
from torch.optim.lr_scheduler import ExponentialLR

from tinyvae import ELBO, Callback, Checkpoint, EarlyStopping, Optimization, Trainer
from tinyvae.errors import CheckpointError


class Log(Callback):
    """Logs the calls of its hooks in a list that callbacks share."""

    def __init__(self, events, name=""):
        self.events, self.name = events, name

    def on_fit_start(self, state):
        self.events.append(f"{self.name}start")

    def on_step_end(self, state, output):
        self.events.append(f"{self.name}step {state.step}")

    def on_validation_start(self, state):
        self.events.append(f"{self.name}validation start {state.epoch}")

    def on_validation_end(self, state):
        self.events.append(f"{self.name}validation end {state.epoch}")

    def on_epoch_end(self, state, row):
        self.events.append(f"{self.name}epoch {state.epoch}")

    def on_fit_end(self, state):
        self.events.append(f"{self.name}end")


class Script(Callback):
    """Adds a column ``score``, and copies the weights of every epoch."""

    def __init__(self, *values):
        self.values, self.weights = values, []

    def on_epoch_end(self, state, row):
        row["score"] = self.values[int(row["epoch"]) - 1]
        self.weights.append(weights_of(state.model))


def fit(*callbacks, epochs=2, **options):
    return run(make_linear(), LeastSquares(), epochs=epochs, callbacks=callbacks, **options)


# Order -------------------------------------------------------------------------------------------


def test_callbacks_run_in_order_and_end_in_reverse():
    events = []
    run(
        make_linear(),
        LeastSquares(),
        DATA[:9],
        callbacks=[Log(events, "a "), Log(events, "b ")],
    )
    expected = ["start", "step 1", "step 2", "epoch 1", "step 3", "step 4", "epoch 2"]
    both = [f"{name} {event}" for event in expected for name in "ab"]
    assert events == [*both, "b end", "a end"]


def test_callbacks_do_not_change_the_run():
    assert same(fit(Log([]), Recorder()).model, fit().model)


def test_callbacks_see_the_current_state():
    class Look(Callback):
        def on_fit_start(self, state):
            seen.append((state.plan.num_steps, state.plan.total_steps))

        def on_step_end(self, state, output):
            seen.append((state.epoch, state.step, len(state.history)))

        def on_epoch_end(self, state, row):
            seen.append((state.epoch, state.step, state.history.epochs[-1] is row))

    seen = []
    trainer = run(make_linear(), LeastSquares(), DATA[:9], epochs=1, callbacks=[Look()])
    trainer.fit(DATA[:9], epochs=1)
    first = [(2, 2), (0, 1, 0), (0, 2, 0), (1, 2, True)]
    assert seen == [*first, (1, 3), (1, 3, 1), (2, 3, True)]


def test_callbacks_on_fit_end_runs_after_an_error():
    for error in (RuntimeError("planted"), KeyboardInterrupt()):
        events = []
        with pytest.raises(type(error)):
            fit(Log(events, "a "), After(2, raises(error)), Log(events, "b "))
        assert events[-3:] == ["a step 2", "b end", "a end"]


def test_callbacks_on_fit_end_runs_only_after_on_fit_start():
    class Refuses(Callback):
        def on_fit_start(self, state):
            raise RuntimeError("planted")

        def on_fit_end(self, state):
            events.append("not started")

    events = []
    with pytest.raises(RuntimeError, match="planted"):
        fit(Log(events), Refuses(), Log(events, "after "))
    assert events == ["start", "end"]


def test_callbacks_on_epoch_end_adds_columns_to_the_history():
    assert fit(Script(1.0, 2.0)).history["score"] == [1.0, 2.0]


# Validation --------------------------------------------------------------------------------------


def test_callbacks_validation_hooks_run_around_every_validation():
    class LogForward(LeastSquares):
        def forward(self, model, batch):
            if not model.training:
                events.append("validate")
            return super().forward(model, batch)

    events = []
    callbacks = [Log(events, "a "), Log(events, "b ")]
    run(make_linear(), LogForward(), DATA[:8], DATA[:9], callbacks=callbacks)
    expected = []
    for epoch in (0, 1):
        expected += [f"a validation start {epoch}", f"b validation start {epoch}"]
        expected += ["validate", "validate"]
        expected += [f"b validation end {epoch}", f"a validation end {epoch}"]
    assert [event for event in events if "valid" in event] == expected
    first_end, first_epoch = events.index("a validation end 0"), events.index("a epoch 1")
    assert events.index("b step 1") < events.index("a validation start 0")
    assert first_end < first_epoch


def test_callbacks_validation_hooks_do_not_run_without_a_validation():
    events = []
    fit(Log(events))
    stop = After(2, lambda state: state.stop("enough"))  # an epoch cut short is not validated
    run(make_linear(), LeastSquares(), DATA, DATA, callbacks=[Log(events), stop])
    assert "epoch 1" in events
    assert not [event for event in events if "validation" in event]


def test_callbacks_on_validation_end_runs_after_an_error():
    class Refuses(Callback):
        def on_validation_start(self, state):
            raise RuntimeError("planted")

        def on_validation_end(self, state):
            events.append("not started")

    class FailsToValidate(LeastSquares):
        def forward(self, model, batch):
            if not model.training:
                raise RuntimeError("planted")
            return super().forward(model, batch)

    ends = ["b validation end 0", "a validation end 0", "b end", "a end"]
    for objective, third, expected in (
        (FailsToValidate(), Callback(), ends),
        (LeastSquares(), Refuses(), ends),
    ):
        events = []
        callbacks = [Log(events, "a "), Log(events, "b "), third]
        with pytest.raises(RuntimeError, match="planted"):
            run(make_linear(), objective, DATA, DATA, callbacks=callbacks)
        assert events[-4:] == expected
        assert "not started" not in events


class SwapWeights(Callback):
    """Validates with the first weights of the run, as an average of weights would be swapped in."""

    def on_fit_start(self, state):
        self.first = weights_of(state.model)

    def on_validation_start(self, state):
        self.current = weights_of(state.model)
        state.model.load_state_dict(self.first)

    def on_validation_end(self, state):
        state.model.load_state_dict(self.current)


def test_callbacks_that_swap_weights_change_the_validation_and_not_the_run():
    plain, swapped = Recorder(), Recorder()
    options = {"train": DATA, "validation": DATA, "epochs": 3}
    expected = run(make_vae(dropout=0.2), ELBO(), callbacks=[plain], **options)
    trainer = run(make_vae(dropout=0.2), ELBO(), callbacks=[SwapWeights(), swapped], **options)
    assert all(map(same, swapped.weights, plain.weights))
    assert len(swapped.weights) == len(plain.weights)
    assert rows(trainer.history, "train/") == rows(expected.history, "train/")
    first, *others = rows(trainer.history, "validation/")
    assert others == [first, first]
    still = Optimization(learning_rate=0.0)
    untrained = run(make_vae(dropout=0.2), ELBO(), optimization=still, **options)
    assert first == rows(untrained.history, "validation/")[0]
    assert first not in rows(expected.history, "validation/")


def test_callbacks_restore_swapped_weights_after_an_error_in_the_validation():
    class FailsToValidate(LeastSquares):
        def forward(self, model, batch):
            assert model.training, "planted"
            return super().forward(model, batch)

    model, recorder = make_linear(), Recorder()
    with pytest.raises(AssertionError, match="planted"):
        run(model, FailsToValidate(), DATA, DATA, callbacks=[SwapWeights(), recorder])
    assert same(model, recorder.weights[STEPS])


# state.stop --------------------------------------------------------------------------------------


def test_stop_ends_the_run_after_its_step_without_validation():
    recorder = Recorder()
    halving = Optimization(scheduler=lambda o: ExponentialLR(o, 0.5))
    trainer = run(
        make_linear(),
        LeastSquares(),
        DATA,
        DATA,
        epochs=5,
        optimization=halving,
        callbacks=[recorder, After(STEPS + 2, lambda state: state.stop("enough"))],
        record_every=1,
    )
    assert trainer.step == STEPS + 2
    assert same(trainer.model, recorder.weights[-1])
    assert len(recorder.weights) == STEPS + 3
    history = trainer.history
    assert history.stop_reason == "enough"
    assert history["step"] == [STEPS, STEPS + 2]
    assert history["validation/loss"][1] is None  # the epoch was cut short
    last = [row["loss"] for row in history.updates[-2:]]
    assert history["train/loss"][1] == pytest.approx(sum(last) / 2)
    assert trainer.state.optimizers["model"].param_groups[0]["lr"] == 5e-4


def test_stop_keeps_the_first_reason():
    def stop_twice(state):
        state.stop("first")
        state.stop("second")

    assert fit(After(2, stop_twice)).history.stop_reason == "first"


# EarlyStopping -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "settings", "epochs", "best"),
    [
        ([1, 2, 3, 2, 1, 9], {"patience": 2}, 5, 3),
        ([3, 2, 1, 2, 1, 9], {"patience": 2, "mode": "min"}, 5, 3),
        ([1, 2, 3, 2, 1, 9], {"patience": 1}, 4, 3),
        ([1, 1, 1, 1, 1, 9], {"patience": 2}, 3, 1),
        ([1, 1.5, 1.9, 2, 9, 9], {"patience": 3, "min_delta": 1.0}, 4, 1),
        ([9, 8.5, 8.1, 8, 0, 0], {"patience": 3, "min_delta": 1.0, "mode": "min"}, 4, 1),
        ([1, math.nan, 2, math.nan, math.nan, 9], {"patience": 2}, 5, 3),
        ([math.nan, math.nan, 1, 2, 3, 4], {"patience": 3}, 6, 6),
        ([1, 2, 3, 4, 5, 6], {"patience": 1}, 6, 6),
    ],
    ids=[
        "max", "min", "patience 1", "equal", "min_delta", "min_delta of min", "nan",
        "nan first", "never",
    ],
)  # fmt: skip
def test_early_stopping_stops_after_patience_with_the_best_weights(scores, settings, epochs, best):
    script, stopping = Script(*scores), EarlyStopping("score", **{"mode": "max", **settings})
    trainer = fit(script, stopping, epochs=6)
    assert len(trainer.history) == epochs
    assert (stopping.best_epoch, stopping.best) == (best, scores[best - 1])
    assert same(trainer.model, script.weights[best - 1])
    reason = (
        f"score has not improved for {settings['patience']} epochs since {scores[best - 1]:.6g} "
        f"at epoch {best}, whose weights are restored"
    )
    assert trainer.history.stop_reason == (None if epochs == 6 else reason)


def test_early_stopping_keeps_the_last_weights_if_all_values_are_nan():
    script, stopping = Script(*[math.nan] * 6), EarlyStopping("score", mode="max", patience=3)
    trainer = fit(script, stopping, epochs=6)
    assert len(trainer.history) == 3
    assert stopping.best_epoch is None
    reason = "score has not improved for 3 epochs: none of its values was finite"
    assert trainer.history.stop_reason == reason
    assert same(trainer.model, script.weights[-1])


def test_early_stopping_without_restore_best_keeps_the_last_weights():
    script = Script(1, 0, 0)
    trainer = fit(
        script, EarlyStopping("score", mode="max", patience=1, restore_best=False), epochs=3
    )
    assert same(trainer.model, script.weights[1])


def test_early_stopping_restores_buffers():
    model = torch.nn.Sequential(make_linear(), torch.nn.BatchNorm1d(4))
    script = Script(1, 0, 0)
    run(
        model,
        LeastSquares(),
        epochs=3,
        callbacks=[script, EarlyStopping("score", mode="max", patience=2)],
    )
    assert same(model, script.weights[0])
    assert model[1].num_batches_tracked == STEPS


def test_early_stopping_watches_the_validation_bound_by_default():
    class Scored(LeastSquares):
        def forward(self, model, batch):
            output = super().forward(model, batch)
            output.metrics["elbo_nats"] = -output.metrics["error_nats"]
            return output

    stopping = EarlyStopping()
    history = run(make_linear(), Scored(), DATA, DATA[:9], epochs=4, callbacks=[stopping]).history
    assert stopping.best == max(history["validation/elbo_nats"])
    assert (stopping.patience, stopping.best_epoch) == (10, 4)


def test_early_stopping_names_a_missing_column():
    for stopping, message in (
        (EarlyStopping(), "'validation/elbo_nats', but fit got no validation data"),
        (
            EarlyStopping("train/elbo", mode="max"),
            r"watches 'train/elbo', expected one of \['epoch', ",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            fit(stopping)


def test_early_stopping_checks_its_arguments():
    for options, message in (
        ({"patience": 0}, "patience >= 1, got 0"),
        ({"min_delta": -1.0}, r"min_delta >= 0, got -1\.0"),
        ({"mode": "most"}, "mode 'max' or 'min', got 'most'"),
    ):
        with pytest.raises(ValueError, match=message):
            EarlyStopping(**options)


def test_early_stopping_expects_the_name_of_a_column_first():
    with pytest.raises(TypeError, match=r"name of a column, .* got 10: pass other settings by"):
        EarlyStopping(10)


def test_early_stopping_forgets_earlier_calls_of_fit():
    script, stopping = Script(9, 1, 1, 2, 3, 2), EarlyStopping("score", mode="max", patience=2)
    trainer = fit(script, stopping, epochs=3)
    assert (len(trainer.history), stopping.best_epoch) == (3, 1)
    trainer.fit(DATA, epochs=3)
    assert (len(trainer.history), stopping.best_epoch) == (6, 5)
    assert same(trainer.model, script.weights[4])


def test_early_stopping_restores_weights_after_a_stop_within_an_epoch():
    script, stopping = (
        Script(1, 2, 1, 0, 0),
        EarlyStopping("validation/score", patience=3, mode="max"),
    )

    class Rename(Callback):
        def on_epoch_end(self, state, row):
            if "validation/loss" in row:  # only complete epochs have validation columns
                row["validation/score"] = row["score"]

    stop = After(3 * STEPS + 2, lambda state: state.stop("interrupted"))
    trainer = run(
        make_linear(), LeastSquares(), DATA, DATA, epochs=5,
        callbacks=[stop, script, Rename(), stopping],
    )  # fmt: skip
    assert trainer.history["step"][-1] == 3 * STEPS + 2
    assert trainer.history.stop_reason == "interrupted"
    assert stopping.best_epoch == 2
    assert same(trainer.model, script.weights[1])


def test_early_stopping_counts_an_epoch_that_ends_with_a_stop():
    class StopAfterTwo(Callback):
        def on_epoch_end(self, state, row):
            if state.epoch == 2:
                state.stop("two are enough")

    script, stopping = Script(1, 2, 3), EarlyStopping("score", mode="max")
    trainer = fit(script, StopAfterTwo(), stopping, epochs=3)
    assert stopping.best_epoch == 2
    assert same(trainer.model, script.weights[1])
    assert trainer.history.stop_reason == "two are enough"


def test_early_stopping_restores_weights_after_an_error():
    script, stopping = Script(1, 0, 0), EarlyStopping("score", mode="max")
    trainer = Trainer(
        make_linear(),
        LeastSquares(),
        callbacks=[script, stopping, After(STEPS + 2, raises(RuntimeError("planted")))],
        device="cpu",
        progress=False,
    )
    with pytest.raises(RuntimeError, match="planted"):
        trainer.fit(DATA, epochs=3, batch_size=8)
    assert same(trainer.model, script.weights[0])


def test_early_stopping_does_not_change_earlier_epochs():
    stopped = fit(Script(2, 1, 1, 1), EarlyStopping("score", mode="max", patience=2), epochs=4)
    complete = fit(Script(2, 1, 1, 1), epochs=3)
    assert rows(stopped.history) == rows(complete.history)


# Resuming ----------------------------------------------------------------------------------------


class TotalLoss(Callback):
    """Adds the sum of the losses of all steps to the history."""

    def __init__(self):
        self.total = 0.0

    def on_step_end(self, state, output):
        self.total += output.losses["model"].item()

    def on_epoch_end(self, state, row):
        row["total_loss"] = self.total

    def state_dict(self):
        return {"total": self.total}

    def check_state(self, state, saved):
        if not isinstance(saved["total"], float):
            raise TypeError(f"expected a number, got {saved['total']!r}")

    def load_state_dict(self, saved):
        self.total = saved["total"]


def fit_in(folder, *callbacks):
    checkpoint = Checkpoint(folder, every_steps=1, every_minutes=None)
    callbacks = [checkpoint, TotalLoss(), *callbacks]
    return run(make_vae(), ELBO(), callbacks=callbacks, fit={"resume": "auto"})


@pytest.mark.parametrize("step", [STEPS - 1, STEPS, STEPS + 2])
def test_callbacks_continue_with_their_state_in_a_resumed_run(step, tmp_path):
    complete = fit_in(tmp_path / "complete")
    with pytest.raises(KeyboardInterrupt):
        fit_in(tmp_path / "run", After(step + 1, raises(KeyboardInterrupt())))
    resumed = fit_in(tmp_path / "run")
    assert resumed.history["total_loss"] == complete.history["total_loss"]


def test_callbacks_check_state_refuses_a_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        fit_in(tmp_path, After(STEPS, raises(KeyboardInterrupt())))
    monkeypatch.setattr(TotalLoss, "state_dict", lambda _: {"total": "many"})
    with pytest.raises(KeyboardInterrupt):
        fit_in(tmp_path, After(STEPS + 1, raises(KeyboardInterrupt())))
    message = "state of TotalLoss is not valid: .*expected a number, got 'many'"
    with pytest.raises(CheckpointError, match=message):
        fit_in(tmp_path)


# Gradients ---------------------------------------------------------------------------------------


def test_callbacks_read_clipped_gradients_by_a_hook_of_the_optimizer():
    class Norms(Callback):
        def on_fit_start(self, state):
            self.norms, self.parameters = [], state.groups["model"]
            self.handle = state.optimizers["model"].register_step_pre_hook(self.read)

        def read(self, optimizer, args, kwargs):
            self.norms.append(torch.nn.utils.get_total_norm(p.grad for p in self.parameters).item())

        def on_step_end(self, state, output):
            assert all(p.grad is None for p in self.parameters)

        def on_fit_end(self, state):
            self.handle.remove()

    norms = Norms()
    trainer = fit(norms, optimization=Optimization(clip_norm=1e-3))
    assert norms.norms == pytest.approx([1e-3] * 2 * STEPS, rel=1e-2)
    assert same(trainer.model, fit(optimization=Optimization(clip_norm=1e-3)).model)
