r"""The variational autoencoder.

.. math:: x \to q(z \mid x) \to z \to p(x \mid z), \qquad
    \log w = \log p(x \mid z) + \log p(z) - \log q(z \mid x)

One pass returns one record, :class:`~tinyvae.models.VAEOutput`.
"""

import torch
from torch import Tensor, nn

from tinyvae.distributions import Distribution, JointDistribution
from tinyvae.encoders import Encoder
from tinyvae.likelihoods import Likelihood
from tinyvae.models.base import DecoderModel, drawn
from tinyvae.models.checks import Draw, expect
from tinyvae.models.output import LatentTerm
from tinyvae.priors import Prior, StandardNormal


class VAE(DecoderModel):
    """Variational autoencoder with one stochastic layer.

    Args:
        encoder: Module that returns q(z given x).
        decoder: Any module that maps latents ``(N, *L)`` to the likelihood's parameters
            ``(N, P, *E)``, or ``(N, *E)`` where ``P`` is 1. It is called with the context as
            second argument where there is one.
        likelihood: Module that turns them into p(x given z).
        prior: Module that returns p(z), by default N(0, I).

    Shape:
        x: ``(B, *E)``; z: ``(K, B, *L)``; log densities: ``(K, B)``, nats.

    References:
        Kingma, Welling (2014). Auto-Encoding Variational Bayes. arXiv:1312.6114.

    Example:
        >>> encoder = GaussianEncoder(MLP((1, 28, 28), hidden=(400,)), latent_dim=20)
        >>> vae = VAE(encoder, MLP(20, out_shape=(1, 28, 28)), BernoulliLikelihood())
        >>> vae(torch.zeros(5, 1, 28, 28), num_samples=3).log_weight().shape
        torch.Size([3, 5])
        >>> vae.sample(64).shape
        torch.Size([64, 1, 28, 28])
    """

    encoder: Encoder
    prior: Prior

    def __init__(
        self,
        encoder: Encoder,
        decoder: nn.Module,
        likelihood: Likelihood,
        prior: Prior | None = None,
    ) -> None:
        wrap = "wrap a network: GaussianEncoder(network, latent_dim)"
        expect("VAE", encoder, Encoder, "encoder", wrap)
        prior = StandardNormal(encoder.latent_shape) if prior is None else prior
        expect("VAE", prior, Prior, "prior", "such as StandardNormal(encoder.latent_shape)")
        if prior.latent_shape != encoder.latent_shape:
            raise ValueError(
                f"VAE expects a prior over the encoder's latents {tuple(encoder.latent_shape)}, "
                f"got one over {tuple(prior.latent_shape)}"
            )
        super().__init__(
            {"encoder": encoder, "decoder": decoder, "likelihood": likelihood, "prior": prior}
        )

    @property
    def latent_shape(self) -> torch.Size:  # type: ignore[override]
        """Shape of one latent."""
        return self.encoder.latent_shape

    @property
    def is_density(self) -> bool:
        """Whether posterior and likelihood are densities."""
        return self.encoder.is_density and self.likelihood.is_density

    def encode(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Distribution:
        """Return q(z given x)."""
        inputs = self.likelihood.encoder_input(self._observed(x, mask))
        posterior: Distribution = self.encoder(inputs, context)
        return posterior

    def infer(
        self, inputs: Tensor, context: Tensor | None, draw: Draw
    ) -> tuple[tuple[LatentTerm, ...], Tensor]:
        """Draw of q(z given x)."""
        prior = self.prior_given(context)
        posterior: Distribution = self.encoder(inputs, context)
        if isinstance(posterior, JointDistribution) and isinstance(prior, JointDistribution):
            return _infer_parts(posterior, prior, draw)
        z, log_q = draw(self.encoder.latent_shape, posterior)  # (K, B, *L)
        return (LatentTerm("z", z, posterior, prior, drawn_log_q=log_q),), z

    def generate(self, num_samples: int, context: Tensor | None) -> Tensor:
        """Draw of p(z)."""
        return drawn(self.prior_given(context), num_samples, context)

    def prior_given(self, context: Tensor | None) -> Distribution:
        """p(z), or p(z given context)."""
        prior: Distribution = self.prior(context, encoder=self.encoder)
        return prior


def _infer_parts(
    posterior: JointDistribution, prior: JointDistribution, draw: Draw
) -> tuple[tuple[LatentTerm, ...], Tensor]:
    """Draw each part of a joint latent: one latent term per part."""
    shapes = [{n: p.event_shape for n, p in joint.parts.items()} for joint in (posterior, prior)]
    if list(shapes[0].items()) != list(shapes[1].items()):
        raise ValueError(
            f"VAE expects a joint prior of the encoder's latents in their order, {shapes[0]}, got "
            f"{shapes[1]}"
        )
    terms = []
    for name, part in posterior.parts.items():
        z, log_q = draw(part.event_shape, part)
        terms.append(LatentTerm(name, z, part, prior.parts[name], drawn_log_q=log_q))
    return tuple(terms), posterior.concatenate([term.z for term in terms])
