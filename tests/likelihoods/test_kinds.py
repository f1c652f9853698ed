"""Kinds of columns, chosen by the data."""

import math
import uuid
from collections import Counter
from datetime import UTC, date, datetime, time

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from scipy import stats

from tinyvae import ELBO, VAE, Trainer
from tinyvae.likelihoods import MaskedLikelihood, MixedLikelihood
from tinyvae.likelihoods.inference import infer_columns
from tinyvae.likelihoods.kinds import KINDS, initial_value
from tinyvae.likelihoods.marginals import find_modes

pytestmark = pytest.mark.usefixtures("float64")


def draws(distribution, rows=1000, seed=0, **options):
    return distribution.rvs(size=rows, random_state=np.random.default_rng(seed), **options)


def whole(values):
    return values.round().astype(int)


# name: (values, kind)
COLUMNS = {
    # Integers far from zero, or less dispersed than counts
    "height": (whole(draws(stats.norm(170, 9))), "number"),
    "year": (draws(stats.randint(2000, 2021)), "number"),
    "blood pressure": (whole(draws(stats.norm(120, 18))), "number"),
    "temperature": (whole(draws(stats.norm(5, 8))), "number"),
    "hours": (draws(stats.randint(0, 24)), "number"),
    "ages": (draws(stats.randint(18, 80)), "number"),
    "days of months": (draws(stats.randint(1, 32)), "number"),
    "Poisson(60)": (draws(stats.poisson(60)), "number"),
    "binomial(40, 0.2)": (draws(stats.binom(40, 0.2)), "ordinal"),
    # Counts
    **{f"Poisson({mean})": (draws(stats.poisson(mean)), "count") for mean in (0.3, 1, 3, 8)},
    "20 of Poisson(3)": (draws(stats.poisson(3), rows=20), "count"),
    "geometric": (draws(stats.geom(0.3)), "count"),
    "dispersed": (draws(stats.nbinom(2, 0.1)), "count"),
    # Codes and ratings
    "codes from 0": (draws(stats.randint(0, 7)), "category"),
    "codes from 1": (draws(stats.randint(1, 8)), "category"),
    "10, 20, 30": (10 * draws(stats.randint(1, 4)), "category"),
    "extremes": (np.repeat([1, 2, 3, 4, 5], [300, 150, 100, 150, 300]), "category"),
    "negative codes": (draws(stats.randint(-2, 3)), "category"),
    "few years": (draws(stats.randint(2006, 2011)), "category"),
    # Ordered levels
    "stars": (1 + draws(stats.binom(4, 0.7)), "ordinal"),
    "months": (draws(stats.randint(1, 13)), "ordinal"),
    "ten points": (1 + (draws(stats.norm(0, 4)).astype(int) % 10), "ordinal"),
    # Amounts
    "prices": (whole(draws(stats.lognorm(0.5, scale=1e5))), "positive"),
    "salaries": (draws(stats.lognorm(0.8, scale=2e4)), "positive"),
    "gains, mostly zero": (
        whole(draws(stats.lognorm(1, scale=5e3))) * draws(stats.bernoulli(0.1), seed=1),
        "amount",
    ),
    "spending, half zero": (
        draws(stats.lognorm(1, scale=50)) * draws(stats.bernoulli(0.5), seed=1),
        "amount",
    ),
    "hours, half 40": (
        np.where(draws(stats.bernoulli(0.5), seed=1), 40, whole(draws(stats.norm(35, 12)))),
        "amount",
    ),
    "100 rows of gains": (
        whole(draws(stats.lognorm(1, scale=5e3), rows=100)) * (np.arange(100) % 9 == 0),
        "amount",
    ),
    "log-normal without a stable variance": (draws(stats.lognorm(3)), "number"),
    # Real numbers
    "normal": (draws(stats.norm(50, 10)), "number"),
    "exponential": (draws(stats.expon(scale=3)), "number"),
    "shares": (draws(stats.beta(0.8, 2)), "bounded"),
    "shares with ends": (draws(stats.norm(0.5, 0.5)).clip(0, 1), "bounded"),
    "exam": (100 * draws(stats.beta(4, 1)), "bounded"),
    "heavy tails": (draws(stats.t(1.5)), "heavy"),
    "two modes": (draws(stats.norm(0, 1)) + 6 * draws(stats.bernoulli(0.4), seed=1), "modes"),
    "whole floats": (draws(stats.poisson(3)).astype(float), "count"),
    "few whole floats": (draws(stats.poisson(3), rows=15).astype(float), "number"),
    "floats of one decimal": (draws(stats.norm(5, 1)).round(1), "number"),
    # Not modeled
    "numbers of rows": (np.random.default_rng(0).permutation(50), "identifier"),
    "numbers from 1": (np.arange(1, 31), "identifier"),
    "numbers of customers": (np.arange(2500, 2600), "identifier"),
    "years in order": (np.arange(1980, 2020), "number"),
    "large numbers": (2**53 + 3 * np.arange(20) ** 2, "identifier"),
    "names": (np.array([f"name {i}" for i in range(11)]), "identifier"),
    "most names": (np.array([f"name {i % 40}" for i in range(60)]), "identifier"),
    "cities": (np.array([f"city {i % 40}" for i in range(100)]), "category"),
    "UUIDs": (np.array([str(uuid.UUID(int=i)) for i in range(4)]), "identifier"),
    "UUID objects": (np.array([uuid.UUID(int=i) for i in range(4)]), "identifier"),
    "one value": (np.full(50, 2.5), "constant"),
    "missing": (np.full(50, np.nan), "constant"),
    "days": (np.arange(50).astype("datetime64[D]"), "date"),
}


@for_each(("name", "values", "kind"), [(name, *case) for name, case in COLUMNS.items()])
def test_infer_columns_chooses_the_kind_by_the_data(name, values, kind):
    (column,) = infer_columns({name: values})
    assert column.kind == kind


# name: draws n values of a column of known kind
SIMULATED = {
    "number": lambda g, n: g.normal(3, 2, n),
    "heavy": lambda g, n: g.standard_t(2, n),
    "modes": lambda g, n: g.normal(6 * g.integers(0, 3, n), 1),
    "positive": lambda g, n: g.lognormal(2, 0.8, n),
    "amount": lambda g, n: g.lognormal(2, 0.8, n) * (g.random(n) < 0.5),
    "bounded": lambda g, n: 1 / (1 + np.exp(-g.normal(0.5, 2, n))),
    "count": lambda g, n: g.poisson(g.gamma(2, 2, n)),
    "ordinal": lambda g, n: 1 + g.binomial(6, 0.6, n),
    "binary": lambda g, n: g.integers(0, 2, n),
    "category": lambda g, n: g.choice([4, 0, 3, 1, 5, 2], n, p=[0.3, 0.25, 0.05, 0.2, 0.1, 0.1]),
    "date": lambda g, n: g.integers(0, 9_999, n).astype("datetime64[D]"),
    "constant": lambda _, n: np.full(n, 7.5),
    "identifier": lambda g, n: g.permutation(n),
}


@pytest.mark.slow
@for_each(("rows", "least"), [(200, 0.8), (1000, 0.95), (20_000, 0.95)])
def test_kinds_of_simulated_columns_are_found(rows, least):
    confusion = {
        kind: Counter(
            infer_columns({"a": draw(np.random.default_rng(seed), rows)})[0].kind
            for seed in range(20)
        )
        for kind, draw in SIMULATED.items()
    }
    assert set(confusion) == set(KINDS)
    wrong = {kind: found for kind, found in confusion.items() if found[kind] < 20 * least}
    assert not wrong


@for_each("name", SIMULATED)
def test_kinds_depend_neither_on_dtype_nor_on_unit(name):
    values = SIMULATED[name](np.random.default_rng(0), 500)
    (column,) = infer_columns({"a": values})
    for same in (values.tolist(), values.astype(object)):
        assert infer_columns({"a": same})[0].kind == column.kind
    if name in ("number", "heavy", "modes", "positive", "amount"):
        assert infer_columns({"a": 1e-6 * values})[0].kind == column.kind


@pytest.mark.parametrize("kind", ["ordinal", "category"])
def test_standardized_integers_have_the_kind_of_the_integers(kind):
    rng = np.random.default_rng(0)
    values = rng.binomial(6, 0.5, 500) if kind == "ordinal" else rng.choice([0, 3, 7], 500)
    standardized = (values - values.mean()) / values.std()
    (column,) = infer_columns({"a": standardized}, None)
    assert column.kind == kind
    assert len(column.levels) == len(np.unique(values))


@for_each("rows", [1, 2, 3, 5, 20])
def test_few_rows_have_kinds_that_can_be_modeled(rows):
    for seed in range(10):
        generator = np.random.default_rng(seed)
        table = {kind: draw(generator, rows) for kind, draw in SIMULATED.items()}
        if rows == 1:
            with pytest.raises(ValueError, match="got only constants and identifiers"):
                MixedLikelihood.from_table(table)
            continue
        likelihood = MixedLikelihood.from_table(table)
        x = likelihood.to_tensor(table)
        assert likelihood.check_support(x)
        p = likelihood(likelihood.params_for_mean(x), 1)
        assert torch.isfinite(p.log_prob(x)).all()


def test_infer_columns_leaves_text_out_that_differs_in_most_rows():
    names = [f"name {i}" for i in range(30)]
    (column,) = infer_columns({"a": names})
    assert column.describe() == "identifier, left out, every row has different texts"
    assert infer_columns({"a": names}, {"a": "category"})[0].levels == tuple(sorted(names))


def test_infer_columns_refuses_numbers_as_text_that_differ_in_most_rows():
    numbers = [str(i / 7) for i in range(30)]
    with pytest.raises(
        ValueError, match=r"got 30 different .*: convert it with astype\(float\), or"
    ):
        infer_columns({"a": numbers})
    with pytest.raises(ValueError, match=r"astype\(float\) after marking '\?' as missing"):
        infer_columns({"a": [*numbers, "?"]})


def test_infer_columns_warns_about_numbers_as_text():
    with pytest.warns(UserWarning, match=r"'a' holds numbers as text, .* category: convert it"):
        (column,) = infer_columns({"a": [str(i % 12) for i in range(100)]})
    assert column.kind == "category"
    (column,) = infer_columns({"a": [str(i % 5) for i in range(100)]})
    assert column.kind == "category"


@for_each(
    ("values", "message"),
    [
        ([1.0, math.inf, 2.0], "finite numbers, got infinity"),
        ([date(2020, 1, 1), datetime(2020, 1, 2), None], "of one type without time zones"),
        ([datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 2, tzinfo=UTC)], "time zones"),
        ([time(1), time(2), time(1)], "convert other types with str"),
    ],
)
def test_infer_columns_rejects_values_without_a_model(values, message):
    with pytest.raises(ValueError, match=f"column 'a' expects .*{message}"):
        infer_columns({"a": values})


def test_initial_value_is_the_spread_of_the_column():
    counts = draws(stats.nbinom(2, 0.1), rows=100_000)
    assert initial_value("count", counts) == pytest.approx(2, rel=0.05)
    amounts = draws(stats.lognorm(0.7, scale=30), rows=100_000)
    assert initial_value("positive", amounts) == pytest.approx(0.7, rel=0.01)
    likelihood = MixedLikelihood.from_table(
        {"a": counts, "b": amounts, "c": draws(stats.poisson(3), rows=100_000)}
    )
    params = torch.zeros(likelihood.param_shape((3,)))
    with torch.no_grad():
        sample = likelihood(params, 1).sample((100_000,)).std(0)
    expected = torch.tensor([counts.std(), amounts.std(), 3**0.5])
    torch.testing.assert_close(sample, expected, rtol=0.05, atol=0)


@pytest.mark.slow
def test_draws_of_a_fitted_model_have_the_moments_of_the_columns():
    generator = np.random.default_rng(0)
    size = generator.normal(size=2000)
    table = {
        "height": whole(170 + 7 * size + 5 * generator.normal(size=2000)),
        "year": generator.integers(2000, 2021, 2000),
        "temperature": whole(5 + 8 * size),
        "visits": generator.poisson(np.exp(1 + 0.5 * size)),
        "price": whole(generator.lognormal(12 + 0.3 * size, 0.4)),
        "code": generator.integers(0, 7, 2000),
        "share": generator.beta(2, 5, 2000),
    }
    likelihood = MixedLikelihood.from_table(table)
    x = likelihood.to_tensor(table)
    torch.manual_seed(0)
    vae = VAE.from_shapes(len(table), latent_dim=3, likelihood=MaskedLikelihood(likelihood))
    Trainer(vae, ELBO(), progress=False).fit(x, epochs=40)
    torch.manual_seed(0)
    drawn = likelihood.to_arrays(vae.sample(10_000))
    for name, values in table.items():
        assert drawn[name].dtype == values.dtype
        assert abs(drawn[name].mean() - values.mean()) < 0.15 * values.std(), name
        assert drawn[name].std() == pytest.approx(values.std(), rel=0.15), name


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([f"2020-{month:02}-{day:02}" for month in range(1, 7) for day in range(1, 6)], "dates"),
        ([f"{day}.{month}.2020" for month in range(1, 7) for day in range(1, 6)], "dates"),
        ([f"{1000 + 7 * i:,}.50 EUR" for i in range(30)], "numbers"),
        ([f"{i / 3:.2f}%" for i in range(30)], "numbers"),
    ],
)
def test_text_that_hides_dates_or_numbers_is_left_out_with_a_warning(values, expected):
    with pytest.warns(UserWarning, match=f"left out.* looks like {expected}: .*to_datetime|astype"):
        likelihood = MixedLikelihood.from_table({"x": values, "y": [0.5, 1.5, 2.5] * 10})
    assert likelihood.columns[0].kind == "identifier"
    assert f"looks like {expected}" in likelihood.describe()


@pytest.mark.filterwarnings("error")
def test_find_modes_accepts_a_width_that_is_tiny_beside_the_range():
    values = np.array([1e-300] * 30 + [3e-300] * 30 + [1e100] * 2)
    assert len(find_modes(values)) <= 1
