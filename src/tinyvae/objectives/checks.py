"""Checks before the first step that the gradient of every latent can be estimated."""

from contextlib import ExitStack

import torch

from tinyvae.core.module_state import preserved_buffers, preserved_modes, set_training_mode
from tinyvae.core.objective import Batch
from tinyvae.core.random import forked_rng
from tinyvae.models.output import LatentVariableModel, VAEOutput
from tinyvae.objectives.estimators import Estimator, terms_without_rsample


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


def check_second_pass(
    model: LatentVariableModel, batch: Batch, num_samples: int, estimator: Estimator
) -> None:
    """Raise if a second pass of the encoder in training mode gives other posteriors.

    STL and DReG evaluate log q in a second pass. Dropout in the encoder, for example, would change
    it. The model does not change.

    Raises:
        ValueError: If the log densities of the two passes differ.
    """
    scopes = (preserved_modes(model), preserved_buffers(model), forked_rng(batch.x.device))
    with ExitStack() as stack, torch.no_grad():
        for scope in scopes:
            stack.enter_context(scope)
        set_training_mode(model)
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
