r"""Lower and upper bounds on log p(x) of data that are simulated from a model.

Annealing (:mod:`~tinyvae.evaluation.annealing`) runs in both directions. Chains from an exact draw
of the posterior back to the start of the path bound log p(x) from above.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tinyvae.core.generators import exclusive_generators
from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.module_state import evaluating
from tinyvae.core.random import Stream, derive_seed, forked_rng
from tinyvae.evaluation.annealing import (
    PILOT_CHAINS,
    AnnealedEvidence,
    adapted_moves,
    anneal,
    num_gradients,
    require_settings,
    sigmoid_powers,
)
from tinyvae.evaluation.estimate import Estimate
from tinyvae.evaluation.hamiltonian import HMC
from tinyvae.evaluation.importance import chunk_sizes, iterate_chunks, to_model
from tinyvae.evaluation.paths import AnnealingPath, Start
from tinyvae.evaluation.progress import Progress
from tinyvae.models.base import DecoderModel
from tinyvae.models.inputs import require_count


@dataclass(frozen=True)
class BidirectionalEvidence:
    """Lower and upper bounds on log p(x) of simulated data.

    Attributes:
        x: The simulated data, ``(N, *E)``.
        lower: Bounds by chains from the start of the path to the posterior.
        upper: Bounds by chains back, from the latents that the data were simulated from.
    """

    x: Tensor
    lower: AnnealedEvidence
    upper: AnnealedEvidence

    @property
    def gap(self) -> Estimate:
        """Mean of upper minus lower bound, which bounds the error of both in expectation."""
        return Estimate.of(self.upper.values - self.lower.values)

    def __str__(self) -> str:
        return "\n".join([str(self.lower), str(self.upper), f"gap {self.gap} nats"])


@suggest_keywords
@exclusive_generators("bidirectional")
def bidirectional(
    model: DecoderModel,
    num_examples: int = 100,
    context: Tensor | None = None,
    *,
    num_temperatures: int = 500,
    num_chains: int = 16,
    start: Start = "prior",
    transition: HMC | None = None,
    seed: int = 0,
    progress: bool = True,
) -> BidirectionalEvidence:
    r"""Bound the error of annealed importance sampling, on data simulated from the model.

    The latent that an example was simulated from is an exact draw of its posterior. Chains from it
    back to the start give an unbiased estimate of 1 / p(x), so that

    .. math:: \mathbb{E} \log \frac1K \sum_k w_k \le \log p(x)
        \le \mathbb{E} \Big[ -\log \frac1K \sum_k \frac{1}{w'_k} \Big]

    If the gap is small, :func:`annealed_log_marginal` with the same settings is accurate for data
    like those of the model. It says nothing of data that the model does not explain.

    Args:
        model: The model. It is used in evaluation mode. All its latents are real vectors.
        num_examples: Number of examples ``N`` to simulate, without a context.
        context: Input of a conditional model, ``(N, ...)``: one example is simulated for each.
        num_temperatures: Number :math:`T` of steps of the path.
        num_chains: Chains :math:`K` per example in each direction.
        start: Density that the path starts from, see :func:`annealed_log_marginal`.
        transition: Settings of the transitions, by default ``HMC()``.
        seed: Seed of data and chains. The global random state does not change.
        progress: True to report draws and time left, if it takes longer than a second.

    References:
        Grosse, Ghahramani, Adams (2015). Sandwiching the marginal likelihood using bidirectional
        Monte Carlo. arXiv:1511.02543.

    Example:
        >>> bounds = bidirectional(vae, 8, num_temperatures=20, num_chains=4)
        >>> bounds.lower.values.shape, bounds.upper.values.shape
        (torch.Size([8]), torch.Size([8]))
    """
    require_count("bidirectional", num_examples, "num_examples")
    require_settings("bidirectional", num_temperatures, num_chains, start)
    settings = HMC() if transition is None else transition
    powers = sigmoid_powers(num_temperatures)
    context = to_model(model, context)
    gradients = num_gradients(settings, num_temperatures, PILOT_CHAINS + 2 * num_chains)
    log_weights: tuple[list[Tensor], list[Tensor]] = ([], [])
    rates: tuple[list[Tensor], list[Tensor]] = ([], [])
    with (
        torch.no_grad(),
        evaluating(model),
        forked_rng(next(model.parameters()).device, derive_seed(seed, Stream.ANNEALING, 0, 1)),
    ):
        x, z = _simulate(model, num_examples, context)
        with Progress("bidirectional", gradients * len(x), shown=progress) as report:
            examples = chunk_sizes(model, x, num_chains)[0]
            latents = z.split(examples, 1)
            parts = iterate_chunks(x, context, None, examples)
            for part, exact in zip(parts, latents, strict=True):
                path = AnnealingPath.of(model, part, start)
                moves = adapted_moves(path, settings, powers, report)
                starts = (path.draw(num_chains), exact.expand(num_chains, -1, -1))
                for way, (first, order) in enumerate(
                    zip(starts, (powers, powers[::-1]), strict=True)
                ):
                    log_weight = anneal(path, first, order, moves)
                    log_weights[way].append(log_weight if way == 0 else -log_weight)
                    rates[way].append(moves.acceptance_rate())
    lower, upper = (
        AnnealedEvidence(torch.cat(weights, 1), torch.cat(rate), num_temperatures, is_upper)
        for weights, rate, is_upper in zip(log_weights, rates, (False, True), strict=True)
    )
    return BidirectionalEvidence(x, lower, upper)


def _simulate(
    model: DecoderModel, num_examples: int, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return data ``(N, *E)`` and latents ``(1, N, D)`` of the model's joint distribution."""
    # Any data have the shape, which is all that a draw from the prior needs.
    like = model.sample(num_examples) if context is None else model.sample(1, context)[0]
    like = model.observed(like, None)
    path = AnnealingPath.of(model, (like, context, None), "prior")
    z = path.draw(1)
    x = model.likelihood.values_of(path.output(z).likelihood, center=False)[0]
    return model.observed(x, None), z
