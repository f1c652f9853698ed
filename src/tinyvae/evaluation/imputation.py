r"""Missing entries, filled by importance-weighted draws.

.. math:: p(x_{\text{mis}} \mid x_{\text{obs}}) \approx
    \sum_k \tilde w_k \, p(x_{\text{mis}} \mid z_k), \qquad
    \tilde w_k \propto \frac{p(x_{\text{obs}} \mid z_k)\, p(z_k)}{q(z_k \mid x_{\text{obs}})},
    \quad z_k \sim q(z \mid x_{\text{obs}})
"""

import torch
from torch import Tensor

from tinyvae.core.module_state import evaluating
from tinyvae.core.random import forked_rng
from tinyvae.evaluation.importance import CHUNK_ELEMENTS, Chunk, chunks, placed, run
from tinyvae.models.output import LatentVariableModel


def impute(
    model: LatentVariableModel,
    x: Tensor,
    context: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    num_imputations: int | None = None,
    num_samples: int = 1000,
    seed: int = 0,
) -> Tensor:
    """Fill missing entries given the observed ones.

    Without ``num_imputations`` an entry is filled by its conditional mean, which is best in squared
    error, or, of classes without an order, by the most probable one. With it, by so many draws from
    the conditional distribution (sampling importance resampling), whose spread tells how uncertain
    the entries are: analyze each of the completed data sets, and pool what comes out.

    Args:
        model: A model with a :class:`~tinyvae.likelihoods.MaskedLikelihood` likelihood; used in evaluation mode.
        x: Data ``(N, *E)``, moved to the model's device and dtype; NaN is missing.
        context: What the model is conditioned on, ``(N, ...)``.
        mask: Which entries were observed, ``(N, *E)``.
        num_imputations: Number of draws ``M``, None for one best value.
        num_samples: Latents per example, of which draws are taken by their weights.
        seed: Seed of the draws; global random state is left as found.

    Returns:
        ``(N, *E)``, or ``(M, N, *E)`` with ``num_imputations``; observed entries as they were.

    References:
        Mattei, Frellsen (2019). MIWAE: Deep Generative Modeling and Imputation of Incomplete Data
        Sets. arXiv:1812.02633, section 3. Rubin (1987). Multiple Imputation for Nonresponse in
        Surveys.

    Example:
        >>> table = MaskedLikelihood(GaussianLikelihood())
        >>> vae = VAE(GaussianEncoder(MLP(3, (8,)), 2), MLP(2, (8,), out_shape=3), table)
        >>> impute(vae, torch.tensor([[1.0, torch.nan, 3.0]]), num_imputations=5).shape
        torch.Size([5, 1, 3])
    """
    for name, count in (("num_samples", num_samples), ("num_imputations", num_imputations)):
        if count is not None and count < 1:
            raise ValueError(f"impute expects {name} >= 1, got {count}")
    x, context, mask = placed(model, x), placed(model, context), placed(model, mask)
    model.check(x, context, mask=mask)
    examples = max(1, CHUNK_ELEMENTS // (model.elements(x) * num_samples))
    with torch.no_grad(), evaluating(model), forked_rng(x.device, seed):
        filled = [
            _filled(model, part, num_samples, num_imputations)
            for part in chunks(x, context, mask, examples)
        ]
    return torch.cat(filled, dim=0 if num_imputations is None else 1)


def _filled(
    model: LatentVariableModel, data: Chunk, num_samples: int, num_imputations: int | None
) -> Tensor:
    x, _, mask = data
    output = run(model, data, num_samples)
    weights = output.log_weight().softmax(0)  # (K, B)
    if num_imputations is None:
        values = output.likelihood.point_estimate(weights)  # (B, *E)
    else:
        chosen = torch.multinomial(weights.T, num_imputations, replacement=True).T  # (M, B)
        examples = torch.arange(len(x), device=x.device)
        values = torch.stack([output.likelihood.sample()[row, examples] for row in chosen])
    observed = ~torch.isnan(x) if mask is None else ~torch.isnan(x) & mask.bool()
    return torch.where(observed, x.to(values.dtype), values)
