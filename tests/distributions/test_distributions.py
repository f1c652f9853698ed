import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
import torch.distributions as td
from helpers.cases import for_each
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from tinyvae.distributions import (
    Bernoulli,
    Independent,
    Normal,
    TorchDistribution,
    has_closed_form,
    kl_divergence,
)
from tinyvae.errors import NoClosedFormError

pytestmark = pytest.mark.usefixtures("float64")


def torch_normal(mean, log_std):
    return td.Normal(mean, log_std.exp(), validate_args=False)


def torch_bernoulli(logits):
    return td.Bernoulli(logits=logits, validate_args=False)


def torch_laplace(mean, log_scale):
    return td.Laplace(mean, log_scale.exp(), validate_args=False)


# name: (ours, torch's, shapes of the parameters)
FAMILIES = {
    "normal": (Normal, torch_normal, [(4, 3), (4, 3)]),
    "normal with one scale": (Normal, torch_normal, [(4, 3), ()]),
    "normal with one mean": (Normal, torch_normal, [(3,), (4, 3)]),
    "bernoulli": (Bernoulli, torch_bernoulli, [(4, 3)]),
    "independent normal": (
        lambda m, s: Independent(Normal(m, s), 1),
        lambda m, s: td.Independent(torch_normal(m, s), 1),
        [(4, 3), (4, 3)],
    ),
    "independent bernoulli": (
        lambda logits: Independent(Bernoulli(logits), 2),
        lambda logits: td.Independent(torch_bernoulli(logits), 2),
        [(2, 4, 3)],
    ),
    "no event dimensions": (
        lambda m, s: Independent(Normal(m, s), 0),
        torch_normal,
        [(4, 3), (4, 3)],
    ),
    "torch laplace": (
        lambda m, s: TorchDistribution(torch_laplace(m, s)),
        torch_laplace,
        [(4, 3), (4, 3)],
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    ours, reference, shapes = FAMILIES[request.param]
    params = [torch.randn(shape) for shape in shapes]
    return ours(*params), reference(*params), ours, params


@for_each(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@for_each("sample_shape", [(), (5,), (2, 5)])
def test_agrees_with_torch(family, sample_shape, dtype, tolerance):
    _, reference, make, params = family
    ours = make(*[p.to(dtype) for p in params])
    value = reference.sample(sample_shape)
    log_prob = ours.log_prob(value.to(dtype))
    assert log_prob.dtype == dtype
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(log_prob.double(), reference.log_prob(value), **close)
    torch.testing.assert_close(ours.mean.double(), reference.mean, **close)
    assert ours.batch_shape == reference.batch_shape
    assert ours.event_shape == reference.event_shape
    assert ours.sample(sample_shape).shape == value.shape
    assert ours.sample(sample_shape).dtype == dtype


def test_log_prob_agrees_with_scipy():
    mean, log_std, x = torch.randn(3, 50)
    expected = scipy.stats.norm.logpdf(x, mean, log_std.exp())
    np.testing.assert_allclose(Normal(mean, log_std).log_prob(x), expected, rtol=0, atol=1e-10)
    bits = (x > 0).double()
    expected = scipy.stats.bernoulli.logpmf(bits, scipy.special.expit(mean.numpy()))
    np.testing.assert_allclose(Bernoulli(mean).log_prob(bits), expected, rtol=0, atol=1e-10)


def test_bernoulli_is_exact_in_the_tails():
    logits = torch.tensor([200.0, -200.0], dtype=torch.float32)
    assert Bernoulli(logits).log_prob(torch.tensor([1.0, 0.0])).tolist() == [0.0, 0.0]
    assert Bernoulli(logits).log_prob(torch.tensor([0.0, 1.0])).tolist() == [-200.0, -200.0]


def test_samples_carry_gradients_if_has_rsample(family):
    _, reference, make, params = family
    params = [p.clone().requires_grad_() for p in params]
    ours = make(*params)
    assert ours.has_rsample == reference.has_rsample
    assert ours.sample().requires_grad == ours.has_rsample


def test_gradients_of_log_prob(family):
    _, reference, make, params = family
    value = reference.sample((2,))
    params = [p.clone().requires_grad_() for p in params]
    assert gradcheck(lambda *p: make(*p).log_prob(value), params)


def test_gradients_of_draws():
    def draw(mean, log_std):
        torch.manual_seed(1)
        return Normal(mean, log_std).sample((3,))

    assert gradcheck(draw, (torch.randn(2).requires_grad_(), torch.randn(2).requires_grad_()))


@for_each(
    "distribution",
    [
        lambda: Normal(torch.tensor(0.7), torch.tensor(-0.4)),
        lambda: TorchDistribution(torch_laplace(torch.tensor(-1.0), torch.tensor(0.3))),
    ],
)
def test_draws_follow_the_density(distribution):
    distribution = distribution()
    grid = np.linspace(-60, 60, 240_001)
    density = distribution.log_prob(torch.from_numpy(grid)).exp().numpy()
    cdf = scipy.integrate.cumulative_trapezoid(density, grid, initial=0)
    assert cdf[-1] == pytest.approx(1, abs=1e-7)
    draws = distribution.sample((20_000,)).numpy()
    assert scipy.stats.kstest(draws, lambda x: np.interp(x, grid, cdf)).pvalue > 1e-4


def test_bernoulli_draws_follow_the_mass():
    distribution = Bernoulli(torch.tensor([-2.0, 0.3]))
    mass = distribution.log_prob(torch.tensor([[0.0], [1.0]])).exp()  # (2 values, 2 logits)
    torch.testing.assert_close(mass.sum(0), torch.ones(2))
    draws = distribution.sample((20_000,))
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    ones = draws.sum(0)
    counts = torch.stack([len(draws) - ones, ones])
    assert (scipy.stats.chisquare(counts, mass * len(draws)).pvalue > 1e-4).all()


def test_draws_of_an_event_are_independent():
    draws = Independent(Normal(torch.zeros(2), torch.zeros(2)), 1).sample((20_000,))
    assert abs(torch.corrcoef(draws.T)[0, 1]) < 4 / math.sqrt(len(draws))


@for_each("shape", [(3, 5), (2,), (), (3,)])
def test_wrong_event_shape(shape):
    p = Independent(Normal(torch.zeros(4, 2, 3), torch.zeros(4, 2, 3)), 2)
    with pytest.raises(ValueError, match=r"event shape \(2, 3\), got"):
        p.log_prob(torch.zeros(shape))


def test_too_many_event_dimensions():
    with pytest.raises(ValueError, match=r"at least 2 batch dimensions.*lower event_ndim"):
        Independent(Bernoulli(torch.zeros(3)), 2)


# Kullback-Leibler divergences ---------------------------------------------------------------------

# name: (ours, torch's, shapes of the parameters); q and p are of one family
CLOSED_FORMS = {
    "normal": FAMILIES["normal"],
    "independent normal": FAMILIES["independent normal"],
}
kl_table = for_each("name", CLOSED_FORMS)


def draw_pair(name):
    ours, reference, shapes = CLOSED_FORMS[name]
    params = [[torch.randn(shape) for shape in shapes] for _ in "qp"]
    return [ours(*p) for p in params], [reference(*p) for p in params]


@kl_table
def test_kl_agrees_with_torch(name):
    (q, p), references = draw_pair(name)
    expected = td.kl_divergence(*references)
    torch.testing.assert_close(kl_divergence(q, p), expected, rtol=1e-10, atol=1e-10)


@kl_table
def test_kl_agrees_with_monte_carlo(name):
    (q, p), _ = draw_pair(name)
    z = q.sample((50_000,))
    ratios = q.log_prob(z) - p.log_prob(z)
    error = ratios.std(0) / math.sqrt(len(z))
    assert ((ratios.mean(0) - kl_divergence(q, p)).abs() < 4 * error).all()


@kl_table
def test_kl_is_zero_at_equality(name):
    (q, _), _ = draw_pair(name)
    assert (kl_divergence(q, q) == 0).all()


@kl_table
def test_gradients_of_kl(name):
    make, _, shapes = CLOSED_FORMS[name]
    params = [torch.randn(shape).requires_grad_() for shape in shapes * 2]

    def kl(*params):
        return kl_divergence(make(*params[: len(shapes)]), make(*params[len(shapes) :]))

    assert gradcheck(kl, params)


def test_kl_per_dim_sums_to_kl():
    (q, p), (reference_q, reference_p) = draw_pair("independent normal")
    per_dim = kl_divergence(q, p, per_dim=True)
    expected = td.kl_divergence(reference_q.base_dist, reference_p.base_dist)
    torch.testing.assert_close(per_dim, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(per_dim.sum(1), kl_divergence(q, p), rtol=1e-10, atol=1e-10)


@for_each("dtype", [torch.float32, torch.float64])
def test_kl_of_a_tiny_scale(dtype):
    shape, zero = (2, 3), torch.zeros((), dtype=dtype)
    q = Independent(Normal(zero.expand(shape), (zero - 60).expand(shape)), 1)
    p = Independent(Normal(zero.expand(3), zero.expand(3)), 1)
    assert kl_divergence(q, p, per_dim=True).tolist() == [[59.5] * 3] * 2


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


@for_each(
    ("q", "p"),
    [
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
    ],
)
def test_no_closed_form(q, p):
    assert not has_closed_form(q(), p())
    with pytest.raises(NoClosedFormError, match="use a sampled estimate"):
        kl_divergence(q(), p())


def test_repr_names_family_and_shapes():
    p = Independent(Normal(torch.zeros(5, 2), torch.zeros(5, 2)), 1)
    assert repr(p) == "Independent(Normal, batch_shape=(5,), event_shape=(2,))"
    assert repr(p.base) == "Normal(batch_shape=(5, 2), event_shape=())"
