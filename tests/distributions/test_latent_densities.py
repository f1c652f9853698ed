"""Distributions of latents: one contract for all, independent references, and divergences."""

import copy
import functools
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mpmath
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.distributions as td
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.autograd.functional import jacobian

import tinyvae
from tinyvae.distributions import (
    Affine,
    Bernoulli,
    CodebookCategorical,
    Delta,
    FullNormal,
    GumbelSoftmax,
    Independent,
    JointDistribution,
    Laplace,
    LowRankNormal,
    Normal,
    OneHotCategorical,
    PowerSpherical,
    Quantized,
    ReshapedBatch,
    SphereUniform,
    StraightThrough,
    has_closed_form,
    kl_divergence,
)
from tinyvae.errors import NoClosedFormError
from tinyvae.flows import Flow, Transformed

pytestmark = pytest.mark.usefixtures("float64")

# The table ----------------------------------------------------------------------------------------


@functools.cache
def perturbed_flow(dim, kind, coupling=False, context_dim=0, dtype=torch.float64):
    """Return a flow that is not the identity, the same at every call."""
    if dtype != torch.float64:
        return copy.deepcopy(perturbed_flow(dim, kind, coupling, context_dim)).to(dtype)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        options = {"transforms": 2, "hidden": (8,), "kind": kind, "coupling": coupling}
        flow = Flow(dim, context_dim=context_dim, **options).to(dtype)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
    return flow


def independent_normal(mean, log_std):
    return Independent(Normal(mean, log_std), 1)


def power_spherical(direction, log_concentration):
    return PowerSpherical(F.normalize(direction, dim=-1), log_concentration)


def transformed(dim, kind, coupling):
    def make(mean, log_std):
        flow = perturbed_flow(dim, kind, coupling, dtype=mean.dtype)
        return Transformed(independent_normal(mean, log_std), flow())

    return make


def quantized(value):
    return Quantized(value, torch.zeros(len(value), 2, dtype=torch.long), {}, {})


CODEBOOK = [[0.5, -1.0], [1.25, 2.0], [-0.75, 0.25]]


def codes(logits):
    return CodebookCategorical(logits, torch.tensor(CODEBOOK, dtype=logits.dtype))


def joint(mean, log_std, logits, tail):
    style, kind = independent_normal(mean, log_std), StraightThrough(logits, 2)
    return JointDistribution(
        {"style": style, "kind": kind, "tail": Independent(Laplace(tail, 0 * tail), 1)}
    )


def affine(mean, log_diagonal, lower):
    shift, scale = (torch.tensor(v, dtype=mean.dtype) for v in ([1.0, -2.0, 0.5], [2.0, 0.5, 3.0]))
    return Affine(FullNormal(mean, log_diagonal, lower), shift, scale)


@dataclass(frozen=True)
class Case:
    make: Callable
    shapes: list  # of the parameters, without the batch
    event: tuple
    batches: tuple = ((), (5,), (2, 5))
    has_rsample: bool = True
    is_discrete: bool | None = False
    is_density: bool = True
    has_mean: bool = True
    scored: bool = True  # log_prob depends on the parameters, smoothly
    lower: bool = False  # a matrix counts below its diagonal only
    tolerance: float = 3e-5  # of float32, relative, and absolute below one


CASES = {
    "full normal": Case(FullNormal, [(3,), (3,), (3, 3)], (3,), lower=True),
    "full normal, 1": Case(FullNormal, [(1,), (1,), (1, 1)], (1,), lower=True),
    "low rank normal": Case(LowRankNormal, [(4,), (4,), (4, 2)], (4,)),
    "low rank normal, more columns than rows": Case(LowRankNormal, [(2,), (2,), (2, 3)], (2,)),
    "point": Case(lambda v: Delta(v, 2), [(3, 2)], (3, 2), is_density=False, scored=False),
    "sphere": Case(lambda: SphereUniform(torch.zeros(3)), [], (3,), ((),)),
    "straight through": Case(lambda v: StraightThrough(v, 1, 0.7), [(4,)], (4,), is_discrete=True),
    "straight through, positions": Case(
        lambda v: StraightThrough(v, 3, 0.7), [(3, 2, 2)], (3, 2, 2), is_discrete=True
    ),
    "quantized": Case(quantized, [(2, 2)], (2, 2), ((5,), (1,)), is_discrete=True, scored=False),
    "codes": Case(codes, [(3, 2)], (2, 2), ((),), has_rsample=False, is_discrete=True),
    "codes, grid": Case(codes, [(3, 2, 1)], (2, 2, 1), ((),), has_rsample=False, is_discrete=True),
    "joint": Case(joint, [(2,), (2,), (3, 2), (2,)], (10,), is_discrete=None),
    "unflattened": Case(
        lambda *params: ReshapedBatch(
            FullNormal(*(v.flatten(0, 1) for v in params)), params[0].shape[:2]
        ),
        [(2,), (2,), (2, 2)],
        (2,),
        ((2, 5), (1, 3)),
        lower=True,
    ),
    "unflattened classes": Case(
        lambda v: ReshapedBatch(StraightThrough(v.flatten(0, 1), 2), v.shape[:2]),
        [(3, 2)],
        (3, 2),
        ((2, 5), (1, 3)),
        is_discrete=True,
    ),
    "affine": Case(affine, [(3,), (3,), (3, 3)], (3,), lower=True),
}
CASES |= {
    f"power spherical, {dim}": Case(power_spherical, [(dim,), ()], (dim,)) for dim in (2, 3, 5, 20)
}
CASES |= {
    f"gumbel softmax, {temperature}": Case(
        functools.partial(GumbelSoftmax, event_ndim=2, temperature=temperature),
        [(3, 2)],
        (3, 2),
        has_mean=False,
    )
    for temperature in (0.3, 0.5, 2.0)
}
FLOWS = [
    (d, kind, coupling)
    for d in (1, 2, 3)
    for kind in ("affine", "spline")
    for coupling in (False, True)
]
CASES |= {
    f"flow, {dim}, {kind}{', coupling' * coupling}": Case(
        transformed(dim, kind, coupling), [(dim,), (dim,)], (dim,), has_mean=False, tolerance=1e-4
    )
    for dim, kind, coupling in FLOWS
}
cases = pytest.mark.parametrize("name", CASES)


def draw_params(name, batch, dtype=torch.float64):
    """Return random parameters that are equal in float32 and float64."""
    return [(0.5 * torch.randn((*batch, *s))).float().to(dtype) for s in CASES[name].shapes]


def largest_batch(name):
    return max(CASES[name].batches, key=len)


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
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


@cases
def test_gradients_of_log_prob(name):
    case = CASES[name]
    if not case.scored or name == "sphere":
        pytest.skip("log_prob depends on no parameter")
    batch = (*largest_batch(name)[:-1], 2) if largest_batch(name) else ()
    params = [v.requires_grad_() for v in draw_params(name, batch)]
    z = case.make(*params).sample((2,)).detach()
    assert gradcheck(
        lambda *v: case.make(*v).log_prob(z), params, fast_mode=name.startswith("flow")
    )
    log_prob = case.make(*params).log_prob(z)
    gradients = torch.autograd.grad((log_prob * torch.randn(log_prob.shape)).sum(), params)
    for g, shape in zip(gradients, case.shapes, strict=True):
        if case.lower and len(shape) == 2:
            rows, columns = torch.tril_indices(*shape, -1)
            g = g[..., rows, columns]
        assert (g != 0).all()


@pytest.mark.parametrize("kind", ["affine", "spline"])
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


# name: (case, derivative of draws with the same noise)
SMOOTH_DRAWS = [
    n
    for n, c in CASES.items()
    if c.has_rsample
    and c.shapes
    and not n.startswith(("power", "straight", "joint", "unflattened classes"))
]


@pytest.mark.parametrize("name", SMOOTH_DRAWS)
def test_gradients_of_draws(name):
    """With fixed noise, a draw is a smooth function of the parameters."""
    case = CASES[name]
    batch = (2, 2) if len(case.batches[0]) == 2 else (2,)

    def draw(*params):
        torch.manual_seed(3)
        return case.make(*params).sample((2,))

    assert gradcheck(draw, [v.requires_grad_() for v in draw_params(name, batch)])


# Against others -----------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", REFERENCES)
def test_log_prob_agrees_with_references(name):
    params = draw_params(name, largest_batch(name))
    p = CASES[name].make(*params)
    z = p.sample((50,))
    torch.testing.assert_close(p.log_prob(z), REFERENCES[name](*params, z), rtol=1e-9, atol=1e-9)


def grid(*axes):
    """Return nodes ``(n, D)`` of the trapezoidal rule and the volume of a cell."""
    return torch.cartesian_prod(*axes).reshape(-1, len(axes)), math.prod(
        (axis[1] - axis[0]).item() for axis in axes
    )


def integral(p, reach, nodes):
    """Return the integral of a density with ``batch_shape = ()`` over ``[-reach, reach]^D``."""
    z, cell = grid(*[torch.linspace(-reach, reach, nodes)] * p.event_shape[0])
    return p.log_prob(z).exp().sum().item() * cell


@pytest.mark.parametrize(
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


def test_affine_integrates_to_one():
    base = FullNormal(torch.randn(2), torch.randn(2) / 2, torch.randn(2, 2))
    p = Affine(base, torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5]))
    assert integral(p, 30, 801) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_gumbel_softmax_integrates_to_one(num_classes, temperature):
    p = GumbelSoftmax(torch.randn(num_classes), 1, temperature)
    axis = torch.arange(-30, 30.01, 0.2) / temperature
    u, cell = grid(*[axis] * (num_classes - 1))
    x = F.pad(u, (0, 1)).log_softmax(-1)  # of which all but the last are the coordinates
    log_prob = p.log_prob(x.exp()) + x.sum(-1)
    assert log_prob.exp().sum().item() * cell == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("concentration", [1e-3, 1.0, 30.0])
def test_power_spherical_integrates_to_one(concentration):
    log_concentration = torch.tensor(concentration).log()
    angle = torch.arange(4000) * (2 * math.pi / 4000)
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    p = power_spherical(torch.randn(2), log_concentration)
    assert p.log_prob(circle).exp().mean().item() * 2 * math.pi == pytest.approx(1, abs=1e-5)
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(200))
    around = circle[::20] * (1 - nodes.square()).sqrt()[:, None, None]  # (height, angle, 2)
    sphere = torch.cat([around, nodes[:, None, None].expand(-1, 200, 1)], -1)
    p = power_spherical(torch.randn(3), log_concentration)
    total = (p.log_prob(sphere).exp().mean(1) * weights).sum().item() * 2 * math.pi
    assert total == pytest.approx(1, abs=1e-6)


def one_hots(num_classes, num_variables):
    """Return all one-hot values ``(C^E, C, E)``."""
    classes = torch.tensor([*itertools.product(range(num_classes), repeat=num_variables)])
    return F.one_hot(classes, num_classes).movedim(-1, 1).double()


def test_masses_of_all_classes_sum_to_one():
    p = StraightThrough(torch.randn(4, 3, 2), 2)
    mass = p.log_prob(one_hots(3, 2)[:, None]).exp()
    torch.testing.assert_close(mass.sum(0), torch.ones(4), rtol=1e-12, atol=0)


def test_joint_sums_and_integrates_to_one():
    parts = {"x": independent_normal(torch.randn(1), torch.randn(1))}
    p = JointDistribution(parts | {"k": OneHotCategorical(torch.randn(3, 2), 2)})
    x, cell = grid(torch.linspace(-40, 40, 4001))
    kinds = one_hots(3, 2).flatten(1)
    z = torch.cat([x[:, None].expand(-1, 9, 1), kinds.expand(len(x), 9, 6)], -1)
    assert p.log_prob(z).exp().sum().item() * cell == pytest.approx(1, abs=1e-10)


# Draws --------------------------------------------------------------------------------------------


def ks(draws, cdf):
    return scipy.stats.kstest(np.asarray(draws), cdf, method="asymp").pvalue


@pytest.mark.parametrize("name", [n for n in CASES if "normal" in n] + ["affine", "unflattened"])
def test_draws_of_normal_vectors(name):
    params = draw_params(name, (1, 2) if name == "unflattened" else ())
    p = CASES[name].make(*params)
    with torch.no_grad():
        z = p.sample((4000,)).reshape(4000, -1, *p.event_shape)[:, 0]
    mean = p.mean.reshape(-1, *p.event_shape)[0]
    # The covariance, of the density: minus the inverse of the Hessian of its logarithm.
    hessian = torch.autograd.functional.hessian(
        lambda v: p.log_prob(v.expand(p.batch_shape + v.shape)).flatten()[0], mean
    )
    standard = (z - mean) @ torch.linalg.cholesky(-hessian)
    assert min(ks(column, "norm") for column in standard.T) > 1e-4
    square = standard.square().sum(-1)
    assert ks(square, scipy.stats.chi2(len(mean)).cdf) > 1e-4
    # All along the log density, which at the mean is that of the determinant.
    torch.testing.assert_close(
        p.log_prob(mean.expand(p.batch_shape + mean.shape)).flatten()[0],
        0.5 * torch.logdet(-hessian) - 0.5 * len(mean) * math.log(2 * math.pi),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("concentration", [1e-3, 1.0, 20.0, 1e5])
@pytest.mark.parametrize("dim", [2, 3, 5, 20])
def test_draws_on_the_sphere(dim, concentration, dtype):
    direction = F.normalize(torch.randn(dim), dim=-1).to(dtype)
    log_concentration = torch.tensor(concentration, dtype=dtype).log()
    z = PowerSpherical(direction, log_concentration).sample((4000,))
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(4000, dtype=dtype), rtol=0, atol=8 * eps)
    down = (z - direction).double().square().sum(-1) / 4
    beta = (dim - 1) / 2
    assert ks(down, scipy.stats.beta(beta, beta + concentration).cdf) > 1e-4
    # Around the direction it is uniform, whatever the height.
    basis = torch.linalg.qr(torch.cat([direction.double()[:, None], torch.eye(dim)], 1)).Q[:, 1:dim]
    around = F.normalize(z.double() @ basis, dim=-1)
    if dim == 2:
        assert scipy.stats.binomtest(int((around > 0).sum()), 4000).pvalue > 1e-4
    else:
        beta = (dim - 2) / 2
        for column in around.T[:3]:
            assert ks((1 + column) / 2, scipy.stats.beta(beta, beta).cdf) > 1e-4
    assert abs(scipy.stats.spearmanr(around[:, 0], down).statistic) < 4 / math.sqrt(4000)


@pytest.mark.parametrize("dim", [2, 3, 20])
def test_draws_of_the_whole_sphere(dim):
    z = SphereUniform(torch.zeros(dim)).sample((4000,))
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(4000))
    beta = (dim - 1) / 2
    for column in (z @ torch.linalg.qr(torch.randn(dim, dim)).Q).T[:4]:
        assert ks((1 + column) / 2, scipy.stats.beta(beta, beta).cdf) > 1e-4


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_draws_of_gumbel_softmax(temperature):
    """Differences of log draws are logistic, and the largest coordinate is a draw of the class."""
    logits = torch.randn(4)
    z = GumbelSoftmax(logits, 1, temperature).sample((5000,))
    kept = (z > 1e-300).all(-1)
    assert kept.double().mean() > 0.99
    scores = temperature * z.log() - logits
    for i, j in itertools.combinations(range(4), 2):
        assert ks(scores[:, i] - scores[:, j], "logistic") > 1e-4
    winners = torch.bincount(z.argmax(-1), minlength=4)
    assert scipy.stats.chisquare(winners, 5000 * logits.softmax(0)).pvalue > 1e-4
    # Three at once: whether one beats two others.
    expected = torch.sigmoid(logits[0] - logits[1:3].logsumexp(0))
    beats = (scores[:, 0] + logits[0] > (scores + logits)[:, 1:3].amax(1)).double().mean()
    assert (beats - expected).abs() < 4 * (expected * (1 - expected) / 5000).sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_straight_through_draws_are_exact(dtype):
    logits = torch.tensor([[0.0, 1.0, -2.0], [200.0, -200.0, 199.0]], dtype=dtype)
    z = StraightThrough(logits.requires_grad_(), 1, 0.1).sample((5000,))
    assert ((z == 0) | (z == 1)).all()
    assert (z.sum(-1) == 1).all()
    assert z.requires_grad
    for i in range(2):
        mass = logits[i].detach().double().softmax(0)
        counts = z[:, i].sum(0).detach().double()
        possible = mass > 1e-6
        assert counts[~possible].sum() == 0
        mass = mass[possible] / mass[possible].sum()
        assert scipy.stats.chisquare(counts[possible], 5000 * mass).pvalue > 1e-4


@pytest.mark.parametrize(("shape", "event_ndim"), [((5, 3), 1), ((5, 3, 2), 2)])
@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_straight_through_gradient_is_that_of_relaxed_draws(shape, event_ndim, temperature):
    logits, direction = torch.randn(shape).requires_grad_(), torch.randn(4, *shape)

    def gradient(draw):
        torch.manual_seed(2)
        return torch.autograd.grad((draw() * direction).sum(), logits)[0]

    def soft():
        gumbel = -torch.empty(4, *shape).exponential_().log()
        return ((logits + gumbel) / temperature).softmax(-event_ndim)

    hard = gradient(lambda: StraightThrough(logits, event_ndim, temperature).sample((4,)))
    torch.testing.assert_close(hard, gradient(soft), rtol=1e-12, atol=1e-14)
    relaxed = gradient(lambda: GumbelSoftmax(logits, event_ndim, temperature).sample((4,)))
    torch.testing.assert_close(relaxed, gradient(soft), rtol=1e-12, atol=1e-14)


def test_gumbel_softmax_low_temperature_needs_float64():
    """At lower temperatures, coordinates underflow whose logarithms the density needs."""
    assert GumbelSoftmax(torch.zeros(3), 1, 0.05).sample().dtype == torch.float64
    with pytest.raises(ValueError, match=r"temperature >= 0.3 in torch.float32, got 0.05: use"):
        GumbelSoftmax(torch.zeros(3).float(), 1, 0.05)


@pytest.mark.parametrize("temperature", [0.3, 0.5, 2.0])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_relaxed_draws_have_a_density_in_float32(temperature, scale):
    logits = (scale * torch.randn(50, 10).float()).requires_grad_()
    p = GumbelSoftmax(logits, 1, temperature)
    z = p.sample((200,))
    assert (z > 0).all()
    log_prob = p.log_prob(z)
    assert log_prob.isfinite().all()
    assert torch.autograd.grad(log_prob.sum(), logits)[0].isfinite().all()
    prior = GumbelSoftmax(torch.zeros(10), 1, temperature).log_prob(z)
    assert prior.isfinite().all()


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


def test_draws_of_codes():
    p = codes(torch.randn(3, 2, 2))
    z = p.sample((4000,))
    assert not z.requires_grad
    index = torch.cdist(z.movedim(1, -1), p.codebook).argmin(-1)
    assert torch.equal(p.codebook[index].movedim(-1, 1), z)
    for i, j in itertools.product(range(2), repeat=2):
        counts = torch.bincount(index[:, i, j], minlength=3)
        mass = p.logits[:, i, j].softmax(0)
        assert scipy.stats.chisquare(counts, 4000 * mass).pvalue > 1e-4
    pairs = torch.bincount(index[:, 0, 0] * 3 + index[:, 0, 1], minlength=9).reshape(3, 3)
    assert scipy.stats.chi2_contingency(pairs).pvalue > 1e-4


@cases
def test_mean_agrees_with_draws(name):
    case = CASES[name]
    if not case.has_mean:
        pytest.skip("has no closed form")
    p = case.make(*draw_params(name, largest_batch(name)))
    with torch.no_grad():
        z = p.sample((4000,))
        error = z.std(0) / math.sqrt(4000) + 1e-12
        assert ((z.mean(0) - p.mean).abs() < 4.5 * error).all()


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


@pytest.mark.parametrize(
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


# Each by itself -----------------------------------------------------------------------------------


def test_power_spherical_point_estimate():
    p = power_spherical(torch.randn(4, 3), torch.randn(4))
    torch.testing.assert_close(p.point_estimate(), p.direction)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    mean = (weights[:, None] * p.mean).sum(0)
    torch.testing.assert_close(p.point_estimate(weights), mean / mean.norm())


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


def test_points():
    value = torch.randn(5, 3, 2)
    for p in (Delta(value, 2), Quantized(value, torch.zeros(5, 2, dtype=torch.long), {}, {})):
        assert p.log_prob(value).tolist() == [0.0] * 5
        other = value.clone()
        other[3, 1, 0] += 1e-12
        assert p.log_prob(other).tolist() == [0.0, 0.0, 0.0, -math.inf, 0.0]
        assert torch.equal(p.log_prob(torch.stack([value, other]))[:, 3].exp(), torch.eye(2)[0])
        assert torch.equal(p.sample((2, 4)), value.expand(2, 4, 5, 3, 2))


def test_gradients_through_points():
    value = torch.randn(5, 3).requires_grad_()
    for p in (Delta(value, 1), Quantized(value, torch.zeros(5), {}, {})):
        (gradient,) = torch.autograd.grad(p.sample((2,)).sum(), value)
        assert (gradient == 2).all()


@pytest.mark.parametrize(("num_codes", "positions"), [(2, (3,)), (3, (2,)), (2, (2, 2)), (4, (1,))])
def test_masses_of_all_codes_sum_to_one(num_codes, positions):
    codebook = torch.randn(num_codes, 2)
    p = CodebookCategorical(torch.randn(num_codes, *positions), codebook)
    count = math.prod(positions)
    index = torch.tensor([*itertools.product(range(num_codes), repeat=count)])
    index = index.reshape(-1, *positions)
    values = codebook[index].movedim(-1, 1)
    log_prob = p.log_prob(values)
    assert len(values) == num_codes**count
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(p.log_mass(index), log_prob)
    each = p.logits.flatten(1).log_softmax(0).numpy()
    expected = [sum(each[k, s] for s, k in enumerate(row)) for row in index.flatten(1).tolist()]
    np.testing.assert_allclose(log_prob, expected, rtol=1e-12)
    values[0, 1].flatten()[-1] += 1e-9
    assert p.log_prob(values)[0] == -math.inf
    assert p.log_prob(values)[1:].isfinite().all()


def test_code_of_one_vector():
    # Regression: codes without positions, (J,), could neither be drawn nor scored.
    p = CodebookCategorical(torch.randn(3), torch.tensor(CODEBOOK))
    assert p.sample((4,)).shape == (4, 2)
    assert p.sample().shape == (2,)
    torch.testing.assert_close(p.log_prob(p.codebook[1]), p.log_probs[1])


def test_joint_split_undoes_concatenate():
    p = joint(*draw_params("joint", (5,)))
    z = p.sample((3,))
    parts = p.split(z)
    assert {name: v.shape[2:] for name, v in parts.items()} == {
        "style": (2,),
        "kind": (3, 2),
        "tail": (2,),
    }
    assert (parts["kind"].sum(-2) == 1).all()
    torch.testing.assert_close(torch.cat([v.flatten(2) for v in parts.values()], -1), z)
    scores = sum(part.log_prob(parts[name]) for name, part in p.parts.items())
    torch.testing.assert_close(p.log_prob(z), scores)


@pytest.mark.parametrize("lead", [(), (4,), (5,), (2, 5)])
def test_joint_draws_parts_without_batch_for_each_row(lead):
    # Regression: a part of batch_shape () next to one of (5,) was drawn once for all five.
    p = JointDistribution(
        {
            "given": independent_normal(torch.zeros(5, 2), torch.zeros(5, 2)),
            "alone": independent_normal(torch.zeros(1), torch.zeros(1)),
        }
    )
    z = p.sample(lead)
    assert z.shape == (*lead, 5, 3)
    assert p.log_prob(z).shape == (*lead, 5)
    assert len(z[..., 2].unique()) == z[..., 2].numel()


def test_reshaped_batch_agrees_with_rows():
    rows = FullNormal(torch.randn(6, 2), torch.randn(6, 2), torch.randn(6, 2, 2))
    p = ReshapedBatch(rows, (2, 3))
    z = torch.randn(4, 2, 3, 2)
    expected = rows.log_prob(z.reshape(4, 6, 2)).reshape(4, 2, 3)
    torch.testing.assert_close(p.log_prob(z), expected)
    torch.testing.assert_close(p.log_prob(z[0]), expected[0])
    torch.testing.assert_close(p.mean, rows.mean.reshape(2, 3, 2))
    torch.testing.assert_close(p.log_prob(z[0, 0][None]), p.log_prob(z[0, 0].expand(2, 3, 2)))


# Digits on the sphere -----------------------------------------------------------------------------


def exact_power_spherical(direction, log_concentration, x):
    """Return the log density with sixty digits, after normalizing the vectors."""
    with mpmath.workdps(60):
        u, v = ([mpmath.mpf(float(c)) for c in w] for w in (direction, x))
        length = mpmath.sqrt(mpmath.fsum(c * c for c in u) * mpmath.fsum(c * c for c in v))
        cosine = mpmath.fsum(a * b for a, b in zip(u, v, strict=True)) / length
        k, beta = mpmath.exp(mpmath.mpf(float(log_concentration))), mpmath.mpf(len(u) - 1) / 2
        log_prob = k * mpmath.log((1 + cosine) / 2) - 2 * beta * mpmath.log(2)
        log_prob += mpmath.loggamma(k + 2 * beta) - mpmath.loggamma(k + beta)
        return float(log_prob - beta * mpmath.log(mpmath.pi))


@pytest.mark.parametrize("dim", [2, 3, 5, 20])
@pytest.mark.parametrize("concentration", [1e-3, 0.1, 1.0, 10.0, 1e3, 1e5])
def test_power_spherical_accuracy(dim, concentration):
    direction = F.normalize(torch.randn(dim), dim=-1).float()
    log_concentration = torch.tensor(math.log(concentration)).float()
    narrow = PowerSpherical(direction, log_concentration)
    far = F.normalize(torch.randn(3, dim), dim=-1).float()
    z = torch.cat([narrow.sample((6,)), direction[None], far])
    exact = [exact_power_spherical(direction, log_concentration, v) for v in z]
    np.testing.assert_allclose(narrow.log_prob(z), exact, rtol=1e-5, atol=1e-5)
    direction, z = F.normalize(direction.double(), dim=-1), F.normalize(z.double(), dim=-1)
    wide = PowerSpherical(direction, log_concentration.double())
    exact = [exact_power_spherical(direction, log_concentration, v) for v in z]
    np.testing.assert_allclose(wide.log_prob(z), exact, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [2, 3, 5, 20])
def test_density_opposite_to_the_direction(dim, dtype):
    # Regression: where rounding makes |x - mu|^2 more than four, the log density is NaN.
    direction = F.normalize(torch.randn(500, dim, dtype=dtype), dim=-1)
    log_prob = PowerSpherical(direction, torch.zeros(500, dtype=dtype)).log_prob(-direction)
    assert not log_prob.isnan().any()
    assert (log_prob < -25).all()  # log eps^2 is -32 in float32


def test_density_of_nearly_uniform_draws_on_the_circle():
    # Regression: NaN, as opposite to the direction, at one of some 30,000 draws.
    direction = F.normalize(torch.randn(100_000, 2).float(), dim=-1)
    p = PowerSpherical(direction, torch.full((100_000,), -7.0).float())
    assert p.log_prob(p.sample()).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-4, 1e-2, math.pi - 1e-4, math.pi])
@pytest.mark.parametrize("dim", [2, 3, 5])
def test_draws_near_the_poles(dim, angle, dtype):
    """The pole of the reflection, e1, and its opposite are ordinary directions."""
    direction = torch.zeros(dim)
    direction[0], direction[1] = math.cos(angle), math.sin(angle)
    if angle == math.pi:
        direction = -torch.eye(dim)[0]
    direction = direction.to(dtype)
    for concentration in (1.0, 1e4):
        p = PowerSpherical(direction, torch.tensor(concentration, dtype=dtype).log())
        z = p.sample((4000,))
        eps = torch.finfo(dtype).eps
        assert ((z.norm(dim=-1) - 1).abs() < 8 * eps).all()
        error = z.double().std(0) / math.sqrt(4000) + 2 * eps
        assert ((z.double().mean(0) - p.mean).abs() < 4.5 * error).all()
        down = (z - direction).double().square().sum(-1) / 4
        beta = (dim - 1) / 2
        assert ks(down, scipy.stats.beta(beta, beta + concentration).cdf) > 1e-4


@pytest.mark.parametrize("angle", [0.0, 1e-3, 0.1, 1.5, 3.0, math.pi])
def test_gradient_of_draws_near_the_poles(angle):
    # Regression: at the pole the gradient is zero, and near it its error grows as 1 / angle.
    direction = torch.zeros(4000, 3)
    direction[:, 0], direction[:, 1] = math.cos(angle), math.sin(angle)
    direction.requires_grad_()
    p = PowerSpherical(direction, torch.zeros(4000))
    (gradient,) = torch.autograd.grad(p.sample()[:, 2].sum(), direction)
    error = gradient[:, 2].std() / math.sqrt(4000)
    assert error < 0.1
    assert (gradient[:, 2].mean() - 1 / 3).abs() < 4.5 * error  # E z is direction k / (D - 1 + k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("concentration", [1e-2, 1.0, 100.0, 1e4, 1e5])
@pytest.mark.parametrize("dim", [2, 3, 5])
def test_gradient_of_a_height_to_the_concentration(dim, concentration, dtype):
    # Regression: in float32 at 1e5, shares of a float32 Dirichlet were 34 % too small.
    count = 10_000
    direction = F.normalize(torch.randn(dim), dim=-1).to(dtype)
    log_concentration = torch.full((count,), math.log(concentration), dtype=dtype).requires_grad_()
    z = PowerSpherical(direction, log_concentration).sample()
    (gradient,) = torch.autograd.grad((z * direction).sum(), log_concentration)
    expected = concentration * (dim - 1) / (dim - 1 + concentration) ** 2
    error = gradient.double().std() / math.sqrt(count)
    assert (gradient.double().mean() - expected).abs() < 4.5 * error


@pytest.mark.parametrize("log_std", [0.0, -2.0, -4.0, -6.0])
def test_low_rank_normal_accuracy(log_std):
    # Regression: in float32 two large squares cancel, 0.1 nats are lost at -4, and 10 at -6.
    mean, factor = torch.randn(50, 20).float(), torch.randn(50, 20, 3).float()
    params = (mean, torch.full_like(mean, log_std), factor)
    p = LowRankNormal(*params)
    z = p.sample()
    wide = [v.double() for v in params]
    covariance = wide[2] @ wide[2].mT + torch.diag_embed((2 * wide[1]).exp())
    exact = td.MultivariateNormal(wide[0], covariance).log_prob(z.double())
    # What rounding of z itself costs is its last digit in units of the least std.
    rounding = 4 * math.exp(-log_std) * torch.finfo(torch.float32).eps * math.sqrt(20)
    torch.testing.assert_close(p.log_prob(z).double(), exact, rtol=1e-5, atol=4 * rounding + 1e-4)


# Flows --------------------------------------------------------------------------------------------

flows = pytest.mark.parametrize(("dim", "kind", "coupling"), FLOWS)


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


@pytest.mark.parametrize("kind", ["affine", "spline"])
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


@pytest.mark.parametrize(("dim", "context_dim"), [(1, 0), (3, 0), (3, 2)])
@pytest.mark.parametrize("kind", ["affine", "spline"])
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


class OneWay:
    """A bijection without an inverse."""

    def call_and_ladj(self, value):
        return 2 * value, value.new_full(value.shape[:-1], 2 * math.log(2))


def test_sample_and_log_prob_needs_no_inverse():
    base = independent_normal(torch.zeros(6, 2), torch.zeros(6, 2))
    flow = Transformed(base, OneWay())
    wrapped = [
        flow,
        ReshapedBatch(flow, (2, 3)),
        Independent(flow, 1),
        JointDistribution({"flow": flow, "plain": base}),
    ]
    scaled = independent_normal(torch.zeros(6, 2), torch.full((6, 2), math.log(2)))
    equal = [
        scaled,
        ReshapedBatch(scaled, (2, 3)),
        Independent(scaled, 1),
        JointDistribution({"flow": scaled, "plain": base}),
    ]
    for p, expected in zip(wrapped, equal, strict=True):
        assert p.yields_log_prob
        assert not expected.yields_log_prob
        z, log_prob = p.sample_and_log_prob((3,))
        torch.testing.assert_close(log_prob, expected.log_prob(z))
        with pytest.raises(AttributeError, match="inv"):
            p.log_prob(z)


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


# Kullback-Leibler divergences ---------------------------------------------------------------------


def independent_laplace(mean, log_scale):
    return Independent(Laplace(mean, log_scale), 1)


def classes(logits):
    return OneHotCategorical(logits, 2)


def straight_through(logits):
    return StraightThrough(logits, 2)


def sphere(dim):
    return lambda: SphereUniform(torch.zeros(dim))


def numpy_normal(q, p):
    (m1, s1), (m2, s2) = q, p
    r = 2 * (s1 - s2)
    return 0.5 * (np.exp(r) + (m1 - m2) ** 2 * np.exp(-2 * s2) - 1 - r).sum(-1)


def numpy_laplace(q, p):
    (m1, s1), (m2, s2) = q, p
    r, t = s1 - s2, abs(m1 - m2) * np.exp(-s1)
    return (np.expm1(r) - r + np.exp(r) * (t + np.expm1(-t))).sum(-1)


def moments(mean, log_diagonal, matrix=None, *, low_rank=False):
    tril = np.exp(log_diagonal)[..., None] * np.eye(mean.shape[-1])
    if low_rank:
        return mean, tril @ tril + matrix @ np.swapaxes(matrix, -1, -2)
    tril = tril if matrix is None else tril + np.tril(matrix, -1)
    return mean, tril @ np.swapaxes(tril, -1, -2)


def numpy_full(q, p, low_rank=False):
    (m1, s1), (m2, s2) = moments(*q, low_rank=low_rank), moments(*p)
    d, inverse = m2 - m1, np.linalg.inv(s2)
    trace = np.trace(inverse @ s1, axis1=-2, axis2=-1)
    square = np.einsum("...i,...ij,...j->...", d, inverse, d)
    log_det = np.linalg.slogdet(s2)[1] - np.linalg.slogdet(s1)[1]
    return 0.5 * (trace + square - d.shape[-1] + log_det)


def numpy_classes(q, p):
    log_q, log_p = (scipy.special.log_softmax(v[0], -2) for v in (q, p))
    return (np.exp(log_q) * (log_q - log_p)).sum((-2, -1))


def numpy_sphere(q, p):
    """Return E log q by quadrature over the angle, with a quadrature for the normalizer too."""
    direction, log_concentration = q
    dim, k = direction.shape[-1], np.exp(log_concentration)[..., None]
    nodes, weights = np.polynomial.legendre.leggauss(400)
    # Dense at the far end, where log cos has its singularity: angle = far (1 - v^5).
    v, far = 0.5 * (1 - nodes), np.minimum(math.pi, 24 / np.sqrt(k))
    rest, weights = (math.pi - far) + far * v**5, 5 * v**4 * weights  # rest: pi - angle
    height = 2 * np.log(np.sin(rest / 2))
    ring = 0.5 * far * weights * np.sin(rest) ** (dim - 2)
    total = (ring * np.exp(k * height)).sum(-1)
    whole = math.sqrt(math.pi) * math.gamma((dim - 1) / 2) / math.gamma(dim / 2)
    mean_height = (ring * np.exp(k * height) * height).sum(-1) / total
    return k[..., 0] * mean_height - np.log(total) + math.log(whole)


@dataclass(frozen=True)
class Pair:
    q: Callable
    p: Callable
    q_shapes: list
    p_shapes: list
    exact: Callable
    equal: Callable  # of random numbers: parameters of q and p at which they are equal
    elementwise: bool = False


def same(*shapes):
    return lambda: [[torch.randn(4, *s) for s in shapes]] * 2


def no_factor():
    mean, log_std = torch.randn(4, 3), torch.randn(4, 3)
    return [mean, log_std, torch.zeros(4, 3, 2)], [mean, log_std]


def no_lower(first):
    def make():
        mean, log_std = torch.randn(4, 3), torch.randn(4, 3)
        full = [mean, log_std, torch.zeros(4, 3, 3)]
        return (full, [mean, log_std]) if first else ([mean, log_std], full)

    return make


NORMAL, FULL = [(3,), (3,)], [(3,), (3,), (3, 3)]
PAIRS = {
    "normal": Pair(
        independent_normal, independent_normal, NORMAL, NORMAL, numpy_normal, same(*NORMAL), True
    ),
    "laplace": Pair(
        independent_laplace, independent_laplace, NORMAL, NORMAL, numpy_laplace, same(*NORMAL), True
    ),
    "full, full": Pair(FullNormal, FullNormal, FULL, FULL, numpy_full, same(*FULL)),
    "full, normal": Pair(FullNormal, independent_normal, FULL, NORMAL, numpy_full, no_lower(True)),
    "normal, full": Pair(independent_normal, FullNormal, NORMAL, FULL, numpy_full, no_lower(False)),
    "low rank, normal": Pair(
        LowRankNormal,
        independent_normal,
        [(3,), (3,), (3, 2)],
        NORMAL,
        functools.partial(numpy_full, low_rank=True),
        no_factor,
    ),
    "classes": Pair(classes, classes, [(3, 2)], [(3, 2)], numpy_classes, same((3, 2))),
    "straight through": Pair(
        straight_through, classes, [(3, 2)], [(3, 2)], numpy_classes, same((3, 2))
    ),
}
PAIRS |= {
    f"sphere, {dim}": Pair(
        power_spherical,
        sphere(dim),
        [(dim,), ()],
        [],
        numpy_sphere,
        lambda dim=dim: ([torch.randn(4, dim), torch.full((4,), -torch.inf)], []),
    )
    for dim in (2, 3, 5, 20)
}
pairs = pytest.mark.parametrize("name", PAIRS)


def draw_pair(name, batch=(4,)):
    pair = PAIRS[name]
    return [[0.6 * torch.randn((*batch, *s)) for s in v] for v in (pair.q_shapes, pair.p_shapes)]


@pairs
def test_kl_agrees_with_its_formula(name):
    pair, (q, p) = PAIRS[name], draw_pair(name, (50,))
    kl = kl_divergence(pair.q(*q), pair.p(*p))
    assert kl.shape == (50,)
    expected = pair.exact([v.numpy() for v in q], [v.numpy() for v in p])
    np.testing.assert_allclose(kl, expected, rtol=1e-10, atol=1e-11)
    assert has_closed_form(pair.q(*q), pair.p(*p))
    narrow = [[v.float() for v in params] for params in (q, p)]
    q, p = ([v.double() for v in params] for params in narrow)
    kl = kl_divergence(pair.q(*narrow[0]), pair.p(*narrow[1]))
    assert kl.dtype == torch.float32
    wide = kl_divergence(pair.q(*q), pair.p(*p))
    torch.testing.assert_close(kl.double(), wide, rtol=1e-5, atol=1e-5)


@pairs
def test_kl_agrees_with_monte_carlo(name):
    pair, (q, p) = PAIRS[name], draw_pair(name, (2,))
    q, p = pair.q(*q), pair.p(*p)
    z = q.sample((100_000,))
    ratios = q.log_prob(z) - p.log_prob(z)
    error = ratios.std(0) / math.sqrt(len(z))
    assert (error < 0.1).all()
    assert ((ratios.mean(0) - kl_divergence(q, p)).abs() < 4 * error).all()


@pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_is_zero_at_equality(name, dtype):
    pair = PAIRS[name]
    q, p = ([v.to(dtype) for v in params] for params in pair.equal())
    kl = kl_divergence(pair.q(*q), pair.p(*p))
    assert (kl.abs() <= 1e-12).all()


@pairs
def test_gradients_of_kl(name):
    pair, (q, p) = PAIRS[name], draw_pair(name, (2,))
    params = [v.requires_grad_() for v in q + p]
    assert gradcheck(lambda *v: kl_divergence(pair.q(*v[: len(q)]), pair.p(*v[len(q) :])), params)


@pairs
def test_kl_of_one_prior_for_all(name):
    """A prior with batch_shape () applies to every example, in rows and in (K, B)."""
    pair, (q, p) = PAIRS[name], draw_pair(name, (6,))
    p_one = [v[0] for v in p]
    p_all = [v.expand(6, *v.shape) for v in p_one]
    rows = pair.q(*q)
    kl = kl_divergence(rows, pair.p(*p_one))
    torch.testing.assert_close(kl, kl_divergence(rows, pair.p(*p_all)))
    # ReshapedBatch.
    wide = ReshapedBatch(rows, (2, 3))
    torch.testing.assert_close(kl_divergence(wide, pair.p(*p_one)), kl.reshape(2, 3))
    assert has_closed_form(wide, pair.p(*p_one))
    if p:
        own = ReshapedBatch(pair.p(*p), (2, 3))
        expected = kl_divergence(rows, pair.p(*p)).reshape(2, 3)
        torch.testing.assert_close(kl_divergence(wide, own), expected)
        assert has_closed_form(wide, own)
        other = ReshapedBatch(pair.p(*p), (3, 2))
        assert not has_closed_form(wide, other)
        with pytest.raises(NoClosedFormError):
            kl_divergence(wide, other)


@pairs
def test_kl_per_dim(name):
    pair, (q, p) = PAIRS[name], draw_pair(name, (6,))
    q, p = pair.q(*q), pair.p(*p)
    if not pair.elementwise:
        with pytest.raises(NoClosedFormError, match="per_dim expects independent elements"):
            kl_divergence(q, p, per_dim=True)
        return
    each = kl_divergence(q, p, per_dim=True)
    assert each.shape == (6, 3)
    torch.testing.assert_close(each.sum(-1), kl_divergence(q, p))
    wide = kl_divergence(ReshapedBatch(q, (2, 3)), ReshapedBatch(p, (2, 3)), per_dim=True)
    torch.testing.assert_close(wide, each.reshape(2, 3, 3))


@pairs
@settings(max_examples=20)
@given(
    seed=st.integers(0, 10**6),
    log_step=st.floats(-8, 0),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_kl_is_nonnegative_near_equality(name, seed, log_step, dtype):
    pair = PAIRS[name]
    torch.manual_seed(seed)
    (q, p), step = pair.equal(), 10**log_step
    if name.startswith("sphere"):  # equal at minus infinity
        q = [q[0], torch.full((4,), math.log(step))]
    else:
        q = [v + step * torch.randn(v.shape) for v in q]
    kl = kl_divergence(pair.q(*[v.to(dtype) for v in q]), pair.p(*[v.to(dtype) for v in p]))
    # The low-rank one is a difference; that on the sphere is one in float64.
    least = {"low": -1e-6, "sph": -1e-12}.get(name[:3], 0.0)
    assert (kl >= least).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("difference", [1e-4, -1e-4, 1e-2])
def test_kl_is_accurate_near_equality(difference, dtype):
    zero, near = torch.zeros(1, dtype=dtype), torch.full((1,), difference, dtype=dtype)
    r = float(near)
    normal = 0.5 * float(mpmath.expm1(2 * r) - 2 * mpmath.mpf(r))
    laplace = float(mpmath.expm1(r) - mpmath.mpf(r))
    rtol = 2e-3 if dtype == torch.float32 else 1e-8
    lower = torch.zeros(1, 1, dtype=dtype)
    for q, p, expected in [
        (independent_normal(zero, near), independent_normal(zero, zero), normal),
        (independent_laplace(zero, near), independent_laplace(zero, zero), laplace),
        (FullNormal(zero, near, lower), FullNormal(zero, zero, lower), normal),
        (FullNormal(zero, near, lower), independent_normal(zero, zero), normal),
        (independent_normal(zero, near), FullNormal(zero, zero, lower), normal),
    ]:
        assert kl_divergence(q, p).item() == pytest.approx(expected, rel=rtol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_of_a_tiny_scale(dtype):
    zero, tiny = torch.zeros(3, dtype=dtype), torch.full((3,), -60, dtype=dtype)
    lower, p = torch.zeros(3, 3, dtype=dtype), independent_normal(zero, zero)
    assert kl_divergence(independent_normal(zero, tiny), p).item() == 3 * 59.5
    assert kl_divergence(FullNormal(zero, tiny, lower), p).item() == 3 * 59.5
    full = FullNormal(zero, zero, lower)
    assert kl_divergence(FullNormal(zero, tiny, lower), full).item() == 3 * 59.5
    assert kl_divergence(LowRankNormal(zero, tiny, lower), p).item() == 3 * 59.5
    q = independent_laplace(zero, tiny)
    assert kl_divergence(q, independent_laplace(zero, zero)).item() == 3 * 59


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_of_extreme_logits(dtype):
    extreme = torch.tensor([*itertools.product([-200.0, 0.0, 200.0], repeat=3)], dtype=dtype)
    for q_class in (OneHotCategorical, StraightThrough):
        q = extreme[:, None].expand(27, 27, 3).clone().requires_grad_()
        p = extreme.expand(27, 27, 3).clone().requires_grad_()
        kl = kl_divergence(q_class(q, 1), OneHotCategorical(p, 1))
        assert kl.isfinite().all()
        assert (kl >= 0).all()
        assert (kl.diagonal() == 0).all()
        log_q, log_p = (v.detach().double().log_softmax(-1) for v in (q, p))
        expected = (log_q.exp() * (log_q - log_p)).sum(-1)
        torch.testing.assert_close(kl.double(), expected, rtol=1e-6, atol=1e-12)
        for gradient in torch.autograd.grad(kl.sum(), (q, p)):
            assert gradient.isfinite().all()


@pytest.mark.parametrize("dim", [2, 3, 5, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_on_the_sphere(dim, dtype):
    log_concentration = torch.linspace(math.log(1e-3), math.log(1e5), 40, dtype=dtype)
    q = PowerSpherical(torch.eye(dim, dtype=dtype)[0].expand(40, dim), log_concentration)
    kl = kl_divergence(q, SphereUniform(torch.zeros(dim, dtype=dtype)))
    assert kl.dtype == dtype
    params = [v.double().numpy() for v in (q.direction, q.log_concentration)]
    expected = numpy_sphere(params, [])
    np.testing.assert_allclose(
        kl, expected, rtol=1e-6 if dtype == torch.float32 else 1e-9, atol=1e-12
    )
    assert (kl.diff() > 0).all()
    # Half the variance of log (1 + t) / 2 under the uniform one, in squares of the concentration.
    variance = scipy.special.polygamma(1, (dim - 1) / 2) - scipy.special.polygamma(1, dim - 1)
    assert kl[0].item() == pytest.approx(0.5e-6 * variance, rel=1e-2)


@pytest.mark.parametrize("positions", [(2,), (2, 2)])
def test_kl_of_codes(positions):
    logits = torch.randn(3, *positions).requires_grad_()
    p, index = codes(logits), torch.randint(3, (5, *positions))
    value = p.codebook[index].movedim(-1, 1)
    q = Quantized(value, index, {}, {})
    kl = kl_divergence(q, p)
    torch.testing.assert_close(kl, q.log_prob(value) - p.log_prob(value))
    each = logits.detach().flatten(1).log_softmax(0)
    expected = [-sum(each[k, s] for s, k in enumerate(row)) for row in index.flatten(1).tolist()]
    torch.testing.assert_close(kl, torch.stack(expected))
    assert gradcheck(lambda v: kl_divergence(q, codes(v)), logits)
    certain = codes(
        torch.where(torch.arange(3).reshape(3, *[1] * len(positions)) == 1, 1e3, 0.0).expand(
            3, *positions
        )
    )
    ones = torch.ones(5, *positions, dtype=torch.long)
    q = Quantized(p.codebook[ones].movedim(-1, 1), ones, {}, {})
    assert (kl_divergence(q, certain) == 0).all()
    with pytest.raises(NoClosedFormError, match="per_dim expects independent elements"):
        kl_divergence(q, p, per_dim=True)


def vector(*batch):
    return torch.zeros(*batch, 3)


@pytest.mark.parametrize(
    ("q", "p"),
    [
        (
            lambda: independent_laplace(vector(), vector()),
            lambda: independent_normal(vector(), vector()),
        ),
        (
            lambda: independent_normal(vector(), vector()),
            lambda: LowRankNormal(vector(), vector(), vector(3).mT),
        ),
        (lambda: SphereUniform(vector()), lambda: power_spherical(torch.ones(3), torch.zeros(()))),
        (lambda: power_spherical(torch.ones(2), torch.zeros(())), lambda: SphereUniform(vector())),
        (lambda: Delta(vector(), 1), lambda: independent_normal(vector(), vector())),
        (lambda: GumbelSoftmax(vector(), 1, 0.5), lambda: GumbelSoftmax(vector(), 1, 0.5)),
        (lambda: GumbelSoftmax(vector(), 1, 0.5), lambda: OneHotCategorical(vector(), 1)),
        (lambda: StraightThrough(vector(), 1), lambda: OneHotCategorical(torch.zeros(4), 1)),
        (
            lambda: FullNormal(vector(), vector(), vector(3)),
            lambda: Independent(Bernoulli(vector()), 1),
        ),
        (
            lambda: Transformed(
                independent_normal(vector(), vector()), perturbed_flow(3, "affine")()
            ),
            lambda: independent_normal(vector(), vector()),
        ),
        (lambda: codes(vector(3)), lambda: codes(vector(3))),
        (
            lambda: Affine(independent_normal(vector(), vector()), torch.zeros(3), torch.ones(3)),
            lambda: independent_normal(vector(), vector()),
        ),
        # Regression: AttributeError, classes along different dimensions of one event shape.
        (
            lambda: OneHotCategorical(torch.zeros(2, 3), 2),
            lambda: Independent(OneHotCategorical(torch.zeros(2, 3), 1), 1),
        ),
    ],
)
def test_no_closed_form(q, p):
    assert not has_closed_form(q(), p())
    with pytest.raises(NoClosedFormError, match="use a sampled estimate"):
        kl_divergence(q(), p())


@pytest.mark.parametrize("first", [True, False])
def test_kl_of_a_full_normal_to_elements_of_one_scale(first):
    # Regression: IndexError, where the log_std of the elements is broadcast.
    mean, log_std = torch.randn(3), torch.tensor(0.3)
    full = FullNormal(torch.randn(3), torch.randn(3), torch.randn(3, 3))
    one, each = (Independent(Normal(mean, s), 1) for s in (log_std, log_std.expand(3)))
    pair, expected = ((full, one), (full, each)) if first else ((one, full), (each, full))
    torch.testing.assert_close(kl_divergence(*pair), kl_divergence(*expected))


def test_points_without_event_or_batch():
    # Regression: IndexError without event dimensions.
    value = torch.randn(3)
    assert Delta(value, 0).log_prob(value).tolist() == [0.0] * 3
    assert Delta(value.expand(5, 3), 1).log_prob(value).tolist() == [0.0] * 5


def test_losses_of_rows():
    # Regression: a wrapper has none of the losses and metrics of what it wraps.
    losses, metrics = {"commitment": torch.arange(6.0)}, {"perplexity": torch.tensor(2.0)}
    rows = Quantized(torch.randn(6, 2, 1), torch.zeros(6, 1, dtype=torch.long), losses, metrics)
    wide = ReshapedBatch(rows, (2, 3))
    assert torch.equal(wide.losses["commitment"], torch.arange(6.0).reshape(2, 3))
    assert wide.metrics == metrics


@pytest.mark.parametrize("log_std", [-3.0, -8.0, -20.0])
def test_low_rank_normal_with_nearly_equal_factors(log_std):
    column = torch.randn(6, 1)
    factor = torch.cat([column, column + 1e-3 * torch.randn(6, 1)], 1).float().requires_grad_()
    p = LowRankNormal(torch.zeros(6).float(), torch.full((6,), log_std).float(), factor)
    z = p.sample((20,)).detach()
    log_prob = p.log_prob(z)
    assert log_prob.isfinite().all()
    assert torch.autograd.grad(log_prob.sum(), factor)[0].isfinite().all()
    if log_std == -3:  # below, the rounding of z itself is many standard deviations
        exact = LowRankNormal(torch.zeros(6), torch.full((6,), log_std), factor.double())
        torch.testing.assert_close(
            log_prob.double(), exact.log_prob(z.double()), rtol=1e-2, atol=1e-2
        )


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


def test_joints_of_joints_have_a_closed_form():
    q, p = (Independent(Normal(torch.randn(2), torch.randn(2)), 1) for _ in range(2))
    nested = [JointDistribution({"a": d, "b": JointDistribution({"c": d})}) for d in (q, p)]
    torch.testing.assert_close(kl_divergence(*nested), 2 * kl_divergence(q, p))
