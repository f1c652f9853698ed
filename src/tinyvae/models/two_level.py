r"""A model with two stochastic layers that both reach the data, inferred from the top.

.. math:: p(x, z_1, z_2) = p(x \mid z_1, z_2)\, p(z_1 \mid z_2)\, p(z_2), \qquad
    q(z \mid x) = q(z_2 \mid x)\, q(z_1 \mid x, z_2)
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tinyvae.distributions import Distribution, ReshapedBatch
from tinyvae.encoders import Encoder
from tinyvae.likelihoods import Likelihood
from tinyvae.models.base import DecoderModel
from tinyvae.models.checks import require_distribution, require_latent_shape, require_part
from tinyvae.models.latents import conditional_density, repeat_rows, sample_prior
from tinyvae.models.output import Draw, Inference, LatentTerm
from tinyvae.priors import Prior, StandardNormal


class TwoLevelVAE(DecoderModel):
    r"""Two layers, both of which the decoder reads: the model of the hierarchical VampPrior.

    Args:
        top: q(z_2 given x).
        bottom: q(z_1 given x, z_2): an encoder whose network reads x and, as its context, z_2
            followed by the model's own context, such as one with a
            :class:`~tinyvae.networks.ConcatContext`.
        generator: p(z_1 given z_2): an encoder that reads z_2.
        decoder: Module that maps z_1 and z_2, flattened and concatenated, to the likelihood's
            parameters, see :class:`~tinyvae.VAE`.
        likelihood: Module that maps these parameters to p(x given z_1, z_2).
        prior: p(z_2), by default N(0, I). A :class:`~tinyvae.VampPrior` uses ``top``.
        data_shape: Shape of one datum, see :class:`~tinyvae.VAE`.

    Shape:
        x: ``(B, *E)``; latents: ``(K, B, *L_l)``.

    References:
        Tomczak, Welling (2018). VAE with a VampPrior. arXiv:1705.07120, section 4.

    Example:
        >>> vae = TwoLevelVAE(
        ...     top=GaussianEncoder(MLP(4, (8,)), 2),
        ...     bottom=GaussianEncoder(ConcatContext(MLP(4 + 2, (8,)), context_dim=2), 3),
        ...     generator=GaussianEncoder(MLP(2, (8,)), 3),
        ...     decoder=MLP(3 + 2, (8,), out_shape=4),
        ...     likelihood=BernoulliLikelihood(),
        ...     prior=VampPrior(2, input_shape=4, num_components=5),
        ... )
        >>> [(term.name, tuple(term.z.shape)) for term in vae(x).latents]
        [('z1', (1, 8, 3)), ('z2', (1, 8, 2))]
    """

    inference = "chain of encoders and generators"
    posterior_parts = ("top", "bottom")
    top: Encoder
    bottom: Encoder
    generator: Encoder
    prior: Prior

    def __init__(
        self,
        top: Encoder,
        *,
        bottom: Encoder,
        generator: Encoder,
        decoder: nn.Module,
        likelihood: Likelihood,
        prior: Prior | None = None,
        data_shape: Sequence[int] | None = None,
    ) -> None:
        owner, remedy = "TwoLevelVAE", "GaussianEncoder(network, latent_dim)"
        for name, part in (("top", top), ("bottom", bottom), ("generator", generator)):
            require_part(owner, part, Encoder, name, remedy)
        prior = StandardNormal(top.latent_shape) if prior is None else prior
        require_part(owner, prior, Prior, "prior", "such as StandardNormal(top.latent_shape)")
        require_latent_shape(owner, "a generator of z1", bottom, generator)
        require_latent_shape(owner, "a prior of z2", top, prior)
        parts = {
            "top": top,
            "bottom": bottom,
            "generator": generator,
            "decoder": decoder,
            "likelihood": likelihood,
            "prior": prior,
        }
        super().__init__(parts, data_shape)

    @property
    def latent_shape(self) -> torch.Size:  # type: ignore[override]
        """Shape of both latents, flattened and concatenated."""
        return torch.Size((self.bottom.latent_shape.numel() + self.top.latent_shape.numel(),))

    @property
    def is_density(self) -> bool:
        """True if posteriors, generator and likelihood are densities."""
        parts = (self.top, self.bottom, self.generator, self.likelihood)
        return all(part.is_density for part in parts)

    def infer(self, inputs: Tensor, context: Tensor | None, draw: Draw) -> Inference:
        """Draw z_2 given x, then z_1 given x and z_2."""
        prior = self.prior_given(context)
        upper: Distribution = self.top(inputs, context)
        term2 = LatentTerm.of("z2", draw(self.top.latent_shape, upper), upper, prior)
        z2 = term2.z  # (K, B, *L_2)
        condition = z2.flatten(0, 1)  # (K * B, *L_2)
        num_rows = len(condition)
        if context is not None:
            row_context = repeat_rows(context, num_rows)
            condition = torch.cat([condition.flatten(1), row_context.flatten(1)], 1)
        posterior = self.bottom(repeat_rows(inputs, num_rows), condition)
        require_distribution(posterior, len(self.bottom.latent_shape))
        lower = ReshapedBatch(posterior, z2.shape[:2])
        drawn = draw(self.bottom.latent_shape, lower)
        generated = conditional_density(self.generator, z2, context)
        term1 = LatentTerm.of("z1", drawn, lower, generated)
        return (term1, term2), _concatenate(term1.z, z2)

    def generate(self, num_samples: int, context: Tensor | None) -> Tensor:
        """Draw from p(z_2), then from p(z_1 given z_2)."""
        z2 = sample_prior(self.prior_given(context), num_samples, context)
        z2 = z2 if context is not None else z2.unsqueeze(1)
        z = _concatenate(conditional_density(self.generator, z2, context).sample(), z2)
        return z if context is not None else z.squeeze(1)

    def prior_given(self, context: Tensor | None) -> Distribution:
        """Return p(z_2), or p(z_2 given context)."""
        prior: Distribution = self.prior(context, encoder=self.top)
        return prior


def _concatenate(z1: Tensor, z2: Tensor) -> Tensor:
    return torch.cat([z1.flatten(2), z2.flatten(2)], 2)
