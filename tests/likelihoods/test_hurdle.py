"""Likelihoods with masses at some values."""

import math

import pytest
import torch
from helpers.cases import for_each
from helpers.runs import digest, fit, trainer_of
from helpers.training import After, raises

from tinyvae import ELBO, VAE, GaussianLikelihood, Trainer, evaluate, impute
from tinyvae.likelihoods import (
    BetaLikelihood,
    Column,
    HurdleLikelihood,
    LogNormalLikelihood,
    MaskedLikelihood,
    MixedLikelihood,
    StandardizedLikelihood,
)

pytestmark = pytest.mark.usefixtures("float64")

NAN = math.nan


def amounts(n, share=0.7):
    """Return log-normal amounts in thousands, with zeros."""
    x = (8 + 0.5 * torch.randn(n, 1)).exp()
    return torch.where(torch.rand(n, 1) < share, 0.0, x)


def make_amounts():
    return HurdleLikelihood(StandardizedLikelihood(LogNormalLikelihood(0.5), std=3000.0))


def test_encoder_reads_the_likelihoods_input_and_an_indicator_per_point():
    likelihood = HurdleLikelihood(LogNormalLikelihood(), at=(0.0, 100.0))
    assert likelihood.input_shape((3,)) == (9,)
    inputs = likelihood.encoder_input(torch.tensor([[0.0, 100.0, math.e], [NAN, 1.0, 0.0]]))
    expected = torch.tensor([[0.0, 0, 1, 1, 0, 0, 0, 1, 0], [NAN, 0, 0, NAN, 0, 1, NAN, 0, 0]])
    torch.testing.assert_close(inputs, expected, equal_nan=True)
    likelihood = HurdleLikelihood(BetaLikelihood())
    inputs = likelihood.encoder_input(torch.tensor([[0.0, 0.25]]))
    assert inputs.tolist() == [[0.0, 0.25, 1.0, 0.0]]
    assert likelihood.input_shape((2, 5, 5)) == (4, 5, 5)


def test_points_per_column():
    likelihood = HurdleLikelihood(GaussianLikelihood(1.0), at=[[0.0, 1.0], [5.0, 6.0]])
    p = likelihood(torch.zeros(3, 2), 1)
    each = p.elementwise_log_prob(torch.tensor([[0.0, 0.0], [5.0, 6.0], [1.0, 1.0]]))
    third, density = -math.log(3), GaussianLikelihood(1.0)(torch.zeros(2), 1)
    off = third + density.elementwise_log_prob(torch.tensor([1.0, 0.0]))
    expected = torch.tensor([[third, off[1]], [third, third], [off[0], third]])
    torch.testing.assert_close(each, expected)


def test_points_have_the_units_of_the_data():
    """A standardized density changes its units, and leaves points and masses alone."""
    at = (0.0, 170.0)
    inner = StandardizedLikelihood(GaussianLikelihood(1.0), mean=170.0, std=10.0)
    p = HurdleLikelihood(inner, at=at)(torch.zeros(3, 1), 1)
    log_prob = p.log_prob(torch.tensor([[0.0], [170.0], [180.0]]))
    third = -math.log(3)
    density = third - 0.5 * math.log(2 * math.pi) - 0.5 - math.log(10)
    torch.testing.assert_close(log_prob, torch.tensor([third, third, density]))


@for_each("at", [(), (0.0, 0.0), math.nan, math.inf, (1.0, 1.0 + 1e-9), [[0.0, 1.0], [2.0, 1.0]]])
def test_hurdle_expects_different_finite_points(at):
    with pytest.raises(ValueError, match="expects different finite points, got at="):
        HurdleLikelihood(GaussianLikelihood(), at=at)


def test_check_support_names_the_points():
    likelihood = HurdleLikelihood(LogNormalLikelihood(), at=(0.0, -9.0))
    assert likelihood.check_support(torch.tensor([[0.0, -9.0, 2.0]]))
    match = "HurdleLikelihood expects finite numbers > 0, or one of -9, 0, got -1..0, such as -1,"
    with pytest.raises(ValueError, match=match):
        likelihood.check_support(torch.tensor([[0.0, -1.0]]))
    assert "or 0" in HurdleLikelihood(BetaLikelihood()).support
    many = HurdleLikelihood(GaussianLikelihood(), at=list(range(9)))
    assert many.support.endswith("or one of 0, 1, 2, ...")


def test_training_finds_shares_and_density():
    x = amounts(2000)
    vae = VAE.from_shapes(1, latent_dim=1, likelihood=make_amounts())
    vae.init_output_bias(x)
    params = vae.likelihood.params_for_mean(x)[:, 0]
    is_zero = x == 0
    share = is_zero.double().mean()
    assert params[0] == pytest.approx(math.log(share / (1 - share)), rel=1e-3)
    assert params[1] == pytest.approx((x[~is_zero] / 3000).log().mean().item())
    Trainer(vae, ELBO(), progress=False).fit(x, epochs=3)
    drawn = vae.sample(4000)
    assert ((drawn == 0).double().mean() - share).abs() < 4 * math.sqrt(0.25 / 2000)
    logs = drawn[drawn > 0].log()
    assert abs(logs.mean() - 8) < 0.2
    assert 0.4 < logs.std() < 0.7
    report = evaluate(vae, x[:100], importance_samples=None)
    assert report.is_bound
    assert report.is_discrete is None
    assert report.bits_unit == "masses and densities, in the units of the data"


def test_columns_of_a_table():
    columns = [Column("age", "number", shift=40.0, scale=12.0), Column("gain", "number")]
    columns.append(Column("sex", "binary", levels=("f", "m")))
    table = MixedLikelihood(columns, likelihoods={"gain": make_amounts()})
    assert table.param_shape((3,)) == (5,)
    assert table.input_shape((3,)) == (5,)
    x = torch.cat([40 + 12 * torch.randn(400, 1), amounts(400), torch.rand(400, 1).round()], 1)
    x[torch.rand(x.shape) < 0.2] = NAN
    vae = VAE.from_shapes(3, latent_dim=2, likelihood=MaskedLikelihood(table))
    Trainer(vae, ELBO(), progress=False).fit(x, epochs=2)
    gain = vae.sample(500)[:, 1]
    assert 0 < (gain == 0).double().mean() < 1
    assert (gain >= 0).all()
    draws = impute(vae, x, num_imputations=5)
    observed = ~x.isnan()
    assert torch.equal(draws[:, observed], x[observed].expand(5, -1))
    assert table.in_support(draws.flatten(0, 1)).all()
    assert table.to_arrays(x)["gain"].dtype == float


def test_resumed_run_continues_bitwise(tmp_path):
    x = amounts(40, share=0.5)

    def trainer(folder, *callbacks):
        torch.manual_seed(0)
        return trainer_of(
            folder,
            *callbacks,
            model=lambda: VAE.from_shapes(1, latent_dim=1, likelihood=make_amounts()),
            every_steps=1,
        )

    expected = digest(fit(trainer(tmp_path / "once"), x))
    with pytest.raises(KeyboardInterrupt):
        fit(trainer(tmp_path / "twice", After(4, raises(KeyboardInterrupt()))), x)
    resumed = trainer(tmp_path / "twice")
    assert digest(fit(resumed, x, resume="auto")) == expected
