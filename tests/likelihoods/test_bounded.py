"""Likelihood of numbers in an interval."""

import math

import pytest
import torch
from helpers.cases import for_each

from tinyvae import ELBO, VAE, Trainer
from tinyvae.likelihoods import (
    Column,
    HurdleLikelihood,
    Learned,
    LogitNormalLikelihood,
    MaskedLikelihood,
    MixedLikelihood,
)

pytestmark = pytest.mark.usefixtures("float64")


@for_each(("low", "high"), [(0.0, 0.0), (2.0, 1.0), (0.0, math.inf), ([0.0, 3.0], 2.0)])
def test_expects_an_interval(low, high):
    with pytest.raises(ValueError, match="expects finite low < high, got low="):
        LogitNormalLikelihood(low=low, high=high)


def test_ends_per_column():
    likelihood = LogitNormalLikelihood(1.0, low=[0.0, -1.0], high=[1.0, 3.0])
    x = torch.tensor([[0.5, 2.5]])
    assert likelihood.check_support(x)
    torch.testing.assert_close(likelihood.fill_value, torch.tensor([0.5, 1.0]))
    inputs = likelihood.encoder_input(x)
    torch.testing.assert_close(inputs, torch.tensor([[0.0, math.log(7)]]))
    with pytest.raises(ValueError, match=r"interval \(low, high\), got .* give values at the ends"):
        likelihood.check_support(torch.tensor([[0.5, 3.0]]))
    for name in ("low", "high"):
        one = LogitNormalLikelihood(**{name: [0.0, 0.1] if name == "low" else [1.0, 2.0]})
        with pytest.raises(ValueError, match=r"does not broadcast over data of shape \(3,\)"):
            one.check_support(torch.full((2, 3), 0.5))


def test_percentages_with_masses_at_both_ends():
    """A column of a table, with missing values: shares of the ends and of the rest are found."""
    x = 100 * torch.sigmoid(1 + 0.5 * torch.randn(2000, 1))
    x = torch.where(torch.rand(2000, 1) < 0.2, 0.0, x)
    x = torch.where(torch.rand(2000, 1) < 0.25, 100.0, x)
    share = HurdleLikelihood(
        LogitNormalLikelihood(Learned(initial=0.5), high=100.0), at=(0.0, 100.0)
    )
    table = MixedLikelihood([Column("share", "number")], likelihoods={"share": share})
    assert table.param_shape((1,)) == (3,)
    vae = VAE.from_shapes(1, latent_dim=1, likelihood=MaskedLikelihood(table))
    vae.init_output_bias(x)
    x[::5] = math.nan
    Trainer(vae, ELBO(), progress=False).fit(x, epochs=2)
    drawn, data = vae.sample(4000), x[~x.isnan()]
    for value in (0.0, 100.0):
        expected = (data == value).double().mean()
        assert ((drawn == value).double().mean() - expected).abs() < 0.05
    rest = drawn[(drawn != 0) & (drawn != 100)] / 100
    assert ((rest > 0) & (rest < 1)).all()
    assert rest.logit().mean().item() == pytest.approx(1, abs=0.15)
