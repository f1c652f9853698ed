"""Coverage of predictive intervals, by a model that is known to be calibrated."""

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from helpers.models import mlp_vae
from helpers.oracles import random_linear_gaussian
from scipy import stats

from tinyvae import MLP, VAE, BernoulliLikelihood, GaussianEncoder, GaussianLikelihood
from tinyvae.evaluation import Calibration, interval_calibration
from tinyvae.likelihoods import MaskedLikelihood, MixedLikelihood

pytestmark = pytest.mark.usefixtures("float64")


def masked(model, std=0.7):
    likelihood = MaskedLikelihood(GaussianLikelihood(std))
    return VAE(model.vae.encoder, model.vae.decoder, likelihood)


def test_intervals_of_the_true_model_are_calibrated():
    model = random_linear_gaussian()
    x = model.evidence.sample((600,))
    calibration = interval_calibration(masked(model), x, hidden=0.3)
    ranks = calibration.ranks[~calibration.ranks.isnan()]
    assert 700 < len(ranks) < 1100
    assert stats.kstest(ranks, "uniform").pvalue > 1e-3
    for level in (0.5, 0.9):
        share, error = calibration.coverage(level)
        assert abs(share - level) < 4 * error
    assert all(abs(s - 0.9) < 4 * e for s, e in calibration.by_column().values())


def test_intervals_of_a_model_with_too_little_noise_cover_too_little():
    model = random_linear_gaussian()
    x = model.evidence.sample((60,))
    share, error = interval_calibration(masked(model, std=0.3), x).coverage(0.9)
    assert share + 4 * error < 0.9


def test_ranks_of_ties_are_uniform():
    vae = mlp_vae(MaskedLikelihood(BernoulliLikelihood()), data=(4,))
    x = vae.sample(400)
    ranks = interval_calibration(vae, x, hidden=0.25, num_draws=20).ranks
    assert stats.kstest(ranks[~ranks.isnan()], "uniform").pvalue > 1e-3


def test_coverage_and_error_treat_examples_as_clusters():
    ranks = torch.tensor([[0.5, 0.5], [0.01, 0.99], [0.5, torch.nan]])
    share, error = Calibration(ranks).coverage(0.9)
    assert share == pytest.approx(3 / 5)
    assert error == pytest.approx(np.sqrt(0.8**2 + 1.2**2 + 0.4**2) / 5)
    assert Calibration(ranks, ("a", "b")).by_column()["b"][0] == 0.5


def test_calibration_hides_the_given_entries_of_a_table():
    rng = np.random.default_rng(0)
    data = {"age": rng.normal(40, 10, 40), "city": rng.choice(["Bonn", "Lund", "Rome"], 40)}
    likelihood = MixedLikelihood.from_table(data)
    encoder = GaussianEncoder(MLP(likelihood.input_shape((2,))), latent_dim=2)
    vae = VAE(encoder, MLP(2), MaskedLikelihood(likelihood), data_shape=(2,))
    x = likelihood.to_tensor(data)
    hidden = torch.zeros(40, 2, dtype=torch.bool)
    hidden[::2, 1] = True
    x[0, 1] = torch.nan
    calibration = interval_calibration(vae, x, hidden=hidden, num_draws=20)
    expected = hidden.clone()
    expected[0, 1] = False
    assert torch.equal(~calibration.ranks.isnan(), expected)
    assert "90% intervals of city" in str(calibration)
    assert len(calibration.plot().axes[0].lines) == 2


@for_each(
    "hidden, message",
    [
        (0.0, "share 0 < hidden < 1"),
        (torch.ones(3), "of the shape of x"),
        (torch.zeros(5, 4), "got none: hide more"),
    ],
)
def test_calibration_refuses_hidden_entries(hidden, message):
    vae = mlp_vae(MaskedLikelihood(GaussianLikelihood()), data=(4,))
    with pytest.raises(ValueError, match=message):
        interval_calibration(vae, torch.randn(5, 4), hidden=hidden)


def test_calibration_refuses_likelihoods_without_a_mask():
    with pytest.raises(TypeError, match="expects a MaskedLikelihood"):
        interval_calibration(mlp_vae(GaussianLikelihood(), data=(4,)), torch.randn(5, 4))
