r"""Latents given the observed entries of incomplete data.

.. math:: p(x_{\text{mis}} \mid x_{\text{obs}})
    = \int p(x_{\text{mis}} \mid z)\, p(z \mid x_{\text{obs}}) \, dz

Only z needs Monte Carlo: draws of the encoder, weighted by their importance. Where few of them
carry all of the weight, latents are drawn by a sequence of tempered targets instead.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyvae.core.objective import checked_data
from tinyvae.distributions import Distribution
from tinyvae.likelihoods import Likelihood, MaskedLikelihood, ignoring_mask
from tinyvae.models.latents import recording
from tinyvae.models.moves import MAX_FITTED, Moves
from tinyvae.models.output import Draw, LatentVariableModel
from tinyvae.models.particles import (
    Particles,
    effective_sample_size,
    replaying,
    systematic_resampling,
)

MAX_SWEEPS = 100
MIXED = 0.9  # of the latents, the effective sample size from which the next target follows
BISECTIONS = 30
CHUNK_ELEMENTS = 1 << 20  # of the largest tensor, as in evaluations
ENOUGH = 100  # effective draws: the error of their mean is a tenth of a standard deviation
FEWEST = 10  # effective draws, below which no figure is worth reporting


@dataclass(frozen=True)
class ConditionalLatents:
    """Latents of p(z given the observed entries), ``K`` per example.

    Attributes:
        particles: The latents.
        weights: Their weights, with sum one over ``K``, ``(K, B)``. They are equal for an example
            that has density zero at all of its latents.
        effective_sample_size: Number of independent draws that are worth as much, ``(B,)``, 0 for
            an example that has density zero.
        acceptance_rate: Share of accepted moves, ``(B,)``, NaN for examples without moves.
    """

    particles: Particles
    weights: Tensor
    effective_sample_size: Tensor
    acceptance_rate: Tensor


def weighted_latents(
    model: LatentVariableModel,
    x: Tensor,
    context: Tensor | None,
    num_samples: int,
    draw: Callable[[int, list[Tensor]], Draw] = recording,
) -> ConditionalLatents:
    """Draw latents of q(z given x_obs) and weight them by their importance.

    Args:
        model: The model, in evaluation mode.
        x: Checked data, ``(B, *E)``, NaN where they are missing.
        context: Context of the examples, ``(B, ...)``.
        num_samples: Latents per example.
        draw: Returns the rule of drawing, given ``num_samples`` and a list for the points.
    """
    points: list[Tensor] = []
    with checked_data():
        output = model.output_with(x, context, draw(num_samples, points))
    if not all(term.is_density for term in output.latents):
        raise TypeError(
            f"{type(model).__name__} expects posteriors with a density to draw given entries, got "
            f"{output.latents[0].posterior}: build the model with a GaussianEncoder, for example"
        )
    particles = Particles.of(output, tuple(points))
    log_weight = particles.log_weight()
    size = effective_sample_size(log_weight)
    weights = log_weight.masked_fill(size == 0, 0.0).softmax(0)
    return ConditionalLatents(particles, weights, size, torch.full_like(size, math.nan))


def tempered_latents(
    model: LatentVariableModel,
    x: Tensor,
    context: Tensor | None,
    num_samples: int,
    enough: float,
    draw: Callable[[int, list[Tensor]], Draw] = recording,
    *,
    shared: bool = False,
) -> ConditionalLatents:
    r"""Draw latents of p(z given x_obs) by a sequence of targets between it and q.

    .. math:: \pi_\beta(z) \propto q(z \mid x_{\text{obs}})^{1 - \beta}\,
        p(x_{\text{obs}}, z)^\beta, \qquad 0 < \beta_1 < \beta_2 < \dots < 1

    Each target is as far from the last one as leaves half of the effective sample size. The latents
    are resampled by their weights, and moved (:class:`~tinyvae.models.moves.Moves`).

    The effective sample size E of K latents follows from that of the weights and from the largest
    squared correlation of a coordinate before and after the moves, :math:`\rho^2`: two latents that
    were equal before have a correlation of at most :math:`\rho^2` afterwards:

    .. math:: E' = \frac{K}{1 + \rho^2 (K / E - 1)}

    Args:
        model: The model, in evaluation mode.
        x: Checked data, ``(B, *E)``, NaN where they are missing. p(x_obs) is not zero.
        context: Context of the examples, ``(B, ...)``.
        num_samples: Latents per example, see :func:`tempered_size`.
        enough: Effective sample size at which to stop.
        draw: See :func:`weighted_latents`.
        shared: True to use the same random numbers for all examples.

    References:
        Del Moral, Doucet, Jasra (2006). Sequential Monte Carlo samplers. Jasra, Stephens, Doucet,
        Tsagaris (2011). Inference for Lévy-driven stochastic volatility models via adaptive
        sequential Monte Carlo.
    """
    start = weighted_latents(model, x, context, num_samples, draw)
    particles = result = start.particles
    power, size = torch.zeros(2, len(x), dtype=particles.log_q.dtype, device=x.device)
    size = size + num_samples
    sizes, rates = torch.zeros_like(size), torch.full_like(size, math.nan)
    active = torch.arange(len(x), device=x.device)
    for remaining in reversed(range(MAX_SWEEPS)):
        was_last = power == 1
        is_mixed = size >= MIXED * num_samples
        particles, power, left = _next_target(particles, power, is_mixed, shared=shared)
        before = particles.vectors()
        moves = Moves(model, x, context, power, shared)
        with checked_data():
            particles, rate = moves.sweep(particles)
        kept = _largest_squared_correlation(before, particles.vectors())
        size = num_samples / (1 + kept * (num_samples / (size * left) - 1))
        # The last target is moved once more than the others, which hides the way to it.
        is_done = (was_last & (size >= enough)) | (remaining == 0)
        if not is_done.any():
            continue
        result = result.replaced(active, particles)
        sizes = sizes.index_copy(0, active, torch.where(power == 1, size, 0.0))
        rates = rates.index_copy(0, active, rate)
        # An example that is done stops, so that it does not depend on the others.
        rest = (~is_done).nonzero()[:, 0]
        if not len(rest):
            break
        active, x, power, size = active[rest], x[rest], power[rest], size[rest]
        context = None if context is None else context[rest]
        particles = particles.examples(rest)
    return ConditionalLatents(result, torch.full_like(result.log_q, 1 / num_samples), sizes, rates)


def tempered_size(particles: Particles, enough: float) -> int:
    """Return a number of latents for an effective sample size. Moves are fitted to half of them."""
    return 2 * max(ENOUGH, math.ceil(enough), 15 * min(particles.num_dims, MAX_FITTED))


def _next_target(
    particles: Particles, power: Tensor, is_mixed: Tensor, *, shared: bool
) -> tuple[Particles, Tensor, Tensor]:
    """Resample for the next target, which is the same one for examples that are not mixed.

    Return its power, and the share of the effective sample size that is left.
    """
    log_weight = particles.log_weight()
    num_particles = len(log_weight)

    def step_size(step: Tensor) -> Tensor:
        # Not 0 * -inf, which is NaN.
        scaled = torch.where(log_weight == -math.inf, log_weight, step * log_weight)
        return effective_sample_size(scaled)

    low, high = torch.zeros_like(power), torch.where(is_mixed, 1 - power, 0.0)
    is_last = is_mixed & (step_size(high) >= num_particles / 2)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        fits = step_size(middle) >= num_particles / 2
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    step = torch.where(is_last, 1 - power, low)
    weights = torch.where(log_weight == -math.inf, log_weight, step * log_weight).softmax(0)
    index = systematic_resampling(weights, num_particles, shared=shared)
    power = torch.where(is_last, 1.0, power + step)
    return particles.select(index), power, step_size(step) / num_particles


def _largest_squared_correlation(before: Tensor, after: Tensor) -> Tensor:
    """Return the largest one of the coordinates of vectors ``(K, B, D)``, ``(B,)``."""
    before, after = before - before.mean(0), after - after.mean(0)
    covariance = (before * after).sum(0)
    scale = before.square().sum(0) * after.square().sum(0)
    return torch.where(scale > 0, covariance.square() / scale, 1.0).amax(-1)


@dataclass(frozen=True)
class ConditionalDraws:
    """Draws of incomplete examples given their observed entries.

    Attributes:
        values: Examples, ``(n, N, *E)``.
        effective_sample_size: Number of independent latents that are worth as much as those that
            the draws were chosen from, ``(N,)``. It is 0 for an example to whose observed entries
            the model gives density zero, and for one that ran out of moves. A mode that no latent
            reached does not show in it.
        acceptance_rate: Share of accepted moves, ``(N,)``, NaN for examples whose importance
            weights sufficed.
    """

    values: Tensor
    effective_sample_size: Tensor
    acceptance_rate: Tensor

    def require_enough(self, name: str) -> None:
        """Raise unless each example has some effective draws."""
        poor = (self.effective_sample_size < FEWEST).nonzero()[:, 0].tolist()
        if poor:
            size = self.effective_sample_size[poor[0]].item()
            raise ValueError(
                f"{name} expects given entries that the model can explain, got an effective sample "
                f"size of {size:.1f} in {listed(poor)}: the density of these entries is zero, or "
                "latents that fit them are too hard to find. Check units and values, or leave the "
                "entries out that are far from the training data"
            )


def require_masked(name: str, likelihood: Likelihood) -> None:
    """Raise unless a likelihood scores observed entries alone."""
    if not isinstance(likelihood, MaskedLikelihood):
        raise TypeError(
            f"{name} with given entries expects a MaskedLikelihood, got {likelihood}: build the "
            f"model with MaskedLikelihood({type(likelihood).__name__}(...)), also if no training "
            "data are missing"
        )


def draw_given(
    model: LatentVariableModel,
    likelihood: Likelihood,
    x: Tensor,
    context: Tensor | None,
    num_draws: int,
    num_samples: int = 1000,
    *,
    center: bool = False,
) -> ConditionalDraws:
    """Draw examples given their observed entries. Latents are moved where weights are degenerate.

    A mechanism is left out, because missing entries are those that somebody wants to draw.

    Args:
        model: The model, in evaluation mode.
        likelihood: Its likelihood.
        x: Checked data, ``(N, *E)``, NaN where they are missing.
        context: Context of the examples, ``(N, ...)``.
        num_draws: Draws ``n`` per example.
        num_samples: Latents per example, of which ``n`` are chosen by their weights. At least
            twice ``n``.
        center: True for the centers of p(x given z) instead of draws.
    """
    enough = float(max(ENOUGH, num_draws))
    num_samples = max(num_samples, int(2 * enough))
    examples = max(1, CHUNK_ELEMENTS // (model.peak_elements(x) * num_samples))
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(x), examples):
        rows = slice(start, start + examples)
        part = None if context is None else context[rows]
        with ignoring_mask(likelihood):
            particles, size, rate = _chosen_latents(
                model, x[rows], part, num_draws, num_samples, enough
            )
        with checked_data(), ignoring_mask(likelihood):
            output = model.output_with(x[rows], part, replaying(particles.points))
        parts.append((likelihood.values_of(output.likelihood, center=center), size, rate))
    values, sizes, rates = zip(*parts, strict=True)
    return ConditionalDraws(torch.cat(values, 1), torch.cat(sizes), torch.cat(rates))


def likelihood_given(likelihood: Likelihood, p: Distribution, x: Tensor) -> Distribution:
    """Return p(x given z, observed entries), with a mechanism also given which are missing.

    Args:
        likelihood: The likelihood that made ``p``.
        p: p(x given z), ``(n, B)``.
        x: Data, ``(B, *E)``, NaN where they are missing.
    """
    return likelihood.conditional(p, x) if isinstance(likelihood, MaskedLikelihood) else p


def _chosen_latents(
    model: LatentVariableModel,
    x: Tensor,
    context: Tensor | None,
    num_draws: int,
    num_samples: int,
    enough: float,
) -> tuple[Particles, Tensor, Tensor]:
    """Return ``n`` latents per example, effective sample sizes, and acceptance rates."""
    latents = weighted_latents(model, x, context, num_samples)
    particles = latents.particles.select(systematic_resampling(latents.weights, num_draws))
    size, rate = latents.effective_sample_size, latents.acceptance_rate
    if len(poor := poor_examples(size, enough)):
        rows = None if context is None else context[poor]
        count = tempered_size(particles, enough)
        moved = tempered_latents(model, x[poor], rows, count, enough)
        drawn = moved.particles.select(systematic_resampling(moved.weights, num_draws))
        particles = particles.replaced(poor, drawn)
        size = size.index_copy(0, poor, moved.effective_sample_size)
        rate = rate.index_copy(0, poor, moved.acceptance_rate)
    return particles, size, rate


def poor_examples(size: Tensor, enough: float) -> Tensor:
    """Return the indices of examples whose weights are degenerate, but not all zero."""
    return ((size < enough) & (size > 0)).nonzero()[:, 0]


def listed(rows: list[int]) -> str:
    """Return the first row numbers, for a message."""
    shown = ", ".join(map(str, rows[:5]))
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"
