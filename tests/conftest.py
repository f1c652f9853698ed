import os

import pytest
import torch
from hypothesis import HealthCheck, settings

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
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
