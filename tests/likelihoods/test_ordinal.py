"""Likelihood of ordered levels."""

import math

import pytest
import torch
from helpers.cases import for_each
from helpers.runs import digest, fit, trainer_of
from helpers.training import After, raises

from tinyvae import ELBO, VAE, CategoricalLikelihood, Optimization, Trainer, impute
from tinyvae.likelihoods import Column, MaskedLikelihood, MixedLikelihood, OrdinalLikelihood

pytestmark = pytest.mark.usefixtures("float64")


def test_frequencies_are_those_at_a_location_of_zero():
    shares = torch.tensor([[0.1, 0.6], [0.2, 0.3], [0.7, 0.1]])
    likelihood = OrdinalLikelihood(3, shape=(2,), frequencies=(40 * shares).tolist()).double()
    masses = likelihood(torch.zeros(3, 2), 1).elementwise_log_prob(
        torch.arange(3.0)[:, None].expand(3, 2)
    )
    torch.testing.assert_close(masses.exp(), shares)
    alike = OrdinalLikelihood(3, shape=(2,), frequencies=[0.1, 0.2, 0.7])
    torch.testing.assert_close(alike.raw[:, 0], likelihood.raw[:, 0])
    assert torch.equal(alike.raw[:, 0], alike.raw[:, 1])


@for_each("frequencies", [[1.0, 2.0], [1.0, 0.0, 2.0], [1.0, math.nan, 2.0], 1.0])
def test_expects_positive_frequencies(frequencies):
    with pytest.raises(ValueError, match=r"expects 3 finite frequencies > 0, got .*: add one half"):
        OrdinalLikelihood(3, frequencies=frequencies)


def test_expects_two_levels_and_thresholds_that_broadcast():
    with pytest.raises(ValueError, match="expects num_levels >= 2, got 1"):
        OrdinalLikelihood(1)
    with pytest.raises(ValueError, match=r"does not broadcast over data of shape \(4,\)"):
        OrdinalLikelihood(3, shape=(3,)).check_support(torch.ones(5, 4))


def test_encoder_reads_scaled_levels():
    inputs = OrdinalLikelihood(5).encoder_input(torch.tensor([[0.0, 2.0, 4.0, math.nan]]))
    torch.testing.assert_close(inputs, torch.tensor([[-1.0, 0.0, 1.0, math.nan]]), equal_nan=True)


def test_thresholds_fit_any_frequencies():
    """Without a decoder, learned thresholds reach the entropy of the levels."""
    x = torch.multinomial(torch.tensor([0.5, 0.02, 0.3, 0.18]), 2000, replacement=True).double()
    likelihood = OrdinalLikelihood(4).double()
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.1)
    for _ in range(300):
        loss = -likelihood(torch.zeros(1), 1).log_prob(x[:, None]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    shares = torch.bincount(x.long()) / len(x)
    assert loss.item() == pytest.approx(-(shares * shares.log()).sum().item(), abs=1e-4)


@pytest.mark.slow
def test_column_of_a_table_learns_an_order():
    """A latent moves the levels up and down; the bound is close to that of free classes."""
    z = torch.randn(1000, 1)
    level = (z + 0.3 * torch.randn(1000, 1) > torch.tensor([-1.0, 0.0, 1.2])).sum(1, keepdim=True)
    x = torch.cat([z + 0.1 * torch.randn(1000, 1), level], 1)
    columns = [Column("a", "number"), Column("b", "number")]
    elbos = {}
    for b in (OrdinalLikelihood(4, shape=(1,)), CategoricalLikelihood(4)):
        torch.manual_seed(0)
        likelihood = MaskedLikelihood(MixedLikelihood(columns, likelihoods={"b": b}))
        vae = VAE.from_shapes(2, latent_dim=1, likelihood=likelihood)
        optimization = Optimization(1e-2, schedule="linear")
        history = Trainer(vae, ELBO(), optimization, progress=False).fit(x, epochs=40)
        elbos[type(b).__name__] = history["train/elbo_nats"][-1]
    assert elbos["OrdinalLikelihood"] > elbos["CategoricalLikelihood"] - 0.15
    x[:200, 1] = math.nan
    filled = impute(vae, x)
    assert (filled[:200, 1].round() - level[:200, 0]).abs().mean() < 0.6


def test_resumed_run_continues_bitwise(tmp_path):
    x = torch.randint(4, (40, 3)).float()

    def trainer(folder, *callbacks):
        torch.manual_seed(0)
        return trainer_of(
            folder,
            *callbacks,
            model=lambda: VAE.from_shapes(
                3, latent_dim=2, likelihood=OrdinalLikelihood(4, shape=(3,))
            ),
            every_steps=1,
        )

    expected = digest(fit(trainer(tmp_path / "once"), x))
    with pytest.raises(KeyboardInterrupt):
        fit(trainer(tmp_path / "twice", After(4, raises(KeyboardInterrupt()))), x)
    assert digest(fit(trainer(tmp_path / "twice"), x, resume="auto")) == expected
