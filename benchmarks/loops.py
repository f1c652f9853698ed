"""A hand-tuned training loop for one model, the reference for the Trainer.

It uses autograd, the formulas of the objectives, and the techniques that fit on a page: data stay
on the device as bytes, one ``index_select`` per batch, losses of logits, fused Adam, metrics summed
without synchronization, compilation of the loss. It has no checks, no callbacks and no other model.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from competitors.layers import decoder, encoder
from torch import Tensor, nn
from workloads import Workload


class Model(nn.Module):
    """Encoder and decoder of a workload."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder(workload), decoder(workload)


def loss_and_terms(model: Model, x: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """Return minus the bound, and the metrics."""
    mean, log_std = model.encoder(x).chunk(2, dim=1)
    if num_samples == 1:
        z = torch.addcmul(mean, log_std.exp(), torch.randn_like(mean))
        log_px = -F.binary_cross_entropy_with_logits(model.decoder(z), x, reduction="sum") / len(x)
        kl = 0.5 * (torch.expm1(2 * log_std) - 2 * log_std + mean.square()).sum() / len(x)
        elbo = log_px - kl
        return -elbo, torch.stack((elbo.detach(), log_px.detach(), kl.detach()))
    noise = torch.randn(num_samples, *mean.shape)
    z = torch.addcmul(mean, log_std.exp(), noise)  # (K, B, D)
    logits = model.decoder(z.flatten(0, 1)).view(num_samples, *x.shape)
    log_px = (x * logits - F.softplus(logits)).flatten(2).sum(-1)
    log_ratio = 0.5 * (noise.square() - z.square()).sum(-1) + log_std.sum(-1)
    log_weight = log_px + log_ratio  # (K, B)
    bound = (log_weight.logsumexp(0) - math.log(num_samples)).mean()
    terms = (bound.detach(), log_weight.detach().mean(), log_px.detach().mean())
    return -bound, torch.stack(terms)


def bits(pixels: Tensor, gray: bool) -> Tensor:
    """Return zeros and ones: the bytes, or draws with the gray levels as probabilities."""
    return torch.rand(pixels.shape).lt_(pixels / 255) if gray else pixels.float()


def train(
    workload: Workload,
    images: np.ndarray,
    round_done: Callable[[], bool],
    *,
    compile: bool = False,  # noqa: A002
) -> None:
    """Train epochs until ``round_done``, which is called after each epoch, returns False."""
    torch.manual_seed(0)
    model = Model(workload)
    data = torch.from_numpy(images)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    options = {"cpp_wrapper": True}
    compiled = torch.compile(loss_and_terms, dynamic=False, options=options)
    score = compiled if compile else loss_and_terms
    proceed = True
    while proceed:
        total = torch.zeros(3)
        for index in torch.randperm(len(data)).split(workload.batch_size):
            x = bits(data.index_select(0, index), workload.gray)
            loss, terms = score(model, x, workload.num_samples)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += terms
        proceed = round_done()
