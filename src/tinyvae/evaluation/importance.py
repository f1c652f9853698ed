r"""Log evidence by importance sampling from the posterior.

.. math:: \log \hat p(x) = \log \frac1K \sum_k w_k, \qquad
    w_k = \frac{p(x \mid z_k)\, p(z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x)

In expectation a lower bound on log p(x), which it approaches as K grows.
"""

import math
from collections.abc import Iterator
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from tinyvae.core.module_state import evaluating
from tinyvae.core.random import forked_rng
from tinyvae.models.output import LatentVariableModel, VAEOutput

Chunk: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None]  # x, context, mask
Data = TypeVar("Data", Tensor, Tensor | None)

# Elements of the largest tensor of a chunk (draws x examples x decoder output): larger ones
# no longer fit the caches, smaller ones pay more for dispatch.
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

    With missing entries, of a :class:`~tinyvae.likelihoods.MaskedLikelihood` likelihood, it is log p of what was
    observed.

    Args:
        model: The model; evaluated in evaluation mode, without gradients.
        x: Data, ``(N, *E)``, moved to the model's device and dtype.
        context: What the model is conditioned on, ``(N, ...)``.
        mask: Which entries were observed, ``(N, *E)``; those that are NaN were not.
        num_samples: Draws :math:`K` per example.
        seed: Seed of the draws; global random state is left as found.

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
    x, context, mask = placed(model, x), placed(model, context), placed(model, mask)
    elements = model.peak_elements(x)
    draws = min(num_samples, max(1, CHUNK_ELEMENTS // elements))
    examples = max(1, CHUNK_ELEMENTS // (elements * draws))
    with torch.no_grad(), evaluating(model), forked_rng(x.device, seed):
        evidence = [
            _log_mean_weight(model, part, num_samples, draws)
            for part in chunks(x, context, mask, examples)
        ]
    return torch.cat(evidence)


def _log_mean_weight(
    model: LatentVariableModel, data: Chunk, num_samples: int, draws: int
) -> Tensor:
    totals = []
    for start in range(0, num_samples, draws):
        output = run(model, data, min(draws, num_samples - start))
        totals.append(output.log_weight().logsumexp(0))
    return torch.stack(totals).logsumexp(0) - math.log(num_samples)


def run(model: LatentVariableModel, data: Chunk, num_samples: int) -> VAEOutput:
    """Record of a pass of one chunk."""
    x, context, mask = data
    output: VAEOutput = model(x, context, mask=mask, num_samples=num_samples)
    return output


def chunks(
    x: Tensor, context: Tensor | None, mask: Tensor | None, examples: int
) -> Iterator[Chunk]:
    """Data, context and mask, so many examples at a time."""
    for start in range(0, len(x), examples):
        part = slice(start, start + examples)
        yield (
            x[part],
            None if context is None else context[part],
            None if mask is None else mask[part],
        )


def placed(model: nn.Module, data: Data) -> Data:
    """Data on the model's device, floating-point ones in its dtype; None stays None."""
    if data is None:
        return data
    if not isinstance(data, Tensor):
        raise TypeError(f"expected a tensor (N, *E), got a {type(data).__name__}: torch.as_tensor")
    parameter = next(model.parameters(), None)
    if parameter is None:
        return data
    return data.to(parameter.device, parameter.dtype if data.is_floating_point() else data.dtype)
