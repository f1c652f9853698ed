import os
import signal
import socket

import pytest
import torch
from hypothesis import HealthCheck, settings

# Nothing is written to a home, that of a child's neither.
os.environ["HOME"] = os.devnull

# The fixtures below need no renewal between the examples of one test.
settings.register_profile(
    "tinyvae",
    max_examples=200,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# HYPOTHESIS_PROFILE=soak pytest tests/test_densities.py
settings.register_profile(
    "soak", settings.get_profile("tinyvae"), max_examples=5000, derandomize=False
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tinyvae"))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    connect = socket.socket.connect

    def refuse(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test asks the network for {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def _interruptible():
    """Start from Python's own handler, which a shell's background has not, and end with it."""
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, found)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
