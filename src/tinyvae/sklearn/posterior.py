r"""Importance-weighted draws from the posterior of each row, with the same noise for all rows.

.. math:: w_k = \frac{p(x \mid z_k)\, p(z_k)}{q(z_k \mid x)}, \qquad
    \log \hat p(x) = \log \tfrac1K \textstyle\sum_k w_k

The value of a row does not depend on the other rows or on their order.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tinyvae.core.objective import checked_data
from tinyvae.core.random import Stream, derive_seed
from tinyvae.models import VAE
from tinyvae.models.noise import sharing_noise

NUM_SAMPLES = 256  # of z per row; a power of two balances the Sobol sequence
CHUNK_ELEMENTS = 1 << 20  # of the decoder's output at a time
LOWEST = -1e100  # log density of a value, nats


def contributions(vae: VAE, rows: Tensor, seed: int) -> Tensor:
    r"""Return the terms whose sum is -log p(x) of rows ``(N, D)``, ``(N, D + 1)``, nats.

    .. math:: -\log p(x) = \sum_j \mathbb{E}_{p(z \mid x)} [-\log p(x_j \mid z)] +
        \mathrm{KL}(p(z \mid x) \,\|\, p(z))

    Column ``j`` has the first terms, the last one has the divergence. The identity is exact, also
    for the estimates of all terms from the same draws.
    """
    return torch.cat(list(_chunks(vae, rows, seed)))


def _chunks(vae: VAE, rows: Tensor, seed: int) -> Iterator[Tensor]:
    seed = derive_seed(seed, Stream.IMPORTANCE)
    elements = max(vae.peak_elements(rows), 64)
    for x in rows.split(max(1, CHUNK_ELEMENTS // (NUM_SAMPLES * elements))):
        with torch.no_grad(), checked_data():
            output = vae.output_with(x, None, sharing_noise(seed)(NUM_SAMPLES, []))
            # Scores of extreme values stay finite: -inf minus -inf is NaN.
            log_px = output.likelihood.elementwise_log_prob(x).clamp(min=LOWEST)  # (K, B, D)
            (term,) = output.latents
            log_weight = log_px.sum(-1) + term.log_p - term.log_q
        surprise = -torch.einsum("kb,kbd->bd", log_weight.softmax(0), log_px)
        log_marginal = log_weight.logsumexp(0) - math.log(NUM_SAMPLES)
        yield torch.cat([surprise, (-log_marginal - surprise.sum(1))[:, None]], 1)
