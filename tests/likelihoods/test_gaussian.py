import math

import numpy as np
import pytest
import scipy.stats
import torch
from helpers.cases import for_each
from helpers.likelihoods import make_vae

from tinyvae import ELBO, Batch, evaluate
from tinyvae.likelihoods import OptimalGaussianLikelihood

pytestmark = pytest.mark.usefixtures("float64")


def root_mean_square(x, mean, shape):
    square = (x - mean).square()
    sizes = [1] * (square.dim() - len(shape)) + list(shape)
    shared = [d for d, size in enumerate(sizes) if size == 1]
    return square.mean(shared, keepdim=True).reshape(shape).sqrt()


shapes = for_each("shape", [(), (2, 1, 1), (2, 3, 1)])


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
    mean, x = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    profile = -10 * (x - mean).square().mean().log()
    likelihood = OptimalGaussianLikelihood().double()
    (gradient,) = torch.autograd.grad(likelihood(mean, 1).log_prob(x).sum(), mean)
    (expected,) = torch.autograd.grad(profile, mean)
    torch.testing.assert_close(gradient, expected)


@shapes
def test_optimal_scale_is_averaged(shape):
    """The mean over the first 100 batches, then an exponential moving average."""
    likelihood = OptimalGaussianLikelihood(shape).double()
    squares = []
    for _ in range(130):
        mean, x = torch.randn(5, 2, 3, 1), torch.randn(5, 2, 3, 1)
        squares.append(root_mean_square(x, mean, shape).square())
        likelihood.update_statistics(likelihood(mean, 3), x)
    expected = torch.stack(squares[:100]).mean(0)
    for square in squares[100:]:
        expected = 0.99 * expected + 0.01 * square
    torch.testing.assert_close(likelihood.mean_square, expected)
    assert likelihood.num_batches == 130
    torch.testing.assert_close(likelihood.log_std, expected.log() / 2)


def test_optimal_scale_in_evaluation():
    likelihood = OptimalGaussianLikelihood((4,)).double()
    likelihood.update_statistics(likelihood(torch.randn(5, 4), 1), torch.randn(5, 4))
    likelihood.eval()
    before = {name: buffer.clone() for name, buffer in likelihood.named_buffers()}
    mean, x = torch.randn(5, 4), 9 * torch.randn(5, 4)
    expected = scipy.stats.norm.logpdf(x, mean, before["mean_square"].sqrt()).sum(1)
    np.testing.assert_allclose(likelihood(mean, 1).log_prob(x), expected, rtol=1e-10)
    likelihood.update_statistics(likelihood(mean, 1), x)
    assert all(torch.equal(buffer, before[name]) for name, buffer in likelihood.named_buffers())


def test_optimal_scale_has_a_minimum():
    likelihood = OptimalGaussianLikelihood(minimum=0.1).double()
    x = torch.randn(5, 4)
    expected = scipy.stats.norm.logpdf(x, x, 0.1).sum(1)
    np.testing.assert_allclose(likelihood(x, 1).log_prob(x), expected, rtol=1e-10)
    likelihood.update_statistics(likelihood(x, 1), x)
    np.testing.assert_allclose(likelihood.eval()(x, 1).log_prob(x), expected, rtol=1e-10)


def test_optimal_scale_is_no_density_in_training():
    vae = make_vae(OptimalGaussianLikelihood(), (4,))
    x = torch.randn(6, 4)
    for training in (True, False):
        vae.train(training)
        assert vae.likelihood.is_density is not training
        assert vae.likelihood_given(torch.randn(3, 2)).is_density is not training
        assert vae.decode(torch.randn(3, 2)).is_density
        assert vae.likelihood.couples_batch is training
        assert ELBO().is_bound(vae) is not training
    assert evaluate(vae, x, elbo_samples=2, importance_samples=2).is_bound
    vae.train()
    assert evaluate(vae, x, elbo_samples=2, importance_samples=2).is_bound
    assert ELBO().check(vae, Batch(x)).endswith(": not a bound on log p(x) in training mode")
    assert vae.likelihood.num_batches == 0


def test_optimal_scale_must_broadcast():
    with pytest.raises(ValueError, match=r"does not broadcast over data of shape \(4,\)"):
        OptimalGaussianLikelihood((2, 4)).check_support(torch.zeros(5, 4))


def test_optimal_scale_moves_in_the_forward_pass_of_training_only():
    vae = make_vae(OptimalGaussianLikelihood(), (4,))
    likelihood, x = vae.likelihood, torch.randn(6, 4)
    vae(x)
    vae.decode(torch.randn(6, 2)).log_prob(x)
    assert likelihood.num_batches == 0
    vae.train()
    vae.decode(torch.randn(6, 2)).log_prob(x)
    assert likelihood.num_batches == 0
    output = vae(x, num_samples=3)
    assert likelihood.num_batches == 1
    expected = (x - output.likelihood.mean).square().mean()
    torch.testing.assert_close(likelihood.mean_square, expected)
