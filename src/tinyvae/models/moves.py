r"""Markov chain Monte Carlo moves of latents given observed entries.

Each move leaves the tempered target of each example invariant:

.. math:: \pi_\beta(z) \propto q(z \mid x_{\text{obs}})^{1 - \beta}\, p(x_{\text{obs}}, z)^\beta
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyvae.models.latents import recording, repeat_rows
from tinyvae.models.output import LatentVariableModel
from tinyvae.models.particles import Particles, chosen, interleaved, replaying

JUMPS = 0.1  # share of the steps that have full length, from one mode to another
FREEDOM = 5  # degrees of freedom of the fitted proposal, whose tails are heavier than the target's
MAX_FITTED = 256  # dimensions, because a covariance takes their cube to factorize
RIDGE = 1e-6  # relative variance that keeps a fitted covariance positive definite

# Given vectors (n, B, D) to move and other ones, return the proposals (n, B, D) and the log ratio
# of the proposal's densities, log t(z given z') - log t(z' given z), (n, B).
Proposal = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Moves:
    r"""Moves of the latents of some examples.

    Attributes:
        model: The model, in evaluation mode.
        x: Data ``(B, *E)``, NaN where they are missing.
        context: Context of the examples, ``(B, ...)``.
        power: Power :math:`0 < \beta \leq 1` of the target, ``(B,)``.
        shared: True to use the same random numbers for all examples.
    """

    model: LatentVariableModel
    x: Tensor
    context: Tensor | None
    power: Tensor
    shared: bool = False

    def sweep(self, particles: Particles) -> tuple[Particles, Tensor]:
        """Move each particle once or twice. Return them, and the share of accepted moves."""
        if not particles.are_real:
            return self.gibbs(particles)
        if particles.num_dims <= MAX_FITTED:
            particles, first = self._move_halves(particles, self._fitted_proposal)
        else:
            particles, first = self.gibbs(particles)
        particles, second = self._move_halves(particles, self._differential_proposal)
        return particles, (first + second) / 2

    def gibbs(self, particles: Particles) -> tuple[Particles, Tensor]:
        r"""Propose latents of the completed example by the encoder.

        .. math:: x_{\text{mis}} \sim p(x_{\text{mis}} \mid z), \qquad
            z' \sim q(z \mid x_{\text{obs}}, x_{\text{mis}})

        A proposal is accepted by Metropolis' rule. Without it this is pseudo-Gibbs sampling.

        References:
            Mattei, Frellsen (2018). Leveraging the Exact Likelihood of Deep Latent Variable Models.
            arXiv:1802.04826, section 4. Rezende, Mohamed, Wierstra (2014). arXiv:1401.4082.
        """
        model, x, context = self.model, self.x, self.context
        likelihood = model.output_with(x, context, replaying(particles.points)).likelihood
        completed = torch.where(torch.isnan(x), likelihood.sample(), x).flatten(0, 1)  # (K*B, *E)
        rows = None if context is None else repeat_rows(context, len(completed))
        drawn: list[Tensor] = []
        ahead = Particles.of(model.output_with(completed, rows, recording(1, drawn)), ())
        current = tuple(point.flatten(0, 1).unsqueeze(0) for point in particles.points)
        back = Particles.of(model.output_with(completed, rows, replaying(current)), ())
        points = [p.reshape(old.shape) for p, old in zip(drawn, particles.points, strict=True)]
        proposed = self._at(points)
        log_ratio = self._log_ratio(proposed, particles)
        for sign, latents, scored in ((1, proposed, ahead), (-1, particles, back)):
            log_missing = scored.log_px.reshape(log_ratio.shape) - latents.log_px
            log_ratio = log_ratio + sign * (log_missing - scored.log_q.reshape(log_ratio.shape))
        return self._accept(proposed, particles, log_ratio)

    def _move_halves(self, particles: Particles, proposal: Proposal) -> tuple[Particles, Tensor]:
        """Move one half of the particles given the other half, which stays, and vice versa."""
        even, odd = particles.map(lambda v: v[::2]), particles.map(lambda v: v[1::2])
        halves, rates = [even, odd], []
        for half in (0, 1):
            moving, others = halves[half], halves[1 - half].vectors()
            vectors, log_correction = proposal(moving.vectors(), others)
            proposed = self._at(moving.unflatten(vectors))
            log_ratio = self._log_ratio(proposed, moving) + log_correction
            halves[half], rate = self._accept(proposed, moving, log_ratio)
            rates.append(rate)
        return interleaved(*halves), (rates[0] + rates[1]) / 2

    def _fitted_proposal(self, vectors: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Draw from a Student t distribution with the mean and the covariance of the others."""
        mean = others.mean(0)
        centered = (others - mean).transpose(0, 1)  # (B, n, D)
        covariance = centered.mT @ centered / len(others)
        scale = covariance.diagonal(dim1=1, dim2=2)
        ridge = RIDGE * scale + torch.finfo(scale.dtype).tiny ** 0.5
        factor, _ = torch.linalg.cholesky_ex(covariance + torch.diag_embed(ridge))
        noise = self._normal(vectors, *vectors.shape[2:])
        noise = noise / (self._normal(vectors, FREEDOM).square().mean(-1, keepdim=True)).sqrt()
        proposed = mean + (factor @ noise.unsqueeze(-1)).squeeze(-1)
        difference = (vectors - mean).unsqueeze(-1)
        current = torch.linalg.solve_triangular(factor, difference, upper=False).squeeze(-1)
        exponent = -(FREEDOM + vectors.shape[2]) / 2
        old, new = ((1 + e.square().sum(-1) / FREEDOM).log() for e in (current, noise))
        return proposed, exponent * (old - new)

    def _differential_proposal(self, vectors: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        r"""Step along the difference of two others, :math:`z' = z + \gamma (z_a - z_b)`.

        References:
            Ter Braak (2006). A Markov Chain Monte Carlo version of the genetic algorithm
            Differential Evolution.
        """
        kind, length, *pair = self._uniform(vectors, 4).unbind(-1)  # (n, B) each
        step = 2.38 / math.sqrt(2 * vectors.shape[2]) * (0.5 + length)
        step = torch.where(kind < JUMPS, 1.0, step).unsqueeze(-1)
        examples = torch.arange(vectors.shape[1], device=vectors.device)
        first, second = (others[(u * len(others)).long(), examples] for u in pair)
        return vectors + step * (first - second), vectors.new_zeros(vectors.shape[:2])

    def _at(self, points: list[Tensor]) -> Particles:
        """Return the particles at points."""
        output = self.model.output_with(self.x, self.context, replaying(points))
        return Particles.of(output, tuple(points))

    def _log_ratio(self, proposed: Particles, current: Particles) -> Tensor:
        return proposed.log_target(self.power) - current.log_target(self.power)

    def _accept(
        self, proposed: Particles, current: Particles, log_ratio: Tensor
    ) -> tuple[Particles, Tensor]:
        """Accept by Metropolis' rule. Return the particles, and the share of accepted moves."""
        uniform = self._uniform(log_ratio, 1).squeeze(-1)
        accept = uniform.log() < log_ratio  # false for NaN
        return chosen(accept, proposed, current), accept.to(log_ratio.dtype).mean(0)

    def _normal(self, like: Tensor, size: int) -> Tensor:
        shape = (len(like), 1 if self.shared else like.shape[1], size)
        return like.new_empty(shape).normal_().expand(-1, like.shape[1], -1)

    def _uniform(self, like: Tensor, size: int) -> Tensor:
        shape = (len(like), 1 if self.shared else like.shape[1], size)
        return like.new_empty(shape).uniform_().expand(-1, like.shape[1], -1)
