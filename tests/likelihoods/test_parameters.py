import math

import pytest
import torch
from helpers.cases import for_each
from helpers.likelihoods import indices, rows

from tinyvae import GaussianLikelihood
from tinyvae.likelihoods import Learned, MaskedLikelihood, Predicted

pytestmark = pytest.mark.usefixtures("float64")


@for_each("make", [Learned, Predicted])
def test_minimum_is_a_smooth_lower_bound(make):
    raw = torch.tensor([-1e3, -20.0, math.log(0.05), 0.0, 8.0, 18.0])
    positive = make(minimum=0.05)
    if make is Learned:
        positive.raw = torch.nn.Parameter(raw)
    value = positive(raw, 1).exp()
    # exp(softplus(a - b) + b) = e^a + e^b
    torch.testing.assert_close(value, 0.05 + raw.exp(), rtol=1e-12, atol=0)
    assert (value >= 0.05 * (1 - 1e-12)).all()


@for_each("initial", [0.002, 0.01, 0.2, 3.0, 1e4])
def test_learned_starts_at_its_initial_value(initial):
    likelihood = GaussianLikelihood(Learned((3,), initial=initial)).double()
    assert likelihood(torch.zeros(3), 1).base.log_std.exp().tolist() == pytest.approx([initial] * 3)


@for_each(
    "context",
    [None, torch.zeros(5), torch.zeros(5, 2), torch.zeros(5, 3, 1), torch.zeros(5, 1).long()],
)
def test_learned_per_class_expects_classes(context):
    likelihood = GaussianLikelihood(Learned(num_classes=3))
    with pytest.raises(ValueError, match=r"class indices \(B,\) or weights \(B, 3\), got"):
        likelihood(torch.zeros(5, 4), 1, context)


def test_learned_per_class_reads_rows_and_indices():
    likelihood = GaussianLikelihood(Learned((4,), num_classes=3)).double()
    with torch.no_grad():
        likelihood.std.raw.normal_()
    params, x = torch.randn(2, 5, 4), torch.randn(5, 4)
    by_index, by_row = (likelihood(params, 1, make(5)).log_prob(x) for make in (indices, rows))
    torch.testing.assert_close(by_index, by_row)


@for_each("dtype", [torch.uint8, torch.int32, torch.int64])
def test_learned_per_class_accepts_any_integer_dtype(dtype):
    likelihood = GaussianLikelihood(Learned(num_classes=3))
    with torch.no_grad():
        likelihood.std.raw.copy_(torch.tensor([0.0, 1.0, 2.0]))
    context = torch.tensor([0, 1, 0])
    expected = likelihood(torch.zeros(3, 2), 1, context).log_prob(torch.ones(3, 2))
    got = likelihood(torch.zeros(3, 2), 1, context.to(dtype)).log_prob(torch.ones(3, 2))
    assert torch.equal(got, expected)


@for_each(
    "context",
    [
        torch.tensor([0, 1, 2, 1, 3]),
        torch.tensor([0, -1, 2, 1, 0]),
        torch.full((5, 3), 10.0),
        torch.zeros(5, 2),
        None,
    ],
)
def test_check_context_checks_classes(context):
    likelihood = MaskedLikelihood(GaussianLikelihood(Learned(num_classes=3)))
    likelihood.check_context(torch.tensor([0, 1, 2, 1, 2]))
    likelihood.check_context(torch.eye(3))
    with pytest.raises(ValueError, match=r"expects (a context of class indices|classes 0 to 2)"):
        likelihood.check_context(context)


@for_each("shape", [(3,), (2, 3), (1, 2, 3, 1), (4, 1, 1)])
def test_learned_must_broadcast_over_the_data(shape):
    with pytest.raises(ValueError, match=r"does not broadcast over data of shape \(2, 3, 1\)"):
        GaussianLikelihood(Learned(shape)).check_support(torch.zeros(5, 2, 3, 1))


def test_learned_starts_at_one_value_per_dimension():
    learned = Learned((3,), initial=[0.1, 1.0, 20.0])
    start = learned(torch.zeros(3), 1).exp()
    torch.testing.assert_close(start, torch.tensor([0.1, 1.0, 20.0]).to(start))
    assert Learned((2, 3), initial=[0.1, 1.0, 20.0]).raw.shape == (2, 3)
    with pytest.raises(ValueError, match="finite initial value above minimum"):
        Learned((2,), initial=[1.0, 0.0])
