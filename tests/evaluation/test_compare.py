"""Paired comparison of models."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.oracles import random_linear_gaussian
from scipy import stats

from tinyvae import evaluate
from tinyvae.evaluation import Estimate, compare

pytestmark = pytest.mark.usefixtures("float64")


def reports(num=40, **options):
    torch.manual_seed(1)
    models = [random_linear_gaussian(), random_linear_gaussian(), random_linear_gaussian()]
    x = models[0].evidence.sample((num,))
    options = {"elbo_samples": 1, "importance_samples": 2} | options
    return models, x, {n: evaluate(m.vae, x, **options) for n, m in zip("abc", models, strict=True)}


def test_compare_gives_the_exact_paired_difference():
    models, x, found = reports()
    exact = torch.stack([m.evidence.log_prob(x) for m in models])
    comparison = compare(found)
    assert comparison.measure == "log_marginal"
    order = exact.mean(1).argsort(descending=True).tolist()
    assert list(comparison.estimates) == ["abc"[i] for i in order]
    assert comparison.best == "abc"[order[0]]
    for name, values in zip("abc", exact, strict=True):
        paired = values - exact[order[0]]
        difference = comparison.differences[name]
        assert difference.mean == pytest.approx(paired.mean().item(), abs=1e-9)
        error = stats.sem(paired.numpy())
        assert difference.standard_error == pytest.approx(error, abs=1e-9)
    assert comparison.to_dict()["a"]["nats"] == pytest.approx(exact[0].mean().item())


def test_compare_prints_a_table():
    _, _, found = reports()
    lines = str(compare(found, measure="elbo")).splitlines()
    assert lines[0].split() == ["elbo,", "nats", "mean", "difference", "std.", "error"]
    assert [len(line.split()) for line in lines[1:]] == [2, 4, 4]
    assert compare(found)._repr_html_().count("<tr>") == 4


def test_compare_refuses_what_cannot_be_compared():
    models, x, found = reports()
    options = {"elbo_samples": 1, "importance_samples": 2}
    with pytest.raises(ValueError, match="at least two reports, got 1"):
        compare({"a": found["a"]})
    for other in (x.flip(0), x + 1e-3, x[1:]):
        with pytest.raises(ValueError, match="the same data in the same order"):
            compare({"a": found["a"], "b": evaluate(models[1].vae, other, **options)})
    more = evaluate(models[1].vae, x, elbo_samples=1, importance_samples=3)
    with pytest.raises(ValueError, match=r"'a': \(40, 2\), 'b': \(40, 3\)"):
        compare({"a": found["a"], "b": more})
    assert compare({"a": found["a"], "b": more}, measure="elbo").measure == "elbo"
    with pytest.raises(ValueError, match=r"expects 'annealed' .* in 'a': choose one"):
        compare(found, measure="annealed")
    bare = replace(found["a"], log_marginal=Estimate(-1.0, 0.1, 40, num_samples=2))
    with pytest.raises(ValueError, match="with values of the examples"):
        compare({"a": bare, "b": found["b"]})


def test_compare_accepts_models_of_other_precisions_and_extra_estimates():
    models, x, found = reports()
    narrow = evaluate(models[1].vae.float(), x, elbo_samples=1, importance_samples=2)
    assert math.isfinite(compare({"a": found["a"], "b": narrow}).differences["b"].mean)
    extra = {
        name: report.with_estimate("annealed", Estimate.of(torch.arange(40.0) * scale))
        for (name, report), scale in zip(found.items(), (1, 2, 3), strict=True)
    }
    assert compare(extra, measure="annealed").best == "c"
