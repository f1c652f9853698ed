r"""The record of one pass through a model, all that objectives and evaluations read.

.. math:: \log w = \log p(x \mid z) + \sum_\ell \big[\log p(z_\ell) - \log q(z_\ell)\big]
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from tinyvae.distributions import (
    Distribution,
    has_closed_form,
    kl_divergence,
    log_prob_of_draws,
)
from tinyvae.errors import NoClosedFormError

KLEstimator = Literal["auto", "analytic", "sample"]


@dataclass(frozen=True)
class LatentTerm:
    """One latent variable of a pass: its draws, its posterior and its prior.

    Attributes:
        name: Name, for reports.
        z: Draws from the posterior, ``(K, B, *L)``.
        posterior: q(z), given the data and the layers above.
        prior: p(z), given the layers above.
        analytic: True if the closed form of the KL divergence may replace log q - log p. False if
            the prior depends on a draw that depends on ``z``, as in a bottom-up hierarchy.
        drawn_log_q: Log posterior density of ``z``, ``(K, B)``, if drawing yielded it.
    """

    name: str
    z: Tensor
    posterior: Distribution
    prior: Distribution
    analytic: bool = True
    drawn_log_q: Tensor | None = None

    @property
    def log_q(self) -> Tensor:
        """Log posterior density of ``z``, ``(K, B)``, nats.

        It is computed at every access, unless drawing yielded it.
        """
        return self.posterior.log_prob(self.z) if self.drawn_log_q is None else self.drawn_log_q

    @property
    def log_p(self) -> Tensor:
        """Log prior density of ``z``, ``(K, B)``, nats; computed at every access."""
        return log_prob_of_draws(self.posterior, self.prior, self.z)

    def kl(self, estimator: KLEstimator = "auto") -> Tensor:
        """KL(posterior || prior) of each example, ``(B,)``, nats, averaged over ``K`` draws.

        Args:
            estimator: ``"analytic"``, the closed form; ``"sample"``, log q - log p at the draws;
                ``"auto"``, the closed form where there is one.

        Raises:
            NoClosedFormError: If ``"analytic"`` is asked for and there is none.
        """
        kl = self.kl_of_draws(estimator)
        return kl.mean(0) if kl.dim() == 2 else kl

    def kl_of_draws(self, estimator: KLEstimator = "auto", *, per_dim: bool = False) -> Tensor:
        """Terms whose mean over draws is :meth:`kl`, ``(K, B)``, or ``(B,)`` where all are equal.

        Args:
            estimator: As of :meth:`kl`.
            per_dim: Keep the dimensions of the latent, ``(..., *L)``, instead of summing over them.

        Raises:
            NoClosedFormError: If ``"analytic"`` is asked for and there is none.
            TypeError: If the latent's dimensions are not independent, with ``per_dim``.
        """
        if estimator not in ("auto", "analytic", "sample"):
            raise ValueError(f"expected 'auto', 'analytic' or 'sample', got {estimator!r}")
        if estimator != "sample" and self.analytic:
            try:
                return kl_divergence(self.posterior, self.prior, per_dim=per_dim)
            except NoClosedFormError:
                pass
        if estimator == "analytic":
            raise NoClosedFormError(
                f"KL({self.posterior} || {self.prior}) of latent {self.name!r} has no closed form: "
                "use kl='auto' or kl='sample'"
            )
        if per_dim:
            log_q = self.posterior.elementwise_log_prob(self.z)
            return log_q - self.prior.elementwise_log_prob(self.z)
        return self.log_q - self.log_p

    @property
    def is_density(self) -> bool:
        """Whether posterior and prior are densities, on the same space."""
        return (
            self.posterior.is_density
            and self.prior.is_density
            and self.posterior.support == self.prior.support
        )

    @property
    def has_analytic_kl(self) -> bool:
        """Whether the KL divergence has a closed form that may be used."""
        return self.analytic and has_closed_form(self.posterior, self.prior)


@dataclass(frozen=True)
class VAEOutput:
    """Record of one pass of ``B`` examples with ``K`` draws each.

    Attributes:
        latents: The latent terms, as many as there are stochastic layers.
        likelihood: p(x given z), ``batch_shape = (K, B)``.
        log_px: log p(x given z), ``(K, B)``, nats.
        draws: What was drawn, posterior by posterior in the order of drawing, ``(K, B, *L)`` each.
        z: What the decoder read, ``(K, B, *L)``, None of a model without one.
    """

    latents: tuple[LatentTerm, ...]
    likelihood: Distribution
    log_px: Tensor
    draws: tuple[Tensor, ...] = ()
    z: Tensor | None = None

    @property
    def is_density(self) -> bool:
        """Whether posteriors, priors and likelihood are densities, without which no bound holds."""
        return self.likelihood.is_density and all(term.is_density for term in self.latents)

    def losses(self) -> dict[str, Tensor]:
        """What the posteriors add to a training's loss, by name, ``(B,)`` or ``(K, B)`` each."""
        terms = ((term.name, term.posterior.losses) for term in self.latents)
        return {f"{name}_{key}": value for name, own in terms for key, value in own.items()}

    def metrics(self) -> dict[str, Tensor]:
        """What the posteriors report beside, by name, 0-d each."""
        terms = ((term.name, term.posterior.metrics) for term in self.latents)
        return {f"{name}_{key}": value for name, own in terms for key, value in own.items()}

    def log_weight(self) -> Tensor:
        """Log importance weights log p(x, z) - log q(z given x), ``(K, B)``, nats."""
        log_weight = self.log_px
        for term in self.latents:
            log_weight = log_weight + term.log_p - term.log_q
        return log_weight


class LatentVariableModel(nn.Module, ABC):
    """What objectives and evaluations ask of a model."""

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        num_samples: int = 1,
        frozen_posterior: bool = False,
    ) -> VAEOutput:
        """Draw ``num_samples`` latents for each of ``x`` ``(B, *E)`` and record the pass.

        What ``mask`` ``(B, *E)`` leaves out is missing, as is what is NaN. With
        ``frozen_posterior`` the draws are scored by posteriors without gradients in the weights.
        """

    def freeze_posterior(
        self,
        record: VAEOutput,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> VAEOutput:
        """Score a record's draws by posteriors without gradients in the weights."""
        raise NotImplementedError(
            f"{type(self).__name__} does not score draws again: use estimator='pathwise'"
        )

    def posterior_parameters(self) -> list[nn.Parameter]:
        """Parameters of the posterior, as against those of the generative model."""
        raise NotImplementedError(
            f"{type(self).__name__} does not tell its posterior's parameters from the others: "
            "train all on one bound, MultiplyIWAE or IWAE"
        )

    @abstractmethod
    def check(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None
    ) -> VAEOutput:
        """Raise, with the remedy, if ``x`` and the parts of the model do not fit together.

        Draws nothing. Returns the record of the first examples at their posteriors' means.
        """

    @property
    def couples_batch(self) -> bool:
        """Whether an example's record depends on the others of its batch in training."""
        return False

    def elements(self, x: Tensor) -> int:
        """Elements of the largest tensor of a pass, per example of ``x`` and draw."""
        return max(1, x[0].numel())

    @property
    @abstractmethod
    def is_density(self) -> bool:
        """Whether posterior and likelihood are densities, without which no bound holds."""
