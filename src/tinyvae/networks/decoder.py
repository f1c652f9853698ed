"""The interface of decoders."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from tinyvae.core.configurable import Configurable


class Decoder(Configurable, nn.Module, ABC):
    r"""A module that maps latents to the parameters of a likelihood.

    Every :class:`~tinyvae.networks.Network` and every other ``nn.Module`` that keeps this contract
    also serves as a decoder. A subclass of this class adds two things: a file describes it by its
    constructor's arguments, and a model can tell it its output shape.

    The contract, checked by :func:`tinyvae.testing.check_decoder`:

    - Latents ``(N, *L)`` give parameters ``(N, P, *E)``, or ``(N, *E)`` if ``P`` is 1, for data of
      shape ``E``. ``likelihood.param_shape(E)`` is the shape of one output.
    - Each row of the output depends on the same row of the latents and of the context only. The
      ``N`` rows are the ``K * B`` latents of ``K`` draws for ``B`` examples.
    - The decoder gets the context ``(N, ...)`` as second argument if the model has one.
    - Parameters are unconstrained numbers. The likelihood maps them into their ranges.

    A decoder that can take its output shape from the model sets ``needs_out_shape`` until
    :meth:`build` is called.

    Attributes:
        needs_out_shape: True if the decoder has no output shape yet. The model then calls
            :meth:`build`.

    Shape:
        z: ``(N, *L)``; context: ``(N, ...)``; output: ``(N, P, *E)``, or ``(N, *E)`` if ``P`` is 1.

    Example:
        >>> class SharedScaleDecoder(Decoder):
        ...     def __init__(self, latent_dim, data_dim):
        ...         super().__init__()
        ...         self.latent_dim, self.data_dim = latent_dim, data_dim
        ...         self.linear = torch.nn.Linear(latent_dim, data_dim + 1)
        ...
        ...     def forward(self, z, context=None):
        ...         mean, log_std = self.linear(z).split([self.data_dim, 1], 1)
        ...         return torch.stack([mean, log_std.expand_as(mean)], 1)  # (N, 2, D)
        >>> decoder = SharedScaleDecoder(2, 4)
        >>> vae = VAE(GaussianEncoder(MLP(4), 2), decoder, GaussianLikelihood("predicted"))
        >>> vae.sample(3).shape
        torch.Size([3, 4])
    """

    needs_out_shape: bool = False

    @abstractmethod
    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Map latents ``(N, *L)`` to parameters ``(N, P, *E)``, or ``(N, *E)`` if ``P`` is 1."""

    def build(self, out_shape: Sequence[int]) -> None:
        """Create the layers that depend on the output shape, ``(P, *E)`` or ``E``."""
        raise NotImplementedError(
            f"{type(self).__name__} must define build(out_shape), because it sets needs_out_shape"
        )
