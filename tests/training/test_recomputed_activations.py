"""The recipe of the guide by which activations are computed again instead of kept."""

import torch
from helpers.training import Recorder, binary, run, same
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from tinyvae import ELBO, VAE, Batch, BernoulliLikelihood, GaussianEncoder, Optimization
from tinyvae.objectives import PIWAE


class Recomputed(nn.Sequential):
    """Layers whose activations the backward pass computes again."""

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


def make_vae(kind):
    torch.manual_seed(0)
    encoder = kind(nn.Linear(4, 32), nn.Dropout(0.5), nn.GELU(), nn.Linear(32, 8), nn.GELU())
    decoder = kind(nn.Linear(2, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4))
    return VAE(GaussianEncoder(encoder, 2, features=8), decoder, BernoulliLikelihood())


def test_recomputed_activations_give_bitwise_the_same_run():
    for objective in (ELBO, lambda: PIWAE(2, num_bounds=2)):
        for optimization in (Optimization(), Optimization(microbatch_size=3)):
            plain, recomputed = Recorder(), Recorder()
            for kind, recorder in ((nn.Sequential, plain), (Recomputed, recomputed)):
                run(make_vae(kind), objective(), optimization=optimization, callbacks=[recorder])
            assert all(map(same, plain.weights, recomputed.weights))


def test_recomputed_activations_are_not_kept():
    def kept(kind):
        """Return the bytes that the forward pass keeps for the backward pass."""
        sizes = []

        def pack(tensor):
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        model = make_vae(kind)
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            ELBO()(model, Batch(binary(256)))
        return sum(sizes)

    assert kept(Recomputed) < 0.25 * kept(nn.Sequential)
