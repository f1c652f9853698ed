import contextlib
import random

import numpy as np
import pytest
import torch
from helpers.cases import for_each

from tinyvae.core.random import forked_rng, seed_rng

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
