r"""Regularizers with a discriminator, which learns what the model is to make indistinguishable.

A discriminator D, the log odds that its input is of the first kind (1) and not of the second (0),
minimizes the cross-entropy

.. math:: \tfrac12\, \mathbb{E}_1 \operatorname{softplus}(-D)
    + \tfrac12\, \mathbb{E}_0 \operatorname{softplus}(D),

in a parameter group of its own: the Trainer differentiates each loss with respect to its own group
alone. Besides, the model's loss sees D without gradients in its weights, and D's loss sees draws
without gradients in the model's, so that no order of steps mixes them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyvae.core.module_state import frozen
from tinyvae.core.objective import Batch
from tinyvae.distributions.special import at_least_float32
from tinyvae.models.output import LatentVariableModel, VAEOutput
from tinyvae.objectives.regularizers.base import (
    Regularizer,
    RegularizerOutput,
    decoder_and_latent,
    prior_draws,
)
from tinyvae.schedules import Schedule


class AdversarialRegularizer(Regularizer):
    """A regularizer with a discriminator.

    Args:
        discriminator: Module that maps ``(N, ...)`` to log odds ``(N,)`` or ``(N, 1)``.
        weight: As of :class:`Regularizer`.
        latent: As of :class:`Regularizer`.
        group: Name of the discriminator's parameter group.
    """

    group: str

    def __init__(
        self,
        discriminator: nn.Module,
        weight: float | Schedule = 1.0,
        *,
        latent: str | None = None,
        group: str = "discriminator",
    ) -> None:
        super().__init__(weight, latent=latent)
        if not isinstance(discriminator, nn.Module):
            raise TypeError(
                f"{type(self).__name__} expects a discriminator, such as MLP(latent_dim, "
                f"out_shape=1), got a {type(discriminator).__name__}"
            )
        self.discriminator = discriminator
        self.group = group

    def log_odds(self, values: Tensor) -> Tensor:
        """Log odds ``(N,)`` of ``values`` ``(N, ...)``."""
        log_odds: Tensor = self.discriminator(values)
        if log_odds.numel() != len(values):
            raise ValueError(
                f"{type(self).__name__} expects a discriminator that returns one number per "
                f"example, (N, 1), got {tuple(log_odds.shape)} for {len(values)}"
            )
        return at_least_float32(log_odds.flatten())

    def log_odds_for_model(self, values: Tensor) -> Tensor:
        """Log odds with gradients in ``values`` alone."""
        with frozen(self.discriminator):
            return self.log_odds(values)

    def discriminator_loss(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the discriminator, with gradients in its weights alone, and its hits."""
        one, zero = self.log_odds(first.detach()), self.log_odds(second.detach())
        loss = 0.5 * (F.softplus(-one).mean() + F.softplus(zero).mean())
        hits = 0.5 * ((one > 0).to(one.dtype).mean() + (zero < 0).to(zero.dtype).mean())
        return loss, hits

    def checked(self, model: LatentVariableModel, batch: Batch, record: VAEOutput) -> list[str]:
        """Names of the metrics; raises, with the remedy, if it cannot be computed."""
        try:
            return super().checked(model, batch, record)
        except RuntimeError as error:
            raise ValueError(
                f"{type(self).__name__}'s discriminator does not take what it is to tell apart: "
                f"{error}"
            ) from error

    def hits(self, share: Tensor) -> dict[str, Tensor]:
        """Share of what the discriminator tells apart, to report."""
        return {f"{self.group}_hits": share}


class AdversarialTotalCorrelationRegularizer(AdversarialRegularizer):
    r"""Total correlation of the aggregate posterior, by a discriminator (FactorVAE).

    D tells draws of q(z) from draws of the product of its marginals :math:`\prod_j q(z_j)`, which
    are made by permuting each dimension over the batch. Its log odds estimate
    :math:`\log q(z) / \prod_j q(z_j)`, and their mean over q(z) the total correlation.

    Args:
        discriminator: Module that maps latents ``(N, *L)`` to log odds ``(N, 1)``.
        weight: :math:`\gamma`.
        latent: As of :class:`Regularizer`.
        group: Name of the discriminator's parameter group.

    References:
        Kim, Mnih (2018). Disentangling by Factorizing. arXiv:1802.05983, algorithm 2.

    Example:
        >>> objective = ELBO() + AdversarialTotalCorrelationRegularizer(MLP(2, out_shape=1), 6.0)
        >>> sorted(objective(vae, Batch(x)).losses)
        ['discriminator', 'model']
    """

    def forward(
        self, model: LatentVariableModel, batch: Batch, record: VAEOutput
    ) -> RegularizerOutput:
        """Compute the estimate, and the discriminator's loss."""
        z = self.drawn(record).z
        value = self.log_odds_for_model(z.flatten(0, 1)).mean()
        adversary, hits = self.discriminator_loss(
            z.flatten(0, 1), permute_dims(z.detach()).flatten(0, 1)
        )
        metrics = self.reported(adversarial_total_correlation_nats=value)
        return RegularizerOutput(self.weighted(value), metrics | self.hits(hits), adversary)


def permute_dims(z: Tensor) -> Tensor:
    """Draws ``(K, B, *L)`` with each dimension permute_dims over the batch on its own."""
    order = torch.rand(z.shape, device=z.device).argsort(1)
    return z.gather(1, order)


class AdversarialPriorRegularizer(AdversarialRegularizer):
    r"""Aggregate posterior drawn to the prior by a discriminator (adversarial autoencoder).

    D tells draws of the prior (1) from draws of q(z) (0); the model minimizes
    :math:`\mathbb{E}_{q(z)} \operatorname{softplus}(-D)`, so as to be taken for the prior.

    Args:
        discriminator: Module that maps latents ``(N, *L)`` to log odds ``(N, 1)``.
        weight: As of :class:`Regularizer`.
        latent: As of :class:`Regularizer`.
        group: Name of the discriminator's parameter group.

    References:
        Makhzani, Shlens, Jaitly, Goodfellow, Frey (2016). Adversarial Autoencoders.
        arXiv:1511.05644.

    Example:
        >>> objective = ELBO(0.0) + AdversarialPriorRegularizer(MLP(2, out_shape=1), 10.0)
        >>> sorted(objective(vae, Batch(x)).losses)
        ['discriminator', 'model']
    """

    couples_batch = False

    def forward(
        self, model: LatentVariableModel, batch: Batch, record: VAEOutput
    ) -> RegularizerOutput:
        """Compute the model's loss, and the discriminator's."""
        term = self.drawn(record)
        z = term.z.flatten(0, 1)
        value = F.softplus(-self.log_odds_for_model(z)).mean()
        adversary, hits = self.discriminator_loss(
            prior_draws("AdversarialPriorRegularizer", term).flatten(0, 1), z
        )
        metrics = self.reported(adversarial_prior=value)
        return RegularizerOutput(self.weighted(value), metrics | self.hits(hits), adversary)


class VAEGANRegularizer(AdversarialRegularizer):
    r"""A learned discriminator of data, and the similarity that it has learned (VAE-GAN).

    D tells data (1) from what is decoded from posterior and prior (0), by features f and a linear
    layer on them. The decoder is trained to be taken for data, the encoder is not, as in the paper.
    Encoder and decoder are trained on :math:`\tfrac12 \|f(x) - f(\tilde x)\|^2`, with
    :math:`\tilde x = \mathbb{E}[x \mid z]`, which takes the place of the log-likelihood in
    ``ELBO(likelihood_weight=0) + VAEGANRegularizer(...)``.

    Args:
        features: Module that maps data ``(N, *E)`` to features ``(N, F)``.
        num_features: Number :math:`F`.
        weight: Weight of the decoder's adversarial loss.
        similarity: Weight of the squared distance of features.
        group: Name of the discriminator's parameter group.

    References:
        Larsen, Sonderby, Larochelle, Winther (2016). Autoencoding beyond pixels using a learned
        similarity metric. arXiv:1512.09300, algorithm 1.

    Example:
        >>> objective = ELBO(likelihood_weight=0) + VAEGANRegularizer(MLP(4, (16,)), 16)
        >>> sorted(objective(vae, Batch(x)).losses)
        ['discriminator', 'model']
    """

    couples_batch = False
    similarity: Tensor
    discriminator: nn.Sequential

    def __init__(
        self,
        features: nn.Module,
        num_features: int,
        weight: float | Schedule = 1.0,
        *,
        similarity: float | Schedule = 1.0,
        group: str = "discriminator",
    ) -> None:
        discriminator = nn.Sequential(features, nn.Flatten(), nn.Linear(num_features, 1))
        super().__init__(discriminator, weight, group=group)
        self.schedule("similarity", similarity)

    def forward(
        self, model: LatentVariableModel, batch: Batch, record: VAEOutput
    ) -> RegularizerOutput:
        """Compute the model's losses, and the discriminator's."""
        if batch.mask is not None:
            raise ValueError("VAEGANRegularizer expects data that are complete, got a mask")
        decoder, z = decoder_and_latent(self, model, record)
        z, context = z.detach(), batch.context
        num = z.shape[:2].numel() if context is None else len(z)
        generated = decoder.generate(num, context).reshape(z.shape)
        fakes = decoder.decode(torch.cat([z, generated]), context).mean.flatten(0, 1)  # (2 K B, *E)
        fooled = F.softplus(-self.log_odds_for_model(fakes)).mean()
        data = batch.x.to(fakes.dtype)
        distance = self._distance(data, record.likelihood.mean)
        adversary, hits = self.discriminator_loss(data, fakes)
        metrics = {"adversarial_data": fooled, "feature_distance": distance}
        loss = self.weighted(fooled) + self.similarity.to(distance.dtype) * distance
        return RegularizerOutput(loss, self.reported(**metrics) | self.hits(hits), adversary)

    def _distance(self, x: Tensor, reconstructed: Tensor) -> Tensor:
        """Half the squared distance of features, of data ``(B, *E)`` and ``(K, B, *E)``."""
        features = self.discriminator[:-1]
        with frozen(self.discriminator):
            true = features(x)
            made = features(reconstructed.flatten(0, 1)).unflatten(0, reconstructed.shape[:2])
        distance: Tensor = 0.5 * (at_least_float32(made) - at_least_float32(true)).square().sum(-1)
        return distance.mean()
