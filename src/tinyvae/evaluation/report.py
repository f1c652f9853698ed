"""Report of bounds and evidence with their standard errors."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyvae.core.generators import exclusive_generators
from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.module_state import evaluating
from tinyvae.core.random import Stream, derive_seed, forked_rng
from tinyvae.distributions import Distribution
from tinyvae.evaluation.importance import (
    Chunk,
    chunk_sizes,
    importance_sample,
    iterate_chunks,
    iterate_draws,
    to_model,
)
from tinyvae.evaluation.progress import Progress
from tinyvae.models.inputs import require_count
from tinyvae.models.output import LatentVariableModel


@dataclass(frozen=True)
class Estimate:
    """Mean over examples with its standard error.

    Attributes:
        mean: Nats per datum.
        standard_error: Nats per datum.
        num_examples: Number of examples.
        num_dims: Dimensions of one of these examples. With missing entries, the mean number of
            observed ones. NaN if it is unknown.
    """

    mean: float
    standard_error: float
    num_examples: int
    num_dims: float = math.nan

    @classmethod
    def of(cls, values: Tensor, num_dims: float = math.nan) -> "Estimate":
        """Return the estimate from ``values`` ``(N,)``."""
        values = values.cpu().double()  # in this order: not all devices have float64
        error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(values.mean().item(), error, len(values), num_dims)

    def __str__(self) -> str:
        return f"{self.mean:.2f} +- {self.standard_error:.2f} ({self.num_examples:,} examples)"


@dataclass(frozen=True)
class Report:
    """Evaluation of a model on a data set.

    Attributes:
        elbo: Evidence lower bound.
        log_likelihood: Its first term, E log p(x given z).
        kl: Its second term, KL(q(z given x) || p(z)).
        log_marginal: log p(x) by importance sampling; None if it was not estimated.
        elbo_samples: Samples per example for the ELBO.
        importance_samples: Samples per example for log p(x).
        is_bound: True if the expectations of ELBO and log p(x) are lower bounds on the log
            evidence: posterior and likelihood are densities on all of the data, and no example
            depends on the others.
        seed: Seed of the samples.
        is_discrete: True if the likelihood is a probability mass. None if some dimensions have
            masses and others densities. Unless it is True, nats depend on the units of the data.
        bin_width: Width of the bins of dequantized data; None for other data.
    """

    elbo: Estimate
    log_likelihood: Estimate
    kl: Estimate
    log_marginal: Estimate | None
    elbo_samples: int
    importance_samples: int | None
    is_bound: bool
    seed: int
    is_discrete: bool | None = False
    bin_width: float | None = None

    @property
    def num_dims(self) -> float:
        """Dimensions of a datum. With missing entries, the mean number of observed ones."""
        return self.elbo.num_dims

    def bits_per_dim(self, estimate: Estimate) -> float:
        """Return minus an estimate in bits per dimension of its own examples.

        For a mass, and with a ``bin_width``, these are bits of the levels: with uniform noise in
        the bins, E log p(x + u) + log(width) is at most the log mass of the level (Theis, van den
        Oord, Bethge 2016, arXiv:1511.01844, section 3.1). For any other density they depend on the
        units of the data.

        Args:
            estimate: Estimate of this report, ``report.elbo`` or ``report.log_marginal``.
        """
        if not isinstance(estimate, Estimate):
            raise TypeError(
                "bits_per_dim expects an Estimate, which knows the dimensions of its examples, got "
                f"a {type(estimate).__name__}: use report.bits_per_dim(report.log_marginal)"
            )
        num_dims = estimate.num_dims
        if num_dims == 0:
            return math.nan
        volume = num_dims * math.log(self.bin_width or 1.0)
        return -(estimate.mean + volume) / (num_dims * math.log(2))

    @property
    def bits_unit(self) -> str:
        """Description of the quantity that the bits per dimension measure."""
        if self.is_discrete is None:
            return "masses and densities, in the units of the data"
        if self.is_discrete:
            return "exact masses"
        if self.bin_width is None:
            return "a density, in the units of the data"
        return f"levels, dequantized uniformly in bins of {self.bin_width:g}"

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers, with their units in the keys."""
        result: dict[str, Any] = {}
        for name in ("elbo", "log_likelihood", "kl", "log_marginal"):
            estimate: Estimate | None = getattr(self, name)
            result[name] = estimate and {
                "nats": estimate.mean,
                "standard_error_nats": estimate.standard_error,
                "num_examples": estimate.num_examples,
                "num_dims": estimate.num_dims,
            }
            if estimate is not None and name in ("elbo", "log_marginal"):
                result[name]["bits_per_dim"] = self.bits_per_dim(estimate)
        return result | {
            "elbo_samples": self.elbo_samples,
            "importance_samples": self.importance_samples,
            "num_dims": self.num_dims,
            "bits_per_dim_unit": self.bits_unit,
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
        bits = self.bits_per_dim(self.log_marginal or self.elbo)
        lines.append(f"{'':<32} {bits:.4f} bits per dimension of {self.bits_unit}")
        return "\n".join(lines if self.is_bound else ["not a bound", *lines])


@suggest_keywords
@exclusive_generators("evaluate")
def evaluate(
    model: LatentVariableModel,
    x: Tensor,
    context: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    elbo_samples: int = 64,
    importance_samples: int | None = 5000,
    importance_examples: int | None = None,
    bin_width: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Estimate the ELBO with its two terms, and log p(x).

    The cost is that of decoding ``elbo_samples`` draws of each example, and ``importance_samples``
    draws of each of ``importance_examples`` examples. By default that is 5,064 decoded draws per
    example: a second per image for a small convolutional network on a CPU. Less is enough to
    compare models: ``importance_samples=500``, or ``importance_examples=1000``.

    Args:
        model: The model. It is used in evaluation mode, without gradients.
        x: Data, ``(N, *E)``, moved to the model's device and dtype.
        context: Input of a conditional model, ``(N, ...)``.
        mask: True for the observed entries, ``(N, *E)``. NaN is missing.
        elbo_samples: Samples per example for the ELBO. The KL uses its closed form if there is one.
        importance_samples: Samples per example for log p(x). None skips log p(x).
        importance_examples: Number of first examples for log p(x). None uses all.
        bin_width: Width of the bins in which ``x`` was dequantized
            (:class:`~tinyvae.datasets.Dequantization`), for bits per dimension of the levels.
        seed: Seed of the samples. The global random state does not change.
        progress: True to report draws and time left, if it takes longer than some seconds.

    Example:
        >>> report = evaluate(vae, x, elbo_samples=8, importance_samples=50)
        >>> report.elbo.num_examples, report.is_bound
        (8, True)
    """
    for name, count in (
        ("elbo_samples", elbo_samples),
        ("importance_samples", importance_samples),
        ("importance_examples", importance_examples),
    ):
        if count is not None:
            require_count("evaluate", count, name)
    x, context, mask = to_model(model, x), to_model(model, context), to_model(model, mask)
    output = model.check(x, context, mask=mask)
    if bin_width is not None:
        _check_bin_width(bin_width, x, output.likelihood)
    data = (x, context, mask)
    first = next(iterate_chunks(*data, importance_examples or len(x)))
    draws = elbo_samples * len(x) + (importance_samples or 0) * len(first[0])
    with Progress("evaluate", draws, shown=progress) as bar:
        log_likelihood, kl = _elbo_terms(model, data, elbo_samples, seed, bar)
        evidence = None
        if importance_samples is not None:
            values = importance_sample(model, first, importance_samples, seed, bar)
            evidence = Estimate.of(values, _observed_dims(model, first[0], first[2]))
    num_dims = _observed_dims(model, x, mask)
    with evaluating(model):
        has_bound = model.is_density and not model.couples_batch
    return Report(
        elbo=Estimate.of(log_likelihood - kl, num_dims),
        log_likelihood=Estimate.of(log_likelihood, num_dims),
        kl=Estimate.of(kl, num_dims),
        log_marginal=evidence,
        elbo_samples=elbo_samples,
        importance_samples=importance_samples,
        is_bound=has_bound and output.is_density,
        seed=seed,
        is_discrete=output.likelihood.is_discrete,
        bin_width=bin_width,
    )


def _check_bin_width(bin_width: float, x: Tensor, likelihood: Distribution) -> None:
    if likelihood.is_discrete is not False or not bin_width > 0:
        raise ValueError(
            f"evaluate expects bin_width > 0 with a likelihood that is a density, got {bin_width} "
            f"and {likelihood}: leave it out if dimensions have masses"
        )
    if ((x / bin_width).frac().abs() < 1e-4).all():
        raise ValueError(
            f"evaluate with bin_width={bin_width:g} expects data with noise in the bins, got only "
            "edges of bins: use transform(x, generator) of a tinyvae.datasets.Dequantization"
        )


def _observed_dims(model: LatentVariableModel, x: Tensor, mask: Tensor | None) -> float:
    """Return the mean number of observed dimensions."""
    return int(model.num_dims(x, mask).sum()) / len(x)


def _elbo_terms(
    model: LatentVariableModel, data: Chunk, num_samples: int, seed: int, bar: Progress
) -> tuple[Tensor, Tensor]:
    """Return E log p(x given z) and the KL of each example, ``(N,)`` each."""
    examples, samples = chunk_sizes(model, data[0], num_samples)
    log_likelihoods, kls = [], []
    seed = derive_seed(seed, Stream.ELBO)
    with torch.no_grad(), evaluating(model), forked_rng(data[0].device, seed):
        for part in iterate_chunks(*data, examples):
            log_px, kl = [], []
            for output in iterate_draws(model, part, num_samples, samples):
                log_px.append(output.log_px)  # (K, B)
                share = len(output.log_px) / num_samples
                kl.append(share * torch.stack([term.kl() for term in output.latents]).sum(0))
            log_likelihoods.append(torch.cat(log_px).mean(0))
            kls.append(torch.stack(kl).sum(0))
            bar.add(num_samples * len(part[0]))
    return torch.cat(log_likelihoods), torch.cat(kls)
