"""Autoregressive flows and their densities."""

import math
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
    FLOWS,
    draw_params,
    grid,
    independent_normal,
    integral,
    ks,
    perturbed_flow,
)
from torch.autograd.functional import jacobian

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
@pytest.mark.parametrize(("dim", "kind", "coupling"), FLOWS)
def test_draws_of_flows(dim, kind, coupling):
    """The mean of r(z) / q(z) is one for any density r with lighter tails."""
    name = f"flow, {dim}, {kind}{', coupling' * coupling}"
    p = CASES[name].make(*draw_params(name, ()))
    with torch.no_grad():
        z = p.sample((20_000,))
        log_prob = p.log_prob(z.clone())
        for offset in (-0.7, 0.0, 0.7):
            y = p.base.mean + offset * p.base.base.log_std.exp()
            tril = 0.4 * jacobian(p.transform, y) * p.base.base.log_std.exp()
            covariance = tril @ tril.mT
            r = td.MultivariateNormal(p.transform(y), covariance)
            ratios = (r.log_prob(z) - log_prob).exp()
            error = ratios.std() / math.sqrt(len(z))
            assert error < 0.1
            assert (ratios.mean() - 1).abs() < 4 * error
        if dim == 1:
            axis = torch.linspace(-20, 20, 8001)
            density = p.log_prob(axis[:, None]).exp().numpy()
            cdf = np.cumsum(density) * 0.005
            assert ks(z[:, 0], lambda v: np.interp(v, axis, cdf)) > 1e-4


@pytest.mark.slow
def test_draws_in_cells_agree_with_density():
    p = CASES["flow, 2, spline"].make(*draw_params("flow, 2, spline", ()))
    with torch.no_grad():
        z = p.sample((10_000,))
        # Between two nodes each, lest the nodes of an edge stand for both of its sides.
        edges = [np.floor(np.quantile(c, [0.2, 0.5, 0.8]) * 10) / 10 + 0.05 for c in z.T.numpy()]
        nodes, cell = grid(*[torch.linspace(-8, 8, 161)] * 2)
        mass = p.log_prob(nodes).exp().numpy() * cell

        def cells(values, weights=None):
            index = [np.digitize(v, e) for v, e in zip(values.T.numpy(), edges, strict=True)]
            return np.bincount(index[0] * 4 + index[1], weights, minlength=16)

        expected = cells(nodes, mass)
        assert expected.min() > 5e-4
        assert scipy.stats.chisquare(cells(z), expected / expected.sum() * 1e4).pvalue > 1e-4


flows = for_each(("dim", "kind", "coupling"), FLOWS)


@flows
def test_log_determinant_is_that_of_the_jacobian(dim, kind, coupling):
    flow = perturbed_flow(dim, kind, coupling, context_dim=2)
    for transform in (flow(torch.randn(2)), flow(torch.randn(2)).inv):
        largest = 0.0
        for z in 2 * torch.randn(4, dim):
            value, log_det = transform.call_and_ladj(z)
            expected = torch.linalg.slogdet(jacobian(transform, z)).logabsdet
            torch.testing.assert_close(log_det, expected, rtol=0, atol=1e-10)
            torch.testing.assert_close(transform(z), value, rtol=0, atol=1e-12)
            largest = max(largest, log_det.abs().item())
        assert largest > 0.01


@flows
def test_inverse_undoes_the_flow(dim, kind, coupling):
    flow = perturbed_flow(dim, kind, coupling, context_dim=2)
    transform, z = flow(torch.randn(50, 2)), 3 * torch.randn(3, 50, dim)
    value, log_det = transform.call_and_ladj(z)
    assert (value - z).abs().max() > 0.01
    back, log_det_back = transform.inv.call_and_ladj(value)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-8)
    torch.testing.assert_close(transform(transform.inv(z)), z, rtol=0, atol=1e-8)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-7)


@for_each("kind", ["affine", "spline"])
def test_inverse_flow_is_a_density(kind):
    """A prior is an inverse flow, whose density needs no inverse."""
    base = independent_normal(torch.randn(2) / 2, torch.randn(2) / 4)
    p = Transformed(base, perturbed_flow(2, kind)().inv)
    with torch.no_grad():
        assert integral(p, 8, 241) == pytest.approx(1, abs=2e-3)
        z = p.sample((100,))
        torch.testing.assert_close(p.log_prob(z), p.log_prob(z.clone()), rtol=0, atol=1e-9)


@flows
def test_flow_is_initially_the_identity(dim, kind, coupling):
    flow = Flow(dim, context_dim=2, kind=kind, coupling=coupling)
    base = independent_normal(torch.randn(5, dim), torch.randn(5, dim))
    for transform in (flow(torch.randn(5, 2)), flow(torch.randn(5, 2)).inv):
        q = Transformed(base, transform)
        z = 3 * torch.randn(4, 5, dim)
        torch.testing.assert_close(q.log_prob(z), base.log_prob(z), rtol=0, atol=1e-12)
        torch.manual_seed(1)
        draws = q.sample((3,))
        torch.manual_seed(1)
        torch.testing.assert_close(draws, base.sample((3,)), rtol=0, atol=1e-12)
        torch.testing.assert_close(q.log_prob(draws), base.log_prob(draws), rtol=0, atol=1e-12)
        torch.testing.assert_close(q.point_estimate(), base.mean, rtol=0, atol=1e-12)


@for_each(("dim", "context_dim"), [(1, 0), (3, 0), (3, 2)])
@for_each("kind", ["affine", "spline"])
def test_transformed_sample_and_log_prob(dim, context_dim, kind):
    flow = perturbed_flow(dim, kind, context_dim=context_dim)
    context = torch.randn(5, context_dim) if context_dim else None
    params = [torch.randn(5, dim).requires_grad_(), (0.5 * torch.randn(5, dim)).requires_grad_()]
    inputs = params + list(flow.parameters())
    unused = {"allow_unused": True, "materialize_grads": True}  # a log determinant may be constant
    q = Transformed(independent_normal(*params), flow(context))
    torch.manual_seed(1)
    z, drawn = q.sample_and_log_prob((3,))
    torch.manual_seed(1)
    assert torch.equal(z, q.sample((3,)))
    by_inverse = q.log_prob(z)
    torch.testing.assert_close(drawn, by_inverse, rtol=0, atol=1e-10)
    # The gradients pass through the draw and through its density.
    grads = [
        torch.autograd.grad(v.square().sum(), inputs, retain_graph=True, **unused)
        for v in (drawn, by_inverse)
    ]
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-7)


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
