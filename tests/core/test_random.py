import contextlib
import random

import numpy as np
import pytest
import torch
from helpers.cases import for_each

from tinyvae.core.random import forked_rng, rng_state, seed_rng, set_rng_state

CPU = torch.device("cpu")


@for_each("seed", [None, 0, 7])
@for_each("fails", [False, True])
def test_forked_rng_restores_the_generator(seed, fails):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with contextlib.suppress(RuntimeError), forked_rng(CPU, seed):
        inside = torch.rand(3)
        if fails:
            raise RuntimeError("planted")
    assert torch.equal(torch.rand(3), expected)
    generator = torch.Generator().manual_seed(1 if seed is None else seed)
    assert torch.equal(inside, torch.rand(3, generator=generator))


@for_each("seed", [0, 2**64 - 1])
def test_seed_rng_equals_torchs_seed(seed):
    seed_rng(CPU, seed)
    generator = torch.Generator().manual_seed(seed)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=generator))


def test_forked_rng_touches_no_other_generator():
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    before = np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    with forked_rng(CPU, 3):
        seed_rng(CPU, 4)
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before  # noqa: NPY002


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU's generator")
def test_forked_rng_restores_the_generator_of_a_gpu():
    device = torch.device("cuda")
    torch.manual_seed(1)
    expected = torch.rand(3, device=device), torch.rand(3)
    torch.manual_seed(1)
    with forked_rng(device, 7):
        inside = torch.rand(3, device=device)
    assert torch.equal(torch.rand(3, device=device), expected[0])
    assert torch.equal(torch.rand(3), expected[1])
    generator = torch.Generator(device).manual_seed(7)
    assert torch.equal(inside, torch.rand(3, device=device, generator=generator))


class Accelerator:
    """Functions of torch.xpu, with a generator on the CPU for each of two devices."""

    def __init__(self):
        self.generators = [torch.Generator().manual_seed(i) for i in (1, 2)]
        self.current = 0

    def index(self, device):
        return self.current if device.index is None else device.index

    @contextlib.contextmanager
    def device(self, device):
        previous, self.current = self.current, self.index(device)
        yield
        self.current = previous

    def manual_seed(self, seed):
        self.generators[self.current].manual_seed(seed)

    def get_rng_state(self, device):
        return self.generators[self.index(device)].get_state()

    def set_rng_state(self, state, device):
        self.generators[self.index(device)].set_state(state)


@for_each(("device", "index"), [("xpu", 0), ("xpu:0", 0), ("xpu:1", 1), ("hpu:1", 1)])
def test_forked_rng_restores_the_generator_of_any_accelerator(monkeypatch, device, index):
    module, device = Accelerator(), torch.device(device)
    before = module.get_rng_state(device)
    with monkeypatch.context() as patch:
        patch.setattr(torch, device.type, module, raising=False)
        with forked_rng(device, 7):
            inside = [torch.rand(3, generator=g) for g in module.generators]
    assert torch.equal(inside[index], torch.rand(3, generator=torch.Generator().manual_seed(7)))
    other = torch.Generator().manual_seed(2 - index)
    assert torch.equal(inside[1 - index], torch.rand(3, generator=other))
    assert torch.equal(module.get_rng_state(device), before)


def test_rng_state_holds_the_state_of_any_accelerator(monkeypatch):
    module, device = Accelerator(), torch.device("xpu", 1)
    monkeypatch.setattr(torch, "xpu", module)
    seed_rng(device, 5)
    states = rng_state(device)
    assert states.keys() == {"cpu", "xpu"}
    first = torch.rand(3, generator=module.generators[1])
    set_rng_state(device, states)
    assert torch.equal(torch.rand(3, generator=module.generators[1]), first)
    set_rng_state(device, {"cpu": states["cpu"]})  # of a run on a CPU
    set_rng_state(CPU, states)


def test_forked_rng_restores_the_generator_of_an_apple_device(apple):
    torch.mps.manual_seed(1)
    with forked_rng(torch.device("mps"), 7):
        inside = torch.rand(3, device="mps").tolist()
    assert inside == torch.rand(3, generator=torch.Generator().manual_seed(7)).tolist()
    after = torch.rand(3, device="mps").tolist()
    assert after == torch.rand(3, generator=torch.Generator().manual_seed(1)).tolist()
