r"""Hamiltonian Monte Carlo along a path of densities.

.. math:: H(z, v) = -\log \pi_\beta(z) + \tfrac12 \lVert v \rVert^2, \qquad v \sim \mathcal{N}(0, I)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tinyvae.evaluation.paths import AnnealingPath
from tinyvae.evaluation.progress import Progress

ADAPTATION_RATE = 0.3  # of the log step size, per transition and unit of acceptance
FIRST_STEP_SIZE = 0.3  # at the start of the path, whose scale is about 1
JITTER = 0.2  # relative change of each step size, so that no orbit closes


@dataclass(frozen=True)
class HMC:
    """Settings of Hamiltonian Monte Carlo transitions.

    Args:
        leapfrog_steps: Steps of each trajectory, with one gradient of the decoder each. At equal
            cost, more temperatures are worth more than longer trajectories.
        target_acceptance: Acceptance rate to which step sizes are adapted, in (0, 1).

    References:
        Neal (2011). MCMC using Hamiltonian dynamics. arXiv:1206.1901. Its section 4.4 derives the
        optimal acceptance rate, 0.65.

    Example:
        >>> HMC(leapfrog_steps=10)
        HMC(leapfrog_steps=10, target_acceptance=0.65)
    """

    leapfrog_steps: int = 5
    target_acceptance: float = 0.65

    def __post_init__(self) -> None:
        if self.leapfrog_steps < 1 or not 0 < self.target_acceptance < 1:
            raise ValueError(
                "HMC expects leapfrog_steps >= 1 and 0 < target_acceptance < 1, got "
                f"{self.leapfrog_steps} and {self.target_acceptance}"
            )


@dataclass
class Trajectories:
    """Transitions that leave the densities of a path invariant.

    A pilot run (:meth:`adapt`) finds a step size per example and temperature. They are fixed
    afterwards. Transitions that adapted to their own chains would not leave their target invariant,
    and weights would not be exact.

    Attributes:
        path: The path.
        settings: Leapfrog steps and target acceptance rate.
        report: Progress report, which counts gradients of the decoder.
        step_sizes: Step sizes per power of the path, ``(B,)`` each.
    """

    path: AnnealingPath
    settings: HMC
    report: Progress
    step_sizes: dict[float, Tensor] = field(default_factory=dict)
    _rates: list[Tensor] = field(default_factory=list)

    def adapt(self, z: Tensor, powers: Sequence[float]) -> None:
        """Set the step sizes in a run of pilot chains ``(K, B, D)`` through ``powers``."""
        log_step = z.new_full(z.shape[1:2], math.log(FIRST_STEP_SIZE))
        for power in powers:
            self.step_sizes[power] = log_step.exp()
            z, _, rate = self._move(z, power)
            log_step = log_step + ADAPTATION_RATE * (rate - self.settings.target_acceptance)

    def __call__(self, z: Tensor, power: float) -> tuple[Tensor, Tensor]:
        r"""Return moved latents ``(K, B, D)``, and log p(x, z) / p_0 at them, ``(K, B)``."""
        z, log_ratio, rate = self._move(z, power)
        self._rates.append(rate)
        return z, log_ratio

    def acceptance_rate(self) -> Tensor:
        """Return the mean acceptance rate since the last call of this method, ``(B,)``."""
        rate = torch.stack(self._rates).mean(0)
        self._rates.clear()
        return rate

    def _move(self, z: Tensor, power: float) -> tuple[Tensor, Tensor, Tensor]:
        jitter = 1 + JITTER * (2 * torch.rand((), dtype=z.dtype, device=z.device) - 1)
        step = (self.step_sizes[power] * jitter).unsqueeze(-1)  # (B, 1)
        velocity = torch.randn_like(z)
        log_target, log_ratio, slope = self._evaluate(z, power)
        energy = 0.5 * velocity.square().sum(-1) - log_target
        moved, moved_velocity = z, velocity + 0.5 * step * slope
        for index in range(self.settings.leapfrog_steps):
            moved = moved + step * moved_velocity
            moved_target, moved_ratio, slope = self._evaluate(moved, power)
            is_last = index == self.settings.leapfrog_steps - 1
            moved_velocity = moved_velocity + (0.5 if is_last else 1.0) * step * slope
        log_accept = energy - (0.5 * moved_velocity.square().sum(-1) - moved_target)
        log_accept = torch.where(torch.isnan(log_accept), -math.inf, log_accept)  # (K, B)
        accept = torch.rand_like(log_accept).log() < log_accept
        self.report.add(self.settings.leapfrog_steps * accept.numel())
        z = torch.where(accept.unsqueeze(-1), moved, z)
        log_ratio = torch.where(accept, moved_ratio, log_ratio)
        return z, log_ratio, log_accept.exp().clamp(max=1.0).mean(0)

    def _evaluate(self, z: Tensor, power: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the log target, the log ratio, and the gradient of the log target."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            log_start, log_ratio = self.path.log_densities(z)
            log_target = log_start + power * log_ratio
            (slope,) = torch.autograd.grad(log_target.sum(), z)
        # Outside of the support there is no slope. The trajectory goes straight, to be rejected.
        return log_target.detach(), log_ratio.detach(), slope.nan_to_num(0.0, 0.0, 0.0)
