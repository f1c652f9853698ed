r"""Vector quantization: latents that are codes of a codebook, or sums of codes of several.

.. math:: z = \sum_q e^q_{k_q}, \qquad \log p(x \mid z) + \sum_q \log p(k_q) \leq \log p(x)

The posterior puts all its mass on one code of each codebook. The sum of the log likelihood and the
log masses of the codes is therefore a lower bound on the log evidence of the discrete model.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyvae.core.module_state import RunningStatistics
from tinyvae.core.objective import perplexity
from tinyvae.distributions import Quantized
from tinyvae.distributions.quantized import levels_of, residual_codes
from tinyvae.encoders.base import NetworkEncoder, latent_size


class VectorQuantizedEncoder(RunningStatistics, NetworkEncoder):
    r"""Posterior on the code that is nearest to the output :math:`h` of a network.

    .. math:: z = e_k, \qquad k = \arg\min_j \|h(x) - e_j\|

    The gradient of the code's vector is passed to the network unchanged (straight through). Two
    losses, per example and summed over the latent, are added to the training loss: the commitment
    of the network to its codes, :math:`c \|h - \bar e\|^2`, and, without ``decay``, the commitment
    of the codes to the network, :math:`\|\bar h - e\|^2` (bars: without gradients).

    With ``decay`` each code is the moving average of the outputs that it quantized: a plain average
    over the first batches, an exponential one afterwards. Codes that quantize hardly any output
    restart at outputs of the batch. ``forward`` makes both updates in training mode if gradients
    are enabled, as BatchNorm updates its statistics; ``track_running_stats = False`` suspends
    them. The metric ``perplexity`` is the exponential of the entropy of the codes: those of the
    batch in the output of a pass, those of the epoch or of the validation data in the history.

    With ``num_quantizers`` :math:`Q > 1`, each codebook quantizes the residual of the ones before
    it, and the latent is the sum of their codes, :math:`z = \sum_q e^q`. The commitments hold at
    every level, for the partial sums and for the residuals,

    .. math:: c \sum_q \Big\| h - \sum_{i \leq q} \bar e^i \Big\|^2, \qquad
        \sum_q \Big\| \bar h - \sum_{i < q} \bar e^i - e^q \Big\|^2,

    and averages, restarts and metrics (``perplexity_1``, ...) are separate for each level.

    Args:
        network: See :class:`~tinyvae.GaussianEncoder`.
        num_codes: Number of codes :math:`J` of each codebook.
        latent_dim: Number of coordinates :math:`C` of a code, or ``(C, *S)`` for a code at each of
            the positions S, such as ``(C, H, W)``.
        num_quantizers: Number of codebooks :math:`Q`.
        commitment: Weight :math:`c`.
        decay: Decay of the codebook's moving averages. None trains the codebook by gradient
            descent.
        restart_below: A code restarts if the average number of outputs that it quantizes falls
            below this fraction of an equal share. 0 disables restarts.
        features: See :class:`~tinyvae.GaussianEncoder`.

    Shape:
        x: ``(B, *E)``; posterior: ``batch_shape (B,)``, ``event_shape (C, *S)``, codes ``(B, *S)``,
        or ``(B, Q, *S)`` for several codebooks.

    References:
        van den Oord, Vinyals, Kavukcuoglu (2017). Neural Discrete Representation Learning.
        arXiv:1711.00937, section 3.2 and appendix A.1.

        Lee, Kim, Kim, Cho, Han (2022). Autoregressive Image Generation using Residual
        Quantization. arXiv:2203.01941, section 3.1 (there one codebook serves every level).

        Zeghidour, Luebs, Omran, Skoglund, Tagliasacchi (2021). SoundStream: An End-to-End Neural
        Audio Codec. arXiv:2107.03312, section III-C.

        Adiban, Siniscalchi, Stefanov, Salvi (2022). Hierarchical Residual Learning Based Vector
        Quantized Variational Autoencoder for Image Reconstruction and Generation.
        arXiv:2208.04554 (there each code has its own codebook on the next level).

    Example:
        >>> encoder = VectorQuantizedEncoder(
        ...     ConvNet((1, 28, 28)), num_codes=64, latent_dim=(16, 7, 7)
        ... )
        >>> encoder(torch.zeros(5, 1, 28, 28)).codes.shape
        torch.Size([5, 7, 7])
        >>> encoder = VectorQuantizedEncoder(
        ...     MLP(4, hidden=(8,)), num_codes=16, latent_dim=2, num_quantizers=3
        ... )
        >>> encoder(torch.zeros(5, 4)).codes.shape
        torch.Size([5, 3])
    """

    usage: Tensor
    num_batches: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        num_codes: int,
        latent_dim: int | Sequence[int],
        num_quantizers: int = 1,
        commitment: float = 0.25,
        decay: float | None = 0.99,
        restart_below: float = 0.05,
        features: int | None = None,
    ) -> None:
        shape = latent_size(latent_dim)
        super().__init__(network, shape, shape.numel(), features)
        if num_codes < 2:
            raise ValueError(f"VectorQuantizedEncoder expects num_codes >= 2, got {num_codes}")
        if num_quantizers < 1:
            raise ValueError(
                f"VectorQuantizedEncoder expects num_quantizers >= 1, got {num_quantizers}"
            )
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"VectorQuantizedEncoder expects 0 <= decay < 1 or None, got {decay}")
        if commitment < 0 or restart_below < 0:
            raise ValueError(
                "VectorQuantizedEncoder expects commitment and restart_below >= 0, got "
                f"{commitment} and {restart_below}"
            )
        self.commitment, self.decay, self.restart_below = commitment, decay, restart_below
        self.num_codes, self.num_quantizers = num_codes, num_quantizers
        self.track_running_stats = True
        codes = (*_several(num_quantizers), num_codes)  # (J,) or (Q, J)
        codebook = torch.randn(*codes, shape[0])
        if decay is None:
            self.codebook: Tensor = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
        # Average number of outputs per batch that each code quantizes.
        self.register_buffer("usage", torch.zeros(codes))
        self.register_buffer("num_batches", torch.zeros(()))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Quantized:
        """Return q(z given x), and update the codebook in training mode."""
        posterior, codes, residuals = self._quantize(self.encode(x, context))
        if self.training and self.track_running_stats and torch.is_grad_enabled():
            self._update(codes, residuals)
        return posterior

    def posterior(self, features: Tensor) -> Quantized:
        """Return q(z given the features), without an update of the codebook."""
        return self._quantize(features)[0]

    def _quantize(self, features: Tensor) -> tuple[Quantized, Tensor, list[Tensor]]:
        """Return q(z given the features), codes ``(B, *S, Q)`` and the inputs of the levels."""
        outputs = self.params(features).unflatten(1, self.latent_shape)  # (B, C, *S)
        rows, levels = outputs.detach().movedim(1, -1), levels_of(self.codebook)
        codes, residuals = residual_codes(rows, levels.detach())  # (B, *S, Q), Q times (B, *S, C)
        pairs = zip(codes.unbind(-1), levels, strict=True)
        vectors = [F.embedding(index, codebook).movedim(-1, 1) for index, codebook in pairs]
        sums = list(accumulate(vector.detach() for vector in vectors))
        value = sums[-1] + (outputs - outputs.detach())
        losses = {"commitment": self.commitment * _distance([outputs] * len(sums), sums)}
        if self.decay is None:
            inputs = [residual.movedim(-1, 1) for residual in residuals]
            losses["codebook"] = _distance(inputs, vectors)
        shares = _shares(self._counts(codes))
        metrics = {name: perplexity(values) for name, values in shares.items()}
        shape = (len(rows), *self.usage.shape[:-1], *rows.shape[1:-1])  # (B, *S) or (B, Q, *S)
        indices = codes.movedim(-1, 1).reshape(shape)
        return Quantized(value, indices, losses, metrics, shares), codes, residuals

    def _counts(self, codes: Tensor) -> Tensor:
        """Return the number of outputs that each code quantizes, ``(Q, J)``."""
        counts = [torch.bincount(c.flatten(), minlength=self.num_codes) for c in codes.unbind(-1)]
        return torch.stack(counts).to(self.usage.dtype)

    @torch.no_grad()
    def _update(self, codes: Tensor, residuals: list[Tensor]) -> None:
        """Update every level from the residuals that its codes quantized."""
        self.num_batches += 1
        counts = self._counts(codes)
        levels, usage = levels_of(self.codebook), self.usage.view_as(counts)
        for q, rows in enumerate(residuals):
            index = codes[..., q].flatten()
            self._update_level(levels[q], usage[q], rows.flatten(0, -2), index, counts[q])

    def _update_level(
        self, codebook: Tensor, old_usage: Tensor, rows: Tensor, codes: Tensor, counts: Tensor
    ) -> None:
        """Average the quantized rows into their codes, and restart unused codes at rows."""
        weight = (1 / self.num_batches).clamp(min=1 - (0.99 if self.decay is None else self.decay))
        usage = torch.lerp(old_usage, counts, weight)
        if self.decay is not None:
            sums = torch.zeros_like(codebook).index_add_(0, codes, rows)
            mass = torch.lerp(old_usage.unsqueeze(1) * codebook, sums, weight)
            means = mass / usage.unsqueeze(1)
            codebook.copy_(torch.where(counts.unsqueeze(1) > 0, means, codebook))
        equal_share = len(rows) / len(usage)
        is_dead = usage < self.restart_below * equal_share
        chosen = torch.randint(len(rows), (len(usage),), device=rows.device)
        codebook.copy_(torch.where(is_dead.unsqueeze(1), rows[chosen], codebook))
        old_usage.copy_(torch.where(is_dead, equal_share, usage))


def _several(num_quantizers: int) -> tuple[int, ...]:
    """Return the dimension of the codebooks, which a single codebook does not have."""
    return (num_quantizers,) if num_quantizers > 1 else ()


def _distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Return the squared distance of each example, summed over levels, ``(B,)``."""
    pairs = zip(a, b, strict=True)
    return torch.stack([(x - y).square().flatten(1).sum(1) for x, y in pairs]).sum(0)


def _shares(counts: Tensor) -> dict[str, Tensor]:
    """Return the shares of each level's codes ``(Q, J)``, by the name of their perplexity."""
    shares = counts / counts.sum(-1, keepdim=True)
    if len(shares) == 1:
        return {"perplexity": shares[0]}
    return {f"perplexity_{q}": level for q, level in enumerate(shares, 1)}
