"""Strategies for the shapes of networks."""

import torch
from hypothesis import strategies as st
from torch import nn

sizes = st.integers(1, 4)
channel_lists = st.lists(sizes, min_size=1, max_size=3)
images = st.tuples(sizes, st.integers(1, 13), st.integers(1, 13))
shapes = st.lists(sizes, min_size=1, max_size=3)
kernels = st.sampled_from([1, 3, 5])
smooth = st.sampled_from([nn.SiLU, nn.Tanh])  # no dead units
any_images = st.tuples(sizes, st.integers(1, 33), st.integers(1, 33))
# A bias before the normalization of a single channel does nothing.
groups = st.lists(st.integers(2, 9), min_size=1, max_size=3)


def with_moved_parameters(net):
    """Move all parameters, because the zeros of a new residual block stop its gradients."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return net
