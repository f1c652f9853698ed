import math

import pytest
import torch
import torch.nn.functional as F
from helpers.cases import for_each
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from tinyvae.distributions import (
    Bernoulli,
    Independent,
    Normal,
    StandardNormalDistribution,
    kl_divergence,
)
from tinyvae.distributions import bernoulli_sum as bits

pytestmark = pytest.mark.usefixtures("float64")

# Shapes of logits and values, the last dimension summed.
SHAPES = {
    "draws": ((7, 3, 50), (3, 50)),
    "one draw": ((1, 9, 51), (9, 51)),
    "one example": ((9, 1, 49), (1, 49)),
    "values of their own": ((6, 2, 13), (6, 2, 13)),
    "two batch dimensions": ((5, 2, 3, 14), (2, 3, 14)),
    "values of one example": ((5, 4, 15), (1, 15)),
    "no batch": ((40, 16), (16,)),
    "three pixels": ((40, 2, 3), (2, 3)),
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(bits, "PIECE", 20)


def plain(logits, value):
    return (value * logits - F.softplus(logits, threshold=40)).sum(-1)


def make(name, dtype=torch.float64, *, scale=3.0):
    shape, own = SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(shape, generator=generator, dtype=dtype)
    return logits, (torch.rand(own, generator=generator) > 0.5).to(dtype)


@for_each("name", SHAPES)
def test_summed_log_mass_agrees_with_plain_operations(name):
    logits, value = make(name)
    logits.requires_grad_()
    total = bits.summed_log_mass(logits, value)
    expected = plain(logits, value)
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(expected)
    (own,) = torch.autograd.grad(total, logits, weights)
    (autograd,) = torch.autograd.grad(expected, logits, weights)
    torch.testing.assert_close(own, autograd, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", SHAPES)
def test_summed_log_mass_takes_one_log_per_four_elements(name, monkeypatch):
    logits, value = make(name)
    expected = plain(logits, value)
    monkeypatch.setattr(bits, "_by_terms", None)
    torch.testing.assert_close(bits.summed_log_mass(logits, value), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("peculiar", [0.5, math.nan, 25.0, -25.0, math.inf, -math.inf])
@pytest.mark.parametrize("of", ["logits", "value"])
def test_extreme_values_are_summed_by_terms(of, peculiar, monkeypatch):
    logits, value = make("draws")
    {"logits": logits, "value": value}[of][..., 0] = peculiar
    expected = plain(logits, value)
    if of == "value" or abs(peculiar) != 0.5:
        monkeypatch.setattr(bits, "_by_products", None)
    found = bits.summed_log_mass(logits, value)
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_confident_pixel_error_is_below_rounding():
    for logit in (-19.9, -17.5, -16.0, 16.0, 19.9):
        logits = torch.full((3, 1, 400), logit, dtype=torch.float32)
        value = (logits[0] > 0).float()
        exact = plain(logits.double(), value.double())
        error = (bits.summed_log_mass(logits, value) - exact).abs().max() / 400
        assert error < 2**-24


def test_gradient_that_is_differentiated_again_is_the_same():
    logits, value = make("three pixels", scale=1.0)
    logits = logits[:9].requires_grad_()
    total = bits.summed_log_mass(logits, value)
    upstream = torch.rand_like(total) + 0.5
    (got,) = torch.autograd.grad(total, logits, upstream, create_graph=True)
    torch.testing.assert_close(got, (value - torch.sigmoid(logits)) * upstream.unsqueeze(-1))


def test_first_and_second_derivatives():
    logits, value = make("three pixels", scale=1.0)
    logits = logits[:9].requires_grad_()
    assert bits.summed_log_mass(logits, value) is not None
    assert gradcheck(lambda t: bits.summed_log_mass(t, value), (logits,))
    assert gradgradcheck(lambda t: bits.summed_log_mass(t, value), (logits,))


@for_each(
    ("logits", "value"),
    [
        (torch.zeros(2, 5), torch.zeros(5)),  # small
        (torch.zeros(1, 1, 50), torch.zeros(4, 50)),  # values of more examples
        (torch.zeros(9, 3, 5), torch.zeros(2, 9, 3, 5)),  # values of more dimensions
        (torch.zeros(9, 3, 5).double(), torch.zeros(3, 5).float()),
        (torch.zeros(9, 3, 5), torch.zeros(3, 5, requires_grad=True)),
    ],
)
def test_small_or_unusual_inputs_use_plain_operations(logits, value):
    assert bits.summed_log_mass(logits, value) is None
    p = Independent(Bernoulli(logits), 1)
    torch.testing.assert_close(p.log_prob(value), plain(logits, value), check_dtype=False)


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # which torch uses in its forward mode
def test_torch_transforms_use_plain_operations():
    logits, value = make("draws")
    tangent = torch.randn_like(logits)

    def log_prob(t):
        return Independent(Bernoulli(t), 1).log_prob(value)

    _, pushed = torch.func.jvp(log_prob, (logits,), (tangent,))
    slope = (value - torch.sigmoid(logits)) * tangent
    torch.testing.assert_close(pushed, slope.sum(-1))
    with forward_ad.dual_level():
        pushed = forward_ad.unpack_dual(log_prob(forward_ad.make_dual(logits, tangent))).tangent
    torch.testing.assert_close(pushed, slope.sum(-1))
    each = torch.func.vmap(log_prob)(torch.stack([logits, 2 * logits]))
    torch.testing.assert_close(each[1], plain(2 * logits, value))
    logits = logits[:1, :2].requires_grad_()
    value = value[:2]
    jacobian = torch.autograd.functional.jacobian(log_prob, logits, vectorize=True)
    torch.testing.assert_close(jacobian[0, 1, 0, 1], (value - torch.sigmoid(logits))[0, 1])


def test_overridden_log_prob_is_used_at_any_size():
    class Half(Bernoulli):
        def log_prob(self, value):
            return 0.5 * super().log_prob(value)

    logits, value = make("draws")
    own = Independent(Half(logits), 1).log_prob(value)
    torch.testing.assert_close(own, 0.5 * plain(logits, value))


# The unit normal ----------------------------------------------------------------------------------


def normals(shape, dtype=torch.float64):
    zero = torch.zeros(shape, dtype=dtype)
    return StandardNormalDistribution(zero), Normal(zero, zero)


@for_each("shape", [(3,), (2, 3), ()])
@for_each("value", [(), (3,), (2, 3), (5, 2, 3), (2, 1), (5, 1, 1)])
def test_standard_normal_distribution_agrees_with_normal(shape, value):
    x = torch.randn(value)
    unit, normal = normals(shape)
    assert torch.equal(unit.log_prob(x), normal.log_prob(x))
    assert unit.log_prob(x.bfloat16()).dtype == normal.log_prob(x.bfloat16()).dtype
    q = Normal(x, 0.1 * x)
    kl, expected = kl_divergence(q, unit), kl_divergence(q, normal)
    torch.testing.assert_close(kl, expected, rtol=1e-14, atol=0)


def test_standard_normal_distribution_draws_like_normal():
    unit, normal = normals((2, 3))
    draws = []
    for p in (unit, normal):
        torch.manual_seed(0)
        draws.append(p.sample((4,)))
    assert torch.equal(*draws)
    assert repr(kl_divergence(unit, unit)) == repr(torch.zeros(2, 3))
