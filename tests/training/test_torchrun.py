"""Processes that torchrun starts: ``fit`` joins them, and they are restarted after a death."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers.processes import in_processes, summary, train
from helpers.training import make_vae

from tinyvae import ELBO, Speed, Trainer
from tinyvae._devices import choose_device

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
TESTS = Path(__file__).parents[1]


def join_by_environment(port):
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}",
    }
    if os.environ["RANK"] == "0":
        time.sleep(0.2)  # the other one reads the store first
    first = summary(train(make_vae, epochs=1))
    assert dist.is_initialized()
    return first == summary(train(make_vae, epochs=1))


def test_fit_joins_the_processes_of_torchrun():
    """Also those of a restart, whose store has keys of processes that have died."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for _ in range(2):
        assert in_processes(join_by_environment, store.port, joins=False) == [True, True]


def test_choose_device_gives_each_process_of_torchrun_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device("cuda", make_vae()) == torch.device("cuda")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for rank, index in ((0, 0), (3, 3), (5, 1)):
        monkeypatch.setenv("LOCAL_RANK", f"{rank}")
        assert choose_device("cuda", make_vae()) == torch.device("cuda", index)
        assert choose_device("cuda:2", make_vae()) == torch.device("cuda:2")
        assert choose_device("cpu", make_vae()) == torch.device("cpu")


def torchrun(*arguments, restarts=0):
    """Return the completed job, and what its first process has printed."""
    paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", f"--max-restarts={restarts}"]
    job = subprocess.run(
        [*command, TESTS / "helpers" / "torchrun.py", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return job, json.loads(job.stdout) if job.stdout else None


@pytest.mark.slow
def test_torchrun_restarts_a_run_bitwise(tmp_path):
    for name in ("complete", "killed", "dead"):
        (tmp_path / name).mkdir()
    job, complete = torchrun(tmp_path / "complete")
    assert job.returncode == 0, job.stderr
    assert complete[0] == 2
    job, restarted = torchrun(tmp_path / "killed", 8, restarts=1)
    assert job.returncode == 0, job.stderr
    assert (tmp_path / "killed" / "died").exists()
    assert restarted == complete
    job, nothing = torchrun(tmp_path / "dead", 8)
    assert job.returncode != 0
    assert nothing is None
    assert "got no answer from another one" in job.stderr


def compiled():
    trainer = Trainer(make_vae(), ELBO(), speed=Speed(compile=True), device="cpu", progress=False)
    x = torch.zeros(32, 4)
    trainer.fit(x, x, epochs=1, batch_size=8)
    return summary(trainer)


@pytest.mark.slow
def test_compiled_processes_train_the_same_weights():
    first, second = in_processes(compiled, limit=240)
    assert first == second
