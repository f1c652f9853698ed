"""The contract of a flow, for every flow."""

from functools import partial

import pytest
import torch
from helpers.cases import for_each
from torch.autograd.functional import jacobian

from tinyvae.distributions import Independent, Normal
from tinyvae.flows import Flow, PlanarFlow, RadialFlow, Transformed

pytestmark = pytest.mark.usefixtures("float64")

# name: (constructor, spread of the noise that makes it differ from the identity)
FLOWS = {"planar": (PlanarFlow, 0.5), "radial": (RadialFlow, 0.5)} | {
    f"{kind}{', coupling' * coupling}": (
        partial(Flow, kind=kind, coupling=coupling, hidden=(8,)),
        0.2,
    )
    for kind in ("affine", "spline")
    for coupling in (False, True)
}
flows = for_each("name", FLOWS)
dims = for_each("dim", [1, 2, 3])
context_dims = for_each("context_dim", [0, 2])


def perturbed(name, dim, factor=1.0, **options):
    """Return a flow that is not the identity."""
    make, spread = FLOWS[name]
    flow = make(dim, **options)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(factor * spread * torch.randn(parameter.shape))
    return flow


def context_of(flow, *batch):
    return torch.randn(*batch, flow.context_dim) if flow.context_dim else None


def gaussian(*shape):
    return Independent(Normal(torch.randn(shape) / 2, torch.randn(shape) / 4), 1)


def close(value, expected, tolerance=1e-10):
    torch.testing.assert_close(value, expected, rtol=0, atol=tolerance)


@flows
@context_dims
@dims
def test_flow_log_determinant_is_that_of_the_jacobian(name, dim, context_dim):
    # Twice the noise: the inverse is exact to 1e-10 also for strong planar and radial flows.
    factor = 2.0 if name in ("planar", "radial") else 1.0
    flow = perturbed(name, dim, factor, context_dim=context_dim, transforms=3)
    forward = flow(context_of(flow))
    for bijection in (forward, forward.inv, forward.inv.inv):
        z = 2 * torch.randn(5, dim)
        value, log_det = bijection.call_and_ladj(z)
        # Rows do not depend on each other, so one pass gives all their Jacobians.
        matrices = jacobian(lambda z, f=bijection: f(z).sum(0), z).movedim(1, 0)  # (5, D, D)
        close(log_det, torch.linalg.slogdet(matrices).logabsdet)
        close(bijection(z), value, 1e-12)
        assert log_det.abs().max() > 0.01


@flows
@context_dims
@dims
def test_flow_inverse_undoes_the_flow(name, dim, context_dim):
    flow = perturbed(name, dim, context_dim=context_dim)
    bijection, z = flow(context_of(flow, 50)), 3 * torch.randn(4, 50, dim)
    value, log_det = bijection.call_and_ladj(z)
    assert value.shape == z.shape
    assert log_det.shape == z.shape[:-1]
    assert (value - z).abs().max() > 0.01
    back, log_det_back = bijection.inv.call_and_ladj(value)
    tolerance = 1e-10 if name in ("planar", "radial") else 1e-8
    close(back, z, tolerance)
    close(bijection(bijection.inv(z)), z, tolerance)
    close(log_det_back, -log_det, tolerance if name in ("planar", "radial") else 1e-7)


@flows
@context_dims
@dims
def test_flow_is_initially_the_identity(name, dim, context_dim):
    flow = FLOWS[name][0](dim, context_dim=context_dim)
    bijection, base, z = flow(context_of(flow, 5)), gaussian(5, dim), 3 * torch.randn(4, 5, dim)
    for transform in (bijection, bijection.inv):
        q = Transformed(base, transform)
        close(q.log_prob(z), base.log_prob(z), 1e-12)
        torch.manual_seed(1)
        draws = q.sample((3,))
        torch.manual_seed(1)
        close(draws, base.sample((3,)), 1e-12)
        close(q.log_prob(draws), base.log_prob(draws), 1e-12)
        close(q.point_estimate(), base.mean, 1e-12)


@flows
@context_dims
@for_each("dim", [1, 3])
def test_flow_sample_and_log_prob_agrees_with_log_prob(name, dim, context_dim):
    flow = perturbed(name, dim, context_dim=context_dim)
    params = [torch.randn(5, dim).requires_grad_(), (0.3 * torch.randn(5, dim)).requires_grad_()]
    inputs = [*params, *flow.parameters()]
    q = Transformed(Independent(Normal(*params), 1), flow(context_of(flow, 5)))
    torch.manual_seed(1)
    z, drawn = q.sample_and_log_prob((3,))
    torch.manual_seed(1)
    assert torch.equal(z, q.sample((3,)))
    by_inverse = q.log_prob(z)
    close(drawn, by_inverse)
    # The gradients pass through the draw and through its density.
    unused = {"allow_unused": True, "materialize_grads": True}  # a log determinant may be constant
    gradients = [
        torch.autograd.grad(v.square().sum(), inputs, retain_graph=True, **unused)
        for v in (drawn, by_inverse)
    ]
    tolerance = 1e-8 if name in ("planar", "radial") else 1e-7
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@flows
def test_flow_products_are_accurate_under_autocast(name):
    flow = perturbed(name, 3, context_dim=2).float()
    base = Independent(Normal(torch.zeros(7, 3).float(), torch.zeros(7, 3).float()), 1)
    context, z = torch.randn(7, 2).float(), torch.randn(7, 3).float()
    expected = Transformed(base, flow(context)).log_prob(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Transformed(base, flow(context)).log_prob(z), expected)


@flows
def test_flow_context_rows_have_separate_transforms(name):
    flow = perturbed(name, 2, 2.0, context_dim=3)
    context, z = torch.randn(4, 3), torch.randn(2)
    together = flow(context)(z.expand(4, 2))
    assert together.shape == (4, 2)
    assert torch.pdist(together).min() > 1e-4
    for row, expected in zip(context, together, strict=True):
        close(flow(row)(z), expected, 1e-12)
