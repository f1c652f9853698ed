r"""The KL term taken apart, by the aggregate posterior :math:`q(z) = \frac1N \sum_n q(z \mid x_n)`.

.. math:: \mathbb{E}\, \mathrm{KL}(q(z \mid x) \,\|\, p(z))
    = \underbrace{\mathbb{E} \log \frac{q(z \mid x)}{q(z)}}_{\text{mutual information}}
    + \underbrace{\mathbb{E} \log \frac{q(z)}{\prod_j q(z_j)}}_{\text{total correlation}}
    + \underbrace{\mathbb{E} \log \frac{\prod_j q(z_j)}{p(z)}}_{\text{dimension-wise KL}}
"""

import math
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from tinyvae.core.objective import Batch
from tinyvae.models.output import LatentVariableModel, VAEOutput
from tinyvae.objectives.regularizers.base import Regularizer, RegularizerOutput, given_data_alone
from tinyvae.schedules import Schedule

Sampling: TypeAlias = Literal["stratified", "weighted"]


class TotalCorrelationRegularizer(Regularizer):
    r"""Weights on mutual information, total correlation and dimension-wise KL, of a minibatch.

    The aggregate posterior is estimated by the batch's own posteriors. Of the three terms any one
    estimate is used in all, so that with the weights (1, 1, 1) they are log q(z given x) - log p(z)
    of the draws, and ``ELBO(beta=0) + TotalCorrelationRegularizer(1.0, ...)`` with these is the ELBO.

    Args:
        weight: Weight that is added on the total correlation. :math:`\beta` of the beta-TC-VAE is
            one more beside ``ELBO()``.
        dataset_size: Number :math:`N` of the training data.
        mutual_information: Weight that is added on the mutual information.
        dimension_kl: Weight that is added on the dimension-wise KL.
        sampling: ``"stratified"``, without bias in q(z); ``"weighted"``, the paper's, which weighs
            the example's own posterior as any other and lacks a factor of about N in q(z).
        latent: As of :class:`Regularizer`.

    References:
        Chen, Li, Grosse, Duvenaud (2018). Isolating Sources of Disentanglement in VAEs.
        arXiv:1802.04942, section 4 and appendix C.

    Example:
        >>> objective = ELBO() + TotalCorrelationRegularizer(5.0, dataset_size=1397)  # beta-TC-VAE, beta 6
        >>> names = set(objective(vae, Batch(x)).metrics)
        >>> names >= {"mutual_information_nats", "total_correlation_nats", "dimension_kl_nats"}
        True
    """

    mutual_information: Tensor
    dimension_kl: Tensor

    def __init__(
        self,
        weight: float | Schedule,
        dataset_size: int,
        *,
        mutual_information: float | Schedule = 0.0,
        dimension_kl: float | Schedule = 0.0,
        sampling: Sampling = "stratified",
        latent: str | None = None,
    ) -> None:
        super().__init__(weight, latent=latent)
        if sampling not in get_args(Sampling):
            raise ValueError(
                f"TotalCorrelationRegularizer expects sampling 'stratified' or 'weighted', got {sampling!r}"
            )
        if dataset_size < 1:
            raise ValueError(
                f"TotalCorrelationRegularizer expects dataset_size >= 1, got {dataset_size}"
            )
        self.schedule("mutual_information", mutual_information)
        self.schedule("dimension_kl", dimension_kl)
        self.dataset_size, self.sampling = dataset_size, sampling

    def forward(
        self, model: LatentVariableModel, batch: Batch, record: VAEOutput
    ) -> RegularizerOutput:
        """Compute the three terms of one pass."""
        term = self.drawn(record)
        posterior = given_data_alone("TotalCorrelationRegularizer", term)
        # log q(z_i given x_j) of each dimension, (K, B, B, D)
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
        loss = torch.stack([factor.to(value.dtype) * value for factor, value in pairs]).sum()
        return RegularizerOutput(
            loss, self.reported(**{f"{n}_nats": value for n, value in terms.items()})
        )

    def checked(self, model: LatentVariableModel, batch: Batch, record: VAEOutput) -> list[str]:
        """Names of the metrics; raises where the latent's dimensions are not independent."""
        try:
            return super().checked(model, batch, record)
        except TypeError as error:
            raise ValueError(
                f"TotalCorrelationRegularizer needs posteriors of independent dimensions: {error}"
            ) from error


def aggregate_log_weights(dataset_size: int, sampling: Sampling, like: Tensor) -> Tensor:
    r"""Log weights of the posteriors of a batch in the estimate of q(z), ``(B, B)``.

    ``"weighted"`` gives each 1 / (N B). ``"stratified"`` gives the example that z was drawn for its
    true weight 1 / N, and the B - 1 others, a sample of the N - 1 remaining ones, (N - 1) / N in
    equal parts: the mean over all batches is :math:`q(z)`.

    Args:
        dataset_size: Number :math:`N` of data.
        sampling: One of the two.
        like: Of the shape, type and device of the weights, ``(B, B)``.
    """
    num = len(like)
    if sampling == "weighted":
        return torch.full_like(like, -math.log(num * dataset_size))
    if num > dataset_size:
        raise ValueError(
            f"TotalCorrelationRegularizer got a batch of {num} of dataset_size={dataset_size} data: "
            "give the number of the training data"
        )
    others = math.log((dataset_size - 1) / (num - 1) / dataset_size) if num > 1 else 0.0
    return torch.full_like(like, others).fill_diagonal_(-math.log(dataset_size))
