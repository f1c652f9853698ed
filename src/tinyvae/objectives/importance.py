r"""Bounds that are functions of the log weights of several draws.

.. math:: \ell_k = \log \frac{p(x, z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x), \qquad
    \mathcal{L} = \mathbb{E}\, F(\ell_1, \dots, \ell_K) \le \log p(x)

Each gives :math:`F`, and :math:`\partial F / \partial \ell_k` and
:math:`\partial^2 F / \partial \ell_k^2`, which doubly reparameterised gradients need.
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from tinyvae.objective import Batch
from tinyvae.objectives.bound import GRADIENTS, Bound
from tinyvae.objectives.estimators import (
    Baseline,
    Estimator,
    LogWeights,
    path_surrogate,
    score_surrogate,
)
from tinyvae.record import LatentVariableModel, VAEOutput
from tinyvae.schedules import Schedule

__all__ = ["CIWAE", "IWAE", "PIWAE", "TVO", "LogWeightBound", "MultiplyIWAE", "RenyiBound"]


class LogWeightBound(Bound):
    """A bound on log p(x) that is a function of log weights alone.

    Args:
        num_samples: Draws :math:`K` per example and bound.
        num_bounds: Number :math:`M` of bounds that are averaged.
        beta: Weight of log q - log p in the log weights; only 1 gives a bound.
        estimator: As of :class:`Bound`.
        baseline: As of :class:`Bound`.

    Attributes:
        metric: Name of the bound in reports.
    """

    metric: str
    beta: Tensor

    def __init__(
        self,
        num_samples: int,
        *,
        num_bounds: int,
        beta: float | Schedule = 1.0,
        estimator: Estimator = "pathwise",
        baseline: Baseline = "vimco",
    ) -> None:
        super().__init__(num_samples, estimator=estimator, baseline=baseline)
        self.num_bounds = self.count("num_bounds", num_bounds)
        self.schedule("beta", beta)

    @property
    def differentiates(self) -> bool:
        """Whether a pass asks for gradients by itself."""
        return self.estimator == "dreg"

    @property
    def num_draws(self) -> int:
        """Latents drawn per example, of all bounds."""
        return self.num_samples * self.num_bounds

    @abstractmethod
    def value(self, log_weight: Tensor) -> Tensor:
        """Bound ``(..., B)`` of log weights ``(K, ..., B)``, of any number ``K``."""

    @abstractmethod
    def derivatives(self, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """First and second derivatives in each of the log weights, ``(K, ..., B)`` both."""

    def score(
        self, model: LatentVariableModel, batch: Batch, record: VAEOutput
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses by parameter group, and metrics, of a pass."""
        record = self.scored(model, batch, record)
        weights = LogWeights.of(record)
        terms = {name: t.mean().detach() for name, t in self._terms(record, weights).items()}
        terms["elbo"] = terms.pop("log_weight")
        metrics = {f"{name}_nats": term for name, term in terms.items()}
        return self.losses(weights, record), metrics

    def per_example(self, record: VAEOutput) -> dict[str, Tensor]:
        """Log weights and their terms, ``(K, B)``, and the bounds, ``(B,)``."""
        return self._terms(record, LogWeights.of(record))

    def _terms(self, record: VAEOutput, weights: LogWeights) -> dict[str, Tensor]:
        kl = weights.kl
        log_weight = weights.log_px - kl
        terms = {"log_likelihood": weights.log_px, "kl": kl, "log_weight": log_weight}
        if len(weights.kls) > 1:
            names = (f"kl_{term.name}" for term in record.latents)
            terms |= dict(zip(names, weights.kls, strict=True))
        return terms | self.bounds(log_weight.detach())

    def bounds(self, log_weight: Tensor) -> dict[str, Tensor]:
        """Bounds ``(B,)`` to report, of log weights ``(M K, B)``."""
        return {self.metric: self.mean_value(log_weight, self.num_bounds)}

    def mean_value(self, log_weight: Tensor, num_bounds: int) -> Tensor:
        """Mean ``(B,)`` of so many bounds."""
        return self.value(_grouped(log_weight, num_bounds)).mean(0)

    def losses(self, weights: LogWeights, record: VAEOutput) -> dict[str, Tensor]:
        """Losses by parameter group."""
        return {"model": self.loss(weights, record, self.num_bounds)}

    def loss(self, weights: LogWeights, record: VAEOutput, num_bounds: int) -> Tensor:
        """Minus the mean of so many bounds, with the estimator's gradient.

        Args:
            weights: Log weights of the pass.
            record: The pass.
            num_bounds: How many bounds the draws are shared out to.
        """
        beta = self.beta.to(weights.log_px.dtype)
        log_weight = _grouped(weights.log_px - beta * weights.kl, num_bounds)  # (K, M, B)
        log_q = None if weights.log_q is None else _grouped(weights.log_q, num_bounds)
        loss = -self.value(log_weight).mean()
        if not torch.is_grad_enabled():
            return loss
        surrogate = torch.zeros_like(loss)
        if log_q is not None:
            scored = score_surrogate(self.value, log_weight, log_q, self.baseline)
            surrogate = surrogate + scored.mean()
        if self.estimator == "dreg":
            score = self._reparameterised_score(log_weight, log_q)
            surrogate = surrogate + path_surrogate(beta * score.mean(), record)
        return loss + (surrogate.detach() - surrogate)

    def _reparameterised_score(self, log_weight: Tensor, log_q: Tensor | None) -> Tensor:
        """What, along the draws, has the gradient of minus the score, ``(M, B)``."""
        slope, curvature = self.derivatives(log_weight.detach())
        score = -curvature * log_weight
        if log_q is not None:  # these draws may hang on reparameterised ones
            score = score - slope * log_q
        return score.sum(0)

    def is_plain(self) -> bool:
        """Whether log weights have no factor."""
        return self.is_always("beta", 1.0)

    def words(self, record: VAEOutput) -> str:
        """What is optimised, in a few words."""
        bounds = "" if self.num_bounds == 1 else f"{self.num_bounds} bounds of "
        beta = "" if self.is_always("beta", 1.0) else f", beta {self.weight_repr('beta')}"
        draws = "draw" if self.num_samples == 1 else "draws"
        own = "".join(f", {name} {value}" for name, value in self.own_arguments().items())
        head = f"{type(self).__name__}{own}, {bounds}{self.num_samples} {draws}{beta}"
        return head + GRADIENTS[self.estimator]

    def own_arguments(self) -> dict[str, str]:
        """Arguments that this bound alone has, in words."""
        return {}

    def __repr__(self) -> str:
        options = self.own_arguments()
        if self.num_bounds > 1:
            options["num_bounds"] = str(self.num_bounds)
        if not self.is_always("beta", 1.0):
            options["beta"] = self.weight_repr("beta")
        named = "".join(f", {name}={value}" for name, value in options.items())
        return f"{type(self).__name__}(num_samples={self.num_samples}{named}{self.estimation()})"


def _grouped(values: Tensor, num_bounds: int) -> Tensor:
    """Draws ``(M K, B)`` of each of so many bounds, ``(K, M, B)``."""
    return values.reshape(-1, num_bounds, values.shape[-1])


def _log_mean_exp(values: Tensor) -> Tensor:
    return torch.logsumexp(values, 0) - math.log(len(values))


class _ImportanceWeighted(LogWeightBound):
    """Logarithm of the mean weight."""

    metric = "iwae"

    def value(self, log_weight: Tensor) -> Tensor:
        """Log of the mean weight."""
        return _log_mean_exp(log_weight)

    def derivatives(self, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised weights w, and w (1 - w)."""
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
        baseline: Of latents without reparameterised draws, ``"vimco"`` or ``"leave_one_out"``.

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
        elbo_weight: :math:`\alpha` in [0, 1], a number or a :class:`~tinyvae.Schedule`.
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
        return {"elbo_weight": self.weight_repr("elbo_weight")}


class RenyiBound(LogWeightBound):
    r"""Variational Renyi bound of order :math:`\alpha`.

    .. math:: \hat{\mathcal{L}}_\alpha = \frac{1}{1 - \alpha}
        \log \frac1K \sum_k w_k^{1 - \alpha}

    The logarithm of a power mean of the weights: 0 gives :class:`IWAE`, 1 in the limit the ELBO.
    From 0 on it is a lower bound on log p(x) in expectation, whatever :math:`K`; below it is none.

    Args:
        alpha: Order :math:`\alpha`, a number or a :class:`~tinyvae.Schedule`.
        num_samples: Number of draws :math:`K`.
        beta: As of :class:`IWAE`.
        estimator: As of :class:`IWAE`.
        baseline: As of :class:`IWAE`.

    References:
        Li, Turner (2016). Renyi Divergence Variational Inference. arXiv:1602.02311, section 4.1.

    Example:
        >>> RenyiBound(0.5, num_samples=5).is_bound(vae), RenyiBound(-1.0, 5).is_bound(vae)
        (True, False)
    """

    metric = "renyi"
    alpha: Tensor

    def __init__(
        self,
        alpha: float | Schedule,
        num_samples: int,
        *,
        beta: float | Schedule = 1.0,
        estimator: Estimator = "pathwise",
        baseline: Baseline = "vimco",
    ) -> None:
        super().__init__(
            num_samples, num_bounds=1, beta=beta, estimator=estimator, baseline=baseline
        )
        self.schedule("alpha", alpha)

    def value(self, log_weight: Tensor) -> Tensor:
        """Log of the power mean."""
        power = (1 - self.alpha).to(log_weight.dtype)
        mean = log_weight.mean(0)
        tilted = power * (log_weight - mean)
        # Near power zero the logarithm is as small as the power that it is divided by.
        near = tilted.abs().amax(0) < 0.5
        divisor = power.where(power != 0, 1.0)
        close = mean + torch.log1p(torch.expm1(tilted.where(near, 0.0)).mean(0)) / divisor
        return torch.where(near, close, _log_mean_exp(power * log_weight) / divisor)

    def derivatives(self, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised powers v of the weights, and (1 - alpha) v (1 - v)."""
        power = (1 - self.alpha).to(log_weight.dtype)
        weight = (power * log_weight).softmax(0)
        return weight, power * weight * (1 - weight)

    def is_plain(self) -> bool:
        """Whether log weights have no factor, and the order is at least 0."""
        return super().is_plain() and self.extent("alpha")[0] >= 0

    def own_arguments(self) -> dict[str, str]:
        """Order."""
        return {"alpha": self.weight_repr("alpha")}


class TVO(LogWeightBound):
    r"""Thermodynamic variational objective, a left Riemann sum.

    .. math:: \log p(x) = \int_0^1 \mathbb{E}_{\pi_\beta} [\ell] \, d\beta
        \ge \sum_{j=1}^{J} (\beta_j - \beta_{j-1})\, \mathbb{E}_{\pi_{\beta_{j-1}}} [\ell], \qquad
        \pi_\beta \propto p(x, z)^\beta q(z \mid x)^{1 - \beta}

    with expectations by self-normalised importance sampling, weights :math:`w_k^\beta`. Of these
    the integral is log of the mean weight, and the integrand rises, so that for every draw the sum
    is at most :class:`IWAE`'s: a bound, whatever :math:`K`. The gradient is that of this
    expectation. One partition is the ELBO.

    Args:
        num_samples: Number of draws :math:`K`.
        num_partitions: Number of rectangles :math:`J`.
        smallest: :math:`\beta_1` in [0, 1], a number or a :class:`~tinyvae.Schedule`; the points
            from there to 1 are evenly spaced in their logarithms.
        beta: As of :class:`IWAE`.
        estimator: As of :class:`IWAE`.
        baseline: As of :class:`IWAE`.

    References:
        Masrani, Le, Wood (2019). The Thermodynamic Variational Objective. arXiv:1907.00031.

    Example:
        >>> metrics = TVO(50, num_partitions=5)(vae, Batch(x)).metrics
        >>> bool(metrics["elbo_nats"] <= metrics["tvo_nats"])
        True
    """

    metric = "tvo"
    smallest: Tensor

    def __init__(
        self,
        num_samples: int,
        num_partitions: int = 2,
        smallest: float | Schedule = 0.1,
        *,
        beta: float | Schedule = 1.0,
        estimator: Estimator = "pathwise",
        baseline: Baseline = "vimco",
    ) -> None:
        super().__init__(
            num_samples, num_bounds=1, beta=beta, estimator=estimator, baseline=baseline
        )
        self.num_partitions = self.count("num_partitions", num_partitions)
        self.schedule("smallest", smallest, least=0.0, most=1.0)

    def is_plain(self) -> bool:
        """Whether log weights have no factor, and the points are of [0, 1]."""
        low, high = self.extent("smallest")
        return super().is_plain() and low >= 0 and high <= 1

    def value(self, log_weight: Tensor) -> Tensor:
        """Left Riemann sum."""
        widths, _, weight = self._rectangles(log_weight)
        return (widths * (weight * log_weight).sum(1, keepdim=True)).sum(0)[0]

    def derivatives(self, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the sum over k of softmax(beta l)_k l_k, in each rectangle."""
        widths, points, weight = self._rectangles(log_weight)
        excess = log_weight - (weight * log_weight).sum(1, keepdim=True)
        slope = weight * (1 + points * excess)
        bend = points * weight * ((1 - weight) * (1 + points * excess) + 1 - slope)
        return (widths * slope).sum(0), (widths * bend).sum(0)

    def _rectangles(self, log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Widths, left ends, and weights of the draws there, ``(J, K, ..., B)``."""
        steps = torch.arange(self.num_partitions - 1, -1, -1, device=log_weight.device)
        right = self.smallest.to(log_weight.dtype) ** (steps / max(self.num_partitions - 1, 1))
        left = torch.cat([right.new_zeros(1), right[:-1]])
        widths, points = (
            ends.reshape(-1, *[1] * log_weight.dim()) for ends in (right - left, left)
        )
        return widths, points, (points * log_weight).softmax(1)

    def own_arguments(self) -> dict[str, str]:
        """Partition."""
        return {
            "num_partitions": str(self.num_partitions),
            "smallest": self.weight_repr("smallest"),
        }
