from types import SimpleNamespace

import pytest
import torch
from helpers.cases import for_each
from torch import nn

from tinyvae._devices import CPU, choose_device, widest_float

MODEL = nn.Linear(2, 2)


def with_accelerator(monkeypatch, name):
    device = None if name is None else torch.device(name)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: device)


@for_each("name", ["cuda", "mps", "xpu", None])
def test_choose_device_takes_the_accelerator(monkeypatch, name):
    with_accelerator(monkeypatch, name)
    assert choose_device("auto", MODEL) == torch.device(name or "cpu")
    assert choose_device("cpu", MODEL) == choose_device(CPU, MODEL) == CPU


@for_each(("name", "expected"), [("cuda", "cuda"), ("mps", "cpu"), ("xpu", "cpu"), (None, "cpu")])
def test_choose_device_takes_one_for_a_float64_model(monkeypatch, name, expected):
    with_accelerator(monkeypatch, name)
    assert choose_device("auto", nn.Linear(2, 2).double()) == torch.device(expected)


def test_choose_device_refuses_devices_without_random_state(monkeypatch):
    with_accelerator(monkeypatch, "hpu")
    for device in ("hpu", "vulkan:0", torch.device("ipu"), "auto"):
        with pytest.raises(ValueError, match=r"a device whose random state torch\.\w+\.get_rng"):
            choose_device(device, MODEL)
    monkeypatch.setattr(torch, "hpu", SimpleNamespace(get_rng_state=list), raising=False)
    assert choose_device("auto", MODEL) == torch.device("hpu")


def test_widest_float_is_float64_only_where_all_have_it():
    assert {n: widest_float(torch.device(n)) for n in ("cpu", "cuda", "mps", "xpu", "hpu")} == {
        "cpu": torch.float64,
        "cuda": torch.float64,
        "mps": torch.float32,
        "xpu": torch.float32,
        "hpu": torch.float32,
    }
