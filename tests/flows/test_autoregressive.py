"""Autoregressive flows and their densities."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import torch.distributions as td
from helpers.cases import for_each
from helpers.distributions import (
    CASES,
    draw_params,
    grid,
    independent_normal,
    integral,
    perturbed_flow,
)

import tinyvae
from tinyvae.flows import Flow, Transformed

pytestmark = pytest.mark.usefixtures("float64")


@for_each("kind", ["affine", "spline"])
def test_gradients_reach_the_flow(kind):
    flow = Flow(3, context_dim=2, transforms=2, hidden=(8,), kind=kind)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.4 * torch.randn_like(parameter)
    base = independent_normal(torch.zeros(3), torch.zeros(3))
    context = torch.randn(5, 2, requires_grad=True)
    z = torch.randn(5, 3)
    for q in (Transformed(base, flow(context)), Transformed(base, flow(context).inv)):
        inputs = [*flow.parameters(), context]
        for g in torch.autograd.grad(q.log_prob(z).sum(), inputs):
            assert (g != 0).any()


@pytest.mark.slow
def test_draws_in_cells_agree_with_density():
    p = CASES["flow, 2, spline"].make(*draw_params("flow, 2, spline", ()))
    with torch.no_grad():
        z = p.sample((10_000,))
        # Each edge lies between two nodes, so that every node belongs to one cell.
        edges = [np.floor(np.quantile(c, [0.2, 0.5, 0.8]) * 10) / 10 + 0.05 for c in z.T.numpy()]
        nodes, cell = grid(*[torch.linspace(-8, 8, 161)] * 2)
        mass = p.log_prob(nodes).exp().numpy() * cell

        def cells(values, weights=None):
            index = [np.digitize(v, e) for v, e in zip(values.T.numpy(), edges, strict=True)]
            return np.bincount(index[0] * 4 + index[1], weights, minlength=16)

        expected = cells(nodes, mass)
        assert expected.min() > 5e-4
        assert scipy.stats.chisquare(cells(z), expected / expected.sum() * 1e4).pvalue > 1e-4


@for_each("kind", ["affine", "spline"])
def test_inverse_flow_is_a_density(kind):
    """A prior is an inverse flow, whose density needs no inverse."""
    base = independent_normal(torch.randn(2) / 2, torch.randn(2) / 4)
    p = Transformed(base, perturbed_flow(2, kind)().inv)
    with torch.no_grad():
        assert integral(p, 8, 241) == pytest.approx(1, abs=2e-3)
        z = p.sample((100,))
        torch.testing.assert_close(p.log_prob(z), p.log_prob(z.clone()), rtol=0, atol=1e-9)


def test_flows_do_not_change_torch_settings():
    code = """
import torch
torch.manual_seed(5)
def state():
    return (torch.distributions.Distribution._validate_args, torch.get_default_dtype(),
            torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_device(),
            torch.are_deterministic_algorithms_enabled())
found, noise = state(), torch.get_rng_state()
import sys
import tinyvae, tinyvae.flows.autoregressive
assert "zuko" not in sys.modules
tinyvae.flows.autoregressive._zuko()
assert "zuko" in sys.modules
assert torch.equal(noise, torch.get_rng_state()), "RNG"
tinyvae.flows.Flow(2)()
assert state() == found, (state(), found)
torch.distributions.Distribution.set_default_validate_args(not found[0])
tinyvae.flows.Flow(2)()
assert torch.distributions.Distribution._validate_args == (not found[0])
"""
    path = os.pathsep.join(
        [str(Path(tinyvae.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_flows_without_zuko_name_the_extra(monkeypatch):
    found = td.Distribution._validate_args
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tinyvae\[flows\]'"):
        Flow(2)
    assert td.Distribution._validate_args == found
