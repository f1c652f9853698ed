"""Reports of long evaluations, which are silent at the start."""

import io

import pytest
import torch
from helpers.cases import for_each

from tinyvae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    GaussianEncoder,
    GaussianLikelihood,
    evaluate,
    impute,
    log_marginal,
)
from tinyvae.evaluation import active_units, progress
from tinyvae.likelihoods import MaskedLikelihood


class Terminal(io.StringIO):
    def isatty(self):
        return True


def vae(likelihood=None):
    torch.manual_seed(0)
    likelihood = BernoulliLikelihood() if likelihood is None else likelihood
    return VAE(GaussianEncoder(MLP(4, (8,)), 2), MLP(2, (8,), out_shape=4), likelihood)


CALLS = {
    "evaluate": lambda x, **o: evaluate(vae(), x, elbo_samples=2, importance_samples=30, **o),
    "log p(x)": lambda x, **o: log_marginal(vae(), x, num_samples=30, **o),
    "active units": lambda x, **o: active_units(vae(), x, **o),
    "impute": lambda x, **o: impute(
        vae(MaskedLikelihood(GaussianLikelihood())), x, num_samples=30, **o
    ),
}
DRAWS = {"evaluate": 320, "log p(x)": 300, "active units": 10, "impute": 300}


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances by a minute at every look, and chunks of one example."""
    times = iter(range(0, 10**6, 60))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    for module in ("importance", "imputation"):
        monkeypatch.setattr(f"tinyvae.evaluation.{module}.CHUNK_ELEMENTS", 1)


@for_each("name", CALLS)
def test_evaluation_writes_lines_with_the_time_left(clock, capsys, name):
    CALLS[name](torch.rand(10, 4).round())
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert all(line.startswith(f"{name}: ") and line.endswith(" left") for line in lines)
    assert f"% of {DRAWS[name]} draws, " in lines[0]
    assert 1 <= len(lines) <= 20


@for_each("name", CALLS)
def test_evaluation_is_silent_without_progress(clock, capsys, name):
    CALLS[name](torch.rand(10, 4).round(), progress=False)
    assert capsys.readouterr() == ("", "")


@for_each("name", CALLS)
def test_short_evaluation_is_silent(capsys, name):
    CALLS[name](torch.rand(10, 4).round())
    assert capsys.readouterr() == ("", "")


@for_each("name", CALLS)
def test_evaluation_shows_a_bar_on_a_terminal(monkeypatch, name):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    CALLS[name](torch.rand(10, 4).round())
    assert f"{name}:   0%" in terminal.getvalue()


def test_progress_estimates_the_time_left(monkeypatch, capsys):
    times = iter([0.0, 0.9, 1.5, 6.4, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with progress.Progress("evaluate", 1000, shown=True) as report:
        for _ in range(4):
            report.add(100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "evaluate: 20% of 1,000 draws, 00:06 left"
