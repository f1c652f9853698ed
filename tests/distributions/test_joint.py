"""Joint distributions."""

import pytest
import torch
from helpers.cases import for_each
from helpers.distributions import draw_params, grid, independent_normal, joint, one_hots

from tinyvae.distributions import (
    Independent,
    JointDistribution,
    Normal,
    OneHotCategorical,
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
