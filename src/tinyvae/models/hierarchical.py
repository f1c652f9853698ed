r"""Models with several stochastic layers.

.. math:: p(x, z_1, \dots, z_L) = p(x \mid z_1) \Big[\prod_{l < L} p(z_l \mid z_{l+1})\Big] p(z_L)

Layer 1 is next to the data. The record has one latent term per layer, whose sum of log p - log q is
the exact joint one.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from tinyvae.distributions import Distribution, Independent, Normal
from tinyvae.encoders import Encoder, GaussianEncoder
from tinyvae.likelihoods import Likelihood
from tinyvae.models.base import DecoderModel, conditional, drawn, repeated
from tinyvae.models.checks import Draw, expect
from tinyvae.models.output import LatentTerm
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
    ) -> None:
        self._check_layers(encoders, generators)
        top = encoders[-1].latent_shape
        prior = StandardNormal(top) if prior is None else prior
        name = type(self).__name__
        expect(name, prior, Prior, "prior", "such as StandardNormal(top latent_shape)")
        if prior.latent_shape != top:
            raise ValueError(
                f"{name} expects a prior over the top latents {tuple(top)}, got one over "
                f"{tuple(prior.latent_shape)}"
            )
        super().__init__(
            {
                "encoders": encoders,
                "generators": generators,
                "decoder": decoder,
                "likelihood": likelihood,
                "prior": prior,
            }
        )

    def _check_layers(self, encoders: Sequence[Encoder], generators: Sequence[Encoder]) -> None:
        name, kind = type(self).__name__, self.layer_type
        for several in (encoders, generators):
            if not isinstance(several, (list, tuple)):
                raise TypeError(
                    f"{name} expects lists of encoders and generators, got a "
                    f"{type(several).__name__}: one per layer, [GaussianEncoder(...), ...]"
                )
        remedy = "GaussianEncoder(network, latent_dim)"
        for part in (*encoders, *generators):
            expect(name, part, kind, "every encoder and generator", remedy)
        if not encoders or len(generators) != len(encoders) - 1:
            raise ValueError(
                f"{name} expects encoders of L >= 1 layers and generators of the L - 1 lower ones, "
                f"got {len(encoders)} and {len(generators)}"
            )
        for layer, (encoder, generator) in enumerate(zip(encoders, generators, strict=False)):
            if encoder.latent_shape != generator.latent_shape:
                raise ValueError(
                    f"{name}: z{layer + 1} is {tuple(encoder.latent_shape)} of its encoder and "
                    f"{tuple(generator.latent_shape)} of its generator"
                )

    @property
    def latent_shape(self) -> torch.Size:  # type: ignore[override]
        """Shape of the latent next to the data."""
        return self._encoder(0).latent_shape

    @property
    def is_density(self) -> bool:
        """Whether posteriors, generators and likelihood are densities."""
        parts = (*self.encoders, *self.generators)
        return self.likelihood.is_density and all(part.is_density for part in parts)

    def _encoder(self, layer: int) -> Encoder:
        return cast("Encoder", self.encoders[layer])

    def _generated(self, layer: int, above: Tensor, context: Tensor | None) -> Distribution:
        """p(z given what is above), of batch shape ``(K, B)``."""
        return conditional(cast("Encoder", self.generators[layer]), above, context)

    def prior_given(self, context: Tensor | None) -> Distribution:
        """p(z_L), or p(z_L given context)."""
        prior: Distribution = self.prior(context, encoder=self._encoder(-1))
        return prior

    def generate(self, num_samples: int, context: Tensor | None) -> Tensor:
        """Draw of p(z_L), then of every layer below."""
        z = drawn(self.prior_given(context), num_samples, context)
        z = z if context is not None else z.unsqueeze(1)
        for layer in reversed(range(len(self.generators))):
            z = self._generated(layer, z, context).sample()
        return z if context is not None else z.squeeze(1)


class BottomUpVAE(_HierarchicalVAE):
    r"""Several layers, inferred from the data upwards.

    .. math:: q(z \mid x) = q(z_1 \mid x) \prod_{l > 1} q(z_l \mid z_{l-1})

    Args:
        encoders: q(z_1 given x), q(z_2 given z_1), ...: each reads the layer below.
        generators: p(z_1 given z_2), p(z_2 given z_3), ...: encoders too, which read the layer
            above.
        decoder: Module that maps z_1 to the likelihood's parameters, as of
            :class:`~tinyvae.VAE`.
        likelihood: Module that turns them into p(x given z_1).
        prior: p(z_L), by default N(0, I). A :class:`~tinyvae.VampPrior` borrows the last encoder:
            its pseudo-inputs are of the shape of z_{L-1}.

    Shape:
        x: ``(B, *E)``; latents: ``(K, B, *L_l)``.

    References:
        Burda, Grosse, Salakhutdinov (2016). Importance Weighted Autoencoders. arXiv:1509.00519,
        section 2 and 5.

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

    def infer(
        self, inputs: Tensor, context: Tensor | None, draw: Draw
    ) -> tuple[tuple[LatentTerm, ...], Tensor]:
        """Draw z_1 of q(z_1 given x), then each layer given the one below."""
        top_prior = self.prior_given(context)
        posteriors: list[Distribution] = [self._encoder(0)(inputs, context)]
        draws = [draw(self._encoder(0).latent_shape, posteriors[0])]
        for layer in range(1, len(self.encoders)):
            posteriors.append(conditional(self._encoder(layer), draws[-1][0], context))
            draws.append(draw(self._encoder(layer).latent_shape, posteriors[-1]))
        priors = [
            self._generated(layer, draws[layer + 1][0], context)
            for layer in range(len(self.generators))
        ]
        priors.append(top_prior)
        top = len(draws) - 1
        # A lower layer's prior hangs on a draw that was made from it: no KL in closed form.
        terms = tuple(
            LatentTerm(f"z{n + 1}", z, q, p, analytic=n == top, drawn_log_q=log_q)
            for n, ((z, log_q), q, p) in enumerate(zip(draws, posteriors, priors, strict=True))
        )
        return terms, draws[0][0]


class LadderVAE(_HierarchicalVAE):
    r"""Several Gaussian layers, inferred from the top down along the generative path.

    A deterministic pass upwards, :math:`d_l = f_l(d_{l-1})`, gives for each layer a Gaussian
    message :math:`(\hat\mu_l, \hat\sigma_l)` of the data. On the way down it is multiplied with
    what is generated from above, weighted by precision:

    .. math:: q(z_l \mid z_{l+1}, x) = \mathcal{N}\Big(
        \frac{\hat\mu_l \hat\sigma_l^{-2} + \mu_l \sigma_l^{-2}}
             {\hat\sigma_l^{-2} + \sigma_l^{-2}},\;
        \frac{1}{\hat\sigma_l^{-2} + \sigma_l^{-2}}\Big), \qquad
        p(z_l \mid z_{l+1}) = \mathcal{N}(\mu_l, \sigma_l^2)

    The KL of every layer has a closed form given the draws above it. A context is read by the first
    encoder, the generators and the decoder.

    Args:
        encoders: Gaussian encoders, whose networks :math:`f_l` are the pass upwards: the first
            reads x, the others the features of the one below.
        generators: Gaussian ones of p(z_1 given z_2), p(z_2 given z_3), ...
        decoder: Module that maps z_1 to the likelihood's parameters, as of :class:`~tinyvae.VAE`.
        likelihood: Module that turns them into p(x given z_1).
        prior: p(z_L), by default N(0, I). A :class:`~tinyvae.VampPrior` has pseudo-inputs of the
            shape of the encoder's input, for it borrows the way up to q(z_L given x).

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
        features = generator.encode(rows, None if context is None else repeated(context, len(rows)))
        mean, log_std = generator.location_and_scale(features)
        batch = above.shape[:2]
        return _independent(mean.unflatten(0, batch), log_std.unflatten(0, batch))

    def _upwards(self, inputs: Tensor, context: Tensor | None) -> list[Tensor]:
        """Features of every layer."""
        features = [inputs]
        for layer in range(len(self.encoders)):
            encoder = self._encoder(layer)
            features.append(encoder.encode(features[-1], context if layer == 0 else None))
        return features[1:]

    def _top(self, inputs: Tensor, context: Tensor | None = None) -> Distribution:
        """q(z_L given x)."""
        return self._encoder(-1).posterior(self._upwards(inputs, context)[-1])

    def prior_given(self, context: Tensor | None) -> Distribution:
        """p(z_L), or p(z_L given context)."""
        prior: Distribution = self.prior(context, encoder=self._top)
        return prior

    def infer(
        self, inputs: Tensor, context: Tensor | None, draw: Draw
    ) -> tuple[tuple[LatentTerm, ...], Tensor]:
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
    """Product of two normal densities, normalized: means weighted by precision."""
    mean, log_std = message
    generated = prior.base
    if not isinstance(generated, Normal):
        raise TypeError(f"expected a normal density to multiply with, got {prior}")
    log_precision, log_other = -2 * log_std, -2 * generated.log_std
    weight = torch.sigmoid(log_precision - log_other)
    both = weight * mean + (1 - weight) * generated.mean
    return _independent(both, -0.5 * torch.logaddexp(log_precision, log_other))
