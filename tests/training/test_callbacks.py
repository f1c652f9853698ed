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
    raises,
    rows,
    run,
    same,
    weights_of,
)
from torch.optim.lr_scheduler import ExponentialLR

from tinyvae import Callback, EarlyStopping, Optimization, Trainer


class Log(Callback):
    """Events in a list that callbacks share."""

    def __init__(self, events, name=""):
        self.events, self.name = events, name

    def on_fit_start(self, trainer):
        self.events.append(f"{self.name}start")

    def on_step_end(self, trainer, output):
        self.events.append(f"{self.name}step {trainer.step}")

    def on_epoch_end(self, trainer, row):
        self.events.append(f"{self.name}epoch {trainer.epoch}")

    def on_fit_end(self, trainer):
        self.events.append(f"{self.name}end")


class Script(Callback):
    """A column ``score`` of given values, and the weights of every epoch."""

    def __init__(self, *values):
        self.values, self.weights = values, []

    def on_epoch_end(self, trainer, row):
        row["score"] = self.values[int(row["epoch"]) - 1]
        self.weights.append(weights_of(trainer.model))


def fit(*callbacks, epochs=2, **options):
    return run(make_linear(), LeastSquares(), epochs=epochs, callbacks=callbacks, **options)


# Order -------------------------------------------------------------------------------------------


def test_callbacks_are_called_in_order_and_end_in_reverse():
    events = []
    run(
        make_linear(),
        LeastSquares(),
        DATA[:9],
        callbacks=[Log(events, "a "), Log(events, "b ")],
    )
    inner = [f"step {s}" for s in (1, 2)], [f"step {s}" for s in (3, 4)]
    expected = ["start", *inner[0], "epoch 1", *inner[1], "epoch 2"]
    both = [f"{name} {event}" for event in expected for name in "ab"]
    assert events == [*both, "b end", "a end"]


def test_callbacks_change_nothing():
    assert same(fit(Log([]), Recorder()).model, fit().model)


def test_what_a_callback_sees():
    class Sees(Callback):
        def on_fit_start(self, trainer):
            seen.append((trainer.plan.num_steps, trainer.plan.total_steps))

        def on_step_end(self, trainer, output):
            seen.append((trainer.epoch, trainer.step, len(trainer.history)))

        def on_epoch_end(self, trainer, row):
            seen.append((trainer.epoch, trainer.step, trainer.history.epochs[-1] is row))

    seen = []
    trainer = run(make_linear(), LeastSquares(), DATA[:9], epochs=1, callbacks=[Sees()])
    trainer.fit(DATA[:9], epochs=1)
    first = [(2, 2), (0, 1, 0), (0, 2, 0), (1, 2, True)]
    assert seen == [*first, (1, 3), (1, 3, 1), (2, 3, True)]


@pytest.mark.parametrize("error", [RuntimeError("planted"), KeyboardInterrupt()])
def test_the_end_is_called_after_an_error_too(error):
    events = []
    with pytest.raises(type(error)):
        fit(Log(events, "a "), After(2, raises(error)), Log(events, "b "))
    assert events[-3:] == ["a step 2", "b end", "a end"]


def test_only_callbacks_that_started_end():
    class Refuses(Callback):
        def on_fit_start(self, trainer):
            raise RuntimeError("planted")

        def on_fit_end(self, trainer):
            events.append("not started")

    events = []
    with pytest.raises(RuntimeError, match="planted"):
        fit(Log(events), Refuses(), Log(events, "after "))
    assert events == ["start", "end"]


def test_what_a_callback_adds_to_a_row_becomes_history():
    assert fit(Script(1.0, 2.0)).history["score"] == [1.0, 2.0]


# stop() ------------------------------------------------------------------------------------------


def test_stop_ends_the_run_after_its_step():
    recorder = Recorder()
    halving = Optimization(scheduler=lambda o: ExponentialLR(o, 0.5))
    trainer = run(
        make_linear(),
        LeastSquares(),
        DATA,
        DATA,
        epochs=5,
        optimization=halving,
        callbacks=[recorder, After(STEPS + 2, lambda t: t.stop("enough"))],
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


def test_the_first_reason_counts():
    def stop_twice(trainer):
        trainer.stop("first")
        trainer.stop("second")

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
        "max", "min", "patience 1", "equal", "min_delta", "min_delta of min", "NaN",
        "NaN at first", "never",
    ],
)  # fmt: skip
def test_early_stopping_stops_in_time_with_the_best_weights(scores, settings, epochs, best):
    script, stopping = Script(*scores), EarlyStopping("score", **settings)
    trainer = fit(script, stopping, epochs=6)
    assert len(trainer.history) == epochs
    assert (stopping.best_epoch, stopping.best) == (best, scores[best - 1])
    assert same(trainer.model, script.weights[best - 1])
    reason = (
        f"score has not improved for {settings['patience']} epochs since {scores[best - 1]:.6g} "
        f"at epoch {best}, whose weights are restored"
    )
    assert trainer.history.stop_reason == (None if epochs == 6 else reason)


def test_early_stopping_that_never_saw_a_number_keeps_the_last_weights():
    script, stopping = Script(*[math.nan] * 6), EarlyStopping("score", patience=3)
    trainer = fit(script, stopping, epochs=6)
    assert len(trainer.history) == 3
    assert stopping.best_epoch is None
    assert same(trainer.model, script.weights[-1])


def test_early_stopping_may_keep_the_last_weights():
    script = Script(1, 0, 0)
    trainer = fit(script, EarlyStopping("score", patience=1, restore_best=False), epochs=3)
    assert same(trainer.model, script.weights[1])


def test_early_stopping_restores_buffers_too():
    model = torch.nn.Sequential(make_linear(), torch.nn.BatchNorm1d(4))
    script = Script(1, 0, 0)
    run(model, LeastSquares(), epochs=3, callbacks=[script, EarlyStopping("score", patience=2)])
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


@pytest.mark.parametrize(
    ("stopping", "message"),
    [
        (EarlyStopping(), "'validation/elbo_nats', but fit got no validation data"),
        (EarlyStopping("train/elbo"), r"watches 'train/elbo', expected one of \['epoch', "),
    ],
)
def test_early_stopping_needs_its_column(stopping, message):
    with pytest.raises(ValueError, match=message):
        fit(stopping)


def test_early_stopping_needs_patience():
    with pytest.raises(ValueError, match="patience >= 1, got 0"):
        EarlyStopping(patience=0)


def test_early_stopping_starts_afresh_with_every_fit():
    script, stopping = Script(9, 1, 1, 2, 3, 2), EarlyStopping("score", patience=2)
    trainer = fit(script, stopping, epochs=3)
    assert (len(trainer.history), stopping.best_epoch) == (3, 1)
    trainer.fit(DATA, epochs=3)
    assert (len(trainer.history), stopping.best_epoch) == (6, 5)
    assert same(trainer.model, script.weights[4])


def test_early_stopping_restores_after_a_stop_in_the_middle_of_an_epoch():
    script, stopping = Script(1, 2, 1, 0, 0), EarlyStopping("validation/score", patience=3)

    class Rename(Callback):
        def on_epoch_end(self, trainer, row):
            if "validation/loss" in row:  # as validation columns are: only of whole epochs
                row["validation/score"] = row["score"]

    stop = After(3 * STEPS + 2, lambda t: t.stop("interrupted"))
    trainer = run(
        make_linear(), LeastSquares(), DATA, DATA, epochs=5,
        callbacks=[stop, script, Rename(), stopping],
    )  # fmt: skip
    assert trainer.history["step"][-1] == 3 * STEPS + 2
    assert trainer.history.stop_reason == "interrupted"
    assert stopping.best_epoch == 2
    assert same(trainer.model, script.weights[1])


def test_early_stopping_counts_an_epoch_at_whose_end_the_run_was_stopped():
    class StopAfterTwo(Callback):
        def on_epoch_end(self, trainer, row):
            if trainer.epoch == 2:
                trainer.stop("two are enough")

    script, stopping = Script(1, 2, 3), EarlyStopping("score")
    trainer = fit(script, StopAfterTwo(), stopping, epochs=3)
    assert stopping.best_epoch == 2
    assert same(trainer.model, script.weights[1])
    assert trainer.history.stop_reason == "two are enough"


def test_early_stopping_restores_after_an_error():
    script, stopping = Script(1, 0, 0), EarlyStopping("score")
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


def test_early_stopping_is_the_run_until_then():
    stopped = fit(Script(2, 1, 1, 1), EarlyStopping("score", patience=2), epochs=4)
    whole = fit(Script(2, 1, 1, 1), epochs=3)
    assert rows(stopped.history) == rows(whole.history)
