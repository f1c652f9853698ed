r"""Amortization gap and approximation gap of a posterior.

.. math:: \log p(x) - \mathrm{ELBO}(q) =
    \underbrace{\log p(x) - \mathrm{ELBO}(q^*)}_{\text{approximation gap}}
    + \underbrace{\mathrm{ELBO}(q^*) - \mathrm{ELBO}(q)}_{\text{amortization gap}}, \qquad
    q^* = \operatorname*{argmax}_{q' \in \mathcal{Q}} \mathrm{ELBO}(q')
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tinyvae.core.generators import exclusive_generators
from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.objective import checked_data
from tinyvae.core.random import Stream, derive_seed, forked_rng
from tinyvae.distributions import Distribution, Independent, Normal
from tinyvae.evaluation.data import EvaluationData
from tinyvae.evaluation.estimate import Estimate
from tinyvae.evaluation.importance import Chunk, chunk_sizes, drawing, iterate_blocks
from tinyvae.evaluation.progress import Progress
from tinyvae.models.inputs import require_count
from tinyvae.models.output import LatentVariableModel, VAEOutput
from tinyvae.models.particles import replaying
from tinyvae.training.data.sources import PickBatch, Transform

OPTIMIZATION_SAMPLES = 8  # per example and step
LEARNING_RATE = 0.1  # of Adam at the first step, in standard deviations of the encoder's posterior


@dataclass(frozen=True)
class InferenceGaps:
    """Bounds on log p(x) of each example, and the gaps between them.

    Attributes:
        elbo: ELBO of the encoder's posterior, ``(N,)``, nats.
        best_elbo: ELBO of the best Gaussian of each example, ``(N,)``, nats.
        log_marginal: Log p(x), ``(N,)``, nats.
    """

    elbo: Tensor
    best_elbo: Tensor
    log_marginal: Tensor

    @property
    def amortization(self) -> Estimate:
        """Mean gap because one encoder serves all examples. A larger encoder reduces it."""
        return Estimate.of(self.best_elbo - self.elbo)

    @property
    def approximation(self) -> Estimate:
        """Mean gap because posteriors are no such Gaussians. A richer posterior reduces it."""
        return Estimate.of(self.log_marginal - self.best_elbo)

    @property
    def inference(self) -> Estimate:
        """Mean of both gaps together, KL(q(z given x) || p(z given x))."""
        return Estimate.of(self.log_marginal - self.elbo)

    def __str__(self) -> str:
        rows = {
            "log p(x)": Estimate.of(self.log_marginal),
            "  approximation gap": self.approximation,
            "ELBO of the best q": Estimate.of(self.best_elbo),
            "  amortization gap": self.amortization,
            "ELBO of the encoder": Estimate.of(self.elbo),
        }
        return "\n".join(f"{name:<20} {estimate} nats" for name, estimate in rows.items())


@suggest_keywords
@exclusive_generators("inference_gaps")
def inference_gaps(
    model: LatentVariableModel,
    data: Any,
    context: Any = None,
    *,
    mask: Any = None,
    batch: PickBatch | None = None,
    transform: Transform | None = None,
    evidence: Tensor | None = None,
    num_steps: int = 500,
    num_samples: int = 2000,
    seed: int = 0,
    progress: bool = True,
) -> InferenceGaps:
    """Split the gap between log p(x) and the ELBO into the encoder's and the posterior's share.

    For each example, Adam improves mean and standard deviations of a Gaussian, from those that the
    encoder returns. Its rate falls to zero. Both ELBOs use the same noise.

    Args:
        model: A model with one latent, whose encoder is a :class:`~tinyvae.GaussianEncoder`. It is
            used in evaluation mode.
        data: Data, see :func:`~tinyvae.evaluate`. Some hundred examples suffice for the means.
        context: Input of a conditional model, ``(N, ...)``, if data are x alone.
        mask: True for the observed entries, ``(N, *E)``, if data are x alone. NaN is missing.
        batch: Function that returns x, or a :class:`~tinyvae.Batch`, of a batch of the data.
        transform: Function (x, generator) -> x. ``seed`` sets its noise.
        evidence: Log p(x) of the examples, ``(N,)``, such as the ``values`` of
            :func:`~tinyvae.evaluation.annealed_log_marginal`. By default it is estimated by
            importance sampling from the best Gaussian, which is too low in expectation, as the
            approximation gap is then.
        num_steps: Steps of Adam.
        num_samples: Samples per example of each ELBO, and of log p(x).
        seed: Seed of the samples. The global random state does not change.
        progress: True to report draws and time left, if it takes longer than a second.

    Raises:
        TypeError: If the posterior is no Gaussian with independent dimensions.

    References:
        Cremer, Li, Duvenaud (2018). Inference Suboptimality in Variational Autoencoders.
        arXiv:1801.03558.

    Example:
        >>> gaps = inference_gaps(vae, x, num_steps=20, num_samples=50)
        >>> gaps.best_elbo.shape, gaps.amortization.num_examples
        (torch.Size([8]), 8)
    """
    require_count("inference_gaps", num_steps, "num_steps")
    require_count("inference_gaps", num_samples)
    draws = num_steps * OPTIMIZATION_SAMPLES + 2 * num_samples
    rows = []
    with EvaluationData(
        model, data, context, mask, batch=batch, transform=transform, seed=seed
    ) as opened:
        total = None if opened.num_examples is None else draws * opened.num_examples
        with Progress("inference gaps", total, shown=progress) as report:
            for first, part in opened.parts():
                for index, block in iterate_blocks(model, part, num_samples):
                    with drawing(
                        model, opened.device, derive_seed(seed, Stream.GAPS, first + index)
                    ):
                        rows.append(_bounds_of_block(model, block, num_steps, num_samples, report))
    elbo, best_elbo, log_marginal = (torch.cat(column) for column in zip(*rows, strict=True))
    if evidence is None:
        return InferenceGaps(elbo, best_elbo, log_marginal)
    if evidence.shape != elbo.shape:
        raise ValueError(
            f"inference_gaps expects evidence of shape ({len(elbo)},), one number per example, got "
            f"{tuple(evidence.shape)}"
        )
    return InferenceGaps(elbo, best_elbo, evidence.to(elbo.device))


def _bounds_of_block(
    model: LatentVariableModel, data: Chunk, num_steps: int, num_samples: int, report: Progress
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ELBO, best ELBO and log p(x) of each example, ``(B,)``."""
    encoded = _encoded(model, data)
    optimum = _optimized(model, data, encoded, num_steps, report)
    noise_seed = int(torch.randint(2**62, ()))  # the same noise for both
    bounds = []
    for posterior in (encoded, optimum):
        with forked_rng(data[0].device, noise_seed):
            bounds.append(_bounds(model, data, posterior, num_samples))
        report.add(num_samples * len(data[0]))
    (elbo, _), (best_elbo, log_marginal) = bounds
    return elbo, best_elbo, log_marginal


def _encoded(model: LatentVariableModel, data: Chunk) -> Normal:
    """Return the encoder's posterior of a chunk, with batch and event shape ``(B, *L)``."""
    x, context, mask = data
    with checked_data():
        terms = model.latent_terms(x, context, mask=mask)
    posterior = terms[0].posterior
    base = posterior.base if isinstance(posterior, Independent) else posterior
    if len(terms) > 1 or not isinstance(base, Normal):
        listed = ", ".join(str(term.posterior) for term in terms)
        raise TypeError(
            "inference_gaps expects one latent with a Gaussian posterior of independent "
            f"dimensions, got {listed}: compare log_marginal with the ELBO, which gives both gaps "
            "together"
        )
    return base


def _optimized(
    model: LatentVariableModel, data: Chunk, first: Normal, num_steps: int, report: Progress
) -> Normal:
    """Return the Gaussian of each example with the largest ELBO, by Adam."""
    scale = first.log_std.exp()
    # In units of the first standard deviations, which makes one rate fit all dimensions.
    offset = torch.zeros_like(first.mean, requires_grad=True)
    log_factor = torch.zeros_like(first.mean, requires_grad=True)
    optimizer = torch.optim.Adam([offset, log_factor])
    for step in range(num_steps):
        share = 0.5 + 0.5 * math.cos(math.pi * step / num_steps)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * share
        with torch.enable_grad():
            posterior = Normal(first.mean + scale * offset, first.log_std + log_factor)
            z = posterior.sample((OPTIMIZATION_SAMPLES,))
            # Sticking the landing: no gradient through the parameters of log q, so that there is
            # no noise at an exact posterior.
            fixed = Normal(posterior.mean.detach(), posterior.log_std.detach())
            loss = -_output(model, data, fixed, z).log_weight().mean(0).sum()
            offset.grad, log_factor.grad = torch.autograd.grad(loss, [offset, log_factor])
        optimizer.step()
        report.add(OPTIMIZATION_SAMPLES * len(z[0]))
    return Normal((first.mean + scale * offset).detach(), (first.log_std + log_factor).detach())


def _bounds(
    model: LatentVariableModel, data: Chunk, posterior: Normal, num_samples: int
) -> tuple[Tensor, Tensor]:
    """Return the ELBO and log p(x) by importance sampling of each example, ``(B,)``."""
    _, samples = chunk_sizes(model, data[0], num_samples)
    totals, log_totals = [], []
    for start in range(0, num_samples, samples):
        z = posterior.sample((min(samples, num_samples - start),))
        # Not with the closed form of the KL: near the exact posterior, log weights vary less.
        log_weight = _output(model, data, posterior, z).log_weight()  # (K, B)
        totals.append(log_weight.sum(0))
        log_totals.append(log_weight.logsumexp(0))
    elbo = torch.stack(totals).sum(0) / num_samples
    return elbo, torch.stack(log_totals).logsumexp(0) - math.log(num_samples)


def _output(model: LatentVariableModel, data: Chunk, posterior: Normal, z: Tensor) -> VAEOutput:
    """Return the output at latents ``(K, B, *L)`` of another posterior than the encoder's."""
    x, context, mask = data
    with checked_data():
        output = model.output_with(x, context, replaying([z]), mask=mask)
    joint: Distribution = Independent(posterior, z.dim() - 2)
    term = replace(output.latents[0], posterior=joint, drawn_log_q=None)
    return replace(output, latents=(term,))
