"""Processes that train are killed or signaled at any time, and resume bitwise.

HYPOTHESIS_PROFILE=soak kills them more often. A process that hangs is ended by SIGALRM, which shows
in its exit code.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.configurations import CONFIGURATIONS, QUICK
from helpers.killed import EPOCHS, EVERY, STEPS

from tinyvae.errors import CheckpointError
from tinyvae.training.checkpoints.directory import load_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes"),
]

IS_SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
END = EPOCHS * STEPS
KILLED = -signal.SIGKILL
MAX_POLLS = 60_000
KILLS = {"compiled": 2}  # per row of the table, where each process compiles for seconds
TESTS = str(Path(__file__).parents[2])


class Server:
    """The process that forks a process for each request."""

    def __init__(self, *arguments, **environment):
        paths = os.pathsep.join([TESTS, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "helpers.killed", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **environment},
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()

    def write(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def read(self, name):
        return json.loads(self.process.stdout.readline())[name]

    def train_in_server(self, run, **request):
        """Train in the server itself. After this it can fork no more."""
        self.write(json.dumps({"folder": str(run.folder), "forks": False, **request}))
        self.read("ended")

    def train(self, run, meanwhile=None, **request):
        """Train in a new process, call ``meanwhile(pid)``, and return the exit code."""
        run.report_file.unlink(missing_ok=True)
        run.log.write_bytes(b"")
        self.write(json.dumps({"folder": str(run.folder), **request}))
        pid = self.read("pid")
        try:
            if meanwhile is not None:
                meanwhile(pid)
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise
        finally:
            self.read("ended")
            self.write("")
            code = self.read("code")
        return code


@dataclass
class Run:
    """The folder of a run, and the reports of its processes."""

    folder: Path

    @property
    def log(self):
        return self.folder.with_suffix(".log")

    @property
    def flag(self):
        return self.folder.with_suffix(".flag")

    @property
    def report_file(self):
        return self.folder.with_suffix(".json")

    @property
    def report(self):
        return json.loads(self.report_file.read_text())

    @property
    def lines(self):
        return self.log.read_text().split()

    @property
    def steps(self):
        """Steps of the checkpoints, the newest last. Each file is valid."""
        files = sorted(self.folder.glob("step-*.safetensors"))
        return [load_checkpoint(file)["position"]["step"] for file in files]

    @property
    def model(self):
        return self.folder / "model.safetensors"

    def last_step(self, default=0):
        """Return the last step of the latest process, ``default`` if it made none."""
        steps = [int(line) for line in self.lines if line.isdigit()]
        return steps[-1] if steps else default

    def wait_for(self, line):
        for _ in range(MAX_POLLS):
            if line in self.lines:
                return
            time.sleep(0.001)
        raise AssertionError(f"no '{line}' in the log")

    def check_end(self, digest):
        """Assert that the run has ended bitwise, and that its folder holds nothing else."""
        assert self.report["digest"] == digest
        epochs, end = map(int, digest.split()[:2])
        lines = (self.folder / "history.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["epoch"] for row in rows] == list(range(1, epochs + 1))
        names = {file.name for file in self.folder.iterdir()}
        steps = {f"step-{step:08d}.safetensors" for step in self.steps}
        assert end in self.steps
        names.discard("history.bin")  # of runs with enough rows
        assert names == {"history.jsonl", "lock", "model.safetensors", *steps}


@pytest.fixture(scope="module")
def server():
    with Server() as server:
        yield server


@pytest.fixture(scope="module")
def complete(server, tmp_path_factory):
    """The digest of an uninterrupted run, and its duration, to draw times of kills from."""
    folder = tmp_path_factory.mktemp("complete")
    run = Run(folder / "run")
    assert server.train(run) == 0
    start = time.monotonic()
    assert server.train(Run(folder / "again")) == 0
    return {"digest": run.report["digest"], "seconds": time.monotonic() - start}


# SIGKILL -----------------------------------------------------------------------------------------


def kill_at_random(server, complete, folder, kills):
    """Kill a run at random times. Start another one whenever one has reached its end."""
    source, count, index = random.Random(0), 0, 0
    run, newest, has_ended = Run(folder / "0"), [], False
    while count < kills or not has_ended:
        if has_ended:
            index += 1
            run, newest = Run(folder / f"{index}"), []
        delay = source.uniform(0.01, 0.6) * complete["seconds"] if count < kills else None

        def kill(pid, delay=delay):
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)

        code = server.train(run, None if delay is None else kill)
        assert code in (KILLED, 0)
        count += code == KILLED
        steps, last_step = run.steps, run.last_step()
        assert steps or not (newest or last_step), "all checkpoints have been lost"
        assert not newest or steps[-1] >= newest[-1]
        assert not last_step or steps[-1] >= last_step - 2 * EVERY  # one may be in the writer
        assert len(steps) <= 3
        assert not run.model.exists() or steps[-1] == END
        newest, has_ended = steps, code == 0
        if has_ended:
            run.check_end(complete["digest"])


def test_resume_after_random_kills_is_bitwise(server, complete, tmp_path):
    kill_at_random(server, complete, tmp_path, 60 if IS_SOAK else 12)


def kill_after_steps(run, count):
    """Return a function that kills a process after some of its steps, unless it ends before."""

    def kill(pid):
        for _ in range(MAX_POLLS):
            if len(run.lines) > count or run.report_file.exists():  # the first line is "locked"
                break
            time.sleep(0.001)
        time.sleep(source.uniform(0.0, 0.01))
        os.kill(pid, signal.SIGKILL)

    source = random.Random(count)
    return kill


@pytest.mark.parametrize("kind", CONFIGURATIONS if IS_SOAK else QUICK)
def test_resume_of_killed_runs_is_bitwise(server, kind, tmp_path):
    source, kills, count, index = random.Random(kind), KILLS.get(kind, 8), 0, 0
    run = Run(tmp_path / "complete")
    assert server.train(run, kind=kind) == 0
    digest, end = run.report["digest"], run.steps[-1]
    run, newest, has_ended = Run(tmp_path / "0"), [], False
    while count < kills or not has_ended:
        if has_ended:
            index += 1
            run, newest = Run(tmp_path / f"{index}"), []
        kill = kill_after_steps(run, source.randrange(end // 2)) if count < kills else None
        code = server.train(run, kill, kind=kind)
        assert code in (KILLED, 0)
        count += code == KILLED
        steps = run.steps
        assert steps or not (newest or run.last_step()), "all checkpoints have been lost"
        assert not newest or steps[-1] >= newest[-1]
        newest, has_ended = steps, code == 0
        if has_ended:
            run.check_end(digest)


# A checkpoint is one write, two fsyncs, one replace, and later one unlink.
INSTANTS = [
    "before write",
    "half write",
    "before fsync",
    "before replace",
    "after replace",
    "before unlink",
    "after unlink",
]


def kill_in_writer(server, complete, run, instant, faults=()):
    """Let the writer of one process after the other die at its n-th checkpoint."""
    newest = []
    for number in range(1, 6):
        die = ["die_in_writer", *instant.split(), number]
        assert server.train(run, faults=[die, *faults]) == KILLED
        assert run.steps or number == 1, "all checkpoints have been lost"
        assert not newest or run.steps[-1] >= newest[-1]
        newest = run.steps
    assert server.train(run) == 0
    run.check_end(complete["digest"])


@pytest.mark.parametrize("instant", INSTANTS)
def test_resume_after_kills_of_the_writer_is_bitwise(server, complete, tmp_path, instant):
    kill_in_writer(server, complete, Run(tmp_path / "run"), instant)


@pytest.mark.parametrize("instant", ["half write", "before write"])
def test_kills_of_the_writer_detect_writing_in_place(server, complete, tmp_path, instant):
    with pytest.raises(CheckpointError):
        kill_in_writer(server, complete, Run(tmp_path / "run"), instant, [["write_in_place"]])


def test_kills_of_the_writer_detect_pruning_before_writing(server, complete, tmp_path):
    with pytest.raises(AssertionError, match="all checkpoints have been lost"):
        kill_in_writer(server, complete, Run(tmp_path / "run"), "before write", [["delete_first"]])


# Signals that end a run --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_signal_at_random_times_keeps_the_last_step(server, complete, tmp_path, name):
    signum, source, count, previous = getattr(signal, name), random.Random(1), 0, 0
    run, index = Run(tmp_path / "0"), 0
    while count < (20 if IS_SOAK else 8):
        delay = source.uniform(0.0, 0.2) * complete["seconds"]

        def send(pid, run=run, delay=delay):
            run.wait_for("locked")
            time.sleep(delay)
            os.kill(pid, signum)

        code = server.train(run, send)
        if END in run.steps:  # the run ended before the signal
            index += 1
            run, previous = Run(tmp_path / f"{index}"), 0
            assert index < 20
            continue
        assert code == 128 + signum
        assert run.steps[-1] == run.last_step(previous)
        assert not run.model.exists()
        count, previous = count + 1, run.steps[-1]
    assert server.train(run) == 0
    run.check_end(complete["digest"])


def signal_after(run, line, signum=signal.SIGTERM):
    """Return a function that sends a signal after a line of the log."""

    def send(pid):
        run.wait_for(str(line))
        os.kill(pid, signum)

    return send


@pytest.mark.parametrize("function", ["load_checkpoint", "reset_history"])
def test_signal_before_the_first_step_ends_the_run(server, complete, tmp_path, function):
    run = Run(tmp_path / "run")
    assert server.train(run, signal_after(run, 24)) == 128 + signal.SIGTERM
    steps = run.steps
    code = server.train(run, faults=[["signal_at", "SIGTERM", function]])
    assert code == 128 + signal.SIGTERM
    assert run.steps == steps
    assert not run.model.exists()
    assert server.train(run) == 0
    run.check_end(complete["digest"])


def test_resume_into_another_folder_after_an_early_kill_is_bitwise(server, complete, tmp_path):
    first, run = Run(tmp_path / "first"), Run(tmp_path / "run")
    assert server.train(first, signal_after(first, 24)) == 128 + signal.SIGTERM
    newest = first.folder / f"step-{first.steps[-1]:08d}.safetensors"
    die = ["die_in_writer", "before", "write", 2]
    assert server.train(run, faults=[die], resume=str(newest)) == KILLED
    assert run.steps == first.steps[-1:]
    assert server.train(run) == 0
    run.check_end(complete["digest"])


def test_signal_and_a_kill_in_the_last_write_leave_valid_files(server, complete, tmp_path):
    run = Run(tmp_path / "run")
    die = ["die_in_writer", "before", "replace", 8]  # checkpoints of steps 0, 3, ..., 18, and 20
    code = server.train(run, signal_after(run, "slow"), faults=[die], slow=[20, 0.3])
    assert code == KILLED
    assert run.steps[-1] == 18
    assert server.train(run) == 0
    run.check_end(complete["digest"])


def test_signal_sent_twice_ends_the_process_within_a_step(server, complete, tmp_path):
    run = Run(tmp_path / "run")

    def send_twice(pid):
        run.wait_for("slow")  # the step lasts until SIGALRM
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.2)
        os.kill(pid, signal.SIGTERM)

    assert server.train(run, send_twice, slow=[20]) == -signal.SIGTERM
    assert server.train(run) == 0
    run.check_end(complete["digest"])


def test_signal_of_the_keyboard_returns_from_fit(server, complete, tmp_path):
    run = Run(tmp_path / "run")
    assert server.train(run, signal_after(run, "slow", signal.SIGINT), slow=[24, 0.3]) == 0
    assert run.report["stop_reason"] == "interrupted"
    assert run.steps[-1] == run.last_step() == 24
    assert not run.model.exists()
    assert server.train(run) == 0
    run.check_end(complete["digest"])


# Processes that read data ------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["workers", "loader"])
def worker_run(request, server, tmp_path_factory):
    """The kind of data that other processes read, and the digest of an uninterrupted run."""
    run = Run(tmp_path_factory.mktemp("workers") / "run")
    run.flag.touch()  # no process dies
    assert server.train(run, kind=request.param) == 0
    return {"kind": request.param, "digest": run.report["digest"]}


@pytest.mark.parametrize("slow", [[], ["all", 0.05]], ids=["waiting", "within a step"])
def test_resume_after_the_death_of_a_data_worker_is_bitwise(server, worker_run, tmp_path, slow):
    run = Run(tmp_path / "run")
    assert server.train(run, kind=worker_run["kind"], slow=slow) == 0
    assert run.flag.exists()
    assert 'fit(..., resume="auto")' in run.report["error"]
    assert run.steps[-1] == run.last_step()
    assert not run.model.exists()
    assert server.train(run, kind=worker_run["kind"]) == 0
    run.check_end(worker_run["digest"])


def test_signal_that_also_reaches_data_workers_ends_the_run(server, worker_run, tmp_path):
    run, kind, step = Run(tmp_path / "run"), worker_run["kind"], 4
    run.flag.touch()

    def send_to_group(pid):
        run.wait_for(str(step))
        os.killpg(pid, signum)

    for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        for slow in [[], ["all", 0.05]]:  # the run waits for data, or is within a step
            code = server.train(run, send_to_group, kind=kind, slow=slow)
            assert code == (0 if signum == signal.SIGINT else 128 + signum)
            assert step <= run.steps[-1] == run.last_step() < END
            step = run.steps[-1] + 4
    assert server.train(run, kind=kind) == 0
    run.check_end(worker_run["digest"])


# Environment -------------------------------------------------------------------------------------


def test_fit_needs_neither_network_nor_home(complete, tmp_path):
    (tmp_path / "file").touch()
    home, log = tmp_path / "file" / "home", tmp_path / "connections"  # a folder that cannot exist
    with Server(str(log), HOME=str(home), XDG_CACHE_HOME=str(home / "cache")) as server:
        run = Run(tmp_path / "run")
        assert server.train(run, signal_after(run, 20)) == 128 + signal.SIGTERM
        assert server.train(run) == 0
        run.check_end(complete["digest"])
        other = Run(tmp_path / "other")
        server.train_in_server(other)  # in a process that is not forked
        other.check_end(complete["digest"])
    assert not log.exists()
