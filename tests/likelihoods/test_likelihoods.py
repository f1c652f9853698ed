import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from helpers.oracles import gauss_hermite
from scipy.special import expit, log_expit
from torch.autograd import gradcheck

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    Batch,
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianEncoder,
    GaussianLikelihood,
    Likelihood,
    evaluate,
)
from tinyvae.distributions import TorchDistribution
from tinyvae.likelihoods import (
    BetaLikelihood,
    Column,
    ContinuousBernoulliLikelihood,
    DiscretizedLogisticLikelihood,
    Fixed,
    LaplaceLikelihood,
    Learned,
    LogNormalLikelihood,
    MaskedLikelihood,
    MixedLikelihood,
    MixtureLikelihood,
    NegativeBinomialLikelihood,
    OneHotLikelihood,
    OptimalGaussianLikelihood,
    PoissonLikelihood,
    Positive,
    Predicted,
    StandardizedLikelihood,
    StudentTLikelihood,
    ZeroInflatedLikelihood,
)
from tinyvae.models.serialization import build_part, describe_part

pytestmark = pytest.mark.usefixtures("float64")

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
        positives = [c for c in likelihood.children() if isinstance(c, Positive)]
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


def one_hot(likelihood, params, x, n, context):
    return x * scipy.special.log_softmax(params, -n)


def optimal(likelihood, params, x, n, context):
    return scipy.stats.norm.logpdf(x, params, likelihood.mean_square.double().sqrt().numpy())


def zero_inflated(base):
    def reference(likelihood, params, x, n, context):
        logits, *rest = np.moveaxis(params, -n - 1, 0)
        rest = rest[0] if len(rest) == 1 else np.stack(rest, -n - 1)
        counted = log_expit(-logits) + base(likelihood.likelihood, rest, x, n, context)
        return np.where(x == 0, np.logaddexp(log_expit(logits), counted), counted)

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
        with np.errstate(invalid="ignore"):
            inner = base(likelihood.likelihood, params, np.nan_to_num(x, nan=0.5), n, context)
        return np.where(np.isnan(x), 0, inner)

    return reference


gaussian = scalar(scipy.stats.norm.logpdf)
laplace = scalar(scipy.stats.laplace.logpdf)


# Supports: values that sums and integrals run over, and data --------------------------------------


@dataclass(frozen=True)
class Support:
    values: torch.Tensor
    data: Callable  # shape -> data
    outside: tuple[float, ...]
    log_weights: torch.Tensor | None = None  # of the integral over values

    @property
    def is_discrete(self):
        return self.log_weights is None


def integral(transform, limit, num_nodes=8001):
    """Nodes and log weights of the trapezoidal rule in t, where x = transform(t)."""
    t = torch.linspace(-limit, limit, num_nodes, dtype=torch.float64, requires_grad=True)
    x = transform(t)
    (slope,) = torch.autograd.grad(x.sum(), t)
    return x.detach(), (slope * 2 * limit / (num_nodes - 1)).log()


def continuous(transform, limit, data, outside):
    values, log_weights = integral(transform, limit)
    return Support(values, data, outside, log_weights)


def levels(num_levels):
    outside = (-1.0, float(num_levels), 0.5)
    values = torch.arange(num_levels, dtype=torch.float64)
    return Support(values, lambda *s: torch.randint(num_levels, s).to(values), outside)


REALS = continuous(torch.sinh, 30, torch.randn, ())
POSITIVE = continuous(torch.exp, 40, lambda *s: torch.randn(s).exp(), (0.0, -1.0))
OPEN = continuous(torch.sigmoid, 36, lambda *s: torch.rand(s) * 0.98 + 0.01, (0.0, 1.0, -0.1, 1.1))
CLOSED = replace(OPEN, outside=(-0.1, 1.1))
BITS = replace(levels(2), outside=(-1.0, 1.5, 255.0))
COUNTS = Support(
    torch.arange(3000, dtype=torch.float64),
    lambda *s: torch.poisson(torch.full(s, 1.5)),
    (-1.0, 0.5),
)


# The table ----------------------------------------------------------------------------------------

LAYOUTS = [(4,), (2, 3, 1), (1, 5, 5)]


def per_channel(event):
    return (event[0], *[1] * (len(event) - 1))


def ramp(event):
    return (torch.arange(math.prod(event)).reshape(event) / 7 + 0.5).tolist()


@dataclass(frozen=True)
class Case:
    make: Callable  # event shape -> likelihood
    reference: Callable
    support: Support | tuple[Support, ...]  # of every entry, or of each column
    num_params: int = 1
    scales: Callable | None = None  # event shape -> shape of the learned parameter
    context: Callable | None = None  # batch size -> context
    events: tuple = tuple(LAYOUTS)
    params: Callable | None = None  # event shape -> shape of the decoder's output
    refused_as: str | None = None
    spread: float = 1.0  # of the decoder's outputs


def indices(batch):
    return torch.arange(batch) % 3


def rows(batch):
    return torch.eye(3)[indices(batch)]


def weights(batch):
    return torch.randn(batch, 3).softmax(1)


def one_scale(event):
    return ()


def whole(event):
    return event


PER_CLASS = Case(
    lambda e: GaussianLikelihood(Learned(e, num_classes=3)),
    gaussian,
    REALS,
    scales=lambda e: (3, *e),
    context=indices,
)

LIKELIHOODS = {
    "bernoulli": Case(lambda _: BernoulliLikelihood(), scalar(bernoulli), BITS),
    "gaussian, fixed": Case(lambda _: GaussianLikelihood(0.3), gaussian, REALS),
    "gaussian, learned": Case(lambda _: GaussianLikelihood(), gaussian, REALS, scales=one_scale),
    "gaussian, per channel": Case(
        lambda e: GaussianLikelihood(Learned(per_channel(e))), gaussian, REALS, scales=per_channel
    ),
    "gaussian, per dimension": Case(
        lambda e: GaussianLikelihood(Learned(e, minimum=0.1)), gaussian, REALS, scales=whole
    ),
    "gaussian, predicted": Case(
        lambda _: GaussianLikelihood(Predicted(minimum=0.2)), gaussian, REALS, num_params=2
    ),
    "gaussian, per class": PER_CLASS,
    "gaussian, per class by rows": replace(PER_CLASS, context=rows),
    "gaussian, per class by weights": replace(PER_CLASS, context=weights),
    "gaussian, one scale per class": Case(
        lambda _: GaussianLikelihood(Learned(num_classes=3)),
        gaussian,
        REALS,
        scales=lambda _: (3,),
        context=indices,
    ),
    "gaussian, optimal": Case(lambda _: OptimalGaussianLikelihood(), optimal, REALS),
    "gaussian, optimal per channel": Case(
        lambda e: OptimalGaussianLikelihood(per_channel(e)), optimal, REALS
    ),
    "laplace, fixed": Case(lambda _: LaplaceLikelihood(0.7), laplace, REALS),
    "laplace, learned": Case(lambda e: LaplaceLikelihood(Learned(e)), laplace, REALS, scales=whole),
    "laplace, predicted": Case(
        lambda _: LaplaceLikelihood("predicted"), laplace, REALS, num_params=2
    ),
    "student t, predicted": Case(
        lambda _: StudentTLikelihood("predicted", Predicted(minimum=3.0)),
        scalar(student_t),
        REALS,
        num_params=3,
    ),
    "student t, fixed freedom": Case(
        lambda _: StudentTLikelihood(df=5.0), scalar(student_t), REALS, scales=one_scale
    ),
    "log-normal": Case(lambda _: LogNormalLikelihood(0.5), scalar(log_normal), POSITIVE),
    "log-normal, predicted": Case(
        lambda _: LogNormalLikelihood("predicted"),
        scalar(log_normal),
        POSITIVE,
        num_params=2,
        spread=0.2,
    ),
    "beta": Case(
        lambda _: BetaLikelihood(Learned(initial=8.0)),
        scalar(beta),
        OPEN,
        scales=one_scale,
        spread=0.5,
    ),
    "beta, predicted": Case(
        lambda _: BetaLikelihood(Predicted(minimum=4.0)),
        scalar(beta),
        OPEN,
        num_params=2,
        spread=0.5,
    ),
    "continuous bernoulli": Case(
        lambda _: ContinuousBernoulliLikelihood(), scalar(continuous_bernoulli), CLOSED, spread=3.0
    ),
    "categorical": Case(lambda _: CategoricalLikelihood(5), categorical, levels(5), num_params=5),
    "categorical, ordered": Case(
        lambda _: CategoricalLikelihood(5, ordered=True), categorical, levels(5), num_params=5
    ),
    "categorical, gray": Case(
        lambda _: CategoricalLikelihood(256, ordered=True), categorical, levels(256), num_params=256
    ),
    "poisson": Case(lambda _: PoissonLikelihood(3.0), poisson(3.0), COUNTS),
    "poisson, per dimension": Case(
        lambda e: PoissonLikelihood([2.0] * e[-1]), poisson(2.0), COUNTS
    ),
    "negative binomial, per dimension": Case(
        lambda e: NegativeBinomialLikelihood(Learned(e), baseline=2.0),
        negative_binomial(2.0),
        COUNTS,
        scales=whole,
    ),
    "negative binomial, predicted": Case(
        lambda _: NegativeBinomialLikelihood("predicted"),
        negative_binomial(),
        COUNTS,
        num_params=2,
    ),
    "negative binomial, per class": Case(
        lambda e: NegativeBinomialLikelihood(Learned(e, num_classes=3)),
        negative_binomial(),
        COUNTS,
        scales=lambda e: (3, *e),
        context=indices,
    ),
    "zero-inflated poisson": Case(
        lambda _: ZeroInflatedLikelihood(PoissonLikelihood(2.0)),
        zero_inflated(poisson(2.0)),
        COUNTS,
        num_params=2,
    ),
    "zero-inflated negative binomial": Case(
        lambda _: ZeroInflatedLikelihood(NegativeBinomialLikelihood("predicted")),
        zero_inflated(negative_binomial()),
        COUNTS,
        num_params=3,
    ),
    "discretized logistic, 256": Case(
        lambda _: DiscretizedLogisticLikelihood(256), discretized(256), levels(256), num_params=2
    ),
    "discretized logistic, 16": Case(
        lambda _: DiscretizedLogisticLikelihood(16, "learned"),
        discretized(16),
        levels(16),
        scales=one_scale,
    ),
    "mixture of discretized logistic": Case(
        lambda _: MixtureLikelihood(DiscretizedLogisticLikelihood(16), 3),
        mixture(discretized(16)),
        levels(16),
        num_params=9,
    ),
    "mixture of gaussian, predicted": Case(
        lambda _: MixtureLikelihood(GaussianLikelihood("predicted"), 2),
        mixture(gaussian),
        REALS,
        num_params=6,
    ),
    "mixture of gaussian, learned": Case(
        lambda e: MixtureLikelihood(GaussianLikelihood(Learned(e)), 2),
        mixture(gaussian),
        REALS,
        num_params=4,
        scales=whole,
    ),
    "standardized gaussian": Case(
        lambda e: StandardizedLikelihood(GaussianLikelihood(0.5), mean=ramp(e), std=ramp(e)),
        standardized(gaussian),
        REALS,
    ),
    "standardized mixture": Case(
        lambda _: StandardizedLikelihood(
            MixtureLikelihood(LaplaceLikelihood(), 2), mean=1.0, std=2.0
        ),
        standardized(mixture(laplace)),
        REALS,
        num_params=4,
        scales=one_scale,
    ),
    "masked gaussian": Case(
        lambda e: MaskedLikelihood(GaussianLikelihood(Learned(e))),
        masked(gaussian),
        REALS,
        scales=whole,
    ),
    "masked categorical": Case(
        lambda _: MaskedLikelihood(CategoricalLikelihood(3)),
        masked(categorical),
        levels(3),
        num_params=3,
    ),
    "masked beta": Case(
        lambda _: MaskedLikelihood(BetaLikelihood(Predicted(minimum=4.0)), show_mask=True),
        masked(scalar(beta)),
        OPEN,
        num_params=2,
        spread=0.5,
    ),
    "masked zero-inflated poisson": Case(
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
        at = likelihood.get_buffer(f"at{i}").numpy()
        shape = block.param_shape((len(at),))
        part = params[..., start : start + shape.numel()].reshape(*params.shape[:-1], *shape)
        result[..., at] = block_reference(block)(block, part, x[..., at], 1, context)
        start += shape.numel()
    assert start == params.shape[-1]
    return result


def make_mixed(_):
    columns = [column for column, _ in COLUMNS.values()]
    return MixedLikelihood(columns, {"score": LaplaceLikelihood()})


def one_hot_rows(*shape):
    """Classes along the first dimension of an event of three, (..., C, h, w), or of one."""
    *batch, num_classes, h, w = shape
    index = torch.randint(num_classes, (*batch, h, w))
    return torch.nn.functional.one_hot(index, num_classes).movedim(-1, -3).double()


MIXED = Case(
    make_mixed,
    mixed,
    tuple(support for _, support in COLUMNS.values()),
    events=((len(COLUMNS),),),
    params=lambda _: (11,),
    refused_as="column '\\w+'",
)
LIKELIHOODS |= {
    "one-hot": Case(
        lambda _: OneHotLikelihood(),
        one_hot,
        replace(levels(3), data=one_hot_rows, outside=(0.5, 2.0, -1.0)),
        events=((4, 3, 3), (3, 2, 1)),
    ),
    "mixed": MIXED,
    "masked mixed": replace(
        MIXED, make=lambda e: MaskedLikelihood(make_mixed(e)), reference=masked(mixed)
    ),
}


@dataclass(frozen=True)
class Drawn:
    case: Case
    event: tuple[int, ...]

    @cached_property
    def likelihood(self):
        likelihood = self.case.make(self.event).double().eval()
        with torch.no_grad():
            for parameter in likelihood.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
            for name, buffer in likelihood.named_buffers():
                if "mean_square" in name:
                    buffer += torch.rand_like(buffer)
        return likelihood

    @property
    def n(self):
        return len(self.event)

    @property
    def param_shape(self):
        if self.case.params is not None:
            return self.case.params(self.event)
        leading = () if self.case.num_params == 1 else (self.case.num_params,)
        return (*leading, *self.event)

    @property
    def is_masked(self):
        return isinstance(self.likelihood, MaskedLikelihood)

    @property
    def is_one_hot(self):
        return isinstance(self.likelihood, OneHotLikelihood)

    def params(self, *batch):
        return torch.randn(*batch, *self.param_shape) * self.case.spread

    def support(self, i):
        return self.case.support[i] if isinstance(self.case.support, tuple) else self.case.support

    def full(self, batch):
        """Data without missing entries."""
        if isinstance(self.case.support, tuple):
            return torch.stack([support.data(batch) for support in self.case.support], 1)
        return self.case.support.data(batch, *self.event)

    def x(self, batch):
        x = self.full(batch)
        return x.masked_fill(torch.rand_like(x) < 0.25, math.nan) if self.is_masked else x

    def context(self, batch):
        return None if self.case.context is None else self.case.context(batch)

    def __call__(self, params, context=None):
        return self.likelihood(params, self.n, context)

    def expected(self, params, x, context=None):
        context = None if context is None else context.numpy()
        arrays = params.double().numpy(), x.double().numpy()
        elements = self.case.reference(self.likelihood, *arrays, self.n, context)
        return torch.from_numpy(elements.reshape(*elements.shape[: -self.n], -1).sum(-1))

    def entries(self):
        """Entries of one datum that are independent: rows along C, of one-hot data."""
        return range(math.prod(self.event[1:] if self.is_one_hot else self.event))

    def varied(self, x, i):
        """Data ``(V, 1, *E)`` that are ``x`` ``(*E)`` but for every value of entry ``i``."""
        values = self.support(i).values
        rows = x.repeat(self.event[0] if self.is_one_hot else len(values), 1, *[1] * self.n)
        if self.is_one_hot:
            rows[:, 0, :, i // self.event[2], i % self.event[2]] = torch.eye(self.event[0])
        else:
            rows.flatten(1)[:, i] = values
        return rows

    def entry(self, draws, i):
        """Values ``(n,)`` of entry ``i`` in draws ``(n, 1, *E)``."""
        if self.is_one_hot:
            return draws[:, 0].argmax(1).flatten(1)[:, i].double()
        return draws.flatten(1)[:, i]


@pytest.fixture(params=LIKELIHOODS)
def drawn(request):
    case = LIKELIHOODS[request.param]
    return Drawn(case, case.events[min(1, len(case.events) - 1)])


# The contract -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "event"),
    [(name, event) for name, case in LIKELIHOODS.items() for event in case.events],
)
def test_shapes_and_log_prob(name, event):
    case, drawn = LIKELIHOODS[name], Drawn(LIKELIHOODS[name], event)
    likelihood = drawn.likelihood
    assert likelihood.param_shape(event) == drawn.param_shape
    assert likelihood.is_density
    if case.params is None:
        assert likelihood.num_params == case.num_params
        assert [p.shape for p in likelihood.parameters()] == (
            [] if case.scales is None else [case.scales(event)]
        )
    for k, b in [(1, 5), (3, 5), (3, 1)]:
        params, x, context = drawn.params(k, b), drawn.x(b), drawn.context(b)
        p = drawn(params, context)
        assert (p.batch_shape, p.event_shape) == ((k, b), event)
        assert p.mean.shape == p.point_estimate().shape == p.sample().shape == (k, b, *event)
        assert p.sample((2,)).shape == (2, k, b, *event)
        expected = drawn.expected(params, x, context)
        torch.testing.assert_close(p.log_prob(x), expected, rtol=1e-10, atol=1e-10)
        fed = likelihood.encoder_input(x)
        assert fed.shape == (b, *likelihood.input_shape(event))
        assert fed.isfinite().all()


def test_float32(drawn):
    params, x, context = drawn.params(3, 5).float(), drawn.x(5).float(), drawn.context(5)
    exact = drawn(params.double(), context).log_prob(x.double())
    drawn.likelihood.float()
    context = context.float() if context is not None and context.is_floating_point() else context
    p = drawn(params, context)
    assert p.log_prob(x).dtype == p.sample().dtype == p.mean.dtype == torch.float32
    assert p.point_estimate().dtype == drawn.likelihood.encoder_input(x).dtype == torch.float32
    torch.testing.assert_close(p.log_prob(x).double(), exact, rtol=1e-5, atol=1e-5)


def test_batch_may_be_permuted_chunked_and_strided(drawn):
    params, x, context = drawn.params(3, 6), drawn.x(6), drawn.context(6)

    def log_prob(params, x, at=slice(None)):
        return drawn(params[:, at], None if context is None else context[at]).log_prob(x[at])

    whole, order = log_prob(params, x), torch.randperm(6)
    torch.testing.assert_close(log_prob(params, x, order), whole[:, order])
    chunks = [log_prob(params, x, slice(i, i + 4)) for i in (0, 4)]
    torch.testing.assert_close(torch.cat(chunks, 1), whole)
    strided = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in (params, x)]
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(log_prob(*strided), whole)


def test_gradients(drawn):
    params, x, context = drawn.params(2, 3).requires_grad_(), drawn.x(3), drawn.context(3)
    learned = dict(drawn.likelihood.named_parameters())

    def log_prob(params, *values):
        call = torch.func.functional_call
        state = dict(zip(learned, values, strict=True))
        return call(drawn.likelihood, state, (params, drawn.n, context)).log_prob(x)

    assert gradcheck(log_prob, (params, *learned.values()), fast_mode=True)
    drawn(params, context).log_prob(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in (params, *learned.values()))
    if not drawn.is_masked:
        assert all((p.grad != 0).all() for p in (params, *learned.values()))


def test_integrates_to_one_and_draws_agree(drawn):
    """Of each entry: total, mean, center, and draws against the mass or distribution function."""
    params, x0, context = drawn.params(1), drawn.full(1)[0], drawn.context(1)
    p = drawn(params, context)
    draws = p.sample((4000,))
    log_px0 = p.log_prob(x0[None]).detach()
    log_total, entropy = log_px0.clone(), 0.0
    means = torch.zeros(len(drawn.entries()))
    for i in drawn.entries():
        support = drawn.support(i)
        log_each = (p.log_prob(drawn.varied(x0, i)) - log_px0).detach()[:, 0]  # up to a constant
        weights = log_each if support.is_discrete else log_each + support.log_weights
        log_total += weights.logsumexp(0)
        mass = weights.softmax(0)
        entropy -= torch.xlogy(mass, mass).sum()
        if not support.is_discrete:
            entropy += (mass * support.log_weights).sum()
        means[i] = mass @ support.values
        assert agreement(drawn.entry(draws, i).detach(), support, mass) > 1e-4
    assert log_total.item() == pytest.approx(0, abs=3e-4)
    check_mean(drawn, p, means, draws)
    log_prob = p.log_prob(draws).detach()[:, 0]
    assert abs(log_prob.mean() + entropy) < 4.5 * log_prob.std() / math.sqrt(len(draws)) + 3e-4


def agreement(draws, support, mass):
    """The p value of draws: chi squared, of values expected five times or more, or KS."""
    if not support.is_discrete:
        cdf = mass.cumsum(0) - mass / 2
        uniform = np.interp(draws, support.values, cdf)
        return scipy.stats.kstest(uniform, "uniform", method="asymp").pvalue
    observed = np.bincount(draws.long().numpy(), minlength=len(mass))
    expected = (mass * len(draws)).numpy()
    assert len(observed) == len(mass)
    order = np.argsort(expected)
    rare = order[: 1 + np.searchsorted(np.cumsum(expected[order]), 5)]
    common = np.setdiff1d(order, rare)
    if len(common) == 0:
        return 1.0
    observed = np.append(observed[common], observed[rare].sum())
    expected = np.append(expected[common], expected[rare].sum())
    return scipy.stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue


def check_mean(drawn, p, means, draws):
    error = draws.std(0)[0] / math.sqrt(len(draws))
    assert ((draws.mean(0) - p.mean)[0].abs() <= 4.5 * error + 1e-9).all()
    if drawn.is_one_hot:
        return
    torch.testing.assert_close(p.mean.detach().flatten(), means, rtol=3e-4, atol=3e-4)
    if not has_classes(drawn.likelihood):
        torch.testing.assert_close(p.point_estimate(), p.mean)


def has_classes(likelihood):
    """Whether the center of some entry is its most probable class."""
    likelihood = likelihood.likelihood if isinstance(likelihood, MaskedLikelihood) else likelihood
    if isinstance(likelihood, MixedLikelihood):
        return True
    return isinstance(likelihood, CategoricalLikelihood) and not likelihood.ordered


@pytest.mark.parametrize("name", ["categorical", "masked categorical", "mixed", "masked mixed"])
def test_the_center_of_classes_is_the_most_probable_one(name):
    drawn = Drawn(LIKELIHOODS[name], LIKELIHOODS[name].events[0])
    x0, p = drawn.full(1)[0], drawn(drawn.params(1))
    weights = torch.ones(1)
    for i in drawn.entries():
        center = p.point_estimate().flatten(1)[0, i]
        if drawn.case.params is None or list(COLUMNS.values())[i][0].levels:
            assert center == p.log_prob(drawn.varied(x0, i))[:, 0].argmax()
        else:
            torch.testing.assert_close(center, p.mean.flatten(1)[0, i])
    torch.testing.assert_close(p.point_estimate(weights), p.point_estimate()[0])


def test_round_trip_is_bitwise(drawn):
    twin = build_part(describe_part(drawn.likelihood)).double().eval()
    twin.load_state_dict(drawn.likelihood.state_dict())
    params, x, context = drawn.params(3, 5), drawn.x(5), drawn.context(5)
    p, q = drawn(params, context), twin(params, drawn.n, context)
    assert torch.equal(p.log_prob(x), q.log_prob(x))
    assert torch.equal(p.mean, q.mean)
    assert torch.equal(drawn.likelihood.encoder_input(x), twin.encoder_input(x))
    assert repr(twin) == repr(drawn.likelihood)
    assert describe_part(twin) == describe_part(drawn.likelihood)


class Unconditioned(MLP):
    """Reads no context, which is the likelihood's alone."""

    def forward(self, x, context=None):
        return super().forward(x)


def make_vae(likelihood, event, latent_dim=2):
    encoder = Unconditioned(likelihood.input_shape(event), hidden=(5,))
    decoder = Unconditioned(latent_dim, hidden=(5,), out_shape=likelihood.param_shape(event))
    return VAE(GaussianEncoder(encoder, latent_dim), decoder, likelihood).double().eval()


def test_a_whole_model_round_trips_bitwise(drawn, tmp_path):
    vae = make_vae(drawn.likelihood, drawn.event)
    vae.save(tmp_path / "vae.safetensors")
    twin = VAE.load(tmp_path / "vae.safetensors", parts=[Unconditioned])
    assert repr(twin) == repr(vae)
    x, context = drawn.x(5), drawn.context(5)
    state = torch.random.get_rng_state()
    outputs = []
    for model in (vae, twin):
        torch.random.set_rng_state(state)
        model.check(x, context)
        record = model(x, context, num_samples=3)
        assert record.log_px.shape == (3, 5)
        outputs.append((record.log_weight(), model.reconstruct(x, context)))
        outputs[-1] += (model.sample(2, context), model.sample(2, context, mean=True))
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def test_own_draws_are_in_the_support(drawn):
    draws = drawn(drawn.params(20), drawn.context(20)).sample().detach()
    assert drawn.likelihood.in_support(draws).all()
    assert drawn.likelihood.check_support(draws) is True
    assert drawn.likelihood.check_support(drawn.x(6)[::2]) is True


def refused_as(drawn):
    inner = drawn.likelihood
    while hasattr(inner, "likelihood") and not isinstance(inner, StandardizedLikelihood):
        inner = inner.likelihood
    return drawn.case.refused_as or type(inner).__name__


def test_what_is_outside_the_support(drawn):
    for i in drawn.entries():
        for value in (math.nan, math.inf, -math.inf, *drawn.support(i).outside):
            x = drawn.full(5)
            x[([1, 3], *np.unravel_index(i, drawn.event))] = value
            if math.isnan(value) and drawn.is_masked:
                assert drawn.likelihood.check_support(x) is True
                continue
            message = rf"{refused_as(drawn)} expects .* in 2 of 5 examples, first in example 1: "
            with pytest.raises(ValueError, match=message) as error:
                drawn.likelihood.check_support(x)
            assert ("MaskedLikelihood" in str(error.value)) == math.isnan(value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.int32])
def test_integers(drawn, dtype):
    values = drawn.support(0).values.clamp(max=200).to(dtype)
    integers = values[torch.randint(len(values), (5, *drawn.event))]
    if not drawn.likelihood.takes_integers:
        with pytest.raises(TypeError, match=rf"floating-point data, got {dtype}: divide gray"):
            drawn.likelihood.check_support(integers)
    elif drawn.case.params is None:  # of a table, some columns only
        assert drawn.likelihood.check_support(integers) is True
        p = drawn(drawn.params(3, 5), drawn.context(5))
        assert torch.equal(p.log_prob(integers), p.log_prob(integers.double()))


def test_a_mask_is_refused_unless_masked(drawn):
    x = drawn.full(3)
    mask = torch.rand_like(x) < 0.5
    if drawn.is_masked:
        seen = drawn.likelihood.with_mask(x, mask)
        assert torch.equal(seen.isnan(), ~mask)
        assert torch.equal(seen[mask], x[mask])
        return
    with pytest.raises(ValueError, match=r"got a mask.*wrap it, MaskedLikelihood\("):
        drawn.likelihood.with_mask(x, mask)


# Maximum likelihood -------------------------------------------------------------------------------

# name: (likelihood, true parameters of one entry)
FITS = {
    "gaussian": (GaussianLikelihood("predicted"), [0.7, -0.4]),
    "laplace": (LaplaceLikelihood("predicted"), [0.7, -0.4]),
    "student t": (StudentTLikelihood("predicted", "predicted"), [0.7, -0.4, 1.0]),
    "log-normal": (LogNormalLikelihood("predicted"), [0.7, -0.4]),
    "beta": (BetaLikelihood("predicted"), [-0.5, 1.5]),
    "continuous bernoulli": (ContinuousBernoulliLikelihood(), [1.3]),
    "bernoulli": (BernoulliLikelihood(), [0.6]),
    "categorical": (CategoricalLikelihood(4), [0.5, -0.9, 0.6, -0.2]),
    "poisson": (PoissonLikelihood(2.0), [0.8]),
    "negative binomial": (NegativeBinomialLikelihood("predicted", baseline=2.0), [0.8, 0.3]),
    "zero-inflated negative binomial": (
        ZeroInflatedLikelihood(NegativeBinomialLikelihood("predicted")),
        [-0.5, 2.0, 1.0],
    ),
    "discretized logistic": (DiscretizedLogisticLikelihood(16), [0.2, -1.2]),
    "mixture of gaussian": (
        MixtureLikelihood(GaussianLikelihood(0.5), 2),
        [0.5, -0.5, -1.0, 1.5],
    ),
}


def fitted(likelihood, start, x):
    params = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([params], max_iter=300, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = -likelihood(params, 1).log_prob(x).mean()
        value.backward()
        return value

    optimizer.step(loss)
    return params.detach()


@pytest.mark.parametrize("name", FITS)
def test_maximum_likelihood_recovers_the_parameters(name):
    """Within 4.5 standard errors, by the outer products of the scores."""
    likelihood, true = FITS[name]
    true = torch.tensor(true)[:, None] if len(true) > 1 else torch.tensor(true)
    x = likelihood.double()(true, 1).sample((5000,))
    fit = fitted(likelihood, true + 0.3 * torch.randn_like(true), x)
    each = fit.expand(len(x), *fit.shape).clone().requires_grad_()
    (scores,) = torch.autograd.grad(likelihood(each, 1).log_prob(x).sum(), each)
    scores = scores.reshape(len(x), -1)
    covariance = torch.linalg.pinv(scores.T @ scores, rtol=1e-8)
    difference = (fit - true).flatten()
    if name in ("categorical", "mixture of gaussian"):  # logits up to a constant
        num_logits = 4 if name == "categorical" else 2
        difference[:num_logits] -= difference[:num_logits].mean()
    assert (difference.abs() < 4.5 * covariance.diagonal().sqrt()).all()


# Positive parameters ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Learned, Predicted])
def test_the_minimum_is_a_smooth_floor(make):
    raw = torch.tensor([-1e3, -20.0, math.log(0.05), 0.0, 8.0])
    positive = make(minimum=0.05)
    if make is Learned:
        positive.raw = torch.nn.Parameter(raw)
    value = positive(raw, 1).exp()
    torch.testing.assert_close(value, 0.05 + raw.exp())  # exp(softplus(a - b) + b) = e^a + e^b
    assert (value >= 0.05 * (1 - 1e-12)).all()


@pytest.mark.parametrize("initial", [0.002, 0.01, 0.2, 3.0, 1e4])
def test_a_learned_parameter_starts_where_it_is_told(initial):
    likelihood = GaussianLikelihood(Learned((3,), initial=initial)).double()
    assert likelihood(torch.zeros(3), 1).base.log_std.exp().tolist() == pytest.approx([initial] * 3)


@pytest.mark.parametrize("per_component", [(2, 1, 1, 1), (2, 2, 1, 1), (2, 2, 3, 1)])
def test_components_may_have_scales_of_their_own(per_component):
    likelihood = MixtureLikelihood(GaussianLikelihood(Learned(per_component)), 2).double()
    with torch.no_grad():
        likelihood.likelihood.std.raw.normal_()
    params, x = torch.randn(3, 5, 4, 2, 3, 1), torch.randn(5, 2, 3, 1)
    expected = mixture(gaussian)(likelihood, params.numpy(), x.numpy(), 3, None).sum((2, 3, 4))
    np.testing.assert_allclose(likelihood(params, 3).log_prob(x).detach(), expected, rtol=1e-10)


@pytest.mark.parametrize(
    "context",
    [None, torch.zeros(5), torch.zeros(5, 2), torch.zeros(5, 3, 1), torch.zeros(5, 1).long()],
)
def test_a_parameter_per_class_expects_classes(context):
    likelihood = GaussianLikelihood(Learned(num_classes=3))
    with pytest.raises(ValueError, match=r"class indices \(B,\) or weights \(B, 3\), got"):
        likelihood(torch.zeros(5, 4), 1, context)


def test_rows_and_indices_of_classes_agree():
    likelihood = GaussianLikelihood(Learned((4,), num_classes=3)).double()
    with torch.no_grad():
        likelihood.std.raw.normal_()
    params, x = torch.randn(2, 5, 4), torch.randn(5, 4)
    by_index, by_row = (likelihood(params, 1, make(5)).log_prob(x) for make in (indices, rows))
    torch.testing.assert_close(by_index, by_row)


# The optimal scale --------------------------------------------------------------------------------


def root_mean_square(x, mean, shape):
    square = (x - mean).square()
    kept = [1] * (square.dim() - len(shape)) + list(shape)
    shared = [d for d, size in enumerate(kept) if size == 1]
    return square.mean(shared, keepdim=True).reshape(shape).sqrt()


shapes = pytest.mark.parametrize("shape", [(), (2, 1, 1), (2, 3, 1)])


@shapes
def test_optimal_scale_in_training(shape):
    mean, x = torch.randn(3, 5, 2, 3, 1, requires_grad=True), torch.randn(5, 2, 3, 1)
    likelihood = OptimalGaussianLikelihood(shape).double()
    std = root_mean_square(x, mean.detach(), shape)
    expected = scipy.stats.norm.logpdf(x, mean.detach(), std).sum((2, 3, 4))
    log_prob = likelihood(mean, 3).log_prob(x)
    np.testing.assert_allclose(log_prob.detach(), expected, rtol=1e-10)
    if shape == ():
        total = -15 * 6 * (std.log() + 0.5 + 0.5 * math.log(2 * math.pi))
        torch.testing.assert_close(log_prob.sum(), total)
    (gradient,) = torch.autograd.grad(log_prob.sum(), mean)
    torch.testing.assert_close(gradient, (x - mean.detach()) / std**2)


def test_optimal_scale_gradient_is_that_of_the_profile():
    """The derivative with respect to the best scale is zero."""
    mean, x = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    profile = -10 * (x - mean).square().mean().log()
    likelihood = OptimalGaussianLikelihood().double()
    (gradient,) = torch.autograd.grad(likelihood(mean, 1).log_prob(x).sum(), mean)
    (expected,) = torch.autograd.grad(profile, mean)
    torch.testing.assert_close(gradient, expected)


@shapes
def test_optimal_scale_is_averaged(shape):
    """Of the first 100 batches alike, then exponentially."""
    likelihood = OptimalGaussianLikelihood(shape).double()
    squares = []
    for _ in range(130):
        mean, x = torch.randn(5, 2, 3, 1), torch.randn(5, 2, 3, 1)
        squares.append(root_mean_square(x, mean, shape).square())
        likelihood(mean, 3).log_prob(x)
    expected = torch.stack(squares[:100]).mean(0)
    for square in squares[100:]:
        expected = 0.99 * expected + 0.01 * square
    torch.testing.assert_close(likelihood.mean_square, expected)
    assert likelihood.num_batches == 130
    torch.testing.assert_close(likelihood.log_std, expected.log() / 2)


def test_optimal_scale_in_evaluation():
    likelihood = OptimalGaussianLikelihood((4,)).double()
    likelihood(torch.randn(5, 4), 1).log_prob(torch.randn(5, 4))
    likelihood.eval()
    before = {name: buffer.clone() for name, buffer in likelihood.named_buffers()}
    mean, x = torch.randn(5, 4), 9 * torch.randn(5, 4)
    expected = scipy.stats.norm.logpdf(x, mean, before["mean_square"].sqrt()).sum(1)
    np.testing.assert_allclose(likelihood(mean, 1).log_prob(x), expected, rtol=1e-10)
    assert all(torch.equal(buffer, before[name]) for name, buffer in likelihood.named_buffers())


def test_optimal_scale_has_a_minimum():
    likelihood = OptimalGaussianLikelihood(minimum=0.1).double()
    x = torch.randn(5, 4)
    expected = scipy.stats.norm.logpdf(x, x, 0.1).sum(1)
    np.testing.assert_allclose(likelihood(x, 1).log_prob(x), expected, rtol=1e-10)
    np.testing.assert_allclose(likelihood.eval()(x, 1).log_prob(x), expected, rtol=1e-10)


def test_optimal_scale_is_no_density_in_training():
    vae = make_vae(OptimalGaussianLikelihood(), (4,))
    x = torch.randn(6, 4)
    for training in (True, False):
        vae.train(training)
        assert vae.likelihood.is_density is not training
        assert vae.decode(torch.randn(3, 2)).is_density is not training
        assert vae.likelihood.couples_batch
        assert not ELBO().is_bound(vae)  # which speaks of training
    assert evaluate(vae, x, elbo_samples=2, importance_samples=2).is_bound
    vae.train()
    assert evaluate(vae, x, elbo_samples=2, importance_samples=2).is_bound
    assert ELBO().check(vae, Batch(x)).endswith(": not a bound on log p(x)")
    assert vae.likelihood.num_batches == 0


def test_optimal_scale_must_broadcast():
    with pytest.raises(ValueError, match=r"does not broadcast over data of shape \(4,\)"):
        OptimalGaussianLikelihood((2, 4)).check_support(torch.zeros(5, 4))


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *[(lambda v=v: GaussianLikelihood(v), f"number > 0, got {v}") for v in (0.0, -1.0)],
        *[(lambda v=v: Fixed(v), f"number > 0, got {v}") for v in (math.inf, math.nan)],
        (lambda: GaussianLikelihood("fixed"), r"'predicted', Learned\(\.\.\.\).*got 'fixed'"),
        (lambda: LaplaceLikelihood("optimal"), "got 'optimal'"),
        (lambda: StudentTLikelihood(df="none"), "got 'none'"),
        (lambda: LogNormalLikelihood(-0.5), "number > 0, got -0.5"),
        (lambda: BetaLikelihood(0.0), "number > 0, got 0.0"),
        (lambda: NegativeBinomialLikelihood(-2.0), "number > 0, got -2.0"),
        (lambda: Learned(minimum=0.0), "minimum > 0, got 0.0"),
        (lambda: Learned(minimum=math.inf), "minimum > 0, got inf"),
        (lambda: Learned(initial=1e-3), "initial value above minimum = 0.001, got 0.001"),
        (lambda: Learned(initial=math.inf), "got inf"),
        (lambda: Learned(num_classes=0), "num_classes >= 1 or None, got 0"),
        (lambda: Predicted(minimum=-1.0), "minimum > 0, got -1.0"),
        (lambda: OptimalGaussianLikelihood(minimum=0.0), "minimum > 0, got 0.0"),
        (lambda: CategoricalLikelihood(1), "num_classes >= 2, got 1"),
        (lambda: DiscretizedLogisticLikelihood(1), "num_levels >= 2, got 1"),
        (lambda: PoissonLikelihood(0.0), "finite counts > 0, got 0.0"),
        (lambda: PoissonLikelihood([1.0, math.nan]), r"finite counts > 0, got \[1.0, nan\]"),
        (lambda: NegativeBinomialLikelihood(baseline=-1.0), "finite counts > 0, got -1.0"),
        (lambda: MixtureLikelihood(GaussianLikelihood(), 1), "num_components >= 2, got 1"),
        (lambda: StandardizedLikelihood(GaussianLikelihood(), std=0.0), "finite std > 0"),
        (lambda: StandardizedLikelihood(GaussianLikelihood(), mean=math.nan), "finite means"),
        (lambda: StandardizedLikelihood(GaussianLikelihood(), std=[1.0, -1.0]), "finite std > 0"),
        (lambda: MixedLikelihood([]), "columns of different names"),
        (lambda: MixedLikelihood([("a", "number"), ("a", "count")]), "columns of different names"),
        (lambda: MixedLikelihood([("a", "number")], {"b": GaussianLikelihood()}), r"names \['b'\]"),
        (lambda: Column("a", "text"), "kind of .*got 'text'"),
        (lambda: Column("a", "category", ("x",)), "two or more levels, got 1"),
        (lambda: Column("a", "number", scale=0.0), "finite scale > 0"),
    ],
)
def test_constructor_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "wrap", [MaskedLikelihood, StandardizedLikelihood, lambda p: MixtureLikelihood(p, 2)]
)
@pytest.mark.parametrize(
    ("inner", "remedy"),
    [
        (OptimalGaussianLikelihood, "take GaussianLikelihood"),
        (OneHotLikelihood, "take CategoricalLikelihood"),
        (lambda: MaskedLikelihood(GaussianLikelihood()), "put MaskedLikelihood outermost"),
    ],
)
def test_what_is_no_product_over_dimensions_is_not_wrapped(wrap, inner, remedy):
    with pytest.raises(TypeError, match=f"product over data dimensions, got .*: {remedy}"):
        wrap(inner())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskedLikelihood(GaussianLikelihood), "expects a likelihood, got a ABCMeta"),
        (lambda: ZeroInflatedLikelihood(GaussianLikelihood()), "of counts, such as .*got Gaussian"),
        (lambda: ZeroInflatedLikelihood(BernoulliLikelihood()), "got BernoulliLikelihood"),
        (lambda: StandardizedLikelihood(PoissonLikelihood()), "whose masses know no units"),
        (lambda: StandardizedLikelihood(CategoricalLikelihood(3)), "whose masses know no units"),
    ],
)
def test_what_cannot_be_wrapped(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2, 3, 1), (4, 1, 1)])
def test_a_learned_scale_must_broadcast_over_the_data(shape):
    with pytest.raises(ValueError, match=r"does not broadcast over data of shape \(2, 3, 1\)"):
        GaussianLikelihood(Learned(shape)).check_support(torch.zeros(5, 2, 3, 1))


@pytest.mark.parametrize(
    "rows", [[[1.0, 1.0, 0.0]], [[0.0, 0.0, 0.0]], [[0.5, 0.5, 0.0]], [[2.0, -1.0, 0.0]]]
)
def test_rows_that_are_not_one_hot(rows):
    with pytest.raises(ValueError, match=r"OneHotLikelihood expects one-hot rows.*1 of 1 examples"):
        OneHotLikelihood().check_support(torch.tensor(rows))


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-1, 1), (0, 1.5)])
def test_bernoulli_outside_the_unit_interval(low, high):
    x = torch.tensor([[0.0, low], [1.0, high]])
    with pytest.raises(ValueError, match=rf"in \[0, 1\], got {low}\.\.{high}.*: binarize"):
        BernoulliLikelihood().check_support(x)


def test_bernoulli_warns_of_gray():
    with pytest.warns(UserWarning, match="no bound on log p.*DynamicBinarization"):
        assert BernoulliLikelihood().check_support(torch.tensor([[0.0, 0.5, 1.0]])) is False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert BernoulliLikelihood().check_support(torch.tensor([[0.0, 1.0]])) is True


def test_a_masked_entry_is_fed_as_zero_and_shown():
    x = torch.tensor([[1.0, math.nan, -2.0]])
    fed = MaskedLikelihood(GaussianLikelihood()).encoder_input(x)
    assert fed.tolist() == [[1.0, 0.0, -2.0]]
    fed = MaskedLikelihood(GaussianLikelihood(), show_mask=True).encoder_input(x)
    assert fed.tolist() == [[1.0, 0.0, -2.0, 1.0, 0.0, 1.0]]


# Own likelihoods ----------------------------------------------------------------------------------


class OwnLaplace(Likelihood):
    num_params = 2

    def elementwise(self, mean, log_scale):
        base = torch.distributions.Laplace(mean, log_scale.exp(), validate_args=False)
        return TorchDistribution(base)


class OwnGumbel(Likelihood):
    def __init__(self, shape):
        super().__init__()
        self.scale = Learned(shape)

    def elementwise(self, loc, log_scale):
        base = torch.distributions.Gumbel(loc, log_scale.exp(), validate_args=False)
        return TorchDistribution(base)


def test_own_likelihood_needs_one_hook():
    likelihood, params, x = OwnLaplace(), torch.randn(3, 5, 2, 2, 3, 1), torch.randn(5, 2, 3, 1)
    assert likelihood.param_shape((2, 3, 1)) == (2, 2, 3, 1)
    mean, log_scale = params.unbind(2)
    expected = scipy.stats.laplace.logpdf(x, mean, log_scale.exp()).sum((2, 3, 4))
    np.testing.assert_allclose(likelihood(params, 3).log_prob(x), expected, rtol=1e-12)
    assert likelihood.check_support(x) is True


@pytest.mark.parametrize("shape", [(), (2, 1, 1), (2, 3, 1)])
def test_own_likelihood_with_a_learned_scale(shape):
    likelihood = OwnGumbel(shape).double()
    with torch.no_grad():
        likelihood.scale.raw.normal_()
    params, x = torch.randn(3, 5, 2, 3, 1), torch.randn(5, 2, 3, 1)
    scale = np.exp(learned(likelihood.scale, None, 3))
    expected = scipy.stats.gumbel_r.logpdf(x, params, scale).sum((2, 3, 4))
    log_prob = likelihood(params, 3).log_prob(x)
    np.testing.assert_allclose(log_prob.detach(), expected, rtol=1e-12)
    log_prob.sum().backward()
    assert (likelihood.scale.raw.grad != 0).all()
    with pytest.raises(ValueError, match="does not broadcast"):
        OwnGumbel((7,)).check_support(x)


def test_own_likelihood_is_wrapped_like_any():
    params, x = torch.randn(3, 5, 6, 4), torch.randn(5, 4)
    likelihood = MixtureLikelihood(OwnLaplace(), 2)
    parts = params.unflatten(2, (3, 2))
    each = scipy.stats.laplace.logpdf(x[:, None], parts[:, :, 1], parts[:, :, 2].exp())
    mixed = scipy.special.logsumexp(each + parts[:, :, 0].log_softmax(2).numpy(), axis=2)
    np.testing.assert_allclose(likelihood(params, 1).log_prob(x), mixed.sum(-1), rtol=1e-12)
    seen = x.clone()
    seen[:, 1] = math.nan
    log_prob = MaskedLikelihood(likelihood)(params, 1).log_prob(seen)
    np.testing.assert_allclose(log_prob, mixed[..., [0, 2, 3]].sum(-1), rtol=1e-12)


def test_a_torch_distribution_must_be_wrapped():
    class Unwrapped(Likelihood):
        def elementwise(self, *params):
            return torch.distributions.Laplace(params[0], 1.0)

    with pytest.raises(TypeError, match=r"must return a tinyvae Distribution, got a Laplace: wrap"):
        Unwrapped()(torch.zeros(2, 3), 1)


def test_a_likelihood_without_a_hook():
    with pytest.raises(NotImplementedError, match="must define elementwise"):
        type("Nothing", (Likelihood,), {})()(torch.zeros(2, 3), 1)


# Whole models -------------------------------------------------------------------------------------


def log_evidence(vae, x, num_nodes):
    """log p(x) ``(B,)`` by quadrature over one or two latents."""
    nodes, log_weights = gauss_hermite(num_nodes, vae.latent_shape.numel())
    log_px = vae.decode(nodes[:, None]).log_prob(x)  # (n, B)
    return (log_px + log_weights[:, None]).logsumexp(0)


@pytest.mark.parametrize(
    ("likelihood", "num_values", "event", "latent_dim"),
    [
        (BernoulliLikelihood(), 2, (1, 3, 3), 1),
        (BernoulliLikelihood(), 2, (10,), 2),
        (CategoricalLikelihood(3), 3, (4,), 2),
        (DiscretizedLogisticLikelihood(4), 4, (2, 2), 1),
        (DiscretizedLogisticLikelihood(3, "learned"), 3, (4,), 2),
        (MixtureLikelihood(DiscretizedLogisticLikelihood(4), 2), 4, (4,), 2),
    ],
)
def test_the_evidence_of_all_data_is_one(likelihood, num_values, event, latent_dim):
    vae = make_vae(likelihood, event, latent_dim)
    values = [torch.arange(num_values, dtype=torch.float64).tolist()] * math.prod(event)
    x = torch.tensor(list(itertools.product(*values))).reshape(-1, *event)
    with torch.no_grad():
        log_px = log_evidence(vae, x, num_nodes=12)
        finer = log_evidence(vae, x[:5], num_nodes=13)
    assert log_px.exp().sum().item() == pytest.approx(1, abs=1e-10)
    assert (finer - log_px[:5]).abs().max() < 0.1
    assert log_px.std() > 0


def test_the_evidence_of_one_hot_data_is_one():
    vae = make_vae(OneHotLikelihood(), (3, 4))
    index = torch.tensor(list(itertools.product(range(3), repeat=4)))
    x = torch.nn.functional.one_hot(index, 3).movedim(-1, 1).double()
    with torch.no_grad():
        assert log_evidence(vae, x, num_nodes=12).exp().sum().item() == pytest.approx(1, abs=1e-10)


def test_a_mixture_of_categories_is_refused():
    with pytest.raises(TypeError, match="a mixture of which is another one"):
        MixtureLikelihood(CategoricalLikelihood(3), 2)


@pytest.mark.parametrize(
    "likelihood",
    [
        PoissonLikelihood([1.0, 2.0, 3.0]),
        StandardizedLikelihood(GaussianLikelihood(), mean=[1.0, 2.0, 3.0]),
        StandardizedLikelihood(GaussianLikelihood(Learned((3,)))),
        MixtureLikelihood(GaussianLikelihood(Learned((3,))), 2),
        OptimalGaussianLikelihood((3,)),
    ],
    ids=lambda likelihood: repr(likelihood)[:40],
)
def test_what_does_not_broadcast_is_refused(likelihood):
    with pytest.raises(ValueError, match=r"does not broadcast over data of shape \(4,\)"):
        likelihood.check_support(torch.ones(5, 4))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_classes_of_any_integer_dtype(dtype):
    likelihood = GaussianLikelihood(Learned(num_classes=3))
    with torch.no_grad():
        likelihood.std.raw.copy_(torch.tensor([0.0, 1.0, 2.0]))
    context = torch.tensor([0, 1, 0])
    expected = likelihood(torch.zeros(3, 2), 1, context).log_prob(torch.ones(3, 2))
    got = likelihood(torch.zeros(3, 2), 1, context.to(dtype)).log_prob(torch.ones(3, 2))
    assert torch.equal(got, expected)


def test_a_standardized_likelihood_refuses_integers_and_masses():
    with pytest.raises(TypeError, match=r"expects floating-point data, got torch.uint8"):
        StandardizedLikelihood(GaussianLikelihood()).check_support(torch.zeros(3, 2).byte())
    with pytest.raises(TypeError, match="got BernoulliLikelihood, whose masses know no units"):
        StandardizedLikelihood(BernoulliLikelihood())


@pytest.mark.parametrize(
    "context",
    [
        torch.tensor([0, 1, 2, 1, 3]),
        torch.tensor([0, -1, 2, 1, 0]),
        torch.full((5, 3), 10.0),
        torch.zeros(5, 2),
        None,
    ],
)
def test_classes_are_checked_before_they_are_used(context):
    likelihood = MaskedLikelihood(GaussianLikelihood(Learned(num_classes=3)))
    likelihood.check_context(torch.tensor([0, 1, 2, 1, 2]))
    likelihood.check_context(torch.eye(3))
    with pytest.raises(ValueError, match=r"expects (a context of class indices|classes 0 to 2)"):
        likelihood.check_context(context)


def test_densities_are_taken_in_float32_under_autocast():
    vae = make_vae(PoissonLikelihood(300.0), (4,)).float()
    z, x = torch.randn(1, 5, 2).float(), torch.poisson(torch.full((5, 4), 300.0)).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert vae.decode(z).log_prob(x).dtype == torch.float32
