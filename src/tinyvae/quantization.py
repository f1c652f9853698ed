r"""Vector quantization: latents out of a codebook.

.. math:: z = e_k, \qquad k = \arg\min_j \|h(x) - e_j\|

The posterior puts all its mass on one code, so that with a prior p(k) over codes
:math:`\log p(x \mid e_k) + \log p(k)` is a lower bound on the log evidence of the model with
discrete latents (van den Oord, Vinyals, Kavukcuoglu 2017, arXiv:1711.00937).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyvae.distributions import Codes, Quantized
from tinyvae.distributions.quantized import nearest
from tinyvae.encoders import NetworkEncoder
from tinyvae.encoders.base import latent_size
from tinyvae.priors import PosteriorOf, Prior

__all__ = ["CodePrior", "VectorQuantizedEncoder"]


class VectorQuantizedEncoder(NetworkEncoder):
    r"""Posterior on the code that is nearest to what the network says.

    Gradients of the code's vector are handed on to the network as they are (straight through). Two
    losses, per example and summed over the latent, are added to a training's: the commitment of the
    network to its codes, :math:`c \|h - \bar e\|^2`, and, without ``decay``, that of the codes to
    the network, :math:`\|\bar h - e\|^2` (bars: without gradients). With ``decay`` each code is the
    average of the outputs that it stood for (of the first batches alike, then exponential). Codes
    that hardly stand for any output start anew from outputs of the batch. Both happen when the
    posterior is drawn from in training mode, as every training pass does. The record's metric
    ``perplexity`` is the exponential of the entropy of the codes in the batch.

    Args:
        network: As of :class:`~tinyvae.GaussianEncoder`.
        num_codes: Number of codes :math:`J`.
        latent_dim: Number of coordinates :math:`C` of a code, or ``(C, *S)`` for a code at each of
            the positions S, such as ``(C, H, W)``.
        commitment: Weight :math:`c`.
        decay: Of the averages; None has codes trained by the loss.
        restart_below: A code starts anew when the average number of outputs that it stands for
            falls below this share of an equal one; 0 never.
        features: As of :class:`~tinyvae.GaussianEncoder`.

    Shape:
        x: ``(B, *E)``; posterior: ``batch_shape (B,)``, ``event_shape (C, *S)``.

    References:
        van den Oord, Vinyals, Kavukcuoglu (2017). Neural Discrete Representation Learning.
        arXiv:1711.00937, section 3.2 and appendix A.1.

    Example:
        >>> encoder = VectorQuantizedEncoder(ConvNet((1, 28, 28)), 64, latent_dim=(16, 7, 7))
        >>> encoder(torch.zeros(5, 1, 28, 28)).codes.shape
        torch.Size([5, 7, 7])
    """

    usage: Tensor
    num_batches: Tensor

    def __init__(
        self,
        network: nn.Module,
        num_codes: int,
        latent_dim: int | Sequence[int],
        *,
        commitment: float = 0.25,
        decay: float | None = 0.99,
        restart_below: float = 0.05,
        features: int | None = None,
    ) -> None:
        shape = latent_size(latent_dim)
        super().__init__(network, shape, shape.numel(), features)
        if num_codes < 2:
            raise ValueError(f"VectorQuantizedEncoder expects num_codes >= 2, got {num_codes}")
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"VectorQuantizedEncoder expects 0 <= decay < 1 or None, got {decay}")
        if commitment < 0 or restart_below < 0:
            raise ValueError("VectorQuantizedEncoder expects commitment and restart_below >= 0")
        self.commitment, self.decay, self.restart_below = commitment, decay, restart_below
        codebook = torch.randn(num_codes, shape[0])
        if decay is None:
            self.codebook: Tensor = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
        # Outputs of a batch that each code stands for, on average.
        self.register_buffer("usage", torch.zeros(num_codes))
        self.register_buffer("num_batches", torch.zeros(()))

    def posterior(self, features: Tensor) -> Quantized:
        """Return q(z given the features)."""
        outputs = self.params(features).unflatten(1, self.latent_shape)  # (B, C, *S)
        rows = outputs.detach().movedim(1, -1)  # (B, *S, C)
        codes = nearest(rows, self.codebook.detach())
        vectors = F.embedding(codes, self.codebook).movedim(-1, 1)
        value = vectors.detach() + (outputs - outputs.detach())
        losses = {"commitment": self.commitment * _distance(outputs, vectors.detach())}
        if self.decay is None:
            losses["codebook"] = _distance(outputs.detach(), vectors)
        counts = torch.bincount(codes.flatten(), minlength=len(self.usage)).to(self.usage.dtype)
        shares = counts / counts.sum()
        entropy = -torch.special.xlogy(shares, shares).sum()
        metrics = {"perplexity": entropy.exp()}
        learn = partial(self._learn, rows.flatten(0, -2), codes.flatten(), counts)
        learns = self.training and torch.is_grad_enabled()
        return Quantized(value, codes, losses, metrics, learn if learns else None)

    @torch.no_grad()
    def _learn(self, rows: Tensor, codes: Tensor, counts: Tensor) -> None:
        """Average in what the codes stood for, and start unused ones anew from it."""
        self.num_batches += 1
        weight = (1 / self.num_batches).clamp(min=1 - (0.99 if self.decay is None else self.decay))
        usage = torch.lerp(self.usage, counts, weight)
        if self.decay is not None:
            sums = torch.zeros_like(self.codebook).index_add_(0, codes, rows)
            mass = torch.lerp(self.usage.unsqueeze(1) * self.codebook, sums, weight)
            means = mass / usage.unsqueeze(1)
            self.codebook.copy_(torch.where(counts.unsqueeze(1) > 0, means, self.codebook))
        equal = len(rows) / len(usage)
        dead = usage < self.restart_below * equal
        chosen = torch.randint(len(rows), (len(usage),), device=rows.device)
        self.codebook.copy_(torch.where(dead.unsqueeze(1), rows[chosen], self.codebook))
        self.usage.copy_(torch.where(dead, equal, usage))

    def config(self) -> dict[str, Any]:
        """Arguments that build an equal encoder."""
        return super().config() | {
            "num_codes": len(self.usage),
            "commitment": self.commitment,
            "decay": self.decay,
            "restart_below": self.restart_below,
        }


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance of each example, ``(B,)``."""
    return (a - b).square().flatten(1).sum(1)


class CodePrior(Prior):
    """Categorical prior over the codes of a :class:`VectorQuantizedEncoder`, at each position.

    Uniform in training; :meth:`fit` puts it to the frequencies of the codes after. The codebook is
    the VAE's encoder's.

    Args:
        num_codes: Number of codes :math:`J`.
        latent_shape: Number of coordinates :math:`C` of a code, or ``(C, *S)``.

    Example:
        >>> encoder = VectorQuantizedEncoder(MLP(4, hidden=(8,)), 16, latent_dim=(2, 3))
        >>> decoder, prior = MLP((2, 3), out_shape=4), CodePrior(16, (2, 3))
        >>> vae = VAE(encoder, decoder, BernoulliLikelihood(), prior)
        >>> vae.prior.fit(vae.encode(x).codes)
        >>> vae.sample(5).shape
        torch.Size([5, 4])
    """

    logits: Tensor

    def __init__(self, num_codes: int, latent_shape: int | Sequence[int]) -> None:
        super().__init__()
        if num_codes < 2:
            raise ValueError(f"CodePrior expects num_codes >= 2, got {num_codes}")
        self.latent_shape = latent_size(latent_shape)
        self.register_buffer("logits", torch.zeros(num_codes, *self.latent_shape[1:]))

    def fit(self, codes: Tensor) -> None:
        """Set the probabilities to frequencies, one of each code added.

        Args:
            codes: ``(N, *S)``, as ``vae.encode(x).codes`` of the training data.
        """
        if codes.shape[1:] != self.logits.shape[1:]:
            raise ValueError(
                f"CodePrior.fit expects codes (N, *{tuple(self.logits.shape[1:])}), got "
                f"{tuple(codes.shape)}: give vae.encode(x).codes"
            )
        rows = codes.reshape(len(codes), -1)  # (N, S)
        places = len(self.logits) * torch.arange(rows.shape[1], device=codes.device)
        counts = torch.bincount((rows + places).flatten(), minlength=self.logits.numel())
        counts = counts.reshape(rows.shape[1], -1).T  # (J, S)
        self.logits.copy_((counts + 1).log().reshape(self.logits.shape))

    def forward(
        self, context: Tensor | None = None, *, encoder: PosteriorOf | None = None
    ) -> Codes:
        """Return the prior, whatever the context."""
        if not isinstance(encoder, VectorQuantizedEncoder):
            raise ValueError(
                "CodePrior needs the codebook of a VectorQuantizedEncoder, "
                f"got {type(encoder).__name__}: prior(encoder=vae.encoder)"
            )
        if len(encoder.codebook) != len(self.logits):
            raise ValueError(
                f"CodePrior of {len(self.logits)} codes does not fit the encoder's "
                f"{len(encoder.codebook)}: give both the same number"
            )
        return Codes(self.logits, encoder.codebook.detach().clone())  # it moves in training

    def config(self) -> dict[str, Any]:
        """Arguments that build an equal prior."""
        return {"num_codes": len(self.logits), "latent_shape": self.latent_shape}
