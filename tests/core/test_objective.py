import contextlib

import pytest
import torch
from helpers.cases import for_each
from torch import nn

from tinyvae import Batch, Objective
from tinyvae.core import ObjectiveOutput
from tinyvae.core.objective import checked_data, data_are_checked
from tinyvae.schedules import Constant, Linear, ScheduledWeight


class Scaled(Objective):
    """Mean weighted prediction."""

    def __init__(self, weight, other=1.0):
        super().__init__()
        self.weight, self.other = ScheduledWeight(weight), ScheduledWeight(other)

    def forward(self, model, batch):
        return ObjectiveOutput({"model": (self.weight.value * model(batch.x)).mean()}, {})


def test_set_step_sets_weights_in_place():
    objective = Scaled(Linear(1.0, 2.0, steps=10), Linear(0.0, 1.0, fraction=0.5))
    buffers = objective.weight.value, objective.other.value
    assert [b.item() for b in buffers] == [1.0, 0.0]
    objective.set_step(5, total_steps=40)
    assert [b.item() for b in buffers] == [1.5, 0.25]
    objective.set_step(40, total_steps=40)
    assert [b.item() for b in buffers] == [2.0, 1.0]
    objective.set_step(0, total_steps=40)
    assert [b.item() for b in buffers] == [1.0, 0.0]
    assert buffers == (objective.weight.value, objective.other.value)


def test_scheduled_weight_of_a_number_is_constant():
    objective = Scaled(0.1, Constant(3.0))
    objective.set_step(5, total_steps=None)
    assert (objective.weight.value.item(), objective.other.value.item()) == (
        0.1,
        3.0,
    )  # 0.1 in float64


def test_scheduled_weights_are_buffers():
    objective = Scaled(Linear(0.0, 1.0, steps=10))
    objective.set_step(4, total_steps=None)
    assert {name: v.item() for name, v in objective.named_buffers()} == {
        "weight.value": 0.4,
        "other.value": 1.0,
    }
    assert {name: v.item() for name, v in objective.state_dict().items()} == {"weight.value": 0.4}
    assert not list(objective.parameters())
    assert objective.weight.value.shape == ()


@for_each("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scheduled_weights_do_not_promote_dtypes(dtype):
    model = nn.Linear(3, 1, dtype=dtype)
    output = Scaled(0.1)(model, Batch(torch.zeros(2, 3, dtype=dtype)))
    assert output.losses["model"].dtype == dtype


def test_unfinished_schedules_names_weights():
    objective = Scaled(Linear(0.0, 1.0, steps=10), Linear(0.0, 1.0, fraction=1.0))
    message = "weight reaches its last value after 10 steps, the run ends after 9"
    assert objective.unfinished_schedules(9, total_steps=9) == [message]
    assert objective.unfinished_schedules(10, total_steps=10) == []
    assert Scaled(2.0).unfinished_schedules(1, total_steps=None) == []


def test_parameter_groups_omit_frozen_parameters():
    model = nn.Linear(3, 1)
    model.bias.requires_grad_(False)
    (group,) = Scaled(1.0).parameter_groups(model).items()
    assert group[0] == "model"
    assert [id(p) for p in group[1]] == [id(model.weight)]


def test_objective_defaults():
    objective = Scaled(1.0)
    assert objective.is_bound(nn.Identity()) is False
    assert objective.couples_batch is False
    assert objective.check(nn.Identity(), Batch(torch.zeros(2, 3))) == "Scaled"


def test_batch_has_a_length():
    assert len(Batch(torch.zeros(5, 1, 2))) == 5


def test_objective_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Objective()


def test_checked_data_holds_inside_the_block_alone():
    assert not data_are_checked()
    with contextlib.suppress(RuntimeError), checked_data():
        with checked_data():
            pass
        assert data_are_checked()
        raise RuntimeError("planted")
    assert not data_are_checked()
