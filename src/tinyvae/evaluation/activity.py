r"""Which dimensions of a latent the data are told apart by.

.. math:: A_j = \operatorname{Var}_{p(x)} \big(\mathbb{E}_{q(z \mid x)} [z_j]\big)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tinyvae.core.module_state import evaluating
from tinyvae.core.random import forked_rng
from tinyvae.evaluation.importance import CHUNK_ELEMENTS, chunks, placed, run
from tinyvae.models.output import LatentTerm, LatentVariableModel


@dataclass(frozen=True)
class Activity:
    """Activity of the dimensions of one latent.

    Attributes:
        variance: Variance over the data of the posterior's mean, ``(*L)``.
        threshold: Variance from which on a dimension counts as active.
    """

    variance: Tensor
    threshold: float

    @property
    def active(self) -> Tensor:
        """Which dimensions are active, ``(*L)``."""
        return self.variance > self.threshold

    @property
    def count(self) -> int:
        """Number of active dimensions."""
        return int(self.active.sum())

    def __str__(self) -> str:
        return f"{self.count} of {self.variance.numel()} dimensions active"


def active_units(
    model: LatentVariableModel,
    x: Tensor,
    context: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    threshold: float = 0.01,
    num_samples: int = 64,
    seed: int = 0,
) -> dict[str, Activity]:
    """Count the dimensions of each latent that carry information about the data.

    A posterior that has collapsed to its prior has the same mean for all data: none is active.

    Args:
        model: The model; used in evaluation mode, without gradients.
        x: Data ``(N, *E)`` with N >= 2, moved to the model's device and dtype.
        context: What the model is conditioned on, ``(N, ...)``.
        mask: Which entries were observed, ``(N, *E)``.
        threshold: Variance from which on a dimension counts as active.
        num_samples: Draws per example where the posterior's mean is not known in closed form, or
            hangs on the draw of another latent.
        seed: Seed of these draws; global random state is left as found.

    Returns:
        The activity of each latent, by name.

    References:
        Burda, Grosse, Salakhutdinov (2016). Importance Weighted Autoencoders. arXiv:1509.00519,
        section 5.2.

    Example:
        >>> activity = active_units(vae, x)["z"]
        >>> activity.variance.shape
        torch.Size([2])
    """
    if len(x) < 2:
        raise ValueError(f"active_units expects at least two examples, got {len(x)}")
    if num_samples < 2:
        raise ValueError(f"active_units expects num_samples >= 2, got {num_samples}")
    x, context, mask = placed(model, x), placed(model, context), placed(model, mask)
    model.check(x, context, mask=mask)
    examples = max(1, CHUNK_ELEMENTS // (num_samples * model.peak_elements(x)))
    means: dict[str, list[Tensor]] = {}
    errors: dict[str, list[Tensor]] = {}
    with torch.no_grad(), evaluating(model), forked_rng(x.device, seed):
        for part in chunks(x, context, mask, examples):
            for term in run(model, part, num_samples).latents:
                mean, error = _mean_and_error(term)
                means.setdefault(term.name, []).append(mean.double())
                errors.setdefault(term.name, []).append(error.double())
    return {
        # The variance of estimates exceeds that of what they estimate by their own.
        name: Activity(torch.cat(own).var(0) - torch.cat(errors[name]).mean(0), threshold)
        for name, own in means.items()
    }


def _mean_and_error(term: LatentTerm) -> tuple[Tensor, Tensor]:
    """Mean of q(z given x) of each example ``(B, *L)``, and the variance of its estimate."""
    mean = term.posterior.mean
    if len(term.posterior.batch_shape) == 1 and not mean.isnan().any():
        return mean, torch.zeros_like(mean)
    draws = term.z if mean.isnan().any() else mean
    return draws.mean(0), draws.var(0) / len(draws)
