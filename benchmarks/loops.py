"""The loop that an expert would write by hand for one model: what the Trainer is measured against.

Autograd, the objectives' own formulas, and every trick that pays: data resident as bytes, one
``index_select`` per batch, logits losses, fused Adam, terms summed up without a look at them. No
checks, no callbacks, no other model.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workloads import Workload

__all__ = ["Model", "loss_and_terms", "train"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


class Model(nn.Module):
    """Encoder and decoder of a workload, with images as rows of pixels."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.latent_dim = workload.latent_dim
        if workload.convolutional:
            self.encoder, self.decoder = _convolutions(workload)
        else:
            pixels, activation = math.prod(workload.data_shape), ACTIVATIONS[workload.activation]
            widths = (pixels, *workload.hidden)
            self.encoder = _dense((*widths, 2 * workload.latent_dim), activation)
            self.decoder = _dense((workload.latent_dim, *widths[::-1]), activation)


def _dense(widths: tuple[int, ...], activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])


def _convolutions(workload: Workload) -> tuple[nn.Sequential, nn.Sequential]:
    """Stride-2 convolutions over ``(1, 28, 28)`` down to 4 x 4, and back."""
    first, second, third = workload.hidden
    options = {"kernel_size": 3, "stride": 2, "padding": 1}
    encoder = nn.Sequential(
        nn.Unflatten(1, workload.data_shape),
        *(nn.Conv2d(1, first, **options), nn.ReLU()),
        *(nn.Conv2d(first, second, **options), nn.ReLU()),
        *(nn.Conv2d(second, third, **options), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16 * third, 2 * workload.latent_dim)),
    )
    decoder = nn.Sequential(
        *(nn.Linear(workload.latent_dim, 16 * third), nn.Unflatten(1, (third, 4, 4)), nn.ReLU()),
        *(nn.ConvTranspose2d(third, second, **options), nn.ReLU()),
        *(nn.ConvTranspose2d(second, first, **options, output_padding=1), nn.ReLU()),
        *(nn.ConvTranspose2d(first, 1, **options, output_padding=1), nn.Flatten()),
    )
    return encoder, decoder


def loss_and_terms(model: Model, x: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """Minus the bound, and the terms to report."""
    mean, log_std = model.encoder(x).chunk(2, dim=1)
    if num_samples == 1:
        z = torch.addcmul(mean, log_std.exp(), torch.randn_like(mean))
        logits = model.decoder(z)
        log_px = -F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)
        kl = 0.5 * (torch.expm1(2 * log_std) - 2 * log_std + mean.square()).sum() / len(x)
        elbo = log_px - kl
        return -elbo, torch.stack((elbo.detach(), log_px.detach(), kl.detach()))
    noise = torch.randn(num_samples, *mean.shape)
    z = torch.addcmul(mean, log_std.exp(), noise)  # (K, B, D)
    logits = model.decoder(z.flatten(0, 1)).view(num_samples, *x.shape)
    log_px = (x * logits - F.softplus(logits)).sum(-1)
    log_ratio = 0.5 * (noise.square() - z.square()).sum(-1) + log_std.sum(-1)
    log_weight = log_px + log_ratio  # (K, B)
    bound = (log_weight.logsumexp(0) - math.log(num_samples)).mean()
    terms = (bound.detach(), log_weight.detach().mean(), log_px.detach().mean())
    return -bound, torch.stack(terms)


def binarised(x: Tensor, grey: bool) -> Tensor:
    """Bytes as zeros and ones: as they are, or drawn with a grey level's probability."""
    return torch.rand(x.shape).lt_(x / 255) if grey else x.float()


def train(
    workload: Workload,
    images: np.ndarray,
    round_done: Callable[[], bool],
    *,
    compile: bool = False,
) -> None:
    """Train an epoch after the other, until ``round_done``, called after each, says False."""
    torch.manual_seed(0)
    model = Model(workload)
    data = torch.from_numpy(images).flatten(1)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    score = torch.compile(loss_and_terms) if compile else loss_and_terms
    proceed = True
    while proceed:
        total = torch.zeros(3)
        for index in torch.randperm(len(data)).split(workload.batch_size):
            x = binarised(data.index_select(0, index), workload.grey)
            loss, terms = score(model, x, workload.num_samples)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += terms
        proceed = round_done()
