r"""The evidence lower bound.

.. math:: \log p(x) \ge \mathbb{E}_{q(z \mid x)} [\log p(x \mid z)]
    - \mathrm{KL}(q(z \mid x) \,\|\, p(z))
"""

from functools import reduce

import torch
from torch import Tensor, nn

from tinyvae.objective import Batch, Objective, ObjectiveOutput
from tinyvae.record import KLEstimator, LatentTerm, LatentVariableModel, VAEOutput
from tinyvae.schedules import Constant, Schedule

__all__ = ["ELBO"]


class ELBO(Objective):
    r"""Evidence lower bound, with a weight :math:`\beta` on the KL term.

    .. math:: \mathcal{L}_\beta = \frac1K \sum_k \log p(x \mid z_k)
        - \beta\, \mathrm{KL}(q(z \mid x) \,\|\, p(z)), \qquad z_k \sim q(z \mid x)

    The loss is the mean of :math:`-\mathcal{L}_\beta` over the batch. Reported, whatever
    :math:`\beta`: ``elbo_nats``, the bound with :math:`\beta = 1`, and its two terms
    ``log_likelihood_nats`` and ``kl_nats``; with several latents, the KL of each. Losses that a
    posterior brings along, such as those of a codebook, are added to the loss and reported beside.

    Args:
        beta: Weight of the KL term, a number or a :class:`~tinyvae.Schedule`. Only 1 is a bound on
            log p(x) as reported.
        num_samples: Number :math:`K \ge 1` of latents drawn per example.
        kl: ``"analytic"``, the closed form; ``"sample"``, log q - log p at the draws; ``"auto"``,
            the closed form where there is one.

    Shape:
        x: ``(B, *E)``; loss and metrics: ``()``, nats per datum.

    Raises:
        ValueError: If ``num_samples < 1`` or ``kl`` is none of the three.

    References:
        Kingma, Welling (2014). Auto-Encoding Variational Bayes. arXiv:1312.6114, eq. 3 and 10.
        Higgins et al. (2017). beta-VAE. ICLR.

    Example:
        >>> output = ELBO()(vae, Batch(x))
        >>> sorted(output.metrics)
        ['elbo_nats', 'kl_nats', 'log_likelihood_nats']
        >>> bool(output.losses["model"] == -output.metrics["elbo_nats"])
        True
    """

    beta: Tensor

    def __init__(
        self,
        beta: float | Schedule = 1.0,
        *,
        num_samples: int = 1,
        kl: KLEstimator = "auto",
    ) -> None:
        super().__init__()
        if num_samples < 1:
            raise ValueError(f"ELBO expects num_samples >= 1, got {num_samples}")
        if kl not in ("auto", "analytic", "sample"):
            raise ValueError(f"ELBO expects kl 'auto', 'analytic' or 'sample', got {kl!r}")
        self.schedule("beta", beta)
        self.num_samples = num_samples
        self.kl = kl

    def forward(self, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        """Compute the loss and every term of one pass."""
        output: VAEOutput = model(
            batch.x, batch.context, mask=batch.mask, num_samples=self.num_samples
        )
        log_likelihood = output.log_px.mean()
        kls = [term.kl(self.kl).mean() for term in output.latents]
        kl = reduce(torch.add, kls)
        metrics = {
            "elbo_nats": (log_likelihood - kl).detach(),
            "log_likelihood_nats": log_likelihood.detach(),
            "kl_nats": kl.detach(),
        }
        if len(kls) > 1:
            names = [f"kl_{term.name}_nats" for term in output.latents]
            metrics |= {name: term.detach() for name, term in zip(names, kls, strict=True)}
        if not isinstance(self.schedules["beta"], Constant):
            metrics["beta"] = self.beta.clone()
        loss = self.beta.to(kl.dtype) * kl - log_likelihood
        for name, value in output.losses().items():
            metrics[name] = value.mean().detach()
            loss = loss + value.mean()
        metrics |= output.metrics()
        return ObjectiveOutput({"model": loss}, metrics)

    def check(self, model: nn.Module, batch: Batch) -> str:
        """Check shapes and support; say which KL is used and whether this is a bound."""
        if not isinstance(model, LatentVariableModel):
            raise TypeError(f"ELBO expects a VAE, got a {type(model).__name__}")
        record = model.check(batch.x, batch.context, mask=batch.mask)
        self._check_latents(record.latents)
        analytic = [self.kl != "sample" and term.has_analytic_kl for term in record.latents]
        used = "analytic" if all(analytic) else "mixed" if any(analytic) else "sampled"
        is_bound = self.is_bound(model) and record.is_density
        bound = "a lower bound on log p(x)" if is_bound else "not a bound on log p(x)"
        draws = "1 draw" if self.num_samples == 1 else f"{self.num_samples} draws"
        return f"ELBO, beta {self._beta()}, {draws}, {used} KL: {bound}"

    def _check_latents(self, latents: tuple[LatentTerm, ...]) -> None:
        names = [term.name for term in latents]
        if len(set(names)) < len(names):
            raise ValueError(f"expected latents of different names, got {names}")
        for term in latents:
            term.kl(self.kl)  # raises where the closed form that is asked for does not exist
            if not term.posterior.has_rsample:
                raise ValueError(
                    f"ELBO follows the gradient through the draws, but {term.posterior} of latent "
                    f"{term.name!r} has no reparameterised draws: use another posterior"
                )

    def is_bound(self, model: nn.Module) -> bool:
        """Whether the negative loss is, in expectation, a lower bound on log p(x)."""
        beta = self.schedules["beta"]
        unweighted = isinstance(beta, Constant) and beta.value == 1.0
        if not isinstance(model, LatentVariableModel) or model.couples_batch:
            return False
        return unweighted and model.is_density

    def _beta(self) -> str:
        beta = self.schedules["beta"]
        return f"{beta.value:g}" if isinstance(beta, Constant) else repr(beta)

    def __repr__(self) -> str:
        return f"ELBO(beta={self._beta()}, num_samples={self.num_samples}, kl='{self.kl}')"
