r"""Active units: the dimensions of a latent that carry information about the data.

.. math:: A_j = \operatorname{Var}_{p(x)} \big(\mathbb{E}_{q(z \mid x)} [z_j]\big)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tinyvae.core.generators import exclusive_generators
from tinyvae.core.module_state import evaluating
from tinyvae.core.random import Stream, derive_seed, forked_rng
from tinyvae.evaluation.importance import CHUNK_ELEMENTS, iterate_chunks, to_model
from tinyvae.evaluation.progress import Progress
from tinyvae.models.inputs import require_count
from tinyvae.models.output import LatentTerm, LatentVariableModel


@dataclass(frozen=True)
class Activity:
    """Activity of the dimensions of one latent.

    Attributes:
        variance: Variance of the posterior's mean over the data, ``(*L)``, float64 on the CPU.
        threshold: A dimension is active if its variance is above it.
    """

    variance: Tensor
    threshold: float

    @property
    def active(self) -> Tensor:
        """True for the active dimensions, ``(*L)``."""
        return self.variance > self.threshold

    @property
    def count(self) -> int:
        """Number of active dimensions."""
        return int(self.active.sum())

    def __str__(self) -> str:
        return f"{self.count} of {self.variance.numel()} dimensions active"


@exclusive_generators("active_units")
def active_units(
    model: LatentVariableModel,
    x: Tensor,
    context: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    threshold: float = 0.01,
    num_samples: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Activity]:
    """Count the dimensions of each latent that carry information about the data.

    A posterior that has collapsed to its prior has the same mean for all data, so it has no active
    dimension. Nothing is decoded.

    Args:
        model: The model. It is used in evaluation mode, without gradients.
        x: Data ``(N, *E)`` with N >= 2, moved to the model's device and dtype.
        context: Input of a conditional model, ``(N, ...)``.
        mask: True for the observed entries, ``(N, *E)``.
        threshold: A dimension is active if its variance is above it.
        num_samples: Samples per example, if the posterior's mean has no closed form or depends on
            the sample of another latent.
        seed: Seed of these samples. The global random state does not change.
        progress: True to report draws and time left, if it takes longer than some seconds.

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
    require_count("active_units", num_samples, least=2)
    x, context, mask = to_model(model, x), to_model(model, context), to_model(model, mask)
    output = model.check(x, context, mask=mask)
    draws = 1 if all(_has_known_mean(term) for term in output.latents) else num_samples
    examples = max(1, CHUNK_ELEMENTS // (draws * model.peak_elements(x)))
    means: dict[str, list[Tensor]] = {}
    errors: dict[str, list[Tensor]] = {}
    with (
        torch.no_grad(),
        evaluating(model),
        forked_rng(x.device, derive_seed(seed, Stream.ACTIVITY)),
        Progress("active units", draws * len(x), shown=progress) as report,
    ):
        for part in iterate_chunks(x, context, mask, examples):
            for term in model.latent_terms(*part[:2], mask=part[2], num_samples=draws):
                mean, error = _mean_and_error(term)
                means.setdefault(term.name, []).append(mean.cpu().double())
                errors.setdefault(term.name, []).append(error.cpu().double())
            report.add(draws * len(part[0]))
    return {
        # The variance of estimated means exceeds that of the means by the variance of the error.
        name: Activity(torch.cat(parts).var(0) - torch.cat(errors[name]).mean(0), threshold)
        for name, parts in means.items()
    }


def _has_known_mean(term: LatentTerm) -> bool:
    """Return True if the posterior's mean has a closed form and depends on the data only."""
    return len(term.posterior.batch_shape) == 1 and not bool(term.posterior.mean.isnan().any())


def _mean_and_error(term: LatentTerm) -> tuple[Tensor, Tensor]:
    """Return the mean of q(z given x), ``(B, *L)``, and the variance of its estimate."""
    mean = term.posterior.mean
    if _has_known_mean(term):
        return mean, torch.zeros_like(mean)
    samples = term.z if mean.isnan().any() else mean  # (K, B, *L)
    return samples.mean(0), samples.var(0) / len(samples)
