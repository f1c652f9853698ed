"""Compare every family of distributions with arithmetic of many digits, and print the worst errors.

    python tools/sweep.py --count 40 --only "normal|sphere"

A row of the table below has a constructor, the ranges of its parameters and a formula in mpmath.
Each row is evaluated in float32 and in float64, at random parameters, at draws and at far values:

- value: the log density or mass, the entropy or the divergence,
- gradient: its derivatives with respect to all arguments.

An error is the difference from the exact number at the float arguments themselves, relative to
max(1, |exact|) + sum_i |a_i d exact / d a_i|. The sum is the condition number: the change of the
exact number per relative change of the arguments. So an error of 1e-7 is one of the last digit of
float32, in the result or in an argument. A derivative is also relative to the value, because it is
a difference of terms of that size. NaN, infinities, log masses above zero and divergences below
zero are infinite errors, except that numbers within nine digits of the largest may overflow.

Finally, "wild" counts the parameters of any size, up to 1e30, at which a draw or a value is NaN or
has the wrong sign.
"""

import argparse
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import mpmath
import numpy as np
import torch
import torch.nn.functional as F
from mpmath import exp, log, loggamma, mpf
from torch import Tensor

from tinyvae import distributions as tvd
from tinyvae.flows import PlanarFlow, RadialFlow, Transformed

DIGITS = 220
STEP, OUTER_STEP = mpf("1e-80"), mpf("1e-50")  # relative steps of derivatives
DTYPES = (torch.float32, torch.float64)

# Samplers: (rng, count, shape) to numbers --------------------------------------------------------


Sampler: TypeAlias = Callable[[np.random.Generator, Sequence[int]], np.ndarray]
Number: TypeAlias = Callable[[Sequence[mpf]], mpf]


def real(largest: float = 1e4, least: float = 1e-4) -> Sampler:
    """Sample both signs, uniform on the log scale."""

    def sample(rng: np.random.Generator, size: Sequence[int]) -> np.ndarray:
        sizes = np.exp(rng.uniform(math.log(least), math.log(largest), size))
        return sizes * rng.choice([-1, 1], size)

    return sample


def uniform(low: float, high: float) -> Sampler:
    """Sample from an interval, half of the numbers from a twentieth of it around zero."""
    return lambda rng, size: rng.uniform(low, high, size) * rng.choice([0.05, 1.0], size)


def direction(rng: np.random.Generator, size: Sequence[int]) -> np.ndarray:
    """Sample unit vectors."""
    vectors = rng.standard_normal(size)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


LOG_SCALE = uniform(-80, 80)
LOG_CONCENTRATION = uniform(-40, 19)
LOG_PARAMETER = uniform(-7, 80)  # bounded below by likelihoods.Predicted and Learned
LOG_DF = uniform(-7, 44)
LOGITS = real(200)

# Formulas ----------------------------------------------------------------------------------------


def sigmoid(x: mpf) -> mpf:
    """Return the logistic function."""
    return 1 / (1 + exp(-x))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log masses of classes along the first axis."""
    return logits - log(sum(exp(v) for v in logits))


def normal(x: mpf, mean: mpf, log_std: mpf) -> mpf:
    """Return the log density."""
    return -(((x - mean) / exp(log_std)) ** 2) / 2 - log_std - log(2 * mpmath.pi) / 2


def student_t(x: mpf, loc: mpf, log_scale: mpf, log_df: mpf) -> mpf:
    """Return the log density."""
    df = exp(log_df)
    constant = loggamma((df + 1) / 2) - loggamma(df / 2) - log(mpmath.pi * df) / 2
    tail = log(1 + ((x - loc) / exp(log_scale)) ** 2 / df)
    return constant - log_scale - (df + 1) / 2 * tail


def beta(x: mpf, logits: mpf, log_concentration: mpf) -> mpf:
    """Return the log density."""
    total = exp(log_concentration)
    a, b = total * sigmoid(logits), total * sigmoid(-logits)
    return loggamma(total) - loggamma(a) - loggamma(b) + (a - 1) * log(x) + (b - 1) * log(1 - x)


def continuous_bernoulli(x: mpf, logits: mpf) -> mpf:
    """Return the log density."""
    half = logits / 2
    return (2 * x - 1) * half - log(mpmath.sinh(half) / half) if half else mpf(0)


def poisson(k: mpf, log_mean: mpf) -> mpf:
    """Return the log mass."""
    return k * log_mean - exp(log_mean) - loggamma(k + 1)


def negative_binomial(k: mpf, log_mean: mpf, log_r: mpf) -> mpf:
    """Return the log mass."""
    r, log_total = exp(log_r), log(exp(log_mean) + exp(log_r))
    choose = loggamma(k + r) - loggamma(r) - loggamma(k + 1)
    return choose + r * (log_r - log_total) + k * (log_mean - log_total)


def discretized_logistic(k: mpf, mean: mpf, log_scale: mpf) -> mpf:
    """Return the log mass of one of 256 levels."""
    low, high = (((2 * k + side) / 255 - 1 - mean) / exp(log_scale) for side in (-1, 1))
    open_low, open_high = k == 0, k == 255
    if low > 0:  # the other tail, in which a difference keeps its digits
        low, high, open_low, open_high = -high, -low, open_high, open_low
    return log((1 if open_high else sigmoid(high)) - (0 if open_low else sigmoid(low)))


def logit_normal(x: mpf, mean: mpf, log_std: mpf) -> mpf:
    """Return the log density on the unit interval."""
    return normal(log(x / (1 - x)), mean, log_std) - log(x) - log(1 - x)


def ordinal(k: mpf, location: mpf, first: mpf, log_widths: np.ndarray) -> mpf:
    """Return the log mass of a level."""
    cuts = [first - location]
    for log_width in log_widths:
        cuts.append(cuts[-1] + exp(log_width))
    low, high = cuts[int(k) - 1] if k else None, cuts[int(k)] if k < len(cuts) else None
    if low is not None and low > 0:  # the other tail, in which a difference keeps its digits
        low, high = None if high is None else -high, -low
    return log((1 if high is None else sigmoid(high)) - (0 if low is None else sigmoid(low)))


def beta_binomial(k: mpf, logits: mpf, log_concentration: mpf) -> mpf:
    """Return the log mass of hits in 1000 trials."""
    n, total = 1000, exp(log_concentration)
    a, b = total * sigmoid(logits), total * sigmoid(-logits)
    ways = loggamma(n + 1) - loggamma(k + 1) - loggamma(n - k + 1)
    prior = loggamma(total) - loggamma(a) - loggamma(b)
    return ways + prior + loggamma(k + a) + loggamma(n - k + b) - loggamma(n + total)


def multinomial(x: np.ndarray, logits: np.ndarray) -> mpf:
    """Return the log mass given the total."""
    return x @ log_softmax(logits) + loggamma(sum(x) + 1) - sum(loggamma(v + 1) for v in x)


def mixture(x: mpf, logits: np.ndarray, means: np.ndarray, log_stds: np.ndarray) -> mpf:
    """Return the log density of a mixture of normals."""
    parts = zip(log_softmax(logits), means, log_stds, strict=True)
    return log(sum(exp(w + normal(x, m, s)) for w, m, s in parts))


def gumbel_softmax(x: np.ndarray, logits: np.ndarray) -> mpf:
    """Return the log density on the simplex at a temperature of 1/2."""
    scores = [score - log(v) / 2 for score, v in zip(logits, x, strict=True)]
    constant = loggamma(len(x)) - (len(x) - 1) * log(2)
    total = log(sum(exp(score) for score in scores))
    return constant + sum(scores) - sum(log(v) for v in x) - len(x) * total


def cholesky(matrix: np.ndarray) -> np.ndarray:
    """Return the lower factor."""
    lower = np.full_like(matrix, mpf(0))
    for i, j in np.argwhere(np.tri(len(matrix))):
        rest = matrix[i, j] - lower[i, :j] @ lower[j, :j] if j else matrix[i, j]
        lower[i, j] = mpmath.sqrt(rest) if i == j else rest / lower[j, j]
    return lower


def solve(lower: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve a lower triangular system."""
    result = right.copy()
    for i in range(len(lower)):
        rest = right[i] - lower[i, :i] @ result[:i] if i else right[i]
        result[i] = rest / lower[i, i]
    return result


def factor(log_diagonal: np.ndarray, lower: np.ndarray | None = None) -> np.ndarray:
    """Return a lower factor by the logarithm of its diagonal and the entries below."""
    size = len(log_diagonal)
    rows = [[mpf(0)] * size for _ in range(size)] if lower is None else np.tril(lower, -1).tolist()
    for i, logarithm in enumerate(log_diagonal):
        rows[i][i] = exp(logarithm)
    return np.array(rows, dtype=object)


def spread(log_std: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the lower factor of a low-rank plus diagonal covariance."""
    return cholesky(columns @ columns.T + factor(2 * log_std))


def gaussian(difference: np.ndarray, lower: np.ndarray) -> mpf:
    """Return the log density of a vector, by the lower factor of its covariance."""
    square = (solve(lower, difference) ** 2).sum()
    log_det = sum(log(v) for v in lower.diagonal())
    return -square / 2 - log_det - len(difference) * log(2 * mpmath.pi) / 2


def gaussian_kl(difference: np.ndarray, lower_q: np.ndarray, lower_p: np.ndarray) -> mpf:
    """Return the divergence of vectors, by lower factors."""
    squares = (solve(lower_p, lower_q) ** 2).sum() + (solve(lower_p, difference) ** 2).sum()
    ratios = zip(lower_q.diagonal(), lower_p.diagonal(), strict=True)
    return (squares - len(difference) - 2 * sum(log(a / b) for a, b in ratios)) / 2


def log_growth(k: mpf, half: mpf) -> mpf:
    """Return the log normalizer of the power spherical distribution, up to a constant."""
    return loggamma(k + 2 * half) - loggamma(k + half)


def power_spherical(x: np.ndarray, direction: np.ndarray, log_concentration: mpf) -> mpf:
    """Return the log density of vectors that rounding has made shorter or longer than one."""
    k, half = exp(log_concentration), mpf(len(x) - 1) / 2
    cosine = (x @ direction) / mpmath.sqrt((x @ x) * (direction @ direction))
    constant = log_growth(k, half) - half * log(4 * mpmath.pi)
    return k * log((1 + cosine) / 2) + constant


def sphere_kl(direction: np.ndarray, log_concentration: mpf) -> mpf:
    """Return the divergence from the uniform distribution."""
    k, half = exp(log_concentration), mpf(len(direction) - 1) / 2
    slope = mpmath.digamma(k + 2 * half) - mpmath.digamma(k + half)
    return log_growth(k, half) - log_growth(mpf(0), half) - k * slope


def normal_kl(m: mpf, s: mpf, m2: mpf | int = 0, s2: mpf | int = 0) -> mpf:
    """Return the divergence."""
    return (exp(2 * (s - s2)) + ((m - m2) / exp(s2)) ** 2 - 1) / 2 - (s - s2)


def laplace_kl(m: mpf, s: mpf, m2: mpf, s2: mpf) -> mpf:
    """Return the divergence."""
    distance = abs(m - m2)
    return s2 - s - 1 + (distance + exp(s - distance / exp(s))) / exp(s2)


def classes_kl(logits: np.ndarray, others: np.ndarray) -> mpf:
    """Return the divergence."""
    log_q, log_p = log_softmax(logits), log_softmax(others)
    return sum(exp(a) * (a - b) for a, b in zip(log_q, log_p, strict=True))


def stretch(x: mpf) -> mpf:
    """Return the monotonic function of planar and radial flows."""
    return (1 - mpf("1e-3")) * log(exp(-1) + (1 - exp(-1)) * exp(x))


def standard(x: np.ndarray) -> mpf:
    """Return the log density of independent standard normal elements."""
    return -(x**2).sum() / 2 - len(x) * log(2 * mpmath.pi) / 2


def planar(x: np.ndarray, params: np.ndarray) -> mpf:
    """Return the log density of a planar flow; the inverse is a root by Newton's method."""
    u, w, b = params[:2], params[2:4], params[4]
    k = stretch(w @ u)
    c = w @ x + b
    a = mpmath.sign(c) * (max if k > 0 else min)(abs(c) - k, abs(c) / (1 + k))
    for _ in range(200):
        step = (a + k * mpmath.tanh(a) - c) / (1 + k * mpmath.sech(a) ** 2)
        a -= step
        if abs(step) <= abs(a) * mpf(10) ** (5 - DIGITS):
            break
    pushed = (u + (k - w @ u) / (w @ w) * w) * mpmath.tanh(a)
    return standard(x - pushed) - log(1 + k * mpmath.sech(a) ** 2)


def radial(x: np.ndarray, params: np.ndarray) -> mpf:
    """Return the log density of a radial flow."""
    away, alpha, k = x - params[:2], 1 + stretch(params[2]), stretch(params[3])
    length = mpmath.sqrt(away @ away) / alpha
    p = length - 1 - k
    v = (p + mpmath.sqrt(p**2 + 4 * length)) / 2
    across = 1 + k / (1 + v)
    return standard(params[:2] + away / across) - log(across) - log(1 + k / (1 + v) ** 2)


# Table -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A family and its log density or entropy, or a pair of families and their divergence."""

    make: Callable[..., tvd.Distribution]
    params: Sequence[tuple[Sampler, tuple[int, ...]]]
    exact: Callable[..., mpf]  # of a value and the parameters, or of all parameters
    values: Sequence[float] = ()  # in addition to draws
    discrete: bool = False
    wild: float = 1e30  # largest parameters that are tried
    other: Callable[..., tvd.Distribution] | None = None  # of the last parameters
    num_other: int = 0
    entropy: bool = False

    def ours(self, *args: Tensor) -> Tensor:
        """Return the numbers of the library."""
        if self.entropy:
            return self.make(*args).entropy()
        if self.other is None:
            return self.make(*args[1:]).log_prob(args[0])
        split = len(args) - self.num_other
        return tvd.kl_divergence(self.make(*args[:split]), self.other(*args[split:]))

    def has_wrong_sign(self, number: float) -> bool:
        """Return True for a log mass above zero and a divergence below zero."""
        return (self.discrete and number > 0) or (self.other is not None and number < 0)


def density(make, params, exact, values=(), **options) -> Row:
    """Return a row of a scalar family, or of vectors."""
    return Row(make, [with_shape(p) for p in params], exact, values, **options)


def divergence(make, other, params, others, exact, **options) -> Row:
    """Return a row of a closed form."""
    everything = [with_shape(p) for p in (*params, *others)]
    return Row(make, everything, exact, other=other, num_other=len(others), **options)


def with_shape(param: Any) -> tuple[Sampler, tuple[int, ...]]:
    """Return a sampler and a shape."""
    return param if isinstance(param, tuple) else (param, ())


class OnSphere(tvd.Wrapper):
    """A power spherical distribution that gives values and directions the length one."""

    def __init__(self, vector: Tensor, log_concentration: Tensor) -> None:
        super().__init__(tvd.PowerSpherical(F.normalize(vector, dim=-1), log_concentration))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base.log_prob(F.normalize(value, dim=-1))


def flowing(kind: type[PlanarFlow | RadialFlow], num_params: int) -> Callable[..., Transformed]:
    """Return a constructor of a transformed standard normal distribution in two dimensions."""

    def make(params: Tensor) -> Transformed:
        flow = kind(2, context_dim=num_params, transforms=1).to(params.dtype)
        with torch.no_grad():
            flow.offset.zero_()
            flow.context_map.weight.copy_(torch.eye(num_params))
        zero = torch.zeros(len(params), 2, dtype=params.dtype)
        return Transformed(diagonal(zero, zero), flow(params))

    return make


def diagonal(mean: Tensor, log_std: Tensor) -> tvd.Distribution:
    """Return a normal distribution of vectors."""
    return tvd.Independent(tvd.Normal(mean, log_std), 1)


FAR = (0.0, 1e-3, -1.0, 30.0, -1e4, 1e10)
COUNTS = (0.0, 1.0, 7.0, 1e3, 1e6)
SHARES = (1e-30, 1e-6, 0.3, 0.5, 0.999)
VECTOR, LOGS = (real(), (3,)), (uniform(-20, 20), (3,))
LOWER, COLUMNS = (real(100), (3, 3)), (real(30), (3, 2))
CLASSES = (LOGITS, (4,))
FULL, DIAGONAL = (VECTOR, LOGS, LOWER), (VECTOR, LOGS)
LOW_RANK = (VECTOR, (uniform(-5, 5), (3,)), COLUMNS)
ROWS = {
    "normal": density(tvd.Normal, [real(), LOG_SCALE], normal, FAR),
    "laplace": density(
        tvd.Laplace,
        [real(), LOG_SCALE],
        lambda x, m, s: -abs(x - m) / exp(s) - s - log(2),
        FAR,
    ),
    "student t": density(tvd.StudentT, [real(), LOG_SCALE, LOG_DF], student_t, FAR),
    "affine student t": density(
        lambda *p: tvd.Affine(tvd.StudentT(*p[2:]), p[0], p[1].clamp(-40, 40).exp()),
        [real(), uniform(-7, 20), real(), uniform(-7, 20), LOG_DF],
        lambda x, a, b, *p: student_t((x - a) / exp(b), *p) - b,
        FAR,
    ),
    "log-normal": density(
        tvd.LogNormal,
        [real(30), LOG_PARAMETER],
        lambda x, m, s: normal(log(x), m, s) - log(x),
        (1e-30, 1e-3, 1.0, 1e4, 1e30),
    ),
    "logit-normal": density(
        lambda m, s: tvd.LogitNormal(m, s, torch.zeros_like(m), torch.ones_like(m)),
        [real(30), LOG_PARAMETER],
        logit_normal,
        SHARES,
    ),
    "beta": density(tvd.Beta, [real(80), LOG_PARAMETER], beta, SHARES),
    "continuous bernoulli": density(
        tvd.ContinuousBernoulli, [real(1e4)], continuous_bernoulli, (0.0, *SHARES, 1.0)
    ),
    "bernoulli": density(
        tvd.Bernoulli, [real(1e4)], lambda x, v: x * v - log(1 + exp(v)), (0, 1), discrete=True
    ),
    "categorical": density(
        tvd.Categorical,
        [CLASSES],
        lambda x, v: log_softmax(v)[int(x)],
        (0, 1, 2, 3),
        discrete=True,
    ),
    "one-hot": density(
        lambda v: tvd.OneHotCategorical(v, 1),
        [CLASSES],
        lambda x, v: x @ log_softmax(v),
        discrete=True,
    ),
    "gumbel-softmax": density(
        lambda v: tvd.GumbelSoftmax(v, 1, 0.5), [(real(30), (4,))], gumbel_softmax
    ),
    "poisson": density(tvd.Poisson, [uniform(-20, 20)], poisson, COUNTS, discrete=True),
    "negative binomial": density(
        tvd.NegativeBinomial,
        [uniform(-20, 20), uniform(-7, 40)],
        negative_binomial,
        COUNTS,
        discrete=True,
    ),
    "zero-inflated poisson": density(
        lambda v, w: tvd.ZeroInflated(tvd.Poisson(v), w),
        [uniform(-20, 20), LOGITS],
        lambda k, v, w: log(sigmoid(-w) * exp(poisson(k, v)) + (0 if k else sigmoid(w))),
        COUNTS,
        discrete=True,
    ),
    "discretized logistic": density(
        lambda m, s: tvd.DiscretizedLogistic(m, s, 256),
        [real(10), LOG_PARAMETER],
        discretized_logistic,
        (0, 1, 100, 254, 255),
        discrete=True,
    ),
    "ordinal": density(
        lambda v, first, w: tvd.Ordinal(v, first, w.movedim(-1, 0)),
        [real(300), real(30), (uniform(-9, 9), (3,))],
        ordinal,
        (0, 1, 2, 3, 4),
        discrete=True,
    ),
    "beta-binomial": density(
        lambda v, s: tvd.BetaBinomial(v, s, torch.full_like(v, 1000.0)),
        [real(80), uniform(-7, 40)],
        beta_binomial,
        (0, 1, 300, 999, 1000),
        discrete=True,
    ),
    "multinomial": density(
        lambda v: tvd.Multinomial(v, 1, num_trials=1000), [CLASSES], multinomial, discrete=True
    ),
    "mixture": density(
        lambda w, m, s: tvd.Mixture(w, tvd.Normal(m, s)),
        [CLASSES, (real(), (4,)), (uniform(-7, 20), (4,))],
        mixture,
        FAR,
    ),
    "full normal": density(
        tvd.FullNormal,
        FULL,
        lambda x, m, d, v: gaussian(x - m, factor(d, v)),
        FAR,
        wild=50,
    ),
    "low-rank normal": density(
        tvd.LowRankNormal,
        LOW_RANK,
        lambda x, m, s, w: gaussian(x - m, spread(s, w)),
        FAR,
        wild=50,
    ),
    **{
        f"power spherical, {dim}": density(
            OnSphere, [(direction, (dim,)), LOG_CONCENTRATION], power_spherical, (1.0, -1.0)
        )
        for dim in (2, 3, 8)
    },
    "planar flow": density(flowing(PlanarFlow, 5), [(real(10, 1e-2), (5,))], planar, FAR, wild=1e4),
    "radial flow": density(flowing(RadialFlow, 4), [(real(10, 1e-2), (4,))], radial, FAR, wild=1e4),
    "KL normal": divergence(
        tvd.Normal, tvd.Normal, [real(), LOG_SCALE], [real(), LOG_SCALE], normal_kl
    ),
    "KL standard normal": divergence(
        tvd.Normal,
        lambda: tvd.StandardNormalDistribution(torch.zeros(())),
        [real(), LOG_SCALE],
        [],
        normal_kl,
    ),
    "KL laplace": divergence(
        tvd.Laplace, tvd.Laplace, [real(), LOG_SCALE], [real(), LOG_SCALE], laplace_kl
    ),
    "KL full": divergence(
        tvd.FullNormal,
        tvd.FullNormal,
        FULL,
        FULL,
        lambda m, d, v, m2, d2, v2: gaussian_kl(m - m2, factor(d, v), factor(d2, v2)),
        wild=50,
    ),
    "KL full, diagonal": divergence(
        tvd.FullNormal,
        diagonal,
        FULL,
        DIAGONAL,
        lambda m, d, v, m2, d2: gaussian_kl(m - m2, factor(d, v), factor(d2)),
        wild=50,
    ),
    "KL diagonal, full": divergence(
        diagonal,
        tvd.FullNormal,
        DIAGONAL,
        FULL,
        lambda m, d, m2, d2, v2: gaussian_kl(m - m2, factor(d), factor(d2, v2)),
        wild=50,
    ),
    "KL low-rank, diagonal": divergence(
        tvd.LowRankNormal,
        diagonal,
        LOW_RANK,
        DIAGONAL,
        lambda m, s, w, m2, s2: gaussian_kl(m - m2, spread(s, w), factor(s2)),
        wild=50,
    ),
    **{
        f"KL power spherical, {dim}": divergence(
            tvd.PowerSpherical,
            lambda dim=dim: tvd.SphereUniform(torch.zeros(dim)),
            [(direction, (dim,)), LOG_CONCENTRATION],
            [],
            sphere_kl,
        )
        for dim in (2, 50)
    },
    **{
        f"entropy of power spherical, {dim}": density(
            tvd.PowerSpherical,
            [(direction, (dim,)), LOG_CONCENTRATION],
            lambda v, k: (
                -sphere_kl(v, k)
                - log_growth(mpf(0), mpf(len(v) - 1) / 2)
                + mpf(len(v) - 1) / 2 * log(4 * mpmath.pi)
            ),
            entropy=True,
        )
        for dim in (2, 50)
    },
    "KL classes": divergence(
        lambda v: tvd.OneHotCategorical(v, 1),
        lambda v: tvd.OneHotCategorical(v, 1),
        [CLASSES],
        [CLASSES],
        classes_kl,
    ),
}

# Errors ------------------------------------------------------------------------------------------


def arguments(row: Row, count: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Return values and parameters, ``(N, ...)`` each; only densities have values."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    drawn = [torch.from_numpy(sample(rng, (count, *shape))) for sample, shape in row.params]
    params = [v.float().to(dtype) for v in drawn]
    if row.other is not None or row.entropy:
        return params
    p = row.make(*params)
    shape = p.batch_shape + p.event_shape
    with torch.no_grad():
        values = [*p.sample((2,)), *(torch.full(shape, v, dtype=dtype) for v in row.values)]
        if row.values is FAR and params[0].shape == shape:
            values.append(params[0])  # the location
    params = [v.repeat(len(values), *[1] * (v.dim() - 1)) for v in params]
    value = torch.cat(values)
    represented = ~value.isinf().reshape(len(value), -1).any(1)
    return [v[represented] for v in (value, *params)]


class Exact:
    """The exact number of a row and its derivatives, functions of a flat list of arguments."""

    def __init__(self, row: Row, args: Sequence[Tensor]) -> None:
        self.row, self.shapes = row, [a.shape[1:] for a in args]
        sizes = [shape.numel() for shape in self.shapes]
        self.indices = range(sizes[0] if row.discrete else 0, sum(sizes))  # that may change

    def value(self, numbers: Sequence[mpf]) -> mpf:
        """Return the exact number."""
        rest, args = list(numbers), []
        for shape in self.shapes:
            part, rest = rest[: shape.numel()], rest[shape.numel() :]
            args.append(np.array(part, dtype=object).reshape(shape) if shape else part[0])
        return self.row.exact(*args)

    def slope(self, numbers: Sequence[mpf], index: int) -> mpf:
        """Return a derivative by a central difference."""
        step = STEP * (abs(numbers[index]) or 1)
        high, low = (self.value(shifted(numbers, index, s)) for s in (step, -step))
        return (high - low) / (2 * step)

    def condition(self, function: Number, numbers: Sequence[mpf]) -> mpf:
        """Return the sum of changes of a function per relative change of each argument."""
        start, total = function(numbers), mpf(0)
        for index in (i for i in self.indices if numbers[i]):
            moved = function(shifted(numbers, index, OUTER_STEP * abs(numbers[index])))
            total += abs(moved - start) / OUTER_STEP
        return total


def shifted(numbers: Sequence[mpf], index: int, step: mpf) -> list[mpf]:
    """Return numbers of which one is changed."""
    return [*numbers[:index], numbers[index] + step, *numbers[index + 1 :]]


@dataclass
class Worst:
    """The worst error of a quantity, with the number, the exact one and the arguments."""

    error: float = 0.0
    ours: float = 0.0
    exact: float = 0.0
    arguments: tuple[float, ...] = ()

    def update(
        self, ours: float, exact: Exact, function: Number, numbers: Sequence[mpf], size: float
    ) -> None:
        """Compare a number with an exact function of the arguments, relative to ``size``."""
        expected = function(numbers)
        if not (isinstance(expected, mpf) and mpmath.isfinite(expected)):
            return  # outside of the support
        size = max(size, abs(expected))
        error = float(abs(ours - expected) / size) if math.isfinite(ours) else math.inf
        if self.error < error < math.inf:  # the condition number takes long
            error *= float(size / (size + exact.condition(function, numbers)))
        if error > self.error:
            self.error, self.ours, self.exact = error, ours, float(expected)
            self.arguments = tuple(map(float, numbers))


def sweep(name: str, dtype: torch.dtype, count: int, seed: int = 0) -> dict[str, Worst]:
    """Return the worst errors of a row of the table."""
    row = ROWS[name]
    args = arguments(row, count, dtype, seed)
    leaves = [a.clone().requires_grad_(not (row.discrete and a is args[0])) for a in args]
    value = row.ours(*leaves)
    moving = [leaf for leaf in leaves if leaf.requires_grad]
    slopes = torch.autograd.grad(value.sum(), moving, allow_unused=True, materialize_grads=True)
    exact, worst = Exact(row, args), {"value": Worst(), "gradient": Worst()}
    most = 1e-9 * torch.finfo(dtype).max  # beyond, products may overflow
    flat, flat_slopes = (
        torch.cat([v.double().flatten(1) if v.dim() > 1 else v.double()[:, None] for v in parts], 1)
        for parts in (args, slopes)
    )
    with mpmath.workdps(DIGITS):
        for row_of_numbers, ours, derivatives in zip(
            flat.tolist(), value.tolist(), flat_slopes.tolist(), strict=True
        ):
            numbers = [*map(mpf, row_of_numbers)]
            expected = exact.value(numbers)
            if isinstance(expected, mpf) and abs(expected) > most and not math.isnan(ours):
                continue
            if row.has_wrong_sign(ours):
                worst["value"] = Worst(math.inf, ours, 0.0, tuple(row_of_numbers))
            worst["value"].update(ours, exact, exact.value, numbers, 1.0)
            for index, derivative in zip(exact.indices, derivatives, strict=True):

                def slope(v: Sequence[mpf], index: int = index) -> mpf:
                    return exact.slope(v, index)

                if math.isnan(derivative) or abs(slope(numbers)) < most:
                    worst["gradient"].update(derivative, exact, slope, numbers, max(1.0, abs(ours)))
    return worst


def wild(name: str, dtype: torch.dtype, count: int, seed: int = 0) -> int:
    """Count draws and values that are NaN or have the wrong sign, at parameters of any size."""
    row = ROWS[name]
    sampler = real(row.wild, 1 / row.wild)
    params = [(s if s is direction else sampler, shape) for s, shape in row.params]
    huge = replace(row, params=params)
    try:
        value = row.ours(*arguments(huge, count, dtype, seed))
    except RuntimeError:  # a draw
        return count
    return sum(math.isnan(v) or row.has_wrong_sign(v) for v in value.tolist())


def report(names: Sequence[str], count: int, seed: int) -> Iterator[str]:
    """Yield lines of the table."""
    for name in names:
        for dtype in DTYPES:
            worst = sweep(name, dtype, count, seed)
            found = "  ".join(f"{quantity} {w.error:.0e}" for quantity, w in worst.items())
            yield f"{name:28} {dtype}  {found}  wild {wild(name, dtype, 10 * count, seed)}"
            for quantity, w in worst.items():
                if w.error > 100 * torch.finfo(dtype).eps:
                    at = ", ".join(f"{v:.9g}" for v in w.arguments)
                    yield f"    {quantity} {w.ours:.9g}, exact {w.exact:.9g}, at {at}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=40, help="random parameters per family")
    parser.add_argument("--only", default="", metavar="REGEX", help="rows by name")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for line in report([n for n in ROWS if re.search(args.only, n)], args.count, args.seed):
        print(line, flush=True)


if __name__ == "__main__":
    main()
