"""Compiled passes over batches with fields of the user's own."""

import dataclasses

import pytest
import torch
from helpers.training import DATA, LeastSquares, make_linear, rows, run, same

from tinyvae import Batch, Speed
from tinyvae.core import ObjectiveOutput


@dataclasses.dataclass(frozen=True)
class WeightedBatch(Batch):
    """Batch with one weight per example."""

    weights: torch.Tensor | None = None
    names: tuple[str, ...] | None = None


class Weighted(LeastSquares):
    """Squared error with the weights of the batch."""

    def forward(self, model, batch):
        error = (model(batch.x) - batch.x).square().sum(1)
        return ObjectiveOutput({"model": (batch.weights * error).mean()}, {})


@pytest.fixture
def graphs(monkeypatch):
    """Run the traced graph without a compiler."""
    kept = []

    def keep(graph, inputs, options):
        kept.append(graph)
        return graph

    monkeypatch.setattr(torch._inductor, "compile", keep)
    return kept


def train(pick, **options):
    data = (DATA, torch.arange(37.0) / 37)
    return run(make_linear(), Weighted(), data, fit={"batch": pick}, **options)


def test_compile_passes_the_fields_of_a_batch(graphs):
    def pick(pair):
        return WeightedBatch(pair[0], weights=pair[1])

    compiled, plain = train(pick, speed=Speed(compile=True)), train(pick)
    assert len(graphs) == 1
    assert "; compiled" in compiled.state.plan.headline
    for first, second in zip(rows(compiled.history), rows(plain.history), strict=True):
        assert first == pytest.approx(second, rel=1e-6)


def test_compile_falls_back_for_a_field_that_is_no_tensor(graphs):
    def pick(pair):
        return WeightedBatch(pair[0], weights=pair[1], names=("a",) * len(pair[0]))

    with pytest.warns(UserWarning, match="the batch's field 'names' is not a tensor"):
        compiled = train(pick, speed=Speed(compile=True))
    assert not graphs
    assert same(compiled.model, train(pick).model)
