r"""Information of the latents about the data, and distance of the latents to the prior.

The mean KL of the posteriors is the information that the latents have about the data, plus the
distance of their mixture, the aggregate posterior, to the prior:

.. math:: \frac1N \sum_n \operatorname{KL}(q(z \mid x_n) \| p(z))
    = I_q(x; z) + \operatorname{KL}(q(z) \| p(z)), \qquad q(z) = \frac1N \sum_n q(z \mid x_n)
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tinyvae.core.objective import perplexity
from tinyvae.core.random import Stream, derive_seed
from tinyvae.evaluation.activity import Activity, RunningActivity, has_known_mean
from tinyvae.evaluation.data import EvaluationData
from tinyvae.evaluation.estimate import Estimate
from tinyvae.evaluation.importance import CHUNK_ELEMENTS, drawing, iterate_blocks
from tinyvae.models.output import LatentTerm

MIXTURE_DRAWS = 1000  # draws at which the aggregate posterior is computed, at most
FEW_ACTIVE = 0.1  # share of active dimensions below which a latent has collapsed


@dataclass(frozen=True, eq=False)
class LatentSummary:
    r"""One latent of a model on a data set.

    Attributes:
        activity: Active dimensions.
        kl_per_dim: Mean KL to the prior of each dimension, nats, ``(*L)``, float64. None if the
            dimensions are not independent.
        mutual_information: Information :math:`I_q(x; z)` about which of the ``N`` data was
            encoded, nats. It is at most log N, so for few data it says less than the mean KL. None
            if the posterior depends on other latents or has no density.
        aggregate_kl: :math:`\operatorname{KL}(q(z) \| p(z))`, nats. None without mutual
            information, or if the prior depends on a context or on other latents.
        num_examples: Number of data ``N``.
        perplexity: Number of codes that the data use, by the name of the metric.
    """

    activity: Activity
    kl_per_dim: Tensor | None
    mutual_information: Estimate | None
    aggregate_kl: Estimate | None
    num_examples: int
    perplexity: Mapping[str, float] = field(default_factory=dict)

    @property
    def has_collapsed(self) -> bool:
        """True if fewer than 10 % of the dimensions are active."""
        return self.activity.count < FEW_ACTIVE * self.activity.variance.numel()

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers, with their units in the keys."""
        information, distance = self.mutual_information, self.aggregate_kl
        return {
            "num_active": self.activity.count,
            "variance_of_means": self.activity.variance.tolist(),
            "threshold": self.activity.threshold,
            "kl_per_dim_nats": None if self.kl_per_dim is None else self.kl_per_dim.tolist(),
            "mutual_information": None if information is None else information.to_dict(),
            "aggregate_kl": None if distance is None else distance.to_dict(),
            "num_examples": self.num_examples,
            "perplexity": dict(self.perplexity),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "LatentSummary":
        """Return the summary of :meth:`to_dict`."""
        information, distance = saved["mutual_information"], saved["aggregate_kl"]
        kl = saved["kl_per_dim_nats"]
        variance = torch.tensor(saved["variance_of_means"], dtype=torch.float64)
        return cls(
            Activity(variance, saved["threshold"]),
            None if kl is None else torch.tensor(kl, dtype=torch.float64),
            None if information is None else Estimate.from_dict(information),
            None if distance is None else Estimate.from_dict(distance),
            saved["num_examples"],
            saved["perplexity"],
        )

    def __str__(self) -> str:
        parts = [str(self.activity)]
        if self.mutual_information is not None:
            value = self.mutual_information
            bound = f"at most {math.log(self.num_examples):.2f} for {self.num_examples:,} data"
            parts.append(
                f"mutual information {value.mean:.2f} +- {value.standard_error:.2f} nats ({bound})"
            )
        if self.aggregate_kl is not None:
            value = self.aggregate_kl
            parts.append(f"KL(q(z) || p(z)) {value.mean:.2f} +- {value.standard_error:.2f} nats")
        parts += [f"{name} {value:.1f}" for name, value in self.perplexity.items()]
        return ", ".join(parts)


def advise_collapse(name: str, latent: LatentSummary) -> str:
    """Return what a collapse means and what to try."""
    return (
        f"posterior collapse: {latent.activity} in {name}, so the decoder ignores most of it. "
        "Raise beta from 0 (schedules.Linear), use free bits, or a weaker decoder. If "
        "reconstructions are good, fewer latents are enough"
    )


def summarize_latents(
    data: EvaluationData, num_samples: int, threshold: float, seed: int
) -> dict[str, LatentSummary]:
    """Return a summary of each latent, by name. Nothing is decoded.

    Args:
        data: Data that have been read once.
        num_samples: Samples per example where the posterior's mean has no closed form.
        threshold: A dimension is active if the variance of its mean is above it.
        seed: Seed of the samples.

    References:
        Hoffman, Johnson (2016). ELBO surgery: yet another way to carve up the variational evidence
        lower bound. NIPS workshop on advances in approximate Bayesian inference.
    """
    size = data.num_examples or 0
    step = -(-size // MIXTURE_DRAWS)
    states: dict[str, _LatentState] = {}
    for start, terms in _passes(data, num_samples, seed):
        for term in terms:
            states.setdefault(term.name, _LatentState()).add(term, start, step)
    if any(state.points for state in states.values()):
        for _, terms in _passes(data, 1, seed):
            for term in terms:
                states[term.name].mix(term)
    return {name: state.summary(size, threshold) for name, state in states.items()}


def _passes(
    data: EvaluationData, num_samples: int, seed: int
) -> Iterator[tuple[int, tuple[LatentTerm, ...]]]:
    """Yield the latent terms of each block of examples, and the position of the first one."""
    is_known = all(has_known_mean(term) for term in data.output.latents)
    draws = 1 if is_known else num_samples
    for start, part in data.parts():
        for first, (x, context, mask) in iterate_blocks(data.model, part, draws):
            stream = derive_seed(seed, Stream.ACTIVITY, start + first)
            with drawing(data.model, data.device, stream):
                yield (
                    start + first,
                    data.model.latent_terms(x, context, mask=mask, num_samples=draws),
                )


class _LatentState:
    """Running sums of one latent over the data."""

    def __init__(self) -> None:
        self.activity = RunningActivity()
        self.kl: Tensor | None = None
        self.has_kl = True
        self.shares: dict[str, Tensor] = {}
        self.points: list[Tensor] = []  # draws of some examples, (b, *L)
        self.log_ratio: list[Tensor] = []  # their log q(z given x) - log p(z)
        self.log_q: list[Tensor] = []
        self.log_mixture: Tensor | None = None
        self.has_one_prior = True

    def add(self, term: LatentTerm, start: int, step: int) -> None:
        """Add a block of examples."""
        self.activity.add(term)
        self._add_kl(term)
        examples = term.z.shape[1]
        for name, shares in term.posterior.shares.items():
            total = examples * shares.cpu().double()
            self.shares[name] = self.shares.get(name, torch.zeros_like(total)) + total
        if len(term.posterior.batch_shape) == 1 and term.posterior.is_density:
            chosen = slice(-start % step, None, step)
            form, points = _form_and_points(term)
            self.points.append(points[chosen])
            self.log_q.append(form.log_prob(points)[chosen])
            self.log_ratio.append((term.log_q - term.log_p)[0, chosen])
            self.has_one_prior = self.has_one_prior and len(term.prior.batch_shape) == 0

    def _add_kl(self, term: LatentTerm) -> None:
        try:
            kl = term.kl_of_draws(per_dim=True) if self.has_kl else None
        except (TypeError, NotImplementedError):
            kl = None
        if kl is None:
            self.has_kl = False
            return
        kl = kl.mean(0) if kl.dim() > term.z.dim() - 1 else kl  # (B, *L)
        total = kl.cpu().double().sum(0)
        self.kl = total if self.kl is None else self.kl + total

    def mix(self, term: LatentTerm) -> None:
        """Add the posteriors of a block to the mixture at the points that were drawn."""
        if not self.points:
            return
        points = torch.cat(self.points)  # (P, *L)
        form, _ = _form_and_points(term)
        examples = term.z.shape[1]
        rows = max(1, 4 * CHUNK_ELEMENTS // (examples * points[0].numel()))
        sums = [
            form.log_prob(part.unsqueeze(1).expand(-1, examples, *part.shape[1:])).logsumexp(1)
            for part in points.split(rows)
        ]
        total = torch.cat(sums).cpu().double()  # (P,)
        known = self.log_mixture
        self.log_mixture = total if known is None else torch.logaddexp(known, total)

    def summary(self, size: int, threshold: float) -> LatentSummary:
        """Return the summary over all blocks."""
        information, distance = None, None
        if self.log_mixture is not None:
            log_q = torch.cat(self.log_q).cpu().double()
            gain = log_q - (self.log_mixture - math.log(size))  # (P,)
            information = Estimate.of(gain, num_samples=1)
            if self.has_one_prior:
                ratio = torch.cat(self.log_ratio).cpu().double()
                distance = Estimate.of(ratio - gain, num_samples=1)
        return LatentSummary(
            Activity(self.activity.variance(), threshold),
            self.kl / size if self.kl is not None and self.has_kl else None,
            information,
            distance,
            size,
            {name: perplexity(total / size).item() for name, total in self.shares.items()},
        )


def _form_and_points(term: LatentTerm) -> tuple[Any, Tensor]:
    """Return the log form of a posterior ``(B,)``, and its first draw of each example."""
    points = term.z if term.point is None else term.point
    return term.posterior.log_form(), points[0]
