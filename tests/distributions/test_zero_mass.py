"""Parameters that give some values a mass of zero: exact values, and gradients without NaN."""

import math

import pytest
import torch
from helpers.cases import for_each
from torch import inf

from tinyvae.distributions import (
    Bernoulli,
    Categorical,
    CodebookCategorical,
    Mixture,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    Poisson,
    StraightThrough,
    ZeroInflated,
    kl_divergence,
)
from tinyvae.distributions.bernoulli_sum import PIECE

dtypes = for_each("dtype", [torch.float32, torch.float64])


def with_gradients(function, *params):
    """Return the value, after checking that no gradient is NaN."""
    params = [p.clone().requires_grad_() for p in params]
    value = function(*params)
    for gradient in torch.autograd.grad(value.sum(), params):
        assert not gradient.isnan().any()
    return value.detach()


@dtypes
def test_bernoulli_of_infinite_logits(dtype):
    logits = torch.tensor([-inf, inf, -inf, inf, -inf, inf, 2.0], dtype=dtype)
    x = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.5, 0.5, 0.5], dtype=dtype)
    got = with_gradients(lambda p: Bernoulli(p).log_prob(x), logits)
    assert got[:-1].tolist() == [0.0, 0.0, -inf, -inf, -inf, -inf]
    assert torch.equal(got[-1], Bernoulli(logits[-1]).log_prob(x[-1]))
    assert Bernoulli(logits).log_prob(torch.tensor(math.nan))[-1].isnan()
    assert torch.equal(Bernoulli(logits[:2]).sample((9,)), x[:2].expand(9, 2))


@for_each("with_gradient", [True, False])
def test_sum_of_many_bernoulli_masses_with_infinite_logits(with_gradient):
    logits = torch.randn(2, PIECE).requires_grad_(with_gradient)
    values = (torch.rand(PIECE) > 0.5).float()
    certain = logits.detach().clone()
    certain[:, :9] = torch.where(values[:9] > 0, inf, -inf)
    certain[1, 9] = torch.where(values[9] > 0, -inf, inf)
    certain.requires_grad_(with_gradient)
    total = Bernoulli(certain).summed_log_prob(values, 1)
    rest = Bernoulli(logits[:, 9:]).summed_log_prob(values[9:], 1)
    torch.testing.assert_close(total[0], rest[0])
    assert total[1] == -inf
    if with_gradient:
        assert not torch.autograd.grad(total.sum(), certain)[0].isnan().any()


@dtypes
@for_each("family", [OneHotCategorical, StraightThrough])
def test_one_hot_class_that_is_ruled_out(family, dtype):
    logits = torch.tensor([1.0, -inf, 0.0], dtype=dtype)
    eye = torch.eye(3, dtype=dtype)
    expected = torch.tensor([1.0, 0.0], dtype=dtype).log_softmax(0)
    for rows in ([0, 2], [0, 1, 2]):
        got = with_gradients(lambda p, rows=rows: family(p, 1).log_prob(eye[rows]), logits)
        torch.testing.assert_close(got[[0, -1]], expected)
        assert got[1:-1].tolist() == [-inf] * (len(rows) - 2)
    drawn = family(logits.requires_grad_(), 1).sample((99,))
    assert (drawn[:, 1] == 0).all()
    log_prob = family(logits, 1).log_prob(drawn)
    assert log_prob.isfinite().all()
    assert torch.autograd.grad(log_prob.sum(), logits)[0].isfinite().all()


@for_each("family", [OneHotCategorical, StraightThrough])
@dtypes
def test_entropy_of_classes_that_are_ruled_out_or_underflow(family, dtype):
    logits = torch.tensor([[0.0, -inf, 1.0], [0.0, -900.0, 1.0], [0.0, -inf, -inf]], dtype=dtype)
    entropy = with_gradients(lambda x: family(x, 1).entropy(), logits)
    share = torch.sigmoid(torch.tensor(1.0, dtype=dtype))  # of two classes with logits 0 and 1
    exact = -(share * share.log() + (1 - share) * torch.log(1 - share))
    torch.testing.assert_close(entropy, torch.stack([exact, exact, 0 * exact]))


@dtypes
def test_kl_of_classes_that_are_ruled_out(dtype):
    full, one, other = (
        torch.tensor(row, dtype=dtype)
        for row in ([1.0, 0.5, 0.0], [1.0, -inf, 0.0], [-inf, 0.0, 0.0])
    )

    def kl(q, p):
        return kl_divergence(OneHotCategorical(q, 1), OneHotCategorical(p, 1))

    q = one[[0, 2]].softmax(0)
    expected = (q * (q.log() - full.log_softmax(0)[[0, 2]])).sum()
    torch.testing.assert_close(with_gradients(kl, one, full), expected)
    assert with_gradients(kl, one, one) == 0
    for q, p in ((full, one), (one, other), (other, one)):
        assert with_gradients(kl, q, p) == inf
    rows = with_gradients(kl, torch.stack([one, full]), torch.stack([full, one]))
    torch.testing.assert_close(rows[0], expected)
    assert rows[1] == inf


@dtypes
def test_classes_and_codes_that_are_ruled_out(dtype):
    logits = torch.tensor([1.0, -inf, 0.0], dtype=dtype)
    index, book = torch.arange(3), torch.eye(3, dtype=dtype)
    expected = [math.log(1 / (1 + math.exp(-1))), -inf, math.log(1 / (1 + math.e))]
    for scored in (
        lambda p: Categorical(p).log_prob(index),
        lambda p: CodebookCategorical(p, book).log_mass(index),
        lambda p: CodebookCategorical(p, book).log_prob(book),
    ):
        assert with_gradients(scored, logits).tolist() == pytest.approx(expected)
    assert (Categorical(logits).sample((99,)) != 1).all()
    assert (CodebookCategorical(logits, book).sample((99,))[:, 1] == 0).all()
    assert Categorical(logits).mean.item() == pytest.approx(2 / (1 + math.e))


@dtypes
def test_mixture_component_of_weight_zero(dtype):
    logits = torch.tensor([1.0, -inf, 0.0], dtype=dtype)
    means, zero = torch.tensor([0.0, 1.0, 2.0], dtype=dtype), torch.zeros(3, dtype=dtype)
    kept, x = [0, 2], torch.tensor(0.5, dtype=dtype)
    got = with_gradients(lambda w, m: Mixture(w, Normal(m, zero)).log_prob(x), logits, means)
    without = Mixture(logits[kept], Normal(means[kept], zero[kept]))
    torch.testing.assert_close(got, without.log_prob(x))
    far = Mixture(logits, Poisson(torch.tensor([0.0, 800.0, 1.0], dtype=dtype)))  # of mean infinity
    assert far.mean.item() == pytest.approx((math.e + math.e) / (1 + math.e))
    assert far.sample((99,)).max() < 30


@dtypes
def test_counts_of_mean_zero_and_infinity(dtype):
    infinite = 800.0 if dtype == torch.float64 else 90.0
    log_mean = torch.tensor([-inf, -2 * infinite, 0.0, infinite], dtype=dtype)
    for make in (Poisson, lambda m: NegativeBinomial(m, torch.zeros_like(m))):
        zero, three = (
            with_gradients(lambda m, x=x, make=make: make(m).log_prob(x), log_mean)
            for x in (torch.zeros(4, dtype=dtype), torch.full((4,), 3.0, dtype=dtype))
        )
        assert zero[:2].tolist() == [0, 0]
        assert three[0] == -inf
        assert not torch.stack([zero, three]).isnan().any()
        draws = make(log_mean).sample((99,))
        assert (draws[:, :2] == 0).all()
        assert (draws >= 0).all()


@dtypes
def test_zero_inflation_by_nothing_and_by_everything(dtype):
    logits, x = torch.tensor([-inf, inf], dtype=dtype), torch.tensor([[0.0], [2.0]], dtype=dtype)
    for log_mean in (-inf, 0.0):
        base = Poisson(torch.tensor(log_mean, dtype=dtype).expand(2))
        got = with_gradients(lambda w, base=base: ZeroInflated(base, w).log_prob(x), logits)
        assert torch.equal(got[:, 0], base.log_prob(x)[:, 0])
        assert got[:, 1].tolist() == [0, -inf]
    draws = ZeroInflated(Poisson(torch.full((2,), 800.0, dtype=dtype)), logits).sample((9,))
    assert (draws[:, 0] > 0).all()
    assert (draws[:, 1] == 0).all()
    assert not draws.isnan().any()
