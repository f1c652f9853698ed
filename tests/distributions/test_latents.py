"""Distributions of latents: one contract for all, and independent references."""

import math

import numpy as np
import pytest
import torch
import torch.distributions as td
import torch.nn.functional as F
from helpers.cases import for_each
from helpers.distributions import (
    CASES,
    CODEBOOK,
    cases,
    codes,
    draw_params,
    independent_normal,
    integral,
    largest_batch,
    perturbed_flow,
)
from torch.autograd import gradcheck

from tinyvae.distributions import (
    Affine,
    FullNormal,
    GumbelSoftmax,
    Independent,
    JointDistribution,
    LowRankNormal,
    Normal,
    PowerSpherical,
    ReshapedBatch,
    SphereUniform,
    StraightThrough,
)
from tinyvae.flows import Flow, Transformed
from tinyvae.testing import check_distribution

pytestmark = pytest.mark.usefixtures("float64")


@cases
@for_each("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(name, dtype):
    case = CASES[name]
    for batch in case.batches:
        p = case.make(*draw_params(name, batch, dtype))
        if name == "sphere":
            p = SphereUniform(torch.zeros(3, dtype=dtype))
        assert (p.batch_shape, p.event_shape) == (batch, case.event)
        assert (p.has_rsample, p.is_discrete) == (case.has_rsample, case.is_discrete)
        assert p.is_density == case.is_density
        assert repr(p).endswith(f"(batch_shape={batch}, event_shape={case.event})")
        for lead in [(), (1,), (3,), (2, 3)]:
            z = p.sample(lead)
            log_prob = p.log_prob(z)
            assert z.shape == (*lead, *batch, *case.event)
            assert log_prob.shape == (*lead, *batch)
            assert z.dtype == log_prob.dtype == dtype
            assert log_prob.isfinite().all()
        for value in (p.mean, p.point_estimate()):
            assert value.shape == (*batch, *case.event)
            assert value.dtype == dtype
        assert p.mean.isnan().all() == (not case.has_mean)
        assert p.point_estimate().isfinite().all()
        if batch:
            weights = torch.rand(batch, dtype=dtype)
            pooled = p.point_estimate(weights / weights.sum(0))
            assert pooled.shape == (*batch[1:], *case.event)
            assert pooled.dtype == dtype


# A distribution without parameters, and wrappers that need a certain number of batch dimensions.
OUTSIDE_THE_CONTRACT = ("sphere", "unflattened", "unflattened classes")


@pytest.mark.parametrize("name", [name for name in CASES if name not in OUTSIDE_THE_CONTRACT])
def test_distribution_keeps_the_contract(name):
    case = CASES[name]
    check_distribution(case.make, *draw_params(name, min(case.batches)))


@for_each("name", [name for name in CASES if CASES[name].scored and CASES[name].shapes])
def test_gradients_of_log_prob_reach_every_parameter(name):
    case = CASES[name]
    batch = (*largest_batch(name)[:-1], 2) if largest_batch(name) else ()
    params = [v.requires_grad_() for v in draw_params(name, batch)]
    log_prob = case.make(*params).log_prob(case.make(*params).sample((2,)).detach())
    gradients = torch.autograd.grad((log_prob * torch.randn(log_prob.shape)).sum(), params)
    for gradient, shape in zip(gradients, case.shapes, strict=True):
        if case.lower and len(shape) == 2:
            rows, columns = torch.tril_indices(*shape, -1)
            gradient = gradient[..., rows, columns]
        assert (gradient != 0).all()


# name: (case, derivative of draws with the same noise)
SMOOTH_DRAWS = [
    n
    for n, c in CASES.items()
    if c.has_rsample
    and c.shapes
    and not n.startswith(("power", "straight", "joint", "unflattened classes"))
]


@for_each("name", SMOOTH_DRAWS)
def test_gradients_of_draws(name):
    """With fixed noise, a draw is a smooth function of the parameters."""
    case = CASES[name]
    batch = (2, 2) if len(case.batches[0]) == 2 else (2,)

    def draw(*params):
        torch.manual_seed(3)
        return case.make(*params).sample((2,))

    assert gradcheck(draw, [v.requires_grad_() for v in draw_params(name, batch)])


def torch_gumbel_softmax(temperature):
    def log_prob(logits, x):
        relaxed = td.RelaxedOneHotCategorical(
            torch.tensor(temperature), logits=logits.movedim(-2, -1), validate_args=False
        )
        return relaxed.log_prob(x.movedim(-2, -1)).sum(-1)

    return log_prob


def torch_full_normal(mean, log_diagonal, lower, x):
    tril = lower.tril(-1) + torch.diag_embed(log_diagonal.exp())
    return td.MultivariateNormal(mean, covariance_matrix=tril @ tril.mT).log_prob(x)


def torch_low_rank_normal(mean, log_std, factor, x):
    low_rank = td.LowRankMultivariateNormal(mean, factor, (2 * log_std).exp()).log_prob(x)
    covariance = factor @ factor.mT + torch.diag_embed((2 * log_std).exp())
    torch.testing.assert_close(low_rank, td.MultivariateNormal(mean, covariance).log_prob(x))
    return low_rank


def torch_affine(mean, log_diagonal, lower, x):
    shift, scale = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([2.0, 0.5, 3.0])
    tril = scale[:, None] * (lower.tril(-1) + torch.diag_embed(log_diagonal.exp()))
    return td.MultivariateNormal(shift + scale * mean, scale_tril=tril).log_prob(x)


def torch_joint(mean, log_std, logits, tail, x):
    style = td.Normal(mean, log_std.exp()).log_prob(x[..., :2]).sum(-1)
    kinds = x[..., 2:8].unflatten(-1, (3, 2)).movedim(-2, -1)
    kind = td.OneHotCategorical(logits=logits.movedim(-2, -1)).log_prob(kinds).sum(-1)
    return style + kind + td.Laplace(tail, 1.0).log_prob(x[..., 8:]).sum(-1)


def quadrature_power_spherical(direction, log_concentration, x):
    """Return the log density, normalized by Gauss-Legendre quadrature over the angle."""
    dim, kappa = x.shape[-1], log_concentration.exp()
    concentration = kappa.numpy()
    nodes, weights = np.polynomial.legendre.leggauss(200)
    far = np.minimum(math.pi, 20 / np.sqrt(concentration))[..., None]
    angle = 0.5 * far * (nodes + 1)
    ring = 2 * math.pi ** ((dim - 1) / 2) / math.gamma((dim - 1) / 2)
    height = np.cos(angle / 2) ** (2 * concentration[..., None]) * np.sin(angle) ** (dim - 2)
    area = ring * (0.5 * far * weights * height).sum(-1)
    cosine = (F.normalize(direction, dim=-1) * x).sum(-1)
    return kappa * torch.log((1 + cosine) / 2) - torch.from_numpy(np.log(area))


def torch_classes(logits, x):
    return td.OneHotCategorical(logits=logits).log_prob(x)


REFERENCES = {
    "full normal": torch_full_normal,
    "full normal, 1": torch_full_normal,
    "low rank normal": torch_low_rank_normal,
    "low rank normal, more columns than rows": torch_low_rank_normal,
    "sphere": lambda x: torch.full(x.shape[:-1], -math.log(4 * math.pi)),
    "straight through": torch_classes,
    "joint": torch_joint,
    "unflattened": torch_full_normal,
    "affine": torch_affine,
}
REFERENCES |= {f"power spherical, {dim}": quadrature_power_spherical for dim in (2, 3, 5, 20)}
REFERENCES |= {f"gumbel softmax, {t}": torch_gumbel_softmax(t) for t in (0.3, 0.5, 2.0)}


@for_each("name", REFERENCES)
def test_log_prob_agrees_with_references(name):
    params = draw_params(name, largest_batch(name))
    p = CASES[name].make(*params)
    z = p.sample((50,))
    torch.testing.assert_close(p.log_prob(z), REFERENCES[name](*params, z), rtol=1e-9, atol=1e-9)


@for_each(
    ("name", "reach", "nodes", "tolerance"),
    [
        ("full normal, 1", 20, 2001, 1e-10),
        ("full normal", 10, 91, 1e-8),
        ("low rank normal, more columns than rows", 20, 401, 1e-8),
        ("flow, 1, affine", 15, 4001, 1e-10),
        ("flow, 1, spline", 15, 8001, 1e-4),
        ("flow, 2, affine", 12, 301, 1e-5),
        ("flow, 2, spline", 8, 201, 1e-3),
        ("flow, 3, affine, coupling", 10, 61, 1e-3),
    ],
)
def test_integrates_to_one(name, reach, nodes, tolerance):
    p = CASES[name].make(*draw_params(name, ()))
    with torch.no_grad():
        assert integral(p, reach, nodes) == pytest.approx(1, abs=tolerance)


def second_moment(p):
    """Return E z z' of a power spherical distribution."""
    k, b = p.concentration, p.beta
    up, total = b + k, 2 * b + k
    # E t^2 of t = 2 u - 1, where u is a Beta(up, b) variable.
    square = 4 * up * (up + 1) / (total * (total + 1)) - 4 * up / total + 1
    outer = p.direction.unsqueeze(-1) * p.direction.unsqueeze(-2)
    across = ((1 - square) / (2 * b))[..., None, None]
    return across * (torch.eye(len(outer.mT[0])) - outer) + square[..., None, None] * outer


def covariance_plus_square(p):
    if isinstance(p, PowerSpherical):
        return second_moment(p)
    if isinstance(p, FullNormal):
        covariance = p.scale_tril @ p.scale_tril.mT
    else:
        covariance = p.factor @ p.factor.mT + torch.diag_embed((2 * p.log_std).exp())
    return covariance + p.mean.unsqueeze(-1) * p.mean.unsqueeze(-2)


@for_each(
    "name",
    ["full normal", "low rank normal", *(f"power spherical, {dim}" for dim in (2, 3, 5, 20))],
)
def test_gradient_of_an_expectation(name):
    """Gradients of expectations of a linear and a quadratic function have a closed form."""
    case, count = CASES[name], 20_000
    params = draw_params(name, ())
    a, b = torch.randn(2, *case.event)

    def gradients(value, inputs):
        return torch.autograd.grad(value.sum(), inputs)

    rows = [v.expand(count, *v.shape).clone().requires_grad_() for v in params]
    z = case.make(*rows).sample()
    once = [v.clone().requires_grad_() for v in params]
    p = case.make(*once)
    exact = p.mean @ a + b @ covariance_plus_square(p) @ b
    for each, expected in zip(
        gradients(z @ a + (z @ b) ** 2, rows), gradients(exact, once), strict=True
    ):
        error = each.std(0) / math.sqrt(count) + 1e-12
        assert ((each.mean(0) - expected).abs() < 4.5 * error).all()
        assert (error < 0.1 * expected.abs().max().clamp(min=1)).all()


def test_point_estimates():
    logits, weights = torch.randn(4, 3), torch.tensor([0.1, 0.2, 0.3, 0.4])
    relaxed = GumbelSoftmax(logits, 1, 0.5)
    torch.testing.assert_close(relaxed.point_estimate(), (2 * logits).softmax(-1))
    torch.testing.assert_close(relaxed.point_estimate(weights), weights @ (2 * logits).softmax(-1))
    hard = StraightThrough(logits, 1)
    assert torch.equal(hard.point_estimate().argmax(-1), logits.argmax(-1))
    assert (hard.point_estimate(weights).argmax() == (weights @ logits.softmax(-1)).argmax()).all()
    p = codes(torch.tensor([[0.0, 1.0], [2.0, -1.0], [1.0, 0.0]]))
    torch.testing.assert_close(p.point_estimate(), torch.tensor([CODEBOOK[1], CODEBOOK[0]]).T)
    base = independent_normal(torch.randn(4, 2), torch.randn(4, 2))
    transform = perturbed_flow(2, "spline")()
    torch.testing.assert_close(Transformed(base, transform).point_estimate(), transform(base.mean))
    torch.testing.assert_close(
        Transformed(base, transform).point_estimate(weights), transform(weights @ base.mean)
    )
    shift, scale = torch.randn(2), torch.rand(2) + 1
    torch.testing.assert_close(
        Affine(base, shift, scale).point_estimate(weights), shift + scale * (weights @ base.mean)
    )
    parts = JointDistribution({"a": base, "b": hard})
    together = torch.cat([weights @ base.mean, hard.point_estimate(weights)])
    torch.testing.assert_close(parts.point_estimate(weights), together)
    rows = ReshapedBatch(independent_normal(torch.randn(8, 2), torch.zeros(8, 2)), (2, 4))
    both = torch.tensor([[0.25], [0.75]]).expand(2, 4)
    torch.testing.assert_close(rows.point_estimate(both), 0.25 * rows.mean[0] + 0.75 * rows.mean[1])


def test_products_are_accurate_under_autocast():
    shape = (torch.randn(20), 0.1 * torch.randn(20) - 2)
    low = LowRankNormal(*(t.float() for t in (*shape, torch.randn(20, 3))))
    full = FullNormal(*(t.float() for t in (*shape, 0.1 * torch.randn(20, 20))))
    flow = Flow(20, transforms=1).float()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    base = Independent(Normal(torch.zeros(20).float(), torch.zeros(20).float()), 1)
    for p in (low, full, Transformed(base, flow())):
        z = p.sample((5,)).detach().clone()
        exact = p.log_prob(z)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(p.log_prob(z), exact)
