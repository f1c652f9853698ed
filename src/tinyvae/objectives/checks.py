"""Checks before the first step that the gradient of every latent can be estimated."""

import torch
from torch import Tensor, nn

from tinyvae.core.module_state import preserved_buffers, training
from tinyvae.core.objective import Batch
from tinyvae.core.random import forked_rng
from tinyvae.models.base import DecoderModel
from tinyvae.models.output import LatentVariableModel, VAEOutput
from tinyvae.objectives.estimators import Estimator, terms_without_rsample

LARGE = 20.0  # root mean square of a network's inputs from which training often diverges


def describe_large_scale(model: nn.Module, batch: Batch) -> str | None:
    """Return a message if the networks' inputs are far larger than 1, None if they are not."""
    if not isinstance(model, DecoderModel):
        return None
    step = -(-len(batch) // 1000)  # 1,000 examples are enough. Data may be sorted
    x = batch.x[::step]
    if batch.mask is not None:
        x = torch.where(batch.mask[::step] == 1, x, torch.nan)
    if _is_large(model.likelihood.encoder_input(x)):
        return (
            f"{type(model.likelihood).__name__} got x with {_moments(x)}, but encoders expect "
            "inputs of about 1: standardize x (gray levels: scale it to [0, 1]), or give the "
            "likelihood its units, StandardizedLikelihood(..., mean=x.mean(0), std=x.std(0))"
        )
    context = None if batch.context is None else batch.context[::step]
    if context is not None and context.is_floating_point() and _is_large(context):
        return (
            f"{type(model).__name__} got a context with {_moments(context)}, but networks expect "
            "inputs of about 1: standardize the context"
        )
    return None


def _is_large(inputs: Tensor) -> bool:
    return bool(_finite(inputs).square().mean().sqrt() > LARGE)


def _moments(x: Tensor) -> str:
    values = _finite(x)
    low, high = values.aminmax()
    return (
        f"mean {values.mean():.4g}, standard deviation {values.std(correction=0):.4g}, minimum "
        f"{low:.4g} and maximum {high:.4g}"
    )


def _finite(x: Tensor) -> Tensor:
    """Return the finite values, in float64 on the CPU, because squares may overflow."""
    return x[torch.isfinite(x)].detach().cpu().double()


def check_gradients(owner: str, output: VAEOutput, num_samples: int, estimator: Estimator) -> None:
    """Raise unless ``estimator`` applies to every latent of a pass of the bound ``owner``.

    Raises:
        ValueError: If two latents have the same name, if a latent without reparameterized samples
            has only one sample per example, or if STL or DReG gets a posterior without a density.
    """
    names = [term.name for term in output.latents]
    if len(set(names)) < len(names):
        raise ValueError(f"{owner} expects latents of different names, got {names}")
    if (terms := terms_without_rsample(output)) and num_samples < 2:
        raise ValueError(
            f"{owner} expects num_samples >= 2 with {terms[0].posterior} of latent "
            f"{terms[0].name!r}, which is not reparameterized: its gradient compares the samples "
            f"of an example, got {num_samples}"
        )
    if estimator == "pathwise":
        return
    for term in output.latents:
        q = term.posterior
        if q.has_rsample and (q.is_discrete or not q.is_density):
            raise ValueError(
                f"estimator {estimator!r} expects posteriors with a density, got {q} of latent "
                f"{term.name!r}: use estimator='pathwise'"
            )


def check_weights(owner: str, model: LatentVariableModel, batch: Batch, output: VAEOutput) -> None:
    """Raise ValueError if a batch has weights that a part of the model would ignore."""
    if batch.weight is None:
        return
    likelihood = model.likelihood if isinstance(model, DecoderModel) else None
    if likelihood is not None and likelihood.couples_batch:
        raise ValueError(
            f"{owner} expects batches without weights with {type(likelihood).__name__}, whose "
            "scale is that of the batch, where all examples count equally: use "
            "GaussianLikelihood('learned')"
        )
    if output.shares():
        raise ValueError(
            f"{owner} expects batches without weights with codebooks, whose perplexity and "
            f"averages count all examples equally, got {list(output.shares())}: repeat or draw the "
            "examples by their weights"
        )


def check_second_pass(
    model: LatentVariableModel, batch: Batch, num_samples: int, estimator: Estimator
) -> None:
    """Raise if a second pass of the encoder in training mode gives other posteriors.

    STL and DReG evaluate log q in a second pass. Dropout in the encoder, for example, would change
    it. The model does not change.

    Raises:
        ValueError: If the log densities of the two passes differ.
    """
    device = batch.x.device
    with torch.no_grad(), training(model), preserved_buffers(model), forked_rng(device):
        output: VAEOutput = model(batch.x, batch.context, mask=batch.mask, num_samples=num_samples)
        second = model.freeze_posterior(output, batch.x, batch.context, mask=batch.mask)
        pairs = zip(output.latents, second.latents, strict=True)
        densities = [(term.name, term.log_q, other.log_q) for term, other in pairs]
    for name, before, after in densities:
        if not torch.allclose(before, after, rtol=0.01, atol=0.01):
            raise ValueError(
                f"estimator {estimator!r} expects an encoder without randomness such as dropout, "
                f"got another posterior of latent {name!r} in a second pass in training mode: use "
                "estimator='pathwise'"
            )
