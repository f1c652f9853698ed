r"""Models with several stochastic layers.

.. math:: p(x, z_1, \dots, z_L) = p(x \mid z_1) \Big[\prod_{l < L} p(z_l \mid z_{l+1})\Big] p(z_L)

Layer 1 is next to the data. The output has one latent term per layer. The sum of their
log p - log q is exact.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from tinyvae.distributions import Distribution, Independent, Normal
from tinyvae.encoders import Encoder, GaussianEncoder
from tinyvae.likelihoods import Likelihood
from tinyvae.models.base import DecoderModel
from tinyvae.models.checks import require_latent_shape, require_part
from tinyvae.models.latents import conditional_density, repeat_rows, sample_prior
from tinyvae.models.output import Draw, Inference, LatentTerm
from tinyvae.priors import Prior, StandardNormal


class _HierarchicalVAE(DecoderModel):
    """Layers of latents, generated from the top."""

    inference = "chain of encoders and generators"
    posterior_parts = ("encoders",)
    layer_type: type[nn.Module] = Encoder
    encoders: nn.ModuleList
    generators: nn.ModuleList
    prior: Prior

    def __init__(
        self,
        encoders: Sequence[Encoder],
        generators: Sequence[Encoder],
        decoder: nn.Module,
        likelihood: Likelihood,
        prior: Prior | None = None,
        *,
        data_shape: Sequence[int] | None = None,
    ) -> None:
        self._check_layers(encoders, generators)
        top, owner = encoders[-1], type(self).__name__
        prior = StandardNormal(top.latent_shape) if prior is None else prior
        require_part(owner, prior, Prior, "prior", "such as StandardNormal(top.latent_shape)")
        require_latent_shape(owner, "a prior of the top layer", top, prior)
        parts: dict[str, nn.Module | Sequence[nn.Module]] = {
            "encoders": encoders,
            "generators": generators,
            "decoder": decoder,
            "likelihood": likelihood,
            "prior": prior,
        }
        super().__init__(parts, data_shape)

    def _check_layers(self, encoders: Sequence[Encoder], generators: Sequence[Encoder]) -> None:
        owner = type(self).__name__
        for layers in (encoders, generators):
            if not isinstance(layers, (list, tuple)):
                raise TypeError(
                    f"{owner} expects lists of encoders and generators, got a "
                    f"{type(layers).__name__}: give one per layer, [GaussianEncoder(...), ...]"
                )
        remedy = "GaussianEncoder(network, latent_dim)"
        for part in (*encoders, *generators):
            require_part(owner, part, self.layer_type, "every encoder and generator", remedy)
        if not encoders or len(generators) != len(encoders) - 1:
            raise ValueError(
                f"{owner} expects encoders of L >= 1 layers and generators of the L - 1 lower "
                f"ones, got {len(encoders)} and {len(generators)}"
            )
        for layer, (encoder, generator) in enumerate(zip(encoders, generators, strict=False), 1):
            require_latent_shape(owner, f"a generator of z{layer}", encoder, generator)

    @property
    def latent_shape(self) -> torch.Size:  # type: ignore[override]
        """Shape of the latent next to the data."""
        return self._encoder(0).latent_shape

    @property
    def is_density(self) -> bool:
        """True if posteriors, generators and likelihood are densities."""
        parts = (*self.encoders, *self.generators)
        return self.likelihood.is_density and all(part.is_density for part in parts)

    def _encoder(self, layer: int) -> Encoder:
        return cast("Encoder", self.encoders[layer])

    def _generated(self, layer: int, above: Tensor, context: Tensor | None) -> Distribution:
        """Return p(z given the layer above), of batch shape ``(K, B)``."""
        return conditional_density(cast("Encoder", self.generators[layer]), above, context)

    def prior_given(self, context: Tensor | None) -> Distribution:
        """Return p(z_L), or p(z_L given context)."""
        prior: Distribution = self.prior(context, encoder=self._encoder(-1))
        return prior

    def generate(self, num_samples: int, context: Tensor | None) -> Tensor:
        """Draw from p(z_L), then from every layer below."""
        z = sample_prior(self.prior_given(context), num_samples, context)
        z = z if context is not None else z.unsqueeze(1)
        for layer in reversed(range(len(self.generators))):
            z = self._generated(layer, z, context).sample()
        return z if context is not None else z.squeeze(1)


class BottomUpVAE(_HierarchicalVAE):
    r"""Several layers, inferred from the data upward.

    .. math:: q(z \mid x) = q(z_1 \mid x) \prod_{l > 1} q(z_l \mid z_{l-1})

    Args:
        encoders: q(z_1 given x), q(z_2 given z_1), ... Each reads the layer below.
        generators: p(z_1 given z_2), p(z_2 given z_3), ... These are encoders that read the layer
            above.
        decoder: Module that maps z_1 to the likelihood's parameters, see :class:`~tinyvae.VAE`.
        likelihood: Module that maps these parameters to p(x given z_1).
        prior: p(z_L), by default N(0, I). A :class:`~tinyvae.VampPrior` uses the last encoder, so
            its pseudo-inputs have the shape of z_{L-1}.
        data_shape: Shape of one datum, see :class:`~tinyvae.VAE`.

    Shape:
        x: ``(B, *E)``; latents: ``(K, B, *L_l)``.

    References:
        Burda, Grosse, Salakhutdinov (2016). Importance Weighted Autoencoders. arXiv:1509.00519,
        sections 2 and 5.

    Example:
        >>> vae = BottomUpVAE(
        ...     encoders=[GaussianEncoder(MLP(4, (8,)), 3), GaussianEncoder(MLP(3, (8,)), 2)],
        ...     generators=[GaussianEncoder(MLP(2, (8,)), 3)],
        ...     decoder=MLP(3, (8,), out_shape=4),
        ...     likelihood=BernoulliLikelihood(),
        ... )
        >>> output = vae(x, num_samples=5)
        >>> [(term.name, tuple(term.z.shape)) for term in output.latents]
        [('z1', (5, 8, 3)), ('z2', (5, 8, 2))]
        >>> output.log_weight().shape
        torch.Size([5, 8])
    """

    def infer(self, inputs: Tensor, context: Tensor | None, draw: Draw) -> Inference:
        """Draw z_1 from q(z_1 given x), then each layer given the one below."""
        top_prior = self.prior_given(context)
        posteriors: list[Distribution] = [self._encoder(0)(inputs, context)]
        draws = [draw(self._encoder(0).latent_shape, posteriors[0])]
        values = [posteriors[0].value_of(draws[0][0])]
        for layer in range(1, len(self.encoders)):
            posteriors.append(conditional_density(self._encoder(layer), values[-1], context))
            draws.append(draw(self._encoder(layer).latent_shape, posteriors[-1]))
            values.append(posteriors[-1].value_of(draws[-1][0]))
        priors = [self._generated(n, z, context) for n, z in enumerate(values[1:])]
        priors.append(top_prior)
        # The prior of a lower layer depends on a draw that was made from that layer's draw, so the
        # closed form of the KL does not apply.
        terms = tuple(
            LatentTerm.of(f"z{n + 1}", drawn, q, p, analytic=p is top_prior)
            for n, (drawn, q, p) in enumerate(zip(draws, posteriors, priors, strict=True))
        )
        return terms, values[0]


class LadderVAE(_HierarchicalVAE):
    r"""Several Gaussian layers, inferred from the top down along the generative path.

    A deterministic upward pass, :math:`d_l = f_l(d_{l-1})`, gives a Gaussian message
    :math:`(\hat\mu_l, \hat\sigma_l)` of the data for each layer. The downward pass multiplies it
    with the density generated from above, which weights the means by precision:

    .. math:: q(z_l \mid z_{l+1}, x) = \mathcal{N}\Big(
        \frac{\hat\mu_l \hat\sigma_l^{-2} + \mu_l \sigma_l^{-2}}
             {\hat\sigma_l^{-2} + \sigma_l^{-2}},\;
        \frac{1}{\hat\sigma_l^{-2} + \sigma_l^{-2}}\Big), \qquad
        p(z_l \mid z_{l+1}) = \mathcal{N}(\mu_l, \sigma_l^2)

    The KL of every layer has a closed form given the draws above it. The first encoder, the
    generators and the decoder read the context.

    Args:
        encoders: Gaussian encoders, whose networks :math:`f_l` are the upward pass. The first one
            reads x, each other one the features of the one below.
        generators: Gaussian encoders of p(z_1 given z_2), p(z_2 given z_3), ...
        decoder: Module that maps z_1 to the likelihood's parameters, see :class:`~tinyvae.VAE`.
        likelihood: Module that maps these parameters to p(x given z_1).
        prior: p(z_L), by default N(0, I). A :class:`~tinyvae.VampPrior` uses the upward pass to
            q(z_L given x), so its pseudo-inputs have the shape of the encoder's input.
        data_shape: Shape of one datum, see :class:`~tinyvae.VAE`.

    Shape:
        x: ``(B, *E)``; latents: ``(K, B, D_l)``.

    References:
        Sonderby, Raiko, Maaloe, Sonderby, Winther (2016). Ladder Variational Autoencoders.
        arXiv:1602.02282.

    Example:
        >>> vae = LadderVAE(
        ...     encoders=[GaussianEncoder(MLP(4, (8,)), 3), GaussianEncoder(MLP(8, (8,)), 2)],
        ...     generators=[GaussianEncoder(MLP(2, (8,)), 3)],
        ...     decoder=MLP(3, (8,), out_shape=4),
        ...     likelihood=BernoulliLikelihood(),
        ... )
        >>> [tuple(term.kl("analytic").shape) for term in vae(x).latents]
        [(8,), (8,)]
    """

    layer_type = GaussianEncoder

    def _encoder(self, layer: int) -> GaussianEncoder:
        return cast("GaussianEncoder", self.encoders[layer])

    def _generated(self, layer: int, above: Tensor, context: Tensor | None) -> Independent:
        generator = cast("GaussianEncoder", self.generators[layer])
        rows = above.flatten(0, 1)
        row_context = None if context is None else repeat_rows(context, len(rows))
        features = generator.encode(rows, row_context)
        mean, log_std = generator.location_and_scale(features)
        batch_shape = above.shape[:2]  # (K, B)
        return _independent(mean.unflatten(0, batch_shape), log_std.unflatten(0, batch_shape))

    def _upwards(self, inputs: Tensor, context: Tensor | None) -> list[Tensor]:
        """Return the features of every layer."""
        features = [inputs]
        for layer in range(len(self.encoders)):
            encoder = self._encoder(layer)
            features.append(encoder.encode(features[-1], context if layer == 0 else None))
        return features[1:]

    def _top(self, inputs: Tensor, context: Tensor | None = None) -> Distribution:
        """Return q(z_L given x)."""
        return self._encoder(-1).posterior(self._upwards(inputs, context)[-1])

    def prior_given(self, context: Tensor | None) -> Distribution:
        """Return p(z_L), or p(z_L given context)."""
        prior: Distribution = self.prior(context, encoder=self._top)
        return prior

    def infer(self, inputs: Tensor, context: Tensor | None, draw: Draw) -> Inference:
        """Draw the top layer given x, then each layer given x and the one above."""
        features = self._upwards(inputs, context)
        encoder = self._encoder(-1)
        posterior = encoder.posterior(features[-1])
        z, _ = draw(encoder.latent_shape, posterior)
        terms = [LatentTerm(f"z{len(features)}", z, posterior, self.prior_given(context))]
        for layer in reversed(range(len(self.generators))):
            encoder = self._encoder(layer)
            prior = self._generated(layer, z, context)
            posterior = _product(encoder.location_and_scale(features[layer]), prior)
            z, _ = draw(encoder.latent_shape, posterior)
            terms.append(LatentTerm(f"z{layer + 1}", z, posterior, prior))
        return tuple(reversed(terms)), z


def _independent(mean: Tensor, log_std: Tensor) -> Independent:
    return Independent(Normal(mean, log_std), mean.dim() - 2)  # (K, B, *L)


def _product(message: tuple[Tensor, Tensor], prior: Independent) -> Independent:
    """Return the normalized product of two normal densities: means weighted by precision."""
    mean, log_std = message
    generated = prior.base
    if not isinstance(generated, Normal):
        raise TypeError(f"LadderVAE expects a normal density to multiply with, got {prior}")
    log_precision, log_prior_precision = -2 * log_std, -2 * generated.log_std
    weight = torch.sigmoid(log_precision - log_prior_precision)
    product_mean = weight * mean + (1 - weight) * generated.mean
    return _independent(product_mean, -0.5 * torch.logaddexp(log_precision, log_prior_precision))
