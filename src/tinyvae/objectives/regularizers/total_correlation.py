r"""Decomposition of the KL term by the aggregate posterior.

.. math:: \mathbb{E}\, \mathrm{KL}(q(z \mid x) \,\|\, p(z))
    = \underbrace{\mathbb{E} \log \frac{q(z \mid x)}{q(z)}}_{\text{mutual information}}
    + \underbrace{\mathbb{E} \log \frac{q(z)}{\prod_j q(z_j)}}_{\text{total correlation}}
    + \underbrace{\mathbb{E} \log \frac{\prod_j q(z_j)}{p(z)}}_{\text{dimension-wise KL}}, \qquad
    q(z) = \frac1N \sum_n q(z \mid x_n)
"""

import math
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from tinyvae.core.objective import Batch
from tinyvae.models.output import LatentVariableModel, VAEOutput
from tinyvae.objectives.regularizers.base import (
    Regularizer,
    RegularizerOutput,
    posterior_given_data,
)
from tinyvae.schedules import Schedule, ScheduledWeight

Sampling: TypeAlias = Literal["stratified", "weighted"]


class TotalCorrelationRegularizer(Regularizer):
    r"""Weights on mutual information, total correlation and dimension-wise KL of a minibatch.

    The posteriors of the batch give one estimate of the aggregate posterior for all three terms.
    With the weights (1, 1, 1) they sum to log q(z given x) - log p(z) of the samples, so that
    ``ELBO(beta=0) + TotalCorrelationRegularizer(1.0, ...)`` with these weights is the ELBO. The
    metrics are the terms of the batch. They depend on its size, because log q(z) is not linear in
    the posteriors: with fewer examples the mutual information is larger (stratified sampling).

    Args:
        weight: Additional weight of the total correlation. With ``ELBO()``, :math:`\beta` of the
            beta-TC-VAE is ``weight + 1``.
        dataset_size: Number :math:`N` of training examples.
        mutual_information: Additional weight of the mutual information.
        dimension_kl: Additional weight of the dimension-wise KL.
        sampling: ``"stratified"`` is unbiased in q(z). ``"weighted"`` is the estimate in the paper,
            which gives all posteriors the same weight, so that q(z) is too small by a factor of
            about N.
        latent: See :class:`Regularizer`.

    References:
        Chen, Li, Grosse, Duvenaud (2018). Isolating Sources of Disentanglement in VAEs.
        arXiv:1802.04942, section 4 and appendix C.

    Example:
        >>> objective = ELBO() + TotalCorrelationRegularizer(5.0, dataset_size=1397)  # beta 6
        >>> names = set(objective(vae, Batch(x)).metrics)
        >>> sorted(name for name in names if name.startswith("batch"))
        ['batch_dimension_kl_nats', 'batch_mutual_information_nats', 'batch_total_correlation_nats']
    """

    def __init__(
        self,
        weight: float | Schedule,
        *,
        dataset_size: int,
        mutual_information: float | Schedule = 0.0,
        dimension_kl: float | Schedule = 0.0,
        sampling: Sampling = "stratified",
        latent: str | None = None,
    ) -> None:
        super().__init__(weight, latent=latent)
        if sampling not in get_args(Sampling):
            raise ValueError(
                "TotalCorrelationRegularizer expects sampling 'stratified' or 'weighted', got "
                f"{sampling!r}"
            )
        if dataset_size < 1:
            raise ValueError(
                f"TotalCorrelationRegularizer expects dataset_size >= 1, got {dataset_size}"
            )
        self.mutual_information = ScheduledWeight(mutual_information)
        self.dimension_kl = ScheduledWeight(dimension_kl)
        self.dataset_size, self.sampling = dataset_size, sampling

    def forward(
        self, model: LatentVariableModel, batch: Batch, output: VAEOutput
    ) -> RegularizerOutput:
        """Return the three terms of one pass."""
        term = self.reparameterized_term(output)
        posterior = posterior_given_data("TotalCorrelationRegularizer", term)
        # log q(z_i given x_j) of each dimension, (K, B, B, D).
        each = posterior.elementwise_log_prob(term.z.unsqueeze(2)).flatten(3)
        weights = aggregate_log_weights(self.dataset_size, self.sampling, each[0, :, :, 0])
        joint = each.sum(-1)
        log_q_given_x = joint.diagonal(dim1=1, dim2=2)  # (K, B)
        log_q = torch.logsumexp(joint + weights, 2)
        log_marginals = torch.logsumexp(each + weights.unsqueeze(-1), 2).sum(-1)
        terms = {
            "mutual_information": (log_q_given_x - log_q).mean(),
            "total_correlation": (log_q - log_marginals).mean(),
            "dimension_kl": (log_marginals - term.log_p).mean(),
        }
        factors = (self.mutual_information, self.weight, self.dimension_kl)
        pairs = zip(factors, terms.values(), strict=True)
        loss = torch.stack([factor.type_as(value) * value for factor, value in pairs]).sum()
        return RegularizerOutput(
            loss, self.reported(**{f"batch_{n}_nats": value for n, value in terms.items()})
        )

    def validated(self, model: LatentVariableModel, batch: Batch, output: VAEOutput) -> list[str]:
        """Return the names of the metrics. Raise if the latent's dimensions are not independent."""
        try:
            return super().validated(model, batch, output)
        except TypeError as error:
            raise ValueError(
                "TotalCorrelationRegularizer expects posteriors with independent dimensions, got "
                f"an error: {error}"
            ) from error


def aggregate_log_weights(dataset_size: int, sampling: Sampling, like: Tensor) -> Tensor:
    r"""Return log weights ``(B, B)`` of the posteriors of a batch in the estimate of q(z).

    ``"weighted"`` gives each posterior the weight 1 / (N B). ``"stratified"`` gives the posterior
    of the example for which z was sampled its true weight 1 / N. The B - 1 others, a sample of the
    remaining N - 1, share (N - 1) / N equally. The mean over all batches is then :math:`q(z)`.

    Args:
        dataset_size: Number :math:`N` of training examples.
        sampling: ``"stratified"`` or ``"weighted"``.
        like: Tensor ``(B, B)`` whose dtype and device the weights take.
    """
    num = len(like)
    if sampling == "weighted":
        return torch.full_like(like, -math.log(num * dataset_size))
    if num > dataset_size:
        raise ValueError(
            f"TotalCorrelationRegularizer expects batches of at most dataset_size={dataset_size} "
            f"examples, got {num}: set dataset_size to the number of training examples"
        )
    others = math.log((dataset_size - 1) / (num - 1) / dataset_size) if num > 1 else 0.0
    return torch.full_like(like, others).fill_diagonal_(-math.log(dataset_size))
