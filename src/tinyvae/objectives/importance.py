r"""Importance-weighted bounds.

.. math:: \mathcal{L}_K = \mathbb{E} \log \frac1K \sum_k w_k, \qquad
    w_k = \frac{p(x, z_k)}{q(z_k \mid x)}
"""

from torch import Tensor, nn

from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.objective import Batch
from tinyvae.models.output import VAEOutput, require_model
from tinyvae.objectives.base import VariationalBound, log_mean_exp
from tinyvae.objectives.estimators import Baseline, Estimator, LogWeights
from tinyvae.schedules import Schedule, ScheduledWeight


def log_mean_exp_derivatives(log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the normalized weights w, and w (1 - w)."""
    weight = log_weight.softmax(0)
    return weight, weight * (1 - weight)


@suggest_keywords
class IWAE(VariationalBound):
    r"""Importance-weighted bound on the log evidence.

    .. math:: \mathcal{L}_K = \mathbb{E} \Big[\log \tfrac1K \textstyle\sum_k
        \tfrac{p(x, z_k)}{q(z_k \mid x)}\Big] \le \mathcal{L}_{K + 1} \le \log p(x)

    The metrics are the bound, ``iwae_nats``, and the ELBO of the same samples with its terms.

    Args:
        num_samples: Number of samples :math:`K`. One gives the ELBO with a sampled KL.
        beta: Weight of log q - log p in the log weights. Only 1 gives a bound.
        estimator: ``"pathwise"``, ``"stl"`` (biased for K > 1) or ``"dreg"`` (unbiased, with a
            signal-to-noise ratio that grows with K).
        baseline: ``"vimco"`` or ``"leave_one_out"``, for latents without reparameterized samples.

    Shape:
        x: ``(B, *E)``; loss and metrics: ``()``, nats per datum.

    Raises:
        ValueError: If an argument has another value.

    References:
        Burda, Grosse, Salakhutdinov (2016). Importance Weighted Autoencoders. arXiv:1509.00519,
        section 3.

    Example:
        >>> output = IWAE(5, estimator="dreg")(vae, Batch(x))
        >>> bool(output.metrics["iwae_nats"] >= output.metrics["elbo_nats"])
        True
    """

    metric = "iwae"

    def value(self, log_weight: Tensor) -> Tensor:
        """Return the log of the mean weight."""
        return log_mean_exp(log_weight)

    def derivatives(self, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalized weights w, and w (1 - w)."""
        return log_mean_exp_derivatives(log_weight)


class MultiplyIWAE(VariationalBound):
    r"""Mean of :math:`M` importance-weighted bounds of :math:`K` samples each.

    This is the "MIWAE" of Rainforth et al., not the MIWAE for missing data. Its expectation is that
    of :math:`\mathcal{L}_K`. The variance of its gradient is 1 / M times that of one bound.

    Args:
        num_samples: Samples :math:`K` of one bound.
        num_bounds: Number of bounds :math:`M`.
        beta: See :class:`IWAE`.
        estimator: See :class:`IWAE`.
        baseline: See :class:`IWAE`. It compares the samples of one bound.

    References:
        Rainforth et al. (2018). Tighter Variational Bounds are Not Necessarily Better.
        arXiv:1802.04537, section 4.

    Example:
        >>> MultiplyIWAE(num_samples=8, num_bounds=4).num_draws
        32
    """

    metric = "multiply_iwae"

    def __init__(
        self,
        num_samples: int,
        *,
        num_bounds: int,
        beta: float | Schedule = 1.0,
        estimator: Estimator = "pathwise",
        baseline: Baseline = "vimco",
    ) -> None:
        super().__init__(num_samples, beta=beta, estimator=estimator, baseline=baseline)
        self.num_bounds = self.require_positive("num_bounds", num_bounds)

    def value(self, log_weight: Tensor) -> Tensor:
        """Return the log of the mean weight of each bound."""
        return log_mean_exp(log_weight)

    def derivatives(self, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalized weights w of each bound, and w (1 - w)."""
        return log_mean_exp_derivatives(log_weight)


class PIWAE(VariationalBound):
    r"""Partially importance-weighted autoencoder with two bounds of the same samples.

    The posterior is trained on :math:`M` bounds of :math:`K` samples (:class:`MultiplyIWAE`), all
    other parameters on the one bound of all :math:`MK` samples. There are two parameter groups,
    ``"posterior"`` and ``"generative"``, with one loss each.

    Args:
        num_samples: Samples :math:`K` of one of the posterior's bounds.
        num_bounds: Number of the posterior's bounds :math:`M`.
        beta: See :class:`IWAE`.
        estimator: See :class:`IWAE`.
        baseline: See :class:`IWAE`.

    References:
        Rainforth et al. (2018). Tighter Variational Bounds are Not Necessarily Better.
        arXiv:1802.04537, section 4.

    Example:
        >>> objective = PIWAE(num_samples=8, num_bounds=8)
        >>> losses, groups = objective(vae, Batch(x)).losses, objective.parameter_groups(vae)
        >>> gradients = {  # like the Trainer; never call losses[name].backward()
        ...     name: torch.autograd.grad(losses[name], group, retain_graph=True)
        ...     for name, group in groups.items()
        ... }
        >>> sorted(gradients)
        ['generative', 'posterior']
    """

    metric = "multiply_iwae"

    def __init__(
        self,
        num_samples: int,
        *,
        num_bounds: int,
        beta: float | Schedule = 1.0,
        estimator: Estimator = "pathwise",
        baseline: Baseline = "vimco",
    ) -> None:
        super().__init__(num_samples, beta=beta, estimator=estimator, baseline=baseline)
        self.num_bounds = self.require_positive("num_bounds", num_bounds)

    def value(self, log_weight: Tensor) -> Tensor:
        """Return the log of the mean weight of each bound."""
        return log_mean_exp(log_weight)

    def derivatives(self, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalized weights w of each bound, and w (1 - w)."""
        return log_mean_exp_derivatives(log_weight)

    def bounds(self, log_weight: Tensor) -> dict[str, Tensor]:
        """Return both bounds, ``(B,)``."""
        posterior = self.mean_value(log_weight, self.num_bounds)
        return {"iwae": self.mean_value(log_weight, 1), "multiply_iwae": posterior}

    def losses(self, batch: Batch, weights: LogWeights, output: VAEOutput) -> dict[str, Tensor]:
        """Return the losses of both groups."""
        return {
            "posterior": self.loss(batch, weights, output, self.num_bounds),
            "generative": self.loss(batch, weights, output, 1),
        }

    def parameter_groups(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of the posterior, and the others."""
        model = require_model("PIWAE", model)
        posterior = {p: None for p in model.posterior_parameters() if p.requires_grad}  # in order
        others = [p for p in model.parameters() if p.requires_grad and p not in posterior]
        if not posterior or not others:
            raise ValueError(
                "PIWAE expects trainable parameters in the posterior and in the rest of the model, "
                "got one of them frozen: use MultiplyIWAE or IWAE"
            )
        return {"posterior": list(posterior), "generative": others}


class CIWAE(VariationalBound):
    r"""Convex combination of the ELBO and the importance-weighted bound of the same samples.

    .. math:: \alpha\, \mathcal{L}_1 + (1 - \alpha)\, \mathcal{L}_K

    Args:
        num_samples: Number of samples :math:`K`.
        elbo_weight: :math:`\alpha` in [0, 1], a number or a :class:`~tinyvae.schedules.Schedule`.
        beta: See :class:`IWAE`.
        estimator: See :class:`IWAE`.
        baseline: See :class:`IWAE`.

    References:
        Rainforth et al. (2018). Tighter Variational Bounds are Not Necessarily Better.
        arXiv:1802.04537, section 4.

    Example:
        >>> metrics = CIWAE(64, elbo_weight=0.05)(vae, Batch(x)).metrics
        >>> bool(metrics["elbo_nats"] <= metrics["ciwae_nats"])
        True
    """

    metric = "ciwae"

    def __init__(
        self,
        num_samples: int,
        *,
        elbo_weight: float | Schedule = 0.5,
        beta: float | Schedule = 1.0,
        estimator: Estimator = "pathwise",
        baseline: Baseline = "vimco",
    ) -> None:
        super().__init__(num_samples, beta=beta, estimator=estimator, baseline=baseline)
        self.elbo_weight = ScheduledWeight(
            elbo_weight, name="CIWAE's elbo_weight", least=0.0, most=1.0
        )

    def value(self, log_weight: Tensor) -> Tensor:
        """Return the combination of both bounds."""
        share = self.elbo_weight.type_as(log_weight)
        return share * log_weight.mean(0) + (1 - share) * log_mean_exp(log_weight)

    def derivatives(self, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the combination of the derivatives of both bounds."""
        share = self.elbo_weight.type_as(log_weight)
        slope, curvature = log_mean_exp_derivatives(log_weight)
        return share / len(log_weight) + (1 - share) * slope, (1 - share) * curvature

    def is_unmodified(self) -> bool:
        """Return True if ``beta`` is 1 and ``elbo_weight`` stays in [0, 1]."""
        low, high = self.elbo_weight.value_range
        return super().is_unmodified() and low >= 0 and high <= 1

    def options(self) -> dict[str, str]:
        """Return the weight of the ELBO, formatted."""
        return {"elbo_weight": str(self.elbo_weight)}
