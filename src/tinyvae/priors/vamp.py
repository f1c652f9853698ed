r"""The VampPrior: a mixture of the posteriors of the model.

.. math:: p(z) = \textstyle\sum_k \pi_k \, q(z \mid u_k)
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tinyvae.core.keywords import suggest_keywords
from tinyvae.distributions import Mixture
from tinyvae.encoders import Encoder
from tinyvae.encoders.base import latent_size
from tinyvae.priors.base import PosteriorOf, Prior


@suggest_keywords
class VampPrior(Prior):
    r"""Mixture of posteriors of the VAE's encoder at learned pseudo-inputs :math:`u_k`.

    :meth:`from_data` initializes the pseudo-inputs with examples.

    Args:
        latent_dim: Number of latent dimensions, or the shape of one latent.
        input_shape: Shape of the encoder's input for one datum.
        num_components: Number of pseudo-inputs.
        context_shape: Shape of one row of context, if the encoder reads a context. Each
            pseudo-input has its own row.
        class_context: True if rows of context are indices of classes.
        learned_weights: True to learn the weights :math:`\pi_k`. False keeps them equal.

    References:
        Tomczak, Welling (2018). VAE with a VampPrior. arXiv:1705.07120.

    Example:
        >>> encoder = GaussianEncoder(MLP(4, hidden=(8,)), latent_dim=2)
        >>> prior = VampPrior.from_data(encoder, x, num_components=3)
        >>> VAE(encoder, MLP(2, out_shape=4), BernoulliLikelihood(), prior).sample(5).shape
        torch.Size([5, 4])
    """

    logits: nn.Parameter | None
    contexts: Tensor | None

    def __init__(
        self,
        latent_dim: int | Sequence[int],
        *,
        input_shape: int | Sequence[int],
        num_components: int = 500,
        context_shape: Sequence[int] | None = None,
        class_context: bool = False,
        learned_weights: bool = False,
    ) -> None:
        super().__init__()
        if num_components < 1:
            raise ValueError(f"VampPrior expects num_components >= 1, got {num_components}")
        self.latent_shape = latent_size(latent_dim)
        self.input_shape = latent_size(input_shape)
        self.context_shape = None if context_shape is None else torch.Size(context_shape)
        self.class_context = class_context
        self.learned_weights = learned_weights
        self.inputs = nn.Parameter(0.1 * torch.randn(num_components, *self.input_shape))
        self.register_buffer("contexts", self._no_contexts(num_components))
        logits = nn.Parameter(torch.zeros(num_components)) if learned_weights else None
        self.register_parameter("logits", logits)

    @property
    def num_components(self) -> int:
        """Number of pseudo-inputs."""
        return len(self.inputs)

    def _no_contexts(self, num_components: int) -> Tensor | None:
        if self.context_shape is None:
            return None
        dtype = torch.int64 if self.class_context else None
        return torch.zeros(num_components, *self.context_shape, dtype=dtype)

    @classmethod
    def from_data(
        cls,
        encoder: Encoder,
        x: Tensor,
        context: Tensor | None = None,
        *,
        num_components: int = 500,
        learned_weights: bool = False,
    ) -> "VampPrior":
        """Return a prior whose pseudo-inputs are examples, drawn without replacement.

        Args:
            encoder: The VAE's encoder.
            x: Inputs of the encoder, ``(N, *E)``: data, or ``likelihood.encoder_input(data)``.
            context: Context of the encoder, ``(N, ...)``.
            num_components: Number of pseudo-inputs, at most N.
            learned_weights: See :class:`VampPrior`.
        """
        if num_components > len(x):
            raise ValueError(
                f"VampPrior.from_data expects at least num_components = {num_components} examples, "
                f"got {len(x)}: give more, or num_components={len(x)}"
            )
        if not torch.isfinite(x).all():
            raise ValueError(
                "VampPrior.from_data expects finite inputs, got NaN or infinity: give the inputs "
                "of the encoder, likelihood.encoder_input(data)"
            )
        prior = cls(
            encoder.latent_shape,
            input_shape=x.shape[1:],
            num_components=num_components,
            context_shape=None if context is None else context.shape[1:],
            class_context=context is not None and not context.is_floating_point(),
            learned_weights=learned_weights,
        )
        chosen = torch.randperm(len(x))[:num_components].to(x.device)
        dtypes = (p.dtype for p in encoder.parameters() if p.is_floating_point())
        prior.inputs.data = x[chosen].to(next(dtypes, prior.inputs.dtype))
        if context is not None:
            dtype = prior.inputs.dtype if context.is_floating_point() else torch.int64
            prior.contexts = context[chosen].to(prior.inputs.device, dtype)
        return prior

    def forward(
        self, context: Tensor | None = None, *, encoder: PosteriorOf | None = None
    ) -> Mixture:
        """Return the mixture, independent of the context."""
        if encoder is None:
            raise ValueError(
                "VampPrior expects an encoder, got None: call prior(encoder=vae.encoder)"
            )
        logits = self.inputs.new_zeros(len(self.inputs)) if self.logits is None else self.logits
        return Mixture(logits, encoder(self.inputs, self.contexts))
