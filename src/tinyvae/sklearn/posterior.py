r"""Importance-weighted draws from the posterior of each row, with the same noise for all rows.

.. math:: w_k = \frac{p(x \mid z_k)\, p(z_k)}{q(z_k \mid x)}, \qquad
    z_k = \mu(x) + \sigma(x)\, \epsilon_k, \qquad
    \log \hat p(x) = \log \tfrac1K \textstyle\sum_k w_k

The noise is a scrambled Sobol sequence that depends on the seed only. So the value of a row does
not depend on the other rows or on their order.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from tinyvae.core.objective import checked_data
from tinyvae.core.random import Stream, derive_seed, forked_rng
from tinyvae.distributions import Distribution, Independent
from tinyvae.models import VAE

NUM_SAMPLES = 256  # of z per row; a power of two balances the sequence
CHUNK_ELEMENTS = 1 << 20  # of the decoder's output at a time
LOWEST = -1e100  # log density of a value, nats


@dataclass(frozen=True)
class WeightedDraws:
    """Draws of z for ``B`` rows.

    Attributes:
        likelihood: p(x given z), ``batch_shape = (K, B)``.
        column_log_prob: log p(x_j given z), ``(K, B, D)``, nats, zero if x_j is missing.
        weights: Normalized importance weights, ``(K, B)``.
        log_marginal: log p(x), ``(B,)``, nats.
    """

    likelihood: Distribution
    column_log_prob: Tensor
    weights: Tensor
    log_marginal: Tensor

    def contributions(self) -> Tensor:
        r"""Return the terms whose sum is -log p(x), ``(B, D + 1)``, nats.

        .. math:: -\log p(x) = \sum_j \mathbb{E}_{p(z \mid x)} [-\log p(x_j \mid z)] +
            \mathrm{KL}(p(z \mid x) \,\|\, p(z))

        Column ``j`` has the first terms, the last one has the divergence. The identity is exact,
        also for the estimates of all terms from the same draws.
        """
        surprise = -torch.einsum("kb,kbd->bd", self.weights, self.column_log_prob)
        divergence = -self.log_marginal - surprise.sum(1)
        return torch.cat([surprise, divergence[:, None]], 1)


def weighted_draws(
    vae: VAE, x: Tensor, *, seed: int, num_samples: int = NUM_SAMPLES
) -> Iterator[WeightedDraws]:
    """Yield the draws of chunks of the rows ``x`` ``(N, D)``, in their order.

    The model has a Gaussian encoder. It and the rows are on the CPU, in float64.
    """
    noise = standard_normal(num_samples, vae.latent_shape.numel(), seed)
    noise = noise.reshape(num_samples, 1, *vae.latent_shape)
    elements = max(x.shape[1], vae.likelihood.param_shape(x.shape[1:]).numel(), 64)
    for rows in x.split(max(1, CHUNK_ELEMENTS // (num_samples * elements))):
        with torch.no_grad(), checked_data():
            yield _draw_chunk(vae, rows, noise)


def standard_normal(num_samples: int, dim: int, seed: int) -> Tensor:
    """Return quasi-random points of N(0, I), ``(K, dim)``, float64."""
    seed = derive_seed(seed, Stream.IMPORTANCE) % 2**31
    with forked_rng(torch.device("cpu")):
        sequence = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed)
        uniform = sequence.draw(num_samples, dtype=torch.float64)
    return torch.special.ndtri(uniform.clamp(1e-12, 1 - 1e-12))


def _draw_chunk(vae: VAE, x: Tensor, noise: Tensor) -> WeightedDraws:
    def draw(_: torch.Size, posterior: Distribution) -> tuple[Tensor, None]:
        normal = cast("Independent", posterior).base
        return normal.mean + normal.variance.sqrt() * noise, None

    (term,), z = vae.infer(vae.likelihood.encoder_input(x), None, draw)
    likelihood = vae.likelihood_given(z)
    # Scores of extreme values stay finite: -inf minus -inf is NaN.
    column_log_prob = likelihood.elementwise_log_prob(x).clamp(min=LOWEST)  # (K, B, D)
    log_weight = column_log_prob.sum(-1) + term.log_p - term.log_q
    log_marginal = log_weight.logsumexp(0) - math.log(len(noise))
    return WeightedDraws(likelihood, column_log_prob, log_weight.softmax(0), log_marginal)
