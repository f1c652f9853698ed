"""Runs in a process of their own: refused, killed, out of space or memory, ended by a signal."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import torch
from helpers.runs import END, Breaking, Remembers, fit, make_mlp_vae, trainer_of
from helpers.training import After

from tinyvae import ELBO, Trainer
from tinyvae.io import save_tensors


def run_in_child(action, folder):
    """Call a function of this module in a new process, and return the completed process."""
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = str(torch.get_num_threads())
    return subprocess.run(
        [sys.executable, "-m", "helpers.child", action.__name__, str(folder), threads],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def resume_run(folder):
    fit(trainer_of(folder), resume="auto")


def kill_itself(folder):
    kill = After(8, lambda _: os.kill(os.getpid(), signal.SIGKILL))
    fit(trainer_of(folder, kill, every_steps=1))


def fill_disk(folder):
    """Write checkpoints of which the one of step 4 is too large."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    callback = Remembers({"x": torch.zeros(1)})
    grow = After(4, lambda _: setattr(callback, "memory", {"x": torch.zeros(300_000)}))
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    fit(trainer_of(folder, callback, grow, every_steps=1))


STATE_BYTES = 200_000_000


def limit_memory(copies):
    """Let the process allocate only as much as some copies of a large state."""
    import resource

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = size + int(copies * STATE_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def checkpoint_in_memory(folder, copies):
    """Write checkpoints of which the last two are large."""
    callback = Remembers({"x": torch.zeros(1)})

    def grow(state):
        callback.memory = {"x": torch.ones(STATE_BYTES // 4)}
        limit_memory(copies)

    fit(trainer_of(folder, callback, After(END - 1, grow), every_steps=1))


def checkpoint_in_half_a_copy(folder):
    checkpoint_in_memory(folder, 0.5)


def checkpoint_in_one_copy(folder):
    checkpoint_in_memory(folder, 1.5)


def save_in_half_a_copy(folder):
    model = make_mlp_vae()
    model.register_buffer("x", torch.ones(STATE_BYTES // 4))
    limit_memory(0.5)
    save_tensors(folder / "f", model.state_dict(), {})


def terminate_itself(folder):
    fit(trainer_of(folder, After(7, lambda _: signal.raise_signal(signal.SIGTERM))))


def train_in_thread(folder):
    """Train in a thread, while the main thread ends after step 2."""
    started = threading.Event()
    trainer = trainer_of(folder, After(2, lambda _: started.set()), every_steps=1, keep=99)
    trainer.callbacks.append(After(3, lambda _: threading.main_thread().join()))
    threading.Thread(target=fit, args=(trainer,)).start()
    started.wait()


def fork_and_exit(folder):
    """Leave ``fit`` in a forked child. Print what the run's own process has done."""
    run = os.getpid()
    fork = After(7, lambda _: os.fork() or sys.exit(0))
    trainer = Trainer(make_mlp_vae(), ELBO(), callbacks=[fork], device="cpu", progress=False)
    try:
        fit(trainer, Breaking(), workers=2)
    finally:
        if os.getpid() != run:
            os._exit(0)
    print(trainer.step)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    try:
        globals()[sys.argv[1]](Path(sys.argv[2]))
    except (OSError, MemoryError) as error:
        file = str(getattr(error, "filename", None))
        print(json.dumps([type(error).__name__, str(error), file]))
