r"""Weighted latents of p(z given the observed entries).

.. math:: p(z \mid x_{\text{obs}}) \propto w(z)\, q(z \mid x_{\text{obs}}), \qquad
    w(z) = \frac{p(x_{\text{obs}} \mid z)\, p(z)}{q(z \mid x_{\text{obs}})}
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyvae.models.output import Draw, VAEOutput


@dataclass(frozen=True)
class Particles:
    """Latents of ``B`` examples, ``K`` each, with the densities that weight them.

    Attributes:
        points: Points of the latents in the order of drawing, ``(K, B, *L)`` each.
        log_px: log p(x_obs given z), ``(K, B)``, nats.
        log_prior: log p(z), ``(K, B)``, nats.
        log_q: log q(z given x_obs), ``(K, B)``, nats.
        are_real: True if all latents are vectors of real numbers.
    """

    points: tuple[Tensor, ...]
    log_px: Tensor
    log_prior: Tensor
    log_q: Tensor
    are_real: bool = True

    @classmethod
    def of(cls, output: VAEOutput, points: tuple[Tensor, ...]) -> "Particles":
        """Return the particles of a pass that drew or took ``points``."""
        zeros, terms = torch.zeros_like(output.log_px), output.latents
        log_prior = sum((term.log_p for term in terms), zeros)
        log_q = sum((term.log_q for term in terms), zeros)
        are_real = all(term.posterior.log_form().support == "reals" for term in terms)
        return cls(points, output.log_px, log_prior, log_q, are_real)

    @property
    def num_dims(self) -> int:
        """Number of dimensions of all latents of an example."""
        return sum(point.shape[2:].numel() for point in self.points)

    def log_weight(self) -> Tensor:
        """Return log w of each particle, ``(K, B)``, -inf if it is undefined."""
        log_weight = self.log_px + self.log_prior - self.log_q
        return torch.where(torch.isnan(log_weight), -math.inf, log_weight)

    def log_target(self, power: Tensor) -> Tensor:
        """Return log q + power log w, for powers ``(B,)`` > 0: a path from q to p(z given x)."""
        return self.log_q + power * self.log_weight()

    def map(self, change: Callable[[Tensor], Tensor]) -> "Particles":
        """Return particles whose tensors ``(K, B, ...)`` are changed."""
        points = tuple(map(change, self.points))
        log_px, log_prior, log_q = map(change, (self.log_px, self.log_prior, self.log_q))
        return Particles(points, log_px, log_prior, log_q, self.are_real)

    def combine(self, other: "Particles", rule: Callable[[Tensor, Tensor], Tensor]) -> "Particles":
        """Return particles whose tensors are those that a rule makes of two."""
        others = iter([*other.points, other.log_px, other.log_prior, other.log_q])
        return self.map(lambda value: rule(value, next(others)))

    def select(self, index: Tensor) -> "Particles":
        """Return the particles at ``index`` ``(n, B)``, ``n`` per example."""
        examples = torch.arange(index.shape[1], device=index.device)
        return self.map(lambda value: value[index, examples])

    def examples(self, index: Tensor) -> "Particles":
        """Return the particles of some examples."""
        return self.map(lambda value: value[:, index])

    def replaced(self, index: Tensor, others: "Particles") -> "Particles":
        """Return particles in which those of some examples are replaced."""
        return self.combine(others, lambda value, other: value.index_copy(1, index, other))

    def vectors(self) -> Tensor:
        """Return the points, flattened and concatenated, ``(K, B, D)``."""
        return torch.cat([point.flatten(2) for point in self.points], 2)

    def unflatten(self, vectors: Tensor) -> list[Tensor]:
        """Return the points of other vectors: inverse of :meth:`vectors`."""
        parts = vectors.split([point.shape[2:].numel() for point in self.points], 2)
        return [v.reshape(p.shape) for v, p in zip(parts, self.points, strict=True)]


def chosen(condition: Tensor, new: Particles, old: Particles) -> Particles:
    """Return the new particles where ``condition`` ``(K, B)`` is true, else the old ones."""

    def choose(value: Tensor, other: Tensor) -> Tensor:
        mask = condition.reshape(*condition.shape, *[1] * (value.dim() - 2))
        return torch.where(mask, value, other)

    return new.combine(old, choose)


def interleaved(even: Particles, odd: Particles) -> Particles:
    """Return the particles of two halves in turn."""
    return even.combine(odd, lambda first, second: torch.stack([first, second], 1).flatten(0, 1))


def replaying(points: Sequence[Tensor]) -> Draw:
    """Return the rule that returns points in their order instead of drawing them."""
    remaining = iter(points)
    return lambda *_: (next(remaining), None)


def effective_sample_size(log_weight: Tensor) -> Tensor:
    r"""Return the effective sample size of importance weights ``(K, B)``, ``(B,)``.

    .. math:: \frac{\big(\sum_k w_k\big)^2}{\sum_k w_k^2}

    It is between 1, if one weight dominates, and ``K``, if all are equal. It is 0 if all weights
    are zero.

    References:
        Kong (1992). A Note on Importance Sampling using Standardized Weights.

    Example:
        >>> effective_sample_size(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]]))
        tensor([2., 1.])
    """
    size = (2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)).exp()
    return torch.where((log_weight == -math.inf).all(0), 0.0, size)


def systematic_resampling(weights: Tensor, count: int, *, shared: bool = False) -> Tensor:
    """Return indices ``(count, B)`` of particles, each in proportion to its weight ``(K, B)``.

    Args:
        weights: Weights with a positive sum over ``K``.
        count: Number of indices per example.
        shared: True to use one random number for all examples instead of one for each.

    References:
        Carpenter, Clifford, Fearnhead (1999). Improved particle filter for nonlinear problems.
    """
    num_particles, examples = weights.shape
    offset = weights.new_empty(1 if shared else examples, 1).uniform_()
    steps = torch.arange(count, dtype=weights.dtype, device=weights.device)
    position = ((steps + offset) / count).expand(examples, -1).contiguous()  # (B, n)
    cumulative = weights.T.cumsum(1)
    cumulative = cumulative / cumulative[:, -1:]
    index = torch.searchsorted(cumulative, position, right=True)
    return index.clamp(max=num_particles - 1).T
