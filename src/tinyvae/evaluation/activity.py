r"""Active units: the dimensions of a latent that carry information about the data.

.. math:: A_j = \operatorname{Var}_{p(x)} \big(\mathbb{E}_{q(z \mid x)} [z_j]\big)
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyvae.core.generators import exclusive_generators
from tinyvae.core.random import Stream, derive_seed
from tinyvae.evaluation.data import EvaluationData
from tinyvae.evaluation.importance import drawing, iterate_blocks
from tinyvae.evaluation.progress import Progress
from tinyvae.models.inputs import require_count
from tinyvae.models.output import LatentTerm, LatentVariableModel
from tinyvae.training.data.sources import PickBatch, Transform


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
    data: Any,
    context: Any = None,
    *,
    mask: Any = None,
    batch: PickBatch | None = None,
    transform: Transform | None = None,
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
        data: At least two data, see :func:`~tinyvae.evaluate`.
        context: Input of a conditional model, ``(N, ...)``, if data are x alone.
        mask: True for the observed entries, ``(N, *E)``, if data are x alone.
        batch: See :func:`~tinyvae.evaluate`.
        transform: See :func:`~tinyvae.evaluate`.
        threshold: A dimension is active if its variance is above it.
        num_samples: Samples per example, if the posterior's mean has no closed form or depends on
            the sample of another latent.
        seed: Seed of these samples. The global random state does not change.
        progress: True to report draws and time left, if it takes longer than a second.

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
    require_count("active_units", num_samples, least=2)
    states: dict[str, RunningActivity] = {}
    with (
        EvaluationData(
            model, data, context, mask, batch=batch, transform=transform, seed=seed
        ) as opened,
        Progress("active units", opened.num_examples, shown=progress) as report,
    ):
        for start, part in opened.parts():
            is_known = all(has_known_mean(term) for term in opened.output.latents)
            draws = 1 if is_known else num_samples
            for first, (x, c, m) in iterate_blocks(model, part, draws):
                stream = derive_seed(seed, Stream.ACTIVITY, start + first)
                with drawing(model, opened.device, stream):
                    terms = model.latent_terms(x, c, mask=m, num_samples=draws)
                    for term in terms:
                        states.setdefault(term.name, RunningActivity()).add(term)
                report.add(len(x))
    if opened.num_examples == 1:
        raise ValueError("active_units expects at least two examples, got 1")
    return {name: Activity(state.variance(), threshold) for name, state in states.items()}


class RunningActivity:
    """Running variance of the posterior's means over the data, without the noise of estimates."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, term: LatentTerm) -> None:
        """Add a block of examples."""
        mean, error = (values.cpu().double() for values in _mean_and_error(term))  # (B, *L)
        if self._count == 0:  # deviations from the first mean, which squares do not cancel
            self._origin = mean[0]
            self._sum = self._square = self._error = torch.zeros_like(mean[0])
        deviation = mean - self._origin
        self._count += len(mean)
        self._sum = self._sum + deviation.sum(0)
        self._square = self._square + deviation.square().sum(0)
        self._error = self._error + error.sum(0)

    def variance(self) -> Tensor:
        """Return the variance ``(*L)``, NaN for one example."""
        if self._count < 2:
            return torch.full_like(self._sum, math.nan)
        spread = self._square - self._sum.square() / self._count
        # The variance of estimated means exceeds that of the means by the variance of the error.
        return spread / (self._count - 1) - self._error / self._count


def has_known_mean(term: LatentTerm) -> bool:
    """Return True if the posterior's mean has a closed form and depends on the data only."""
    return len(term.posterior.batch_shape) == 1 and not bool(term.posterior.mean.isnan().any())


def _mean_and_error(term: LatentTerm) -> tuple[Tensor, Tensor]:
    """Return the mean of q(z given x), ``(B, *L)``, and the variance of its estimate."""
    mean = term.posterior.mean
    if has_known_mean(term):
        return mean, torch.zeros_like(mean)
    samples = term.z if mean.isnan().any() else mean  # (K, B, *L)
    return samples.mean(0), samples.var(0) / len(samples)
