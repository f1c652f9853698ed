r"""Evidence lower bound, and the objectives that reweight its two terms.

.. math:: \log p(x) \ge \mathbb{E}_{q(z \mid x)} [\log p(x \mid z)]
    - \mathrm{KL}(q(z \mid x) \,\|\, p(z))
"""

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.objective import Batch
from tinyvae.distributions.base import sum_last
from tinyvae.models.output import KLEstimator, LatentTerm, LatentVariableModel, VAEOutput
from tinyvae.objectives.base import GRADIENTS, VariationalBound
from tinyvae.objectives.constraints import LagrangeMultiplier
from tinyvae.objectives.estimators import (
    Baseline,
    Estimator,
    score_surrogate,
    terms_without_rsample,
)
from tinyvae.schedules import LossWeight, Schedule, ScheduledWeight

Group: TypeAlias = Literal["dimension", "channel", "layer"] | int
Weight: TypeAlias = float | Schedule
PerLatent: TypeAlias = Weight | Mapping[str, Weight]


@suggest_keywords
class ELBO(VariationalBound):
    r"""Evidence lower bound, with a weight, a capacity or free bits for its KL term.

    .. math:: \mathcal{L} = \frac1K \sum_k \log p(x \mid z_k)
        - \beta\, \mathrm{KL}(q(z \mid x) \,\|\, p(z)), \qquad z_k \sim q(z \mid x)

    The loss is the mean of :math:`-\mathcal{L}` over the batch. With a ``capacity`` C the KL term
    is :math:`\beta\, |\mathrm{KL} - C|`. With ``free_bits`` :math:`\lambda` it is
    :math:`\beta \sum_g \max(\lambda, \mathrm{KL}_g)` over groups of dimensions. Both use means over
    the batch. The gradient at a kink is the mean of those of both sides. The metrics do not depend
    on the weights: ``elbo_nats``, the bound with :math:`\beta = 1`, its two terms
    ``log_likelihood_nats`` and ``kl_nats``, and the KL of each of several latents. Losses of a
    posterior, such as those of a codebook, are added to the loss and to the metrics.

    Args:
        beta: Weight of the KL term, a number or a :class:`~tinyvae.schedules.Schedule`, or one for
            each latent by name. Only 1 gives a bound. A
            :class:`~tinyvae.objectives.LagrangeMultiplier` limits the KL to a rate.
        num_samples: Number :math:`K \ge 1` of samples per example.
        kl: ``"analytic"``, the closed form; ``"sample"``, log q - log p of the samples; ``"auto"``,
            the closed form if there is one. With STL and DReG, training uses the samples.
        capacity: Target :math:`C` of the KL term in nats, or one for each latent by name.
        free_bits: Nats :math:`\lambda` of each group that cost nothing.
        free_bits_per: Groups of free bits: each ``"dimension"``, each ``"channel"`` of latents
            ``(C, H, W)``, each ``"layer"`` (all dimensions of a latent), or a number of successive
            dimensions.
        likelihood_weight: Weight of the first term. A
            :class:`~tinyvae.objectives.LagrangeMultiplier` demands a log-likelihood.
        estimator: ``"pathwise"``, or ``"stl"``, whose gradient vanishes at the exact posterior;
            ``"dreg"`` is the same here.
        baseline: ``"vimco"`` or ``"leave_one_out"``, which are the same here, for latents without
            reparameterized samples. Their gradient needs several samples.

    Shape:
        x: ``(B, *E)``; loss and metrics: ``()``, nats per datum.

    Raises:
        ValueError: If an argument has another value, or if two of them exclude each other.

    References:
        Kingma, Welling (2014). Auto-Encoding Variational Bayes. arXiv:1312.6114, eq. 3 and 10.
        Higgins et al. (2017). beta-VAE. ICLR.
        Burgess et al. (2018). Understanding disentangling in beta-VAE. arXiv:1804.03599, eq. 8.
        Kingma et al. (2016). Improving Variational Inference with Inverse Autoregressive Flow.
        arXiv:1606.04934, appendix C.8.

    Example:
        >>> output = ELBO()(vae, Batch(x))
        >>> sorted(output.metrics)
        ['elbo_nats', 'kl_nats', 'log_likelihood_nats']
        >>> bool(output.losses["model"] == -output.metrics["elbo_nats"])
        True
        >>> per_example = ELBO(num_samples=3).terms(vae, Batch(x))
        >>> {name: tuple(values.shape) for name, values in per_example.items()}
        {'log_likelihood': (3, 8), 'kl': (8,), 'elbo': (3, 8)}
    """

    metric = "elbo"

    def __init__(
        self,
        beta: PerLatent | LagrangeMultiplier = 1.0,
        *,
        num_samples: int = 1,
        kl: KLEstimator = "auto",
        capacity: PerLatent | None = None,
        free_bits: Weight | None = None,
        free_bits_per: Group = "dimension",
        likelihood_weight: Weight | LagrangeMultiplier = 1.0,
        estimator: Estimator = "pathwise",
        baseline: Baseline = "vimco",
    ) -> None:
        # Another kind of beta replaces the common one, which stays 1.
        common_beta = 1.0 if isinstance(beta, (Mapping, LagrangeMultiplier)) else beta
        super().__init__(num_samples, beta=common_beta, estimator=estimator, baseline=baseline)
        if isinstance(beta, LagrangeMultiplier):
            self.beta, beta = beta, 1.0
        if kl not in get_args(KLEstimator):
            raise ValueError(f"ELBO expects kl 'auto', 'analytic' or 'sample', got {kl!r}")
        if kl == "analytic" and estimator != "pathwise":
            raise ValueError(
                f"ELBO with estimator {estimator!r} expects kl 'auto' or 'sample', got 'analytic'"
            )
        if estimator != "pathwise" and (capacity, free_bits) != (None, None):
            raise ValueError(
                f"ELBO with a capacity or free bits expects estimator 'pathwise', got "
                f"{estimator!r}, which drops a score whose mean is not zero then"
            )
        if capacity is not None and free_bits is not None:
            raise ValueError("ELBO expects capacity or free_bits, got both")
        if isinstance(beta, Mapping) and capacity is not None and not isinstance(capacity, Mapping):
            raise ValueError(
                f"ELBO with a beta for each latent expects a capacity for each latent, got "
                f"{capacity!r}"
            )
        _check_group(free_bits_per)
        self.kl = kl
        self.free_bits_per = free_bits_per
        self.has_capacity, self.has_free_bits = capacity is not None, free_bits is not None
        self.couples_batch = self.has_capacity or self.has_free_bits
        self._betas = self._per_latent("beta", beta, least=-math.inf)
        self._capacities = self._per_latent("capacity", capacity, least=0.0)
        if capacity is not None and not isinstance(capacity, Mapping):
            self.capacity = _nonnegative("capacity", capacity)
        if free_bits is not None:
            self.free_bits = _nonnegative("free_bits", free_bits)
        self.likelihood_weight: LossWeight = (
            likelihood_weight
            if isinstance(likelihood_weight, LagrangeMultiplier)
            else _nonnegative("likelihood_weight", likelihood_weight)
        )

    def _per_latent(
        self, name: str, weights: PerLatent | None, least: float
    ) -> dict[str, ScheduledWeight]:
        """Register the weight of each latent, such as ``beta_style``, and return them by latent."""
        if not isinstance(weights, Mapping):
            return {}
        by_latent = {
            latent: ScheduledWeight(weight, name=f"ELBO's {name}", least=least)
            for latent, weight in weights.items()
        }
        for latent, weight in by_latent.items():
            self.add_module(f"{name}_{latent}", weight)
        return by_latent

    @property
    def needs_inner_autograd(self) -> bool:
        """False, because DReG of the ELBO is STL."""
        return False

    def value(self, log_weight: Tensor) -> Tensor:
        """Return the mean log weight."""
        return log_weight.mean(0)

    def losses_and_metrics(
        self, model: LatentVariableModel, batch: Batch, output: VAEOutput
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the loss and the metrics of a pass."""
        output = self.rescored(model, batch, output)
        log_likelihood = batch.mean(output.log_px)
        names = [term.name for term in output.latents]
        samples = [self._kl_of_samples(term) for term in output.latents]
        means = [self._mean(batch, kl) for kl in samples]
        kls = [mean.sum() for mean in means] if self.has_free_bits else means
        kl = reduce(torch.add, kls)
        metrics = {
            "elbo_nats": (log_likelihood - kl).detach(),
            "log_likelihood_nats": log_likelihood.detach(),
            "kl_nats": kl.detach(),
        }
        if len(kls) > 1:
            metrics |= {f"kl_{n}_nats": kl.detach() for n, kl in zip(names, kls, strict=True)}
        loss = self._rate(names, means) - self._weighted(log_likelihood)
        if torch.is_grad_enabled() and (terms := terms_without_rsample(output)):
            log_weight = self._linearized(output.log_px, names, samples, means)
            log_q = reduce(torch.add, [term.log_q for term in terms])
            surrogate = batch.mean(score_surrogate(self.value, log_weight, log_q, self.baseline))
            loss = loss + (surrogate.detach() - surrogate)
        if self.training and torch.is_grad_enabled():
            self._move_multipliers(metrics)
        return {"model": loss}, metrics

    def _move_multipliers(self, metrics: Mapping[str, Tensor]) -> None:
        beta, likelihood_weight = self.beta, self.likelihood_weight
        if isinstance(beta, LagrangeMultiplier):
            beta.move(metrics["kl_nats"] - beta.target)
        if isinstance(likelihood_weight, LagrangeMultiplier):
            likelihood_weight.move(likelihood_weight.target - metrics["log_likelihood_nats"])

    def _kl_estimator(self, term: LatentTerm) -> KLEstimator:
        """Return ``"sample"`` if STL needs log q without gradients in its parameters."""
        posterior = term.posterior
        is_rescored = posterior.has_rsample and posterior.depends_on_parameters
        return "sample" if self.estimator != "pathwise" and is_rescored else self.kl

    def _kl_of_samples(self, term: LatentTerm) -> Tensor:
        """Return the KL, ``(B,)`` or ``(K, B)``. With free bits, it has groups, ``(..., G)``."""
        estimator = self._kl_estimator(term) if torch.is_grad_enabled() else self.kl
        if not self.has_free_bits:
            return term.kl_of_draws(estimator)
        if self.free_bits_per == "layer":
            return term.kl_of_draws(estimator).unsqueeze(-1)
        kl = term.kl_of_draws(estimator, per_dim=True)
        first = kl.dim() - len(term.posterior.event_shape)
        if self.free_bits_per == "channel":
            return sum_last(kl, kl.dim() - first - 1)
        size = 1 if self.free_bits_per == "dimension" else self.free_bits_per
        groups: Tensor = kl.flatten(first).unflatten(-1, (-1, size))
        return groups.sum(-1)

    def _mean(self, batch: Batch, kl: Tensor) -> Tensor:
        """Return the mean over batch and samples, 0-d. With free bits, it is ``(G,)``."""
        if self.has_free_bits:
            return batch.weighted(kl, -2).flatten(0, -2).mean(0)
        return batch.mean(kl)

    def _rate(self, names: Sequence[str], means: Sequence[Tensor]) -> Tensor:
        """Return the KL term of the loss, from the mean KL of each latent."""
        kls = list(means)
        if self.has_free_bits:
            free_bits = self.free_bits.type_as(means[0])
            kls = [torch.maximum(groups, free_bits).sum() for groups in means]
        if self._capacities:
            capacities = [self._capacities[name].type_as(kls[0]) for name in names]
            kls = [(kl - capacity).abs() for kl, capacity in zip(kls, capacities, strict=True)]
        if self._betas:
            betas = [self._betas[name].type_as(kls[0]) for name in names]
            return reduce(torch.add, [beta * kl for beta, kl in zip(betas, kls, strict=True)])
        kl = reduce(torch.add, kls)
        if self.has_capacity and not self._capacities:
            kl = (kl - self.capacity.type_as(kl)).abs()
        return kl if self.beta.is_constant(1.0) else self.beta.type_as(kl) * kl

    def _weighted(self, log_likelihood: Tensor) -> Tensor:
        if self.likelihood_weight.is_constant(1.0):
            return log_likelihood
        return self.likelihood_weight.type_as(log_likelihood) * log_likelihood

    def _linearized(
        self,
        log_px: Tensor,
        names: Sequence[str],
        samples: Sequence[Tensor],
        means: Sequence[Tensor],
    ) -> Tensor:
        """Return the contribution of each sample to minus the loss, ``(K, B)``.

        The loss is linearized in the mean KL terms.
        """
        leaves = [mean.detach().requires_grad_() for mean in means]
        slopes = torch.autograd.grad(self._rate(names, leaves), leaves)
        log_weight = self._weighted(log_px)
        for kl, slope in zip(samples, slopes, strict=True):
            rate = kl.detach() * slope
            log_weight = log_weight - (rate.sum(-1) if self.has_free_bits else rate)
        return log_weight

    def per_example(self, output: VAEOutput) -> dict[str, Tensor]:
        """Return both terms, the KL of each of several latents, and the bound with beta = 1."""
        kls = {term.name: term.kl_of_draws(self.kl) for term in output.latents}
        kl = reduce(torch.add, kls.values())
        terms = {"log_likelihood": output.log_px, "kl": kl}
        if len(kls) > 1:
            terms |= {f"kl_{name}": value for name, value in kls.items()}
        return terms | {"elbo": output.log_px - kl}

    def check_latents(self, output: VAEOutput) -> None:
        """Raise unless gradients, KL terms and weights of every latent are available."""
        super().check_latents(output)
        names = [term.name for term in output.latents]
        for weight, by_latent in (("beta", self._betas), ("capacity", self._capacities)):
            if by_latent and sorted(by_latent) != sorted(names):
                raise ValueError(
                    f"ELBO expects {weight} for the latents {names}, got {list(by_latent)}"
                )
        for term in output.latents:
            try:
                self._kl_of_samples(term)  # raises if kl='analytic' has no closed form
            except (TypeError, RuntimeError) as error:
                if not self.has_free_bits:
                    raise
                raise ValueError(
                    f"ELBO expects latents that free_bits_per={self.free_bits_per!r} can divide, "
                    f"got {term.name!r} of shape {tuple(term.posterior.event_shape)} ({error}): "
                    "use free_bits_per='layer'"
                ) from error

    def is_unmodified(self) -> bool:
        """Return True if both terms have weight 1, without capacity or free bits."""
        weights = (self.beta, *self._betas.values(), self.likelihood_weight)
        return all(weight.is_constant(1.0) for weight in weights) and not self.couples_batch

    def describe(self, output: VAEOutput) -> str:
        """Return a short description of what is optimized."""
        analytic = [
            self._kl_estimator(term) != "sample" and term.has_analytic_kl for term in output.latents
        ]
        kl = "analytic" if all(analytic) else "mixed" if any(analytic) else "sampled"
        samples = "1 draw" if self.num_samples == 1 else f"{self.num_samples} draws"
        options = "".join(f", {option}" for option in self._options())
        head = f"ELBO, beta {_joined(self._betas) or self.beta}{options}, {samples}, {kl} KL"
        return head + GRADIENTS[self.estimator]

    def _options(self) -> list[str]:
        options = []
        if self.has_capacity:
            options.append(f"capacity {_joined(self._capacities) or self.capacity}")
        if self.has_free_bits:
            options.append(f"{self.free_bits} free nats per {self.free_bits_per}")
        if not self.likelihood_weight.is_constant(1.0):
            options.append(f"likelihood weight {self.likelihood_weight}")
        return options

    def __repr__(self) -> str:
        options = "".join(f", {option}" for option in self._options())
        beta = _joined(self._betas) or self.beta
        head = f"ELBO(beta={beta}, num_samples={self.num_samples}, kl='{self.kl}'{options}"
        return f"{head}{self.repr_options()})"


def _nonnegative(name: str, weight: Weight) -> ScheduledWeight:
    return ScheduledWeight(weight, name=f"ELBO's {name}", least=0.0)


def _joined(by_latent: Mapping[str, ScheduledWeight]) -> str:
    return " and ".join(f"{weight} of {latent}" for latent, weight in by_latent.items())


def _check_group(per: Group) -> None:
    is_size = isinstance(per, int) and not isinstance(per, bool) and per >= 1
    if not (is_size or per in ("dimension", "channel", "layer")):
        raise ValueError(
            "ELBO expects free_bits_per 'dimension', 'channel', 'layer' or a number of dimensions, "
            f"got {per!r}"
        )
