import math

import torch
from helpers.apple import on_device
from helpers.cases import for_each

from tinyvae.training.device_sum import DeviceSum


def values(rows=500):
    """Numbers near 0.1, and around zero, whose float32 sums lose digits."""
    return torch.stack([0.1 + 1e-3 * torch.rand(rows), torch.randn(rows)], 1)


def test_device_sum_is_exact_without_float64(apple):
    x = values()
    total = DeviceSum([1e6, 0.0], torch.device("mps"))
    for row in on_device(x):
        total.add(row, weight=2)
    exact = 2 * x.double().sum(0) + torch.tensor([1e6, 0.0])
    # Products with a power of two are exact. A sum of float32 numbers would be wrong by 0.1.
    torch.testing.assert_close(total.value(), exact, rtol=1e-11, atol=1e-8)


@for_each("weight", [1, 3, 7])
def test_device_sum_on_a_cpu_is_a_float64_sum(weight):
    total = DeviceSum([0.1, 0.2], torch.device("cpu"))
    exact = torch.tensor([0.1, 0.2], dtype=torch.float64)
    for row in values(100):
        total.add(row, weight)
        exact.add_(row, alpha=weight)
    assert torch.equal(total.value(), exact)


def test_device_sum_continues_from_its_value(apple):
    x, device = on_device(values(200)), torch.device("mps")
    through, first = DeviceSum([0.0, 0.0], device), DeviceSum([0.0, 0.0], device)
    for row in x[:100]:
        through.add(row, 3)
        first.add(row, 3)
    second = DeviceSum(first.value().tolist(), device)
    for row in x[100:]:
        through.add(row, 3)
        second.add(row, 3)
    torch.testing.assert_close(second.value(), through.value(), rtol=1e-13, atol=1e-11)


def test_device_sum_keeps_infinity_and_nan(apple):
    total = DeviceSum([0.0, 0.0, 1.0], torch.device("mps"))
    for row in ([math.inf, math.nan, 1.0], [1.0, 1.0, 1.0]):
        total.add(torch.tensor(row, device="mps"), 1)
    assert str(total.value().tolist()) == "[inf, nan, 3.0]"
