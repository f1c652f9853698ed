"""Prior over the codes of codebooks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyvae.distributions import CodebookCategorical
from tinyvae.encoders.base import latent_size
from tinyvae.encoders.quantized import VectorQuantizedEncoder, _several
from tinyvae.priors.base import PosteriorOf, Prior


class CodePrior(Prior):
    """Categorical prior over the codes of a :class:`VectorQuantizedEncoder`, at each position.

    Codes of several codebooks and codes at several positions are independent. The prior is uniform
    during training; :meth:`fit` sets it to the frequencies of the codes afterwards. It uses the
    codebooks of the VAE's encoder.

    Args:
        num_codes: Number of codes :math:`J`.
        latent_dim: Number of coordinates :math:`C` of a code, or ``(C, *S)``.
        num_quantizers: Number of codebooks :math:`Q`.

    Example:
        >>> encoder = VectorQuantizedEncoder(
        ...     MLP(4, hidden=(8,)), num_codes=16, latent_dim=(2, 3)
        ... )
        >>> decoder, prior = MLP((2, 3), out_shape=4), CodePrior(16, latent_dim=(2, 3))
        >>> vae = VAE(encoder, decoder, BernoulliLikelihood(), prior)
        >>> vae.prior.fit(vae.encode(x).codes)
        >>> vae.sample(5).shape
        torch.Size([5, 4])
    """

    logits: Tensor

    def __init__(
        self, num_codes: int, *, latent_dim: int | Sequence[int], num_quantizers: int = 1
    ) -> None:
        super().__init__()
        if num_codes < 2:
            raise ValueError(f"CodePrior expects num_codes >= 2, got {num_codes}")
        if num_quantizers < 1:
            raise ValueError(f"CodePrior expects num_quantizers >= 1, got {num_quantizers}")
        self.num_quantizers = num_quantizers
        self.latent_shape = latent_size(latent_dim)
        shape = (num_codes, *_several(num_quantizers), *self.latent_shape[1:])
        self.register_buffer("logits", torch.zeros(shape))

    def fit(self, codes: Tensor) -> None:
        """Set the probabilities to the frequencies of codes, after adding one to every count.

        Args:
            codes: ``(N, *S)``, or ``(N, Q, *S)``: ``vae.encode(x).codes`` for the training data.
        """
        if codes.shape[1:] != self.logits.shape[1:]:
            raise ValueError(
                f"CodePrior.fit expects codes (N, *{tuple(self.logits.shape[1:])}), got "
                f"{tuple(codes.shape)}: give vae.encode(x).codes"
            )
        rows = codes.reshape(len(codes), -1)  # (N, S)
        offsets = len(self.logits) * torch.arange(rows.shape[1], device=codes.device)
        counts = torch.bincount((rows + offsets).flatten(), minlength=self.logits.numel())
        counts = counts.reshape(rows.shape[1], -1).T  # (J, S)
        self.logits.copy_((counts + 1).to(self.logits.dtype).log().reshape(self.logits.shape))

    def forward(
        self, context: Tensor | None = None, *, encoder: PosteriorOf | None = None
    ) -> CodebookCategorical:
        """Return the prior, independent of the context."""
        if not isinstance(encoder, VectorQuantizedEncoder):
            raise ValueError(
                "CodePrior expects the codebook of a VectorQuantizedEncoder, "
                f"got {type(encoder).__name__}: call prior(encoder=vae.encoder)"
            )
        num_codes = encoder.codebook.shape[-2]
        if num_codes != len(self.logits):
            raise ValueError(
                f"CodePrior expects num_codes={len(self.logits)} from the encoder, got "
                f"{num_codes}: give both the same number"
            )
        if encoder.num_quantizers != self.num_quantizers:
            raise ValueError(
                f"CodePrior expects num_quantizers={self.num_quantizers} from the encoder, got "
                f"{encoder.num_quantizers}: give both the same number"
            )
        # The codebook is copied because training moves it.
        return CodebookCategorical(self.logits, encoder.codebook.detach().clone())

    @property
    def num_codes(self) -> int:
        """Number of codes in each codebook."""
        return len(self.logits)
