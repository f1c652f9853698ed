"""The mean of the losses and metrics of an epoch."""

import math

import pytest
import torch

from tinyvae.core import ObjectiveOutput
from tinyvae.training.running_mean import RunningMean


def output(loss, **metrics):
    return ObjectiveOutput({"model": loss}, metrics)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_steps", [1, 63, 64, 65, 300])
def test_running_mean_of_many_steps(num_steps, dtype):
    generator = torch.Generator().manual_seed(0)
    values = 1e3 * torch.randn(num_steps, 2, generator=generator, dtype=dtype)
    weights = torch.randint(1, 200, (num_steps,), generator=generator).tolist()
    mean = RunningMean()
    for (loss, metric), weight in zip(values, weights, strict=True):
        mean.add(output(loss, metric=metric), weight)
    row = mean.row("train")
    for column, name in enumerate(("train/loss", "train/metric")):
        terms = [w * v for w, v in zip(weights, values[:, column].tolist(), strict=True)]
        assert row[name] == pytest.approx(math.fsum(terms) / sum(weights), rel=1e-12)
    assert mean.row("train") == row


def test_running_mean_continues_after_a_row():
    mean = RunningMean()
    for value in range(100):
        mean.add(output(torch.tensor(float(value))), 1)
        assert mean.row("train") == {"train/loss": pytest.approx(value / 2, rel=1e-12)}


def test_running_mean_copies_metrics_that_change_in_place():
    mean, live = RunningMean(), torch.tensor(0.0)
    for value in range(100):
        live.fill_(value)
        mean.add(output(torch.tensor(1.0), live=live), 1 + value % 2)
    live.fill_(float("nan"))
    weights = [1 + value % 2 for value in range(100)]
    expected = sum(w * v for v, w in enumerate(weights)) / sum(weights)
    assert mean.row("train")["train/live"] == pytest.approx(expected, rel=1e-12)


def test_running_mean_keeps_no_graph():
    mean, parameter = RunningMean(), torch.ones((), requires_grad=True)
    for _ in range(70):
        loss = 2 * parameter
        mean.add(output(loss, twice=loss), 1)
    assert not mean._totals.value().requires_grad
    assert mean.row("train") == {"train/loss": 2.0, "train/twice": 2.0}


def test_running_mean_of_shares_is_their_perplexity():
    """Each batch uses one class, all batches use every class, by the numbers of their examples."""
    weights = [3, 1, 4, 1]
    mean, half = RunningMean(), RunningMean()
    for index, weight in enumerate(weights):
        shares = torch.eye(4)[index]
        one = ObjectiveOutput(
            {"model": torch.zeros(())}, {"used": torch.tensor(1.0)}, {"used": shares}
        )
        if index == 2:  # continue from a saved state, which may be the last thing before a row
            half.load_state_dict(mean.state_dict(), torch.device("cpu"))
            assert half.row("train") == mean.row("train")
            mean = half
        mean.add(one, weight)
    entropy = -sum(w / 9 * math.log(w / 9) for w in weights)
    expected = {"train/loss": 0.0, "train/used": pytest.approx(math.exp(entropy), rel=1e-12)}
    assert mean.row("train") == expected


def test_running_mean_of_weights_on_the_device_continues_from_its_state():
    whole, first, second = RunningMean(), RunningMean(), RunningMean()
    batches = [(1.0, 2.5), (4.0, 0.0), (-3.0, 0.5), (7.0, 2.0)]
    for index, (loss, weight) in enumerate(batches):
        values = output(torch.tensor(loss)), torch.tensor(weight, dtype=torch.float64)
        whole.add(*values)
        if index == 2:
            saved = first.state_dict()
            assert saved["weight"] == 2.5
            assert isinstance(saved["weight"], float)
            second.load_state_dict(saved, torch.device("cpu"))
        (first if index < 2 else second).add(*values)
    expected = sum(loss * weight for loss, weight in batches) / 5.0
    assert whole.row("train") == {"train/loss": pytest.approx(expected, rel=1e-12)}
    assert second.row("train") == whole.row("train")


def test_running_mean_of_weights_that_are_all_zero_is_nan():
    mean = RunningMean()
    mean.add(output(torch.tensor(1.0)), torch.tensor(0.0, dtype=torch.float64))
    assert math.isnan(mean.row("train")["train/loss"])
