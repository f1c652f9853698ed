"""Evaluation of a model on data in one call."""

import math
import time
from typing import Any

import torch
from torch import Tensor

from tinyvae.core.generators import exclusive_generators
from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.objective import Batch
from tinyvae.core.random import Stream, derive_seed
from tinyvae.distributions import Distribution
from tinyvae.evaluation.data import EvaluationData
from tinyvae.evaluation.estimate import Estimate
from tinyvae.evaluation.importance import (
    Chunk,
    ImportanceEstimate,
    chunk_sizes,
    drawing,
    importance_sample,
    iterate_blocks,
    iterate_draws,
    weigh,
)
from tinyvae.evaluation.latents import summarize_latents
from tinyvae.evaluation.progress import Progress
from tinyvae.evaluation.report import Report
from tinyvae.evaluation.weights import WeightQuality
from tinyvae.models.inputs import require_count
from tinyvae.models.output import LatentVariableModel, VAEOutput
from tinyvae.training.data.sources import PickBatch, Transform

ACTIVE = 0.01  # variance of a mean above which a dimension is active
PILOT_SAMPLES = 100  # draws of the first round of a budget


@suggest_keywords
@exclusive_generators("evaluate")
def evaluate(
    model: LatentVariableModel,
    data: Any,
    context: Any = None,
    *,
    mask: Any = None,
    batch: PickBatch | None = None,
    transform: Transform | None = None,
    elbo_samples: int = 64,
    importance_samples: int | None = 5000,
    importance_examples: int | None = None,
    iwae_samples: int = 50,
    seconds: float | None = None,
    standard_error: float | None = None,
    bin_width: float | None = None,
    latents: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Estimate the ELBO with its two terms, the bound IWAE, and log p(x).

    The cost is that of decoding ``elbo_samples`` draws of each example, and ``importance_samples``
    draws of each of ``importance_examples`` examples. By default that is 5,064 decoded draws per
    example: a second per image for a small convolutional network on a CPU. Less is enough to
    compare models: ``importance_samples=500``, or ``importance_examples=1000``. Memory does not
    grow with the number of draws, and a stream is never in memory as a whole.

    Draws belong to the position of an example in the data. The report does not depend on the
    batches in which the data come.

    Args:
        model: The model. It is used in evaluation mode, without gradients.
        data: What ``fit`` takes: a tensor or an array ``(N, *E)``, also masked or mapped to a file,
            a tuple or dictionary of these, a Dataset, a DataLoader. A model with a
            :class:`~tinyvae.likelihoods.MixedLikelihood` takes a DataFrame. Data are read several
            times, and moved to the model's device and dtype.
        context: Input of a conditional model, ``(N, ...)``, if data are x alone.
        mask: True for the observed entries, ``(N, *E)``, if data are x alone. NaN is missing.
        batch: Function that returns x, or a :class:`~tinyvae.Batch`, of a batch of the data.
        transform: Function (x, generator) -> x, such as dequantization. ``seed`` sets its noise.
        elbo_samples: Samples per example for the ELBO. The KL uses its closed form if there is one.
        importance_samples: Samples per example for log p(x). None skips log p(x).
        importance_examples: Number of first examples for log p(x). None uses all.
        iwae_samples: Samples k of the bound IWAE_k, which uses the draws of log p(x) in groups of
            k. It is left out if there are fewer.
        seconds: Time for log p(x), about, instead of ``importance_samples``. A first block is
            timed, so the number of samples differs from run to run. The report has the number.
        standard_error: Largest Monte Carlo error of log p(x), nats per datum, instead of
            ``importance_samples``. Rounds with more samples are drawn until the estimated error is
            below. The number of samples then depends on the draws themselves, and the error is
            a little too small, as with any such stopping rule. The report has the number.
        bin_width: Width of the bins in which x was dequantized
            (:class:`~tinyvae.datasets.Dequantization`), for bits per dimension of the levels.
        latents: True to look at the latents: active units, KL per dimension, mutual information.
            It costs little, since nothing is decoded.
        seed: Seed of the samples. The global random state does not change.
        progress: True to report draws and time left, if it takes longer than a second.

    Example:
        >>> report = evaluate(vae, x, elbo_samples=8, importance_samples=50)
        >>> report.elbo.num_examples, report.is_bound
        (8, True)
    """
    for name, count in (
        ("elbo_samples", elbo_samples),
        ("importance_samples", importance_samples),
        ("importance_examples", importance_examples),
        ("iwae_samples", iwae_samples),
    ):
        if count is not None:
            require_count("evaluate", count, name)
    _require_one_budget(seconds=seconds, standard_error=standard_error)

    def examine(part: Batch, output: VAEOutput) -> None:
        if bin_width is not None:
            _check_bin_width(bin_width, part.x, output.likelihood)

    with EvaluationData(
        model, data, context, mask, batch=batch, transform=transform, seed=seed, examine=examine
    ) as opened:
        size = opened.num_examples
        has_budget = seconds is not None or standard_error is not None
        total = None if size is None else elbo_samples * size
        with Progress("evaluate", total, shown=progress) as bar:
            count = None if has_budget else importance_samples
            limited = None if size is None else min(size, importance_examples or size)
            if count is not None:
                bar.extend(None if limited is None else count * limited)
            log_likelihood, kl, error = _elbo_terms(opened, elbo_samples, seed, bar)
            limited = min(len(kl), importance_examples or len(kl))
            if seconds is not None:
                count = _affordable_samples(opened, seconds, limited, seed, bar)
                bar.extend(count * limited)
            evidence, weights, iwae = None, None, None
            if standard_error is not None:
                count, result = _until_precise(opened, standard_error, limited, seed, bar)
            elif count is not None:
                group = iwae_samples if iwae_samples <= count else None
                result = importance_sample(
                    opened, count, seed, bar, limit=limited, group_size=group
                )
        summaries = summarize_latents(opened, max(2, elbo_samples), ACTIVE, seed) if latents else {}
        num_dims = opened.num_dims.double()
        mean_dims = num_dims.mean().item()
        if count is not None:
            dims = num_dims[:limited].mean().item()
            evidence = Estimate.of(result.evidence, dims, errors=result.error, num_samples=count)
            sizes = result.effective_sample_size.cpu().double()
            weights = WeightQuality(sizes, result.pareto_k.cpu().double(), count)
            if result.grouped is not None:
                iwae = Estimate.of(
                    result.grouped, dims, errors=result.grouped_error, num_samples=iwae_samples
                )
        return Report(
            elbo=Estimate.of(
                log_likelihood - kl, mean_dims, errors=error, num_samples=elbo_samples
            ),
            log_likelihood=Estimate.of(log_likelihood, mean_dims, num_samples=elbo_samples),
            kl=Estimate.of(kl, mean_dims, num_samples=elbo_samples),
            iwae=iwae,
            log_marginal=evidence,
            weights=weights,
            latents=summaries,
            is_bound=opened.is_bound,
            seed=seed,
            is_discrete=opened.output.likelihood.is_discrete,
            bin_width=bin_width,
            data_digest=opened.digest,
        )


def _require_one_budget(**budgets: float | None) -> None:
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) > 1:
        raise ValueError("evaluate expects seconds= or standard_error=, got both: choose one")
    for name, value in given.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"evaluate expects {name} > 0, got {value}: leave it out for no limit")


def _check_bin_width(bin_width: float, x: Tensor, likelihood: Distribution) -> None:
    if likelihood.is_discrete is not False or not bin_width > 0:
        raise ValueError(
            f"evaluate expects bin_width > 0 with a likelihood that is a density, got {bin_width} "
            f"and {likelihood}: leave it out if dimensions have masses"
        )
    if ((x / bin_width).frac().abs() < 1e-4).all():
        raise ValueError(
            f"evaluate with bin_width={bin_width:g} expects data with noise in the bins, got only "
            "edges of bins: give transform=, a tinyvae.datasets.Dequantization"
        )


def _elbo_terms(
    data: EvaluationData, num_samples: int, seed: int, bar: Progress
) -> tuple[Tensor, Tensor, Tensor]:
    """Return E log p(x given z), the KL and the error of the ELBO of each example, ``(N,)``."""
    terms = []
    for start, part in data.parts():
        for first, block in iterate_blocks(data.model, part, num_samples):
            stream = derive_seed(seed, Stream.ELBO, start + first)
            with drawing(data.model, data.device, stream):
                terms.append(_elbo_of_block(data.model, block, num_samples, bar))
    log_likelihood, kl, error = (torch.cat(column) for column in zip(*terms, strict=True))
    return log_likelihood, kl, error


def _elbo_of_block(
    model: LatentVariableModel, block: Chunk, num_samples: int, bar: Progress
) -> tuple[Tensor, Tensor, Tensor]:
    _, samples = chunk_sizes(model, block[0], num_samples)
    log_px_sum = kl_sum = square_sum = reference = torch.zeros(len(block[0]), dtype=torch.float64)
    for index, output in enumerate(iterate_draws(model, block, num_samples, samples)):
        log_px = output.log_px.cpu().double()  # (k, B); not all devices have float64
        kl = torch.stack([term.kl_of_draws().expand_as(log_px) for term in output.latents])
        kls = kl.sum(0).cpu().double()
        if index == 0:  # deviations from the first draw, which squares do not cancel
            reference = log_px[0] - kls[0]
        log_px_sum, kl_sum = log_px_sum + log_px.sum(0), kl_sum + kls.sum(0)
        square_sum = square_sum + (log_px - kls - reference).square().sum(0)
        bar.add(log_px.numel())
    log_likelihood, kl_mean = log_px_sum / num_samples, kl_sum / num_samples
    deviation = log_likelihood - kl_mean - reference
    variance = square_sum / num_samples - deviation.square()
    if num_samples == 1:
        return log_likelihood, kl_mean, torch.full_like(variance, math.nan)
    return log_likelihood, kl_mean, (variance.clamp(min=0) / (num_samples - 1)).sqrt()


def _affordable_samples(
    data: EvaluationData, seconds: float, num_examples: int, seed: int, bar: Progress
) -> int:
    """Return the number of samples per example that take about ``seconds``."""
    _, part = next(iter(data.parts(num_examples)))
    _, block = next(iterate_blocks(data.model, part, PILOT_SAMPLES))
    draws, start = 0, time.perf_counter()
    with drawing(data.model, data.device, derive_seed(seed, Stream.IMPORTANCE)):
        while time.perf_counter() - start < 0.05 * seconds or draws == 0:
            if draws == 0:  # a first round, which is slow, does not count
                weigh(data.model, block, 1, seed, bar)
                start = time.perf_counter()
            weigh(data.model, block, PILOT_SAMPLES, seed, bar)
            draws += PILOT_SAMPLES * len(block[0])
    rate = draws / (time.perf_counter() - start)
    return max(1, int(0.95 * seconds * rate / num_examples))


def _until_precise(
    data: EvaluationData, standard_error: float, num_examples: int, seed: int, bar: Progress
) -> tuple[int, ImportanceEstimate]:
    """Return the number of samples per example, and log p(x) with an error that is small enough."""
    count = PILOT_SAMPLES
    while True:
        bar.extend(count * num_examples)
        result = importance_sample(data, count, seed, bar, limit=num_examples)
        error = result.error.double().square().sum().sqrt().item() / num_examples
        if not math.isfinite(error) or error <= standard_error:
            return count, result
        # The error falls as the root of the number. At most ten times, as a first one may be wrong.
        count = math.ceil(count * min(10, max(2, 1.2 * (error / standard_error) ** 2)))
