r"""The curve of rate and distortion of a family of models.

.. math:: R = \mathbb{E}\, \mathrm{KL}(q(z \mid x) \,\|\, p(z)), \qquad
    D = -\mathbb{E}_{q(z \mid x)} \log p(x \mid z), \qquad -\mathrm{ELBO} = R + D
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tinyvae.core.keywords import suggest_keywords
from tinyvae.evaluation.estimate import Estimate
from tinyvae.evaluation.estimation import evaluate
from tinyvae.models.output import LatentVariableModel
from tinyvae.plotting.diagnostics import rate_distortion_curve
from tinyvae.training.data.sources import PickBatch, Transform

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class RateDistortionPoint:
    """Rate and distortion of one model.

    Attributes:
        beta: Weight of the KL term with which the model was trained.
        rate: KL(q(z given x) || p(z)).
        distortion: -E log p(x given z).
        elbo: Minus their sum.
    """

    beta: float
    rate: Estimate
    distortion: Estimate
    elbo: Estimate


@dataclass(frozen=True)
class RateDistortion:
    """Curve of rate and distortion, see :func:`rate_distortion`.

    Attributes:
        points: One point per beta, in their order.
    """

    points: tuple[RateDistortionPoint, ...]

    def to_dict(self) -> dict[str, list[float]]:
        """Return all numbers as columns, nats per datum."""
        columns: dict[str, list[float]] = {"beta": [point.beta for point in self.points]}
        for name in ("rate", "distortion", "elbo"):
            estimates: list[Estimate] = [getattr(point, name) for point in self.points]
            columns[name] = [estimate.mean for estimate in estimates]
            columns[f"{name}_standard_error"] = [e.standard_error for e in estimates]
        return columns

    def __str__(self) -> str:
        lines = [f"{'beta':>8}  {'rate':>16}  {'distortion':>16}  {'ELBO':>16}  nats"]
        for point in self.points:
            estimates = (point.rate, point.distortion, point.elbo)
            cells = (f"{e.mean:.2f} +- {e.standard_error:.2f}" for e in estimates)
            lines.append(f"{point.beta:>8g}  " + "  ".join(f"{cell:>16}" for cell in cells))
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Draw distortion against rate, with the beta of each point.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        rates = [point.rate.mean for point in self.points]
        distortions = [point.distortion.mean for point in self.points]
        notes = [f"beta {point.beta:g}" for point in self.points]
        return rate_distortion_curve({"models": (rates, distortions)}, notes={"models": notes})


@suggest_keywords
def rate_distortion(
    fit: Callable[[float], LatentVariableModel],
    data: Any,
    context: Any = None,
    *,
    betas: Sequence[float] = (0.1, 0.3, 1.0, 3.0, 10.0),
    mask: Any = None,
    batch: PickBatch | None = None,
    transform: Transform | None = None,
    elbo_samples: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> RateDistortion:
    """Train one model per beta, and measure rate and distortion of each.

    Models with the same ELBO may use their latents very differently. A small beta gives a high rate
    and a low distortion, a large one the opposite. Where the curve ends at rate 0, posteriors have
    collapsed.

    Args:
        fit: Function that trains a new model with a weight ``beta`` of the KL term, and returns it.
        data: Data to measure on, such as test data, see :func:`~tinyvae.evaluate`.
        context: Input of a conditional model, ``(N, ...)``, if data are x alone.
        betas: Weights of the KL term.
        mask: True for the observed entries, ``(N, *E)``, if data are x alone. NaN is missing.
        batch: Function that returns x, or a :class:`~tinyvae.Batch`, of a batch of the data.
        transform: Function (x, generator) -> x. ``seed`` sets its noise.
        elbo_samples: Samples per example.
        seed: Seed of the samples, the same for all models. The global random state does not change
            by the evaluation.
        progress: True to report draws and time left of the evaluation.

    References:
        Alemi, Poole, Fischer, Dillon, Saurous, Murphy (2018). Fixing a Broken ELBO.
        arXiv:1711.00464.

    Example:
        >>> def fit(beta):
        ...     vae = VAE.from_shapes(4, latent_dim=2, likelihood=BernoulliLikelihood())
        ...     Trainer(vae, ELBO(beta), progress=False).fit(x, epochs=1)
        ...     return vae
        >>> curve = rate_distortion(fit, x, betas=(0.5, 2.0))
        >>> [point.beta for point in curve.points]
        [0.5, 2.0]
    """
    if not betas:
        raise ValueError("rate_distortion expects at least one beta, got none: betas=(0.5, 1, 2)")
    points = []
    for beta in betas:
        model = fit(beta)
        if not isinstance(model, LatentVariableModel):
            raise TypeError(
                "rate_distortion expects a function fit(beta) that returns the trained model, got "
                f"a {type(model).__name__}: add 'return vae' to it"
            )
        report = evaluate(
            model,
            data,
            context,
            mask=mask,
            batch=batch,
            transform=transform,
            elbo_samples=elbo_samples,
            importance_samples=None,
            seed=seed,
            progress=progress,
        )
        log_likelihood = report.log_likelihood
        distortion = replace(log_likelihood, mean=-log_likelihood.mean)
        points.append(RateDistortionPoint(float(beta), report.kl, distortion, report.elbo))
    return RateDistortion(tuple(points))
