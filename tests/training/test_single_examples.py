"""Batches of one example, which batch normalization cannot train on."""

import pytest
import torch
from helpers.cases import for_each
from helpers.training import LeastSquares, Unsized, binary, make_vae, run, same
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tinyvae import ELBO, MLP, VAE, BernoulliLikelihood, GaussianEncoder, Trainer

BATCHES = [rows.tolist() for rows in torch.arange(33).split(8)]  # of an unknown size


class Rows(Dataset):
    """Map-style data set of rows."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index]


def normalized(layer=nn.BatchNorm1d):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), layer(8), nn.ReLU())
    encoder = GaussianEncoder(network, latent_dim=2, features=8)
    return VAE(encoder, MLP(2, hidden=(8,), out_shape=4), BernoulliLikelihood())


@for_each(
    "data, fit, advice",
    [
        (
            binary(129),
            {"batch_size": 128},
            "batch_size=127. Or use drop_last=True, in fit or in your DataLoader, or",
        ),
        (binary(33).numpy(), {}, "batch_size=7"),
        (TensorDataset(binary(33)), {}, "batch_size=7"),
        (Rows(binary(33)), {}, "batch_size=7"),
        (DataLoader(binary(33), 8), {}, "batch_size=7"),
        (DataLoader(binary(33), 8, shuffle=True), {"batch_size": 4}, "batch_size=7"),
        (DataLoader(binary(33), 1), {}, "batch_size=3, or normalize"),
        (binary(12), {"batch_size": 1}, "batch_size=2, or normalize"),
        (binary(1), {}, "give more examples"),
    ],
)
def test_fit_refuses_a_batch_of_one_before_the_first_step(data, fit, advice):
    model = normalized()
    trainer = Trainer(model, ELBO(), device="cpu", progress=False)
    message = rf"batches of two or more examples .* the last batch of .*per channel.*: .*{advice}"
    with pytest.raises(ValueError, match=message):
        trainer.fit(data, epochs=1, **{"batch_size": 8, **fit})
    assert trainer.step == 0
    assert same(model, normalized())


@for_each("data", [Unsized(binary(33)), DataLoader(binary(33), batch_sampler=BATCHES)])
def test_step_explains_a_batch_of_one_of_a_stream(data):
    message = r"two or more examples .* one example in step 5 \(.*: use drop_last=True, in fit or"
    with pytest.raises(ValueError, match=message):
        run(normalized(), ELBO(), data)


@for_each(
    "data, fit",
    [
        (binary(34), {}),
        (binary(129), {"batch_size": 127}),
        (DataLoader(binary(33), 8, drop_last=True), {}),
        (binary(33), {"drop_last": True}),
        (TensorDataset(binary(33)), {"drop_last": True}),
        (Rows(binary(33)), {"drop_last": True}),
        (Rows(binary(33)), {"drop_last": True, "workers": 2}),
        (Unsized(binary(33)), {"drop_last": True}),
        (Unsized(binary(34)), {}),
    ],
)
def test_fit_accepts_batches_of_two_with_batch_normalization(data, fit):
    run(normalized(), ELBO(), data, binary(33), epochs=1, fit=fit)


@for_each("make", [make_vae, lambda: normalized(nn.LayerNorm)])
def test_fit_trains_on_a_last_batch_of_one(make):
    trainer = run(make(), ELBO(), binary(33), epochs=1)
    assert trainer.step == 5


def test_check_of_a_single_example_leaves_no_trace():
    class Counting(nn.Module):
        """Layer that moves a number and a buffer, and draws noise."""

        def __init__(self, size):
            super().__init__()
            self.count = 0
            self.register_buffer("passes", torch.zeros(()))

        def forward(self, x):
            self.count += 1
            self.passes += 1
            return x + 1e-3 * torch.randn_like(x)

    data = [DataLoader(binary(33), 8), DataLoader(binary(33), batch_sampler=BATCHES)]
    checked, unchecked = (run(normalized(Counting), ELBO(), d, epochs=1).model for d in data)
    assert same(checked, unchecked)
    assert checked.encoder.network[1].count == unchecked.encoder.network[1].count


def test_fit_passes_on_an_error_of_every_batch():
    class Broken(LeastSquares):
        def forward(self, model, batch):
            raise ValueError("no pass works")

    with pytest.raises(ValueError, match=r"^no pass works"):
        run(make_vae(), Broken(), binary(33))
