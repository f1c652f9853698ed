"""Parameters of any size that a network can return, against arithmetic of 60 digits.

An error may be 16 last digits of the log density (or of one, if that is larger), and as large as
the change of the exact number if the last digits of an argument change.
"""

import itertools
import math

import mpmath
import pytest
import torch
from helpers.cases import for_each
from mpmath import exp, expm1, log, log1p, loggamma, mpf

from tinyvae.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    GumbelSoftmax,
    LogGumbelSoftmax,
    LogNormal,
    NegativeBinomial,
    OneHotCategorical,
    Poisson,
    ZeroInflated,
    kl_divergence,
)

STEP = mpf("1e-25")


def log_sigmoid(x):
    return -log1p(exp(-x)) if x > 0 else x - log1p(exp(x))


def bernoulli(x, logits):
    return x * log_sigmoid(logits) + (1 - x) * log_sigmoid(-logits)


def continuous_bernoulli(x, logits):
    return logits * x + log(logits / expm1(logits)) if logits else mpf(0)


def beta(x, logits, log_concentration):
    a, b = (exp(log_concentration + log_sigmoid(v)) for v in (logits, -logits))
    return loggamma(a + b) - loggamma(a) - loggamma(b) + (a - 1) * log(x) + (b - 1) * log1p(-x)


def log_normal(x, mean_log, log_std):
    square = ((log(x) - mean_log) / exp(log_std)) ** 2
    return -square / 2 - log_std - log(2 * mpmath.pi) / 2 - log(x)


def poisson(k, log_mean):
    return k * log_mean - exp(log_mean) - loggamma(k + 1)


def negative_binomial(k, log_mean, log_r):
    r, excess = exp(log_r), log_mean - log_r
    choose = loggamma(k + r) - loggamma(r) - loggamma(k + 1)
    return choose + r * log_sigmoid(-excess) + k * log_sigmoid(excess)


def zero_inflated(k, log_mean, logits):
    counted = log_sigmoid(-logits) + poisson(k, log_mean)
    return log(exp(log_sigmoid(logits)) + exp(counted)) if k == 0 else counted


def discretized_logistic(k, mean, log_scale):
    low, high = (((2 * k + side) / 15 - 1 - mean) / exp(log_scale) for side in (-1, 1))
    below = mpf(0) if k == 0 else log_sigmoid(-low)
    above = mpf(0) if k == 15 else log_sigmoid(high)
    return below + above + (log(-expm1(low - high)) if 0 < k < 15 else 0)


LOGITS = [0.0, 1e-4, -0.5, 9.0, -30.0, 200.0, -200.0, 1e4, -1e4, 1e20, -1e20]
LOG_PARAMETERS = [-6.9, 0.0, 5.0, 30.0, 75.0]  # Predicted and Learned bound them from below
SHARES, COUNTS = [1e-30, 1e-3, 0.5, 0.99], [0.0, 1.0, 30.0, 1e6]
FAMILIES = {
    "bernoulli": (Bernoulli, bernoulli, [[0.0, 0.5, 1.0], LOGITS]),
    "continuous bernoulli": (
        ContinuousBernoulli,
        continuous_bernoulli,
        [[0.0, *SHARES, 1.0], LOGITS],
    ),
    "beta": (Beta, beta, [SHARES, LOGITS[:-2], LOG_PARAMETERS]),
    "log-normal": (LogNormal, log_normal, [[1e-30, 1.0, 1e30], LOGITS, LOG_PARAMETERS]),
    "poisson": (Poisson, poisson, [COUNTS, [*LOGITS[:5], -200.0, -1e4, -1e20, 60.0]]),
    "negative binomial": (
        NegativeBinomial,
        negative_binomial,
        [COUNTS, [*LOGITS[:7], -1e4], LOG_PARAMETERS[:-1]],
    ),
    "zero-inflated": (
        lambda log_mean, logits: ZeroInflated(Poisson(log_mean), logits),
        zero_inflated,
        [COUNTS, [*LOGITS[:5], -200.0, -1e4], LOGITS],
    ),
    "discretized logistic": (
        lambda mean, log_scale: DiscretizedLogistic(mean, log_scale, 16),
        discretized_logistic,
        [[0.0, 7.0, 15.0], LOGITS, LOG_PARAMETERS],
    ),
}
dtypes = for_each("dtype", [torch.float32, torch.float64])


def moved(args, index, step):
    return [*args[:index], args[index] + step, *args[index + 1 :]]


def derivative(exact, index):
    def slope(*args):
        high, low = (exact(*moved(args, index, step)) for step in (STEP, -STEP))
        return (high - low) / (2 * STEP)

    return slope


def require_close(got, exact, args, first, eps, row, unit=1.0):
    """Raise unless the error is a few last digits of the number, or of its arguments."""
    expected = exact(*args)
    indices = range(first, len(args))
    slack = sum(abs(exact(*moved(args, i, 16 * eps * args[i])) - expected) for i in indices)
    assert abs(got - expected) <= 16 * eps * max(unit, abs(expected)) + slack, (row, got, expected)


@pytest.mark.parametrize("name", FAMILIES)
@dtypes
def test_log_prob_and_gradient_at_extreme_parameters(name, dtype):
    make, exact, axes = FAMILIES[name]
    eps, largest = torch.finfo(dtype).eps, torch.finfo(dtype).max
    rows = torch.tensor([*itertools.product(*axes)], dtype=dtype)
    value, *params = rows.T
    params = [p.clone().requires_grad_() for p in params]
    log_prob = make(*params).log_prob(value)
    gradients = torch.stack(torch.autograd.grad(log_prob.sum(), params), 1).tolist()
    first = 0 if name in ("beta", "log-normal", "continuous bernoulli") else 1
    for row, got, slopes in zip(rows.tolist(), log_prob.tolist(), gradients, strict=True):
        assert not any(map(math.isnan, (got, *slopes))), row
        with mpmath.workdps(120):
            args = [mpf(v) for v in row]
            if exact(*args) < -1e-6 * largest:
                assert got < -1e-7 * largest, row
                continue
            require_close(got, exact, args, first, eps, row)
            unit = max(1, abs(got))  # a derivative is a sum of terms of this size
            for i, slope in enumerate(slopes, start=1):
                require_close(slope, derivative(exact, i), args, first, eps, row, unit)


CLASSES = [
    [0.0, 1e-4, -3.0, 9.0],
    [200.0, -200.0, 0.0, 1.0],
    [1e4, -1e4, 30.0, 1e4],
    [1e20, 0.0, -1e20, 5.0],
]


def log_softmax(logits):
    most = max(logits)
    total = log(mpmath.fsum(exp(v - most) for v in logits))
    return [v - most - total for v in logits]


def classes(label):
    return lambda *logits: log_softmax(logits)[label]


def divergence(*logits):
    log_q, log_p = log_softmax(logits[:4]), log_softmax(logits[4:])
    return mpmath.fsum(exp(a) * (a - b) for a, b in zip(log_q, log_p, strict=True))


def log_gumbel_softmax(*args):
    logits, y = args[:4], args[4:]
    scores = log_softmax([a - b * mpf(0.5) for a, b in zip(logits, y, strict=True)])
    return mpmath.fsum(scores) + loggamma(4) + 3 * log(mpf(0.5))


def require_exact(function, exact, args, dtype):
    args = torch.tensor(args, dtype=dtype, requires_grad=True)
    got = function(args)
    slopes = torch.autograd.grad(got, args)[0].tolist()
    with mpmath.workdps(120):
        digits, got, eps = [mpf(v) for v in args.tolist()], got.item(), torch.finfo(dtype).eps
        require_close(got, exact, digits, 0, eps, args)
        for i, slope in enumerate(slopes):
            require_close(slope, derivative(exact, i), digits, 0, eps, args, max(1, abs(got)))


@for_each("logits", CLASSES)
@dtypes
def test_classes_of_extreme_logits(dtype, logits):
    for label, one_hot in enumerate(torch.eye(4, dtype=dtype)):
        index = one_hot.argmax()
        for family in (
            lambda v, index=index: Categorical(v).log_prob(index),
            lambda v, one_hot=one_hot: OneHotCategorical(v, 1).log_prob(one_hot),
        ):
            require_exact(family, classes(label), logits, dtype)


@for_each(("first", "second"), itertools.product(range(4), repeat=2))
@dtypes
def test_kl_of_classes_of_extreme_logits(dtype, first, second):
    def kl(logits):
        q, p = (OneHotCategorical(part, 1) for part in logits.chunk(2))
        return kl_divergence(q, p)

    require_exact(kl, divergence, CLASSES[first] + CLASSES[second], dtype)


@for_each("logits", CLASSES)
@dtypes
def test_relaxed_classes_of_extreme_logits(dtype, logits):
    p = LogGumbelSoftmax(torch.tensor(logits, dtype=dtype), 1, 0.5)
    for y in p.sample((5,)).tolist():
        require_exact(
            lambda v: LogGumbelSoftmax(v[:4], 1, 0.5).log_prob(v[4:]),
            log_gumbel_softmax,
            logits + y,
            dtype,
        )
    x = GumbelSoftmax(p.logits, 1, 0.5).sample((99,))
    torch.testing.assert_close(x.sum(1), torch.ones_like(x[:, 0]))


@pytest.mark.parametrize("name", FAMILIES)
@dtypes
def test_draws_and_means_of_parameters_of_any_size(name, dtype):
    make, _, axes = FAMILIES[name]
    axes = [[*axis, 100.0, 1e3, 1e30] for axis in axes[1:]]
    params = torch.tensor([*itertools.product(*axes)], dtype=dtype).T
    p = make(*params)
    highest = {"beta": 1.0, "continuous bernoulli": 1.0, "bernoulli": 1.0}.get(name, math.inf)
    for x in (*p.sample((50,)), p.mean):
        assert ((x >= 0) & (x <= highest)).all()
    x = p.sample((50,))
    log_prob = p.log_prob(x.clamp(max=torch.finfo(dtype).max))
    assert not log_prob.isnan().any()
    if p.is_discrete:
        assert (log_prob <= 0).all()


@dtypes
def test_discretized_logistic_of_a_large_scale_is_finite(dtype):
    log_scale = torch.tensor([100.0, 1e30], dtype=dtype)
    log_prob = DiscretizedLogistic(0 * log_scale, log_scale, 16).log_prob(torch.tensor(7.0))
    assert log_prob.isfinite().all()


@dtypes
def test_beta_of_a_large_concentration_is_finite_at_its_mean(dtype):
    logits = torch.tensor([0.0, 0.0, 400.0, 400.0], dtype=dtype)
    log_concentration = torch.tensor([100.0, 1e30, 100.0, 1e30], dtype=dtype)
    log_prob = Beta(logits, log_concentration).log_prob(torch.tensor(0.5, dtype=dtype))
    assert log_prob[:2].isfinite().all()
    assert (log_prob[2:] < -1e30).all()


@dtypes
def test_beta_draws_of_a_tiny_concentration_are_no_nan(dtype):
    """Both shapes underflow to zero, and the logarithms of both gamma draws overflow."""
    p = Beta(torch.zeros(50_000, dtype=dtype), torch.tensor(-800.0, dtype=dtype))
    draws = p.sample()
    assert ((draws > 0) & (draws < 1)).all()
    assert ((draws < 1e-6) | (draws > 1 - 1e-6)).all()
    assert (draws < 0.5).double().mean().item() == pytest.approx(0.5, abs=0.01)


def test_float32_and_integer_values_have_the_precision_of_the_parameters():
    large = torch.full((1,), 12.0, dtype=torch.float64)
    share, count = torch.tensor([0.3], dtype=torch.float32), torch.tensor([1_000_003])
    for p, value in (
        (Beta(-0.8 * large / large, large), share),
        (ContinuousBernoulli(large.exp()), share),
        (LogNormal(large, -large), share),
        (LogNormal(large, -large), count),
    ):
        torch.testing.assert_close(p.log_prob(value), p.log_prob(value.double()), rtol=0, atol=0)
