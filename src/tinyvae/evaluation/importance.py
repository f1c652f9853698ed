r"""Log evidence by importance sampling from the posterior.

.. math:: \log \hat p(x) = \log \frac1K \sum_k w_k, \qquad
    w_k = \frac{p(x \mid z_k)\, p(z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x)

Its expectation is a lower bound on log p(x), which it approaches as K grows.
"""

import math
from collections.abc import Iterator
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from tinyvae.core.module_state import evaluating
from tinyvae.core.objective import checked_data, data_are_checked
from tinyvae.core.random import forked_rng
from tinyvae.models.output import LatentVariableModel, VAEOutput

Chunk: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None]  # x, context, mask
Data = TypeVar("Data", Tensor, Tensor | None)

# Elements of the largest tensor of a chunk (samples x examples x decoder output). Larger tensors
# do not fit the caches; smaller ones cost more dispatch.
CHUNK_ELEMENTS = 1 << 20


def log_marginal(
    model: LatentVariableModel,
    x: Tensor,
    context: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    num_samples: int = 5000,
    seed: int = 0,
) -> Tensor:
    """Estimate log p(x) of each example by importance sampling.

    With missing entries, which need a :class:`~tinyvae.likelihoods.MaskedLikelihood`, it estimates
    log p of the observed entries.

    Args:
        model: The model. It is used in evaluation mode, without gradients.
        x: Data, ``(N, *E)``, moved to the model's device and dtype.
        context: Input of a conditional model, ``(N, ...)``.
        mask: True for the observed entries, ``(N, *E)``. NaN is missing.
        num_samples: Samples :math:`K` per example.
        seed: Seed of the samples. The global random state does not change.

    Returns:
        ``(N,)``, nats.

    References:
        Burda, Grosse, Salakhutdinov (2016). Importance Weighted Autoencoders. arXiv:1509.00519.

    Example:
        >>> log_marginal(vae, x, num_samples=50).shape
        torch.Size([8])
    """
    if num_samples < 1:
        raise ValueError(f"log_marginal expects num_samples >= 1, got {num_samples}")
    if len(x) == 0:
        raise ValueError("log_marginal expects at least one example, got none")
    x, context, mask = to_model(model, x), to_model(model, context), to_model(model, mask)
    if not data_are_checked():
        model.check(x, context, mask=mask)
    elements = model.peak_elements(x)
    samples = min(num_samples, max(1, CHUNK_ELEMENTS // elements))  # per example and chunk
    examples = max(1, CHUNK_ELEMENTS // (elements * samples))  # per chunk
    with torch.no_grad(), evaluating(model), forked_rng(x.device, seed):
        evidence = [
            _log_mean_weight(model, part, num_samples, samples)
            for part in iterate_chunks(x, context, mask, examples)
        ]
    return torch.cat(evidence)


def _log_mean_weight(
    model: LatentVariableModel, data: Chunk, num_samples: int, samples: int
) -> Tensor:
    """Return the log mean weight ``(B,)`` of a chunk, from ``samples`` samples at a time."""
    totals = []
    for start in range(0, num_samples, samples):
        output = forward(model, data, min(samples, num_samples - start))
        totals.append(output.log_weight().logsumexp(0))
    return torch.stack(totals).logsumexp(0) - math.log(num_samples)


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
    """Return data on the model's device, and in its dtype if they are floating-point."""
    if data is None:
        return data
    if not isinstance(data, Tensor):
        raise TypeError(
            f"evaluation expects a tensor (N, *E), got a {type(data).__name__}: use torch.as_tensor"
        )
    parameter = next(model.parameters(), None)
    if parameter is None:
        return data
    return data.to(parameter.device, parameter.dtype if data.is_floating_point() else data.dtype)
