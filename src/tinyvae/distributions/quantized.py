r"""Latents from codebooks: a posterior on one code of each codebook, and a prior over all codes.

.. math:: z = \sum_q e^q_{k_q}, \qquad k_q = \arg\min_j \| r_{q-1} - e^q_j \|, \qquad
    r_q = r_{q-1} - e^q_{k_q}, \quad r_0 = h

Each of :math:`Q` codebooks quantizes the residual of the codebooks before it. One codebook is the
case :math:`Q = 1`.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyvae.distributions.base import Distribution, pooled, size_of
from tinyvae.distributions.multivariate import PointMass


def nearest(rows: Tensor, codebook: Tensor, *, exact: bool = False) -> Tensor:
    """Return the index of the code in ``(J, C)`` nearest to each row of ``(..., C)``, ``(...)``.

    ``exact`` computes distances from differences, which is slower than from squares and products.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist"
    distances = torch.cdist(flat, codebook, compute_mode=mode)  # (N, J)
    return distances.argmin(-1).reshape(rows.shape[:-1])


def levels_of(codebook: Tensor) -> Tensor:
    """Return one codebook ``(J, C)`` or several ``(Q, J, C)`` as ``(Q, J, C)``."""
    return codebook.view(-1, *codebook.shape[-2:])


def residual_codes(rows: Tensor, levels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Quantize ``rows`` ``(..., C)`` by ``(Q, J, C)``, each codebook the residual of those before.

    Returns:
        Codes ``(..., Q)``, and the input of each level, ``(..., C)``.
    """
    codes: list[Tensor] = []
    residuals = [rows]
    for codebook in levels:
        codes.append(nearest(residuals[-1], codebook))
        residuals.append(residuals[-1] - F.embedding(codes[-1], codebook))
    return torch.stack(codes, -1), residuals[:-1]


class Quantized(PointMass):
    """A posterior with mass one on one code of each codebook.

    The codes, not their vectors, determine the mass under a prior: several choices of codes may
    have the same sum.

    Args:
        value: Vectors of the codes, or sums of them, ``(B, C, *S)``. Gradients may pass through
            them.
        codes: Indices of the codes ``(B, *S)``, or ``(B, Q, *S)``.
        losses: See :class:`Distribution`.
        metrics: See :class:`Distribution`.
        shares: See :class:`Distribution`.
    """

    is_density = True
    is_discrete = True
    support = "codes"

    def __init__(
        self,
        value: Tensor,
        codes: Tensor,
        losses: Mapping[str, Tensor],
        metrics: Mapping[str, Tensor],
        shares: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        super().__init__(value, value.dim() - 1)
        self.codes, self.losses = codes, losses
        self.metrics, self.shares = metrics, shares


class CodebookCategorical(Distribution):
    """Independent codes at every position and of every codebook, by logits.

    Args:
        logits: ``(J, *S)``, or ``(J, Q, *S)``.
        codebook: ``(J, C)``, or ``(Q, J, C)`` for codes that are summed.

    Shape:
        value: ``(..., C, *S)``; a vector that is not a code has mass zero.

    Example:
        >>> prior = CodebookCategorical(torch.zeros(4, 7, 7), torch.randn(4, 2))
        >>> prior.log_prob(prior.sample((5,)))[0]  # -49 log(4)
        tensor(-67.9284)
        >>> prior = CodebookCategorical(torch.zeros(4, 3, 7, 7), torch.randn(3, 4, 2))
        >>> prior.log_mass(torch.zeros(3, 7, 7, dtype=torch.long))  # -3 * 49 log(4)
        tensor(-203.7853)
    """

    has_rsample = False
    is_discrete = True
    support = "codes"

    def __init__(self, logits: Tensor, codebook: Tensor) -> None:
        self.logits, self.codebook = logits, codebook
        self.batch_shape = torch.Size()
        positions = logits.shape[codebook.dim() - 1 :]
        self.event_shape = torch.Size((codebook.shape[-1], *positions))

    @property
    def log_probs(self) -> Tensor:
        """Log masses, with the shape of the logits."""
        return self.logits.log_softmax(0)

    @property
    def mean(self) -> Tensor:
        """Expected vectors, ``(C, *S)``."""
        dims = [*range(self.codebook.dim() - 1)]  # (Q, J) and (J, Q)
        mean: Tensor = torch.tensordot(self.codebook, self.log_probs.exp(), (dims, dims[::-1]))
        return mean

    def point_estimate(self, weights: Tensor | None = None) -> Tensor:
        """Return the vectors of the most probable codes."""
        return pooled(self.vectors(self.logits.argmax(0)), weights)

    def log_mass(self, codes: Tensor) -> Tensor:
        """Return the log mass of codes by their indices ``(..., *S)`` or ``(..., Q, *S)``, nats."""
        dim = codes.dim() - self._ndim
        log_probs = self.log_probs.expand(*codes.shape[:dim], *self.logits.shape)
        chosen = log_probs.gather(dim, codes.unsqueeze(dim)).squeeze(dim)
        return chosen.flatten(dim).sum(-1) if self._ndim else chosen

    @property
    def _ndim(self) -> int:
        """Number of dimensions of the codes of one value."""
        return self.logits.dim() - 1

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log mass of codes by their vectors, nats.

        Raises:
            ValueError: If there are several codebooks, because a sum of codes does not determine
                the codes.
        """
        if self.codebook.dim() > 2:
            raise ValueError(
                f"CodebookCategorical.log_prob expects vectors of one codebook, got sums of "
                f"{len(self.codebook)} codes, which do not determine the codes: use "
                "log_mass(posterior.codes)"
            )
        positions = len(self.event_shape) - 1
        rows = value.movedim(-positions - 1, -1)  # (..., *S, C)
        codes = nearest(rows, self.codebook, exact=True)  # (..., *S)
        is_code = (F.embedding(codes, self.codebook) == rows).all(-1)
        if positions:
            is_code = is_code.flatten(-positions).all(-1)
        return self.log_mass(codes).masked_fill(~is_code, -torch.inf)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw codes, and return their vectors without gradients."""
        return self.vectors(self._sample_codes(sample_shape))

    def sample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw codes, and return their vectors with the log mass of the codes, nats."""
        codes = self._sample_codes(sample_shape)
        return self.vectors(codes), self.log_mass(codes)

    @torch.no_grad()
    def _sample_codes(self, sample_shape: Sequence[int]) -> Tensor:
        """Draw codes ``(*sample_shape, *S)``, or ``(*sample_shape, Q, *S)``."""
        probs = self.log_probs.exp().reshape(len(self.logits), -1).T  # (S, J)
        count = size_of(sample_shape).numel()
        draws = torch.multinomial(probs, max(count, 1), replacement=True).T[:count]
        return draws.reshape((*sample_shape, *self.logits.shape[1:]))

    @torch.no_grad()
    def vectors(self, codes: Tensor) -> Tensor:
        """Return the vectors of codes, or sums of them, ``(..., C, *S)``."""
        levels, batch = levels_of(self.codebook), codes.shape[: codes.dim() - self._ndim]
        codes = codes.reshape(*batch, len(levels), *self.event_shape[1:])
        pairs = zip(codes.unbind(len(batch)), levels, strict=True)
        # Added in the encoder's order, so that equal codes have bitwise equal sums.
        *_, total = accumulate(F.embedding(index, codebook) for index, codebook in pairs)
        return total.movedim(-1, len(batch))
