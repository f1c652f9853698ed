import itertools

import pytest
import torch
import torch.distributions as td
from helpers.cases import for_each
from torch.autograd import gradcheck

from tinyvae.distributions import (
    Bernoulli,
    Independent,
    Normal,
    TorchDistribution,
)
from tinyvae.distributions.base import joint_shape

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


def draw(name):
    """Return the constructor, torch's distribution, and random parameters."""
    make, reference, shapes = FAMILIES[name]
    params = [torch.randn(shape) for shape in shapes]
    return make, reference(*params), params


@for_each(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@for_each("sample_shape", [(), (5,), (2, 5)])
@for_each("name", FAMILIES)
def test_agrees_with_torch(name, sample_shape, dtype, tolerance):
    make, reference, params = draw(name)
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


@for_each("name", FAMILIES)
def test_samples_carry_gradients_if_has_rsample(name):
    make, reference, params = draw(name)
    params = [p.clone().requires_grad_() for p in params]
    ours = make(*params)
    assert ours.has_rsample == reference.has_rsample
    assert ours.sample().requires_grad == ours.has_rsample


@for_each("name", FAMILIES)
def test_gradients_of_log_prob(name):
    make, reference, params = draw(name)
    value = reference.sample((2,))
    params = [p.clone().requires_grad_() for p in params]
    assert gradcheck(lambda *p: make(*p).log_prob(value), params)


@for_each("shape", [(3, 5), (2,), (), (3,)])
def test_wrong_event_shape(shape):
    p = Independent(Normal(torch.zeros(4, 2, 3), torch.zeros(4, 2, 3)), 2)
    with pytest.raises(ValueError, match=r"event shape \(2, 3\), got"):
        p.log_prob(torch.zeros(shape))


def test_too_many_event_dimensions():
    with pytest.raises(ValueError, match=r"at least 2 batch dimensions.*lower event_ndim"):
        Independent(Bernoulli(torch.zeros(3)), 2)


def test_repr_names_family_and_shapes():
    p = Independent(Normal(torch.zeros(5, 2), torch.zeros(5, 2)), 1)
    assert repr(p) == "Independent(Normal, batch_shape=(5,), event_shape=(2,))"
    assert repr(p.base) == "Normal(batch_shape=(5, 2), event_shape=())"


@for_each(
    ("base", "has_rsample", "is_discrete"),
    [
        (td.Normal(0.0, 1.0), True, False),
        (td.VonMises(0.0, 1.0), False, False),
        (td.Poisson(torch.tensor(3.0)), False, True),
        (
            td.MixtureSameFamily(td.Categorical(torch.ones(2)), td.Normal(torch.zeros(2), 1.0)),
            False,
            False,
        ),
    ],
)
def test_torch_distribution_says_what_its_draws_are(base, has_rsample, is_discrete):
    p = TorchDistribution(base)
    assert (p.has_rsample, p.is_discrete) == (has_rsample, is_discrete)
    assert p.event_shape == base.event_shape


def test_joint_shape_is_the_broadcast_shape():
    shapes = [(3,), (3,), (2, 3)]
    for order in itertools.permutations(shapes):
        assert joint_shape(*map(torch.empty, order)) == (2, 3)
