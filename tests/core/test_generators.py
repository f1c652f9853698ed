"""torch's default generators belong to the process: one thread at a time draws from them."""

import os
import threading
import warnings

import pytest
import torch
from helpers.threads import SECONDS, in_threads

from tinyvae.core.generators import GeneratorLock, exclusive_generators, generator_lock
from tinyvae.core.random import forked_rng

CPU = torch.device("cpu")


def draw():
    with forked_rng(CPU, 3):
        return torch.rand(3)


def test_generators_of_a_run_are_refused_to_other_threads():
    with exclusive_generators("fit", is_run=True):
        before = torch.get_rng_state()
        error = in_threads(draw)[0]
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(draw(), draw())  # the thread of the run may take them again
    message = r"this call expects that no other thread draws .* fit in thread 'MainThread'"
    with pytest.raises(RuntimeError, match=message):
        raise error
    assert torch.equal(in_threads(draw)[0], draw())


def test_generators_are_refused_after_a_nested_use_of_the_run():
    with exclusive_generators("fit", is_run=True):
        with exclusive_generators("fit", is_run=True):
            draw()
        assert isinstance(in_threads(draw)[0], RuntimeError)
    with exclusive_generators("evaluate"):
        with exclusive_generators("fit", is_run=True):
            pass
        assert not generator_lock()._is_run


def test_threads_wait_for_a_short_use_of_the_generators():
    entered, may_leave, order = threading.Event(), threading.Event(), []

    def hold():
        with exclusive_generators("evaluate"):
            entered.set()
            may_leave.wait(SECONDS)
            order.append("first")

    def wait():
        draw()
        order.append("second")

    threads = [threading.Thread(target=function, daemon=True) for function in (hold, wait)]
    threads[0].start()
    assert entered.wait(SECONDS)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive()
    may_leave.set()
    for thread in threads:
        thread.join(SECONDS)
    assert order == ["first", "second"]


def test_waiting_thread_raises_if_a_run_comes_first():
    lock, results = GeneratorLock(), []
    lock.acquire("evaluate", is_run=False)

    def wait():
        try:
            lock.acquire("evaluate", is_run=False)
        except RuntimeError as error:
            results.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    lock._is_run = True  # as if a run had taken the lock before the thread woke up
    with lock._condition:
        lock._condition.notify_all()
    thread.join(SECONDS)
    assert len(results) == 1


def test_generators_are_free_after_an_error():
    with pytest.raises(KeyError), exclusive_generators("fit", is_run=True):
        raise KeyError("planted")
    assert torch.equal(in_threads(draw)[0], draw())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_has_a_lock_of_its_own():
    expected, entered, may_leave = draw(), threading.Event(), threading.Event()

    def hold():
        with exclusive_generators("fit", is_run=True):
            entered.set()
            may_leave.wait(SECONDS)

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    assert entered.wait(SECONDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with several threads
        child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(draw(), expected) else 1)
    _, status = os.waitpid(child, 0)
    may_leave.set()
    holder.join(SECONDS)
    assert status == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_may_leave_the_block_of_its_parent():
    lock = generator_lock()
    child = None
    try:
        with exclusive_generators("fit", is_run=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if child == 0:
                lock._condition.acquire()  # as if another thread had held it at the fork
        if child == 0:
            draw()
            os._exit(0)
    finally:
        if child == 0:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
