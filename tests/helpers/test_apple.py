import numpy as np
import pytest
import torch
from helpers import apple as module
from helpers.apple import MPS
from helpers.cases import for_each
from torch import nn

WIDE = {
    "double": lambda x: x.double(),
    "to": lambda x: x.to(torch.float64),
    "type": lambda x: x.type(torch.float64),
    "sum": lambda x: x.sum(dtype=torch.float64),
    "complex": lambda x: x.to(torch.complex128),
    "factory": lambda x: torch.zeros(2, dtype=torch.float64, device=x.device),
    "name": lambda _: torch.rand(2, dtype=torch.float64, device="mps"),
    "numbers": lambda x: torch.tensor([0.5], dtype=torch.float64, device=x.device),
    "like": lambda x: torch.ones_like(x, dtype=torch.float64),
    "new": lambda x: x.new_zeros(2, dtype=torch.float64),
    "numpy": lambda x: torch.from_numpy(np.ones(2)).to(x.device),
    "moved": lambda x: x.cpu().double().to("mps"),
    "module": lambda x: nn.Linear(2, 2).double().to(x.device),
    "on the way to the CPU": lambda x: x.to("cpu", torch.float64),
    "copied to the CPU": lambda x: torch.zeros(2, dtype=torch.float64).copy_(x),
}


@for_each("name", WIDE)
def test_apple_device_refuses_float64(apple, name):
    with pytest.raises(TypeError, match="MPS framework doesn't support float64"):
        WIDE[name](torch.ones(2, device="mps"))


def test_apple_device_allows_float64_on_the_cpu(apple):
    x = torch.ones(2, device="mps")
    assert x.cpu().double().dtype == torch.float64
    wide = torch.tensor([0.1], dtype=torch.float64)
    assert wide.to("mps", torch.float32).tolist() == wide.float().tolist()
    assert x.copy_(wide).tolist() == wide.float().tolist() * 2


def test_apple_device_refuses_tensors_of_two_devices(apple):
    x = torch.ones(2, device="mps")
    for other in (torch.ones(2), torch.tensor(1.0)):
        with pytest.raises(RuntimeError, match="tensors on one device"):
            x + other
    with pytest.raises(TypeError, match="can't convert mps:0 device type tensor to numpy"):
        x.numpy()


def test_apple_device_lacks_operations(apple, monkeypatch):
    monkeypatch.setattr(module, "MISSING", {torch.ops.aten.digamma.default})
    torch.digamma(torch.ones(2))
    with pytest.raises(NotImplementedError, match="PYTORCH_ENABLE_MPS_FALLBACK"):
        torch.digamma(torch.ones(2, device="mps"))


def test_apple_device_computes_as_the_cpu(apple):
    layers, x = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)]), torch.randn(4, 3)
    layers[1].load_state_dict(layers[0].state_dict())
    weight = layers[1].weight
    assert layers[1].to("mps").weight is weight
    for layer, device in zip(layers, ("cpu", MPS), strict=True):
        optimizer = torch.optim.Adam(layer.parameters(), fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            layer(x.to(device)).square().sum().backward()
            optimizer.step()
    assert weight.device == MPS
    assert torch.equal(layers[0].weight, layers[1].cpu().weight)


def test_apple_device_has_its_own_generator(apple):
    torch.manual_seed(1)
    torch.mps.manual_seed(2)
    on_cpu, on_device = torch.randn(3), torch.randn(3, device="mps")
    assert torch.equal(on_cpu, torch.randn(3, generator=torch.Generator().manual_seed(1)))
    assert on_device.tolist() == torch.randn(3, generator=torch.Generator().manual_seed(2)).tolist()
