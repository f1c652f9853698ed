"""Normal vectors and points."""

import math

import pytest
import scipy.stats
import torch
import torch.distributions as td
from helpers.cases import for_each
from helpers.distributions import CASES, draw_params, ks

from tinyvae.distributions import Delta, FullNormal, LowRankNormal, Quantized

pytestmark = pytest.mark.usefixtures("float64")


@for_each("name", [n for n in CASES if "normal" in n] + ["affine", "unflattened"])
def test_draws_of_normal_vectors(name):
    params = draw_params(name, (1, 2) if name == "unflattened" else ())
    p = CASES[name].make(*params)
    with torch.no_grad():
        z = p.sample((4000,)).reshape(4000, -1, *p.event_shape)[:, 0]
    mean = p.mean.reshape(-1, *p.event_shape)[0]
    # The covariance, of the density: minus the inverse of the Hessian of its logarithm.
    hessian = torch.autograd.functional.hessian(
        lambda v: p.log_prob(v.expand(p.batch_shape + v.shape)).flatten()[0], mean
    )
    standard = (z - mean) @ torch.linalg.cholesky(-hessian)
    assert min(ks(column, "norm") for column in standard.T) > 1e-4
    square = standard.square().sum(-1)
    assert ks(square, scipy.stats.chi2(len(mean)).cdf) > 1e-4
    # All along the log density, which at the mean is that of the determinant.
    torch.testing.assert_close(
        p.log_prob(mean.expand(p.batch_shape + mean.shape)).flatten()[0],
        0.5 * torch.logdet(-hessian) - 0.5 * len(mean) * math.log(2 * math.pi),
    )


def test_points():
    value = torch.randn(5, 3, 2)
    for p in (Delta(value, 2), Quantized(value, torch.zeros(5, 2, dtype=torch.long), {}, {})):
        assert p.log_prob(value).tolist() == [0.0] * 5
        other = value.clone()
        other[3, 1, 0] += 1e-12
        assert p.log_prob(other).tolist() == [0.0, 0.0, 0.0, -math.inf, 0.0]
        assert torch.equal(p.log_prob(torch.stack([value, other]))[:, 3].exp(), torch.eye(2)[0])
        assert torch.equal(p.sample((2, 4)), value.expand(2, 4, 5, 3, 2))


def test_gradients_through_points():
    value = torch.randn(5, 3).requires_grad_()
    for p in (Delta(value, 1), Quantized(value, torch.zeros(5), {}, {})):
        (gradient,) = torch.autograd.grad(p.sample((2,)).sum(), value)
        assert (gradient == 2).all()


@for_each("log_std", [0.0, -2.0, -4.0, -6.0])
def test_low_rank_normal_accuracy(log_std):
    # Regression: in float32 two large squares cancel, 0.1 nats are lost at -4, and 10 at -6.
    mean, factor = torch.randn(50, 20).float(), torch.randn(50, 20, 3).float()
    params = (mean, torch.full_like(mean, log_std), factor)
    p = LowRankNormal(*params)
    z = p.sample()
    wide = [v.double() for v in params]
    covariance = wide[2] @ wide[2].mT + torch.diag_embed((2 * wide[1]).exp())
    exact = td.MultivariateNormal(wide[0], covariance).log_prob(z.double())
    # What rounding of z itself costs is its last digit in units of the least std.
    rounding = 4 * math.exp(-log_std) * torch.finfo(torch.float32).eps * math.sqrt(20)
    torch.testing.assert_close(p.log_prob(z).double(), exact, rtol=1e-5, atol=4 * rounding + 1e-4)


def test_points_without_event_or_batch():
    # Regression: IndexError without event dimensions.
    value = torch.randn(3)
    assert Delta(value, 0).log_prob(value).tolist() == [0.0] * 3
    assert Delta(value.expand(5, 3), 1).log_prob(value).tolist() == [0.0] * 5


@for_each("log_std", [-3.0, -8.0, -20.0])
def test_low_rank_normal_with_nearly_equal_factors(log_std):
    column = torch.randn(6, 1)
    factor = torch.cat([column, column + 1e-3 * torch.randn(6, 1)], 1).float().requires_grad_()
    p = LowRankNormal(torch.zeros(6).float(), torch.full((6,), log_std).float(), factor)
    z = p.sample((20,)).detach()
    log_prob = p.log_prob(z)
    assert log_prob.isfinite().all()
    assert torch.autograd.grad(log_prob.sum(), factor)[0].isfinite().all()
    if log_std == -3:  # below, the rounding of z itself is many standard deviations
        exact = LowRankNormal(torch.zeros(6), torch.full((6,), log_std), factor.double())
        torch.testing.assert_close(
            log_prob.double(), exact.log_prob(z.double()), rtol=1e-2, atol=1e-2
        )


NORMALS = {
    "full": lambda mean, log_std, matrix: FullNormal(mean, log_std, matrix),
    "low rank": lambda mean, log_std, matrix: LowRankNormal(mean, log_std, matrix[..., :3]),
}


@for_each("name", NORMALS)
def test_normal_vectors_score_their_draws_with_all_gradients(name):
    params = [torch.randn(5, 8), torch.randn(5, 8), torch.randn(5, 8, 8)]
    for param in params:
        param.requires_grad_()
    p = NORMALS[name](*params)
    z, log_prob = p.sample_and_log_prob((4,))
    torch.testing.assert_close(log_prob, p.log_prob(z))
    solved, drawn = (
        torch.autograd.grad(v.sum(), params, retain_graph=True, materialize_grads=True)
        for v in (p.log_prob(z), log_prob)
    )
    torch.testing.assert_close(drawn, solved)


@for_each("name", NORMALS)
@for_each("dtype", [torch.float32, torch.float64])
def test_normal_vectors_score_their_draws_for_any_covariance(name, dtype):
    size = 1 / torch.finfo(dtype).eps
    log_std = (2 * torch.rand(50, 8, dtype=dtype) - 1) * math.log(size)
    p = NORMALS[name](
        torch.randn(50, 8, dtype=dtype), log_std, size * torch.randn(50, 8, 8).to(dtype)
    )
    log_prob = p.sample_and_log_prob((200,))[1]
    log_det = (
        2 * p.log_diagonal.sum(-1) if name == "full" else p.log_det_excess + 2 * p.log_std.sum(-1)
    )
    square = -2 * log_prob - log_det - 8 * math.log(2 * math.pi)  # chi-squared, 8 degrees
    assert ks(square.double().flatten()[::50], scipy.stats.chi2(8).cdf) > 1e-4
    assert not torch.isnan(p.log_prob(p.sample((200,)))).any()


def test_full_normal_reads_only_the_entries_below_the_diagonal():
    mean, log_diagonal, lower = torch.randn(2, 3), torch.randn(2, 3), torch.randn(2, 3, 3)
    x = torch.randn(5, 2, 3)
    expected = FullNormal(mean, log_diagonal, lower.tril(-1)).log_prob(x)
    torch.testing.assert_close(FullNormal(mean, log_diagonal, lower).log_prob(x), expected)
