"""Kullback-Leibler divergences."""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import mpmath
import numpy as np
import pytest
import scipy.special
import torch
import torch.distributions as td
from helpers.cases import for_each
from helpers.distributions import (
    codes,
    independent_laplace,
    independent_normal,
    perturbed_flow,
    power_spherical,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from tinyvae.distributions import (
    Affine,
    Bernoulli,
    Delta,
    FullNormal,
    GumbelSoftmax,
    Independent,
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
from tinyvae.flows import Transformed

pytestmark = pytest.mark.usefixtures("float64")


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


pairs = for_each("name", PAIRS)


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
@for_each("dtype", [torch.float32, torch.float64])
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
    assert (kl >= 0).all()


@for_each("dtype", [torch.float32, torch.float64])
@for_each("difference", [1e-4, -1e-4, 1e-2])
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


@for_each("dtype", [torch.float32, torch.float64])
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


@for_each("dtype", [torch.float32, torch.float64])
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


@for_each("dim", [2, 3, 5, 20])
@for_each("dtype", [torch.float32, torch.float64])
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


@for_each("positions", [(2,), (2, 2)])
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


@for_each(
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
        (lambda: Normal(torch.zeros(3), torch.zeros(3)), lambda: Bernoulli(torch.zeros(3))),
        (lambda: Bernoulli(torch.zeros(3)), lambda: Bernoulli(torch.zeros(3))),
        (
            lambda: Independent(Normal(torch.zeros(3), torch.zeros(3)), 1),
            lambda: Normal(torch.zeros(3), torch.zeros(3)),
        ),
        (
            lambda: Independent(Normal(torch.zeros(2, 3), torch.zeros(2, 3)), 1),
            lambda: Independent(Normal(torch.zeros(2, 3), torch.zeros(2, 3)), 2),
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


@for_each("first", [True, False])
def test_kl_of_a_full_normal_to_elements_of_one_scale(first):
    # Regression: IndexError, where the log_std of the elements is broadcast.
    mean, log_std = torch.randn(3), torch.tensor(0.3)
    full = FullNormal(torch.randn(3), torch.randn(3), torch.randn(3, 3))
    one, each = (Independent(Normal(mean, s), 1) for s in (log_std, log_std.expand(3)))
    pair, expected = ((full, one), (full, each)) if first else ((one, full), (each, full))
    torch.testing.assert_close(kl_divergence(*pair), kl_divergence(*expected))


def test_kl_per_dim_agrees_with_torch():
    params = torch.randn(2, 2, 4, 3)
    q, p = (independent_normal(*pair) for pair in params)
    reference_q, reference_p = (td.Normal(mean, log_std.exp()) for mean, log_std in params)
    per_dim = kl_divergence(q, p, per_dim=True)
    expected = td.kl_divergence(reference_q, reference_p)
    torch.testing.assert_close(per_dim, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(per_dim.sum(1), kl_divergence(q, p), rtol=1e-10, atol=1e-10)


def kl_to_standard_normal(mean, log_std):
    zero = torch.zeros((), dtype=mean.dtype)
    return kl_divergence(Normal(mean, log_std), Normal(zero, zero))


def test_kl_is_nonnegative_in_float32():
    magnitude = 2 ** torch.linspace(-60, 5, 500_000)
    log_std = torch.cat([magnitude, -magnitude, torch.randn(500_000) * 1e-3]).float()
    assert kl_to_standard_normal(torch.zeros_like(log_std), log_std).min() >= 0


@settings(max_examples=300)
@given(
    st.floats(-(2**-7), 2**-7, width=32),
    st.floats(-(2**-7), 2**-7, width=32),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_kl_is_nonnegative_near_zero(mean, log_std, dtype):
    assert kl_to_standard_normal(*torch.tensor([mean, log_std], dtype=dtype)) >= 0


def test_kl_is_accurate_near_zero():
    log_std = torch.logspace(-8, -3, 50)
    exact = log_std**2 + 2 / 3 * log_std**3 + log_std**4 / 3  # series of the closed form
    kl = kl_to_standard_normal(torch.zeros(50), log_std)
    torch.testing.assert_close(kl, exact, rtol=1e-7, atol=1e-22)
