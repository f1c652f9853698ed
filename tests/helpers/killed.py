"""A server that forks one process per request, which trains and may be killed.

Torch is imported once. The server has one thread and computes nothing, so that a forked process
starts like a new one.
"""

import gc
import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path

import torch
import torch._dynamo  # takes seconds; the first optimizer would import it
from helpers.configurations import (
    BATCH_SIZE,
    CONFIGURATIONS,
    EXAMPLES,
    Configuration,
    make_normalized,
)
from torch.utils.data import DataLoader, Dataset, get_worker_info

import tinyvae.io.tensors
import tinyvae.training.checkpoints.directory
import tinyvae.training.checkpoints.history_file
from tinyvae import (
    ELBO,
    Callback,
    Checkpoint,
    Optimization,
    Trainer,
)
from tinyvae.datasets import DynamicBinarization
from tinyvae.schedules import Linear
from tinyvae.training.checkpoints.directory import RunDirectory, load_checkpoint

EPOCHS = 10
STEPS = -(-EXAMPLES // BATCH_SIZE)  # per epoch; the last batch is smaller
FATAL_INDEX = 77
EVERY = 3  # steps between checkpoints
LIMIT = 240  # seconds after which SIGALRM ends a process that hangs


def make_data():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(EXAMPLES, 16, generator=generator)


def make_configuration(kind, flag, keep):
    """Return a row of the table, or one that reads the data as ``kind`` says."""
    torch.manual_seed(0)
    if kind in CONFIGURATIONS:
        return CONFIGURATIONS[kind]()
    train, options = make_train(kind, flag)
    return Configuration(
        train,
        make_normalized(),
        ELBO(beta=Linear(0.0, 1.0, fraction=0.7)),
        Optimization(0.01, schedule="cosine"),
        validation=make_data()[:32],
        trainer={"record_every": 7},
        checkpoint={"keep": keep},
        fit={"epochs": EPOCHS, "transform": DynamicBinarization(), **options},
    )


def digest(trainer, folder):
    """Return a digest of all that a run leaves, without the time."""
    sha = hashlib.sha256()
    newest = load_checkpoint(max(folder.glob("step-*.safetensors")))
    states = [trainer.model.state_dict(), trainer.objective.state_dict(), newest["rng"]]
    for optimizer in trainer.state.optimizers.values():
        states += optimizer.state_dict()["state"].values()
        sha.update(repr([g["lr"] for g in optimizer.param_groups]).encode())
    for name, value in (item for state in states for item in sorted(state.items())):
        sha.update(name.encode() + value.numpy().tobytes())
    epochs = [{n: v for n, v in row.items() if n != "time_seconds"} for row in trainer.history]
    schedulers = [s.state_dict()["last_epoch"] for s in trainer.state.schedulers.values()]
    reason = trainer.history.stop_reason
    sha.update(json.dumps([epochs, trainer.history.updates, schedulers, reason]).encode())
    return f"{trainer.epoch} {trainer.step} {sha.hexdigest()}"


# Data that other processes read ------------------------------------------------------------------


class Fatal(Dataset):
    """Kills the process that reads one of its examples, once."""

    def __init__(self, data, flag):
        self.data, self.flag = data, flag

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        if index == FATAL_INDEX and get_worker_info() and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.data[index]


def make_train(kind, flag):
    """Return training data and options of ``fit``."""
    data = make_data()
    if kind == "tensor":
        return data, {}
    fatal = Fatal(data, flag)
    if kind == "workers":
        return fatal, {"workers": 2}
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(fatal, BATCH_SIZE, shuffle=True, num_workers=1, generator=generator)
    return loader, {}


# Faults ------------------------------------------------------------------------------------------


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(LIMIT)


def die_in_writer(when, name, number):
    """Die before, after or in the middle of the n-th call of a function by the writer."""
    owner = Path if name == "unlink" else os
    original, count = getattr(owner, name), [0]

    def call_and_die(*args, **kwargs):
        count[0] += threading.current_thread().name.startswith("tinyvae-writer")
        if count[0] != number:
            return original(*args, **kwargs)
        if when == "half":
            original(args[0], args[1][: len(args[1]) // 2])
        if when == "after":
            original(*args, **kwargs)
        return kill_itself()

    setattr(owner, name, call_and_die)


def write_in_place():
    """Write slowly and without a temporary file."""

    def write(path, chunks, *, check):
        data = b"".join(chunks)
        with Path(path).open("wb", buffering=0) as file:
            for start in range(0, len(data), -(-len(data) // 16)):
                os.write(file.fileno(), data[start : start - (-len(data) // 16)])
                time.sleep(0.005)
            os.fsync(file.fileno())

    tinyvae.io.tensors.write_atomically = write


def delete_first():
    """Delete all checkpoints before the next one is written, slowly."""
    original = RunDirectory.write

    def write(self, *args):
        self.prune(0, None)
        time.sleep(0.08)
        original(self, *args)

    RunDirectory.write = write


def signal_at(name, function):
    """Send a signal before a function of the folder is called."""
    owner = (
        RunDirectory if hasattr(RunDirectory, function) else tinyvae.training.checkpoints.directory
    )
    original = getattr(owner, function)

    def signal_and_call(*args):
        os.kill(os.getpid(), getattr(signal, name))
        return original(*args)

    setattr(owner, function, signal_and_call)


def stay_offline(log):
    """Refuse connections to other computers, and log the attempts."""

    def refuse(*args, **kwargs):
        write_line(log, repr(args))
        raise OSError("there is no network")

    class Offline(socket.socket):
        def connect(self, address):
            return super().connect(address) if self.family == socket.AF_UNIX else refuse(address)

        connect_ex = connect

    socket.socket, socket.getaddrinfo = Offline, refuse


class Report(Callback):
    """Logs each step, and may be slow at one step or at all."""

    def __init__(self, log, slow_step=None, seconds=LIMIT):
        self.log, self.slow_step, self.seconds = log, slow_step, seconds

    def on_step_end(self, state, output):
        write_line(self.log, str(state.step))
        if self.slow_step in (state.step, "all"):
            write_line(self.log, "slow")
            time.sleep(self.seconds)


FAULTS = [die_in_writer, write_in_place, delete_first, signal_at]


def write_line(log, line):
    with log.open("ab", buffering=0) as file:
        file.write(line.encode() + b"\n")


def train(folder, *, faults=(), kind="tensor", keep=2, slow=(), resume="auto"):
    """Train to the end in a folder that may hold a run, and write a report next to it."""
    torch.set_num_threads(1)
    tinyvae.training.checkpoints.history_file.BLOCK_ROWS = 4
    warnings.simplefilter("error", UserWarning)
    for pattern in ("the data cannot restore their position", "This DataLoader will create"):
        warnings.filterwarnings("ignore", pattern)
    log = folder.with_suffix(".log")
    functions = {fault.__name__: fault for fault in FAULTS}
    for name, *arguments in faults:
        functions[name](*arguments)
    lock = RunDirectory.lock

    def log_and_lock(self):  # the handlers of signals are installed by now
        write_line(log, "locked")
        return lock(self)

    RunDirectory.lock = log_and_lock
    run = make_configuration(kind, folder.with_suffix(".flag"), keep)
    for pattern in run.ignored:
        warnings.filterwarnings("ignore", pattern)
    checkpoint = Checkpoint(
        folder, **{"every_steps": EVERY, "every_minutes": None, **run.checkpoint}
    )
    trainer = Trainer(
        run.model,
        run.objective,
        run.optimization,
        callbacks=[checkpoint, Report(log, *slow), *run.callbacks],
        device="cpu",
        progress=False,
        **run.trainer,
    )
    report = {}
    try:
        trainer.fit(run.train, run.validation, batch_size=BATCH_SIZE, resume=resume, **run.fit)
        report = {"digest": digest(trainer, folder), "stop_reason": trainer.history.stop_reason}
    except RuntimeError as error:
        report = {"error": str(error)}
    folder.with_suffix(".json").write_text(json.dumps(report))


def call_and_exit(call, *args, **kwargs):
    """Call a function, and end the process at once with the exit code that Python would give."""
    code = 1
    try:
        call(*args, **kwargs)
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def serve():
    """Fork a process per line of input. Print its pid, its end and its exit code."""
    torch.set_num_threads(1)
    gc.freeze()  # forked processes need not copy this memory
    while line := sys.stdin.readline():
        request = json.loads(line)
        folder, forks = Path(request.pop("folder")), request.pop("forks", True)
        if not forks:
            train(folder, **request)
            answer(ended=True)
            continue
        tasks = Path("/proc/self/task")
        threads = len(list(tasks.iterdir())) if tasks.exists() else threading.active_count()
        assert threads == 1
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            # A process in the background ignores SIGINT.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.alarm(LIMIT)
            call_and_exit(train, folder, **request)
        answer(pid=pid)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # keeps the pid
        answer(ended=True)
        sys.stdin.readline()
        answer(code=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def answer(**values):
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        stay_offline(Path(sys.argv[1]))
    serve()
