r"""Regularizers with a discriminator of two kinds of input.

A discriminator D returns the log odds of the first kind of input (1) against the second kind (0).
It minimizes the cross-entropy

.. math:: \tfrac12\, \mathbb{E}_1 \operatorname{softplus}(-D)
    + \tfrac12\, \mathbb{E}_0 \operatorname{softplus}(D)

in its own parameter group: the Trainer differentiates each loss with respect to its own group only.
The model's loss has no gradients in the weights of D, and the loss of D has no gradients in the
weights of the model, so the two never mix.
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
    prior_samples,
)
from tinyvae.schedules import Schedule, ScheduledWeight


class AdversarialRegularizer(Regularizer):
    """Regularizer with a discriminator.

    Args:
        discriminator: Module that maps ``(N, ...)`` to log odds ``(N,)`` or ``(N, 1)``.
        weight: See :class:`Regularizer`.
        latent: See :class:`Regularizer`.
        group: Name of the discriminator's parameter group.
    """

    group: str

    def __init__(
        self,
        discriminator: nn.Module,
        *,
        weight: float | Schedule = 1.0,
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
        """Return log odds ``(N,)`` of ``values`` ``(N, ...)``."""
        log_odds: Tensor = self.discriminator(values)
        if log_odds.numel() != len(values):
            raise ValueError(
                f"{type(self).__name__} expects a discriminator that returns one number per "
                f"example, (N, 1), got {tuple(log_odds.shape)} for N = {len(values)}"
            )
        return at_least_float32(log_odds.flatten())

    def log_odds_for_model(self, values: Tensor) -> Tensor:
        """Return log odds with gradients in ``values`` but not in the discriminator's weights."""
        with frozen(self.discriminator):
            return self.log_odds(values)

    def discriminator_loss(
        self, batch: Batch, first: Tensor, second: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the discriminator's cross-entropy, with gradients in its weights, and accuracy."""
        one, zero = self.log_odds(first.detach()), self.log_odds(second.detach())
        loss = 0.5 * (_mean(batch, F.softplus(-one)) + _mean(batch, F.softplus(zero)))
        correct = (one > 0).to(one.dtype), (zero < 0).to(zero.dtype)
        return loss, 0.5 * (_mean(batch, correct[0]) + _mean(batch, correct[1]))

    def validated(self, model: LatentVariableModel, batch: Batch, output: VAEOutput) -> list[str]:
        """Return the names of the metrics. Raise if the discriminator rejects its inputs."""
        try:
            return super().validated(model, batch, output)
        except RuntimeError as error:
            raise ValueError(
                f"{type(self).__name__} expects a discriminator that accepts its inputs, got an "
                f"error: {error}"
            ) from error

    def adversarial_output(
        self, batch: Batch, loss: Tensor, first: Tensor, second: Tensor, **metrics: Tensor
    ) -> RegularizerOutput:
        """Return the model's loss, the discriminator's loss, and the metrics of both."""
        adversary, accuracy = self.discriminator_loss(batch, first, second)
        reported = self.reported(**metrics) | {f"{self.group}_accuracy": accuracy}
        return RegularizerOutput(loss, reported, adversary)


class AdversarialTotalCorrelationRegularizer(AdversarialRegularizer):
    r"""Total correlation of the aggregate posterior, estimated by a discriminator (FactorVAE).

    D distinguishes samples of q(z) (1) from samples of the product of its marginals
    :math:`\prod_j q(z_j)` (0), which are permuted over the batch in each dimension. Its log odds
    estimate :math:`\log q(z) / \prod_j q(z_j)`. Their mean over q(z) estimates the total
    correlation.

    Args:
        discriminator: Module that maps latents ``(N, *L)`` to log odds ``(N, 1)``.
        weight: :math:`\gamma`.
        latent: See :class:`Regularizer`.
        group: Name of the discriminator's parameter group.

    References:
        Kim, Mnih (2018). Disentangling by Factorizing. arXiv:1802.05983, algorithm 2.

    Example:
        >>> objective = ELBO() + AdversarialTotalCorrelationRegularizer(
        ...     MLP(2, out_shape=1), weight=6.0
        ... )
        >>> sorted(objective(vae, Batch(x)).losses)
        ['discriminator', 'model']
    """

    def forward(
        self, model: LatentVariableModel, batch: Batch, output: VAEOutput
    ) -> RegularizerOutput:
        """Return the estimate and the loss of the discriminator."""
        z = self.reparameterized_term(output).z
        value = self.log_odds_for_model(z.flatten(0, 1)).mean()
        permuted = permute_dims(z.detach()).flatten(0, 1)
        metrics = {"adversarial_total_correlation_nats": value}
        loss = self.weighted(value)
        return self.adversarial_output(batch, loss, z.flatten(0, 1), permuted, **metrics)


def _mean(batch: Batch, values: Tensor) -> Tensor:
    """Return the weighted mean of values ``(K B,)``."""
    return batch.mean(values.unflatten(0, (-1, len(batch))))


def permute_dims(z: Tensor) -> Tensor:
    """Return samples ``(K, B, *L)`` with each dimension permuted over the batch independently."""
    order = torch.rand(z.shape, device=z.device).argsort(1)
    return z.gather(1, order)


class AdversarialPriorRegularizer(AdversarialRegularizer):
    r"""Distance of the aggregate posterior from the prior, measured by a discriminator.

    It is the latent loss of the adversarial autoencoder. D distinguishes samples of the prior (1)
    from samples of q(z) (0). The model minimizes
    :math:`\mathbb{E}_{q(z)} \operatorname{softplus}(-D)`, so that D classifies samples of q(z) as
    samples of the prior.

    Args:
        discriminator: Module that maps latents ``(N, *L)`` to log odds ``(N, 1)``.
        weight: See :class:`Regularizer`.
        latent: See :class:`Regularizer`.
        group: Name of the discriminator's parameter group.

    References:
        Makhzani, Shlens, Jaitly, Goodfellow, Frey (2016). Adversarial Autoencoders.
        arXiv:1511.05644.

    Example:
        >>> objective = ELBO(0.0) + AdversarialPriorRegularizer(
        ...     MLP(2, out_shape=1), weight=10.0
        ... )
        >>> sorted(objective(vae, Batch(x)).losses)
        ['discriminator', 'model']
    """

    couples_batch = False

    def forward(
        self, model: LatentVariableModel, batch: Batch, output: VAEOutput
    ) -> RegularizerOutput:
        """Return the losses of model and discriminator."""
        term = self.reparameterized_term(output)
        z = term.z.flatten(0, 1)
        value = _mean(batch, F.softplus(-self.log_odds_for_model(z)))
        prior = prior_samples("AdversarialPriorRegularizer", term).flatten(0, 1)
        loss = self.weighted(value)
        return self.adversarial_output(batch, loss, prior, z, adversarial_prior=value)


class VAEGANRegularizer(AdversarialRegularizer):
    r"""Discriminator of data, and the similarity measure that it learns (VAE-GAN).

    D distinguishes data (1) from decoded samples of posterior and prior (0). It consists of
    features f and a linear layer. As in the paper, the adversarial loss trains the decoder and not
    the encoder. Both are trained on :math:`\tfrac12 \|f(x) - f(\tilde x)\|^2` with
    :math:`\tilde x = \mathbb{E}[x \mid z]`, which replaces the log-likelihood in
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
        >>> vae_gan = VAEGANRegularizer(MLP(4, (16,)), num_features=16)
        >>> objective = ELBO(likelihood_weight=0) + vae_gan
        >>> sorted(objective(vae, Batch(x)).losses)
        ['discriminator', 'model']
    """

    couples_batch = False
    discriminator: nn.Sequential

    def __init__(
        self,
        features: nn.Module,
        *,
        num_features: int,
        weight: float | Schedule = 1.0,
        similarity: float | Schedule = 1.0,
        group: str = "discriminator",
    ) -> None:
        discriminator = nn.Sequential(features, nn.Flatten(), nn.Linear(num_features, 1))
        super().__init__(discriminator, weight=weight, group=group)
        self.similarity = ScheduledWeight(similarity)

    def forward(
        self, model: LatentVariableModel, batch: Batch, output: VAEOutput
    ) -> RegularizerOutput:
        """Return the losses of model and discriminator."""
        if batch.mask is not None:
            raise ValueError("VAEGANRegularizer expects complete data, got a mask")
        decoder, z = decoder_and_latent(self, model, output)
        z, context = z.detach(), batch.context
        num = z.shape[:2].numel() if context is None else len(z)
        generated = decoder.generate(num, context).reshape(z.shape)
        both = torch.cat([z, generated])  # (2 K, B, *L)
        fakes = decoder.likelihood_given(both, context).mean.flatten(0, 1)  # (2 K B, *E)
        fooled = _mean(batch, F.softplus(-self.log_odds_for_model(fakes)))
        data = batch.x.to(fakes.dtype)
        distance = batch.mean(self._distance(data, output.likelihood.mean))
        metrics = {"adversarial_data": fooled, "feature_distance": distance}
        loss = self.weighted(fooled) + self.similarity.type_as(distance) * distance
        return self.adversarial_output(batch, loss, data, fakes, **metrics)

    def _distance(self, x: Tensor, reconstructed: Tensor) -> Tensor:
        """Return half the squared distance, ``(K, B)``, of features of data and reconstructions."""
        features = self.discriminator[:-1]
        with frozen(self.discriminator):
            expected = features(x)
            got = features(reconstructed.flatten(0, 1)).unflatten(0, reconstructed.shape[:2])
        difference = at_least_float32(got) - at_least_float32(expected)
        distance: Tensor = 0.5 * difference.square().sum(-1)
        return distance
