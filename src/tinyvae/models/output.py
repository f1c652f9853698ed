r"""The output of one pass through a model, from which objectives and evaluations are computed.

.. math:: \log w = \log p(x \mid z) + \sum_\ell \big[\log p(z_\ell) - \log q(z_\ell)\big]
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from tinyvae.distributions import Distribution, has_closed_form, kl_divergence, log_prob_of_draws
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
        point: Draws from the log form of the posterior, ``(K, B, *L)``, whose values are ``z``
            (:meth:`~tinyvae.distributions.Distribution.log_form`). None if these are ``z``.
    """

    name: str
    z: Tensor
    posterior: Distribution
    prior: Distribution
    analytic: bool = True
    drawn_log_q: Tensor | None = None
    point: Tensor | None = None

    @classmethod
    def of(
        cls,
        name: str,
        drawn: tuple[Tensor, Tensor | None],
        posterior: Distribution,
        prior: Distribution,
        *,
        analytic: bool = True,
    ) -> "LatentTerm":
        """Return the term of points that were drawn, with their log density if that is known."""
        point, log_q = drawn
        return cls(name, posterior.value_of(point), posterior, prior, analytic, log_q, point)

    @property
    def log_q(self) -> Tensor:
        """Log posterior density of ``z``, ``(K, B)``, nats. Relaxed classes: that of log ratios.

        It is computed at every access, unless drawing yielded it.
        """
        posterior, _, point = self._scored()
        if self.drawn_log_q is not None and (self.point is None or self.point is point):
            return self.drawn_log_q
        return posterior.log_prob(point)

    @property
    def log_p(self) -> Tensor:
        """Log prior density of ``z``, ``(K, B)``, nats. Relaxed classes: that of log ratios.

        It is computed at every access.
        """
        return log_prob_of_draws(*self._scored())

    def _scored(self) -> tuple[Distribution, Distribution, Tensor]:
        """Return posterior, prior and draws in their log form, if both have the same one."""
        q, p = self.posterior.log_form(), self.prior.log_form()
        if self.point is None or q.support != p.support:
            return self.posterior, self.prior, self.z
        return q, p, self.point

    def kl(self, estimator: KLEstimator = "auto") -> Tensor:
        """Return KL(posterior || prior) of each example, ``(B,)``, nats, averaged over ``K`` draws.

        Args:
            estimator: ``"analytic"``: the closed form; ``"sample"``: log q - log p at the draws;
                ``"auto"``: the closed form if there is one, otherwise the draws.

        Raises:
            NoClosedFormError: If ``estimator="analytic"`` and there is no closed form.
        """
        kl = self.kl_of_draws(estimator)
        return kl.mean(0) if kl.dim() == 2 else kl

    def kl_of_draws(self, estimator: KLEstimator = "auto", *, per_dim: bool = False) -> Tensor:
        """Return the terms of :meth:`kl` before the mean over draws, nats.

        Args:
            estimator: See :meth:`kl`.
            per_dim: Keep the dimensions of the latent, ``(..., *L)``, instead of summing over them.

        Returns:
            ``(K, B)``, or ``(B,)`` if the closed form is equal for all draws.

        Raises:
            NoClosedFormError: If ``estimator="analytic"`` and there is no closed form.
            TypeError: If the latent's dimensions are not independent, with ``per_dim``.
        """
        if estimator not in ("auto", "analytic", "sample"):
            raise ValueError(f"kl expects 'auto', 'analytic' or 'sample', got {estimator!r}")
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
        """True if posterior and prior are densities on the same support."""
        q, p = self.posterior, self.prior
        return q.is_density and p.is_density and q.support == p.support

    @property
    def has_analytic_kl(self) -> bool:
        """True if the KL divergence has a closed form that may be used."""
        return self.analytic and has_closed_form(self.posterior, self.prior)


# A rule that draws points (K, B, *L) of a posterior with batch shape (B,) or (K, B), given their
# shape L. The latents are posterior.value_of(points), for most posteriors the points themselves.
# The rule also returns the log density of the points (K, B) if drawing yields it.
Draw: TypeAlias = Callable[[torch.Size, Distribution], tuple[Tensor, Tensor | None]]

# Latent terms of a pass, and the input of the decoder, (K, B, *L).
Inference: TypeAlias = tuple[tuple[LatentTerm, ...], Tensor]


@dataclass(frozen=True)
class VAEOutput:
    """Output of one pass for ``B`` examples with ``K`` draws each.

    Attributes:
        latents: Latent terms, one for each stochastic layer or part of a joint latent.
        likelihood: p(x given z), ``batch_shape = (K, B)``.
        log_px: log p(x given z), ``(K, B)``, nats.
        draws: Points drawn from the posteriors in the order of drawing, ``(K, B, *L)`` each.
        z: Input of the decoder, ``(K, B, *L)``, or None for a model without a decoder.
    """

    latents: tuple[LatentTerm, ...]
    likelihood: Distribution
    log_px: Tensor
    draws: tuple[Tensor, ...] = ()
    z: Tensor | None = None

    @property
    def is_density(self) -> bool:
        """True if posteriors, priors and likelihood are densities, which a bound needs."""
        return self.likelihood.is_density and all(term.is_density for term in self.latents)

    def losses(self) -> dict[str, Tensor]:
        """Return the posteriors' terms of the training loss, ``(B,)`` or ``(K, B)``, by name."""
        terms = ((term.name, term.posterior.losses) for term in self.latents)
        return {f"{name}_{key}": value for name, values in terms for key, value in values.items()}

    def metrics(self) -> dict[str, Tensor]:
        """Return the metrics of the posteriors by name, 0-d each."""
        terms = ((term.name, term.posterior.metrics) for term in self.latents)
        return {f"{name}_{key}": value for name, values in terms for key, value in values.items()}

    def shares(self) -> dict[str, Tensor]:
        """Return the shares of the posteriors' codes, ``(J,)``, by the name of their perplexity."""
        terms = ((term.name, term.posterior.shares) for term in self.latents)
        return {f"{name}_{key}": value for name, values in terms for key, value in values.items()}

    def log_weight(self) -> Tensor:
        """Return log importance weights log p(x, z) - log q(z given x), ``(K, B)``, nats."""
        log_weight = self.log_px
        for term in self.latents:
            log_weight = log_weight + term.log_p - term.log_q
        return log_weight


class LatentVariableModel(nn.Module, ABC):
    """Interface of models for objectives and evaluations."""

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
        """Draw ``num_samples`` latents for each of ``x`` ``(B, *E)`` and return the output.

        Entries are missing if they are NaN, or False in ``mask`` ``(B, *E)``. With
        ``frozen_posterior`` the posteriors score the draws without gradients in the weights.
        """

    def output_with(
        self, x: Tensor, context: Tensor | None, draw: Draw, *, mask: Tensor | None = None
    ) -> VAEOutput:
        """Return the output for points that a rule returns for each posterior in turn."""
        raise NotImplementedError(
            f"{type(self).__name__} does not take the points of its latents: define output_with"
        )

    def latent_terms(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        num_samples: int = 1,
    ) -> tuple[LatentTerm, ...]:
        """Return the latent terms of :meth:`forward`. A model may leave out decoding."""
        output: VAEOutput = self(x, context, mask=mask, num_samples=num_samples)
        return output.latents

    def freeze_posterior(
        self,
        record: VAEOutput,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> VAEOutput:
        """Return the output with posteriors that have no gradients in the weights."""
        raise NotImplementedError(
            f"{type(self).__name__} cannot freeze its posterior: use estimator='pathwise'"
        )

    def posterior_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the posterior, without those of the generative model."""
        raise NotImplementedError(
            f"{type(self).__name__} does not separate the parameters of its posterior: "
            "train all parameters with one bound, MultiplyIWAE or IWAE"
        )

    @abstractmethod
    def check(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None
    ) -> VAEOutput:
        """Raise, with the remedy, if ``x`` and the parts of the model do not fit together.

        Nothing is drawn.

        Returns:
            The output for the first examples at the point estimates of their posteriors.
        """

    @property
    def couples_batch(self) -> bool:
        """True if p(x, z) of an example depends on the rest of its batch, in the model's mode."""
        return False

    def num_dims(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the number of observed dimensions of each of ``x`` ``(B, *E)``, ``(B,)``."""
        observed = ~torch.isnan(x) if mask is None else ~torch.isnan(x) & mask.bool()
        return observed.flatten(1).sum(1)

    def peak_elements(self, x: Tensor) -> int:
        """Return the number of elements of the largest tensor, per example of ``x`` and draw."""
        return max(1, x[0].numel())

    @property
    @abstractmethod
    def is_density(self) -> bool:
        """True if posterior and likelihood are densities, which a bound needs."""


def require_model(owner: str, model: nn.Module) -> LatentVariableModel:
    """Return ``model``. Raise TypeError if it is not a model with latents, such as a wrapper."""
    if isinstance(model, LatentVariableModel):
        return model
    remedy = "give it a model, such as VAE(...)"
    if any(isinstance(part, LatentVariableModel) for part in model.children()):
        remedy = "give it the model itself, without a wrapper (Speed(compile=True) compiles)"
    raise TypeError(f"{owner} expects a VAE, got a {type(model).__name__}: {remedy}")
