r"""Bounds on the evidence, as functions of the log weights of several samples.

.. math:: \ell_k = \log \frac{p(x, z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x), \qquad
    \mathcal{L} = \mathbb{E}\, F(\ell_1, \dots, \ell_K) \le \log p(x)
"""

import math
from abc import abstractmethod
from typing import cast, get_args

import torch
from torch import Tensor, nn

from tinyvae.core.module_state import evaluating
from tinyvae.core.objective import BOUND, Batch, Direction, Objective, ObjectiveOutput
from tinyvae.models.advice import advise
from tinyvae.models.output import LatentVariableModel, VAEOutput, require_model
from tinyvae.objectives.checks import (
    check_gradients,
    check_second_pass,
    check_weights,
    describe_large_scale,
)
from tinyvae.objectives.estimators import (
    Baseline,
    Estimator,
    LogWeights,
    path_surrogate,
    run_eagerly,
    score_surrogate,
)
from tinyvae.schedules import LossWeight, Schedule, ScheduledWeight, scheduled_values

GRADIENTS = {"pathwise": "", "stl": ", STL gradient", "dreg": ", DReG gradient"}


class VariationalBound(Objective):
    r"""Lower bound on log p(x) that is a function :math:`F` of the log weights of one pass.

    A subclass implements :meth:`value`, which is :math:`F`, and sets ``metric``. Add regularizers
    with ``+``. The metrics are the bound, and the ELBO of the same samples with its terms.

    Args:
        num_samples: Samples :math:`K` per example.
        beta: Weight of log q - log p in the log weights, a number or a
            :class:`~tinyvae.schedules.Schedule`. Only 1 gives a bound.
        estimator: Estimator of the gradient through reparameterized samples: ``"pathwise"``,
            ``"stl"`` (biased unless the bound is linear in the log weights) or ``"dreg"``
            (unbiased). See :mod:`tinyvae.objectives`.
        baseline: Baseline of the gradient of other samples: ``"vimco"`` or ``"leave_one_out"``.

    Attributes:
        metric: Name of the bound in metrics, without its unit.
        num_bounds: Number :math:`M` of bounds, of K samples each, that are averaged.

    Raises:
        ValueError: If an argument has another value.

    Example:
        >>> class MedianBound(VariationalBound):
        ...     metric = "median"
        ...
        ...     def value(self, log_weight):  # (K, ..., B) to (..., B)
        ...         return log_weight.median(0).values
        >>> bool(MedianBound(5)(vae, Batch(x)).metrics["median_nats"].isfinite())
        True
    """

    metric: str

    def __init__(
        self,
        num_samples: int,
        *,
        beta: float | Schedule = 1.0,
        estimator: Estimator = "pathwise",
        baseline: Baseline = "vimco",
    ) -> None:
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
        self.num_samples = self.require_positive("num_samples", num_samples)
        self.num_bounds = 1
        self.beta: LossWeight = ScheduledWeight(beta)
        self.estimator = estimator
        self.baseline = baseline

    @abstractmethod
    def value(self, log_weight: Tensor) -> Tensor:
        """Return the bound ``(..., B)`` from log weights ``(K, ..., B)``, for any number ``K``."""

    def derivatives(self, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return first and second derivatives of :meth:`value` in each log weight.

        DReG needs them. This default differentiates K + 1 times; a closed form is faster.

        Shape:
            log_weight and both derivatives: ``(K, ..., B)``.
        """
        with torch.enable_grad():
            log_weight = log_weight.detach().requires_grad_()
            value = self.value(log_weight).sum()
            (slope,) = torch.autograd.grad(value, log_weight, create_graph=True)
            if not slope.requires_grad:  # the bound is linear
                return slope, torch.zeros_like(slope)
            curvature = [
                torch.autograd.grad(slope[k].sum(), log_weight, retain_graph=True)[0][k]
                for k in range(len(log_weight))
            ]
        return slope.detach(), torch.stack(curvature)

    def options(self) -> dict[str, str]:
        """Return the arguments that only this bound has, formatted."""
        return {}

    def is_unmodified(self) -> bool:
        """Return True if no weight or constraint changes the bound into another quantity."""
        return self.beta.is_constant(1.0)

    @property
    def num_draws(self) -> int:
        """Number of latents that are sampled per example."""
        return self.num_samples * self.num_bounds

    @property
    def needs_inner_autograd(self) -> bool:
        """True if a forward pass computes gradients itself."""
        return self.estimator == "dreg"

    def forward(self, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        """Return losses and metrics of one pass."""
        run = self.forward_with_output
        _, output = (
            run_eagerly(run, model, batch) if self.needs_inner_autograd else run(model, batch)
        )
        return output

    def forward_with_output(
        self, model: nn.Module, batch: Batch
    ) -> tuple[VAEOutput, ObjectiveOutput]:
        """Return the model's output, and its losses and metrics."""
        output = self.sample(model, batch)
        losses, metrics = self.losses_and_metrics(cast("LatentVariableModel", model), batch, output)
        metrics |= scheduled_values(self)
        for name, value in output.losses().items():
            mean = batch.mean(value)
            metrics[name] = mean.detach()
            losses = {group: loss + mean for group, loss in losses.items()}
        return output, ObjectiveOutput(losses, metrics | output.metrics(), output.shares())

    def terms(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return every term of one pass for each example, ``(K, B)`` or ``(B,)``, nats.

        The pass is made in evaluation mode. It draws from torch's default generator.
        """
        with torch.no_grad(), evaluating(self, model):
            return self.per_example(self.sample(model, batch))

    def sample(self, model: nn.Module, batch: Batch) -> VAEOutput:
        """Return the output of one pass of the model."""
        if not isinstance(batch, Batch):
            raise TypeError(
                f"{type(self).__name__} expects a Batch, got a {type(batch).__name__}: give "
                "Batch(x)"
            )
        output: VAEOutput = model(
            batch.x, batch.context, mask=batch.mask, num_samples=self.num_draws
        )
        return output

    def rescored(self, model: LatentVariableModel, batch: Batch, output: VAEOutput) -> VAEOutput:
        """Return the output with densities for the estimator.

        STL and DReG need log q without gradients in its parameters.
        """
        if self.estimator == "pathwise" or not torch.is_grad_enabled():
            return output
        return model.freeze_posterior(output, batch.x, batch.context, mask=batch.mask)

    def losses_and_metrics(
        self, model: LatentVariableModel, batch: Batch, output: VAEOutput
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the losses by parameter group, and the metrics, of a pass."""
        output = self.rescored(model, batch, output)
        weights = LogWeights.of(output)
        terms = {n: batch.mean(t).detach() for n, t in self._terms(output, weights).items()}
        terms["elbo"] = terms.pop("log_weight")
        metrics = {f"{name}_nats": term for name, term in terms.items()}
        return self.losses(batch, weights, output), metrics

    def per_example(self, output: VAEOutput) -> dict[str, Tensor]:
        """Return log weights and their terms, ``(K, B)``, and the bounds, ``(B,)``."""
        return self._terms(output, LogWeights.of(output))

    def _terms(self, output: VAEOutput, weights: LogWeights) -> dict[str, Tensor]:
        kl = weights.kl
        log_weight = weights.log_px - kl
        terms = {"log_likelihood": weights.log_px, "kl": kl, "log_weight": log_weight}
        if len(weights.kls) > 1:
            names = (f"kl_{term.name}" for term in output.latents)
            terms |= dict(zip(names, weights.kls, strict=True))
        return terms | self.bounds(log_weight.detach())

    def bounds(self, log_weight: Tensor) -> dict[str, Tensor]:
        """Return the bounds to report, ``(B,)``, of log weights ``(M K, B)``."""
        return {self.metric: self.mean_value(log_weight, self.num_bounds)}

    def mean_value(self, log_weight: Tensor, num_bounds: int) -> Tensor:
        """Return the mean ``(B,)`` of ``num_bounds`` bounds."""
        log_weight = _grouped(log_weight, num_bounds)
        value = self.value(log_weight)
        if not torch.is_grad_enabled():  # zero times the logarithm of a zero weight is NaN
            value = value.masked_fill(value.isnan() & ~log_weight.isnan().any(0), -math.inf)
        return value.mean(0)

    def losses(self, batch: Batch, weights: LogWeights, output: VAEOutput) -> dict[str, Tensor]:
        """Return the losses by parameter group."""
        return {"model": self.loss(batch, weights, output, self.num_bounds)}

    def loss(self, batch: Batch, weights: LogWeights, output: VAEOutput, num_bounds: int) -> Tensor:
        """Return minus the mean of ``num_bounds`` bounds, with the estimator's gradient."""
        beta = self.beta.type_as(weights.log_px)
        log_weight = weights.log_px - beta * weights.kl
        if not torch.is_grad_enabled():
            return -batch.mean(self.mean_value(log_weight, num_bounds))
        log_weight = _grouped(log_weight, num_bounds)  # (K, M, B)
        log_q = None if weights.log_q is None else _grouped(weights.log_q, num_bounds)
        loss = -batch.mean(self.value(log_weight))
        surrogate = torch.zeros_like(loss)
        if log_q is not None:
            score_term = score_surrogate(self.value, log_weight, log_q, self.baseline)
            surrogate = surrogate + batch.mean(score_term)
        if self.estimator == "dreg":
            score = self._reparameterized_score(log_weight, log_q)
            surrogate = surrogate + path_surrogate(beta * batch.mean(score), output)
        # The surrogate adds a gradient and no value.
        return loss + (surrogate.detach() - surrogate)

    def _reparameterized_score(self, log_weight: Tensor, log_q: Tensor | None) -> Tensor:
        """Return ``(M, B)`` whose gradient through the samples is minus the score term."""
        slope, curvature = self.derivatives(log_weight.detach())
        score = -curvature * log_weight
        if log_q is not None:  # these samples may depend on reparameterized ones
            score = score - slope * log_q
        return score.sum(0)

    def check(self, model: nn.Module, batch: Batch) -> str:
        """Check shapes and support. Return a description that says if the loss is a bound."""
        output = self.validated(model, batch)
        is_bound = self.is_bound(model) and output.is_density
        with evaluating(model):
            becomes_bound = not is_bound and self.is_bound(model) and output.is_density
        mode = " in training mode" if becomes_bound else ""
        return f"{self.describe(output)}: {bound_or_not(is_bound)}{mode}"

    def find_problem(self, model: nn.Module, batch: Batch) -> str | None:
        """Return a message if the scale of the data makes training diverge, None if it does not."""
        return describe_large_scale(model, batch)

    def validated(self, model: nn.Module, batch: Batch) -> VAEOutput:
        """Return the output of the first two examples, or raise if model and batch do not fit."""
        model = require_model(type(self).__name__, model)
        output = model.check(batch.x, batch.context, mask=batch.mask)
        check_weights(type(self).__name__, model, batch, output)
        advise(model, batch.x, batch.context, output)
        with evaluating(self, model):
            self.check_latents(output)
        if self.estimator != "pathwise":
            check_second_pass(model, batch.first(2), self.num_draws, self.estimator)
        return output

    def check_latents(self, output: VAEOutput) -> None:
        """Raise unless the gradient of every latent can be estimated."""
        check_gradients(type(self).__name__, output, self.num_samples, self.estimator)

    def direction(self, metric: str) -> Direction | None:
        """Return ``"max"`` for the bound, unless a schedule other than that of beta changes it."""
        is_fixed = scheduled_values(self).keys() <= {"beta"}
        is_bound = is_fixed and metric == f"{self.metric}_nats"
        return "max" if is_bound else super().direction(metric)

    def is_bound(self, model: nn.Module) -> bool:
        """Return True if the expectation of minus the loss is a lower bound on log p(x).

        It holds for the mode, training or evaluation, that the model is in. A decoder with
        batch normalization, for example, is a bound in evaluation mode only.
        """
        if not isinstance(model, LatentVariableModel) or model.couples_batch:
            return False
        return self.is_unmodified() and model.is_density

    def describe(self, output: VAEOutput) -> str:
        """Return a short description of what is optimized."""
        options = "".join(f", {name} {value}" for name, value in self.options().items())
        bounds = "" if self.num_bounds == 1 else f"{self.num_bounds} bounds of "
        samples = "1 draw" if self.num_samples == 1 else f"{self.num_samples} draws"
        beta = "" if self.beta.is_constant(1.0) else f", beta {self.beta}"
        head = f"{type(self).__name__}{options}, {bounds}{samples}{beta}"
        return head + GRADIENTS[self.estimator]

    def __repr__(self) -> str:
        options = {"num_samples": str(self.num_samples), **self.options()}
        if self.num_bounds > 1:
            options["num_bounds"] = str(self.num_bounds)
        if not self.beta.is_constant(1.0):
            options["beta"] = str(self.beta)
        arguments = ", ".join(f"{name}={value}" for name, value in options.items())
        return f"{type(self).__name__}({arguments}{self.repr_options()})"

    def repr_options(self) -> str:
        """Return estimator and baseline for ``repr``, unless they are the default ones."""
        options = {"estimator": (self.estimator, "pathwise"), "baseline": (self.baseline, "vimco")}
        return "".join(f", {n}={v!r}" for n, (v, default) in options.items() if v != default)

    def require_positive(self, name: str, value: int) -> int:
        """Return an integer of at least 1, or raise."""
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{type(self).__name__} expects {name} >= 1, got {value!r}")
        return value


def _grouped(values: Tensor, num_bounds: int) -> Tensor:
    """Reshape samples ``(M K, B)`` to those of each bound, ``(K, M, B)``."""
    return values.reshape(-1, num_bounds, values.shape[-1])


def log_mean_exp(values: Tensor) -> Tensor:
    """Return the logarithm of the mean of exp(values) over the first dimension."""
    return torch.logsumexp(values, 0) - math.log(len(values))


def bound_or_not(is_bound: bool) -> str:
    """Return the end of a description, which says if the loss is a bound."""
    return BOUND if is_bound else "not a bound on log p(x)"
