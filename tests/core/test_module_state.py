import contextlib
import copy

import pytest
import torch
from helpers.cases import for_each
from torch import nn

from tinyvae.core.module_state import (
    ExactBuffers,
    evaluating,
    evaluating_afterwards,
    preserved_buffers,
    preserved_modes,
    preserved_statistics,
    set_training_mode,
)


class Shifted(ExactBuffers):
    def __init__(self):
        super().__init__()
        self.register_constant("shift", [0.1, 0.2])


def test_exact_buffers_are_exact_in_float64():
    module = Shifted()
    assert module.shift.dtype == torch.float32
    assert module.double().shift.tolist() == [0.1, 0.2]
    assert copy.deepcopy(module).float().half().double().shift.tolist() == [0.1, 0.2]


def test_exact_buffers_keep_a_loaded_value():
    module = Shifted()
    module.load_state_dict({"shift": torch.tensor([1.0, 2.0])})
    assert module.double().shift.tolist() == [1.0, 2.0]


@pytest.fixture
def model():
    """Modules in different modes."""
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    model[1].eval()
    model[1][1].train()
    return model


def modes(*modules):
    return [m.training for module in modules for m in module.modules()]


@for_each("fails", [False, True])
def test_preserved_modes_restores_modes(model, fails):
    before, other = modes(model), nn.Dropout().eval()
    with contextlib.suppress(RuntimeError), preserved_modes(model, other):
        assert modes(model) == before
        model.train()
        other.train()
        if fails:
            raise RuntimeError("planted")
    assert modes(model) == before == [True, True, False, False, True]
    assert not other.training


@for_each("fails", [False, True])
def test_evaluating_sets_and_restores_modes(model, fails):
    before, other = modes(model), nn.Dropout()
    with contextlib.suppress(RuntimeError), evaluating(model, other):
        assert not any(modes(model, other))
        if fails:
            raise RuntimeError("planted")
    assert modes(model) == before
    assert other.training


def test_evaluating_leaves_a_module_added_inside(model):
    with evaluating(model):
        model.append(nn.Dropout())
    assert model[-1].training


def test_preserved_buffers_restores_buffers():
    layer = nn.BatchNorm1d(3)
    layer.running_mean.fill_(2.0)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    with preserved_buffers(layer):
        layer(torch.randn(5, 3))
        assert not torch.equal(layer.running_mean, before["running_mean"])
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, before[name])


def test_preserved_statistics_keeps_statistics_and_output():
    layers = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    evaluated = nn.BatchNorm1d(3).eval()
    layers.append(evaluated)
    x = torch.randn(5, 3)
    before = [buffer.clone() for buffer in layers.buffers()]
    with preserved_statistics(layers):
        output = layers(x)
    assert all(torch.equal(a, b) for a, b in zip(layers.buffers(), before, strict=True))
    assert [layer.track_running_stats for layer in layers] == [True, False, True]
    assert torch.equal(layers(x), output)
    assert layers[0].num_batches_tracked == 1


@for_each("fails", [False, True])
def test_evaluating_afterwards_sets_modes_at_the_end(model, fails):
    with contextlib.suppress(RuntimeError), evaluating_afterwards(model):
        model.train()
        assert all(modes(model))
        if fails:
            raise RuntimeError("planted")
    assert not any(modes(model))


def test_set_training_mode_evaluates_frozen_parts(model):
    """A part is frozen if it has parameters, none of which is trained."""
    frozen = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).requires_grad_(False)
    partly = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).eval()
    partly[0].requires_grad_(False)
    set_training_mode(nn.Sequential(model, frozen), partly)
    assert all(modes(model))
    assert not any(modes(frozen))
    assert modes(partly) == [True, False, True]
