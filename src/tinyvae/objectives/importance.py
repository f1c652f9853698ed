r"""Importance-weighted bounds.

.. math:: \mathcal{L}_K = \mathbb{E} \log \frac1K \sum_k w_k, \qquad
    w_k = \frac{p(x, z_k)}{q(z_k \mid x)}
"""

from torch import Tensor, nn

from tinyvae.models.output import LatentVariableModel, VAEOutput
from tinyvae.objectives.estimators import Baseline, Estimator, LogWeights
from tinyvae.objectives.log_weights import ImportanceBound, log_mean_exp
from tinyvae.schedules import Schedule


class _ImportanceWeighted(ImportanceBound):
    """Logarithm of the mean weight."""

    metric = "iwae"

    def value(self, log_weight: Tensor) -> Tensor:
        """Log of the mean weight."""
        return log_mean_exp(log_weight)

    def derivatives(self, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized weights w, and w (1 - w)."""
        weight = log_weight.softmax(0)
        return weight, weight * (1 - weight)


class IWAE(_ImportanceWeighted):
    r"""Importance-weighted bound on the log evidence.

    .. math:: \mathcal{L}_K = \mathbb{E} \Big[\log \tfrac1K \textstyle\sum_k
        \tfrac{p(x, z_k)}{q(z_k \mid x)}\Big] \le \mathcal{L}_{K + 1} \le \log p(x)

    Reported are the bound, ``iwae_nats``, and the ELBO of the same draws with its terms.

    Args:
        num_samples: Number of draws :math:`K`; 1 is the ELBO with a sampled KL.
        beta: Weight of log q - log p in the log weights; only 1 gives a bound.
        estimator: ``"pathwise"``, ``"stl"`` (biased for K > 1) or ``"dreg"`` (unbiased, whose
            ratio of signal to noise grows with K).
        baseline: Of latents without reparameterized draws, ``"vimco"`` or ``"leave_one_out"``.

    Shape:
        x: ``(B, *E)``; loss and metrics: ``()``, nats per datum.

    Raises:
        ValueError: If an argument is none of these.

    References:
        Burda, Grosse, Salakhutdinov (2016). Importance Weighted Autoencoders. arXiv:1509.00519,
        section 3.

    Example:
        >>> output = IWAE(5, estimator="dreg")(vae, Batch(x))
        >>> bool(output.metrics["iwae_nats"] >= output.metrics["elbo_nats"])
        True
    """

    def __init__(
        self,
        num_samples: int,
        *,
        beta: float | Schedule = 1.0,
        estimator: Estimator = "pathwise",
        baseline: Baseline = "vimco",
    ) -> None:
        super().__init__(
            num_samples, num_bounds=1, beta=beta, estimator=estimator, baseline=baseline
        )


class MultiplyIWAE(_ImportanceWeighted):
    r"""Mean of :math:`M` importance-weighted bounds of :math:`K` draws each.

    Rainforth's "MIWAE", which is not that of missing data. In expectation it is
    :math:`\mathcal{L}_K`, with a gradient of 1 / M of its variance.

    Args:
        num_samples: Draws :math:`K` of one bound.
        num_bounds: Number of bounds :math:`M`.
        beta: As of :class:`IWAE`.
        estimator: As of :class:`IWAE`.
        baseline: As of :class:`IWAE`; compares the draws of one bound.

    References:
        Rainforth et al. (2018). Tighter Variational Bounds are Not Necessarily Better.
        arXiv:1802.04537, section 4.

    Example:
        >>> MultiplyIWAE(num_samples=8, num_bounds=4).num_draws
        32
    """

    metric = "multiply_iwae"


class PIWAE(_ImportanceWeighted):
    r"""Posterior and generative model trained on two bounds of the same draws.

    The posterior on :math:`M` bounds of :math:`K` draws (:class:`MultiplyIWAE`), everything else on
    the one bound of all :math:`MK`. There are two parameter groups, ``"posterior"`` and
    ``"generative"``, each with a loss of its own.

    Args:
        num_samples: Draws :math:`K` of one of the posterior's bounds.
        num_bounds: Number of the posterior's bounds :math:`M`.
        beta: As of :class:`IWAE`.
        estimator: As of :class:`IWAE`.
        baseline: As of :class:`IWAE`.

    References:
        Rainforth et al. (2018). Tighter Variational Bounds are Not Necessarily Better.
        arXiv:1802.04537, section 4.

    Example:
        >>> objective = PIWAE(num_samples=8, num_bounds=8)
        >>> losses, groups = objective(vae, Batch(x)).losses, objective.parameter_groups(vae)
        >>> gradients = {  # as the Trainer does it: never ``losses[name].backward()``
        ...     name: torch.autograd.grad(losses[name], group, retain_graph=True)
        ...     for name, group in groups.items()
        ... }
        >>> sorted(gradients)
        ['generative', 'posterior']
    """

    def bounds(self, log_weight: Tensor) -> dict[str, Tensor]:
        """Both bounds ``(B,)``."""
        posterior = self.mean_value(log_weight, self.num_bounds)
        return {"iwae": self.mean_value(log_weight, 1), "multiply_iwae": posterior}

    def losses(self, weights: LogWeights, record: VAEOutput) -> dict[str, Tensor]:
        """Losses of both groups."""
        return {
            "posterior": self.loss(weights, record, self.num_bounds),
            "generative": self.loss(weights, record, 1),
        }

    def parameter_groups(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """The posterior's parameters, and the others."""
        if not isinstance(model, LatentVariableModel):
            raise TypeError(f"PIWAE expects a VAE, got a {type(model).__name__}")
        posterior = [p for p in model.posterior_parameters() if p.requires_grad]
        own = set(posterior)
        others = [p for p in model.parameters() if p.requires_grad and p not in own]
        if not posterior or not others:
            raise ValueError(
                "PIWAE trains the posterior on one bound and the rest on another, and one of them "
                "is frozen: use MultiplyIWAE or IWAE"
            )
        return {"posterior": posterior, "generative": others}


class CIWAE(_ImportanceWeighted):
    r"""ELBO and importance-weighted bound of the same draws, mixed.

    .. math:: \alpha\, \mathcal{L}_1 + (1 - \alpha)\, \mathcal{L}_K

    Args:
        num_samples: Number of draws :math:`K`.
        elbo_weight: :math:`\alpha` in [0, 1], a number or a :class:`~tinyvae.schedules.Schedule`.
        beta: As of :class:`IWAE`.
        estimator: As of :class:`IWAE`.
        baseline: As of :class:`IWAE`.

    References:
        Rainforth et al. (2018). Tighter Variational Bounds are Not Necessarily Better.
        arXiv:1802.04537, section 4.

    Example:
        >>> metrics = CIWAE(64, elbo_weight=0.05)(vae, Batch(x)).metrics
        >>> bool(metrics["elbo_nats"] <= metrics["ciwae_nats"])
        True
    """

    metric = "ciwae"
    elbo_weight: Tensor

    def __init__(
        self,
        num_samples: int,
        elbo_weight: float | Schedule = 0.5,
        *,
        beta: float | Schedule = 1.0,
        estimator: Estimator = "pathwise",
        baseline: Baseline = "vimco",
    ) -> None:
        super().__init__(
            num_samples, num_bounds=1, beta=beta, estimator=estimator, baseline=baseline
        )
        self.schedule("elbo_weight", elbo_weight, least=0.0, most=1.0)

    def value(self, log_weight: Tensor) -> Tensor:
        """Both bounds, mixed."""
        share = self.elbo_weight.to(log_weight.dtype)
        return share * log_weight.mean(0) + (1 - share) * super().value(log_weight)

    def is_plain(self) -> bool:
        """Whether log weights have no factor, and the mixture is one."""
        low, high = self.extent("elbo_weight")
        return super().is_plain() and low >= 0 and high <= 1

    def derivatives(self, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Those of both bounds, mixed."""
        share = self.elbo_weight.to(log_weight.dtype)
        slope, curvature = super().derivatives(log_weight)
        return share / len(log_weight) + (1 - share) * slope, (1 - share) * curvature

    def own_arguments(self) -> dict[str, str]:
        """Weight of the ELBO."""
        return {"elbo_weight": self.format_weight("elbo_weight")}
