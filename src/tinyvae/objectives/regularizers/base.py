"""Base classes of regularizers, which compute a term of the loss from the output of a pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from tinyvae.core.module_state import evaluating
from tinyvae.core.objective import Batch, Direction, Objective, ObjectiveOutput
from tinyvae.core.random import forked_rng
from tinyvae.distributions import Distribution
from tinyvae.models.base import DecoderModel
from tinyvae.models.output import LatentTerm, LatentVariableModel, VAEOutput
from tinyvae.objectives.base import VariationalBound, bound_or_not
from tinyvae.objectives.checks import describe_large_scale
from tinyvae.objectives.estimators import run_eagerly
from tinyvae.schedules import Schedule, ScheduledWeight, scheduled_values


@dataclass(frozen=True)
class RegularizerOutput:
    """Loss and metrics of a regularizer.

    Attributes:
        loss: Term that is added to the model's loss, ``()``.
        metrics: Detached scalars to report. The name of a metric that is no mean over examples
            starts with "batch".
        adversary: Loss of the regularizer's own parameters, if it has any.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    adversary: Tensor | None = None


class Regularizer(nn.Module, ABC):
    """Term that can be added to any bound: ``ELBO() + MMDRegularizer(10.0)``.

    Args:
        weight: Factor of the term, a number or a :class:`~tinyvae.schedules.Schedule`.
        latent: Name of the latent on which it acts. None selects the only latent.

    Attributes:
        group: Name of the group of its own parameters; None if it has no parameters.
        couples_batch: True if it is not a mean over examples.
        needs_inner_autograd: True if it computes gradients itself.
    """

    group: str | None = None
    couples_batch: bool = True
    needs_inner_autograd: bool = False

    def __init__(self, weight: float | Schedule, *, latent: str | None = None) -> None:
        super().__init__()
        self.weight = ScheduledWeight(weight)
        self.latent = latent

    @abstractmethod
    def forward(self, model: Any, batch: Any, output: VAEOutput) -> RegularizerOutput:
        """Return loss and metrics from the output of a pass.

        A subclass may name the types of model and :class:`~tinyvae.Batch` that it needs.
        """

    def term(self, output: VAEOutput) -> LatentTerm:
        """Return the latent on which it acts."""
        terms = {term.name: term for term in output.latents}
        if self.latent is None and len(terms) == 1:
            return output.latents[0]
        if self.latent not in terms:
            raise ValueError(
                f"{type(self).__name__} expects latent= one of {list(terms)}, the latents of the "
                f"model, got {self.latent!r}"
            )
        return terms[self.latent]

    def reparameterized_term(self, output: VAEOutput) -> LatentTerm:
        """Return the latent on which it acts. Raise if its samples carry no gradients."""
        term = self.term(output)
        if not term.posterior.has_rsample:
            raise ValueError(
                f"{type(self).__name__} expects a reparameterized posterior, got {term.posterior} "
                f"of latent {term.name!r}, whose samples carry no gradients: use another encoder"
            )
        return term

    def weighted(self, value: Tensor) -> Tensor:
        """Return a 0-d value times the weight."""
        return self.weight.type_as(value) * value

    def reported(self, **values: Tensor) -> dict[str, Tensor]:
        """Return detached metrics. Their names start with that of the latent if it was chosen."""
        prefix = "" if self.latent is None else f"{self.latent}_"
        return {f"{prefix}{name}": value.detach() for name, value in values.items()}

    def validated(self, model: LatentVariableModel, batch: Batch, output: VAEOutput) -> list[str]:
        """Return the names of the metrics. Raise if the regularizer cannot be computed.

        Args:
            model: The model.
            batch: The first two examples.
            output: Output of the model, at the centers of the posteriors instead of samples.
        """
        result: RegularizerOutput = self(model, batch, output)
        for loss in (result.loss, result.adversary):
            if loss is not None and not torch.isfinite(loss):
                advice = describe_large_scale(model, batch) or (
                    f"check the latents {[term.posterior for term in output.latents]}, the data "
                    f"and the mean of {output.likelihood}"
                )
                raise ValueError(
                    f"{self} expects a finite loss of the first two examples, got {loss.item()}: "
                    f"{advice}"
                )
        return list(result.metrics)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of its own group."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def __radd__(self, objective: VariationalBound | RegularizedObjective) -> RegularizedObjective:
        if isinstance(objective, RegularizedObjective):
            return RegularizedObjective(objective.bound, (*objective.terms, self))
        if isinstance(objective, VariationalBound):
            return RegularizedObjective(objective, (self,))
        return NotImplemented

    def __repr__(self) -> str:
        weights = {n: w for n, w in self.named_children() if isinstance(w, ScheduledWeight)}
        first = weights.pop("weight")
        options = "".join(f", {name}={weight}" for name, weight in weights.items())
        return f"{type(self).__name__}({first}{options})"


def posterior_given_data(owner: str, term: LatentTerm) -> Distribution:
    """Return the posterior q(z given x) of a latent. Raise if it depends on other latents."""
    if len(term.posterior.batch_shape) != 1:
        raise ValueError(
            f"{owner} expects a posterior given the data only, got that of latent {term.name!r}, "
            "which is given other latents, too: choose the layer that is sampled first"
        )
    return term.posterior


def prior_samples(owner: str, term: LatentTerm) -> Tensor:
    """Return samples of the prior, in the shape of those of the posterior, ``(K, B, *L)``."""
    num_given = len(term.prior.batch_shape)
    if num_given > 1:
        raise ValueError(
            f"{owner} expects a prior that does not depend on other latents, got that of latent "
            f"{term.name!r}, which is given the layers above: choose the top layer"
        )
    return term.prior.sample(term.z.shape[: 2 - num_given])


def decoder_and_latent(
    owner: Regularizer, model: LatentVariableModel, output: VAEOutput
) -> tuple[DecoderModel, Tensor]:
    """Return the model, and the input of its decoder."""
    if not isinstance(model, DecoderModel) or output.z is None:
        name = type(owner).__name__
        raise TypeError(f"{name} expects a model with a decoder, got a {type(model).__name__}")
    return model, output.z


class RegularizedObjective(Objective):
    """Sum of a bound and regularizers of the same pass, such as ``ELBO() + MMDRegularizer(10.0)``.

    Each regularizer adds to every loss of the bound. A regularizer with its own parameters, such
    as those of a discriminator, has its own parameter group with its own loss.

    Args:
        bound: The bound.
        regularizers: The terms that are added to its losses.

    Example:
        >>> objective = ELBO() + LatentL2Regularizer(0.1) + DIPRegularizer(1.0)
        >>> objective
        ELBO(beta=1, num_samples=1, kl='auto') + LatentL2Regularizer(0.1) + DIPRegularizer(1)
        >>> objective.is_bound(vae)
        False
        >>> sorted(objective(vae, Batch(x)).metrics)
        ['batch_dip', 'elbo_nats', 'kl_nats', 'latent_l2', 'log_likelihood_nats']
    """

    def __init__(self, bound: VariationalBound, regularizers: tuple[Regularizer, ...]) -> None:
        super().__init__()
        for regularizer in regularizers:
            if not isinstance(regularizer, Regularizer):
                raise TypeError(
                    f"{bound} + ... expects a Regularizer such as MMDRegularizer(10.0), got "
                    f"{regularizer!r:.80}"
                )
        groups = [r.group for r in regularizers if r.group is not None]
        if len(set(groups)) < len(groups):
            raise ValueError(
                f"regularizers expect parameter groups of different names, got {groups}: set group="
            )
        self.bound = bound
        self.regularizers = nn.ModuleList(regularizers)

    @property
    def terms(self) -> list[Regularizer]:
        """Regularizers of the sum."""
        return [r for r in self.regularizers if isinstance(r, Regularizer)]

    @property
    def couples_batch(self) -> bool:  # type: ignore[override]
        """True if the loss is not a mean over examples."""
        return self.bound.couples_batch or any(r.couples_batch for r in self.terms)

    @property
    def needs_inner_autograd(self) -> bool:
        """True if a forward pass computes gradients itself."""
        return any(part.needs_inner_autograd for part in (self.bound, *self.terms))

    def forward(self, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        """Return the losses of the bound plus the regularizers, and all metrics."""
        run = self._run
        return run_eagerly(run, model, batch) if self.needs_inner_autograd else run(model, batch)

    def _run(self, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        output, result = self.bound.forward_with_output(model, batch)
        losses, metrics, adversaries = result.losses, result.metrics, {}
        for regularizer in self.terms:
            penalty = regularizer(model, batch, output)
            losses = {group: loss + penalty.loss for group, loss in losses.items()}
            weights = {
                f"{type(regularizer).__name__}_{name}": value
                for name, value in scheduled_values(regularizer).items()
            }
            metrics = metrics | penalty.metrics | regularizer.reported(**weights)
            if penalty.adversary is not None and regularizer.group is not None:
                adversaries[regularizer.group] = penalty.adversary
        return ObjectiveOutput(losses | adversaries, metrics, result.shares)

    def parameter_groups(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Return the groups of the bound, and one of each regularizer with parameters."""
        groups = self.bound.parameter_groups(model)
        adversaries = {r.group: r.trained_parameters() for r in self.terms if r.group is not None}
        if shared := groups.keys() & adversaries.keys():
            raise ValueError(
                f"{self} expects parameter groups of different names, got {sorted(shared)} twice: "
                "set group="
            )
        return groups | adversaries

    def direction(self, metric: str) -> Direction | None:
        """Return the direction in which a metric of the bound improves."""
        return self.bound.direction(metric)

    def find_problem(self, model: nn.Module, batch: Batch) -> str | None:
        """Return the message of the bound."""
        return self.bound.find_problem(model, batch)

    def check(self, model: nn.Module, batch: Batch) -> str:
        """Check bound and regularizers on the first two examples. Return what is optimized."""
        output = self.bound.validated(model, batch)
        coupling = [type(r).__name__ for r in self.terms if r.couples_batch]
        if batch.weight is not None and coupling:
            raise ValueError(
                f"{coupling[0]} expects batches without weights, because it compares the examples "
                "of a batch with each other: leave the weights out, or draw the examples by them"
            )
        names: list[str] = []
        with evaluating(self, model), torch.no_grad(), forked_rng(batch.x.device):
            for regularizer in self.terms:
                names += regularizer.validated(
                    cast("LatentVariableModel", model), batch.first(2), output
                )
        if len(set(names)) < len(names):
            raise ValueError(
                f"{self} expects regularizers with metrics of different names, got {names}"
            )
        added = " + ".join(repr(r) for r in self.terms)
        return f"{self.bound.describe(output)} + {added}: {bound_or_not(False)}"

    def __repr__(self) -> str:
        return " + ".join(map(repr, (self.bound, *self.terms)))
