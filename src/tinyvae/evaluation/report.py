"""One honest report: bounds and evidence with their standard errors."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyvae.evaluation.importance import CHUNK_ELEMENTS, chunks, log_marginal, placed
from tinyvae.record import LatentVariableModel
from tinyvae.scopes import evaluating, forked_rng

__all__ = ["Estimate", "Report", "evaluate"]


@dataclass(frozen=True)
class Estimate:
    """Mean over examples, with its standard error over examples.

    Attributes:
        mean: Nats per datum.
        standard_error: Nats per datum.
        num_examples: Number of examples.
    """

    mean: float
    standard_error: float
    num_examples: int

    @classmethod
    def of(cls, values: Tensor) -> "Estimate":
        """Mean of ``values`` ``(N,)``."""
        values = values.double()
        error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(values.mean().item(), error, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.2f} +- {self.standard_error:.2f} ({self.num_examples:,} examples)"


@dataclass(frozen=True)
class Report:
    """What a model is worth on given data.

    Attributes:
        elbo: Evidence lower bound.
        log_likelihood: Its first term, E log p(x given z).
        kl: Its second term, KL(q(z given x) || p(z)).
        log_marginal: log p(x) by importance sampling, None if it was not asked for.
        elbo_samples: Draws per example for the ELBO.
        importance_samples: Draws per example for log p(x).
        num_dims: Dimensions of a datum.
        is_bound: Whether posterior and likelihood are densities, so that ELBO and log p(x) are
            (in expectation) lower bounds on the log evidence.
        seed: Seed of the draws.
    """

    elbo: Estimate
    log_likelihood: Estimate
    kl: Estimate
    log_marginal: Estimate | None
    elbo_samples: int
    importance_samples: int | None
    num_dims: int
    is_bound: bool
    seed: int

    def bits_per_dim(self, nats: float) -> float:
        """Negative log-likelihood in bits per dimension, of a density's nats per datum."""
        return -nats / (self.num_dims * math.log(2))

    def to_dict(self) -> dict[str, Any]:
        """Every figure, with its unit in its name."""
        result: dict[str, Any] = {}
        for name in ("elbo", "log_likelihood", "kl", "log_marginal"):
            estimate: Estimate | None = getattr(self, name)
            result[name] = estimate and {
                "nats": estimate.mean,
                "standard_error_nats": estimate.standard_error,
                "num_examples": estimate.num_examples,
            }
        for name in ("elbo", "log_marginal"):
            if result[name] is not None:
                result[name]["bits_per_dim"] = self.bits_per_dim(result[name]["nats"])
        return result | {
            "elbo_samples": self.elbo_samples,
            "importance_samples": self.importance_samples,
            "num_dims": self.num_dims,
            "is_bound": self.is_bound,
            "seed": self.seed,
        }

    def __str__(self) -> str:
        rows = {
            f"ELBO ({self.elbo_samples} draws)": self.elbo,
            "  log-likelihood": self.log_likelihood,
            "  KL": self.kl,
        }
        if self.log_marginal is not None:
            rows[f"log p(x) (IS, {self.importance_samples:,} draws)"] = self.log_marginal
        lines = [f"{name:<32} {estimate} nats" for name, estimate in rows.items()]
        bits = self.bits_per_dim((self.log_marginal or self.elbo).mean)
        lines.append(f"{'':<32} {bits:.4f} bits per dimension")
        return "\n".join(lines if self.is_bound else ["not a bound", *lines])


def evaluate(
    model: LatentVariableModel,
    x: Tensor,
    context: Tensor | None = None,
    *,
    elbo_samples: int = 64,
    importance_samples: int | None = 5000,
    importance_examples: int | None = None,
    seed: int = 0,
) -> Report:
    """Estimate the ELBO with its two terms, and log p(x).

    Args:
        model: The model; evaluated in evaluation mode, without gradients.
        x: Data, ``(N, *E)``, moved to the model's device and dtype.
        context: What the model is conditioned on, ``(N, ...)``.
        elbo_samples: Draws per example for the ELBO; the KL is in closed form where there is one.
        importance_samples: Draws per example for log p(x); None leaves it out.
        importance_examples: Use only so many first examples for log p(x); None uses all.
        seed: Seed of the draws; global random state is left as found.

    Example:
        >>> report = evaluate(vae, x, elbo_samples=8, importance_samples=50)
        >>> report.elbo.num_examples, report.is_bound
        (8, True)
    """
    if elbo_samples < 1:
        raise ValueError(f"evaluate expects elbo_samples >= 1, got {elbo_samples}")
    if importance_examples is not None and importance_examples < 1:
        raise ValueError(f"evaluate expects importance_examples >= 1, got {importance_examples}")
    x, context = placed(model, x), placed(model, context)
    record = model.check(x, context)
    log_likelihood, kl = _elbo_terms(model, x, context, elbo_samples, seed)
    evidence = None
    if importance_samples is not None:
        head = slice(importance_examples)
        head_context = None if context is None else context[head]
        evidence = Estimate.of(
            log_marginal(model, x[head], head_context, num_samples=importance_samples, seed=seed)
        )
    return Report(
        elbo=Estimate.of(log_likelihood - kl),
        log_likelihood=Estimate.of(log_likelihood),
        kl=Estimate.of(kl),
        log_marginal=evidence,
        elbo_samples=elbo_samples,
        importance_samples=importance_samples,
        num_dims=x[0].numel(),
        is_bound=model.is_density and record.is_density,
        seed=seed,
    )


def _elbo_terms(
    model: LatentVariableModel, x: Tensor, context: Tensor | None, draws: int, seed: int
) -> tuple[Tensor, Tensor]:
    """E log p(x given z) and KL of each example, ``(N,)`` each."""
    examples = max(1, CHUNK_ELEMENTS // (draws * x[0].numel()))
    log_likelihoods, kls = [], []
    with torch.no_grad(), evaluating(model), forked_rng(x.device, seed):
        for part, part_context in chunks(x, context, examples):
            output = model(part, part_context, num_samples=draws)
            log_likelihoods.append(output.log_px.mean(0))
            kls.append(torch.stack([term.kl() for term in output.latents]).sum(0))
    return torch.cat(log_likelihoods), torch.cat(kls)
