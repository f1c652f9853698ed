r"""Imputation of missing entries by importance-weighted samples.

.. math:: p(x_{\text{mis}} \mid x_{\text{obs}}) \approx
    \sum_k \tilde w_k \, p(x_{\text{mis}} \mid z_k), \qquad
    \tilde w_k \propto \frac{p(x_{\text{obs}} \mid z_k)\, p(z_k)}{q(z_k \mid x_{\text{obs}})},
    \quad z_k \sim q(z \mid x_{\text{obs}})
"""

import math
from typing import cast

import torch
from torch import Tensor

from tinyvae.core.data import as_tensor
from tinyvae.core.generators import exclusive_generators
from tinyvae.core.module_state import evaluating
from tinyvae.core.random import Stream, derive_seed, forked_rng
from tinyvae.evaluation.importance import CHUNK_ELEMENTS, Chunk, forward, iterate_chunks, to_model
from tinyvae.evaluation.progress import Progress
from tinyvae.models.base import DecoderModel
from tinyvae.models.inputs import require_count


@exclusive_generators("impute")
def impute(
    model: DecoderModel,
    x: Tensor,
    context: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    num_imputations: int | None = None,
    num_samples: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Tensor:
    """Fill missing entries given the observed ones.

    Without ``num_imputations``, an entry gets its conditional mean, which minimizes the squared
    error. An entry of unordered classes gets the most probable class. With ``num_imputations``, it
    gets that many samples of the conditional distribution (sampling importance resampling). Their
    spread shows the uncertainty: analyze each completed data set, and pool the results.

    Args:
        model: A model with a :class:`~tinyvae.likelihoods.MaskedLikelihood`. It is used in
            evaluation mode.
        x: Data ``(N, *E)``, moved to the model's device. NaN is missing.
        context: Input of a conditional model, ``(N, ...)``.
        mask: True for the observed entries, ``(N, *E)``.
        num_imputations: Number of samples ``M``. None gives one best value.
        num_samples: Latents per example, which are resampled by their weights.
        seed: Seed of the samples. The global random state does not change.
        progress: True to report draws and time left, if it takes longer than some seconds.

    Returns:
        ``(N, *E)``, or ``(M, N, *E)`` with ``num_imputations``, on the device of x. Observed
        entries are unchanged, also those that the model's dtype rounds: the result is float64 if
        x is.

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
    require_count("impute", num_samples)
    if num_imputations is not None:
        require_count("impute", num_imputations, "num_imputations")
    data = as_tensor(x, "impute")
    x, context, mask = to_model(model, data), to_model(model, context), to_model(model, mask)
    model.check(x, context, mask=mask)
    examples = max(1, CHUNK_ELEMENTS // (model.peak_elements(x) * num_samples))
    filled = []
    with (
        torch.no_grad(),
        evaluating(model),
        forked_rng(x.device, derive_seed(seed, Stream.IMPUTATION)),
        Progress("impute", num_samples * len(x), shown=progress) as report,
    ):
        for part in iterate_chunks(x, context, mask, examples):
            filled.append(_impute_chunk(model, part, num_samples, num_imputations))
            report.add(num_samples * len(part[0]))
    completed = torch.cat(filled, dim=0 if num_imputations is None else 1).to(data.device)
    # Not x, because the model's dtype may round observed values, and its device may lack float64.
    observed = ~torch.isnan(data)
    if mask is not None:
        observed &= mask.to(data.device).bool()
    return torch.where(observed, data, completed)


def _impute_chunk(
    model: DecoderModel, data: Chunk, num_samples: int, num_imputations: int | None
) -> Tensor:
    """Return values for all entries of one chunk, ``(B, *E)`` or ``(M, B, *E)``."""
    output = forward(model, data, num_samples)
    log_weight = output.log_weight()  # (K, B)
    # All weights underflow if an observed value is extreme. The draws then count equally.
    is_zero = (log_weight == -math.inf).all(0)
    weights = log_weight.masked_fill(is_zero, 0.0).softmax(0)
    if num_imputations is None:
        return output.likelihood.point_estimate(weights)  # (B, *E)
    chosen = torch.multinomial(weights.T, num_imputations, replacement=True).T  # (M, B)
    examples = torch.arange(weights.shape[1], device=weights.device)
    z = cast("Tensor", output.z)[chosen, examples]  # (M, B, *L)
    return model.decode(z, data[1]).sample()
