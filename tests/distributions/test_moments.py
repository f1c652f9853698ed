"""Variance, standard deviation and entropy, and what torch users expect of a distribution."""

import math

import pytest
import torch
from helpers.cases import for_each
from torch import distributions as td

from tinyvae import MLP, VAE, BernoulliLikelihood, GaussianEncoder
from tinyvae.distributions import (
    Affine,
    Bernoulli,
    Delta,
    FullNormal,
    GumbelSoftmax,
    Independent,
    JointDistribution,
    Laplace,
    LowRankNormal,
    Mixture,
    Normal,
    OneHotCategorical,
    ReshapedBatch,
    StandardNormalDistribution,
    StudentT,
    TorchDistribution,
)

pytestmark = pytest.mark.usefixtures("float64")
LOC = torch.tensor([[0.3, -1.0], [2.0, 0.0], [5.0, -3.0]], dtype=torch.float64)
LOG_SCALE = torch.tensor([[0.2], [-1.0], [1.5]], dtype=torch.float64)
LOWER = torch.tensor([[0.0, 0.0], [0.7, 0.0]], dtype=torch.float64)
FACTOR = torch.tensor([[2.0], [-0.5]], dtype=torch.float64)


def covariance():
    scale = torch.diag_embed(LOG_SCALE.expand(3, 2).exp())
    return (scale + LOWER) @ (scale + LOWER).mT


# name: (distribution, the same one of torch)
FAMILIES = {
    "normal": lambda: (Normal(LOC, LOG_SCALE), td.Normal(LOC, LOG_SCALE.exp())),
    "standard normal": lambda: (
        StandardNormalDistribution(torch.zeros(3)),
        td.Normal(torch.zeros(3), 1.0),
    ),
    "laplace": lambda: (Laplace(LOC, LOG_SCALE), td.Laplace(LOC, LOG_SCALE.exp())),
    "bernoulli": lambda: (Bernoulli(LOC), td.Bernoulli(logits=LOC)),
    "one-hot": lambda: (OneHotCategorical(LOC, 1), td.OneHotCategorical(logits=LOC)),
    "full": lambda: (
        FullNormal(LOC, LOG_SCALE.expand(3, 2), LOWER),
        td.MultivariateNormal(LOC, covariance()),
    ),
    "low rank": lambda: (
        LowRankNormal(LOC, LOG_SCALE.expand(3, 2), FACTOR.expand(3, 2, 1)),
        td.LowRankMultivariateNormal(
            LOC, FACTOR.expand(3, 2, 1), (2 * LOG_SCALE).exp().expand(3, 2)
        ),
    ),
    "independent": lambda: (
        Independent(Normal(LOC, LOG_SCALE), 1),
        td.Independent(td.Normal(LOC, LOG_SCALE.exp()), 1),
    ),
    "affine": lambda: (
        Affine(Independent(Normal(LOC, LOG_SCALE), 1), torch.ones(2), torch.tensor([3.0, 0.5])),
        td.Independent(
            td.Normal(
                LOC * torch.tensor([3.0, 0.5]) + 1, LOG_SCALE.exp() * torch.tensor([3.0, 0.5])
            ),
            1,
        ),
    ),
    "adapter": lambda: (TorchDistribution(td.Gumbel(LOC, 2.0)), td.Gumbel(LOC, 2.0)),
}


@for_each("name", FAMILIES)
def test_moments_and_entropy_are_those_of_torch(name):
    p, expected = FAMILIES[name]()
    for got, value in (
        (p.mean, expected.mean),
        (p.variance, expected.variance),
        (p.stddev, expected.stddev),
        (p.entropy(), expected.entropy()),
    ):
        torch.testing.assert_close(got, value, rtol=1e-12, atol=1e-12)


def test_moments_of_a_joint_distribution_are_those_of_its_parts():
    normal, kind = Independent(Normal(LOC, LOG_SCALE), 1), OneHotCategorical(torch.zeros(4), 1)
    joint = JointDistribution({"normal": normal, "kind": kind})
    assert torch.equal(joint.variance[:, :2], normal.variance)
    assert torch.equal(joint.variance[:, 2:], torch.full((3, 4), 3 / 16))
    torch.testing.assert_close(joint.entropy(), normal.entropy() + math.log(4))


def test_variance_of_a_mixture_is_that_of_torch():
    logits = torch.tensor([0.3, -1.0, 0.0])
    mixture = Mixture(logits, Independent(Normal(LOC, LOG_SCALE), 1))
    expected = td.MixtureSameFamily(
        td.Categorical(logits=logits), td.Independent(td.Normal(LOC, LOG_SCALE.exp()), 1)
    )
    torch.testing.assert_close(mixture.variance, expected.variance, rtol=1e-12, atol=0)
    with pytest.raises(NotImplementedError, match=r"Mixture\(.*no closed form of its entropy"):
        mixture.entropy()


def test_moments_of_a_reshaped_batch_are_those_of_its_rows():
    rows = Independent(Normal(LOC[:2], LOG_SCALE[:2]), 1)
    grid = ReshapedBatch(rows, (1, 2))
    assert torch.equal(grid.variance[0], rows.variance)
    assert torch.equal(grid.stddev[0], rows.stddev)
    assert torch.equal(grid.entropy()[0], rows.entropy())


def test_moments_of_a_point_are_zero():
    point = Delta(LOC, 1)
    assert not point.variance.any()
    assert point.entropy().tolist() == [0.0, 0.0, 0.0]


def test_moments_keep_their_precision_in_the_tails():
    narrow = Normal(torch.zeros(1), torch.tensor([-60.0])).stddev.float()
    assert narrow.item() == pytest.approx(math.exp(-60), rel=1e-6)
    logits = torch.tensor([-200.0, 200.0, math.inf, -math.inf])
    certain = Bernoulli(logits)
    assert certain.variance[:2].log().tolist() == pytest.approx([-200.0, -200.0])
    assert certain.entropy()[:2].log().tolist() == pytest.approx([math.log(201) - 200] * 2)
    assert certain.entropy()[2:].tolist() == [0.0, 0.0]


@for_each("quantity", [lambda p: p.variance, lambda p: p.stddev, lambda p: p.entropy()])
def test_missing_moments_are_named(quantity):
    for p in (GumbelSoftmax(torch.zeros(3), 1, 0.5), StudentT(LOC, LOG_SCALE, LOG_SCALE)):
        with pytest.raises(NotImplementedError, match=rf"{type(p).__name__}\(.*no closed form of"):
            quantity(p)


def test_rsample_has_gradients_or_is_refused():
    mean = torch.zeros(3, requires_grad=True)
    Normal(mean, torch.zeros(3)).rsample((2,)).sum().backward()
    assert mean.grad.tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(NotImplementedError, match=r"Bernoulli\(.* carry no gradients: use sample"):
        Bernoulli(torch.zeros(3)).rsample()


@for_each("name", [*FAMILIES, "gumbel-softmax", "joint", "delta"])
def test_sample_explains_that_it_takes_a_shape(name):
    others = {
        "gumbel-softmax": lambda: (GumbelSoftmax(torch.zeros(3), 1, 0.5), None),
        "joint": lambda: (JointDistribution({"a": Delta(LOC, 1)}), None),
        "delta": lambda: (Delta(LOC, 1), None),
    }
    p, _ = (FAMILIES | others)[name]()
    with pytest.raises(TypeError, match=r"sample expects a shape, got 5: give \(5,\)"):
        p.sample(5)


def test_posterior_has_what_torch_users_expect():
    vae = VAE(GaussianEncoder(MLP(4), 2), MLP(2, out_shape=4), BernoulliLikelihood())
    posterior = vae.encode(torch.zeros(3, 4))
    assert posterior.stddev.shape == posterior.variance.shape == (3, 2)
    assert posterior.entropy().shape == (3,)
    assert posterior.rsample((5,)).requires_grad
