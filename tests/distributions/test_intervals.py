"""Log probabilities of intervals, against many digits."""

import math

import mpmath
import pytest
import scipy.stats
import torch
from helpers.cases import for_each

from tinyvae.distributions import (
    Affine,
    Bernoulli,
    Categorical,
    CensoredDistribution,
    DiscretizedLogistic,
    Hurdle,
    Laplace,
    LogitNormal,
    LogNormal,
    MaskedDistribution,
    Mixture,
    Normal,
    Ordinal,
    StudentT,
    log_interval,
)

pytestmark = pytest.mark.usefixtures("float64")


def laplace_cdf(u):
    return mpmath.exp(u) / 2 if u < 0 else 1 - mpmath.exp(-u) / 2


def exact(cdf, mean, log_std, low, high):
    """Return the log probability of an interval of a symmetric family with 60 digits."""
    with mpmath.workdps(60):
        scale = mpmath.exp(mpmath.mpf(log_std))
        a, b = (
            mpmath.mpf(x) if math.isinf(x) else (mpmath.mpf(x) - mpmath.mpf(mean)) / scale
            for x in (low, high)
        )
        if a > 0:
            a, b = -b, -a
        lower = mpmath.mpf(0) if a == -mpmath.inf else cdf(a)
        upper = mpmath.mpf(1) if b == mpmath.inf else cdf(b)
        return float(mpmath.log(upper - lower))


@for_each(("make", "cdf"), [(Normal, mpmath.ncdf), (Laplace, laplace_cdf)])
@for_each(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
def test_log_interval_keeps_its_digits_in_tails_and_narrow_intervals(make, cdf, dtype, limit):
    mean, log_std, far = torch.randn(3, 300, dtype=torch.float64)
    width = 10 ** (torch.rand(300, dtype=torch.float64) * 8 - 6)
    low = mean + log_std.exp() * far * 6
    high = low + log_std.exp() * width
    low[::7], high[1::7] = -math.inf, math.inf
    low[14], high[14] = -math.inf, math.inf
    mean, log_std, low, high = (t.to(dtype) for t in (mean, log_std, low, high))
    mean.requires_grad_()
    log_std.requires_grad_()
    got = log_interval(make(mean, log_std), low, high)
    gradients = torch.autograd.grad(got.sum(), (mean, log_std))
    assert all(torch.isfinite(g).all() for g in gradients)
    for i in range(300):
        numbers = (t[i].item() for t in (mean, log_std, low, high))
        if low[i] < high[i]:  # float32 may round them to one number
            want = exact(cdf, *numbers)
            assert abs(got[i].item() - want) <= limit * max(1, abs(want)), i


@for_each("make", [Normal, Laplace])
def test_log_interval_passes_gradcheck(make):
    low = torch.tensor([-math.inf, 0.3, -1.0, 5.0, 0.29, -6.0])
    high = torch.tensor([0.5, math.inf, 2.0, 5.001, 0.3, math.inf])
    mean, log_std = torch.randn(2, 6)
    inputs = (mean.requires_grad_(), (log_std / 2).detach().requires_grad_())
    assert torch.autograd.gradcheck(lambda m, s: log_interval(make(m, s), low, high), inputs)


def test_log_interval_far_beyond_float32_is_finite():
    mean = torch.tensor([0.0, 1e30, -1e30], dtype=torch.float32, requires_grad=True)
    p = Normal(mean, torch.full((3,), -60.0, dtype=torch.float32))
    got = log_interval(p, mean.new_tensor(1.0), mean.new_tensor(2.0))
    (gradient,) = torch.autograd.grad(got.sum(), mean)
    assert torch.isfinite(got).all()
    assert torch.isfinite(gradient).all()


def test_log_interval_of_other_families():
    low, high = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([3.0, 1.5, math.inf])
    mean, log_std = torch.randn(3), torch.randn(3) / 2
    log_normal = scipy.stats.lognorm(log_std.exp(), scale=mean.exp())
    want = torch.from_numpy(log_normal.cdf(high) - log_normal.cdf(low)).log()
    torch.testing.assert_close(log_interval(LogNormal(mean, log_std), low, high), want)
    base = Normal(mean, log_std)
    shifted = Affine(base, torch.tensor(2.0), torch.tensor(0.5))
    want = log_interval(base, (low - 2) / 0.5, (high - 2) / 0.5)
    torch.testing.assert_close(log_interval(shifted, low, high), want)
    logits = torch.randn(2, 3)
    mixture = Mixture(logits, Normal(torch.randn(2, 3), torch.zeros(2, 3)), -2)
    each = log_interval(mixture.components, low, high)
    want = (logits.log_softmax(0) + each).logsumexp(0)
    torch.testing.assert_close(log_interval(mixture, low, high), want)


def test_log_interval_of_bounded_numbers_levels_and_hurdles():
    mean, log_std = torch.randn(3), torch.randn(3) / 2
    p = LogitNormal(mean, log_std, torch.tensor(-1.0), torch.tensor(3.0))
    low, high = torch.tensor([-2.0, 0.5, 1.0]), torch.tensor([0.5, math.inf, 2.5])
    reference = scipy.stats.norm(mean, log_std.exp())
    cdf = [reference.cdf(torch.logit((b.clamp(-1, 3) + 1) / 4)) for b in (low, high)]
    want = torch.from_numpy(cdf[1] - cdf[0]).log()
    torch.testing.assert_close(log_interval(p, low, high), want)
    levels = Ordinal(mean, torch.tensor(-1.0), torch.zeros(2))
    x = torch.arange(4.0)[:, None].expand(4, 3)
    inside = (x >= low) & (x <= high)
    want = torch.where(inside, levels.log_prob(x).exp(), 0.0).sum(0).log()
    torch.testing.assert_close(log_interval(levels, low, high), want)
    base = Normal(mean, log_std)
    logits, points = torch.randn(2, 3), torch.tensor([[0.0], [2.0]])
    hurdle = Hurdle(base, logits, points, -2, torch.tensor(1.0))
    shares = torch.cat([logits, torch.zeros(1, 3)]).softmax(0)
    each = torch.where((points >= low) & (points <= high), shares[:2], 0.0).sum(0)
    want = (each + shares[2] * log_interval(base, low, high).exp()).log()
    torch.testing.assert_close(log_interval(hurdle, low, high), want)


def test_log_interval_of_classes_sums_their_masses():
    low, high = torch.tensor([1.0, 0.5, -math.inf]), torch.tensor([2.0, math.inf, 0.0])
    p = Categorical(torch.randn(3, 4))
    x = torch.arange(4.0)[:, None]
    inside = (x >= low) & (x <= high)
    want = torch.where(inside, p.log_prob(x.expand(4, 3)).exp(), 0.0).sum(0).log()
    torch.testing.assert_close(log_interval(p, low, high), want)
    levels = DiscretizedLogistic(torch.zeros(3), torch.zeros(3), 4)
    want = torch.where(inside, levels.log_prob(x.expand(4, 3)).exp(), 0.0).sum(0).log()
    torch.testing.assert_close(log_interval(levels, low, high), want)
    coin = Bernoulli(torch.randn(3))
    got = log_interval(coin, torch.full((3,), 0.5), torch.full((3,), math.inf))
    torch.testing.assert_close(got, coin.log_prob(torch.ones(3)))


def test_log_interval_refuses_other_families():
    zero = torch.zeros(2)
    with pytest.raises(TypeError, match=r"no distribution function of StudentT\(.*: use a Gauss"):
        log_interval(StudentT(zero, zero, zero), zero, zero + 1)


# Pairs --------------------------------------------------------------------------------------------


def test_censored_distribution_scores_exact_values_and_bounds():
    base = Normal(torch.tensor([0.3, -1.0, 0.5, 2.0]), torch.tensor([0.0, 0.2, -0.3, 0.1]))
    p = CensoredDistribution(base, torch.tensor(0.0))
    inf = math.inf
    x = torch.tensor([[0.4, 0.4], [1.0, inf], [-inf, 0.2], [1.0, 2.5]])
    reference = scipy.stats.norm(base.mean, base.stddev)
    want = [
        reference.logpdf(0.4)[0],
        reference.logsf(1.0)[1],
        reference.logcdf(0.2)[2],
        math.log(reference.cdf(2.5)[3] - reference.cdf(1.0)[3]),
    ]
    torch.testing.assert_close(p.log_prob(x), torch.tensor(want))
    draws = p.sample((5,))
    assert draws.shape == (5, 4, 2)
    assert torch.equal(draws[..., 0], draws[..., 1])
    assert torch.equal(p.mean, torch.stack([base.mean, base.mean], -1))


def test_masked_pairs_are_missing_as_a_whole():
    mean = torch.zeros(3, requires_grad=True)
    p = MaskedDistribution(
        CensoredDistribution(Normal(mean, torch.zeros(3)), torch.tensor(0.0)), torch.tensor(0.0)
    )
    nan = math.nan
    x = torch.tensor([[nan, nan], [nan, 1.0], [1.0, 1.0]])
    log_prob = p.log_prob(x)
    (gradient,) = torch.autograd.grad(log_prob.sum(), mean)
    assert torch.equal(log_prob[:2], torch.zeros(2))
    torch.testing.assert_close(gradient, torch.tensor([0.0, 0.0, 1.0]))
