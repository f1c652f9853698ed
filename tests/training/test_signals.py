"""Signals: the first one ends a run after its step, the second one acts at once."""

import os
import signal
import threading

import pytest
from helpers.training import (
    DATA,
    STEPS,
    After,
    LeastSquares,
    Recorder,
    make_linear,
    run,
    same,
)

from tinyvae import Callback, EarlyStopping, Trainer
from tinyvae.training.signals import defer_sigchld, graceful_stop
from tinyvae.training.state import StopRequest

DEFAULT = signal.default_int_handler


def interrupt(state=None):
    os.kill(os.getpid(), signal.SIGINT)


def interrupt_twice(state):
    interrupt()
    interrupt()


def fit(*callbacks, **options):
    return run(make_linear(), LeastSquares(), callbacks=callbacks, epochs=4, **options)


# The first signal --------------------------------------------------------------------------------


def test_signal_ends_the_run_after_its_step():
    recorder = Recorder()
    trainer = fit(recorder, After(STEPS + 2, interrupt), validation=DATA, record_every=1)
    assert trainer.step == STEPS + 2
    assert trainer.history.stop_reason == "interrupted"
    assert trainer.state.stop_request == StopRequest("interrupted", resumable=True)
    assert trainer.history["step"] == [STEPS, STEPS + 2]
    assert [row["step"] for row in trainer.history.updates] == list(range(1, STEPS + 3))
    uninterrupted = Recorder()
    fit(uninterrupted)
    assert same(trainer.model, uninterrupted.weights[STEPS + 2])
    assert signal.getsignal(signal.SIGINT) is DEFAULT


def test_signal_within_a_step_lets_the_step_end():
    class Interrupted(LeastSquares):
        def forward(self, model, batch):
            interrupt()
            return super().forward(model, batch)

    recorder = Recorder()
    fit(recorder)
    trainer = run(make_linear(), Interrupted())
    assert trainer.step == 1
    assert same(trainer.model, recorder.weights[1])


def test_signal_before_the_first_step_ends_the_run():
    class Interrupted(LeastSquares):
        def check(self, model, batch):
            interrupt()
            return super().check(model, batch)

    trainer = run(make_linear(), Interrupted())
    assert trainer.step == 0
    assert trainer.history.stop_reason == "interrupted"


def test_signal_during_validation_keeps_the_row():
    class Interrupted(LeastSquares):
        def forward(self, model, batch):
            if not self.training:
                interrupt()
            return super().forward(model, batch)

    trainer = run(make_linear(), Interrupted(), DATA, DATA[:8])
    assert trainer.history["step"] == [STEPS]
    assert "validation/loss" in trainer.history.epochs[0]
    assert trainer.history.stop_reason == "interrupted"


def test_signal_does_not_prevent_a_later_fit():
    trainer = fit(After(2, interrupt))
    trainer.fit(DATA, epochs=1, batch_size=8)
    assert trainer.history.stop_reason is None
    assert trainer.history["step"] == [2, 2 + STEPS]


def test_signal_lets_early_stopping_restore_the_best_weights():
    class Worsen(Callback):
        def on_epoch_end(self, state, row):
            row["score"] = -row["epoch"]

    recorder = Recorder()
    stopping = EarlyStopping("score", mode="max", patience=9)
    trainer = fit(recorder, After(2 * STEPS + 1, interrupt), Worsen(), stopping)
    assert trainer.history.stop_reason == "interrupted"
    assert same(trainer.model, recorder.weights[STEPS])


# The second signal -------------------------------------------------------------------------------


def test_signal_sent_twice_raises_at_once():
    recorder = Recorder()
    trainer = Trainer(
        make_linear(),
        LeastSquares(),
        callbacks=[recorder, After(STEPS + 2, interrupt_twice)],
        device="cpu",
        progress=False,
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(DATA, epochs=4, batch_size=8)
    assert trainer.step == STEPS + 2
    assert len(trainer.history) == 1
    assert same(trainer.model, recorder.weights[-1])
    assert signal.getsignal(signal.SIGINT) is DEFAULT


def test_signal_sent_twice_reaches_the_previous_handler():
    def handler(signum, frame):
        calls.append(signum)

    calls = []
    signal.signal(signal.SIGINT, handler)
    trainer = fit(After(2, interrupt_twice))
    assert trainer.step == 2
    assert calls == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is handler


# Handlers ----------------------------------------------------------------------------------------


def test_signal_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    handlers = []
    look = After(1, lambda _: handlers.append(signal.getsignal(signal.SIGINT)))
    trainer = fit(look, After(2, interrupt))
    assert trainer.step == 4 * STEPS
    assert trainer.history.stop_reason is None
    assert handlers == [signal.SIG_IGN]
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_signal_handler_is_not_installed_outside_the_main_thread():
    handlers, trainers = [], []
    look = After(1, lambda _: handlers.append(signal.getsignal(signal.SIGINT)))
    thread = threading.Thread(target=lambda: trainers.append(fit(look)))
    thread.start()
    thread.join()
    assert handlers == [DEFAULT]
    assert trainers[0].step == 4 * STEPS


def fail_in_graceful_stop():
    with graceful_stop(print, on_preemption=False):
        assert signal.getsignal(signal.SIGINT) is not DEFAULT
        raise RuntimeError("planted")


def test_signal_handler_is_restored_after_an_error():
    with pytest.raises(RuntimeError, match="planted"):
        fail_in_graceful_stop()
    assert signal.getsignal(signal.SIGINT) is DEFAULT


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="needs SIGCHLD")
def test_signal_of_a_child_is_deferred_to_the_end_of_the_block():
    def handler(signum, frame):
        events.append(signum)

    events = []
    previous = signal.signal(signal.SIGCHLD, handler)
    try:
        with defer_sigchld():
            signal.raise_signal(signal.SIGCHLD)
            signal.raise_signal(signal.SIGCHLD)
            events.append("end of the step")
        assert events == ["end of the step", signal.SIGCHLD]
        assert signal.getsignal(signal.SIGCHLD) is handler
    finally:
        signal.signal(signal.SIGCHLD, previous)
