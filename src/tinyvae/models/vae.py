r"""The variational autoencoder.

.. math:: x \to q(z \mid x) \to z \to p(x \mid z), \qquad
    \log w = \log p(x \mid z) + \log p(z) - \log q(z \mid x)

A pass returns a :class:`~tinyvae.models.VAEOutput`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.module_state import evaluating
from tinyvae.distributions import Distribution, JointDistribution
from tinyvae.encoders import Encoder, GaussianEncoder
from tinyvae.likelihoods import Likelihood
from tinyvae.models.base import DecoderModel
from tinyvae.models.checks import (
    call_part,
    check_posterior,
    require_latent_shape,
    require_part,
)
from tinyvae.models.latents import sample_prior
from tinyvae.models.output import Draw, Inference, LatentTerm
from tinyvae.networks import MLP, ConvNet, Network, ResNet, TransposedConvNet, TransposedResNet
from tinyvae.priors import Prior, StandardNormal

# Networks of an encoder and a decoder, which take the shape of their input.
NETWORKS: dict[
    str, tuple[Callable[[Sequence[int]], Network], Callable[[int | Sequence[int]], Network]]
] = {"mlp": (MLP, MLP), "conv": (ConvNet, TransposedConvNet), "resnet": (ResNet, TransposedResNet)}


@suggest_keywords
class VAE(DecoderModel):
    """Variational autoencoder with one stochastic layer.

    Args:
        encoder: Module that returns q(z given x).
        decoder: Module that maps latents ``(N, *L)`` to the likelihood's parameters
            ``(N, P, *E)``, or ``(N, *E)`` if ``P`` is 1: a network, a :class:`~tinyvae.Decoder`, or
            any other module. It gets the context as second argument if there is one. A network
            without an output shape gets it from the likelihood and the data shape.
        likelihood: Module that maps these parameters to p(x given z).
        prior: Module that returns p(z), by default N(0, I).
        data_shape: Shape ``E`` of one datum. Only a decoder without an output shape needs it. By
            default it is the ``in_shape`` of the encoder's network, if the likelihood does not
            change the encoder's input.

    Shape:
        x: ``(B, *E)``; z: ``(K, B, *L)``; log densities: ``(K, B)``, nats.

    References:
        Kingma, Welling (2014). Auto-Encoding Variational Bayes. arXiv:1312.6114.

    Example:
        >>> encoder = GaussianEncoder(MLP((1, 28, 28), hidden=(400,)), latent_dim=20)
        >>> vae = VAE(encoder, MLP(20, hidden=(400,)), BernoulliLikelihood())
        >>> vae.decoder.out_shape
        torch.Size([1, 28, 28])
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
        *,
        data_shape: Sequence[int] | None = None,
    ) -> None:
        remedy = (
            "wrap a network that returns features, GaussianEncoder(network, latent_dim). If yours "
            "returns (mean, log_var), make it a subclass of Encoder that returns "
            "Independent(Normal(mean, log_var / 2), 1) of tinyvae.distributions"
        )
        require_part("VAE", encoder, Encoder, "encoder", remedy)
        prior = StandardNormal(encoder.latent_shape) if prior is None else prior
        require_part("VAE", prior, Prior, "prior", "such as StandardNormal(encoder.latent_shape)")
        require_latent_shape("VAE", "a prior", encoder, prior)
        super().__init__(
            {"encoder": encoder, "decoder": decoder, "likelihood": likelihood, "prior": prior},
            data_shape,
        )

    @classmethod
    @suggest_keywords
    def from_shapes(
        cls,
        data_shape: int | Sequence[int],
        *,
        latent_dim: int | Sequence[int],
        likelihood: Likelihood,
        network: Literal["mlp", "conv", "resnet"] = "mlp",
        prior: Prior | None = None,
    ) -> "VAE":
        """Compose a VAE with a :class:`~tinyvae.GaussianEncoder` and default networks.

        The result is the same as if the parts were written out. Write them out to change their
        options.

        Args:
            data_shape: Shape ``E`` of one datum. A number is the size of a vector, such as the
                number of a table's columns.
            latent_dim: Number of latent dimensions, or the shape of a spatial latent.
            likelihood: Module that maps the decoder's output to p(x given z).
            network: ``"mlp"``: :class:`~tinyvae.MLP` with one hidden layer of 400 units, for any
                data; ``"conv"``: :class:`~tinyvae.ConvNet` and
                :class:`~tinyvae.TransposedConvNet`; ``"resnet"``: :class:`~tinyvae.ResNet` and
                :class:`~tinyvae.TransposedResNet`, both for images.
            prior: Module that returns p(z), by default N(0, I).

        Raises:
            ValueError: If ``network`` is unknown, or does not fit the shape of the data.

        Example:
            >>> vae = VAE.from_shapes((28, 28), latent_dim=20, likelihood=BernoulliLikelihood())
            >>> print(summary(vae))
            VAE of data (28, 28), latent (20,), BernoulliLikelihood()
            encoder.network.layers.0  Linear  (400,)  314,000
            encoder.network.layers.1  ReLU    (400,)        0
            encoder.head              Linear  (40,)    16,040
            decoder.layers.0          Linear  (400,)    8,400
            decoder.layers.1          ReLU    (400,)        0
            decoder.layers.2          Linear  (784,)  314,384
            total                                     652,824
        """
        require_part("VAE", likelihood, Likelihood, "likelihood", "such as GaussianLikelihood()")
        data_shape = torch.Size((data_shape,) if isinstance(data_shape, int) else data_shape)
        in_shape = likelihood.input_shape(data_shape)
        if network not in NETWORKS:
            raise ValueError(f"VAE expects network from {sorted(NETWORKS)}, got {network!r}")
        if network != "mlp" and len(in_shape) != 3:
            raise ValueError(
                f"VAE expects images for network={network!r}, got encoder inputs of shape "
                f"{tuple(in_shape)}: use network='mlp'"
            )
        encoder_network, decoder_network = NETWORKS[network]
        encoder = GaussianEncoder(encoder_network(in_shape), latent_dim)
        decoder = decoder_network(latent_dim)
        return cls(encoder, decoder, likelihood, prior, data_shape=data_shape)

    @property
    def latent_shape(self) -> torch.Size:  # type: ignore[override]
        """Shape of one latent."""
        return self.encoder.latent_shape

    @property
    def is_density(self) -> bool:
        """True if posterior and likelihood are densities."""
        return self.encoder.is_density and self.likelihood.is_density

    def encode(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Distribution:
        """Return q(z given x), computed in evaluation mode, with gradients.

        To train with the posterior, call the model or its encoder instead.
        """
        x, context = self._inputs(x, context, mask)
        inputs = self.likelihood.encoder_input(x)
        advise = partial(self._advise_inputs, inputs, context)
        with evaluating(self):
            call = partial(self.encoder, inputs, context)
            posterior: Distribution = call_part("encoder", inputs, call, advise)
        check_posterior(posterior, self.encoder.latent_shape, len(inputs))
        return posterior

    def infer(self, inputs: Tensor, context: Tensor | None, draw: Draw) -> Inference:
        """Draw from q(z given x)."""
        prior = self.prior_given(context)
        posterior: Distribution = self.encoder(inputs, context)
        if isinstance(posterior, JointDistribution) and isinstance(prior, JointDistribution):
            return _infer_parts(posterior, prior, draw)
        drawn = draw(self.encoder.latent_shape, posterior)
        term = LatentTerm.of("z", drawn, posterior, prior)
        return (term,), term.z  # (K, B, *L)

    def generate(self, num_samples: int, context: Tensor | None) -> Tensor:
        """Draw from p(z)."""
        return sample_prior(self.prior_given(context), num_samples, context)

    def prior_given(self, context: Tensor | None) -> Distribution:
        """Return p(z), or p(z given context)."""
        prior: Distribution = self.prior(context, encoder=self.encoder)
        return prior


def _infer_parts(posterior: JointDistribution, prior: JointDistribution, draw: Draw) -> Inference:
    """Draw each part of a joint latent, and return one latent term per part."""
    expected, got = (
        {name: part.event_shape for name, part in joint.parts.items()}
        for joint in (posterior, prior)
    )
    if list(expected.items()) != list(got.items()):
        raise ValueError(
            "VAE expects a joint prior of the encoder's latents in their order, "
            f"{expected}, got {got}"
        )
    terms = []
    for name, part in posterior.parts.items():
        drawn = draw(part.event_shape, part)
        terms.append(LatentTerm.of(name, drawn, part, prior.parts[name]))
    return tuple(terms), posterior.concatenate([term.z for term in terms])
