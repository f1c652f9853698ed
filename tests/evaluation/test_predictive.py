"""Predictive checks: uniform p-values for the model's own data, extreme ones for other data."""

import math

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from helpers.models import conditional_vae, mlp_vae
from helpers.oracles import random_linear_gaussian
from scipy import stats

from tinyvae import MLP, VAE, BernoulliLikelihood, CategoricalLikelihood, GaussianEncoder
from tinyvae.evaluation import StatisticCheck, predictive_check
from tinyvae.likelihoods import (
    CensoredLikelihood,
    MaskedLikelihood,
    MixedLikelihood,
    PoissonLikelihood,
)
from tinyvae.likelihoods.gaussian import GaussianLikelihood

pytestmark = pytest.mark.usefixtures("float64")

COUNT_STATISTICS = ["mean", "variance / mean", "share of zeros", "max"]


@pytest.mark.slow
def test_p_values_of_data_of_the_model_are_uniform():
    model = random_linear_gaussian()
    p_values = {}
    for seed in range(150):
        x = model.evidence.sample((40,))
        check = predictive_check(model.vae, x, num_draws=99, seed=seed)
        for name, statistic in check.statistics.items():
            p_values.setdefault(name, []).append(statistic.p_value)
    assert all(stats.kstest(values, "uniform").pvalue > 1e-3 for values in p_values.values())


def test_predictive_check_finds_what_the_model_misses():
    model = random_linear_gaussian()
    x = 1.5 * (model.evidence.sample((300,)) - model.evidence.mean) + model.evidence.mean
    check = predictive_check(model.vae, x)
    assert "std" in check.extreme
    assert check.statistics["std"].p_value == 0
    assert check.statistics["95% quantile"].p_value < 0.01
    assert "mean" not in check.extreme
    assert "differs" in str(check)


def test_std_of_sums_finds_correlations_that_the_model_misses():
    vae = VAE(GaussianEncoder(MLP(4), 1), MLP(1, hidden=(), out_shape=4), GaussianLikelihood(1.0))
    torch.nn.init.zeros_(vae.decoder.layers[0].weight)
    torch.nn.init.zeros_(vae.decoder.layers[0].bias)
    x = torch.randn(500, 1) * math.sqrt(0.5) + torch.randn(500, 4) * math.sqrt(0.5)
    assert predictive_check(vae, x).extreme == ["std of sums"]


def test_p_value_counts_half_of_the_equal_draws():
    check = StatisticCheck(2.0, torch.tensor([1.0, 2.0, 2.0, 3.0]))
    assert check.p_value == 0.5
    below = StatisticCheck(5.0, torch.zeros(98))
    assert (below.p_value, below.is_extreme) == (0.0, True)
    assert below.p_value_error == pytest.approx(math.sqrt(0.01 * 0.99 / 98))


@for_each(
    "likelihood, x, names",
    [
        (BernoulliLikelihood, torch.eye(4), ["mean", "std of sums"]),
        (PoissonLikelihood, torch.arange(16.0).reshape(4, 4), [*COUNT_STATISTICS, "std of sums"]),
        (
            lambda: CategoricalLikelihood(5),
            torch.tensor([[0, 1, 1, 4]]),
            ["share of 0", "share of 1", "share of 4"],
        ),
        (
            GaussianLikelihood,
            torch.randn(4, 4),
            ["mean", "std", "5% quantile", "50% quantile", "95% quantile", "std of sums"],
        ),
    ],
)
def test_default_statistics_follow_the_likelihood(likelihood, x, names):
    vae = VAE.from_shapes(4, latent_dim=2, likelihood=likelihood())
    assert list(predictive_check(vae, x, num_draws=2).statistics) == names


def table():
    rng = np.random.default_rng(0)
    return {
        "age": rng.normal(40, 10, 60),
        "visits": rng.poisson(2.0, 60),
        "smokes": rng.choice(["no", "yes"], 60),
        "city": rng.choice(["Bonn", "Lund", "Rome"], 60),
    }


def test_predictive_check_of_a_table_has_statistics_of_each_column():
    data = table()
    likelihood = MixedLikelihood.from_table(data)
    encoder = GaussianEncoder(MLP(likelihood.input_shape((4,))), latent_dim=2)
    vae = VAE(encoder, MLP(2), MaskedLikelihood(likelihood), data_shape=(4,))
    x = likelihood.to_tensor(data).double()
    x[0] = torch.nan
    check = predictive_check(vae, x, num_draws=20)
    values = {name: check.value for name, check in check.statistics.items()}
    assert values["age: mean"] == pytest.approx(data["age"][1:].mean(), rel=1e-5)
    assert values["age: std"] == pytest.approx(data["age"][1:].std(ddof=1), rel=1e-5)
    assert values["age: 95% quantile"] == pytest.approx(np.quantile(data["age"][1:], 0.95), 1e-5)
    visits = data["visits"][1:]
    assert values["visits: variance / mean"] == pytest.approx(visits.var(ddof=1) / visits.mean())
    assert values["visits: share of zeros"] == pytest.approx((visits == 0).mean())
    assert values["visits: max"] == visits.max()
    assert values["smokes: share of yes"] == pytest.approx((data["smokes"][1:] == "yes").mean())
    assert values["city: share of Lund"] == pytest.approx((data["city"][1:] == "Lund").mean())


def test_draws_have_the_missing_entries_of_the_data():
    vae = mlp_vae(MaskedLikelihood(GaussianLikelihood()), data=(4,))
    x = torch.randn(6, 4)
    mask = torch.rand(6, 4) < 0.5
    missing = []
    predictive_check(
        vae, x, mask=mask, statistics={"n": lambda x: missing.append(x.isnan()) or 0}, num_draws=2
    )
    assert all(torch.equal(pattern, ~mask) for pattern in missing)
    assert len(missing) == 3


def test_predictive_check_reads_a_context_and_leaves_the_random_state():
    vae, x, context = conditional_vae(), torch.randn(5, 4), torch.randn(5, 2)
    state = torch.get_rng_state()
    first, second = (predictive_check(vae, x, context, num_draws=3) for _ in "ab")
    assert str(first) == str(second)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.to_dict()["mean"]["data"] == pytest.approx(x.mean().item())


def test_predictive_check_draws_a_panel_per_statistic():
    vae = mlp_vae(GaussianLikelihood(), data=(4,))
    figure = predictive_check(vae, torch.randn(6, 4), num_draws=10).plot()
    assert [bool(axes.patches) for axes in figure.axes] == [True] * 6 + [False] * 2


def test_predictive_check_refuses_vectors_and_bounds():
    vae = mlp_vae(GaussianLikelihood(), data=(4,))
    with pytest.raises(ValueError, match="one number, got shape \\(4,\\) of 'means'"):
        predictive_check(vae, torch.randn(6, 4), statistics={"means": lambda x: x.mean(0)})
    censored = CensoredLikelihood(GaussianLikelihood())
    vae = VAE(
        GaussianEncoder(MLP(censored.input_shape((4, 2))), 2), MLP(2), censored, data_shape=(4, 2)
    )
    with pytest.raises(TypeError, match="expects data that are values, got bounds"):
        predictive_check(vae, torch.zeros(3, 4, 2))
