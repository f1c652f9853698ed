import pytest
import torch

from tinyvae.likelihoods import MixedLikelihood
from tinyvae.priors import AutoregressivePrior
from tinyvae.sklearn.recipe import choose_batch_size, fit_vae, hide_entries, split_rows


def correlated_rows(n=400, seed=0):
    """Rows (N, 3) of a Gaussian whose third column is about the sum of the others."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return torch.cat(
        [a, a.sum(1, keepdim=True) + 0.1 * a.new_empty(n, 1).normal_(generator=generator)], 1
    )


def table_columns(x):
    return MixedLikelihood.from_table(x.numpy())


@pytest.mark.slow
def test_fit_vae_learns_dependences_of_columns():
    from tinyvae import impute

    x = correlated_rows()
    vae, _ = fit_vae(table_columns(x), x.float(), seed=1, device="cpu")
    new = correlated_rows(200, seed=1).float()
    incomplete = new.clone()
    incomplete[:, 2] = torch.nan
    error = (impute(vae, incomplete, num_samples=200) - new)[:, 2].square().mean()
    assert error < 0.1  # the variance of the column is 2, the noise 0.01


def test_fit_vae_repeats_by_seed_and_keeps_the_random_state():
    x = correlated_rows(60)
    state = torch.get_rng_state()
    models = [
        fit_vae(table_columns(x), x.float(), max_epochs=2, seed=seed, device="cpu")[0]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    first, again, other = (torch.cat([p.flatten() for p in m.parameters()]) for m in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("num_rows", "max_epochs", "expected"), [(80, 1, 1), (80, 7, 7), (600, 7, 4)]
)
@pytest.mark.parametrize("early_stopping", [True, False])
def test_history_is_that_after_the_warm_up(num_rows, max_epochs, expected, early_stopping):
    x = correlated_rows(num_rows)
    vae, history = fit_vae(
        table_columns(x),
        x.float(),
        max_epochs=max_epochs,
        early_stopping=early_stopping,
        device="cpu",
    )
    assert len(history) == expected
    assert not vae.training
    assert ("validation/iwae_nats" in history.epochs[0]) == early_stopping


@pytest.mark.parametrize("num_rows", [2, 3, 64, 65])
def test_fit_vae_takes_few_rows_and_missing_values(num_rows):
    x = correlated_rows(num_rows)
    x[0, 0] = torch.nan
    columns = table_columns(correlated_rows(50))
    vae, _ = fit_vae(columns, x.float(), max_epochs=1, latent_dim=1, hidden=(4,), device="cpu")
    assert all(torch.isfinite(p).all() for p in vae.parameters())
    assert vae.latent_shape == (1,)


def test_only_many_rows_get_an_autoregressive_prior():
    for num_rows, latent_dim, expected in ((400, 2, False), (600, 2, True), (600, 1, False)):
        x = correlated_rows(num_rows)
        options = {"max_epochs": 2, "latent_dim": latent_dim, "hidden": (4,), "device": "cpu"}
        vae, _ = fit_vae(table_columns(x), x.float(), **options)
        assert isinstance(vae.prior, AutoregressivePrior) == expected


def test_training_of_few_rows_ends_after_some_updates_per_row():
    x = correlated_rows(20)
    _, history = fit_vae(table_columns(x), x.float(), hidden=(4,), device="cpu")
    assert len(history) == 8  # of 20 updates each
    assert history["learning_rate"][-1] < 0.1 * history["learning_rate"][0]


def test_hide_entries_removes_the_expected_share():
    x = torch.ones(20_000, 6)
    hidden = torch.isnan(hide_entries(x, torch.Generator().manual_seed(0), 0.4))
    rows = hidden.any(1).double().mean()
    # An entry of a chosen row is hidden with probability r ~ U(0, 1/2): 1/4 on average.
    assert abs(hidden.double().mean() - 0.4 / 4) < 0.004
    kept = torch.linspace(0, 0.5, 10_001).double().sub(1).neg().pow(6).mean()
    assert abs(rows - 0.4 * (1 - kept)) < 4 * 0.5 / 20_000**0.5


def test_split_rows_is_a_partition():
    train, held_out = split_rows(101, 0.1, seed=3)
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(101))
    assert len(held_out) == 10
    assert [len(part) for part in split_rows(2, 0.9, seed=0)] == [1, 1]


def test_choose_batch_size_grows_with_the_rows():
    sizes = [choose_batch_size(10**k) for k in range(2, 7)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
