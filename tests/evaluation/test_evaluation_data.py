"""Data of evaluations: every kind that fit takes, in any parts, gives the same numbers."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.cases import for_each
from helpers.oracles import random_linear_gaussian
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from tinyvae import VAE, Batch, GaussianLikelihood, evaluate, impute, log_marginal
from tinyvae.evaluation import active_units
from tinyvae.evaluation import data as evaluation_data
from tinyvae.likelihoods import MaskedLikelihood, MixedLikelihood

pytestmark = pytest.mark.usefixtures("float64")

OPTIONS = {"elbo_samples": 3, "importance_samples": 60}


class Rows(Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index]


class Stream(IterableDataset):
    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x)


def mapped(x, folder):
    np.save(folder / "x.npy", x.numpy())
    return np.load(folder / "x.npy", mmap_mode="r")


KINDS = {
    "array": lambda x, _: x.numpy(),
    "list": lambda x, _: x.tolist(),
    "frame": lambda x, _: pd.DataFrame(x.numpy()),
    "memmap": mapped,
    "TensorDataset": lambda x, _: TensorDataset(x),
    "Dataset": lambda x, _: Rows(x),
    "stream": lambda x, _: Stream(x),
    **{
        f"loader of {size}": lambda x, _, size=size: DataLoader(Rows(x), batch_size=size)
        for size in (1, 7, 64, 500)
    },
}


@for_each("kind", KINDS)
@for_each("size", [1000, 16])
def test_evaluate_gives_the_same_report_for_every_kind_and_batch(monkeypatch, tmp_path, kind, size):
    monkeypatch.setattr(evaluation_data, "READ_SIZE", size)
    torch.manual_seed(0)
    model = random_linear_gaussian()
    x = model.evidence.sample((150,))
    vae = model.spoil_posterior()
    expected = evaluate(vae, x, **OPTIONS)
    data = KINDS[kind](x, tmp_path)
    report = evaluate(vae, data, **OPTIONS)
    assert report == expected
    for name, estimate in expected.estimates().items():
        found = report.estimates()[name].values
        torch.testing.assert_close(found, estimate.values, rtol=0, atol=1e-10)
    assert str(report) == str(expected)
    assert torch.equal(log_marginal(vae, data, num_samples=5), log_marginal(vae, x, num_samples=5))
    found, exact = active_units(vae, data)["z"], active_units(vae, x)["z"]
    torch.testing.assert_close(found.variance, exact.variance)


def test_evaluate_draws_belong_to_positions():
    """Examples before a change keep their draws."""
    torch.manual_seed(0)
    model = random_linear_gaussian()
    x = model.evidence.sample((2500,))
    vae = model.spoil_posterior()
    values = log_marginal(vae, x, num_samples=20)
    assert torch.equal(log_marginal(vae, x[:2000], num_samples=20), values[:2000])
    report = evaluate(
        vae, Stream(x), elbo_samples=1, importance_samples=20, importance_examples=2000
    )
    assert torch.equal(report.log_marginal.values, values[:2000])


def test_evaluate_takes_batch_and_transform():
    vae = VAE.from_shapes(3, latent_dim=2, likelihood=MaskedLikelihood(GaussianLikelihood()))
    x, observed = torch.rand(50, 3), torch.rand(50, 3) > 0.3
    expected = evaluate(vae, x, mask=observed, **OPTIONS)
    pair = TensorDataset(x, observed)
    pick = lambda item: Batch(item[0], mask=item[1])  # noqa: E731
    assert evaluate(vae, DataLoader(pair, batch_size=9), batch=pick, **OPTIONS) == expected
    assert evaluate(vae, {"a": x, "b": observed}, batch=lambda d: Batch(d["a"], None, d["b"]),
                    **OPTIONS) == expected  # fmt: skip

    def noisy(x, generator):
        return x + torch.rand(x.shape, generator=generator)

    first = evaluate(vae, x, transform=noisy, **OPTIONS)
    assert first != evaluate(vae, x, **OPTIONS)
    loader = DataLoader(Rows(x), batch_size=7)
    assert evaluate(vae, loader, transform=noisy, **OPTIONS) == first
    assert evaluate(vae, x, transform=noisy, seed=1, **OPTIONS).data_digest != first.data_digest


def test_evaluate_takes_masked_arrays_and_integers():
    vae = VAE.from_shapes(3, latent_dim=2, likelihood=MaskedLikelihood(GaussianLikelihood()))
    x, observed = torch.randint(0, 9, (30, 3)), torch.rand(30, 3) > 0.3
    masked = np.ma.masked_array(x.numpy(), ~observed.numpy())
    expected = evaluate(vae, x, mask=observed, **OPTIONS)
    assert evaluate(vae, masked, **OPTIONS) == expected
    assert evaluate(vae, x.numpy().astype(np.uint16), mask=observed, **OPTIONS) == expected


def test_models_and_evaluation_take_data_frames():
    frame = pd.DataFrame({"age": [35.0, None, 20.0, 61.0], "smokes": ["yes", "no", "yes", None]})
    table = MixedLikelihood.from_table(frame)
    vae = VAE.from_shapes(len(table.columns), latent_dim=2, likelihood=MaskedLikelihood(table))
    x = table.to_tensor(frame)
    assert evaluate(vae, frame, **OPTIONS) == evaluate(vae, x, **OPTIONS)
    assert torch.equal(vae.reconstruct(frame), vae.reconstruct(x))
    assert torch.equal(vae.encode(frame).mean, vae.encode(x).mean)
    filled = impute(vae, frame, num_samples=50)
    assert torch.equal(filled, impute(vae, x, num_samples=50))
    torch.manual_seed(0)
    drawn = vae.sample(2, given=frame)
    torch.manual_seed(0)
    assert torch.equal(drawn, vae.sample(2, given=x))


def test_impute_reads_loaders():
    vae = VAE.from_shapes(3, latent_dim=2, likelihood=MaskedLikelihood(GaussianLikelihood()))
    x = torch.rand(30, 3).masked_fill(torch.rand(30, 3) > 0.7, torch.nan)
    loader = DataLoader(Rows(x), batch_size=7)
    assert torch.equal(impute(vae, loader, num_samples=20), impute(vae, x, num_samples=20))


@for_each(
    ("call", "message"),
    [
        (lambda vae, x: evaluate(vae, (x, x)), r"pick x, batch=lambda b: b\[0\]"),
        (lambda vae, _: evaluate(vae, "x.pt"), "evaluation expects .* load the file first"),
        (lambda vae, x: evaluate(vae, x, x[:, :1], batch=lambda b: b), "batch= or context=, got b"),
        (lambda vae, x: evaluate(vae, x[:0]), "the data set is empty"),
        (lambda vae, x: evaluate(vae, iter(x)), "used up after one epoch"),
        (lambda vae, x: evaluate(vae, x, seconds=1, standard_error=0.1), "got both: choose one"),
        (lambda vae, x: evaluate(vae, x, seconds=0), "seconds > 0, got 0"),
    ],
)
def test_evaluate_refuses_other_data(call, message):
    vae = random_linear_gaussian().vae
    with pytest.raises((TypeError, ValueError), match=message):
        call(vae, torch.randn(6, 5))


def test_evaluate_draws_until_the_error_is_small():
    torch.manual_seed(0)
    model = random_linear_gaussian()
    x = model.evidence.sample((50,))
    vae = model.spoil_posterior()
    report = evaluate(vae, x, elbo_samples=1, standard_error=0.005)
    assert report.log_marginal.monte_carlo_error <= 0.005
    assert report.log_marginal.num_samples > 100
    count = report.log_marginal.num_samples
    assert evaluate(vae, x, elbo_samples=1, importance_samples=count).log_marginal == (
        report.log_marginal
    )


def test_evaluate_spends_the_time_that_is_given(monkeypatch):
    model = random_linear_gaussian()
    x = model.evidence.sample((5,))
    ticks = iter(range(10**6))
    monkeypatch.setattr("tinyvae.evaluation.estimation.time.perf_counter", lambda: next(ticks))
    report = evaluate(model.vae, x, elbo_samples=1, seconds=100.0)
    # A look at the clock takes a second: 500 draws in each of the rounds, which take 5 seconds.
    assert 2000 < report.log_marginal.num_samples < 10_000
