r"""The evidence lower bound, and what is made of its two terms.

.. math:: \log p(x) \ge \mathbb{E}_{q(z \mid x)} [\log p(x \mid z)]
    - \mathrm{KL}(q(z \mid x) \,\|\, p(z))
"""

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from tinyvae.core.objective import Batch
from tinyvae.distributions.base import sum_last
from tinyvae.models.output import KLEstimator, LatentTerm, LatentVariableModel, VAEOutput
from tinyvae.objectives.base import GRADIENTS, VariationalBound
from tinyvae.objectives.estimators import (
    Baseline,
    Estimator,
    score_surrogate,
    terms_without_rsample,
)
from tinyvae.schedules import Schedule

Group: TypeAlias = Literal["dimension", "channel", "layer"] | int
Weight: TypeAlias = float | Schedule
PerLatent: TypeAlias = Weight | Mapping[str, Weight]


class ELBO(VariationalBound):
    r"""Evidence lower bound, with a weight, a capacity or free bits for its KL term.

    .. math:: \mathcal{L} = \frac1K \sum_k \log p(x \mid z_k)
        - \beta\, \mathrm{KL}(q(z \mid x) \,\|\, p(z)), \qquad z_k \sim q(z \mid x)

    The loss is the mean of :math:`-\mathcal{L}` over the batch. With a ``capacity`` C its KL term
    is :math:`\beta\, |\mathrm{KL} - C|`, with ``free_bits`` :math:`\lambda` it is
    :math:`\beta \sum_g \max(\lambda, \mathrm{KL}_g)` over groups of dimensions; both are of means
    over the batch. Reported, whatever the weights: ``elbo_nats``, the bound with
    :math:`\beta = 1`, and its two terms ``log_likelihood_nats`` and ``kl_nats``; with several
    latents, the KL of each. Losses that a posterior brings along, such as those of a codebook, are
    added to the loss and reported beside.

    Args:
        beta: Weight of the KL term, a number or a :class:`~tinyvae.schedules.Schedule`, or one of each latent
            by name. Only 1 is a bound on log p(x) as reported.
        num_samples: Number :math:`K \ge 1` of latents drawn per example.
        kl: ``"analytic"``, the closed form; ``"sample"``, log q - log p at the draws; ``"auto"``,
            the closed form where there is one. In training STL and DReG sample.
        capacity: Nats :math:`C` that the KL term is drawn to, or those of each latent by name.
        free_bits: Nats :math:`\lambda` that each group may use at no cost.
        free_bits_per: What is a group: a ``"dimension"``, a ``"channel"`` of latents ``(C, H, W)``,
            a ``"layer"`` (a latent as a whole), or so many successive dimensions.
        likelihood_weight: Weight of the first term.
        estimator: ``"pathwise"``, or ``"stl"``, whose gradient vanishes where the posterior is
            exact; ``"dreg"`` is the same here.
        baseline: Of latents without reparameterized draws, whose gradient needs several draws:
            ``"vimco"`` or ``"leave_one_out"``, which is the same here.

    Shape:
        x: ``(B, *E)``; loss and metrics: ``()``, nats per datum.

    Raises:
        ValueError: If an argument is none of these.

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

    def __init__(
        self,
        beta: PerLatent = 1.0,
        *,
        num_samples: int = 1,
        kl: KLEstimator = "auto",
        capacity: PerLatent | None = None,
        free_bits: Weight | None = None,
        free_bits_per: Group = "dimension",
        likelihood_weight: Weight = 1.0,
        estimator: Estimator = "pathwise",
        baseline: Baseline = "vimco",
    ) -> None:
        super().__init__(num_samples, estimator=estimator, baseline=baseline)
        if kl not in get_args(KLEstimator):
            raise ValueError(f"ELBO expects kl 'auto', 'analytic' or 'sample', got {kl!r}")
        if kl == "analytic" and estimator != "pathwise":
            raise ValueError(f"ELBO with estimator {estimator!r} samples the KL, got kl='analytic'")
        if estimator != "pathwise" and (capacity, free_bits) != (None, None):
            raise ValueError(
                f"ELBO with estimator {estimator!r} leaves out a score of mean zero, which is not "
                "so with a capacity or free bits: use estimator='pathwise'"
            )
        if capacity is not None and free_bits is not None:
            raise ValueError("ELBO expects capacity or free_bits, got both")
        if isinstance(beta, Mapping) and capacity is not None and not isinstance(capacity, Mapping):
            raise ValueError("ELBO with a beta of each latent expects a capacity of each, too")
        _check_group(free_bits_per)
        self.kl = kl
        self.free_bits_per = free_bits_per
        self.has_capacity, self.has_free_bits = capacity is not None, free_bits is not None
        self.couples_batch = self.has_capacity or self.has_free_bits
        self._by_latent: dict[str, list[str]] = {}
        optional = {"capacity": capacity, "free_bits": free_bits}
        given = {name: weight for name, weight in optional.items() if weight is not None}
        for name, weight in {"beta": beta, **given, "likelihood_weight": likelihood_weight}.items():
            self._schedule_each(name, weight, least=-math.inf if name == "beta" else 0.0)

    def _schedule_each(self, name: str, weight: PerLatent, least: float) -> None:
        if not isinstance(weight, Mapping):
            self.schedule(name, weight, least=least)
            return
        if name not in ("beta", "capacity"):
            raise TypeError(f"ELBO expects {name} as a number or a Schedule, got {weight!r:.80}")
        self._by_latent[name] = list(weight)
        for latent, own in weight.items():
            self.schedule(f"{name}_{latent}", own, least=least)

    def score(
        self, model: LatentVariableModel, batch: Batch, record: VAEOutput
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Loss and metrics of a pass."""
        record = self.scored(model, batch, record)
        log_likelihood = record.log_px.mean()
        names = [term.name for term in record.latents]
        draws = [self._kl_of_draws(term) for term in record.latents]
        means = [self._mean(kl) for kl in draws]
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
        if torch.is_grad_enabled() and (scored := terms_without_rsample(record)):
            log_weight = self._linearized(record.log_px, names, draws, means)
            log_q = reduce(torch.add, [term.log_q for term in scored])
            surrogate = score_surrogate(_mean, log_weight, log_q, self.baseline).mean()
            loss = loss + (surrogate.detach() - surrogate)
        return {"model": loss}, metrics

    def _kl_estimator(self, term: LatentTerm) -> KLEstimator:
        """Draws where the estimator needs log q at them, scored by weights without gradients."""
        posterior = term.posterior
        is_scored = posterior.has_rsample and posterior.depends_on_parameters
        return "sample" if self.estimator != "pathwise" and is_scored else self.kl

    def _kl_of_draws(self, term: LatentTerm) -> Tensor:
        """KL of each example and draw, ``(B,)`` or ``(K, B)``; of groups, ``(..., G)``."""
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

    def _mean(self, kl: Tensor) -> Tensor:
        """Mean over batch and draws, 0-d; of groups, ``(G,)``."""
        return kl.flatten(0, -2).mean(0) if self.has_free_bits else kl.mean()

    def _rate(self, names: Sequence[str], means: Sequence[Tensor]) -> Tensor:
        """What is charged for the KL of each latent."""
        kls = [self._charged(groups) for groups in means] if self.has_free_bits else list(means)
        if "capacity" in self._by_latent:
            weights = [self._weight("capacity", name, kls[0]) for name in names]
            kls = [(kl - capacity).abs() for kl, capacity in zip(kls, weights, strict=True)]
        if "beta" in self._by_latent:
            betas = [self._weight("beta", name, kls[0]) for name in names]
            return reduce(torch.add, [beta * kl for beta, kl in zip(betas, kls, strict=True)])
        kl = reduce(torch.add, kls)
        if self.has_capacity and "capacity" not in self._by_latent:
            kl = (kl - self.get_buffer("capacity").to(kl.dtype)).abs()
        return kl if self.is_constant("beta", 1.0) else self.get_buffer("beta").to(kl.dtype) * kl

    def _charged(self, groups: Tensor) -> Tensor:
        return torch.maximum(groups, self.get_buffer("free_bits").to(groups.dtype)).sum()

    def _weight(self, name: str, latent: str, like: Tensor) -> Tensor:
        return self.get_buffer(f"{name}_{latent}").to(like.dtype)

    def _weighted(self, log_likelihood: Tensor) -> Tensor:
        if self.is_constant("likelihood_weight", 1.0):
            return log_likelihood
        return self.get_buffer("likelihood_weight").to(log_likelihood.dtype) * log_likelihood

    def _linearized(
        self,
        log_px: Tensor,
        names: Sequence[str],
        draws: Sequence[Tensor],
        means: Sequence[Tensor],
    ) -> Tensor:
        """What each draw adds to the objective, to first order in the mean KL terms, ``(K, B)``."""
        at = [mean.detach().requires_grad_() for mean in means]
        prices = torch.autograd.grad(self._rate(names, at), at)
        log_weight = self._weighted(log_px)
        for kl, price in zip(draws, prices, strict=True):
            charge = kl.detach() * price
            log_weight = log_weight - (charge.sum(-1) if self.has_free_bits else charge)
        return log_weight

    def per_example(self, record: VAEOutput) -> dict[str, Tensor]:
        """Both terms, the KL of each of several latents, and the bound with beta = 1."""
        kls = {term.name: term.kl_of_draws(self.kl) for term in record.latents}
        kl = reduce(torch.add, kls.values())
        terms = {"log_likelihood": record.log_px, "kl": kl}
        if len(kls) > 1:
            terms |= {f"kl_{name}": own for name, own in kls.items()}
        return terms | {"elbo": record.log_px - kl}

    def check_latents(self, record: VAEOutput) -> None:
        """Raise unless gradients, KL terms and weights of every latent are at hand."""
        super().check_latents(record)
        names = [term.name for term in record.latents]
        for weight, given in self._by_latent.items():
            if sorted(given) != sorted(names):
                raise ValueError(f"ELBO expects {weight} for the latents {names}, got {given}")
        for term in record.latents:
            if self.has_free_bits:
                self._check_groups(term)
            else:
                self._kl_of_draws(term)  # raises where the closed form that is asked for is none

    def _check_groups(self, term: LatentTerm) -> None:
        try:
            self._kl_of_draws(term)
        except (TypeError, RuntimeError) as error:
            raise ValueError(
                f"free bits per {self.free_bits_per} do not suit latent {term.name!r} of shape "
                f"{tuple(term.posterior.event_shape)} ({error}): free_bits_per='layer'"
            ) from error

    def is_plain(self) -> bool:
        """Whether both terms are as they are."""
        betas = [f"beta_{name}" for name in self._by_latent.get("beta", [])] or ["beta"]
        plain = all(self.is_constant(name, 1.0) for name in (*betas, "likelihood_weight"))
        return plain and not self.couples_batch

    def words(self, record: VAEOutput) -> str:
        """What is optimized, in a few words."""
        analytic = [
            self._kl_estimator(term) != "sample" and term.has_analytic_kl for term in record.latents
        ]
        used = "analytic" if all(analytic) else "mixed" if any(analytic) else "sampled"
        draws = "1 draw" if self.num_samples == 1 else f"{self.num_samples} draws"
        options = "".join(f", {option}" for option in self._options())
        words = f"ELBO, beta {self._words_of('beta')}{options}, {draws}, {used} KL"
        return words + GRADIENTS[self.estimator]

    def _options(self) -> list[str]:
        options = []
        if self.has_capacity:
            options.append(f"capacity {self._words_of('capacity')}")
        if self.has_free_bits:
            options.append(f"{self._words_of('free_bits')} free nats per {self.free_bits_per}")
        if not self.is_constant("likelihood_weight", 1.0):
            options.append(f"likelihood weight {self._words_of('likelihood_weight')}")
        return options

    def _words_of(self, name: str) -> str:
        if name not in self._by_latent:
            return self.format_weight(name)
        latents = self._by_latent[name]
        return " and ".join(f"{self.format_weight(f'{name}_{n}')} of {n}" for n in latents)

    def __repr__(self) -> str:
        options = "".join(f", {option}" for option in self._options())
        beta = self._words_of("beta")
        head = f"ELBO(beta={beta}, num_samples={self.num_samples}, kl='{self.kl}'{options}"
        return f"{head}{self.estimation()})"


def _mean(log_weight: Tensor) -> Tensor:
    return log_weight.mean(0)


def _check_group(per: Group) -> None:
    is_size = isinstance(per, int) and not isinstance(per, bool) and per >= 1
    if not (is_size or per in ("dimension", "channel", "layer")):
        raise ValueError(
            "ELBO expects free_bits_per 'dimension', 'channel', 'layer' or a number of dimensions, "
            f"got {per!r}"
        )
