"""Kinds of columns, chosen by the data."""

import math

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from scipy import stats

from tinyvae import ELBO, VAE, Trainer
from tinyvae.likelihoods import MaskedLikelihood, MixedLikelihood
from tinyvae.likelihoods.inference import infer_columns
from tinyvae.likelihoods.kinds import initial_value

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
    "months": (draws(stats.randint(1, 13)), "number"),
    "days": (draws(stats.randint(1, 32)), "number"),
    "Poisson(60)": (draws(stats.poisson(60)), "number"),
    "binomial(40, 0.2)": (draws(stats.binom(40, 0.2)), "number"),
    # Counts
    **{f"Poisson({mean})": (draws(stats.poisson(mean)), "count") for mean in (0.3, 1, 3, 8)},
    "20 of Poisson(3)": (draws(stats.poisson(3), rows=20), "count"),
    "geometric": (draws(stats.geom(0.3)), "count"),
    "dispersed": (draws(stats.nbinom(2, 0.1)), "count"),
    # Codes and ratings
    "codes from 0": (draws(stats.randint(0, 7)), "category"),
    "codes from 1": (draws(stats.randint(1, 8)), "category"),
    "10, 20, 30": (10 * draws(stats.randint(1, 4)), "category"),
    "stars": (1 + draws(stats.binom(4, 0.7)), "category"),
    "extremes": (np.repeat([1, 2, 3, 4, 5], [300, 150, 100, 150, 300]), "category"),
    "negative codes": (draws(stats.randint(-2, 3)), "category"),
    "few years": (draws(stats.randint(2006, 2011)), "category"),
    # Amounts
    "prices": (whole(draws(stats.lognorm(0.5, scale=1e5))), "positive"),
    "salaries": (draws(stats.lognorm(0.8, scale=2e4)), "positive"),
    "gains, mostly zero": (
        whole(draws(stats.lognorm(1, scale=5e3))) * draws(stats.bernoulli(0.1), seed=1),
        "number",
    ),
    "spending, half zero": (
        draws(stats.lognorm(1, scale=50)) * draws(stats.bernoulli(0.5), seed=1),
        "number",
    ),
    "log-normal without a stable variance": (draws(stats.lognorm(3)), "number"),
    # Real numbers
    "normal": (draws(stats.norm(50, 10)), "number"),
    "exponential": (draws(stats.expon(scale=3)), "number"),
    "shares": (draws(stats.beta(2, 5)), "number"),
    "heavy tails": (draws(stats.t(1.5)), "number"),
    "whole floats": (draws(stats.poisson(3)).astype(float), "number"),
}


@for_each(("name", "values", "kind"), [(name, *case) for name, case in COLUMNS.items()])
def test_infer_columns_chooses_the_kind_by_the_data(name, values, kind):
    (column,) = infer_columns({name: values})
    assert column.kind == kind


def test_infer_columns_warns_about_row_numbers():
    numbers = np.random.default_rng(0).permutation(50) + 7
    with pytest.warns(UserWarning, match="column 'id' numbers the rows: leave it out"):
        (column,) = infer_columns({"id": numbers})
    assert column.kind == "number"


def test_infer_columns_refuses_text_that_differs_in_most_rows():
    names = [f"name {i}" for i in range(30)]
    with pytest.raises(ValueError, match=r"'a' expects .*, got 30 different.*kinds={'a': 'categ"):
        infer_columns({"a": names})
    assert infer_columns({"a": names}, {"a": "category"})[0].levels == tuple(sorted(names))
    numbers = [str(i / 7) for i in range(30)]
    with pytest.raises(ValueError, match=r"got 30 different .*: convert it with astype\(float\)$"):
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
        (np.array(["2020-01-01", "2021-01-01"], "datetime64[D]"), "dates or durations"),
        (np.array([1, 2], "timedelta64[D]"), "dates or durations"),
        (list(np.array(["2020-01-01", "2021-01-01", "NaT"], "datetime64[D]")), "dates or dur"),
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
