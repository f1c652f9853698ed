r"""Log evidence by importance sampling from the posterior.

.. math:: \log \hat p(x) = \log \frac1K \sum_k w_k, \qquad
    w_k = \frac{p(x \mid z_k)\, p(z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x)

Its expectation is a lower bound on log p(x), which it approaches as K grows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from tinyvae.core.data import to_module
from tinyvae.core.generators import exclusive_generators
from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.module_state import evaluating
from tinyvae.core.objective import Batch, checked_data
from tinyvae.core.random import Stream, derive_seed, forked_rng
from tinyvae.evaluation.data import EvaluationData
from tinyvae.evaluation.progress import Progress
from tinyvae.evaluation.weights import RunningWeights
from tinyvae.models.inputs import require_count
from tinyvae.models.latents import recording
from tinyvae.models.noise import sharing_noise
from tinyvae.models.output import Draw, LatentVariableModel, VAEOutput
from tinyvae.training.data.sources import PickBatch, Transform

Chunk: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None]  # x, context, mask
Noise: TypeAlias = Literal["independent", "shared"]
Data = TypeVar("Data", Tensor, Tensor | None)

# Elements of the largest tensor of a chunk (samples x examples x decoder output). Larger tensors
# do not fit the caches; smaller ones cost more dispatch.
CHUNK_ELEMENTS = 1 << 20


@suggest_keywords
@exclusive_generators("log_marginal")
def log_marginal(
    model: LatentVariableModel,
    data: Any,
    context: Any = None,
    *,
    mask: Any = None,
    batch: PickBatch | None = None,
    transform: Transform | None = None,
    num_samples: int = 5000,
    seed: int = 0,
    noise: Noise = "independent",
    progress: bool = True,
) -> Tensor:
    """Estimate log p(x) of each example by importance sampling.

    With missing entries, which need a :class:`~tinyvae.likelihoods.MaskedLikelihood`, it estimates
    log p of the observed entries.

    Args:
        model: The model. It is used in evaluation mode, without gradients.
        data: Data, see :func:`~tinyvae.evaluate`.
        context: Input of a conditional model, ``(N, ...)``, if data are x alone.
        mask: True for the observed entries, ``(N, *E)``, if data are x alone. NaN is missing.
        batch: See :func:`~tinyvae.evaluate`.
        transform: See :func:`~tinyvae.evaluate`.
        num_samples: Samples :math:`K` per example, each of which is decoded.
        seed: Seed of the samples. The global random state does not change.
        noise: ``"independent"`` draws for each example, or ``"shared"`` ones: the same scrambled
            Sobol points for all examples. Then the estimate of an example does not depend on the
            others, and has less variance. The errors of different examples are correlated. It needs
            Gaussian posteriors with independent dimensions.
        progress: True to report draws and time left, if it takes longer than a second.

    Returns:
        ``(N,)``, nats.

    References:
        Burda, Grosse, Salakhutdinov (2016). Importance Weighted Autoencoders. arXiv:1509.00519.

    Example:
        >>> log_marginal(vae, x, num_samples=50).shape
        torch.Size([8])
    """
    require_count("log_marginal", num_samples)
    require_noise("log_marginal", noise)
    with EvaluationData(
        model, data, context, mask, batch=batch, transform=transform, seed=seed
    ) as opened:
        total = None if opened.num_examples is None else num_samples * opened.num_examples
        with Progress("log p(x)", total, shown=progress) as report:
            return importance_sample(opened, num_samples, seed, report, noise=noise).evidence


@dataclass(frozen=True)
class ImportanceEstimate:
    """Log evidence of each example, with the quality of its weights, ``(N,)`` each.

    Attributes:
        evidence: log p(x), nats.
        error: Its Monte Carlo standard error, nats.
        effective_sample_size: See :class:`~tinyvae.evaluation.WeightQuality`.
        pareto_k: See :class:`~tinyvae.evaluation.WeightQuality`.
        grouped: The bound IWAE_k of groups of draws, nats. None if there are no groups.
        grouped_error: Its Monte Carlo standard error, nats.
    """

    evidence: Tensor
    error: Tensor
    effective_sample_size: Tensor
    pareto_k: Tensor
    grouped: Tensor | None = None
    grouped_error: Tensor | None = None


def importance_sample(
    data: EvaluationData,
    num_samples: int,
    seed: int,
    report: Progress,
    *,
    noise: Noise = "independent",
    limit: int | None = None,
    group_size: int | None = None,
) -> ImportanceEstimate:
    """Return :func:`log_marginal` of the first ``limit`` examples, and how good it is."""
    results = []
    for start, part in data.parts(limit):
        for first, block in iterate_blocks(data.model, part, num_samples):
            place = derive_seed(seed, Stream.IMPORTANCE, start + first)
            with drawing(data.model, data.device, place):
                running = weigh(
                    data.model, block, num_samples, seed, report, noise=noise, group_size=group_size
                )
            statistics = [
                running.evidence(),
                running.error(),
                running.effective_sample_size(),
                running.pareto_k(),
            ]
            results.append([*statistics, *running.grouped()])
    return ImportanceEstimate(*(torch.cat(column) for column in zip(*results, strict=True)))


def weigh(
    model: LatentVariableModel,
    block: Chunk,
    num_samples: int,
    seed: int,
    report: Progress,
    *,
    noise: Noise = "independent",
    group_size: int | None = None,
) -> RunningWeights:
    """Return the statistics of the importance weights of a block of examples."""
    running = RunningWeights(num_samples, group_size)
    _, samples = chunk_sizes(model, block[0], num_samples)
    stream = derive_seed(seed, Stream.IMPORTANCE)
    for output in iterate_draws(model, block, num_samples, samples, noise, stream):
        running.add(output.log_weight())
        report.add(output.log_px.numel())
    return running


@contextmanager
def drawing(model: LatentVariableModel, device: torch.device, seed: int) -> Iterator[None]:
    """Evaluate a model on data that were checked, without gradients, with a seed."""
    with torch.no_grad(), evaluating(model), checked_data(), forked_rng(device, seed):
        yield


def iterate_blocks(
    model: LatentVariableModel, part: Batch, num_samples: int
) -> Iterator[tuple[int, Chunk]]:
    """Yield the examples that draw together, with the position of the first one in the part."""
    examples, _ = chunk_sizes(model, part.x, num_samples)
    chunks = iterate_chunks(part.x, part.context, part.mask, examples)
    for index, chunk in enumerate(chunks):
        yield index * examples, chunk


def chunk_sizes(model: LatentVariableModel, x: Tensor, num_samples: int) -> tuple[int, int]:
    """Return the number of examples of a chunk, and of the samples that are drawn at a time."""
    elements = model.peak_elements(x)
    samples = min(num_samples, max(1, CHUNK_ELEMENTS // elements))
    return max(1, CHUNK_ELEMENTS // (elements * samples)), samples


def iterate_draws(
    model: LatentVariableModel,
    data: Chunk,
    num_samples: int,
    samples: int,
    noise: Noise = "independent",
    seed: int = 0,
) -> Iterator[VAEOutput]:
    """Yield the model's outputs for a chunk, of ``samples`` samples at a time."""
    x, context, mask = data
    for start in range(0, num_samples, samples):
        count = min(samples, num_samples - start)
        if noise == "independent":
            yield forward(model, data, count)
            continue
        with checked_data():
            rule = sharing_noise(seed, start)(count, [])
            yield model.output_with(x, context, rule, mask=mask)


def require_noise(name: str, noise: Noise) -> None:
    """Raise unless ``noise`` is one of its values."""
    if noise not in ("independent", "shared"):
        raise ValueError(f"{name} expects noise 'independent' or 'shared', got {noise!r}")


def drawing_rule(noise: Noise, seed: int) -> Callable[[int, list[Tensor]], Draw]:
    """Return the function that makes rules of drawing latents, from ``num_samples`` and a list."""
    return sharing_noise(seed) if noise == "shared" else recording


def forward(model: LatentVariableModel, data: Chunk, num_samples: int) -> VAEOutput:
    """Return the model's output for one chunk of data that have been checked."""
    x, context, mask = data
    with checked_data():
        output: VAEOutput = model(x, context, mask=mask, num_samples=num_samples)
    return output


def iterate_chunks(
    x: Tensor, context: Tensor | None, mask: Tensor | None, examples: int
) -> Iterator[Chunk]:
    """Yield data, context and mask of ``examples`` examples at a time."""
    for start in range(0, len(x), examples):
        part = slice(start, start + examples)
        yield (
            x[part],
            None if context is None else context[part],
            None if mask is None else mask[part],
        )


def to_model(model: nn.Module, data: Data) -> Data:
    """Return data as a tensor on the model's device, in its dtype if they are floating-point."""
    return data if data is None else to_module(data, model, "evaluation")
