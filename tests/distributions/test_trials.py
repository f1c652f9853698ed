"""Distributions of the outcomes of trials."""

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from helpers.cases import for_each
from helpers.distributions import chi_squared, masses
from helpers.likelihoods import all_counts
from mpmath import loggamma, mpf

from tinyvae.distributions import BetaBinomial, Categorical, Multinomial

pytestmark = pytest.mark.usefixtures("float64")

PRECISIONS = for_each(("dtype", "tolerance"), [(torch.float32, 4e-6), (torch.float64, 2e-14)])


def exact_beta_binomial(k, logits, log_concentration, n):
    with mpmath.workdps(120):
        k, n, logits, kappa = mpf(k), mpf(n), mpf(logits), mpmath.exp(mpf(log_concentration))
        alpha, beta = kappa / (1 + mpmath.exp(-logits)), kappa / (1 + mpmath.exp(logits))
        ways = loggamma(n + 1) - loggamma(k + 1) - loggamma(n - k + 1)
        above = loggamma(k + alpha) + loggamma(n - k + beta) - loggamma(n + kappa)
        return float(ways + above - loggamma(alpha) - loggamma(beta) + loggamma(kappa))


@PRECISIONS
@for_each("n", [1, 7, 10**6])
@for_each("logits", [0.0, 0.375, -4.0, 20.0, 200.0, -200.0])
@for_each("log_concentration", [-6.75, 0.0, 5.0, 30.0])
def test_beta_binomial_has_all_digits(dtype, tolerance, n, logits, log_concentration):
    numbers = (torch.tensor(v, dtype=dtype) for v in ([logits], log_concentration, float(n)))
    p = BetaBinomial(*numbers)
    hits = sorted({0, 1, n // 3, n // 2, n - 1, n})
    got = p.log_prob(torch.tensor(hits, dtype=dtype)[:, None])[:, 0].double().numpy()
    exact = np.array([exact_beta_binomial(k, logits, log_concentration, n) for k in hits])
    np.testing.assert_allclose(got, exact, rtol=tolerance, atol=tolerance)


@for_each("n", [1, 2, 9])
def test_beta_binomial_sums_to_one_and_agrees_with_scipy(n):
    logits, log_kappa = torch.tensor([0.3, -2.0, 1.0]), torch.tensor([1.5, 0.0, -1.0])
    p = BetaBinomial(logits, log_kappa, torch.tensor(float(n)))
    mass = masses(p, n + 1)
    torch.testing.assert_close(mass[:-1].sum(0), torch.ones(3), rtol=1e-13, atol=0)
    kappa = log_kappa.exp().numpy()
    share = torch.sigmoid(logits).numpy()
    theirs = scipy.stats.betabinom(n, kappa * share, kappa * (1 - share))
    np.testing.assert_allclose(mass[:-1], theirs.pmf(np.arange(n + 1)[:, None]), rtol=1e-10)
    np.testing.assert_allclose(p.mean, theirs.mean(), rtol=1e-12)
    draws = p.sample((4000,)).numpy()
    for i in range(3):
        assert chi_squared(draws[:, i], mass[:, i].numpy()) > 1e-4


def test_beta_binomial_with_a_large_concentration_is_binomial():
    p = BetaBinomial(torch.tensor([0.4]), torch.tensor(36.0), torch.tensor(20.0))
    k = torch.arange(21.0)
    theirs = scipy.stats.binom(20, scipy.special.expit(0.4)).logpmf(k.numpy())
    np.testing.assert_allclose(p.log_prob(k[:, None])[:, 0], theirs, rtol=1e-12)
    assert p.sample((2000,)).var().item() == pytest.approx(20 * 0.24, rel=0.15)


@for_each("dtype", [torch.float32, torch.float64])
@for_each("logits", [0.0, 200.0, -200.0, 1e4])
@for_each("log_concentration", [-200.0, 0.0, 200.0])
def test_beta_binomial_gradients_are_finite(dtype, logits, log_concentration):
    params = [
        torch.tensor(v, dtype=dtype, requires_grad=True) for v in ([logits], log_concentration)
    ]
    p = BetaBinomial(*params, torch.tensor(5.0, dtype=dtype))
    log_prob = p.log_prob(torch.arange(6, dtype=dtype)[:, None])
    assert (log_prob <= 0).all()
    log_prob.sum().backward()
    assert all(param.grad.isfinite().all() for param in params)
    draws = p.sample((50,))
    assert ((draws >= 0) & (draws <= 5)).all()


@for_each("total", [0, 1, 4, 7])
def test_multinomial_sums_to_one_given_any_total(total):
    p = Multinomial(torch.tensor([0.3, -1.0, 2.0]), 1, num_trials=4)
    values = all_counts(total, 3)
    log_prob = p.log_prob(values)
    assert log_prob.logsumexp(0).item() == pytest.approx(0, abs=1e-14)
    theirs = scipy.stats.multinomial(total, p.log_probs.exp().numpy())
    np.testing.assert_allclose(log_prob, theirs.logpmf(values.numpy()), rtol=1e-11, atol=1e-14)


@PRECISIONS
@for_each("scale", [1.0, 200.0])
@for_each("count", [3, 10**3, 10**6])
def test_multinomial_has_all_digits(dtype, tolerance, scale, count):
    logits = scale * torch.tensor([0.25, -1.0, 0.0, 0.5], dtype=dtype)
    x = torch.tensor([count, 0, count // 2, 1])
    p = Multinomial(logits, 1, num_trials=1)
    with mpmath.workdps(60):
        exact = loggamma(mpf(x.sum().item()) + 1)
        total = mpmath.log(sum(mpmath.exp(mpf(v)) for v in logits.tolist()))
        for k, v in zip(x.tolist(), logits.tolist(), strict=True):
            exact += k * (mpf(v) - total) - loggamma(mpf(k) + 1)
    allowed = tolerance * (1 + abs(float(exact))) + x.sum().item() * tolerance * abs(scale) / 10
    assert abs(p.log_prob(x).double().item() - float(exact)) < allowed


def test_multinomial_draws_agree_with_the_masses():
    logits = torch.tensor([[[0.3], [-1.0], [2.0]], [[0.0], [0.0], [0.0]]])  # (2, C, 1)
    p = Multinomial(logits, 2, num_trials=4)
    draws = p.sample((4000,))
    assert draws.shape == (4000, 2, 3, 1)
    assert (draws.sum(2) == 4).all()
    values = all_counts(4, 3)
    for i in range(2):
        mass = p.log_prob(values[:, None, :, None].expand(-1, 2, -1, -1)).exp()[:, i]
        index = (draws[:, None, i, :, 0] == values).all(2).double().argmax(1)
        assert chi_squared(index.numpy(), np.append(mass.numpy(), 0.0)) > 1e-4
    torch.testing.assert_close(p.mean, 4 * logits.softmax(1))
    torch.testing.assert_close(p.point_estimate(), p.mean)
    with pytest.raises(TypeError, match="independent elements"):
        p.elementwise_log_prob(draws)


def test_multinomial_of_one_trial_is_categorical():
    logits = torch.randn(5, 4)
    index = torch.arange(5) % 4
    p, q = Multinomial(logits, 1, num_trials=1), Categorical(logits)
    torch.testing.assert_close(p.log_prob(torch.eye(4)[index]), q.log_prob(index))


@for_each("dtype", [torch.float32, torch.float64])
def test_multinomial_gradients_are_finite_and_impossible_outcomes_have_no_mass(dtype):
    logits = torch.tensor([200.0, -200.0, 0.0], dtype=dtype, requires_grad=True)
    x = torch.tensor([[3.0, 0.0, 1.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]], dtype=dtype)
    p = Multinomial(logits, 1, num_trials=3)
    log_prob = p.log_prob(x)
    expected = [math.log(4) - 200, -800.0, 0.0]
    assert log_prob.tolist() == pytest.approx(expected, rel=1e-6)
    log_prob.sum().backward()
    assert logits.grad.isfinite().all()
    certain = Multinomial(torch.tensor([0.0, -math.inf], dtype=dtype), 1, num_trials=3)
    assert certain.log_prob(x[:2, :2]).tolist() == [0.0, -math.inf]
    assert certain.sample((5,)).tolist() == [[3.0, 0.0]] * 5
