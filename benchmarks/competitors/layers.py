"""Layers of the workloads as plain torch modules, shared by competitors that use torch.

The encoder emits the mean and then the second parameter, ``(B, 2 D)``; the decoder emits logits.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from workloads import Workload, halvings


def pixels(images: Tensor, workload: Workload) -> Tensor:
    """Return images as floats between 0 and 1."""
    return images.to(torch.float32) / (255 if workload.gray else 1)


def _activation(workload: Workload) -> nn.Module:
    return nn.Tanh() if workload.activation == "tanh" else nn.ReLU()


def encoder(workload: Workload) -> nn.Sequential:
    """Return a network from images ``(B, *data_shape)`` to posterior parameters ``(B, 2 D)``."""
    layers: list[nn.Module] = []
    if workload.convolutional:
        for n_in, n_out in pairwise((workload.data_shape[0], *workload.hidden)):
            layers += [nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), _activation(workload)]
        layers.append(nn.Flatten())
    else:
        layers.append(nn.Flatten())
        for n_in, n_out in pairwise((workload.num_pixels, *workload.hidden)):
            layers += [nn.Linear(n_in, n_out), _activation(workload)]
    return nn.Sequential(*layers, nn.Linear(workload.num_features, 2 * workload.latent_dim))


def decoder(workload: Workload) -> nn.Sequential:
    """Return a network from latents ``(N, D)`` to logits ``(N, *data_shape)``."""
    widths = workload.hidden[::-1]
    layers: list[nn.Module] = []
    if workload.convolutional:
        sizes = halvings(workload)[::-1]
        first = nn.Linear(workload.latent_dim, workload.num_features)
        layers += [first, nn.Unflatten(1, (widths[0], *sizes[0]))]
        for channels, heights in zip(
            pairwise((*widths, workload.data_shape[0])),
            pairwise(height for height, _ in sizes),
            strict=True,
        ):
            padding = heights[1] - 2 * heights[0] + 1
            up = nn.ConvTranspose2d(*channels, 3, stride=2, padding=1, output_padding=padding)
            layers += [_activation(workload), up]
        return nn.Sequential(*layers)
    for n_in, n_out in pairwise((workload.latent_dim, *widths)):
        layers += [nn.Linear(n_in, n_out), _activation(workload)]
    layers += [nn.Linear(widths[-1], workload.num_pixels), nn.Unflatten(1, workload.data_shape)]
    return nn.Sequential(*layers)
