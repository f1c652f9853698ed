r"""Log evidence by annealed importance sampling.

Chains move along a path of densities :math:`\pi_\beta` from the prior to the posterior:

.. math:: \log w = \sum_{t=1}^T (\beta_t - \beta_{t-1}) \log \frac{p(x, z_{t-1})}{p_0(z_{t-1})},
    \qquad z_0 \sim p_0, \quad z_t \sim T_{\beta_t}(\cdot \mid z_{t-1}), \qquad
    \mathbb{E}\, w = p(x)

where the transition :math:`T_\beta` leaves :math:`\pi_\beta` invariant.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, get_args

import torch
from torch import Tensor

from tinyvae.core.generators import exclusive_generators
from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.random import Stream, derive_seed
from tinyvae.evaluation.data import EvaluationData
from tinyvae.evaluation.estimate import Estimate
from tinyvae.evaluation.hamiltonian import HMC, Trajectories
from tinyvae.evaluation.importance import (
    drawing,
    iterate_blocks,
)
from tinyvae.evaluation.paths import AnnealingPath, Start
from tinyvae.evaluation.progress import Progress
from tinyvae.models.inputs import require_count
from tinyvae.models.output import LatentVariableModel
from tinyvae.models.particles import effective_sample_size
from tinyvae.training.data.sources import PickBatch, Transform

# Given latents (K, B, D) and a power, return moved latents and log p(x, z) / p_0 at them, (K, B).
Transition: TypeAlias = Callable[[Tensor, float], tuple[Tensor, Tensor]]

PILOT_CHAINS = 4
STEEPNESS = 4.0  # of the sigmoid: most temperatures are near both ends


@dataclass(frozen=True)
class AnnealedEvidence:
    """Log p(x) of each example by annealed importance sampling.

    Attributes:
        log_weight: Estimate of log p(x) by each chain, ``(K, N)``, nats.
        acceptance_rate: Share of accepted transitions, ``(N,)``. About the target acceptance rate,
            unless step sizes could not be adapted.
        num_temperatures: Number of temperatures of the path.
        is_upper: True for chains from the posterior to the start, whose ``values`` are an upper
            bound on log p(x) in expectation. Others are a lower bound.
        num_dims: Mean number of observed dimensions of an example, NaN if it is unknown.
    """

    log_weight: Tensor
    acceptance_rate: Tensor
    num_temperatures: int
    is_upper: bool = False
    num_dims: float = math.nan

    @property
    def values(self) -> Tensor:
        """Estimate of log p(x) of each example from all chains, ``(N,)``, nats."""
        sign = -1.0 if self.is_upper else 1.0
        num_chains = len(self.log_weight)
        return sign * ((sign * self.log_weight).logsumexp(0) - math.log(num_chains))

    @property
    def effective_sample_size(self) -> Tensor:
        """Number of chains of equal weight that are worth as much, ``(N,)``, at most ``K``."""
        return effective_sample_size(-self.log_weight if self.is_upper else self.log_weight)

    @property
    def monte_carlo_error(self) -> Tensor:
        """Standard error of ``values`` over the chains, ``(N,)``, nats. NaN for one chain.

        It is the relative standard error of the mean weight. The chains of an upper bound share
        their first latent, whose variance it leaves out.
        """
        num_chains = len(self.log_weight)
        if num_chains == 1:
            return torch.full_like(self.log_weight[0], math.nan)
        excess = (num_chains / self.effective_sample_size - 1).clamp(min=0.0)
        return (excess / (num_chains - 1)).sqrt()

    @property
    def estimate(self) -> Estimate:
        """Mean of ``values`` over the examples, with its errors.

        ``report.with_estimate("annealed", evidence.estimate)`` adds it to a report.
        """
        return Estimate.of(
            self.values,
            self.num_dims,
            errors=self.monte_carlo_error,
            num_samples=len(self.log_weight),
        )

    def __str__(self) -> str:
        bound = "upper" if self.is_upper else "lower"
        chains = f"AIS, {len(self.log_weight)} chains of {self.num_temperatures} temperatures"
        size, rate = (v.mean().item() for v in (self.effective_sample_size, self.acceptance_rate))
        return (
            f"log p(x) ({chains}, {bound} bound) {self.estimate} nats, "
            f"{size:.1f} effective chains, {rate:.0%} accepted"
        )


@suggest_keywords
@exclusive_generators("annealed_log_marginal")
def annealed_log_marginal(
    model: LatentVariableModel,
    data: Any,
    context: Any = None,
    *,
    mask: Any = None,
    batch: PickBatch | None = None,
    transform: Transform | None = None,
    num_temperatures: int = 500,
    num_chains: int = 16,
    start: Start = "prior",
    transition: HMC | None = None,
    seed: int = 0,
    progress: bool = True,
) -> AnnealedEvidence:
    r"""Estimate log p(x) of each example by annealed importance sampling.

    It needs no good encoder, while importance sampling does. It costs more: each of
    ``num_temperatures`` transitions computes a gradient of the decoder per leapfrog step.
    Temperatures follow a sigmoid :math:`\sigma`,

    .. math:: \beta_t = \frac{s_t - s_0}{s_T - s_0}, \qquad s_t = \sigma\big(4 (2 t / T - 1)\big)

    Args:
        model: The model. It is used in evaluation mode. All its latents are real vectors.
        data: Data, see :func:`~tinyvae.evaluate`.
        context: Input of a conditional model, ``(N, ...)``, if data are x alone.
        mask: True for the observed entries, ``(N, *E)``, if data are x alone. NaN is missing.
        batch: Function that returns x, or a :class:`~tinyvae.Batch`, of a batch of the data.
        transform: Function (x, generator) -> x. ``seed`` sets its noise.
        num_temperatures: Number :math:`T` of steps of the path.
        num_chains: Chains :math:`K` per example.
        start: Density that the path starts from: ``"prior"``, p(z), or ``"posterior"``,
            q(z given x), which is shorter if the encoder is good.
        transition: Settings of the transitions, by default ``HMC()``. A pilot run of four chains
            adapts their step sizes.
        seed: Seed of the chains. The global random state does not change.
        progress: True to report draws and time left, if it takes longer than a second.

    Raises:
        TypeError: If a latent is not a real vector.

    References:
        Neal (2001). Annealed importance sampling. Wu, Burda, Salakhutdinov, Grosse (2017). On the
        Quantitative Analysis of Decoder-Based Generative Models. arXiv:1611.04273.

    Example:
        >>> evidence = annealed_log_marginal(vae, x, num_temperatures=20, num_chains=4)
        >>> evidence.values.shape, evidence.log_weight.shape
        (torch.Size([8]), torch.Size([4, 8]))
    """
    require_settings("annealed_log_marginal", num_temperatures, num_chains, start)
    settings = HMC() if transition is None else transition
    powers = sigmoid_powers(num_temperatures)
    gradients = num_gradients(settings, num_temperatures, PILOT_CHAINS + num_chains)
    log_weights, rates = [], []
    with EvaluationData(
        model, data, context, mask, batch=batch, transform=transform, seed=seed
    ) as opened:
        total = None if opened.num_examples is None else gradients * opened.num_examples
        with Progress("annealing", total, shown=progress) as report:
            for first, part in opened.parts():
                for index, block in iterate_blocks(model, part, num_chains):
                    with drawing(
                        model, opened.device, derive_seed(seed, Stream.ANNEALING, first + index)
                    ):
                        path = AnnealingPath.of(model, block, start)
                        moves = adapted_moves(path, settings, powers, report)
                        log_weights.append(anneal(path, path.draw(num_chains), powers, moves))
                        rates.append(moves.acceptance_rate())
        num_dims = opened.num_dims.double().mean().item()
    return AnnealedEvidence(
        torch.cat(log_weights, 1), torch.cat(rates), num_temperatures, num_dims=num_dims
    )


def sigmoid_powers(num_temperatures: int) -> list[float]:
    """Return the powers of a path, from 0 to 1: ``num_temperatures`` + 1 numbers."""
    steps = torch.linspace(-1.0, 1.0, num_temperatures + 1, dtype=torch.float64)
    sigmoid = torch.sigmoid(STEEPNESS * steps)
    powers: list[float] = ((sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])).tolist()
    return powers


def anneal(path: AnnealingPath, z: Tensor, powers: Sequence[float], move: Transition) -> Tensor:
    """Return the log weights of chains through ``powers``, ``(K, B)``, nats.

    Args:
        path: The path.
        z: First latents, ``(K, B, D)``, drawn at ``powers[0]``.
        powers: Rising powers from 0 to 1, whose weights estimate p(x), or falling ones from 1 to 0,
            whose weights estimate 1 / p(x).
        move: Transition that leaves the density at a power invariant.
    """
    log_ratio = path.log_densities(z)[1]
    log_weight = torch.zeros_like(log_ratio)
    for index in range(1, len(powers)):
        log_weight = log_weight + (powers[index] - powers[index - 1]) * log_ratio
        if index < len(powers) - 1:
            z, log_ratio = move(z, powers[index])
    return log_weight


def adapted_moves(
    path: AnnealingPath, settings: HMC, powers: Sequence[float], report: Progress
) -> Trajectories:
    """Return transitions whose step sizes a pilot run has adapted."""
    moves = Trajectories(path, settings, report)
    moves.adapt(path.draw(PILOT_CHAINS), powers[1:-1])
    return moves


def num_gradients(settings: HMC, num_temperatures: int, num_chains: int) -> int:
    """Return the number of gradients of the decoder, per example."""
    return settings.leapfrog_steps * (num_temperatures - 1) * num_chains


def require_settings(name: str, num_temperatures: int, num_chains: int, start: Start) -> None:
    """Raise unless the arguments of annealing are valid."""
    require_count(name, num_temperatures, "num_temperatures", least=2)
    require_count(name, num_chains, "num_chains")
    if start not in get_args(Start):
        raise ValueError(f"{name} expects start 'prior' or 'posterior', got {start!r}")
