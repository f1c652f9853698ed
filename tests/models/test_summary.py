import re

import pytest
import torch
from helpers.cases import for_each
from torch import nn

from tinyvae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    ConvNet,
    GaussianEncoder,
    GaussianLikelihood,
    TransposedConvNet,
)
from tinyvae.likelihoods import Learned
from tinyvae.models import summary


def mlp_vae(likelihood=None):
    encoder = GaussianEncoder(MLP(4, hidden=(8,)), 2)
    return VAE(encoder, MLP(2, hidden=(8,), out_shape=4), likelihood or BernoulliLikelihood())


def conv_vae():
    encoder = GaussianEncoder(ConvNet((1, 5, 4), (2, 3)), 2)
    decoder = TransposedConvNet(2, (2, 1, 5, 4), (3, 2))
    return VAE(encoder, decoder, GaussianLikelihood("predicted"))


def foreign_vae():
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Dropout(0.5))
    return VAE(
        GaussianEncoder(network, 2, features=5), MLP(2, out_shape=(2, 3)), BernoulliLikelihood()
    )


def reused_layers_vae():
    """One activation and one linear layer, each called twice."""
    square, tanh = nn.Linear(4, 4), nn.Tanh()
    network = nn.Sequential(square, tanh, square, tanh)
    decoder = nn.Sequential(nn.Linear(2, 4), tanh, square)
    return VAE(GaussianEncoder(network, 2, features=4), decoder, BernoulliLikelihood())


def rows(text):
    """(name, kind, shape, parameters) of every line but the first."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()[1:]]
    return [(*line[:-1], int(line[-1].replace(",", ""))) for line in lines]


@for_each(
    ("make", "data_shape"),
    [
        (mlp_vae, None),
        (lambda: mlp_vae(GaussianLikelihood(Learned((4,)))), None),
        (conv_vae, None),
        (foreign_vae, (2, 3)),
        (reused_layers_vae, (4,)),
    ],
)
def test_summary_rows_sum_to_the_parameters(make, data_shape):
    vae = make()
    *layers, (name, total) = rows(summary(vae, data_shape))
    assert name == "total"
    assert total == sum(p.numel() for p in vae.parameters())
    counts = [row[-1] for row in layers]
    assert sum(counts) == total
    assert min(counts) >= 0


def test_summary_lists_every_layer_with_its_shape():
    assert rows(summary(conv_vae())) == [
        ("encoder.network.layers.0", "Conv2d", "(2, 3, 2)", 20),
        ("encoder.network.layers.1", "ReLU", "(2, 3, 2)", 0),
        ("encoder.network.layers.2", "Conv2d", "(3, 2, 1)", 57),
        ("encoder.network.layers.3", "ReLU", "(3, 2, 1)", 0),
        ("encoder.head", "Linear", "(4,)", 28),
        ("decoder.layers.0", "Linear", "(6,)", 18),
        ("decoder.layers.1", "Unflatten", "(3, 2, 1)", 0),
        ("decoder.layers.2", "ReLU", "(3, 2, 1)", 0),
        ("decoder.layers.3", "ConvTranspose2d", "(2, 3, 2)", 56),
        ("decoder.layers.4", "ReLU", "(2, 3, 2)", 0),
        ("decoder.layers.5", "ConvTranspose2d", "(2, 5, 4)", 38),
        ("total", 217),
    ]


def test_summary_counts_parameters_outside_layers():
    vae = mlp_vae(GaussianLikelihood(Learned((4,))))
    assert ("parameters of no layer", 4) in rows(summary(vae))


def test_summary_starts_with_the_model():
    head = summary(conv_vae()).splitlines()[0]
    assert head == "VAE of data (1, 5, 4), latent (2,), GaussianLikelihood(std=Predicted())"


def test_summary_of_a_foreign_encoder_needs_the_data_shape():
    with pytest.raises(ValueError, match="give data_shape="):
        summary(foreign_vae())


@for_each("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_summary_does_not_change_the_model(dtype):
    vae = foreign_vae().to(dtype).train()
    state = torch.get_rng_state()
    summary(vae, (2, 3))
    assert all(m.training for m in vae.modules())
    assert not any(m._forward_hooks for m in vae.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_summary_removes_its_hooks_after_an_error():
    vae = mlp_vae()
    with pytest.raises(ValueError, match="MLP expects inputs of shape"):
        summary(vae, (5,))
    assert not any(m._forward_hooks for m in vae.modules())


def test_summary_keeps_its_columns_in_a_notebook():
    table = summary(mlp_vae())
    assert table._repr_html_() == f"<pre>{table}</pre>"


def test_model_is_a_table_of_its_parts_in_a_notebook():
    text = mlp_vae()._repr_html_()
    assert "<tr><td>VAE</td><td>latent (2,)</td><td>parameters</td></tr>" in text
    assert "<tr><td>encoder</td><td>GaussianEncoder</td><td>76</td></tr>" in text
    assert "<tr><td>decoder</td><td>MLP</td><td>60</td></tr>" in text
