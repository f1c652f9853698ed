"""A table of distributions of latents, and integrals of densities."""

import copy
import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from tinyvae.distributions import (
    Affine,
    CodebookCategorical,
    Delta,
    FullNormal,
    GumbelSoftmax,
    Independent,
    JointDistribution,
    Laplace,
    LowRankNormal,
    Normal,
    PowerSpherical,
    Quantized,
    ReshapedBatch,
    SphereUniform,
    StraightThrough,
)
from tinyvae.flows import Flow, Transformed


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


def grid(*axes):
    """Return nodes ``(n, D)`` of the trapezoidal rule and the volume of a cell."""
    return torch.cartesian_prod(*axes).reshape(-1, len(axes)), math.prod(
        (axis[1] - axis[0]).item() for axis in axes
    )


def integral(p, reach, nodes):
    """Return the integral of a density with ``batch_shape = ()`` over ``[-reach, reach]^D``."""
    z, cell = grid(*[torch.linspace(-reach, reach, nodes)] * p.event_shape[0])
    return p.log_prob(z).exp().sum().item() * cell


def one_hots(num_classes, num_variables):
    """Return all one-hot values ``(C^E, C, E)``."""
    classes = torch.tensor([*itertools.product(range(num_classes), repeat=num_variables)])
    return F.one_hot(classes, num_classes).movedim(-1, 1).double()


def ks(draws, cdf):
    return scipy.stats.kstest(np.asarray(draws), cdf, method="asymp").pvalue


def independent_laplace(mean, log_scale):
    return Independent(Laplace(mean, log_scale), 1)


def masses(distribution, values):
    """Return masses ``(values, batch)`` of the least values, and of all others together."""
    grid = torch.arange(values, dtype=torch.get_default_dtype())
    mass = distribution.log_prob(grid[:, None]).exp()
    return torch.cat([mass, 1 - mass.sum(0, keepdim=True)]).clamp(min=0)


def chi_squared(draws, mass):
    """Return the p value of draws ``(n,)`` of 0, 1, ... with rare values pooled."""
    observed = np.bincount(np.minimum(draws, len(mass) - 1).astype(int), minlength=len(mass))
    expected = mass * len(draws)
    rare = expected < 5
    assert observed[expected <= 1e-9].sum() == 0
    if rare.any():
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    kept = expected > 1e-9
    if kept.sum() == 1:
        return 1.0
    total = observed[kept].sum() / expected[kept].sum()
    return scipy.stats.chisquare(observed[kept], expected[kept] * total).pvalue


def normal(*shape):
    return Normal(torch.randn(shape), 0.3 * torch.randn(shape))


def floats(low, high):
    """Generate numbers that are equal in float32 and float64."""
    bounds = (float(np.float32(bound)) for bound in (low, high))
    return st.floats(*bounds, width=32, allow_subnormal=False)


def logarithms(low, high):
    return floats(math.log(low), math.log(high))


counts = st.one_of(st.integers(0, 50), st.integers(0, 10**6))
