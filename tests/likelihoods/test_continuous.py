"""Likelihoods of real numbers whose parameters are learned per column."""

import math

import pytest
import scipy.stats
import torch
from helpers.cases import for_each

from tinyvae import ELBO, VAE, Optimization, Trainer
from tinyvae.likelihoods import (
    Column,
    Learned,
    MaskedLikelihood,
    MixedLikelihood,
    StandardizedLikelihood,
    StudentTLikelihood,
)

pytestmark = pytest.mark.usefixtures("float64")

DF, SCALE = torch.tensor([1.5, 4.0, 30.0]), torch.tensor([0.5, 2.0, 1.0])


def heavy_tails(n):
    """Return columns of Student's t with different degrees of freedom and scales, ``(n, 3)``."""
    rows = [torch.distributions.StudentT(df).sample((n,)) for df in DF]
    return SCALE * torch.stack(rows, 1)


def make(num_columns):
    """Return a likelihood that learns degrees of freedom and a scale per column."""
    shape = (num_columns,)
    df = Learned(shape, initial=4.0, minimum=1.0)
    return StudentTLikelihood(Learned(shape), df=df).to(torch.get_default_dtype())


@pytest.mark.slow
@for_each("dtype", [torch.float32, torch.float64])
def test_student_t_learns_tails_and_scale_of_each_column(dtype):
    """The fit agrees with scipy's maximum of the likelihood, column by column."""
    x = heavy_tails(2000)
    likelihood, loc = make(3).to(dtype), torch.zeros(3, dtype=dtype, requires_grad=True)
    optimizer = torch.optim.Adam([loc, *likelihood.parameters()], lr=0.05)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 400)
        loss = -likelihood(loc, 1).log_prob(x.to(dtype)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    p = likelihood(loc, 1).base
    best = 0.0
    for i in range(3):
        df, _, scale = theirs = scipy.stats.t.fit(x[:, i].numpy())
        best -= scipy.stats.t.logpdf(x[:, i].numpy(), *theirs).mean()
        assert p.log_scale[i].item() == pytest.approx(math.log(scale), abs=0.03)
        if i < 2:  # near a normal density the tails hardly depend on df
            assert p.log_df[i].item() == pytest.approx(math.log(df), abs=0.05)
    assert p.log_df[2] > math.log(10)
    assert loss.item() == pytest.approx(best, abs=2e-3)


def test_student_t_column_of_a_table_keeps_its_tails_apart():
    x = heavy_tails(1000)
    columns = [Column(name, "number") for name in "abc"]
    heavy = {
        column.name: StandardizedLikelihood(make(1), std=scale)
        for column, scale in zip(columns, SCALE.tolist(), strict=True)
    }
    table = MaskedLikelihood(MixedLikelihood(columns, likelihoods=heavy))
    vae = VAE.from_shapes(3, latent_dim=1, likelihood=table)
    rates = Optimization(learning_rates={"likelihood": 0.05})
    Trainer(vae, ELBO(), rates, progress=False).fit(x, epochs=20)
    df = [likelihood.likelihood.df for likelihood in heavy.values()]
    learned = [parameter(torch.zeros(1), 1).exp().item() for parameter in df]
    assert learned[0] < learned[1] < learned[2]


@for_each("dtype", [torch.float32, torch.float64])
def test_student_t_gradients_of_far_values_are_finite(dtype):
    likelihood = make(4).to(dtype)
    loc = torch.zeros(4, dtype=dtype, requires_grad=True)
    x = torch.tensor([[0.0, 1e6, -1e18, torch.finfo(dtype).max]], dtype=dtype)
    likelihood(loc, 1).log_prob(x).sum().backward()
    for parameter in (loc, *likelihood.parameters()):
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() < 5 * math.log(torch.finfo(dtype).max)
