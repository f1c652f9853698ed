"""One table of likelihoods, each with data, a reference density and its expected parameters."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.special
import scipy.stats
import torch
from scipy.special import expit, log_expit

from tinyvae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianEncoder,
    GaussianLikelihood,
    Likelihood,
)
from tinyvae.likelihoods import (
    BetaBinomialLikelihood,
    BetaLikelihood,
    Column,
    ContinuousBernoulliLikelihood,
    DiscretizedLogisticLikelihood,
    Fixed,
    HurdleLikelihood,
    LaplaceLikelihood,
    Learned,
    LogitNormalLikelihood,
    LogNormalLikelihood,
    MaskedLikelihood,
    MixedLikelihood,
    MixtureLikelihood,
    MultinomialLikelihood,
    NegativeBinomialLikelihood,
    OneHotLikelihood,
    OptimalGaussianLikelihood,
    OrdinalLikelihood,
    PoissonLikelihood,
    PositiveParameter,
    Predicted,
    StandardizedLikelihood,
    StudentTLikelihood,
    ZeroInflatedLikelihood,
)

# References in numpy and scipy: log densities (*batch, *E) of each element ------------------------


def bounded(raw, minimum):
    """The logarithm of a learned or predicted positive parameter."""
    return math.log(minimum) + np.logaddexp(0, raw - math.log(minimum))


def learned(positive, context, n):
    raw = bounded(positive.raw.detach().double().numpy(), positive.minimum)
    if positive.num_classes is None:
        return raw
    rows = raw[context] if context.ndim == 1 else np.tensordot(context, raw, 1)
    return rows.reshape(len(rows), *[1] * (n - len(positive.shape)), *positive.shape)


def scalar(log_prob):
    """Reference of a likelihood whose positive parameters follow the decoder's other ones."""

    def reference(likelihood, params, x, n, context):
        parts = [params] if likelihood.num_params == 1 else list(np.moveaxis(params, -n - 1, 0))
        positives = [c for c in likelihood.children() if isinstance(c, PositiveParameter)]
        split = len(parts) - sum(isinstance(p, Predicted) for p in positives)
        free, emitted = parts[:split], iter(parts[split:])
        values = []
        for positive in positives:
            if isinstance(positive, Fixed):
                values.append(positive.value)
            elif isinstance(positive, Predicted):
                values.append(np.exp(bounded(next(emitted), positive.minimum)))
            else:
                values.append(np.exp(learned(positive, context, n)))
        return log_prob(x, *free, *values)

    return reference


def bernoulli(x, logits):
    return x * log_expit(logits) + (1 - x) * log_expit(-logits)


def student_t(x, loc, scale, df):
    return scipy.stats.t.logpdf(x, df, loc, scale)


def log_normal(x, mean_log, std):
    return scipy.stats.lognorm.logpdf(x, std, scale=np.exp(mean_log))


def logit_normal(low=0.0, high=1.0):
    def log_prob(x, mean, std):
        y = scipy.special.logit((x - low) / (high - low))
        slope = (high - low) / ((x - low) * (high - x))
        return scipy.stats.norm.logpdf(y, mean, std) + np.log(slope)

    return scalar(log_prob)


def beta(x, logits, total):
    return scipy.stats.beta.logpdf(x, expit(logits) * total, expit(-logits) * total)


def continuous_bernoulli(x, logits):
    return x * logits - np.log(scipy.special.exprel(logits))


def poisson(baseline=1.0):
    return scalar(lambda x, log_ratio: scipy.stats.poisson.logpmf(x, baseline * np.exp(log_ratio)))


def negative_binomial(baseline=1.0):
    def log_prob(x, log_ratio, r):
        return scipy.stats.nbinom.logpmf(x, r, r / (r + baseline * np.exp(log_ratio)))

    return scalar(log_prob)


def beta_binomial(num_trials):
    def log_prob(x, logits, total):
        rates = expit(logits) * total, expit(-logits) * total
        return scipy.stats.betabinom.logpmf(x, num_trials, *rates)

    return scalar(log_prob)


def discretized(num_levels):
    last = num_levels - 1

    def log_prob(x, mean, scale):
        p = scipy.stats.logistic(mean, scale)
        low, high = ((2 * x + side) / last - 1 for side in (-1, 1))
        low, high = np.where(x == 0, -np.inf, low), np.where(x == last, np.inf, high)
        below, above = p.cdf(high) - p.cdf(low), p.sf(low) - p.sf(high)
        return np.log(np.where(low < mean, below, above))

    return scalar(log_prob)


def categorical(likelihood, params, x, n, context):
    each = scipy.special.log_softmax(params, -n - 1)
    index = np.broadcast_to(x, (*params.shape[: -n - 1], *x.shape[x.ndim - n :])).astype(int)
    return np.take_along_axis(each, np.expand_dims(index, -n - 1), -n - 1).squeeze(-n - 1)


def ordinal(likelihood, params, x, n, context):
    first, *log_widths = likelihood.raw.detach().double().numpy()
    cuts = [-np.inf, first]
    for log_width in log_widths:
        cuts.append(cuts[-1] + np.exp(log_width))
    mass = [expit(b - params) - expit(a - params) for a, b in itertools.pairwise([*cuts, np.inf])]
    return np.log(sum(np.where(x == level, each, 0) for level, each in enumerate(mass)))


def one_hot(likelihood, params, x, n, context):
    return x * scipy.special.log_softmax(params, -n)


def multinomial(likelihood, params, x, n, context):
    each = x * scipy.special.log_softmax(params, -n) - scipy.special.gammaln(x + 1)
    ways = scipy.special.gammaln(x.sum(-n, keepdims=True) + 1)
    return each + ways / params.shape[-n]


def optimal(likelihood, params, x, n, context):
    return scipy.stats.norm.logpdf(x, params, likelihood.mean_square.double().sqrt().numpy())


def zero_inflated(base):
    def reference(likelihood, params, x, n, context):
        logits, *rest = np.moveaxis(params, -n - 1, 0)
        rest = rest[0] if len(rest) == 1 else np.stack(rest, -n - 1)
        counted = log_expit(-logits) + base(likelihood.likelihood, rest, x, n, context)
        return np.where(x == 0, np.logaddexp(log_expit(logits), counted), counted)

    return reference


def hurdle(base):
    def reference(likelihood, params, x, n, context):
        axis, rows = -n - 1, np.atleast_1d(likelihood.at)
        rows = rows.reshape(len(rows), *[1] * (n + 1 - rows.ndim), *rows.shape[1:])
        logits, rest = np.split(params, [len(rows)], axis)
        rest = rest.squeeze(axis) if rest.shape[axis] == 1 else rest
        shares = np.concatenate([logits, np.zeros_like(logits).take([0], axis)], axis)
        log_shares = scipy.special.log_softmax(shares, axis)
        with np.errstate(divide="ignore"):
            each = log_shares.take(-1, axis) + base(likelihood.likelihood, rest, x, n, context)
        for index, row in enumerate(rows):
            each = np.where(x == row, log_shares.take(index, axis), each)
        return each

    return reference


def mixture(base):
    def reference(likelihood, params, x, n, context):
        m, axis = likelihood.num_components, -n - 1
        shape = (*params.shape[:axis], -1, m, *params.shape[params.ndim - n :])
        logits, *rest = np.moveaxis(params.reshape(shape), axis - 1, 0)
        rest = rest[0] if len(rest) == 1 else np.stack(rest, axis - 1)
        each = base(likelihood.likelihood, rest, np.expand_dims(x, axis), n + 1, context)
        return scipy.special.logsumexp(scipy.special.log_softmax(logits, axis) + each, axis=axis)

    return reference


def standardized(base):
    def reference(likelihood, params, x, n, context):
        mean, std = np.asarray(likelihood.mean), np.asarray(likelihood.std)
        inner = base(likelihood.likelihood, params, (x - mean) / std, n, context)
        return inner - np.log(std)

    return reference


def masked(base):
    def reference(likelihood, params, x, n, context):
        with np.errstate(invalid="ignore", divide="ignore"):
            inner = base(likelihood.likelihood, params, np.nan_to_num(x, nan=0.5), n, context)
        return np.where(np.isnan(x), 0, inner)

    return reference


gaussian = scalar(scipy.stats.norm.logpdf)
laplace = scalar(scipy.stats.laplace.logpdf)


# Supports: data in them, and values outside of them -----------------------------------------------


@dataclass(frozen=True)
class Support:
    """Data of a support.

    Attributes:
        draw: Function from a shape to data in the support.
        outside: Values outside the support, other than NaN and infinity.
        num_integers: Number of the integers 0, 1, ... in the support, 0 if it is continuous.
    """

    draw: Callable[..., torch.Tensor]
    outside: tuple[float, ...]
    num_integers: int = 0


def levels(num_levels):
    outside = (-1.0, float(num_levels), 0.5)
    return Support(lambda *s: torch.randint(num_levels, s).double(), outside, num_levels)


def with_points(support, *points, outside):
    """Support in which a third of the values are points, as values or rows of values."""

    def draw(*shape):
        x = support.draw(*shape)
        for index, point in enumerate(points):
            x = torch.where(torch.rand(shape) < 0.3 / (index + 1), torch.as_tensor(point), x)
        return x

    return Support(draw, outside)


REALS = Support(torch.randn, ())
POSITIVE = Support(lambda *s: torch.randn(s).exp(), (0.0, -1.0))
OPEN = Support(lambda *s: torch.rand(s) * 0.98 + 0.01, (0.0, 1.0, -0.1, 1.1))
CLOSED = replace(OPEN, outside=(-0.1, 1.1))
BITS = replace(levels(2), outside=(-1.0, 1.5, 255.0))
COUNTS = Support(lambda *s: torch.poisson(torch.full(s, 1.5)), (-1.0, 0.5), 200)


# The table ----------------------------------------------------------------------------------------

LAYOUTS = [(4,), (2, 3, 1), (1, 5, 5)]


def per_channel(event):
    return (event[0], *[1] * (len(event) - 1))


def ramp(event):
    return (torch.arange(math.prod(event)).double().reshape(event) / 7 + 0.5).tolist()


@dataclass(frozen=True)
class Family:
    """A likelihood with its data, its reference and its expected parameters.

    Attributes:
        make: Function from a data shape to the likelihood.
        reference: Function to its log densities of each element, in numpy and scipy.
        support: Support of every entry, or of each column.
        num_params: Expected ``num_params``.
        scales: Function from a data shape to the shape of the learned parameter, if there is one.
        context: Function from a batch size to the context, if it reads one.
        events: Data shapes to test.
        params: Function from a data shape to the decoder's output shape, if it is not the usual.
        name_in_errors: Name in errors, if it is not that of the innermost likelihood.
        spread: Standard deviation of the decoder's outputs.
        options: Options of ``check_likelihood``.
    """

    make: Callable[[tuple[int, ...]], Likelihood]
    reference: Callable[..., np.ndarray]
    support: Support | tuple[Support, ...]
    num_params: int = 1
    scales: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None
    context: Callable[[int], torch.Tensor] | None = None
    events: tuple[tuple[int, ...], ...] = tuple(LAYOUTS)
    params: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None
    name_in_errors: str | None = None
    spread: float = 1.0
    options: tuple[tuple[str, object], ...] = ()


def indices(batch):
    return torch.arange(batch) % 3


def rows(batch):
    return torch.eye(3)[indices(batch)]


def weights(batch):
    return torch.randn(batch, 3).softmax(1)


def one_scale(event):
    return ()


def same_shape(event):
    return event


PER_CLASS = Family(
    lambda e: GaussianLikelihood(Learned(e, num_classes=3)),
    gaussian,
    REALS,
    scales=lambda e: (3, *e),
    context=indices,
)

LIKELIHOODS = {
    "bernoulli": Family(lambda _: BernoulliLikelihood(), scalar(bernoulli), BITS),
    "gaussian, fixed": Family(lambda _: GaussianLikelihood(0.3), gaussian, REALS),
    "gaussian, learned": Family(lambda _: GaussianLikelihood(), gaussian, REALS, scales=one_scale),
    "gaussian, per channel": Family(
        lambda e: GaussianLikelihood(Learned(per_channel(e))), gaussian, REALS, scales=per_channel
    ),
    "gaussian, per dimension": Family(
        lambda e: GaussianLikelihood(Learned(e, minimum=0.1)), gaussian, REALS, scales=same_shape
    ),
    "gaussian, predicted": Family(
        lambda _: GaussianLikelihood(Predicted(minimum=0.2)), gaussian, REALS, num_params=2
    ),
    "gaussian, per class": PER_CLASS,
    "gaussian, per class by rows": replace(PER_CLASS, context=rows),
    "gaussian, per class by weights": replace(PER_CLASS, context=weights),
    "gaussian, one scale per class": Family(
        lambda _: GaussianLikelihood(Learned(num_classes=3)),
        gaussian,
        REALS,
        scales=lambda _: (3,),
        context=indices,
    ),
    "gaussian, optimal": Family(lambda _: OptimalGaussianLikelihood(), optimal, REALS),
    "gaussian, optimal per channel": Family(
        lambda e: OptimalGaussianLikelihood(per_channel(e)), optimal, REALS
    ),
    "laplace, fixed": Family(lambda _: LaplaceLikelihood(0.7), laplace, REALS),
    "laplace, learned": Family(
        lambda e: LaplaceLikelihood(Learned(e)), laplace, REALS, scales=same_shape
    ),
    "laplace, predicted": Family(
        lambda _: LaplaceLikelihood("predicted"), laplace, REALS, num_params=2
    ),
    "student t, predicted": Family(
        lambda _: StudentTLikelihood("predicted", df=Predicted(minimum=3.0)),
        scalar(student_t),
        REALS,
        num_params=3,
    ),
    "student t, fixed freedom": Family(
        lambda _: StudentTLikelihood(df=5.0), scalar(student_t), REALS, scales=one_scale
    ),
    "log-normal": Family(lambda _: LogNormalLikelihood(0.5), scalar(log_normal), POSITIVE),
    "log-normal, predicted": Family(
        lambda _: LogNormalLikelihood("predicted"),
        scalar(log_normal),
        POSITIVE,
        num_params=2,
        spread=0.2,
    ),
    "logit-normal": Family(lambda _: LogitNormalLikelihood(0.7), logit_normal(), OPEN, spread=0.5),
    "logit-normal, interval": Family(
        lambda _: LogitNormalLikelihood("predicted", low=-1.0, high=3.0),
        logit_normal(-1.0, 3.0),
        Support(lambda *s: 4 * OPEN.draw(*s) - 1, (-1.0, 3.0, -1.1, 4.0)),
        num_params=2,
        spread=0.5,
    ),
    "masked logit-normal hurdle": Family(
        lambda _: MaskedLikelihood(HurdleLikelihood(LogitNormalLikelihood(), at=(0.0, 1.0))),
        masked(hurdle(logit_normal())),
        with_points(OPEN, 0.0, 1.0, outside=(-0.1, 1.1)),
        num_params=3,
        scales=one_scale,
        spread=0.5,
    ),
    "beta": Family(
        lambda _: BetaLikelihood(Learned(initial=8.0)),
        scalar(beta),
        OPEN,
        scales=one_scale,
        spread=0.5,
    ),
    "beta, predicted": Family(
        lambda _: BetaLikelihood(Predicted(minimum=4.0)),
        scalar(beta),
        OPEN,
        num_params=2,
        spread=0.5,
    ),
    "continuous bernoulli": Family(
        lambda _: ContinuousBernoulliLikelihood(), scalar(continuous_bernoulli), CLOSED, spread=3.0
    ),
    "categorical": Family(lambda _: CategoricalLikelihood(5), categorical, levels(5), num_params=5),
    "categorical, ordered": Family(
        lambda _: CategoricalLikelihood(5, ordered=True), categorical, levels(5), num_params=5
    ),
    "categorical, gray": Family(
        lambda _: CategoricalLikelihood(256, ordered=True), categorical, levels(256), num_params=256
    ),
    "ordinal": Family(lambda _: OrdinalLikelihood(5), ordinal, levels(5), scales=lambda _: (4,)),
    "ordinal, per dimension": Family(
        lambda e: OrdinalLikelihood(4, shape=e, frequencies=(1.0, 2.0, 3.0, 2.0)),
        ordinal,
        levels(4),
        scales=lambda e: (3, *e),
    ),
    "ordinal, two levels": Family(
        lambda e: OrdinalLikelihood(2, shape=per_channel(e)),
        ordinal,
        BITS,
        scales=lambda e: (1, *per_channel(e)),
    ),
    "masked ordinal": Family(
        lambda _: MaskedLikelihood(OrdinalLikelihood(3)),
        masked(ordinal),
        levels(3),
        scales=lambda _: (2,),
    ),
    "mixture of ordinal": Family(
        lambda e: MixtureLikelihood(OrdinalLikelihood(4, shape=e), num_components=2),
        mixture(ordinal),
        levels(4),
        num_params=4,
        scales=lambda e: (3, *e),
    ),
    "poisson": Family(lambda _: PoissonLikelihood(3.0), poisson(3.0), COUNTS),
    "poisson, per dimension": Family(
        lambda e: PoissonLikelihood([2.0] * e[-1]), poisson(2.0), COUNTS
    ),
    "negative binomial, per dimension": Family(
        lambda e: NegativeBinomialLikelihood(Learned(e), baseline=2.0),
        negative_binomial(2.0),
        COUNTS,
        scales=same_shape,
    ),
    "negative binomial, predicted": Family(
        lambda _: NegativeBinomialLikelihood("predicted"),
        negative_binomial(),
        COUNTS,
        num_params=2,
    ),
    "negative binomial, per class": Family(
        lambda e: NegativeBinomialLikelihood(Learned(e, num_classes=3)),
        negative_binomial(),
        COUNTS,
        scales=lambda e: (3, *e),
        context=indices,
    ),
    "beta-binomial": Family(
        lambda _: BetaBinomialLikelihood(6, Learned(initial=3.0)),
        beta_binomial(6),
        levels(7),
        scales=one_scale,
    ),
    "beta-binomial, predicted": Family(
        lambda e: BetaBinomialLikelihood([4] * e[-1], "predicted"),
        beta_binomial(4),
        levels(5),
        num_params=2,
    ),
    "masked beta-binomial": Family(
        lambda _: MaskedLikelihood(BetaBinomialLikelihood(3, 2.0)),
        masked(beta_binomial(3)),
        levels(4),
    ),
    "zero-inflated poisson": Family(
        lambda _: ZeroInflatedLikelihood(PoissonLikelihood(2.0)),
        zero_inflated(poisson(2.0)),
        COUNTS,
        num_params=2,
    ),
    "zero-inflated negative binomial": Family(
        lambda _: ZeroInflatedLikelihood(NegativeBinomialLikelihood("predicted")),
        zero_inflated(negative_binomial()),
        COUNTS,
        num_params=3,
    ),
    "log-normal hurdle": Family(
        lambda _: HurdleLikelihood(LogNormalLikelihood(0.5)),
        hurdle(scalar(log_normal)),
        with_points(POSITIVE, 0.0, outside=(-1.0,)),
        num_params=2,
    ),
    "gaussian hurdle, two points": Family(
        lambda e: HurdleLikelihood(GaussianLikelihood(Learned(e)), at=(0.0, 1.5)),
        hurdle(gaussian),
        with_points(REALS, 0.0, 1.5, outside=()),
        num_params=3,
        scales=same_shape,
    ),
    "gaussian hurdle, points per dimension": Family(
        lambda e: HurdleLikelihood(
            StandardizedLikelihood(GaussianLikelihood("predicted"), mean=1.0, std=2.0),
            at=[ramp(e), (-torch.tensor(ramp(e))).tolist()],
        ),
        hurdle(standardized(gaussian)),
        REALS,
        num_params=4,
    ),
    "masked beta hurdle": Family(
        lambda _: MaskedLikelihood(
            HurdleLikelihood(BetaLikelihood(Predicted(minimum=4.0)), at=(0.0, 1.0)), show_mask=True
        ),
        masked(hurdle(scalar(beta))),
        with_points(OPEN, 0.0, 1.0, outside=(-0.1, 1.1)),
        num_params=4,
        spread=0.5,
    ),
    "mixture of gaussian hurdle": Family(
        lambda e: MixtureLikelihood(
            HurdleLikelihood(GaussianLikelihood(), at=[ramp(e)]), num_components=2
        ),
        mixture(hurdle(gaussian)),
        REALS,
        num_params=6,
        scales=one_scale,
    ),
    "discretized logistic, 256": Family(
        lambda _: DiscretizedLogisticLikelihood(256), discretized(256), levels(256), num_params=2
    ),
    "discretized logistic, 16": Family(
        lambda _: DiscretizedLogisticLikelihood(16, scale="learned"),
        discretized(16),
        levels(16),
        scales=one_scale,
    ),
    "mixture of discretized logistic": Family(
        lambda _: MixtureLikelihood(DiscretizedLogisticLikelihood(16), num_components=3),
        mixture(discretized(16)),
        levels(16),
        num_params=9,
    ),
    "mixture of gaussian, predicted": Family(
        lambda _: MixtureLikelihood(GaussianLikelihood("predicted"), num_components=2),
        mixture(gaussian),
        REALS,
        num_params=6,
    ),
    "mixture of gaussian, learned": Family(
        lambda e: MixtureLikelihood(GaussianLikelihood(Learned(e)), num_components=2),
        mixture(gaussian),
        REALS,
        num_params=4,
        scales=same_shape,
    ),
    "standardized gaussian": Family(
        lambda e: StandardizedLikelihood(GaussianLikelihood(0.5), mean=ramp(e), std=ramp(e)),
        standardized(gaussian),
        REALS,
    ),
    "standardized mixture": Family(
        lambda _: StandardizedLikelihood(
            MixtureLikelihood(LaplaceLikelihood(), num_components=2), mean=1.0, std=2.0
        ),
        standardized(mixture(laplace)),
        REALS,
        num_params=4,
        scales=one_scale,
    ),
    "masked gaussian": Family(
        lambda e: MaskedLikelihood(GaussianLikelihood(Learned(e))),
        masked(gaussian),
        REALS,
        scales=same_shape,
    ),
    "masked categorical": Family(
        lambda _: MaskedLikelihood(CategoricalLikelihood(3)),
        masked(categorical),
        levels(3),
        num_params=3,
    ),
    "masked beta": Family(
        lambda _: MaskedLikelihood(BetaLikelihood(Predicted(minimum=4.0)), show_mask=True),
        masked(scalar(beta)),
        OPEN,
        num_params=2,
        spread=0.5,
    ),
    "masked zero-inflated poisson": Family(
        lambda _: MaskedLikelihood(ZeroInflatedLikelihood(PoissonLikelihood(2.0))),
        masked(zero_inflated(poisson(2.0))),
        COUNTS,
        num_params=2,
    ),
}

COLUMNS = {
    "visits": (Column("visits", "count", scale=2.0), COUNTS),
    "age": (Column("age", "number", shift=2.0, scale=1.5), REALS),
    "color": (Column("color", "category", ("blue", "green", "red")), levels(3)),
    "height": (Column("height", "number", shift=1.7, scale=0.1), REALS),
    "smokes": (Column("smokes", "binary", ("no", "yes")), levels(2)),
    "income": (Column("income", "positive", scale=3.0), POSITIVE),
    "score": (Column("score", "number"), REALS),
    "pets": (Column("pets", "count", scale=0.5), COUNTS),
}
BLOCKS = {
    CategoricalLikelihood: categorical,
    LaplaceLikelihood: laplace,
}


def block_reference(block):
    if isinstance(block, NegativeBinomialLikelihood):
        return negative_binomial(np.array(block.baseline))
    if isinstance(block, StandardizedLikelihood):
        inner = isinstance(block.likelihood, GaussianLikelihood)
        return standardized(gaussian if inner else scalar(log_normal))
    return BLOCKS[type(block)]


def mixed(likelihood, params, x, n, context):
    batch = np.broadcast_shapes(params.shape[:-1], x.shape[:-1])
    result, start = np.zeros((*batch, x.shape[-1])), 0
    for i, block in enumerate(likelihood.blocks):
        indices = likelihood.get_buffer(f"columns{i}").numpy()
        shape = block.param_shape((len(indices),))
        part = params[..., start : start + shape.numel()].reshape(*params.shape[:-1], *shape)
        result[..., indices] = block_reference(block)(block, part, x[..., indices], 1, context)
        start += shape.numel()
    assert start == params.shape[-1]
    return result


def make_mixed(_):
    columns = [column for column, _ in COLUMNS.values()]
    return MixedLikelihood(columns, likelihoods={"score": LaplaceLikelihood()})


def one_hot_rows(*shape):
    """Classes along the first dimension of an event of three, (..., C, h, w), or of one."""
    *batch, num_classes, h, w = shape
    index = torch.randint(num_classes, (*batch, h, w))
    return torch.nn.functional.one_hot(index, num_classes).movedim(-1, -3).double()


def rows_of_counts(*shape):
    """Counts of four trials along the first dimension of an event of three."""
    *batch, num_outcomes, h, w = shape
    shares = torch.rand(*batch, h, w, num_outcomes)
    index = torch.multinomial(shares.reshape(-1, num_outcomes), 4, replacement=True)
    counts = torch.nn.functional.one_hot(index, num_outcomes).sum(1)
    return counts.reshape(*batch, h, w, num_outcomes).movedim(-1, -3).double()


def all_counts(total, num_outcomes):
    """Return all counts of a total, ``(V, C)``."""
    every = itertools.product(range(total + 1), repeat=num_outcomes)
    return torch.tensor([row for row in every if sum(row) == total]).double()


MIXED = Family(
    make_mixed,
    mixed,
    tuple(support for _, support in COLUMNS.values()),
    events=((len(COLUMNS),),),
    params=lambda _: (11,),
    name_in_errors="column '\\w+'",
)
LIKELIHOODS |= {
    "one-hot": Family(
        lambda _: OneHotLikelihood(),
        one_hot,
        Support(one_hot_rows, (0.5, 2.0, -1.0), 2),
        events=((4, 3, 3), (3, 2, 1)),
        options=(("data_shape", (3,)), ("values", torch.eye(3))),
    ),
    "multinomial": Family(
        lambda _: MultinomialLikelihood(4),
        multinomial,
        Support(rows_of_counts, (0.5, -1.0), 5),
        events=((4, 3, 3), (3, 2, 1)),
        options=(("data_shape", (3,)), ("values", all_counts(4, 3))),
    ),
    "mixed": MIXED,
    "masked mixed": replace(
        MIXED, make=lambda e: MaskedLikelihood(make_mixed(e)), reference=masked(mixed)
    ),
}


@dataclass(frozen=True)
class Sample:
    """A family at one data shape: a likelihood with random learned parameters, params and data."""

    family: Family
    event: tuple[int, ...]

    @cached_property
    def likelihood(self):
        """The likelihood, in float64 and evaluation mode."""
        likelihood = self.family.make(self.event).double().eval()
        with torch.no_grad():
            for parameter in likelihood.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
            for name, buffer in likelihood.named_buffers():
                if "mean_square" in name:
                    buffer += torch.rand_like(buffer)
        return likelihood

    @property
    def param_shape(self):
        """Expected shape of the decoder's output."""
        if self.family.params is not None:
            return self.family.params(self.event)
        leading = () if self.family.num_params == 1 else (self.family.num_params,)
        return (*leading, *self.event)

    @property
    def is_masked(self):
        """True if the data may hold NaN."""
        return isinstance(self.likelihood, MaskedLikelihood)

    def params(self, *batch):
        """Return a random decoder output."""
        return torch.randn(*batch, *self.param_shape) * self.family.spread

    def support(self, index):
        """Return the support of an entry."""
        support = self.family.support
        return support[index] if isinstance(support, tuple) else support

    def observed(self, batch):
        """Return data without missing entries."""
        if isinstance(self.family.support, tuple):
            return torch.stack([support.draw(batch) for support in self.family.support], 1)
        return self.family.support.draw(batch, *self.event)

    def data(self, batch):
        """Return data, with missing entries if the likelihood is masked."""
        x = self.observed(batch)
        return x.masked_fill(torch.rand_like(x) < 0.25, math.nan) if self.is_masked else x

    def context(self, batch):
        """Return a context, or None."""
        return None if self.family.context is None else self.family.context(batch)

    def __call__(self, params, context=None):
        return self.likelihood(params, len(self.event), context)

    def expected(self, params, x, context=None):
        """Return the reference log density, ``(*batch)``."""
        context = None if context is None else context.numpy()
        arrays = params.double().numpy(), x.double().numpy()
        ndim = len(self.event)
        elements = self.family.reference(self.likelihood, *arrays, ndim, context)
        return torch.from_numpy(elements.reshape(*elements.shape[:-ndim], -1).sum(-1))


class Unconditioned(MLP):
    """A network that ignores the context, which only the likelihood reads."""

    def forward(self, x, context=None):
        return super().forward(x)


def make_vae(likelihood, event, latent_dim=2):
    """Return a small VAE in float64 and evaluation mode."""
    encoder = Unconditioned(likelihood.input_shape(event), hidden=(5,))
    decoder = Unconditioned(latent_dim, hidden=(5,), out_shape=likelihood.param_shape(event))
    return VAE(GaussianEncoder(encoder, latent_dim), decoder, likelihood).double().eval()
