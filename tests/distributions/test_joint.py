"""Joint distributions."""

import math

import pytest
import torch
from helpers.cases import for_each
from helpers.distributions import draw_params, grid, independent_normal, joint, normal, one_hots

from tinyvae.distributions import (
    Bernoulli,
    Independent,
    JointDistribution,
    Normal,
    OneHotCategorical,
    StudentT,
    TabularDistribution,
    has_closed_form,
    kl_divergence,
)

pytestmark = pytest.mark.usefixtures("float64")


def test_joint_sums_and_integrates_to_one():
    parts = {"x": independent_normal(torch.randn(1), torch.randn(1))}
    p = JointDistribution(parts | {"k": OneHotCategorical(torch.randn(3, 2), 2)})
    x, cell = grid(torch.linspace(-40, 40, 4001))
    kinds = one_hots(3, 2).flatten(1)
    z = torch.cat([x[:, None].expand(-1, 9, 1), kinds.expand(len(x), 9, 6)], -1)
    assert p.log_prob(z).exp().sum().item() * cell == pytest.approx(1, abs=1e-10)


def test_joint_split_undoes_concatenate():
    p = joint(*draw_params("joint", (5,)))
    z = p.sample((3,))
    parts = p.split(z)
    assert {name: v.shape[2:] for name, v in parts.items()} == {
        "style": (2,),
        "kind": (3, 2),
        "tail": (2,),
    }
    assert (parts["kind"].sum(-2) == 1).all()
    torch.testing.assert_close(torch.cat([v.flatten(2) for v in parts.values()], -1), z)
    scores = sum(part.log_prob(parts[name]) for name, part in p.parts.items())
    torch.testing.assert_close(p.log_prob(z), scores)


@for_each("lead", [(), (4,), (5,), (2, 5)])
def test_joint_draws_parts_without_batch_for_each_row(lead):
    # Regression: a part of batch_shape () next to one of (5,) was drawn once for all five.
    p = JointDistribution(
        {
            "given": independent_normal(torch.zeros(5, 2), torch.zeros(5, 2)),
            "alone": independent_normal(torch.zeros(1), torch.zeros(1)),
        }
    )
    z = p.sample(lead)
    assert z.shape == (*lead, 5, 3)
    assert p.log_prob(z).shape == (*lead, 5)
    assert len(z[..., 2].unique()) == z[..., 2].numel()


def test_joints_of_joints_have_a_closed_form():
    q, p = (Independent(Normal(torch.randn(2), torch.randn(2)), 1) for _ in range(2))
    nested = [JointDistribution({"a": d, "b": JointDistribution({"c": d})}) for d in (q, p)]
    torch.testing.assert_close(kl_divergence(*nested), 2 * kl_divergence(q, p))


def test_joint_has_a_closed_form_only_for_the_same_parts():
    part, other = Independent(normal(3), 1), Independent(StudentT(*torch.randn(3, 3)), 1)
    q = JointDistribution({"a": part, "b": part})
    other_order = JointDistribution({"b": part, "a": part})
    one_without = JointDistribution({"a": part, "b": other})
    assert has_closed_form(q, q)
    assert not has_closed_form(q, other_order)
    assert not has_closed_form(q, one_without)


def test_tabular_distribution_is_reparameterized_only_as_a_whole():
    columns = [torch.tensor([0, 1]), torch.tensor([2])]
    blocks = [normal(4, 2), Bernoulli(torch.zeros(4, 1))]
    assert not TabularDistribution(blocks, columns).has_rsample
    assert TabularDistribution([normal(4, 2), normal(4, 1)], columns).has_rsample


def test_tabular_distribution():
    numbers, flags, amounts = normal(5, 2), Bernoulli(torch.randn(5, 1)), normal(5, 1)
    p = TabularDistribution(
        [numbers, flags, amounts], [torch.tensor([3, 0]), torch.tensor([1]), torch.tensor([2])]
    )
    assert p.batch_shape == (5, 4)
    x = torch.randn(7, 5, 4)
    x[..., 1] = (x[..., 1] > 0).double()
    log_prob = p.log_prob(x)
    assert torch.equal(log_prob[..., [3, 0]], numbers.log_prob(x[..., [3, 0]]))
    assert torch.equal(log_prob[..., 1:2], flags.log_prob(x[..., 1:2]))
    assert torch.equal(log_prob[..., 2:3], amounts.log_prob(x[..., 2:3]))
    means = torch.stack(
        [numbers.mean[:, 1], flags.mean[:, 0], amounts.mean[:, 0], numbers.mean[:, 0]], 1
    )
    assert torch.equal(p.mean, means)
    weights = torch.randn(5, 1).softmax(0)
    torch.testing.assert_close(p.point_estimate(weights), (weights * means).sum(0))
    draws = p.sample((3000,))
    assert set(draws[..., 1].unique().tolist()) == {0.0, 1.0}
    error = draws.std(0) / math.sqrt(3000)
    assert ((draws.mean(0) - means).abs() < 4.5 * error).all()
    assert not p.is_discrete
    assert TabularDistribution([flags], [torch.tensor([0])]).is_discrete
