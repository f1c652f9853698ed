"""Likelihoods of the outcomes of a number of trials."""

import math

import pytest
import torch
from helpers.cases import for_each
from helpers.runs import digest, fit, trainer_of
from helpers.training import After, raises

from tinyvae import ELBO, VAE, Optimization, Trainer, evaluate, impute
from tinyvae.likelihoods import (
    BetaBinomialLikelihood,
    Column,
    MaskedLikelihood,
    MixedLikelihood,
    MultinomialLikelihood,
    StandardizedLikelihood,
)

pytestmark = pytest.mark.usefixtures("float64")


@for_each("num_trials", [0, -1, 2.5, [3, 0], [], math.nan])
def test_beta_binomial_expects_trials(num_trials):
    with pytest.raises(ValueError, match="expects integers num_trials >= 1, got"):
        BetaBinomialLikelihood(num_trials)


@for_each("num_trials", [0, 1.5])
def test_multinomial_expects_trials(num_trials):
    with pytest.raises(ValueError, match="expects an integer num_trials >= 1, got"):
        MultinomialLikelihood(num_trials)


def test_trials_per_column():
    likelihood = BetaBinomialLikelihood([4, 10])
    assert likelihood.check_support(torch.tensor([[4, 10], [0, 5]]))
    with pytest.raises(ValueError, match=r"expects integers 0 to num_trials, got .* such as 5,"):
        likelihood.check_support(torch.tensor([[5.0, 10.0]]))
    with pytest.raises(ValueError, match=r"does not broadcast over data of shape \(3,\)"):
        likelihood.check_support(torch.ones(2, 3))
    inputs = likelihood.encoder_input(torch.tensor([[2.0, 10.0]]))
    assert inputs.tolist() == [[0.0, 1.0]]
    with pytest.raises(TypeError, match="masses have no units"):
        StandardizedLikelihood(likelihood)


@pytest.mark.slow
def test_column_of_a_table():
    """Right answers of a test, which another column predicts."""
    skill = torch.randn(800, 1)
    right = torch.binomial(torch.full((800, 1), 10.0), torch.sigmoid(1.5 * skill))
    x = torch.cat([skill + 0.1 * torch.randn(800, 1), right], 1)
    columns = [Column("skill", "number"), Column("right", "number")]
    table = MixedLikelihood(columns, likelihoods={"right": BetaBinomialLikelihood(10)})
    vae = VAE.from_shapes(2, latent_dim=1, likelihood=MaskedLikelihood(table))
    vae.init_output_bias(x)
    Trainer(vae, ELBO(), Optimization(5e-3), progress=False).fit(x, epochs=20)
    drawn = vae.sample(500)[:, 1]
    assert ((drawn >= 0) & (drawn <= 10) & (drawn == drawn.round())).all()
    hidden = x[:100].clone()
    hidden[:, 1] = math.nan
    error = (impute(vae, hidden, num_samples=100)[:, 1] - right[:100, 0]).square().mean()
    assert error < 0.5 * right.var()


def test_multinomial_scores_the_total_of_each_datum():
    likelihood = MultinomialLikelihood(10)
    x = torch.tensor([[3.0, 0.0, 1.0], [0.0, 0.0, 0.0], [30.0, 10.0, 2.0]])
    assert likelihood.check_support(x)
    theirs = [torch.distributions.Multinomial(int(n), logits=torch.zeros(3)) for n in (4, 0, 42)]
    expected = [p.log_prob(row) for p, row in zip(theirs, x, strict=True)]
    torch.testing.assert_close(likelihood(torch.zeros(3, 3), 1).log_prob(x), torch.stack(expected))
    assert likelihood.num_dims(x).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"expects integers >= 0, got .*: pass counts, not shares"):
        likelihood.check_support(x / 4)


def test_multinomial_finds_shares():
    kind = torch.rand(1000, 1) < 0.5
    shares = torch.where(kind, torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.1, 0.2, 0.7]))
    index = torch.multinomial(shares, 30, replacement=True)
    x = torch.nn.functional.one_hot(index, 3).sum(1).double()
    vae = VAE.from_shapes(3, latent_dim=1, likelihood=MultinomialLikelihood(30))
    vae.init_output_bias(x)
    Trainer(vae, ELBO(), Optimization(5e-3), progress=False).fit(x, epochs=8)
    assert (vae.sample(50).sum(1) == 30).all()
    found = vae.reconstruct(x) / 30
    assert (found - shares).abs().mean() < 0.1
    report = evaluate(vae, x[:100], importance_samples=None)
    assert report.is_bound
    assert report.bits_unit == "exact masses"


@for_each("make", [BetaBinomialLikelihood, MultinomialLikelihood])
def test_resumed_run_continues_bitwise(make, tmp_path):
    x = torch.randint(4, (40, 3)).float()

    def trainer(folder, *callbacks):
        torch.manual_seed(0)
        return trainer_of(
            folder,
            *callbacks,
            model=lambda: VAE.from_shapes(3, latent_dim=2, likelihood=make(3)),
            every_steps=1,
        )

    folder = tmp_path / make.__name__
    expected = digest(fit(trainer(folder / "once"), x))
    with pytest.raises(KeyboardInterrupt):
        fit(trainer(folder / "twice", After(4, raises(KeyboardInterrupt()))), x)
    assert digest(fit(trainer(folder / "twice"), x, resume="auto")) == expected
