"""What bounds share: one pass, what is reported of it, and what is added to it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from tinyvae.core.module_state import evaluating, preserved_buffers, preserved_modes
from tinyvae.core.objective import Batch, Objective, ObjectiveOutput
from tinyvae.core.random import forked_rng
from tinyvae.models.output import LatentVariableModel, VAEOutput
from tinyvae.objectives.estimators import Baseline, Estimator, terms_without_rsample
from tinyvae.objectives.regularizers.base import Regularizer

Result = TypeVar("Result")
GRADIENTS = {"pathwise": "", "stl": ", STL gradient", "dreg": ", DReG gradient"}


class VariationalBound(Objective):
    """A function of the terms of one pass, to which regularizers are added by ``+``.

    Args:
        num_samples: Draws :math:`K` per example.
        estimator: Of the gradient in reparameterized draws: ``"pathwise"``, ``"stl"`` or
            ``"dreg"``, see :mod:`~tinyvae.objectives.estimators`.
        baseline: Of the gradient in other draws: ``"vimco"`` or ``"leave_one_out"``.
    """

    def __init__(self, num_samples: int, *, estimator: Estimator, baseline: Baseline) -> None:
        super().__init__()
        name = type(self).__name__
        if estimator not in get_args(Estimator):
            raise ValueError(
                f"{name} expects estimator 'pathwise', 'stl' or 'dreg', got {estimator!r}"
            )
        if baseline not in get_args(Baseline):
            raise ValueError(
                f"{name} expects baseline 'vimco' or 'leave_one_out', got {baseline!r}"
            )
        self.num_samples = self.count("num_samples", num_samples)
        self.estimator = estimator
        self.baseline = baseline

    def count(self, name: str, value: int) -> int:
        """Return a number of at least 1, or raise."""
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{type(self).__name__} expects {name} >= 1, got {value!r}")
        return value

    def estimation(self) -> str:
        """Estimator and baseline where they are not the default ones, for ``repr``."""
        chosen = {"estimator": (self.estimator, "pathwise"), "baseline": (self.baseline, "vimco")}
        return "".join(f", {n}={own!r}" for n, (own, usual) in chosen.items() if own != usual)

    @property
    def differentiates(self) -> bool:
        """Whether a pass asks for gradients by itself."""
        return False

    @property
    def num_draws(self) -> int:
        """Latents drawn per example."""
        return self.num_samples

    @abstractmethod
    def score(
        self, model: LatentVariableModel, batch: Batch, record: VAEOutput
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses by parameter group, and metrics, of a pass."""

    @abstractmethod
    def per_example(self, record: VAEOutput) -> dict[str, Tensor]:
        """Every term of a pass, ``(K, B)`` or ``(B,)`` each, nats."""

    @abstractmethod
    def words(self, record: VAEOutput) -> str:
        """What is optimized, in a few words."""

    @abstractmethod
    def is_plain(self) -> bool:
        """Whether it has no weight and no constraint, and so of densities is a lower bound."""

    def draw(self, model: nn.Module, batch: Batch) -> VAEOutput:
        """Record of one pass."""
        record: VAEOutput = model(
            batch.x, batch.context, mask=batch.mask, num_samples=self.num_draws
        )
        return record

    def scored(self, model: LatentVariableModel, batch: Batch, record: VAEOutput) -> VAEOutput:
        """Record of a pass, its draws scored as the estimator has it."""
        if self.estimator == "pathwise" or not torch.is_grad_enabled():
            return record
        return model.freeze_posterior(record, batch.x, batch.context, mask=batch.mask)

    def run(self, model: nn.Module, batch: Batch) -> tuple[VAEOutput, ObjectiveOutput]:
        """Return the record of one pass, and what the bound makes of it."""
        record = self.draw(model, batch)
        losses, metrics = self.score(cast("LatentVariableModel", model), batch, record)
        metrics |= self.scheduled()
        for name, value in record.losses().items():
            metrics[name] = value.mean().detach()
            losses = {group: loss + value.mean() for group, loss in losses.items()}
        return record, ObjectiveOutput(losses, metrics | record.metrics())

    def forward(self, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        """Compute losses and every term of one pass."""
        _, output = (
            eagerly(self.run, model, batch) if self.differentiates else self.run(model, batch)
        )
        return output

    def terms(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Every term of one pass, of each example and draw, ``(K, B)`` or ``(B,)``, nats."""
        with torch.no_grad():
            return self.per_example(self.draw(model, batch))

    def check(self, model: nn.Module, batch: Batch) -> str:
        """Check shapes and support; say what is optimized and whether this is a bound."""
        record = self.checked(model, batch)
        return f"{self.words(record)}: {bound_or_not(self.is_bound(model) and record.is_density)}"

    def checked(self, model: nn.Module, batch: Batch) -> VAEOutput:
        """Record of the first two examples, if model and batch fit together."""
        if not isinstance(model, LatentVariableModel):
            raise TypeError(f"{type(self).__name__} expects a VAE, got a {type(model).__name__}")
        record = model.check(batch.x, batch.context, mask=batch.mask)
        self.check_latents(record)
        if self.estimator != "pathwise":
            self._check_second_pass(model, batch.first(2))
        return record

    def _check_second_pass(self, model: LatentVariableModel, batch: Batch) -> None:
        """Raise unless draws are scored as they were drawn, in training mode too."""
        scopes = (preserved_modes(model), preserved_buffers(model), forked_rng(batch.x.device))
        with ExitStack() as stack, torch.no_grad():
            for scope in scopes:
                stack.enter_context(scope)
            model.train()
            record = self.draw(model, batch)
            again = model.freeze_posterior(record, batch.x, batch.context, mask=batch.mask)
            pairs = zip(record.latents, again.latents, strict=True)
            scores = [(term.name, term.log_q, other.log_q) for term, other in pairs]
        for name, first, second in scores:
            if not torch.allclose(first, second, rtol=0.01, atol=0.01):
                raise ValueError(
                    f"estimator {self.estimator!r} scores draws in a second pass of the encoder, "
                    f"which in training gives latent {name!r} another posterior, as dropout does: "
                    "use estimator='pathwise'"
                )

    def check_latents(self, record: VAEOutput) -> None:
        """Raise unless the gradient of every latent can be estimated."""
        names = [term.name for term in record.latents]
        if len(set(names)) < len(names):
            raise ValueError(f"expected latents of different names, got {names}")
        if (terms := terms_without_rsample(record)) and self.num_samples < 2:
            raise ValueError(
                f"{terms[0].posterior} of latent {terms[0].name!r} has no reparameterized draws: "
                f"its gradient compares draws of an example, {type(self).__name__} with "
                "num_samples >= 2"
            )
        for term in record.latents:
            q = term.posterior
            if (
                self.estimator != "pathwise"
                and q.has_rsample
                and (q.is_discrete or not q.is_density)
            ):
                raise ValueError(
                    f"estimator {self.estimator!r} is for densities, got {q} of latent "
                    f"{term.name!r}: use estimator='pathwise'"
                )

    def is_bound(self, model: nn.Module) -> bool:
        """Whether minus the loss is, as it stands and in expectation, a bound on log p(x)."""
        if not isinstance(model, LatentVariableModel) or model.couples_batch:
            return False
        return self.is_plain() and model.is_density

    def __add__(self, regularizer: Regularizer) -> RegularizedObjective:
        return RegularizedObjective(self, (regularizer,))


def eagerly(run: Callable[[nn.Module, Batch], Result], model: nn.Module, batch: Batch) -> Result:
    """Run outside of ``torch.compile``, whose graphs hide a part of the way to the draws."""
    if model._compiled_call_impl is not None:
        raise ValueError(
            "an objective that differentiates within a pass, as estimator='dreg' and "
            "GradientPenaltyRegularizer do, cannot look into a compiled model: compile its encoder and decoder"
        )
    return (
        torch.compiler.disable(run)(model, batch)
        if torch.compiler.is_compiling()
        else run(model, batch)
    )


def bound_or_not(is_bound: bool) -> str:
    """Whether the loss is a bound, in words."""
    return "a lower bound on log p(x)" if is_bound else "not a bound on log p(x)"


class RegularizedObjective(Objective):
    """A bound and regularizers that read the same pass, as ``ELBO() + MMDRegularizer(10.0)`` makes it.

    Each regularizer adds to every loss of the bound; one with parameters of its own, such as a
    discriminator, has a loss of its own beside, that of its parameter group.

    Args:
        bound: The bound.
        regularizers: What is added to its loss.

    Example:
        >>> objective = ELBO() + LatentL2Regularizer(0.1) + DIPRegularizer(1.0)
        >>> objective
        ELBO(beta=1, num_samples=1, kl='auto') + LatentL2Regularizer(0.1) + DIPRegularizer(1)
        >>> objective.is_bound(vae)
        False
        >>> sorted(objective(vae, Batch(x)).metrics)
        ['dip', 'elbo_nats', 'kl_nats', 'latent_l2', 'log_likelihood_nats']
    """

    def __init__(self, bound: VariationalBound, regularizers: tuple[Regularizer, ...]) -> None:
        super().__init__()
        for regularizer in regularizers:
            if not isinstance(regularizer, Regularizer):
                raise TypeError(
                    f"expected a Regularizer such as MMDRegularizer(10.0) to add to {bound}, got "
                    f"{regularizer!r:.80}"
                )
        groups = [r.group for r in regularizers if r.group is not None]
        if len(set(groups)) < len(groups):
            raise ValueError(
                f"expected parameter groups of different names, got {groups}: give group="
            )
        self.bound = bound
        self.regularizers = nn.ModuleList(regularizers)

    def _regularizers(self) -> list[Regularizer]:
        return [r for r in self.regularizers if isinstance(r, Regularizer)]

    @property
    def couples_batch(self) -> bool:  # type: ignore[override]
        """Whether the loss is something other than a mean over examples."""
        return self.bound.couples_batch or any(r.couples_batch for r in self._regularizers())

    @property
    def differentiates(self) -> bool:
        """Whether a pass asks for gradients by itself."""
        return self.bound.differentiates or any(r.differentiates for r in self._regularizers())

    def forward(self, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        """Compute the bound's losses and what the regularizers add, of one pass."""
        return eagerly(self.run, model, batch) if self.differentiates else self.run(model, batch)

    def run(self, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        """Compute it as it stands, within ``torch.compile`` too."""
        record, output = self.bound.run(model, batch)
        losses, metrics, adversaries = output.losses, output.metrics, {}
        for regularizer in self._regularizers():
            penalty = regularizer(model, batch, record)
            losses = {group: loss + penalty.loss for group, loss in losses.items()}
            scheduled = {
                f"{type(regularizer).__name__}_{n}": v for n, v in regularizer.scheduled().items()
            }
            metrics = metrics | penalty.metrics | regularizer.reported(**scheduled)
            if penalty.adversary is not None and regularizer.group is not None:
                adversaries[regularizer.group] = penalty.adversary
        return ObjectiveOutput(losses | adversaries, metrics)

    def parameter_groups(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """The bound's groups, and one of every regularizer with parameters."""
        groups = self.bound.parameter_groups(model)
        own = {r.group: r.own_parameters() for r in self._regularizers() if r.group is not None}
        if taken := groups.keys() & own.keys():
            raise ValueError(
                f"{self} has two parameter groups {sorted(taken)}: give another group="
            )
        return groups | own

    def check(self, model: nn.Module, batch: Batch) -> str:
        """Check bound and regularizers on the first two examples; say what is optimized."""
        record = self.bound.checked(model, batch)
        names: list[str] = []
        with evaluating(self, model), torch.no_grad(), forked_rng(batch.x.device):
            for regularizer in self._regularizers():
                names += regularizer.checked(
                    cast("LatentVariableModel", model), batch.first(2), record
                )
        if len(set(names)) < len(names):
            raise ValueError(f"expected regularizers with metrics of different names, got {names}")
        added = " + ".join(repr(r) for r in self._regularizers())
        return f"{self.bound.words(record)} + {added}: {bound_or_not(False)}"

    def __add__(self, regularizer: Regularizer) -> RegularizedObjective:
        return RegularizedObjective(self.bound, (*self._regularizers(), regularizer))

    def __repr__(self) -> str:
        return " + ".join(map(repr, (self.bound, *self._regularizers())))
