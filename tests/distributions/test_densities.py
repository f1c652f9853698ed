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
from helpers.distributions import chi_squared, counts, floats, logarithms, masses
from hypothesis import given
from hypothesis import strategies as st

from tinyvae.distributions import (
    Bernoulli,
    Beta,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Laplace,
    LogNormal,
    MaskedDistribution,
    NegativeBinomial,
    Normal,
    Poisson,
    StudentT,
    ZeroInflated,
)
from tinyvae.distributions.special import gamma_residual

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


reals = floats(-1e6, 1e6)
log_scales = logarithms(1.01e-6, 0.99e6)
logits = st.one_of(floats(-200, 200), floats(-1, 1))


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


# Step of the differences that replace derivatives. It is small compared with all distances from a
# location, except distances from the kink of a Laplace density.
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
    """Return the gradient by central differences of 40 digits, exact in float64."""
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


def test_student_t_without_a_mean():
    p = StudentT(torch.tensor([1.0, 2.0]), torch.zeros(()), torch.tensor([0.0, 0.7]))
    assert p.mean.isnan().tolist() == [True, False]
    assert p.point_estimate().tolist() == [1.0, 2.0]
    assert p.point_estimate(torch.tensor([0.25, 0.75])).item() == 1.75


# Compositions -------------------------------------------------------------------------------------


@for_each("name", FAMILIES)
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


@for_each(("logits", "concentration"), [(1.0, 1e-3), (-4.0, 2e-3), (-4.0, 5e-3)])
def test_draws_of_a_beta_at_both_ends_have_its_mean(logits, concentration):
    p = Beta(torch.tensor(logits).float(), torch.tensor(math.log(concentration)).float())
    draws = p.sample((40_000,))
    assert (draws.mean() - p.mean).abs() < 4.5 * draws.std() / 200
