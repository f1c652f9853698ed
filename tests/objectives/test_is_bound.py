"""Models whose loss is a bound in training mode, in evaluation mode, or in both."""

import pytest
import torch
from helpers.cases import for_each
from torch import nn

from tinyvae import (
    ELBO,
    IWAE,
    MLP,
    VAE,
    Batch,
    BernoulliLikelihood,
    BottomUpVAE,
    GaussianEncoder,
    TwoLevelVAE,
    evaluate,
)
from tinyvae.networks import ConcatContext

pytestmark = pytest.mark.usefixtures("float64")

BOUND, NO_BOUND = "a lower bound on log p(x)", "not a bound on log p(x)"
SIZE = 6


class SubtractMean(nn.BatchNorm1d):
    """A subclass, as other packages have."""


# Layers on hidden units (N, C) as (N, 1, C), and the modes in which they mix the examples.
LAYERS = {
    "batch norm": (lambda: nn.BatchNorm1d(SIZE), {True}),
    "lazy batch norm": (nn.LazyBatchNorm1d, {True}),
    "subclass": (lambda: SubtractMean(SIZE), {True}),
    "without running statistics": (
        lambda: nn.BatchNorm1d(SIZE, track_running_stats=False),
        {True, False},
    ),
    "layer norm": (lambda: nn.LayerNorm(SIZE), set()),
    "group norm": (lambda: nn.GroupNorm(2, SIZE), set()),
    "instance norm": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()
        ),
        set(),
    ),
    "dropout": (lambda: nn.Dropout(0.5), set()),
}


def with_layer(layer, size):
    return nn.Sequential(nn.Linear(size, SIZE), layer, nn.Tanh())


def vae_with(layer=None, encoder_layer=None):
    decoder = nn.Sequential(with_layer(layer or nn.Identity(), 2), nn.Linear(SIZE, 4))
    network = with_layer(encoder_layer or nn.Identity(), 4)
    decoder(torch.randn(5, 2))  # builds a lazy layer
    network(torch.randn(5, 4))
    return VAE(GaussianEncoder(network, 2, features=SIZE), decoder, BernoulliLikelihood())


def depends_on_others(module, size):
    """Return True if the output for the first row changes with the other rows."""
    first, outputs = torch.randn(1, size), []
    for _ in range(2):
        rows = torch.cat([first, torch.randn(4, size)])
        torch.manual_seed(0)
        outputs.append(module(rows)[0])
    return not torch.allclose(*outputs)


@for_each("name", LAYERS)
@pytest.mark.filterwarnings("ignore:the decoder's output for an example")
def test_is_bound_says_what_a_decoder_does(name):
    make, modes = LAYERS[name]
    x = torch.eye(4)
    vae = vae_with(make())
    for training in (True, False):
        vae.train(training)
        mixes = depends_on_others(vae.decoder, 2)
        assert mixes is (training in modes)
        assert vae.couples_batch is mixes
        for objective in (ELBO(), IWAE(3)):
            assert objective.is_bound(vae) is not mixes
            mode = " in training mode" if training and modes == {True} else ""
            expected = NO_BOUND + mode if mixes else BOUND
            assert objective.check(vae, Batch(x)).endswith(f": {expected}")
        report = evaluate(vae, x, elbo_samples=2, importance_samples=2)
        assert report.is_bound is (False not in modes)


def test_is_bound_asks_the_likelihood():
    vae, x = vae_with(), torch.eye(4)
    vae.likelihood.couples_batch = True
    assert not ELBO().is_bound(vae)
    assert not evaluate(vae, x, elbo_samples=2, importance_samples=2).is_bound


def test_is_bound_knows_layers_of_gpus():
    vae = vae_with(nn.SyncBatchNorm(SIZE).eval())
    assert ELBO().is_bound(vae.eval())
    assert not ELBO().is_bound(vae.train())


@for_each("name", LAYERS)
def test_is_bound_allows_any_encoder(name):
    """The ELBO is a bound for any q, also for one that depends on other examples."""
    vae = vae_with(encoder_layer=LAYERS[name][0]())
    for training in (True, False):
        assert ELBO().is_bound(vae.train(training))


def test_is_bound_reads_generators():
    norm = nn.BatchNorm1d(SIZE)
    two_level = TwoLevelVAE(
        top=GaussianEncoder(MLP(4, (8,)), 2),
        bottom=GaussianEncoder(ConcatContext(MLP(4 + 2, (8,)), context_dim=2), 3),
        generator=GaussianEncoder(with_layer(norm, 2), 3, features=SIZE),
        decoder=MLP(3 + 2, (8,), out_shape=4),
        likelihood=BernoulliLikelihood(),
    )
    bottom_up = BottomUpVAE(
        [GaussianEncoder(MLP(4, (8,)), 3), GaussianEncoder(MLP(3, (8,)), 2)],
        [GaussianEncoder(with_layer(norm, 2), 3, features=SIZE)],
        MLP(3, (8,), out_shape=4),
        BernoulliLikelihood(),
    )
    for vae in (two_level, bottom_up):
        assert not ELBO().is_bound(vae.train())
        assert ELBO().is_bound(vae.eval())


class Centered(nn.Module):
    def forward(self, h):
        return h - h.mean(0)


class Sequence(nn.Module):
    """A recurrent layer over two halves of the hidden units."""

    def __init__(self, batch_first):
        super().__init__()
        self.layer = nn.LSTM(3, 3, batch_first=batch_first)

    def forward(self, h):
        return self.layer(h.unflatten(1, (2, 3)))[0].flatten(1)


class Noisy(nn.Module):
    def forward(self, h):
        return h + torch.randn_like(h)


@for_each(
    ("make", "mixes"),
    [
        (Centered, True),
        (lambda: Sequence(batch_first=False), True),
        (lambda: nn.BatchNorm1d(SIZE, track_running_stats=False), True),
        (lambda: Sequence(batch_first=True), False),
        (Noisy, False),
    ],
)
@pytest.mark.filterwarnings("ignore:the decoder's output for an example")
def test_check_finds_decoders_that_mix_examples_in_evaluation_mode(make, mixes):
    vae, x = vae_with(make()), torch.eye(4)
    for mode in (True, False):
        assert ELBO().check(vae.train(mode), Batch(x)).endswith(NO_BOUND if mixes else BOUND)
    report = evaluate(vae, x, elbo_samples=2, importance_samples=2)
    assert report.is_bound is not mixes


def test_check_warns_of_decoders_that_mix_examples():
    with pytest.warns(UserWarning, match="unless batch_first=True"):
        vae_with(Centered()).check(torch.eye(4))


def test_check_of_one_example_finds_no_mixing():
    assert vae_with(Centered()).check(torch.eye(4)[:1]).is_density
