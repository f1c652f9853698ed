"""Helpers of the tests of one codebook and of several."""

import copy

import torch


def binary(*shape):
    return (torch.rand(shape) > 0.5).to(torch.get_default_dtype())


def state(module):
    return copy.deepcopy(module.state_dict())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


def outputs(vq, x):
    """Return the outputs of the network, ``(B, *S, C)``."""
    with torch.no_grad():
        return vq.params(vq.encode(x)).unflatten(1, vq.latent_shape).movedim(1, -1)
