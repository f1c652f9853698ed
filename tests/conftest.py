import os
import signal
import socket

# One thread per process, also in child processes: tensors here are small, and pytest-xdist already
# uses every core. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from helpers.apple import apple_device
from hypothesis import HealthCheck, settings

# Neither a test nor a child process may write to the home directory.
os.environ["HOME"] = os.devnull

# The fixtures below may stay as they are between the examples of one test.
settings.register_profile(
    "tinyvae",
    max_examples=200,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# HYPOTHESIS_PROFILE=soak pytest tests/distributions/test_densities.py
settings.register_profile(
    "soak", settings.get_profile("tinyvae"), max_examples=5000, derandomize=False
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tinyvae"))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    connect = socket.socket.connect

    def refuse(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test connects to the network address {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def _interruptible():
    """Install Python's SIGINT handler, which a background job of a shell does not have."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def apple(monkeypatch):
    """Emulate an Apple device, with float32 as the default dtype."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    with apple_device(monkeypatch):
        yield
    torch.set_default_dtype(previous)


@pytest.fixture
def float64():
    """Make float64 the default dtype."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(previous)
