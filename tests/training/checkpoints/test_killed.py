"""A run may be killed at any instant: a real process trains, dies, and goes on bitwise.

HYPOTHESIS_PROFILE=soak kills it more often.
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
SOON = 5.0  # seconds


class Server:
    """The process that forks a life for each request."""

    def __init__(self, *arguments, **environment):
        command = [
            sys.executable,
            str(Path(__file__).parents[2] / "helpers" / "killed.py"),
            *arguments,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
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

    def read(self, word):
        return json.loads(self.process.stdout.readline())[word]

    def here(self, run, **request):
        """Train in the server itself, once no more lives are to be forked."""
        self.write(json.dumps({"folder": str(run.folder), "forks": False, **request}))
        self.read("ended")

    def live(self, run, meanwhile=None, **request):
        """One life: how it ended, and how many seconds after ``meanwhile(pid)`` did."""
        run.report_file.unlink(missing_ok=True)
        run.log.write_bytes(b"")
        self.write(json.dumps({"folder": str(run.folder), **request}))
        pid = self.read("pid")
        start = time.monotonic()
        try:
            if meanwhile is not None:
                meanwhile(pid)
            start = time.monotonic()
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise
        finally:
            self.read("ended")
            seconds = time.monotonic() - start
            self.write("")
            code = self.read("code")
        return code, seconds


@dataclass
class Run:
    """The folder of a run, and what its lives say of themselves."""

    folder: Path

    @property
    def log(self):
        return self.folder.with_suffix(".log")

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
        """Steps of the checkpoints, the newest last; each is whole."""
        files = sorted(self.folder.glob("step-*.safetensors"))
        return [load_checkpoint(file)["position"]["step"] for file in files]

    @property
    def model(self):
        return self.folder / "model.safetensors"

    def wait_for(self, line):
        end = time.monotonic() + 20
        while line not in self.lines:
            assert time.monotonic() < end, f"no '{line}' has come"
            time.sleep(0.001)

    def check_end(self, digest):
        """It went on to the end, bitwise; nothing else is left in the folder."""
        assert self.report["digest"] == digest
        lines = (self.folder / "history.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
        names = {file.name for file in self.folder.iterdir()}
        steps = {f"step-{step:08d}.safetensors" for step in self.steps}
        assert END in self.steps
        assert names == {"history.jsonl", "lock", "model.safetensors", *steps}


def last_step(run, before):
    """The last step of a life; ``before`` if it took none."""
    steps = [int(line) for line in run.lines if line.isdigit()]
    return steps[-1] if steps else before


@pytest.fixture(scope="module")
def server():
    with Server() as server:
        yield server


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """A run that nobody has touched, and its time."""
    run = Run(tmp_path_factory.mktemp("whole") / "run")
    assert server.live(run)[0] == 0
    _, seconds = server.live(Run(run.folder.with_name("again")))
    return {"digest": run.report["digest"], "seconds": seconds}


# Killed without a word ----------------------------------------------------------------------------


def killed_at_random(server, whole, folder, kills, **request):
    """Kill a run again and again; begin another whenever one has got through."""
    draw, count, runs = random.Random(0), 0, 1
    run, newest, is_through = Run(folder / "0"), [], False
    while count < kills or not is_through:
        if is_through:
            run, newest, runs = Run(folder / f"{runs}"), [], runs + 1
        delay = draw.uniform(0.01, 0.6) * whole["seconds"] if count < kills else None

        def kill(pid, delay=delay):
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)

        code, _ = server.live(run, None if delay is None else kill, **request)
        assert code in (KILLED, 0)
        count += code == KILLED
        steps, done = run.steps, last_step(run, 0)
        assert steps or not (newest or done), "all checkpoints have been lost"
        assert not newest or steps[-1] >= newest[-1]
        assert not done or steps[-1] >= done - 2 * EVERY  # at most one is being written
        assert len(steps) <= 3
        assert not run.model.exists() or steps[-1] == END
        newest, is_through = steps, code == 0
        if is_through:
            run.check_end(whole["digest"])


def test_a_run_that_is_killed_at_random_gets_through_bitwise(server, whole, tmp_path):
    killed_at_random(server, whole, tmp_path, 60 if IS_SOAK else 12)


# Instants of the writer: a checkpoint is one write, two fsyncs, one replace, and soon one unlink.
INSTANTS = [
    "before write",
    "half write",
    "before fsync",
    "before replace",
    "after replace",
    "before unlink",
    "after unlink",
]


def killed_in_the_writer(server, whole, run, instant, faults=()):
    """Let the writer die at each of its first checkpoints, over and over."""
    newest = []
    for number in range(1, 6):
        plants = [["die_in_writer", *instant.split(), number], *faults]
        assert server.live(run, plants=plants)[0] == KILLED
        assert not newest or run.steps[-1] >= newest[-1]
        newest = run.steps
    assert server.live(run)[0] == 0
    run.check_end(whole["digest"])


@pytest.mark.parametrize("instant", INSTANTS)
def test_a_run_whose_writer_dies_gets_through_bitwise(server, whole, tmp_path, instant):
    killed_in_the_writer(server, whole, Run(tmp_path / "run"), instant)


@pytest.mark.parametrize("instant", ["half write", "before write"])
def test_a_writer_in_place_is_found_out(server, whole, tmp_path, instant):
    with pytest.raises(CheckpointError):
        killed_in_the_writer(server, whole, Run(tmp_path / "run"), instant, [["write_in_place"]])


def test_random_kills_find_out_a_writer_in_place(server, whole, tmp_path):
    with pytest.raises(CheckpointError):
        killed_at_random(server, whole, tmp_path, 30, plants=[["write_in_place"]])


def test_random_kills_find_out_a_writer_that_makes_room_first(server, whole, tmp_path):
    with pytest.raises(AssertionError, match="all checkpoints have been lost"):
        killed_at_random(server, whole, tmp_path, 30, plants=[["delete_first"]], keep=1)


# Told to end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_run_that_is_told_to_end_keeps_its_last_step(server, whole, tmp_path, name):
    signum, draw, told, before = getattr(signal, name), random.Random(1), 0, 0
    run, runs = Run(tmp_path / "0"), 1
    while told < (20 if IS_SOAK else 8):
        delay = draw.uniform(0.0, 0.2) * whole["seconds"]

        def tell(pid, run=run, delay=delay):
            run.wait_for("held")
            time.sleep(delay)
            os.kill(pid, signum)

        code, seconds = server.live(run, tell)
        if END in run.steps:  # it was faster
            run, runs, before = Run(tmp_path / f"{runs}"), runs + 1, 0
            assert runs < 20
            continue
        assert code == 128 + signum
        assert seconds < SOON
        assert run.steps[-1] == last_step(run, before)
        assert not run.model.exists()
        told, before = told + 1, run.steps[-1]
    assert server.live(run)[0] == 0
    run.check_end(whole["digest"])


def stop_at(run, pid, line, signum=signal.SIGTERM):
    run.wait_for(str(line))
    os.kill(pid, signum)


@pytest.mark.parametrize("function", ["load_checkpoint", "reset_history"])
def test_a_run_that_is_told_to_end_before_its_first_step_ends(server, whole, tmp_path, function):
    run = Run(tmp_path / "run")
    code, _ = server.live(run, lambda pid: stop_at(run, pid, 24))
    assert code == 128 + signal.SIGTERM
    steps = run.steps
    code, _ = server.live(run, plants=[["signal_at", "SIGTERM", function]])
    assert code == 128 + signal.SIGTERM
    assert run.steps == steps
    assert not run.model.exists()
    assert server.live(run)[0] == 0
    run.check_end(whole["digest"])


def test_a_run_that_went_to_another_folder_and_died_at_once_gets_through(server, whole, tmp_path):
    first, run = Run(tmp_path / "first"), Run(tmp_path / "run")
    code, _ = server.live(first, lambda pid: stop_at(first, pid, 24))
    assert code == 128 + signal.SIGTERM
    newest = first.folder / f"step-{first.steps[-1]:08d}.safetensors"
    dies = [["die_in_writer", "before", "write", 2]]
    assert server.live(run, plants=dies, resume=str(newest))[0] == KILLED
    assert run.steps == first.steps[-1:]
    assert server.live(run)[0] == 0
    run.check_end(whole["digest"])


def test_a_run_that_is_told_to_end_and_killed_at_its_last_write_leaves_nothing(
    server, whole, tmp_path
):
    run = Run(tmp_path / "run")
    dies = [["die_in_writer", "before", "replace", 8]]  # checkpoints of steps 0, 3, ..., 18, and 20

    def tell(pid):
        stop_at(run, pid, "slow")

    assert server.live(run, tell, plants=dies, slow=[20, 0.3])[0] == KILLED
    assert run.steps[-1] == 18
    assert server.live(run)[0] == 0
    run.check_end(whole["digest"])


def test_a_run_that_is_told_twice_ends_at_once(server, whole, tmp_path):
    run = Run(tmp_path / "run")

    def tell_twice(pid):
        run.wait_for("slow")
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.2)
        os.kill(pid, signal.SIGTERM)

    code, seconds = server.live(run, tell_twice, slow=[20])
    assert code == -signal.SIGTERM
    assert seconds < SOON
    assert server.live(run)[0] == 0
    run.check_end(whole["digest"])


def test_an_interrupted_run_returns_and_goes_on(server, whole, tmp_path):
    run = Run(tmp_path / "run")

    slow = [24, 0.3]
    assert server.live(run, lambda pid: stop_at(run, pid, "slow", signal.SIGINT), slow=slow)[0] == 0
    assert run.report["stop_reason"] == "interrupted"
    assert run.steps[-1] == last_step(run, 0) == 24
    assert not run.model.exists()
    assert server.live(run)[0] == 0
    run.check_end(whole["digest"])


# Data that are read by a process that dies --------------------------------------------------------


@pytest.fixture(scope="module", params=["workers", "loader"])
def read(request, server, tmp_path_factory):
    """A run whose data are read by other processes, none of which dies."""
    run = Run(tmp_path_factory.mktemp("read") / "run")
    run.folder.with_suffix(".flag").touch()
    assert server.live(run, kind=request.param)[0] == 0
    return {"kind": request.param, "digest": run.report["digest"]}


@pytest.mark.parametrize("slow", [[], ["all", 0.05]], ids=["waits for data", "amid a step"])
def test_a_run_whose_reader_dies_says_so_and_goes_on(server, read, tmp_path, slow):
    run = Run(tmp_path / "run")
    assert server.live(run, kind=read["kind"], slow=slow)[0] == 0
    assert run.report["time"] - run.folder.with_suffix(".flag").stat().st_mtime < SOON
    assert 'fit(..., resume="auto") continues' in run.report["error"]
    assert run.steps[-1] == last_step(run, 0)
    assert not run.model.exists()
    assert server.live(run, kind=read["kind"])[0] == 0
    run.check_end(read["digest"])


def test_a_signal_to_the_processes_that_read_as_well_ends_the_run(server, read, tmp_path):
    run, kind, step = Run(tmp_path / "run"), read["kind"], 4
    run.folder.with_suffix(".flag").touch()

    def tell_all(pid):
        run.wait_for(str(step))
        os.killpg(pid, signum)

    for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        for slow in [[], ["all", 0.05]]:  # the run waits for data; it is amid a step
            code, seconds = server.live(run, tell_all, kind=kind, slow=slow)
            assert code == (0 if signum == signal.SIGINT else 128 + signum)
            assert seconds < SOON
            assert step <= run.steps[-1] == last_step(run, 0) < END
            step = run.steps[-1] + 4
    assert server.live(run, kind=kind)[0] == 0
    run.check_end(read["digest"])


# Alone --------------------------------------------------------------------------------------------


def test_neither_a_network_nor_a_home_is_needed(whole, tmp_path):
    (tmp_path / "file").touch()
    home, tried = tmp_path / "file" / "home", tmp_path / "tried"  # no home can be made there
    with Server(str(tried), HOME=str(home), XDG_CACHE_HOME=str(home / "cache")) as server:
        run = Run(tmp_path / "run")
        assert server.live(run, lambda pid: stop_at(run, pid, 20))[0] == 128 + signal.SIGTERM
        assert server.live(run)[0] == 0
        run.check_end(whole["digest"])
        here = Run(tmp_path / "here")
        server.here(here)  # as a process trains that nobody has forked
        here.check_end(whole["digest"])
    assert not tried.exists()
