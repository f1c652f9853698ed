"""What tests of one codebook and of several share."""

import copy

import torch


def binary(*shape):
    return (torch.rand(shape) > 0.5).to(torch.get_default_dtype())


def state(module):
    return copy.deepcopy(module.state_dict())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


def outputs(vq, x):
    """What the network says, ``(B, *S, C)``."""
    with torch.no_grad():
        return vq.params(vq.encode(x)).unflatten(1, vq.latent_shape).movedim(1, -1)


def drawn(vq, x):
    """The posterior, after a draw: what codebooks learn from."""
    posterior = vq(x)
    posterior.sample()
    return posterior
