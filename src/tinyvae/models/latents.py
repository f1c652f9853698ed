"""Latents of a model: rules for drawing them, and the densities that score them."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from tinyvae.core.module_state import frozen
from tinyvae.distributions import Distribution, ReshapedBatch, Wrapper
from tinyvae.encoders import Encoder
from tinyvae.models.checks import check_posterior, require_distribution
from tinyvae.models.output import Draw, LatentTerm


def draw_point_estimate(_: torch.Size, posterior: Distribution) -> tuple[Tensor, None]:
    """Return the posterior's point estimate, one per example, ``(1, B, *L)``."""
    value = posterior.log_form().point_estimate()
    return value if len(posterior.batch_shape) == 2 else value.unsqueeze(0), None


def recording(num_samples: int, points: list[Tensor]) -> Draw:
    """Return the rule that draws ``num_samples`` points per example and appends them to a list."""

    def draw(_: torch.Size, posterior: Distribution) -> tuple[Tensor, Tensor | None]:
        shape, log_q = (num_samples,)[len(posterior.batch_shape) - 1 :], None
        form = posterior.log_form()
        if form.yields_log_prob:
            point, log_q = form.sample_and_log_prob(shape)
        else:
            point = form.sample(shape)
        points.append(point)
        return point, log_q

    return draw


def checked(draw: Draw, batch_size: int) -> Draw:
    """Return the rule with a check that each posterior has the right type and shapes."""

    def checked_draw(
        latent_shape: torch.Size, posterior: Distribution
    ) -> tuple[Tensor, Tensor | None]:
        check_posterior(posterior, latent_shape, batch_size)
        return draw(latent_shape, posterior)

    return checked_draw


def sample_prior(prior: Distribution, num_samples: int, context: Tensor | None) -> Tensor:
    """Draw ``(n, *L)``, or ``(n, B, *L)`` with a context, even if the prior does not read it."""
    batch_shape = () if context is None else (context.shape[0],)
    missing = batch_shape[len(prior.batch_shape) :]
    return prior.sample((num_samples, *missing))


def conditional_density(encoder: Encoder, z: Tensor, context: Tensor | None) -> ReshapedBatch:
    """Return the density, of batch shape ``(K, B)``, of an encoder of ``z`` ``(K, B, *L)``."""
    rows = z.flatten(0, 1)  # (K * B, *L)
    row_context = None if context is None else repeat_rows(context, rows.shape[0])
    density = encoder(rows, row_context)
    require_distribution(density, len(encoder.latent_shape))
    return ReshapedBatch(density, z.shape[:2])


def repeat_rows(x: Tensor, num_rows: int) -> Tensor:
    """Repeat ``x`` ``(B, ...)`` for the rows of ``(K, B)`` latents, ``(K * B, ...)``."""
    return x.repeat(num_rows // x.shape[0], *[1] * (x.dim() - 1))


class FrozenPosterior(Wrapper):
    """A posterior that is scored without gradients in a model's weights.

    The weights are frozen during each call, because some posteriors, such as those of flows, read
    them only then.
    """

    def __init__(self, base: Distribution, model: nn.Module) -> None:
        super().__init__(base)
        self.model = model

    def log_form(self) -> Distribution:
        """Return the log form of the base, scored without gradients in the weights."""
        form = self.base.log_form()
        return self if form is self.base else FrozenPosterior(form, self.model)

    def value_of(self, point: Tensor) -> Tensor:
        """Return the values of points of the base."""
        return self.base.value_of(point)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density or mass, nats, with gradients in ``value`` only."""
        with frozen(self.model):
            return self.base.log_prob(value)

    def elementwise_log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each element, nats, with gradients in ``value`` only."""
        with frozen(self.model):
            return self.base.elementwise_log_prob(value)


def frozen_terms(
    terms: Sequence[LatentTerm], scored: Sequence[LatentTerm], model: nn.Module
) -> tuple[LatentTerm, ...]:
    """Return terms that are scored without gradients in a model's weights.

    ``scored`` are terms of the same draws in a second pass with frozen weights.
    """
    return tuple(
        # Other posteriors stay, because their codebook may have moved since the draw.
        replace(term, posterior=FrozenPosterior(second.posterior, model), drawn_log_q=None)
        if term.posterior.depends_on_parameters and term.posterior.has_rsample
        else term
        for term, second in zip(terms, scored, strict=True)
    )
