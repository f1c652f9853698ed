import contextlib
import random

import numpy as np
import pytest
import torch
from torch import nn

from tinyvae.core.module_state import (
    evaluating,
    preserved_buffers,
    preserved_modes,
    preserved_statistics,
)
from tinyvae.core.random import forked_rng, seed_rng

CPU = torch.device("cpu")


@pytest.fixture
def model():
    """Modules of mixed modes."""
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    model[1].eval()
    model[1][1].train()
    return model


def modes(*modules):
    return [m.training for module in modules for m in module.modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_modes_are_restored(model, fails):
    before, other = modes(model), nn.Dropout().eval()
    with contextlib.suppress(RuntimeError), preserved_modes(model, other):
        assert modes(model) == before
        model.train()
        other.train()
        if fails:
            raise RuntimeError("planted")
    assert modes(model) == before == [True, True, False, False, True]
    assert not other.training


@pytest.mark.parametrize("fails", [False, True])
def test_evaluation_mode_inside(model, fails):
    before, other = modes(model), nn.Dropout()
    with contextlib.suppress(RuntimeError), evaluating(model, other):
        assert not any(modes(model, other))
        if fails:
            raise RuntimeError("planted")
    assert modes(model) == before
    assert other.training


def test_a_module_added_inside_keeps_its_mode(model):
    with evaluating(model):
        model.append(nn.Dropout())
    assert model[-1].training


@pytest.mark.parametrize("seed", [None, 0, 7])
@pytest.mark.parametrize("fails", [False, True])
def test_the_generator_is_restored(seed, fails):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with contextlib.suppress(RuntimeError), forked_rng(CPU, seed):
        inside = torch.rand(3)
        if fails:
            raise RuntimeError("planted")
    assert torch.equal(torch.rand(3), expected)
    own = torch.Generator().manual_seed(1 if seed is None else seed)
    assert torch.equal(inside, torch.rand(3, generator=own))


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_a_seed_is_torchs_own(seed):
    seed_rng(CPU, seed)
    own = torch.Generator().manual_seed(seed)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=own))


def test_no_other_generator_is_touched():
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    before = np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    with forked_rng(CPU, 3):
        seed_rng(CPU, 4)
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before  # noqa: NPY002


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU's generator")
def test_the_generator_of_a_gpu_is_restored():
    device = torch.device("cuda")
    torch.manual_seed(1)
    expected = torch.rand(3, device=device), torch.rand(3)
    torch.manual_seed(1)
    with forked_rng(device, 7):
        inside = torch.rand(3, device=device)
    assert torch.equal(torch.rand(3, device=device), expected[0])
    assert torch.equal(torch.rand(3), expected[1])
    own = torch.Generator(device).manual_seed(7)
    assert torch.equal(inside, torch.rand(3, device=device, generator=own))


def test_buffers_are_what_they_were():
    layer = nn.BatchNorm1d(3)
    layer.running_mean.fill_(2.0)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    with preserved_buffers(layer):
        layer(torch.randn(5, 3))
        assert not torch.equal(layer.running_mean, before["running_mean"])
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, before[name])


def test_statistics_rest_and_the_output_stays():
    layers = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    evaluated = nn.BatchNorm1d(3).eval()
    layers.append(evaluated)
    x = torch.randn(5, 3)
    before = [buffer.clone() for buffer in layers.buffers()]
    with preserved_statistics(layers):
        resting = layers(x)
    assert all(torch.equal(a, b) for a, b in zip(layers.buffers(), before, strict=True))
    assert [layer.track_running_stats for layer in layers] == [True, False, True]
    assert torch.equal(layers(x), resting)
    assert layers[0].num_batches_tracked == 1
