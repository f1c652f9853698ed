r"""Latents out of codebooks: a posterior on one code of each, and a prior over all.

.. math:: z = \sum_q e^q_{k_q}, \qquad k_q = \arg\min_j \| r_{q-1} - e^q_j \|, \qquad
    r_q = r_{q-1} - e^q_{k_q}, \quad r_0 = h

Each of :math:`Q` codebooks quantizes what the ones before it left; one codebook is the case
:math:`Q = 1`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyvae.distributions.base import Distribution, pooled
from tinyvae.distributions.multivariate import Delta

# Partial sums of codes that are kept for a vector, and distances computed at once, in the search
# for the codes that sum to it.
MOST_SUMS = 1 << 14
MOST_DISTANCES = 1 << 24


def nearest(rows: Tensor, codebook: Tensor, *, exact: bool = False) -> Tensor:
    """Index of the code nearest to each of ``rows`` ``(..., C)``, as ``(...)``.

    Args:
        rows: Vectors.
        codebook: CodebookCategorical ``(J, C)``.
        exact: Take differences, instead of the faster squares and products.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    return _distances(flat, codebook, exact=exact).argmin(-1).reshape(rows.shape[:-1])


def _distances(rows: Tensor, codebook: Tensor, *, exact: bool) -> Tensor:
    """Between ``(N, C)`` and ``(J, C)``, as ``(N, J)``."""
    mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist"
    return torch.cdist(rows, codebook, compute_mode=mode)


def levels_of(codebook: Tensor) -> Tensor:
    """One codebook ``(J, C)`` or several ``(Q, J, C)``, as the latter."""
    return codebook.view(-1, *codebook.shape[-2:])


def residual_codes(
    rows: Tensor, levels: Tensor, *, exact: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """CodebookCategorical of each level, nearest to what those before left of ``rows`` ``(..., C)``.

    Args:
        rows: Vectors.
        levels: Codebooks ``(Q, J, C)``.
        exact: As of :func:`nearest`.

    Returns:
        CodebookCategorical ``(..., Q)``, and for each level what it quantized, ``(..., C)``.
    """
    codes: list[Tensor] = []
    left = [rows]
    for codebook in levels:
        codes.append(nearest(left[-1], codebook, exact=exact))
        left.append(left[-1] - F.embedding(codes[-1], codebook))
    return torch.stack(codes, -1), left[:-1]


def partial_sums(vectors: Iterable[Tensor]) -> list[Tensor]:
    """Sums of the first, the first two, ... vectors: rounded alike wherever codes are summed."""
    return list(accumulate(vectors))


def _vectors(codes: Tensor, levels: Tensor) -> Tensor:
    """Sums of the codes ``(..., Q)``, as ``(..., C)``."""
    pairs = zip(codes.unbind(-1), levels, strict=True)
    return partial_sums(F.embedding(index, codebook) for index, codebook in pairs)[-1]


@torch.no_grad()
def _codes_of(rows: Tensor, levels: Tensor, width: int = 1) -> Tensor:
    """CodebookCategorical ``(N, Q)`` that sum to each of ``rows`` ``(N, C)``, any codes where none do.

    What greedy residuals do not find is searched for with eight times as many partial sums, until
    these are all that there are.
    """
    codes = (
        residual_codes(rows, levels, exact=True)[0] if width == 1 else _beam(rows, levels, width)
    )
    every = levels.shape[1] ** (len(levels) - 1)
    missed = (_vectors(codes, levels) != rows).any(-1)
    if width == every or not missed.any():
        return codes
    if width == MOST_SUMS:
        raise ValueError(
            f"the codes of a vector are not found among its nearest {width} sums of {len(levels)} "
            f"x {levels.shape[1]} codes: score codes by log_mass(codes), as the analytic KL does"
        )
    unique, place = rows[missed].unique(dim=0, return_inverse=True)
    codes[missed] = _codes_of(unique, levels, min(8 * width, every, MOST_SUMS))[place]
    return codes


def _beam(rows: Tensor, levels: Tensor, width: int) -> Tensor:
    """As :func:`_codes_of`, among the ``width`` partial sums nearest to each row at each level."""
    parts = rows.split(max(1, MOST_DISTANCES // (width * levels.shape[1])))
    return torch.cat([_beam_of_part(part, levels, width) for part in parts])


def _beam_of_part(rows: Tensor, levels: Tensor, width: int) -> Tensor:
    sums = torch.zeros_like(rows).unsqueeze(1)  # (N, W, C)
    codes = torch.zeros(*sums.shape[:2], 0, dtype=torch.long, device=rows.device)  # (N, W, q)
    each = torch.arange(len(rows), device=rows.device).unsqueeze(1)
    for codebook in levels:
        left = (rows.unsqueeze(1) - sums).flatten(0, 1)
        distances = _distances(left, codebook, exact=True).reshape(len(rows), -1)  # (N, W * J)
        best = distances.topk(min(width, distances.shape[1]), largest=False).indices
        before, code = best // len(codebook), best % len(codebook)
        sums = sums[each, before] + codebook[code]
        codes = torch.cat([codes[each, before], code.unsqueeze(-1)], -1)
    hit = (sums == rows.unsqueeze(1)).all(-1).long().argmax(1, keepdim=True)
    return codes[each, hit].squeeze(1)


class Quantized(Delta):
    """A code for certain, or one of each of several codebooks: mass one on it.

    Args:
        value: The codes' vectors, or sums of them, ``(B, C, *S)``, through which gradients may
            pass.
        codes: Their indices ``(B, *S)``, or ``(B, Q, *S)``.
        losses: As of :class:`Distribution`.
        metrics: As of :class:`Distribution`.
        learn: Called at the first draw: what a codebook learns of the codes' use.
    """

    is_density = True
    is_discrete = True
    space = "codes"

    def __init__(
        self,
        value: Tensor,
        codes: Tensor,
        losses: Mapping[str, Tensor],
        metrics: Mapping[str, Tensor],
        learn: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(value, value.dim() - 1)
        self.codes, self.losses, self.metrics = codes, losses, metrics
        self._learn = learn

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """The code, again and again, with gradients."""
        if self._learn is not None:
            self._learn()
            self._learn = None
        return super().sample(sample_shape)


class CodebookCategorical(Distribution):
    """Independent codes at every position, and of every codebook, by logits.

    A value is scored by the codes that it is the sum of. These are searched for among the nearest
    partial sums, in the end among all :math:`J^{Q-1}`, or 16,384. Where several choices of codes
    have the same sum, the mass is that of one of them, which is no more than the sum's own.

    Args:
        logits: ``(J, *S)``, or ``(J, Q, *S)``.
        codebook: ``(J, C)``, or ``(Q, J, C)`` of codes that are summed.

    Shape:
        value: ``(..., C, *S)``; what is no (sum of) code(s) has mass zero.

    Raises:
        ValueError: By ``log_prob``, if there are more and the nearest are not a value's.

    Example:
        >>> prior = CodebookCategorical(torch.zeros(4, 7, 7), torch.randn(4, 2))
        >>> prior.log_prob(prior.sample((5,)))[0]  # -49 log(4)
        tensor(-67.9284)
        >>> prior = CodebookCategorical(torch.zeros(4, 3, 7, 7), torch.randn(3, 4, 2))
        >>> prior.log_prob(prior.sample((5,)))[0]  # -3 * 49 log(4)
        tensor(-203.7853)
    """

    has_rsample = False
    is_discrete = True
    space = "codes"

    def __init__(self, logits: Tensor, codebook: Tensor) -> None:
        self.logits, self.codebook = logits, codebook
        self.batch_shape = torch.Size()
        positions = logits.shape[codebook.dim() - 1 :]
        self.event_shape = torch.Size((codebook.shape[-1], *positions))

    @property
    def log_probs(self) -> Tensor:
        """Log masses, of the logits' shape."""
        return self.logits.log_softmax(0)

    @property
    def mean(self) -> Tensor:
        """Expected vectors, ``(C, *S)``."""
        dims = [*range(self.codebook.dim() - 1)]  # (Q, J) and (J, Q)
        mean: Tensor = torch.tensordot(self.codebook, self.log_probs.exp(), (dims, dims[::-1]))
        return mean

    def center(self, weights: Tensor | None = None) -> Tensor:
        """Vectors of the most probable codes."""
        return pooled(self._values(self.logits.argmax(0)), weights)

    def log_mass(self, codes: Tensor) -> Tensor:
        """Log mass of codes by their indices ``(..., *S)``, or ``(..., Q, *S)``, nats."""
        log_probs = self.log_probs.expand(
            *codes.shape[: codes.dim() - self._ndim], *self.logits.shape
        )
        dim = codes.dim() - self._ndim
        chosen = log_probs.gather(dim, codes.unsqueeze(dim)).squeeze(dim)
        log_mass: Tensor = chosen.flatten(dim).sum(-1) if self._ndim else chosen
        return log_mass

    @property
    def _ndim(self) -> int:
        """Dimensions of the codes of one value."""
        return self.logits.dim() - 1

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass of codes by their vectors, nats."""
        positions = len(self.event_shape) - 1
        vectors = value.movedim(-positions - 1, -1)  # (..., *S, C)
        levels = levels_of(self.codebook)
        codes = _codes_of(vectors.reshape(-1, vectors.shape[-1]), levels)
        codes = codes.reshape(*vectors.shape[:-1], len(levels))
        hit = (_vectors(codes, levels) == vectors).all(-1)
        if positions:
            hit = hit.flatten(-positions).all(-1)
        codes = codes.movedim(-1, -positions - 1)  # (..., Q, *S)
        log_mass = self.log_mass(codes.reshape(hit.shape + self.logits.shape[1:]))
        return log_mass.masked_fill(~hit, -torch.inf)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw codes, as vectors without gradients."""
        with torch.no_grad():
            probs = self.log_probs.exp().reshape(len(self.logits), -1).T  # (S, J)
            count = torch.Size(sample_shape).numel()
            draws = torch.multinomial(probs, max(count, 1), replacement=True).T[:count]
            return self._values(draws.reshape((*sample_shape, *self.logits.shape[1:])))

    def _values(self, codes: Tensor) -> Tensor:
        """Vectors of codes ``(..., *S)``, or sums of ``(..., Q, *S)``, as ``(..., C, *S)``."""
        levels, lead = levels_of(self.codebook), codes.shape[: codes.dim() - self._ndim]
        codes = codes.reshape(*lead, len(levels), *self.event_shape[1:])
        vectors = _vectors(codes.movedim(len(lead), -1), levels)
        return vectors.movedim(-1, len(lead))
