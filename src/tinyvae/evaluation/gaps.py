r"""Amortization gap and approximation gap of a posterior.

.. math:: \log p(x) - \mathrm{ELBO}(q) =
    \underbrace{\log p(x) - \mathrm{ELBO}(q^*)}_{\text{approximation gap}}
    + \underbrace{\mathrm{ELBO}(q^*) - \mathrm{ELBO}(q)}_{\text{amortization gap}}, \qquad
    q^* = \operatorname*{argmax}_{q' \in \mathcal{Q}} \mathrm{ELBO}(q')
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tinyvae.core.generators import exclusive_generators
from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.module_state import evaluating
from tinyvae.core.objective import checked_data
from tinyvae.core.random import Stream, derive_seed, forked_rng
from tinyvae.distributions import Distribution, Independent, Normal
from tinyvae.evaluation.estimate import Estimate
from tinyvae.evaluation.importance import Chunk, chunk_sizes, iterate_chunks, to_model
from tinyvae.evaluation.progress import Progress
from tinyvae.models.inputs import require_count
from tinyvae.models.output import LatentVariableModel, VAEOutput
from tinyvae.models.particles import replaying

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
        """Mean of both gaps together: KL(q(z given x) || p(z given x))."""
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
    x: Tensor,
    context: Tensor | None = None,
    *,
    mask: Tensor | None = None,
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
        x: Data, ``(N, *E)``. Some hundred examples suffice for the means.
        context: Input of a conditional model, ``(N, ...)``.
        mask: True for the observed entries, ``(N, *E)``. NaN is missing.
        evidence: Log p(x) of the examples, ``(N,)``, such as the ``values`` of
            :func:`~tinyvae.evaluation.annealed_log_marginal`. By default it is estimated by
            importance sampling from the best Gaussian, which is too low in expectation, as the
            approximation gap is then.
        num_steps: Steps of Adam.
        num_samples: Samples per example of each ELBO, and of log p(x).
        seed: Seed of the samples. The global random state does not change.
        progress: True to report draws and time left, if it takes longer than some seconds.

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
    x, context, mask = to_model(model, x), to_model(model, context), to_model(model, mask)
    model.check(x, context, mask=mask)
    if evidence is not None and evidence.shape != x.shape[:1]:
        raise ValueError(
            f"inference_gaps expects evidence of shape ({len(x)},), one number per example, got "
            f"{tuple(evidence.shape)}"
        )
    draws = num_steps * OPTIMIZATION_SAMPLES + 2 * num_samples
    elbos: list[Tensor] = []
    best: list[Tensor] = []
    log_marginals = []
    with (
        torch.no_grad(),
        evaluating(model),
        forked_rng(x.device, derive_seed(seed, Stream.GAPS)),
        Progress("inference gaps", draws * len(x), shown=progress) as report,
    ):
        examples, samples = chunk_sizes(model, x, num_samples)
        for part in iterate_chunks(x, context, mask, examples):
            first = _encoded(model, part)
            optimum = _optimized(model, part, first, num_steps, report)
            noise_seed = int(torch.randint(2**62, ()))
            for posterior, results in ((first, elbos), (optimum, best)):
                with forked_rng(x.device, noise_seed):
                    elbo, log_marginal = _bounds(model, part, posterior, num_samples, samples)
                results.append(elbo)
                report.add(num_samples * len(part[0]))
            log_marginals.append(log_marginal)
    if evidence is None:
        evidence = torch.cat(log_marginals)
    return InferenceGaps(torch.cat(elbos), torch.cat(best), evidence.to(x.device))


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
    model: LatentVariableModel, data: Chunk, posterior: Normal, num_samples: int, samples: int
) -> tuple[Tensor, Tensor]:
    """Return the ELBO and log p(x) by importance sampling of each example, ``(B,)``."""
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
