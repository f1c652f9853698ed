"""A small run of ``tools/sweep.py``: all distributions against arithmetic of many digits."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[2] / "tools" / "sweep.py"
SPEC = importlib.util.spec_from_file_location("sweep", PATH)
sweep = sys.modules["sweep"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(sweep)


@pytest.mark.slow
@pytest.mark.parametrize("name", sweep.ROWS)
def test_sweep_of_distributions(name):
    # Errors are relative to max(1, |exact|) plus the condition number.
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        for quantity, worst in sweep.sweep(name, dtype, count=5).items():
            assert worst.error < limit, f"{quantity} in {dtype}: {worst}"
        assert sweep.wild(name, dtype, count=50) == 0


def test_sweep_finds_a_fault():
    """The sum of two large terms that cancel loses digits, and a NaN is found."""
    row = sweep.ROWS["normal"]

    class Rounded(sweep.tvd.Normal):
        def log_prob(self, value):
            return super().log_prob(value) + 1e4 - 1e4

    sweep.ROWS["rounded"] = sweep.replace(row, make=Rounded)
    try:
        assert sweep.sweep("rounded", torch.float32, count=3)["value"].error > 1e-5
    finally:
        del sweep.ROWS["rounded"]
