"""Measures of synthetic rows and the exact conditionals that benchmarks compare with."""

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pandas = pytest.importorskip("pandas")
pytest.importorskip("sklearn")
ROOT = Path(__file__).parents[2]
NUMBERS = ["a", "c"]


@pytest.fixture(scope="module")
def tabular():
    """Import parts of benchmarks/tabular, which is not installed."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from tabular import conditional, development, quality

        yield argparse.Namespace(conditional=conditional, development=development, quality=quality)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def rows(seed, size=400):
    """Return a table with dependent columns and missing values."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=size)
    b = np.where(a + 0.3 * rng.normal(size=size) > 0, "x", "y").astype(object)
    b[rng.random(size) < 0.1] = np.nan
    return pandas.DataFrame({"a": a, "b": b, "c": a + rng.normal(size=size), "d": b})


def test_quality_by_hand(tabular):
    real = pandas.DataFrame({"a": [0.0, 1.0, 2.0, 3.0], "b": ["x", "x", "y", "y"]})
    synthetic = pandas.DataFrame({"a": [0.0, 1.0, 1.0, 3.0], "b": ["x", "y", "y", "y"]})
    scores = tabular.quality.quality(real, synthetic, ["a"])
    # Shapes: KS .25, total variation .25. Pairs in bins: (0, x) agrees, 1 of 4 rows.
    assert scores["shapes"] == pytest.approx(0.75)
    assert scores["pairs"] == pytest.approx(0.5)
    assert scores["quality"] == pytest.approx(0.625)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_quality_agrees_with_sdmetrics(tabular):
    pytest.importorskip("sdmetrics")
    real, synthetic = rows(0), rows(1)
    scores = tabular.quality.quality(real, synthetic, NUMBERS)
    for strict, name in ((False, "quality"), (True, "strict_quality")):
        expected = tabular.quality.sdmetrics_quality(real, synthetic, NUMBERS, strict=strict)
        assert scores[name] == pytest.approx(expected, abs=1e-12)


def test_closest_records_finds_copies(tabular):
    train, held_out = rows(0), rows(1)
    copied = tabular.quality.closest_records(train, held_out, train, NUMBERS)
    assert copied["near_copies"] == copied["copies"] == 1.0
    fresh = tabular.quality.closest_records(train, held_out, rows(2), NUMBERS)
    assert fresh["copies"] == fresh["held_out_copies"] == 0.0
    assert fresh["near_copies"] == pytest.approx(0.05, abs=4 * np.sqrt(2 * 0.05 * 0.95 / 400))


def test_closest_records_by_brute_force(tabular):
    train, held_out = rows(0, size=40), rows(1, size=30)
    points = tabular.quality._points([train, held_out], NUMBERS)
    ranks = {n: np.array([(train[n] < v).mean() for v in held_out[n]]) for n in NUMBERS}
    expected = []
    for i in range(len(held_out)):
        squares = np.zeros(len(train))
        for name in NUMBERS:
            own = (train[name].rank() - 0.5) / len(train)
            squares += (own.to_numpy() - ranks[name][i]) ** 2
        for name in ("b", "d"):
            same = train[name].eq(held_out[name][i]) | (
                train[name].isna() & pandas.isna(held_out[name][i])
            )
            squares += ~same.to_numpy()
        expected.append(np.sqrt(squares.min()))
    got = tabular.quality._distances(points[1], points[0])
    np.testing.assert_allclose(got, expected, atol=1e-7)


def test_efficacy_of_independent_columns_is_chance(tabular):
    train, test = rows(0, size=2000).dropna(), rows(1, size=2000).dropna()
    arguments = (test, "b", "x", NUMBERS)
    table, shuffled = train[["a", "b", "c"]], train[["a", "b", "c"]].copy()
    shuffled["b"] = np.random.default_rng(0).permutation(shuffled["b"])
    assert tabular.quality.efficacy(table, *arguments) > 0.95
    assert abs(tabular.quality.efficacy(shuffled, *arguments) - 0.5) < 0.1


@pytest.mark.slow
def test_exact_marginals_by_enumeration(tabular):
    conditional = tabular.conditional
    vae, _ = conditional.enumerable_model(0)
    sizes = conditional.LEVELS
    levels = torch.tensor(list(itertools.product(*map(range, sizes))), dtype=torch.float32)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    z = torch.from_numpy(np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)).float()
    w = torch.from_numpy(np.outer(weights, weights).reshape(-1) / (2 * np.pi))
    with torch.no_grad():
        p = vae.likelihood(vae.decoder(z), 1)
        mass = torch.stack(
            [(w * p.log_prob(row.expand(1, -1)).double().exp()).sum() for row in levels]
        )
    assert mass.sum().item() == pytest.approx(1, abs=1e-5)
    given = torch.full((1, len(sizes)), torch.nan)
    given[0, 1], given[0, 2] = 1.0, 3.0
    agrees = (levels[:, 1] == 1) & (levels[:, 2] == 3)
    marginals = conditional.exact_marginals(vae, given)
    for index in (0, 3, 4):
        marginal = marginals[index]
        shares = [mass[agrees & (levels[:, index] == level)].sum() for level in range(sizes[index])]
        expected = torch.stack(shares) / mass[agrees].sum()
        torch.testing.assert_close(marginal[0], expected, rtol=0, atol=1e-4)


def test_merge_makes_one_table_of_several_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import tables

    result = {"set": "a", "setting": "distinct", "method": "m", "seconds": 1.0}
    for seed in (0, 1):
        record = {"part": "anomalies", "records": [result | {"seed": seed, "auroc": 60.0 + seed}]}
        tables.write(record, tmp_path / str(seed))
    files = [tmp_path / str(seed) / "tables_anomalies.json" for seed in (0, 1)]
    tables.merge(files, tmp_path)
    assert "| mean | 60.5 |" in capsys.readouterr().out
    merged = json.loads((tmp_path / "tables_anomalies.json").read_text())
    assert [r["seed"] for r in merged["records"]] == [0, 1]


def test_made_anomalies_keep_or_leave_the_columns(tabular):
    x = np.random.default_rng(0).normal(size=(300, 3)) * [1, 2, 3]
    made = tabular.development.made_anomalies(x, 2000, np.random.default_rng(1))
    # Uniform over 1.2 times the range of each column.
    np.testing.assert_allclose(made["global"].std(0), 1.2 * np.ptp(x, 0) / 12**0.5, rtol=0.05)
    for j in range(3):
        assert np.isin(made["dependency"][:, j], x[:, j]).all()
    assert not (made["dependency"][:, None] == x[None]).all(2).any(1).mean() > 0.1
    spread = np.cov(made["local"].T).trace() / np.cov(x.T).trace()
    assert 2 < spread < 5  # 5 within the components, 1 between them
