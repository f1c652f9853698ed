"""The first line of a run: is the loss a bound, and on which data was that checked?"""

import pytest
import torch
from helpers.cases import for_each
from helpers.training import Unsized, make_vae, run
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tinyvae import ELBO, VAE, BernoulliLikelihood, GaussianEncoder
from tinyvae.likelihoods import OptimalGaussianLikelihood

pytestmark = pytest.mark.filterwarnings("ignore:BernoulliLikelihood got values")

BOUND, NO_BOUND = "a lower bound on log p(x)", "not a bound on log p(x)"
HEAD = "ELBO, beta 1, 1 draw, analytic KL: "


class Rows(Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index]


def binary(count, gray=()):
    """Return binary rows, with gray ones at some positions."""
    x = (torch.rand(count, 4, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    x[list(gray)] = 0.5
    return x


def described(train, validation=None, *, model=None, batch_size=8):
    """Return the part of the headline about the objective."""
    fit = {"batch_size": batch_size}
    trainer = run(model or make_vae(), ELBO(), train, validation, epochs=1, fit=fit)
    return trainer.state.plan.headline.partition("; ")[2]


@for_each("gray", [(0,), (10_000,), (5_000, 10_000)])
def test_headline_combines_all_data(gray):
    assert described(binary(10_001, gray), batch_size=5000) == HEAD + NO_BOUND
    assert described(binary(10_001), batch_size=5000) == HEAD + BOUND


def test_headline_tells_of_validation():
    x = binary(20)
    assert described(x, binary(9)) == HEAD + BOUND
    assert described(x, binary(9, gray=[3])) == f"{HEAD}{BOUND}; validation: {NO_BOUND}"
    assert described(binary(20, gray=[3]), x) == f"{HEAD}{NO_BOUND}; validation: {BOUND}"


def norm_vae():
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    return VAE(GaussianEncoder(nn.Linear(4, 8), 2, features=8), decoder, BernoulliLikelihood())


def optimal_vae():
    encoder = GaussianEncoder(nn.Linear(4, 8), 2, features=8)
    return VAE(encoder, nn.Linear(2, 4), OptimalGaussianLikelihood())


@for_each("make", [norm_vae, optimal_vae])
def test_headline_tells_training_from_validation(make):
    """Training uses the statistics of the batch, validation those of all training."""
    in_training = f"{HEAD}{NO_BOUND} in training mode"
    assert described(binary(24), model=make()) == in_training
    assert described(binary(24), model=make().eval()) == in_training
    assert described(binary(24), binary(9), model=make()) == f"{in_training}; validation: {BOUND}"


@for_each(
    ("data", "checked"),
    [
        (Rows(binary(37)), "8 of 37"),
        (DataLoader(binary(37), batch_size=8), "8 of 37"),
        (Unsized(binary(37)), "8 of ?"),
    ],
)
def test_headline_says_what_was_not_checked(data, checked):
    note = f" ({checked} examples checked so far)"
    assert described(data) == HEAD + BOUND + note
    assert described(binary(37), data) == f"{HEAD}{BOUND}; validation: {BOUND}{note}"


def test_headline_of_one_batch_needs_no_note():
    assert described(Rows(binary(7))) == HEAD + BOUND


@for_each("role", ["training", "validation"])
def test_fit_warns_of_later_batches_that_break_the_bound(role):
    loader = DataLoader(binary(37, gray=[20, 30]), batch_size=8)
    data = (loader,) if role == "training" else (binary(20), loader)
    with pytest.warns(UserWarning, match="differ from their first batch") as caught:
        described(*data)
    (message,) = (text for w in caught if (text := str(w.message)).startswith("the "))
    assert message.startswith(f"the {role} data differ from their first batch")
    assert message.endswith(f"from example 16 on it is {HEAD}{NO_BOUND}")
