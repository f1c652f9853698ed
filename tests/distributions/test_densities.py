"""Distributions against scipy, and against 40-digit references if scipy is less accurate."""

import decimal
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from helpers.cases import for_each
from hypothesis import given
from hypothesis import strategies as st

from tinyvae.distributions import (
    Affine,
    Bernoulli,
    Beta,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Independent,
    Laplace,
    LogNormal,
    MaskedDistribution,
    Mixture,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    Poisson,
    StudentT,
    TabularDistribution,
    ZeroInflated,
)
from tinyvae.distributions.special import gamma_residual, gumbel_race, log_sinhc

pytestmark = pytest.mark.usefixtures("float64")

# Forty digits -------------------------------------------------------------------------------------

EXACT = decimal.Context(prec=40, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)
PI = Decimal("3.14159265358979323846264338327950288419716939937510582")
LOG_2PI = EXACT.ln(2 * PI)


@pytest.fixture(autouse=True)
def _forty_digits():
    with decimal.localcontext(EXACT):
        yield


def bernoulli_numbers(count):
    numbers = [Fraction(1)]
    for m in range(1, count):
        numbers.append(-sum(math.comb(m + 1, k) * b for k, b in enumerate(numbers)) / (m + 1))
    return numbers


STIRLING = [
    Decimal(b.numerator) / (b.denominator * k * (k - 1))
    for k, b in enumerate(bernoulli_numbers(32))
    if b and k > 1
]


def log_gamma(x):
    """Return log gamma by Stirling's series, after the recurrence has raised x to 16."""
    product = Decimal(1)
    while x < 16:
        product *= x
        x += 1
    series, inverse_square = Decimal(0), 1 / (x * x)
    for coefficient in reversed(STIRLING):
        series = series * inverse_square + coefficient
    return (x - Decimal("0.5")) * x.ln() - x + LOG_2PI / 2 + series / x - product.ln()


def sigmoid(x):
    return 1 / (1 + (-x).exp())


def exact_normal(x, mean, log_std):
    return -(((x - mean) / log_std.exp()) ** 2) / 2 - log_std - LOG_2PI / 2


def exact_laplace(x, mean, log_scale):
    return -abs(x - mean) / log_scale.exp() - (2 * log_scale.exp()).ln()


def exact_student_t(x, loc, log_scale, log_df):
    df = log_df.exp()
    constant = log_gamma((df + 1) / 2) - log_gamma(df / 2) - (PI * df).ln() / 2
    return constant - log_scale - (df + 1) / 2 * (1 + ((x - loc) / log_scale.exp()) ** 2 / df).ln()


def exact_log_normal(x, mean_log, log_std):
    return exact_normal(x.ln(), mean_log, log_std) - x.ln()


def exact_beta(x, logits, log_concentration):
    total = log_concentration.exp()
    a, b = total * sigmoid(logits), total * sigmoid(-logits)
    constant = log_gamma(total) - log_gamma(a) - log_gamma(b)
    return constant + (a - 1) * x.ln() + (b - 1) * (1 - x).ln()


def exact_continuous_bernoulli(x, logits):
    if not logits:
        return Decimal(0)
    with decimal.localcontext(prec=120):  # logits may be 1e-38
        return logits * x + (logits / (logits.exp() - 1)).ln()


def exact_bernoulli(x, logits):
    return (sigmoid(logits) if x else sigmoid(-logits)).ln()


def exact_poisson(k, log_mean):
    return k * log_mean - log_mean.exp() - log_gamma(k + 1)


def exact_negative_binomial(k, log_mean, log_concentration):
    r, log_total = log_concentration.exp(), (log_mean.exp() + log_concentration.exp()).ln()
    choose = log_gamma(k + r) - log_gamma(r) - log_gamma(k + 1)
    return choose + r * (log_concentration - log_total) + k * (log_mean - log_total)


def exact_zero_inflated(k, log_mean, logits):
    counted = sigmoid(-logits) * exact_poisson(k, log_mean).exp()
    return (counted + (0 if k else sigmoid(logits))).ln()


def exact_discretized_logistic(num_levels):
    def log_prob(k, mean, log_scale):
        last, s = num_levels - 1, log_scale.exp()
        low, high = (((2 * k + side) / last - 1 - mean) / s for side in (-1, 1))
        if low > 0:  # the other tail, in which a difference keeps its digits
            low, high = -high, -low
            first, final = k == last, k == 0
        else:
            first, final = k == 0, k == last
        return ((1 if final else sigmoid(high)) - (0 if first else sigmoid(low))).ln()

    return log_prob


# Families -----------------------------------------------------------------------------------------


def floats(low, high):
    """Generate numbers that are equal in float32 and float64."""
    bounds = (float(np.float32(bound)) for bound in (low, high))
    return st.floats(*bounds, width=32, allow_subnormal=False)


def logarithms(low, high):
    return floats(math.log(low), math.log(high))


reals = floats(-1e6, 1e6)
log_scales = logarithms(1.01e-6, 0.99e6)
logits = st.one_of(floats(-200, 200), floats(-1, 1))
counts = st.one_of(st.integers(0, 50), st.integers(0, 10**6))


@st.composite
def count_and_log_mean(draw):
    count = draw(counts)
    near = floats(-0.1, 0.1).map(lambda d: float(np.float32(math.log(max(count, 1)) + d)))
    return count, draw(st.one_of(near, logarithms(1e-6, 1e6)))


@st.composite
def near_and_far(draw, value, log_scale):
    """Generate a value, a location near it or anywhere, and the logarithm of the scale."""
    x, log_s = draw(value), draw(log_scale)
    offset = floats(-10, 10).map(lambda d: float(np.float32(x + d * math.exp(log_s))))
    return x, draw(st.one_of(offset, value)), log_s


@st.composite
def proportion_and_logits(draw):
    x = draw(st.one_of(floats(1e-30, 1 - 1e-7), floats(0.01, 0.99)))
    near = floats(-0.1, 0.1).map(lambda d: float(np.float32(math.log(x) - math.log1p(-x) + d)))
    return x, draw(st.one_of(near, logits))


def flat(*strategies):
    return st.tuples(*strategies).map(lambda parts: (*parts[0], *parts[1:]))


@dataclass(frozen=True)
class Family:
    make: Callable
    inputs: st.SearchStrategy  # value, then parameters
    exact: Callable
    float32: float = 1e-5  # tolerance: relative, and absolute below one
    float32_per_unit: float = 0.0  # of the last parameter, which is a logarithm


def discretized_logistic(num_levels):
    levels = st.integers(0, num_levels - 1)
    means = st.one_of(floats(-1.5, 1.5), floats(-1e3, 1e3))
    return Family(
        lambda mean, log_scale: DiscretizedLogistic(mean, log_scale, num_levels),
        st.tuples(levels, means, log_scales),
        exact_discretized_logistic(num_levels),
    )


# Of differences in the place of derivatives: small beside all distances from a location, but not
# beside any distance from a Laplace variable's kink.
STEP = Decimal("1e-18")

FAMILIES = {
    "normal": Family(Normal, near_and_far(reals, log_scales), exact_normal),
    "laplace": Family(
        Laplace,
        near_and_far(reals, log_scales).filter(lambda v: v[0] == v[1] or abs(v[0] - v[1]) > STEP),
        exact_laplace,
    ),
    "student t": Family(
        StudentT, flat(near_and_far(reals, log_scales), log_scales), exact_student_t
    ),
    "log-normal": Family(
        LogNormal,
        st.tuples(floats(1e-30, 1e30), floats(-60, 60), log_scales),
        exact_log_normal,
    ),
    # The last digits of log x and of the log mean enter as often as the concentration says; logits
    # of -69 are held to 4e-6, and so is log x.
    "beta": Family(
        Beta,
        flat(proportion_and_logits(), log_scales),
        exact_beta,
        float32=2e-5,
        float32_per_unit=3e-9,
    ),
    "continuous bernoulli": Family(
        ContinuousBernoulli,
        st.tuples(floats(0, 1), logits),
        exact_continuous_bernoulli,
    ),
    "bernoulli": Family(Bernoulli, st.tuples(st.integers(0, 1), logits), exact_bernoulli),
    "poisson": Family(Poisson, count_and_log_mean(), exact_poisson, float32=1e-4),
    "negative binomial": Family(
        NegativeBinomial,
        flat(count_and_log_mean(), log_scales),
        exact_negative_binomial,
        float32=1e-4,
    ),
    "zero-inflated poisson": Family(
        lambda log_mean, logits: ZeroInflated(Poisson(log_mean), logits),
        flat(count_and_log_mean(), logits),
        exact_zero_inflated,
        float32=1e-4,
    ),
    "discretized logistic, 2": discretized_logistic(2),
    "discretized logistic, 16": discretized_logistic(16),
    "discretized logistic, 256": discretized_logistic(256),
}


def evaluate(make, inputs, dtype):
    """Return the log density and its gradient with respect to every parameter."""
    value, *params = (torch.tensor(float(v), dtype=dtype) for v in inputs)
    params = [p.requires_grad_() for p in params]
    log_prob = make(*params).log_prob(value)
    return log_prob.detach(), torch.stack(torch.autograd.grad(log_prob, params))


def exact_gradient(exact, inputs):
    """Return the gradient by central differences, exact in float64 thanks to 40 digits."""
    for i in range(1, len(inputs)):
        high, low = ([*inputs[:i], inputs[i] + d, *inputs[i + 1 :]] for d in (STEP, -STEP))
        yield float((exact(*high) - exact(*low)) / (2 * STEP))


families = pytest.mark.parametrize("name", FAMILIES)


@families
@given(data=st.data())
def test_log_prob_and_gradient(name, data):
    family = FAMILIES[name]
    inputs = data.draw(family.inputs)
    digits = [*map(Decimal, inputs)]
    exact = float(family.exact(*digits))
    log_prob, gradient = evaluate(family.make, inputs, torch.float64)
    assert log_prob.item() == pytest.approx(exact, rel=1e-9, abs=1e-9)
    expected = list(exact_gradient(family.exact, digits))
    np.testing.assert_allclose(gradient, expected, rtol=1e-8, atol=1e-8)
    log_prob, gradient = evaluate(family.make, inputs, torch.float32)
    tolerance = family.float32 + family.float32_per_unit * math.exp(inputs[-1])
    assert log_prob.item() == pytest.approx(exact, rel=tolerance, abs=tolerance)
    assert gradient.isfinite().all()


def test_mpmath_references_agree_with_scipy():
    x = np.logspace(-6, 6, 40)
    exact = [float(log_gamma(Decimal(v))) for v in x]
    np.testing.assert_allclose(exact, scipy.special.gammaln(x), rtol=1e-13, atol=1e-14)


@for_each(
    ("dtype", "limit", "tolerance"), [(torch.float64, 1e300, 1e-13), (torch.float32, 1e37, 5e-6)]
)
@given(data=st.data())
def test_gamma_residual(dtype, limit, tolerance, data):
    x = torch.tensor(math.exp(data.draw(st.floats(-math.log(limit), math.log(limit)))), dtype=dtype)
    with decimal.localcontext(prec=350):
        v = Decimal(x.item())
        exact = float(log_gamma(v) - v * v.ln() + v)
    assert gamma_residual(x, x.log()).item() == pytest.approx(exact, rel=tolerance, abs=tolerance)


def test_gamma_residual_where_its_argument_underflows():
    log_x = torch.tensor([-800.0, -1e5])
    torch.testing.assert_close(gamma_residual(torch.zeros(2), log_x), -log_x)


@for_each(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
@given(y=st.one_of(floats(-700, 700), floats(-0.3, 0.3), logarithms(1e-30, 1).map(np.exp)))
def test_log_sinhc(dtype, tolerance, y):
    y, eps = torch.tensor(float(y), dtype=dtype), 2 * torch.finfo(dtype).eps
    v = Decimal(y.item())
    with decimal.localcontext(prec=200):
        exact = float(((v.exp() - (-v).exp()) / (2 * v)).ln()) if v else 0.0
    assert log_sinhc(y).item() == pytest.approx(exact, rel=tolerance, abs=eps)


# Against scipy: log density, mean, draws ----------------------------------------------------------


class ContinuousBernoulliReference:
    def __init__(self, logits):
        self.logits = logits

    def logpdf(self, x):
        return self.logits * x - np.log(scipy.special.exprel(self.logits))

    def cdf(self, x):
        return x * scipy.special.exprel(self.logits * x) / scipy.special.exprel(self.logits)

    def mean(self):
        p = scipy.special.expit(self.logits)
        return p / (2 * p - 1) + 1 / (2 * np.arctanh(1 - 2 * p))

    def rvs(self, size, random_state):
        return random_state.uniform(size=size)


class DiscretizedLogisticReference:
    def __init__(self, mean, log_scale):
        edges = ((2 * np.arange(15) + 1) / 15 - 1)[:, None]
        logistic = scipy.stats.logistic(mean, np.exp(log_scale))
        below = np.diff(logistic.cdf(edges), axis=0, prepend=0, append=1)
        above = -np.diff(logistic.sf(edges), axis=0, prepend=1, append=0)
        self.mass = np.where(np.concatenate([edges, [[1.0]]]) < mean, below, above)

    def logpmf(self, k):
        return np.log(np.take_along_axis(self.mass, k.astype(int), 0))

    def mean(self):
        return np.arange(16) @ self.mass

    def rvs(self, size, random_state):
        return random_state.integers(16, size=size)


def scipy_beta(logits, log_concentration):
    mean, total = scipy.special.expit(logits), np.exp(log_concentration)
    return scipy.stats.beta(mean * total, (1 - mean) * total)


def scipy_negative_binomial(log_mean, log_concentration):
    mean, r = np.exp(log_mean), np.exp(log_concentration)
    return scipy.stats.nbinom(r, r / (r + mean))


# name: (ours, scipy's, number of parameters, values that counts are compared at)
REFERENCES = {
    "normal": (Normal, lambda m, s: scipy.stats.norm(m, np.exp(s)), 2),
    "laplace": (Laplace, lambda m, s: scipy.stats.laplace(m, np.exp(s)), 2),
    "student t": (
        lambda m, s, v: StudentT(m, s, v.abs() + 0.1),
        lambda m, s, v: scipy.stats.t(np.exp(np.abs(v) + 0.1), m, np.exp(s)),
        3,
    ),
    "log-normal": (LogNormal, lambda m, s: scipy.stats.lognorm(np.exp(s), scale=np.exp(m)), 2),
    "beta": (  # most mass away from 1, near which floating-point numbers are coarse
        lambda m, s: Beta(-m.abs(), 1 + s.abs()),
        lambda m, s: scipy_beta(-np.abs(m), 1 + np.abs(s)),
        2,
    ),
    "continuous bernoulli": (ContinuousBernoulli, ContinuousBernoulliReference, 1),
    "bernoulli": (Bernoulli, lambda t: scipy.stats.bernoulli(scipy.special.expit(t)), 1, 2),
    "poisson": (Poisson, lambda m: scipy.stats.poisson(np.exp(m)), 1, 60),
    "negative binomial": (NegativeBinomial, scipy_negative_binomial, 2, 60),
    "discretized logistic": (
        lambda m, s: DiscretizedLogistic(m, s, 16),
        DiscretizedLogisticReference,
        2,
        16,
    ),
}
references = for_each("name", REFERENCES)


def reference(name, size, scale=1.0):
    make, scipy_make, num_params, *_ = REFERENCES[name]
    params = torch.randn(num_params, size) * scale
    return make(*params), scipy_make(*params.numpy())


@references
def test_log_prob_and_mean_agree_with_scipy(name):
    ours, theirs = reference(name, 500)
    x = theirs.rvs(size=(3, 500), random_state=np.random.default_rng(0)).astype(float)
    x = np.clip(x, 1e-300, None) if name == "beta" else x
    log_prob = theirs.logpmf if ours.is_discrete else theirs.logpdf
    np.testing.assert_allclose(ours.log_prob(torch.tensor(x)), log_prob(x), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(ours.mean, theirs.mean(), rtol=1e-9)


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


@references
@for_each("scale", [0.5, 2.0])
def test_draws_agree_with_scipy(name, scale):
    ours, theirs = reference(name, 6, scale)
    draws = ours.sample((5000,))
    assert draws.shape == (5000, 6)
    if ours.is_discrete:
        mass = masses(ours, REFERENCES[name][3])
        p_values = [chi_squared(draws[:, i].numpy(), mass[:, i].numpy()) for i in range(6)]
    else:
        uniform = theirs.cdf(draws.numpy())
        p_values = [
            scipy.stats.kstest(uniform[:, i], "uniform", method="asymp").pvalue for i in range(6)
        ]
    assert min(p_values) > 1e-4


@for_each("logits", [0.0, 1e-6, -1e-6, 2e-4, -3e-3, 30.0, -30.0, 200.0, -200.0])
@for_each("dtype", [torch.float32, torch.float64])
def test_draws_of_a_continuous_bernoulli(logits, dtype):
    draws = ContinuousBernoulli(torch.tensor(logits, dtype=dtype)).sample((5000,)).double()
    assert draws.min() >= 0
    assert draws.max() <= 1
    cdf = ContinuousBernoulliReference(np.float64(logits)).cdf
    assert scipy.stats.kstest(draws.numpy(), cdf, method="asymp").pvalue > 1e-4


@for_each("dtype", [torch.float32, torch.float64])
@for_each("log_concentration", [-13.0, -3.0, 13.0])
@for_each("logits", [-200.0, -5.0, 0.0, 5.0, 200.0])
def test_draws_of_a_beta_have_a_density(logits, log_concentration, dtype):
    p = Beta(*torch.tensor([logits, log_concentration], dtype=dtype))
    draws = p.sample((1000,))
    assert draws.min() > 0
    assert draws.max() < 1
    assert p.log_prob(draws).isfinite().all()


# Ends and middles ---------------------------------------------------------------------------------


def test_bernoulli_at_the_ends_is_exact_in_float32():
    logits = torch.tensor([200.0, -200.0], dtype=torch.float32)
    values = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float32)
    assert Bernoulli(logits).log_prob(values).tolist() == [[0.0, 0.0], [-200.0, -200.0]]


@for_each("exponent", range(-12, 0))
@for_each(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 3e-7)])
def test_continuous_bernoulli_near_the_uniform(exponent, dtype, tolerance):
    logits = 4 * torch.linspace(-1, 1, 41, dtype=dtype) * 10.0**exponent
    p = ContinuousBernoulli(logits)
    for i, v in enumerate(map(Decimal, logits.tolist())):
        with decimal.localcontext(prec=120):
            mean = 1 / (1 - (-v).exp()) - 1 / v if v else Decimal("0.5")
        constant = exact_continuous_bernoulli(Decimal("0.5"), v)
        assert p.mean[i].item() == pytest.approx(float(mean), abs=tolerance)
        at_half = p.log_prob(torch.tensor(0.5, dtype=dtype))[i].item()
        assert at_half == pytest.approx(float(constant), abs=tolerance)


@for_each("probability", [0.01, 0.3, 0.499, 0.4999999, 0.5, 0.52, 0.9])
def test_continuous_bernoulli_in_its_probability(probability):
    at = 1 - 2 * probability
    constant = 2 * math.atanh(at) / at if at else 2.0
    mean = probability / (2 * probability - 1) + 1 / (2 * math.atanh(at)) if at else 0.5
    p = ContinuousBernoulli(torch.tensor(probability).logit())
    for x in (0.0, 0.3, 1.0):
        expected = math.log(constant * probability**x * (1 - probability) ** (1 - x))
        assert p.log_prob(torch.tensor(x)).item() == pytest.approx(expected, abs=1e-9)
    assert p.mean.item() == pytest.approx(mean, abs=1e-8)


@given(
    num_levels=st.sampled_from([2, 3, 16, 256]),
    mean=st.one_of(floats(-1.5, 1.5), floats(-100, 100)),
    log_scale=floats(-12, 12),
)
def test_discretized_logistic_sums_to_one(num_levels, mean, log_scale):
    p = DiscretizedLogistic(torch.tensor(mean), torch.tensor(log_scale), num_levels)
    levels = torch.arange(num_levels)
    mass = p.log_prob(levels).exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-12)
    if num_levels <= 16:  # the mean is a loop over levels
        assert p.mean.item() == pytest.approx((levels * mass).sum().item(), abs=1e-9)


def test_discretized_logistic_edges_have_all_remaining_mass():
    """Bins that end at the edges would lose the mass outside them: here .157."""
    mean, log_scale, half = -0.3, -1.0, 1 / 255
    levels = torch.arange(256)
    grid = 2 * levels.numpy() / 255 - 1
    sides = [scipy.stats.logistic.cdf(grid + d, mean, math.exp(log_scale)) for d in (-half, half)]
    closed = sides[1] - sides[0]
    assert 1 - closed.sum() == pytest.approx(0.157, abs=5e-4)
    p = DiscretizedLogistic(torch.tensor(mean), torch.tensor(log_scale), 256)
    mass = p.log_prob(levels).exp().numpy()
    np.testing.assert_allclose(mass[1:-1], closed[1:-1], rtol=1e-10)
    np.testing.assert_allclose(mass[[0, -1]], [sides[1][0], 1 - sides[0][-1]], rtol=1e-10)


@given(log_mean=logarithms(1e-6, 1e6), k=counts)
def test_negative_binomial_of_large_concentration_is_poisson(log_mean, k):
    log_mean, k = torch.tensor(log_mean), torch.tensor(float(k))
    poisson = Poisson(log_mean).log_prob(k)
    limit = NegativeBinomial(log_mean, torch.tensor(60.0)).log_prob(k)
    torch.testing.assert_close(limit, poisson, rtol=1e-9, atol=1e-9)


@for_each("dtype", [torch.float64, torch.float32])
@for_each("log_mean", [-40.0, 0.0, 13.0])
@for_each("make", [Poisson, lambda m: NegativeBinomial(m, 0 * m)])
def test_zero_counts(make, log_mean, dtype):
    log_mean = torch.tensor(log_mean, dtype=dtype, requires_grad=True)
    log_prob = make(log_mean).log_prob(torch.zeros((), dtype=dtype))
    mean = math.exp(log_mean.item())
    expected = -mean if make is Poisson else -math.log1p(mean)
    assert log_prob.item() == pytest.approx(expected, rel=1e-6)
    (gradient,) = torch.autograd.grad(log_prob, log_mean)
    expected = -mean if make is Poisson else -mean / (1 + mean)
    assert gradient.item() == pytest.approx(expected, rel=1e-6)


def test_student_t_without_a_mean():
    p = StudentT(torch.tensor([1.0, 2.0]), torch.zeros(()), torch.tensor([0.0, 0.7]))
    assert p.mean.isnan().tolist() == [True, False]
    assert p.point_estimate().tolist() == [1.0, 2.0]
    assert p.point_estimate(torch.tensor([0.25, 0.75])).item() == 1.75


# Compositions -------------------------------------------------------------------------------------


def normal(*shape):
    return Normal(torch.randn(shape), 0.3 * torch.randn(shape))


def test_affine():
    base, shift, scale = normal(4, 3), torch.randn(3), torch.rand(3) + 0.5
    p = Affine(base, shift, scale)
    loc, std = shift + scale * base.mean, scale * base.log_std.exp()
    x = torch.randn(5, 4, 3)
    expected = scipy.stats.norm.logpdf(x, loc, std)
    np.testing.assert_allclose(p.log_prob(x), expected, rtol=1e-12)
    torch.testing.assert_close(p.mean, loc)
    weights = torch.randn(4).softmax(0)
    torch.testing.assert_close(p.point_estimate(weights), (weights[:, None] * loc).sum(0))
    uniform = scipy.stats.norm.cdf(p.sample((2000,)), loc, std)
    assert scipy.stats.kstest(uniform.ravel(), "uniform", method="asymp").pvalue > 1e-4
    assert (p.batch_shape, p.event_shape, p.has_rsample) == ((4, 3), (), True)


def test_affine_draws_carry_gradients():
    scale = torch.tensor(2.0, requires_grad=True)
    Affine(normal(3), torch.zeros(()), scale).sample().sum().backward()
    assert scale.grad != 0


@for_each("dim", [-1, -2, -3])
def test_mixture_of_scalars(dim):
    components, logits = normal(4, 3, 2), torch.randn(4, 3, 2)
    p = Mixture(logits, components, dim)
    weights = scipy.special.softmax(logits.numpy(), dim)
    x = torch.randn(5, *p.batch_shape)
    at = np.expand_dims(x.numpy(), dim)
    density = scipy.stats.norm.pdf(at, components.mean, components.log_std.exp())
    np.testing.assert_allclose(p.log_prob(x), np.log((weights * density).sum(dim)), rtol=1e-12)
    mean = (weights * components.mean.numpy()).sum(dim)
    np.testing.assert_allclose(p.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(p.point_estimate(), mean, rtol=1e-12)
    pool = torch.randn(len(mean)).softmax(0)
    np.testing.assert_allclose(p.point_estimate(pool), np.tensordot(pool, mean, 1), rtol=1e-12)
    cdf = scipy.stats.norm.cdf(
        np.expand_dims(p.sample((2000,)).numpy(), dim), components.mean, components.log_std.exp()
    )
    uniform = (weights * cdf).sum(dim)
    assert scipy.stats.kstest(uniform.ravel(), "uniform", method="asymp").pvalue > 1e-4


def test_mixture_of_events():
    """All elements of one event belong to one component."""
    loc = torch.tensor([[-9.0, -9.0], [9.0, 9.0]])
    p = Mixture(torch.tensor([0.0, 1.0]), Independent(Normal(loc, torch.zeros(2, 2)), 1))
    assert (p.batch_shape, p.event_shape) == ((), (2,))
    draws = p.sample((2000,))
    signs = draws.sign()
    assert (signs[:, 0] == signs[:, 1]).all()
    ones = int((signs[:, 0] > 0).sum())
    share = scipy.special.expit(1.0)
    assert scipy.stats.binomtest(ones, 2000, share).pvalue > 1e-4
    each = scipy.stats.norm.logpdf(draws[:, None], loc).sum(-1)  # (n, 2)
    expected = scipy.special.logsumexp(each + np.log([1 - share, share]), axis=1)
    np.testing.assert_allclose(p.log_prob(draws), expected, rtol=1e-12)
    torch.testing.assert_close(p.mean, torch.full((2,), 9 * (2 * share - 1)))


def test_mixture_broadcasts_weights_and_keeps_attributes():
    p = Mixture(torch.zeros(2), Poisson(torch.randn(4, 2)))
    assert p.batch_shape == (4,)
    assert p.is_discrete
    assert not p.has_rsample
    assert not Mixture(torch.zeros(2), normal(4, 2)).is_discrete


def test_mixture_draws_carry_no_gradient():
    p = Mixture(torch.zeros(2), Normal(torch.zeros(2, requires_grad=True), torch.zeros(2)))
    assert not p.sample().requires_grad


@for_each("logits", [-200.0, -1.0, 0.0, 3.0, 200.0])
def test_zero_inflated(logits):
    log_mean, extra = torch.tensor([0.4, 2.0]), scipy.special.expit(logits)
    p = ZeroInflated(Poisson(log_mean), torch.full((2,), logits))
    theirs = scipy.stats.poisson(log_mean.exp().numpy())
    mass = masses(p, 60)
    expected = (1 - extra) * theirs.pmf(np.arange(60)[:, None])
    expected[0] += extra
    np.testing.assert_allclose(mass[:-1], expected, rtol=1e-9, atol=1e-80)
    np.testing.assert_allclose(p.mean, (1 - extra) * theirs.mean(), rtol=1e-9, atol=1e-16)
    draws = p.sample((4000,))
    for i in range(2):
        assert chi_squared(draws[:, i].numpy(), mass[:, i].numpy()) > 1e-4


def test_masked_distribution_scores_observed_entries():
    loc = torch.randn(4, 3, requires_grad=True)
    base = Normal(loc, torch.zeros(3))
    p = MaskedDistribution(base, inside=torch.tensor(0.0))
    x = torch.randn(2, 4, 3)
    assert torch.equal(p.log_prob(x), base.log_prob(x))
    missing = torch.rand(2, 4, 3) < 0.4
    log_prob = p.log_prob(x.masked_fill(missing, math.nan))
    assert (log_prob[missing] == 0).all()
    assert torch.equal(log_prob[~missing], base.log_prob(x)[~missing])
    (gradient,) = torch.autograd.grad(log_prob.sum(), loc)
    torch.testing.assert_close(gradient, ((x - loc.detach()) * ~missing).sum(0))
    assert torch.equal(p.mean, base.mean)
    assert torch.equal(p.point_estimate(), base.point_estimate())
    assert p.sample((7,)).shape == (7, 4, 3)
    assert p.has_rsample == base.has_rsample


@families
def test_masked_distribution_has_no_gradient_at_missing_entries(name):
    family = FAMILIES[name]
    inside = torch.tensor(0.5 if name in ("beta", "continuous bernoulli") else 1.0)
    num_params = len(inspect.signature(family.make).parameters)
    inputs = (math.nan, *[0.3] * num_params)
    log_prob, gradient = evaluate(
        lambda *params: MaskedDistribution(family.make(*params), inside), inputs, torch.float64
    )
    assert log_prob == 0
    assert (gradient == 0).all()


def test_tabular_distribution():
    numbers, flags, amounts = normal(5, 2), Bernoulli(torch.randn(5, 1)), normal(5, 1)
    p = TabularDistribution(
        [numbers, flags, amounts], [torch.tensor([3, 0]), torch.tensor([1]), torch.tensor([2])]
    )
    assert p.batch_shape == (5, 4)
    x = torch.randn(7, 5, 4)
    x[..., 1] = (x[..., 1] > 0).double()
    log_prob = p.log_prob(x)
    assert torch.equal(log_prob[..., [3, 0]], numbers.log_prob(x[..., [3, 0]]))
    assert torch.equal(log_prob[..., 1:2], flags.log_prob(x[..., 1:2]))
    assert torch.equal(log_prob[..., 2:3], amounts.log_prob(x[..., 2:3]))
    means = torch.stack(
        [numbers.mean[:, 1], flags.mean[:, 0], amounts.mean[:, 0], numbers.mean[:, 0]], 1
    )
    assert torch.equal(p.mean, means)
    weights = torch.randn(5, 1).softmax(0)
    torch.testing.assert_close(p.point_estimate(weights), (weights * means).sum(0))
    draws = p.sample((3000,))
    assert set(draws[..., 1].unique().tolist()) == {0.0, 1.0}
    error = draws.std(0) / math.sqrt(3000)
    assert ((draws.mean(0) - means).abs() < 4.5 * error).all()
    assert not p.is_discrete
    assert TabularDistribution([flags], [torch.tensor([0])]).is_discrete


@for_each("dim", [-1, -2, -3])
@for_each("lead", [(), (5,), (2, 5)])
def test_categorical(dim, lead):
    logits = torch.randn(4, 3, 6)
    p = Categorical(logits, dim)
    x = torch.randint(logits.shape[dim], (*lead, *p.batch_shape))
    each = scipy.special.log_softmax(logits.numpy(), dim)
    index = np.expand_dims(x.numpy(), dim)
    expected = np.take_along_axis(np.broadcast_to(each, (*lead, *each.shape)), index, dim).squeeze(
        dim
    )
    for values in (x, x.to(torch.uint8), x.double(), x.float()):
        np.testing.assert_allclose(p.log_prob(values), expected, rtol=1e-12)
    assert p.sample(lead).shape == x.shape
    classes = np.arange(logits.shape[dim]).reshape(-1, *[1] * (-dim - 1))
    np.testing.assert_allclose(p.mean, (np.exp(each) * classes).sum(dim), rtol=1e-12)
    assert (p.point_estimate().numpy() == each.argmax(dim)).all()
    assert torch.equal(Categorical(logits, dim, ordered=True).point_estimate(), p.mean)


def test_categorical_broadcasts_its_values():
    p = Categorical(torch.randn(4, 3, 6))
    x = torch.randint(6, (4, 1))
    assert torch.equal(p.log_prob(x), p.log_prob(x.expand(4, 3)))


def test_categorical_point_estimate_with_weights():
    """The mode of a mixture may differ from the modes of all its members."""
    probs = torch.tensor([[0.55, 0.45, 1e-9], [1e-9, 0.45, 0.55]])
    p, weights = Categorical(probs.log()), torch.tensor([0.5, 0.5])
    assert p.point_estimate().tolist() == [0.0, 2.0]
    assert p.point_estimate(weights).item() == 1.0
    ordered = Categorical(probs.log(), ordered=True)
    torch.testing.assert_close(ordered.point_estimate(weights), ordered.mean.mean(0))


def test_categorical_draws():
    p = Categorical(torch.randn(3, 5) * 2)
    mass, draws = masses(p, 5), p.sample((5000,))
    for i in range(3):
        assert chi_squared(draws[:, i].numpy(), mass[:, i].numpy()) > 1e-4


@for_each("shape", [(6,), (6, 3), (6, 3, 2)])
def test_one_hot_is_categorical(shape):
    logits = torch.randn(4, *shape)
    p = OneHotCategorical(logits, len(shape))
    q = Independent(Categorical(logits, -len(shape)), len(shape) - 1)
    index = torch.randint(6, (5, 4, *shape[1:]))
    x = torch.movedim(torch.nn.functional.one_hot(index, 6), -1, -len(shape)).double()
    torch.testing.assert_close(p.log_prob(x), q.log_prob(index), rtol=1e-12, atol=1e-12)
    draws = p.sample((4000,))
    assert (draws.sum(-len(shape)) == 1).all()
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    error = p.mean.mul(1 - p.mean).sqrt() / math.sqrt(4000)
    assert ((draws.mean(0) - p.mean).abs() < 4.5 * error).all()
    torch.testing.assert_close(p.mean.sum(-len(shape)), torch.ones(4, *shape[1:]))


def test_gumbel_race_follows_the_probabilities():
    logits = torch.tensor([0.0, 1.0, -2.0, 500.0]) - torch.tensor([0, 0, 0, 499.0])
    winners = gumbel_race(logits, (20_000,)).argmin(-1).numpy()
    assert chi_squared(winners, np.append(scipy.special.softmax(logits.numpy()), 0.0)) > 1e-4


@for_each(("logits", "concentration"), [(1.0, 1e-3), (-4.0, 2e-3), (-4.0, 5e-3)])
def test_draws_of_a_beta_at_both_ends_have_its_mean(logits, concentration):
    p = Beta(torch.tensor(logits).float(), torch.tensor(math.log(concentration)).float())
    draws = p.sample((40_000,))
    assert (draws.mean() - p.mean).abs() < 4.5 * draws.std() / 200


@for_each(("log_mean", "log_r"), [(100.0, 0.0), (0.0, 90.0), (100.0, 90.0)])
@for_each("count", [0.0, 3.0])
def test_negative_binomial_where_exp_overflows(log_mean, log_r, count):
    params = [torch.tensor(v, dtype=torch.float32, requires_grad=True) for v in (log_mean, log_r)]
    log_prob = NegativeBinomial(*params).log_prob(torch.tensor(count))
    gradients = torch.autograd.grad(log_prob, params)
    assert torch.isfinite(torch.stack([log_prob, *gradients])).all()


def test_draws_of_large_counts_are_counts():
    log_mean = torch.tensor([10.0, 20.0, 50.0]).float()
    draws = Poisson(log_mean).sample((1000,))
    torch.testing.assert_close(draws.mean(0), log_mean.exp(), rtol=0.01, atol=0)
    wide = NegativeBinomial(log_mean, torch.tensor(9.0).float()).sample((1000,))
    assert (wide >= 0).all()
    assert (wide == wide.round()).all()


def test_point_estimate_ignores_zero_weights():
    p = LogNormal(torch.zeros(2, 1), torch.tensor([[0.0], [300.0]]))
    assert p.point_estimate(torch.tensor([[1.0], [0.0]])).item() == pytest.approx(math.exp(0.5))


def test_affine_refuses_masses():
    with pytest.raises(
        TypeError, match=r"expects a density to shift and scale.*masses have no units"
    ):
        Affine(Poisson(torch.zeros(2)), torch.tensor(0.0), torch.tensor(2.0))
