r"""What bounds that are functions of the log weights of several draws share.

.. math:: \ell_k = \log \frac{p(x, z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x), \qquad
    \mathcal{L} = \mathbb{E}\, F(\ell_1, \dots, \ell_K) \le \log p(x)

Each gives :math:`F`, and :math:`\partial F / \partial \ell_k` and
:math:`\partial^2 F / \partial \ell_k^2`, which doubly reparameterized gradients need.
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from tinyvae.core.objective import Batch
from tinyvae.models.output import LatentVariableModel, VAEOutput
from tinyvae.objectives.base import GRADIENTS, VariationalBound
from tinyvae.objectives.estimators import (
    Baseline,
    Estimator,
    LogWeights,
    path_surrogate,
    score_surrogate,
)
from tinyvae.schedules import Schedule


class ImportanceBound(VariationalBound):
    """A bound on log p(x) that is a function of log weights alone.

    Args:
        num_samples: Draws :math:`K` per example and bound.
        num_bounds: Number :math:`M` of bounds that are averaged.
        beta: Weight of log q - log p in the log weights; only 1 gives a bound.
        estimator: As of :class:`VariationalBound`.
        baseline: As of :class:`VariationalBound`.

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
        """VariationalBound ``(..., B)`` of log weights ``(K, ..., B)``, of any number ``K``."""

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
            score = self._reparameterized_score(log_weight, log_q)
            surrogate = surrogate + path_surrogate(beta * score.mean(), record)
        return loss + (surrogate.detach() - surrogate)

    def _reparameterized_score(self, log_weight: Tensor, log_q: Tensor | None) -> Tensor:
        """What, along the draws, has the gradient of minus the score, ``(M, B)``."""
        slope, curvature = self.derivatives(log_weight.detach())
        score = -curvature * log_weight
        if log_q is not None:  # these draws may hang on reparameterized ones
            score = score - slope * log_q
        return score.sum(0)

    def is_plain(self) -> bool:
        """Whether log weights have no factor."""
        return self.is_constant("beta", 1.0)

    def words(self, record: VAEOutput) -> str:
        """What is optimized, in a few words."""
        bounds = "" if self.num_bounds == 1 else f"{self.num_bounds} bounds of "
        beta = "" if self.is_constant("beta", 1.0) else f", beta {self.format_weight('beta')}"
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
        if not self.is_constant("beta", 1.0):
            options["beta"] = self.format_weight("beta")
        named = "".join(f", {name}={value}" for name, value in options.items())
        return f"{type(self).__name__}(num_samples={self.num_samples}{named}{self.estimation()})"


def _grouped(values: Tensor, num_bounds: int) -> Tensor:
    """Draws ``(M K, B)`` of each of so many bounds, ``(K, M, B)``."""
    return values.reshape(-1, num_bounds, values.shape[-1])


def log_mean_exp(values: Tensor) -> Tensor:
    """Logarithm of the mean of exp(values) over the first dimension."""
    return torch.logsumexp(values, 0) - math.log(len(values))
