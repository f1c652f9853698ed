import contextlib
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
from tinyvae.training.signals import graceful_stop

REASON = "interrupted"


def interrupt(_trainer=None):
    os.kill(os.getpid(), signal.SIGINT)


def interrupt_twice(_trainer):
    interrupt()
    interrupt()


def fit(*callbacks, **options):
    return run(make_linear(), LeastSquares(), callbacks=callbacks, epochs=4, **options)


def test_the_first_interrupt_ends_the_run_after_its_step():
    recorder = Recorder()
    trainer = fit(recorder, After(STEPS + 2, interrupt), validation=DATA, record_every=1)
    assert trainer.step == STEPS + 2
    assert trainer.history.stop_reason == REASON
    assert trainer.history["step"] == [STEPS, STEPS + 2]
    assert [row["step"] for row in trainer.history.updates] == list(range(1, STEPS + 3))
    uninterrupted = Recorder()
    fit(uninterrupted)
    assert same(trainer.model, uninterrupted.weights[STEPS + 2])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_within_a_step_lets_it_end():
    class Interrupted(LeastSquares):
        def forward(self, model, batch):
            interrupt()
            return super().forward(model, batch)

    recorder = Recorder()
    fit(recorder)
    trainer = run(make_linear(), Interrupted())
    assert trainer.step == 1
    assert same(trainer.model, recorder.weights[1])


def test_an_interrupt_of_the_checks_is_not_lost():
    class Interrupted(LeastSquares):
        def check(self, model, batch):
            interrupt()
            return super().check(model, batch)

    trainer = run(make_linear(), Interrupted())
    assert trainer.step == 0
    assert trainer.history.stop_reason == REASON


def test_the_second_interrupt_ends_at_once():
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
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupted_run_continues():
    trainer = fit(After(2, interrupt))
    trainer.fit(DATA, epochs=1, batch_size=8)
    assert trainer.history.stop_reason is None
    assert trainer.history["step"] == [2, 2 + STEPS]


def test_an_interrupt_of_the_validation_keeps_its_row():
    class Interrupted(LeastSquares):
        def forward(self, model, batch):
            if not self.training:
                interrupt()
            return super().forward(model, batch)

    trainer = run(make_linear(), Interrupted(), DATA, DATA[:8])
    assert trainer.history["step"] == [STEPS]
    assert "validation/loss" in trainer.history.epochs[0]
    assert trainer.history.stop_reason == REASON


def test_the_best_weights_are_restored_after_an_interrupt():
    class Worse(Callback):
        def on_epoch_end(self, trainer, row):
            row["score"] = -row["epoch"]

    recorder = Recorder()
    stopping = EarlyStopping("score", patience=9)
    trainer = fit(recorder, After(2 * STEPS + 1, interrupt), Worse(), stopping)
    assert trainer.history.stop_reason == REASON
    assert same(trainer.model, recorder.weights[STEPS])


def test_another_handler_is_restored_and_gets_the_second():
    def own(signum, frame):
        calls.append(signum)

    calls = []
    signal.signal(signal.SIGINT, own)
    trainer = fit(After(2, interrupt_twice))
    assert trainer.step == 2
    assert calls == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is own


def test_an_ignored_interrupt_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    handlers = []
    trainer = fit(
        After(1, lambda _: handlers.append(signal.getsignal(signal.SIGINT))), After(2, interrupt)
    )
    assert trainer.step == 4 * STEPS
    assert trainer.history.stop_reason is None
    assert handlers == [signal.SIG_IGN]
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_off_the_main_thread_nothing_is_installed():
    handlers, trainers = [], []
    look = After(1, lambda _: handlers.append(signal.getsignal(signal.SIGINT)))
    thread = threading.Thread(target=lambda: trainers.append(fit(look)))
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]
    assert trainers[0].step == 4 * STEPS


def test_the_handler_is_restored_after_an_error():
    with contextlib.suppress(RuntimeError), graceful_stop(print, on_preemption=False):
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        raise RuntimeError("planted")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
